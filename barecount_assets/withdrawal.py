"""Withdrawing a unit of a source: it counts no more, and the next run takes its rows out of every number.

Nothing is deleted: the unit goes on saying what it said, so that a file that still lies at the source does not land
again. It counts again when that is undone, or when it is delivered with other content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from barecount_assets.stages.environment import StageEnvironment
from resources.runners.stage import run_token
from resources.runtime import events
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.declared import did_you_mean
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger


@dataclass(frozen=True)
class Withdrawal:
    """What was, or would be, withdrawn or restored.

    Attributes:
        rows: rows that leave (or come back to) what counts, replayed ones included; 0 when another unit says the same.
        same_content: units that say the same and go on counting.
        evidence_seq: None for a dry run.
    """

    tenant_id: str
    dataset: str
    unit: str
    content_sha256: str
    rows: int
    same_content: tuple[str, ...]
    evidence_seq: int | None


def withdraw(
    environment: StageEnvironment, pipeline: str, source: str, unit: str, tenant_id: str, by: str, reason: str, *,
    undo: bool = False, dry_run: bool = False,
) -> Withdrawal:
    """Withdraw a unit, or take that back; with evidence and event in the transaction that changes what counts.

    Raises:
        BareCountError: declaration.unknown for a pipeline, source or unit that is not there; usage without a reason,
            and for a unit that is withdrawn already, or is not.
    """
    if not reason.strip():
        raise BareCountError(ErrorCode.USAGE, "this goes on record, and has no reason", hint="say --reason WHY")
    manifest = environment.declarations.effective(pipeline, tenant_id)
    datasets = {declared.name: declared.dataset for declared in manifest.spec.sources}
    if source not in datasets:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"pipeline {pipeline} has no source {source!r}{did_you_mean(source, datasets)}",
            hint=f"allowed: {', '.join(datasets)}")
    with environment.exclusive(tenant_id, pipeline) as connection, connection.transaction():
        found = _find(connection, tenant_id, datasets[source], unit, undo=undo)
        others = tuple(name for (name,) in fetch(connection, _SAME_CONTENT, (found["batch_id"], unit)))
        rows = 0 if others else fetch(connection, _ROWS, (found["batch_id"],))[0][0]
        seq = None if dry_run else _record(connection, pipeline, found, rows, by, reason, undo=undo)
        return Withdrawal(tenant_id, found["dataset"], unit, found["content_sha256"], rows, others, seq)


def _find(connection: psycopg.Connection, tenant_id: str, dataset: str, unit: str, *, undo: bool) -> dict[str, Any]:
    units = {row["source_id"]: row for row in fetch_dicts(connection, _UNITS, (tenant_id, dataset))}
    if unit not in units:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"{tenant_id} has no unit {unit!r} of {dataset}{did_you_mean(unit, units)}",
            hint=f"the newest are: {', '.join(list(units)[:5]) or 'none, nothing has landed'}")
    found = units[unit]
    if found["replay_of"] is not None:
        raise BareCountError(
            ErrorCode.USAGE, f"{unit} holds replayed records, which count with what they were replayed from",
            hint="withdraw the unit whose records they are")
    if (found["withdrawn_seq"] is not None) is not undo:
        state = "is not withdrawn" if undo else f"was withdrawn already, see evidence entry {found['withdrawn_seq']}"
        raise BareCountError(ErrorCode.USAGE, f"{unit} of {dataset} {state}",
                             hint="nothing was changed" if undo else "--undo takes it back")
    return found


def _record(
    connection: psycopg.Connection, pipeline: str, unit: dict[str, Any], rows: int, by: str, reason: str, *, undo: bool
) -> int:
    tenant_id, kind = unit["tenant_id"], "batch.restored" if undo else "batch.withdrawn"
    subject = f"{unit['dataset']}/{unit['source_id']}"
    token = run_token(kind=kind, subject=subject, after=ledger.newest(connection, tenant_id))
    facts = {
        "content_sha256": unit["content_sha256"], "delivery_order": unit["delivery_order"], "rows": rows, "by": by,
        "reason": reason, "landed_in_entry": unit["evidence_seq"],
    }
    if undo:
        facts["withdrawn_in_entry"] = unit["withdrawn_seq"]
    seq = ledger.append(connection, ledger.Entry(tenant_id, kind, subject, token, facts))
    events.append(connection, events.Event(tenant_id, kind, subject, token, facts, pipeline, seq, token))
    fetch(connection, _MARK, (tenant_id, unit["dataset"], unit["source_id"], None if undo else seq))
    return seq


_UNITS = """
select u.source_id, u.tenant_id, u.dataset, u.batch_id, u.delivery_order, u.withdrawn_seq, b.content_sha256,
    b.evidence_seq, b.replay_of
from platform.source_unit u join platform.raw_batch b using (batch_id)
where u.tenant_id = $1 and u.dataset = $2
order by u.landing desc
"""
_SAME_CONTENT = """
select source_id from platform.source_unit where batch_id = $1 and source_id <> $2 and withdrawn_seq is null
order by delivery_order
"""
_ROWS = """
select coalesce(sum(accepted), 0)::bigint from platform.raw_batch where $1 in (batch_id, replay_of)
"""
_MARK = """
update platform.source_unit set withdrawn_seq = $4::bigint where tenant_id = $1 and dataset = $2 and source_id = $3
"""
