"""Drifts on record: found once, decided once, and the batches that wait meanwhile.

Rows are written in the transaction of what they are about, each with evidence and event: `drift.detected` with the
batch that shows it, `drift.accepted`, `drift.rejected` or `drift.held` with the decision, `drift.settled` when nothing
is left to decide, `batch.released` when a waiting batch goes on. A partition is held while a current batch of it waits
(view `platform.held_partition`); what counts downstream is `platform.counted_batch`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from resources.governance.contracts import Contract
from resources.governance.drift import Change, DriftClass, ObservedSchema, fingerprint, summary
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger

Verdict = Literal["accepted", "rejected", "held"]
Outcome = Literal["relanded", "conforming", "kept_out"]


@dataclass(frozen=True)
class Drift:
    """One drift and what became of it.

    Attributes:
        status: open, accepted, rejected (the drifted part is in quarantine), held (its batches stay out), or settled
            (the source or the contracts changed, nothing was left to decide).
        partitions: days that wait for it, None for an undated source's batch.
        batches: batches that show it; `waiting`: those of them that wait.
    """

    drift_id: int
    tenant_id: str
    pipeline: str
    dataset: str
    fingerprint: str
    observed: ObservedSchema
    changes: tuple[Change, ...]
    extraction_version: str
    raw_version: str
    status: str
    detected_at: dt.datetime
    evidence_seq: int
    batches: int
    waiting: int
    partitions: tuple[dt.date | None, ...]
    verdict: str | None
    decided_by: str | None
    reason: str | None
    decided_at: dt.datetime | None
    decision_seq: int | None
    new_extraction_version: str | None
    new_raw_version: str | None

    @property
    def subject(self) -> str:
        """Name in evidence and events."""
        return f"{self.dataset}/{self.fingerprint[:12]}"

    @property
    def of_delivery(self) -> bool:
        """Whether it is about how much a delivery lacks, and about no contract."""
        return all(change.kind is DriftClass.DELIVERY_SHRUNK for change in self.blocking)

    @property
    def blocking(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.blocking)

    def to_json(self) -> dict[str, Any]:
        return {
            "drift_id": self.drift_id, "tenant": self.tenant_id, "pipeline": self.pipeline, "dataset": self.dataset,
            "fingerprint": self.fingerprint, "status": self.status,
            "changes": [change.to_json() for change in self.changes], "observed": self.observed.to_json(),
            "contracts": {"extraction": self.extraction_version, "raw": self.raw_version},
            "detected_at": self.detected_at.isoformat(), "evidence": self.evidence_seq, "batches": self.batches,
            "waiting": self.waiting, "partitions": [day and day.isoformat() for day in self.partitions],
            "decision": None if self.verdict is None else {
                "verdict": self.verdict, "by": self.decided_by, "reason": self.reason,
                "at": self.decided_at and self.decided_at.isoformat(), "evidence": self.decision_seq,
                "contracts": {"extraction": self.new_extraction_version, "raw": self.new_raw_version},
            },
        }


@dataclass(frozen=True)
class WaitingBatch:
    """A batch that waits for a decision, or for what follows from one."""

    drift: Drift
    batch_id: int
    source_id: str
    partition_date: dt.date | None
    content_sha256: str
    is_current: bool


def record(
    connection: psycopg.Connection, batch: Mapping[str, Any], observed: ObservedSchema, changes: Sequence[Change],
    extraction: Contract, raw: Contract,
) -> int:
    """Put a landing batch's drift on record in its transaction; the batch waits. Returns its number.

    A batch that shows what is on record already joins it, unless that is over: then it is asked again. The batch's own
    evidence is in the ledger already, whose head is locked since: two batches of one drift come one after the other.
    """
    tenant_id, dataset = batch["tenant_id"], batch["dataset"]
    mark = fingerprint(dataset, (extraction.hash, raw.hash), changes)
    known = _known(connection, tenant_id, dataset, mark)
    while known and known[0][1] in ("accepted", "settled"):  # and yet it is there: a decision that had no effect
        mark = hashlib.sha256(f"{mark}/{known[0][0]}".encode()).hexdigest()
        known = _known(connection, tenant_id, dataset, mark)
    drift_id = known[0][0] if known else _detect(connection, batch, observed, changes, extraction, raw, mark)
    fetch(
        connection, "insert into platform.drift_batch (batch_id, drift_id, tenant_id) values ($1, $2, $3)",
        (batch["batch_id"], drift_id, tenant_id),
    )
    return drift_id


def _known(connection: psycopg.Connection, tenant_id: str, dataset: str, mark: str) -> list[tuple[int, str]]:
    return fetch(  # type: ignore[return-value]
        connection,
        "select drift_id, status from platform.drift where tenant_id = $1 and dataset = $2 and fingerprint = $3",
        (tenant_id, dataset, mark),
    )


def _detect(
    connection: psycopg.Connection, batch: Mapping[str, Any], observed: ObservedSchema, changes: Sequence[Change],
    extraction: Contract, raw: Contract, mark: str,
) -> int:
    tenant_id, dataset, pipeline = batch["tenant_id"], batch["dataset"], batch["pipeline"]
    subject = f"{dataset}/{mark[:12]}"
    facts = {
        "dataset": dataset, "changes": [change.to_json() for change in changes], "source_id": batch["source_id"],
        "partition_date": batch["partition_date"], "contracts": {"extraction": extraction.version, "raw": raw.version},
        "steward": raw.steward or raw.owner,
    }
    seq = ledger.append(connection, ledger.Entry(tenant_id, "drift.detected", subject, mark, facts))
    events.append(connection, events.Event(
        tenant_id, "drift.detected", subject, mark, facts, pipeline, seq, batch["run_token"]))
    document = {
        "tenant_id": tenant_id, "pipeline": pipeline, "dataset": dataset, "fingerprint": mark,
        "observed": observed.to_json(), "changes": [change.to_json() for change in changes],
        "extraction_version": extraction.version, "raw_version": raw.version, "evidence_seq": seq,
    }
    return fetch(connection, _INSERT, (as_json(document),))[0][0]


def decide(
    connection: psycopg.Connection, drift_id: int, verdict: Verdict, *, by: str, reason: str, now: dt.datetime,
    policy: Mapping[str, str] | None = None, versions: tuple[str, str] | None = None,
) -> Drift:
    """Put the one decision about a drift on record, in the caller's transaction.

    Args:
        policy: what the manifest says of each class, by which a rejection became `rejected` or `held`.
        versions: of the extraction and raw contract that an acceptance made.

    Raises:
        BareCountError: declaration.unknown for a drift that is not there; drift.decided when it is open no more.
    """
    drift = locked(connection, drift_id)
    facts = {
        "by": by, "reason": reason, "changes": [change.to_json() for change in drift.changes],
        "policy": dict(policy or {}), "detected_in_entry": drift.evidence_seq,
        "contracts": dict(zip(("extraction", "raw"), versions or (), strict=False)),
    }
    kind = f"drift.{verdict}"
    seq = ledger.append(connection, ledger.Entry(drift.tenant_id, kind, drift.subject, drift.fingerprint, facts))
    events.append(connection, events.Event(
        drift.tenant_id, kind, drift.subject, drift.fingerprint, facts, drift.pipeline, seq))
    extraction, raw = versions or (None, None)
    fetch(
        connection, _DECIDE,
        (drift_id, drift.tenant_id, verdict, by, reason, as_json(dict(policy or {})), extraction, raw, now, seq),
    )
    fetch(connection, "update platform.drift set status = $2 where drift_id = $1", (drift_id, verdict))
    return find(connection, drift_id)


def locked(connection: psycopg.Connection, drift_id: int) -> Drift:
    """The drift, open, its row locked until the transaction ends: who comes second waits and is refused.

    Raises:
        BareCountError: declaration.unknown, drift.decided.
    """
    fetch(connection, "select from platform.drift where drift_id = $1 for update", (drift_id,))
    drift = find(connection, drift_id)
    if drift.status != "open":
        who = f" by {drift.decided_by}: {drift.reason}" if drift.decided_by else ""
        raise BareCountError(
            ErrorCode.DRIFT_DECIDED, f"drift {drift_id} is {drift.status} already{who}",
            hint=f"a decision is made once; `barecount drift show {drift_id}` shows it",
            details={"drift": drift.to_json()},
        )
    return drift


def find(connection: psycopg.Connection, drift_id: int) -> Drift:
    """One drift. Raises BareCountError declaration.unknown."""
    found = _drifts(connection, drift_id=drift_id)
    if not found:
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no drift {drift_id}",
                             hint="`barecount drift list --all` lists every one")
    return found[0]


def listed(
    connection: psycopg.Connection, *, pipeline: str | None = None, tenant_id: str | None = None,
    status: str | None = None,
) -> list[Drift]:
    """Drifts, the newest first."""
    return _drifts(connection, pipeline=pipeline, tenant_id=tenant_id, status=status)


def waiting(connection: psycopg.Connection, tenant_id: str, dataset: str) -> list[WaitingBatch]:
    """Batches of a dataset that wait, in the order they landed."""
    rows = fetch_dicts(connection, _WAITING, (tenant_id, dataset))
    drifts = {number: find(connection, number) for number in {row["drift_id"] for row in rows}}
    return [WaitingBatch(drifts[row.pop("drift_id")], **row) for row in rows]


def held_days(connection: psycopg.Connection, tenant_id: str, pipeline: str) -> list[dt.date | None]:
    """Partitions of a tenant's pipeline that wait, in order; None for the undated ones."""
    return [day for (day,) in fetch(connection, _HELD, (tenant_id, pipeline))]


