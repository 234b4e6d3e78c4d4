"""Landed batches, judged again when their raw contract has a version that accepts other records.

A batch is due when it landed under other rules than those in force and lies within what the contract says they apply
to. It is read from the raw store; of which nothing moves is put on record as judged, any other lands again as the batch
that supersedes it. Records that somebody replayed or gave up are decided: they stay refused, and keep their decision.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg

from barecount_assets.stages import quarantine_life
from barecount_assets.stages.ingestion import relanding
from barecount_assets.stages.ingestion.records import ExtractorSchema, ObservedSchema
from barecount_assets.stages.ingestion.rules import ContractRules
from resources.governance import acceptance, registry
from resources.governance.contracts import Contract
from resources.runners.stage import run_token
from resources.runtime import events
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.errors import BareCountError
from resources.trust import ledger

if TYPE_CHECKING:
    import pyarrow as pa

    from resources.governance.sources import AnySource
    from resources.storage.raw_store import RawStore

_NAMED_DAYS = 5


@dataclass(frozen=True)
class Moves:
    """What of one batch moves: records that were accepted and are refused now, and the other way round."""

    to_quarantine: int = 0
    to_accepted: int = 0

    @property
    def any(self) -> bool:
        return self.to_quarantine + self.to_accepted > 0


@dataclass(frozen=True)
class Judged:
    """What judging again comes to, for one dataset of one tenant.

    Attributes:
        batches: how many were due; `landed_again`: of them those of which something moved.
        expired: of them those whose rows retention has deleted, which nobody can judge any more.
        expired_days: the days of those, in order, the first few.
    """

    dataset: str
    version: str
    batches: int = 0
    landed_again: int = 0
    to_quarantine: int = 0
    to_accepted: int = 0
    expired: int = 0
    expired_days: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """For a receipt; empty where nothing was due."""
        if not self.batches:
            return {}
        return {"judged_again": self.batches, "to_quarantine": self.to_quarantine, "to_accepted": self.to_accepted,
                **({"expired_unjudged": self.expired} if self.expired else {})}


def in_force(connection: psycopg.Connection, raw: Contract, day: dt.date) -> Contract:
    """The raw contract whose rules are for a day: `raw`, or the newest version before it that is for days so early."""
    if raw.applies_from is None or day >= raw.applies_from:
        return raw
    for version in reversed(registry.history(connection, raw.dataset, "raw")):
        earlier = version.contract
        if earlier.hash != raw.hash and (earlier.applies_from is None or day >= earlier.applies_from):
            return earlier
    return raw


def of_columns(contract: Contract, raw: Contract) -> Contract:
    """A contract with the columns alone that `raw` still has, of the same type: the others are no longer read."""
    types = dict(raw.column_types)
    return replace(contract, columns=tuple(
        column for column in contract.columns if types.get(column.name) == column.physical_type))


def due(connection: psycopg.Connection, tenant_id: str, raw: Contract) -> list[dict[str, Any]]:
    """Rows of `platform.raw_batch` of the batches to judge, in order of landing, each with `is_expired`.

    A batch that waits for a decision on drift, or is kept out by one, is not: it does not count as it is.
    """
    return fetch_dicts(connection, _DUE, (tenant_id, raw.dataset, raw.hash, acceptance.digest(raw), raw.applies_from))


def unmoved(
    connection: psycopg.Connection, batches: Sequence[Mapping[str, Any]], raw: Contract
) -> set[int]:
    """Numbers of the due batches of which nothing can move, as is seen without reading them.

    They landed under a contract that differs in other things, or refused nothing under one that accepted no more.
    """
    try:
        landed_under = {version.document_hash: version.contract
                        for version in registry.history(connection, raw.dataset, "raw")}
    except BareCountError:  # a version on record cannot be read any more: then every batch is
        return set()
    alike = {number for number, contract in landed_under.items()
             if acceptance.digest(contract) == acceptance.digest(raw)}
    looser = {number for number, contract in landed_under.items() if acceptance.accepts_all_of(raw, contract)}
    return {
        batch["batch_id"] for batch in batches
        if batch["contract_hash"] in alike or (batch["contract_hash"] in looser and not batch["quarantined"])
    }


def decided(connection: psycopg.Connection, batch: Mapping[str, Any]) -> frozenset[int]:
    """Numbers of a batch's refused records that were replayed or given up."""
    return frozenset(number for (number,) in fetch(connection, _DECIDED, (batch["tenant_id"], batch["batch_id"])))


def observed(batch: Mapping[str, Any]) -> ObservedSchema:
    """What is on record of the fields that the batch's unit had: their names."""
    return ObservedSchema(tuple(batch["observed_names"] or ()))


def judge(
    store: RawStore, batch: Mapping[str, Any], source: AnySource, schema: ExtractorSchema, rules: ContractRules,
    decided_rows: Collection[int],
) -> Moves:
    """What of a batch would move under other rules; only reads.

    Raises:
        BareCountError: store.corrupt.
    """
    refused, seen = 0, observed(batch)
    again, named = relanding.rereading_of(source, batch, seen), schema.named_as(seen.names)
    for rows in store.read(batch["object_key"]):
        if _has_fields(rows, schema):
            refused += _broken(rows, rules)
            continue
        # Its columns are not those of the contract any more.
        parsed = relanding.accepted(rows, named, batch, again)
        refused += parsed.rejects.num_rows + _broken(parsed.rows, rules)
    accepted = sum(
        parsed.rows.num_rows - _broken(parsed.rows, rules)
        for parsed in relanding.refused(store, batch, source, seen, schema, decided_rows))
    return Moves(refused, accepted)


