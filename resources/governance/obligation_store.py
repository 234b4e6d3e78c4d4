"""Outcomes of obligations on record, each with its evidence and its event."""

from __future__ import annotations

from typing import Any

import psycopg

from resources.governance.obligation_judge import Outcome
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.events import Event
from resources.trust import ledger

_VERBS = {"pass": "passed", "fail": "failed", "warn": "warned", "skip": "skipped"}


def record(connection: psycopg.Connection, tenant_id: str, pipeline: str, run_token: str, outcome: Outcome) -> bool:
    """Put an outcome on record in the caller's transaction; False when the same is the newest of this work already.

    So a rerun of killed work adds nothing, and an obligation that is kept at last is on record twice: failed, passed.
    """
    obligation = outcome.obligation
    seen = (obligation.hash, outcome.status, outcome.summary, outcome.details)
    rows = fetch(connection, _NEWEST, (tenant_id, pipeline, obligation.name, run_token))
    number = 1
    if rows:
        last, *before = rows[0]
        if tuple(before) == seen:
            return False
        number = last + 1
    kind = f"obligation.{_VERBS[outcome.status]}"
    subject = f"{pipeline}/{obligation.name}" + (f"#{number}" if number > 1 else "")
    facts = {
        "status": outcome.status, "summary": outcome.summary, "obligation": obligation.name,
        "version": obligation.metadata.version, "hash": obligation.hash,
        "on_failure": obligation.spec.on_failure, **outcome.details,
    }
    seq = ledger.append(connection, ledger.Entry(tenant_id, kind, subject, run_token, facts))
    fetch(connection, _RECORD, (
        tenant_id, pipeline, obligation.name, run_token, number, obligation.metadata.version, obligation.hash,
        outcome.status, obligation.spec.on_failure == "block", outcome.summary, as_json(outcome.details), seq))
    events.append(connection, Event(
        tenant_id, kind, subject, run_token, facts, pipeline=pipeline, evidence_seq=seq, run_token=run_token))
    return True


def newest(connection: psycopg.Connection, tenant_id: str | None, pipeline: str | None) -> list[dict[str, Any]]:
    """The newest outcome of each obligation, by tenant and pipeline."""
    return fetch_dicts(connection, _OUTCOMES, (tenant_id, pipeline))


_NEWEST = """
select number, hash, status, summary, details from platform.obligation_result
where tenant_id = $1 and pipeline = $2 and obligation = $3 and run_token = $4
order by number desc limit 1
"""
_RECORD = """
insert into platform.obligation_result (
    tenant_id, pipeline, obligation, run_token, number, version, hash, status, blocking, summary, details,
    evidence_seq)
values ($1, $2, $3, $4, $5::int, $6, $7, $8, $9, $10, $11::text::jsonb, $12)
"""
_OUTCOMES = """
select distinct on (tenant_id, pipeline, obligation) tenant_id, pipeline, obligation, version, status, blocking,
    summary, details, run_token, evidence_seq, evaluated_at
from platform.obligation_result
where ($1::text is null or tenant_id = $1) and ($2::text is null or pipeline = $2)
order by tenant_id, pipeline, obligation, evidence_seq desc
"""
