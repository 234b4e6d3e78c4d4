"""What becomes of batches that waited, once a drift is decided or a contract declares what they have.

A decision changes nothing downstream by itself: the next run of the pipeline, under its lock, carries it out here.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from resources.governance import drift_register
from resources.governance.contracts import Contract
from resources.governance.drift import DriftClass, still_blocking
from resources.governance.drift_register import Outcome, WaitingBatch
from resources.runtime.database import fetch
from resources.storage import raw_tables

UNDECLARED = "undeclared_field"
"""Reason under which the values of a rejected field are in quarantine."""


@dataclass(frozen=True)
class Due:
    """A waiting batch that need not wait any longer, and how it goes on."""

    batch: WaitingBatch
    outcome: Outcome


def due(connection: psycopg.Connection, tenant_id: str, extraction: Contract, raw: Contract) -> list[Due]:
    """Batches of a dataset that can go on, in the order they landed.

    An open drift is over when the contracts in force declare everything it was about. Batches of an accepted one are
    read again in any case: what still differs then is asked, and waits for no decision that was made.
    """
    found = []
    for batch in drift_register.waiting(connection, tenant_id, raw.dataset):
        if not batch.is_current:
            continue
        if batch.drift.status == "rejected":
            found.append(Due(batch, "conforming"))
        elif batch.drift.status == "held":
            found.append(Due(batch, "kept_out"))
        elif batch.drift.of_delivery:
            if batch.drift.status == "accepted":
                found.append(Due(batch, "conforming"))  # it counts as it is
        elif batch.drift.status != "open" or not any(
                still_blocking(change, extraction, raw) for change in batch.drift.blocking):
            found.append(Due(batch, "relanded"))
    return found


def apply(connection: psycopg.Connection, item: Due, raw: Contract) -> None:
    """Let a batch go on without its drifted part, or keep it out, in one transaction."""
    added = [change.field for change in item.batch.drift.blocking if change.kind is DriftClass.FIELD_ADDED]
    with connection.transaction():
        quarantined = 0
        if item.outcome == "conforming" and added:
            quarantined = _quarantine_values(connection, item.batch, added, raw)
        drift_register.release(connection, item.batch, item.outcome, {"quarantined": quarantined})


def _quarantine_values(connection: psycopg.Connection, batch: WaitingBatch, fields: list[str], raw: Contract) -> int:
    """Put the values of undeclared fields on record as refused: one record per row and field that has one.

    Their rows count on, so these records are of stage `drift` and no part of what ingestion received.
    """
    statement = sql.SQL(_QUARANTINE).format(sql.Identifier(raw_tables.SCHEMA, raw_tables.table_name(raw.dataset)))
    return fetch(
        connection, statement.as_string(connection),
        (batch.drift.tenant_id, batch.drift.pipeline, raw.dataset, batch.batch_id, batch.source_id, fields,
         batch.drift.fingerprint, batch.drift.drift_id, UNDECLARED),
    )[0][0]


_QUARANTINE = """
with refused as (
    insert into platform.quarantine (
        tenant_id, pipeline, dataset, stage, batch_id, source_id, row_number, field, reason, message, payload,
        run_token)
    select $1, $2, $3, 'drift', r._batch_id, $5, r._row_number, name, $9,
        name || ': the field is not declared, and drift ' || $8::bigint || ' was rejected',
        convert_to(jsonb_build_object(name, r._extra::jsonb -> name)::text, 'UTF8'), $7
    from {} r
    cross join unnest($6::text[]) as name
    where r._tenant_id = $1 and r._batch_id = $4 and r._extra is not null
        and coalesce(r._extra::jsonb -> name, 'null'::jsonb) <> 'null'::jsonb
    order by r._row_number, name
    returning 1
)
select count(*) from refused
"""