def impact(
    connection: psycopg.Connection, store: RawStore, source: AnySource, schema: ExtractorSchema, tenant_id: str,
    raw: Contract, required: Collection[str],
) -> Judged:
    """What a run under a raw contract would come to for what has landed of one tenant; changes nothing."""
    batches = due(connection, tenant_id, raw)
    unread = unmoved(connection, batches, raw) if batches else set()
    expired = [batch for batch in batches if batch["is_expired"] and batch["batch_id"] not in unread]
    rules = ContractRules(raw, source, required)
    moved = [moves for batch in batches if batch["batch_id"] not in unread and not batch["is_expired"]
             if (moves := judge(store, batch, source, schema, rules, decided(connection, batch))).any]
    return Judged(
        raw.dataset, raw.version, len(batches), len(moved), sum(moves.to_quarantine for moves in moved),
        sum(moves.to_accepted for moves in moved), len(expired), days_of(expired))


def _has_fields(rows: pa.RecordBatch, schema: ExtractorSchema) -> bool:
    types = {name: rows.schema.field(name).type for name in rows.schema.names}
    return all(types.get(field.name) == field.type for field in schema.fields)


def _broken(rows: pa.RecordBatch, rules: ContractRules) -> int:
    verdict = rules.judge(rows)
    return 0 if verdict is None else len(verdict.positions)


def carry_over(connection: psycopg.Connection, old: Mapping[str, Any], new: int) -> None:
    """Give the successor of a batch what was decided about its records; before it takes the batch's place.

    Replayed records belong to it now, values that a rejected drift refused are refused of its rows too, and records
    that were replayed or given up are that still.
    """
    fetch(connection, _REPLAYS, (old["batch_id"], new))
    fetch(connection, _DRIFTED, (old["tenant_id"], old["batch_id"], new))
    fetch(connection, _DRIFT, (old["batch_id"], new))
    quarantine_life.carry_over(connection, old["tenant_id"], [new])


def record(
    connection: psycopg.Connection, raw: Contract, tenant_id: str, pipeline: str, judged: Judged,
    unchanged: Sequence[Mapping[str, Any]], expired: Sequence[Mapping[str, Any]],
) -> None:
    """Put on record what was judged, with the batches that stay as they are, in one transaction."""
    judgement = acceptance.digest(raw)
    token = run_token(judgement=judgement, tenant=tenant_id, dataset=raw.dataset,
                      batches=sorted(batch["run_token"] for batch in (*unchanged, *expired)),
                      after=ledger.newest(connection, tenant_id))
    payload = {
        "pipeline": pipeline, "dataset": raw.dataset, "contract_version": raw.version, "contract_hash": raw.hash,
        "applies_from": raw.applies_from and raw.applies_from.isoformat(), **judged.counts(),
        "landed_again": judged.landed_again, "expired_days": list(judged.expired_days),
    }
    with connection.transaction():
        seq = ledger.append(connection, ledger.Entry(tenant_id, "batches.judged", raw.dataset, token, payload))
        events.append(connection, events.Event(tenant_id, "batches.judged", raw.dataset, token, payload, pipeline, seq))
        for outcome, batches in (("unchanged", unchanged), ("expired", expired)):
            fetch(connection, _JUDGED, ([batch["batch_id"] for batch in batches], judgement, tenant_id, outcome,
                                        raw.version, seq))


def days_of(batches: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The first few days of some batches, each once, in order."""
    days = sorted({_day(batch).isoformat() for batch in batches})
    return tuple(days[:_NAMED_DAYS])


def _day(batch: Mapping[str, Any]) -> dt.date:
    return batch["partition_date"] or batch["load_date"]


_DUE = """
select b.*, e.batch_id is not null as is_expired
from platform.raw_batch b
left join platform.raw_expiry e using (batch_id)
where b.tenant_id = $1 and b.dataset = $2 and b.is_current and b.contract_hash <> $3
    and ($5::date is null or coalesce(b.partition_date, b.load_date) >= $5::date)
    and not exists (
        select from platform.batch_judgement j where j.batch_id = b.batch_id and j.judgement = $4)
    and not exists (
        select from platform.drift_batch w where w.batch_id = b.batch_id and w.outcome in ('waiting', 'kept_out'))
order by b.batch_id
"""
_DECIDED = """
select q.row_number from platform.quarantine q
join platform.quarantine_outcome o on o.quarantine_id = q.quarantine_id
where q.tenant_id = $1 and q.batch_id = $2 and q.stage = 'ingestion'
"""
_REPLAYS = "update platform.raw_batch set replay_of = $2 where replay_of = $1"
_DRIFTED = """
insert into platform.quarantine (
    tenant_id, pipeline, dataset, stage, batch_id, source_id, row_number, field, reason, message, payload, run_token)
select q.tenant_id, q.pipeline, q.dataset, q.stage, $3::bigint, q.source_id, q.row_number, q.field, q.reason, q.message,
    q.payload, q.run_token
from platform.quarantine q
where q.tenant_id = $1 and q.batch_id = $2 and q.stage = 'drift' and not exists (
    select from platform.quarantine refused
    where refused.batch_id = $3::bigint and refused.stage = 'ingestion' and refused.row_number = q.row_number)
order by q.quarantine_id
"""
_DRIFT = """
insert into platform.drift_batch (batch_id, drift_id, tenant_id, outcome, settled_at, evidence_seq)
select $2::bigint, drift_id, tenant_id, outcome, settled_at, evidence_seq
from platform.drift_batch where batch_id = $1 and outcome <> 'waiting'
"""
_JUDGED = """
insert into platform.batch_judgement (batch_id, judgement, tenant_id, outcome, contract_version, evidence_seq)
select id, $2, $3, $4, $5, $6::bigint from unnest($1::bigint[]) as id
on conflict do nothing
"""