def release(
    connection: psycopg.Connection, batch: WaitingBatch, outcome: Outcome, facts: Mapping[str, Any] | None = None
) -> None:
    """Let a waiting batch go on, in the caller's transaction."""
    drift = batch.drift
    subject = f"{drift.dataset}/{batch.source_id}"
    payload = {
        "drift": drift.subject, "outcome": outcome, "content_sha256": batch.content_sha256,
        "partition_date": batch.partition_date and batch.partition_date.isoformat(), **(facts or {}),
    }
    token = hashlib.sha256(f"{drift.fingerprint}/{batch.content_sha256}".encode()).hexdigest()
    seq = ledger.append(connection, ledger.Entry(drift.tenant_id, "batch.released", subject, token, payload))
    events.append(connection, events.Event(
        drift.tenant_id, "batch.released", subject, token, payload, drift.pipeline, seq))
    fetch(connection, _RELEASE, (batch.batch_id, drift.drift_id, outcome, seq))


def settle(connection: psycopg.Connection, drift: Drift, why: str) -> None:
    """Close an open drift none of whose batches waits any more, in the caller's transaction."""
    closed = fetch(
        connection,
        "update platform.drift d set status = 'settled' where drift_id = $1 and status = 'open' and not exists ("
        "select from platform.drift_batch w where w.drift_id = d.drift_id and w.outcome = 'waiting') returning 1",
        (drift.drift_id,),
    )
    if closed:
        payload = {"why": why, "detected_in_entry": drift.evidence_seq}
        seq = ledger.append(connection, ledger.Entry(
            drift.tenant_id, "drift.settled", drift.subject, drift.fingerprint, payload))
        events.append(connection, events.Event(
            drift.tenant_id, "drift.settled", drift.subject, drift.fingerprint, payload, drift.pipeline, seq))


def message(drift: Drift) -> str:
    """The drift on one line, as checks and errors say it."""
    return f"drift {drift.drift_id} of {drift.dataset}: {summary(drift.changes)}"


def _drifts(
    connection: psycopg.Connection, *, drift_id: int | None = None, pipeline: str | None = None,
    tenant_id: str | None = None, status: str | None = None,
) -> list[Drift]:
    rows = fetch_dicts(connection, _LIST, (drift_id, pipeline, tenant_id, status))
    return [
        Drift(**{
            **row,
            "observed": ObservedSchema.from_json(_decoded(row["observed"])),
            "changes": tuple(Change.from_json(change) for change in _decoded(row["changes"])),
            "partitions": tuple(row["partitions"] or ()),
        })
        for row in rows
    ]


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


_INSERT = """
insert into platform.drift (
    tenant_id, pipeline, dataset, fingerprint, observed, changes, extraction_version, raw_version, evidence_seq)
select tenant_id, pipeline, dataset, fingerprint, observed, changes, extraction_version, raw_version, evidence_seq
from jsonb_populate_record(null::platform.drift, $1::text::jsonb)
returning drift_id
"""
_DECIDE = """
insert into platform.drift_decision (
    drift_id, tenant_id, verdict, decided_by, reason, policy, extraction_version, raw_version, decided_at, evidence_seq)
values ($1, $2, $3, $4, $5, $6::text::jsonb, $7, $8, $9, $10)
"""
_RELEASE = """
update platform.drift_batch set outcome = $3, evidence_seq = $4, settled_at = now()
where batch_id = $1 and drift_id = $2 and outcome = 'waiting'
"""
_LIST = """
select d.drift_id, d.tenant_id, d.pipeline, d.dataset, d.fingerprint, d.observed, d.changes, d.extraction_version,
    d.raw_version, d.status, d.detected_at, d.evidence_seq, b.batches, b.waiting, b.partitions, c.verdict, c.decided_by,
    c.reason, c.decided_at, c.evidence_seq as decision_seq, c.extraction_version as new_extraction_version,
    c.raw_version as new_raw_version
from platform.drift d
left join platform.drift_decision c using (drift_id)
cross join lateral (
    select count(*) as batches, count(*) filter (where w.outcome = 'waiting' and r.is_current) as waiting,
        array_agg(distinct r.partition_date) filter (where w.outcome = 'waiting' and r.is_current) as partitions
    from platform.drift_batch w join platform.raw_batch r using (batch_id)
    where w.drift_id = d.drift_id
) b
where ($1::bigint is null or d.drift_id = $1) and ($2::text is null or d.pipeline = $2)
    and ($3::text is null or d.tenant_id = $3) and ($4::text is null or d.status = $4)
order by d.drift_id desc
"""
_WAITING = """
select w.drift_id, w.batch_id, b.source_id, b.partition_date, b.content_sha256, b.is_current
from platform.drift_batch w
join platform.raw_batch b using (batch_id)
where w.tenant_id = $1 and w.outcome = 'waiting' and b.dataset = $2
order by w.batch_id
"""
_HELD = """
select partition_date from platform.held_partition where tenant_id = $1 and pipeline = $2 order by partition_date
"""
