"""Retention: raw partitions are deleted when everything declared lets them go, and evidence names what went.

Until then their objects lie in the storage class that the manifest's `retention.raw_class` names, with the tenant's
override. New objects are written into it; `tier` moves those that were written under another one.

How long a partition is kept is the longer of two declarations: the raw contract's retention, and the manifest's
`retention.raw_days` with the tenant's override. A legal hold keeps what it covers, whatever is declared.

The rows, the evidence (with the checksum of every object) and the event change in one transaction; objects are deleted
after it. A crash in between leaves objects that the next `expire` deletes.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any, get_args

from barecount_assets.stages.environment import StageEnvironment
from resources.host.tenants import RawClass
from resources.runners.stage import run_token
from resources.runtime import events
from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import retention
from resources.storage.retention import Partition
from resources.trust import ledger

_CLASSES = get_args(RawClass)  # the readiest first


@dataclass(frozen=True)
class Expired:
    """A partition that is due: deleted, or kept by a hold."""

    partition: Partition
    days: int
    evidence_seq: int | None = None


@dataclass(frozen=True)
class Tiered:
    """Objects of a dataset that lay in another storage class than declared."""

    tenant_id: str
    dataset: str
    raw_class: RawClass
    keys: tuple[str, ...]
    evidence_seq: int | None = None


@dataclass(frozen=True)
class _Kept:
    """How a tenant's raw data of a dataset is kept: by the longest and the readiest of its pipelines' declarations."""

    tenant_id: str
    pipeline: str
    dataset: str
    days: int
    raw_class: RawClass
    snapshots: bool


def expire(
    environment: StageEnvironment, now: dt.datetime, by: str, tenant_id: str | None = None,
    dataset: str | None = None, *, dry_run: bool = False,
) -> list[Expired]:
    """Delete every partition that is due at `now` and not held; says which, and which holds keep."""
    results = []
    for kept in _declared(environment, tenant_id, dataset):
        with environment.exclusive(kept.tenant_id, kept.pipeline) as connection:
            for partition in retention.due(
                    connection, kept.tenant_id, kept.dataset, kept.days, now.date(), whole=kept.snapshots):
                if dry_run or partition.hold is not None:
                    results.append(Expired(partition, kept.days))
                else:
                    results.append(Expired(partition, kept.days, _expire(connection, partition, kept.days, by)))
    if not dry_run:
        with environment.database.connect(autocommit=True) as connection:
            gone = retention.expired_objects(connection, tenant_id)
        for key in gone:
            environment.raw_store.delete(key)
    return results


def tier(
    environment: StageEnvironment, by: str, tenant_id: str | None = None, dataset: str | None = None, *,
    dry_run: bool = False,
) -> list[Tiered]:
    """Let every object lie in the storage class declared for its dataset; says where something had to move.

    Bytes stay as they are, so this is on record once it is done; what a crash leaves, the next one moves.
    """
    results = []
    for kept in _declared(environment, tenant_id, dataset):
        with environment.exclusive(kept.tenant_id, kept.pipeline) as connection:
            moved = [key for key in retention.objects(connection, kept.tenant_id, kept.dataset)
                     if environment.raw_store.reclassify(key, kept.raw_class, dry_run=dry_run)]
            if not moved:
                continue
            seq = None
            if not dry_run:
                with connection.transaction():
                    seq, _ = _record(connection, kept.tenant_id, "raw.tiered", kept.dataset, kept.pipeline, {
                        "raw_class": kept.raw_class, "by": by, "objects": len(moved), "keys": moved})
            results.append(Tiered(kept.tenant_id, kept.dataset, kept.raw_class, tuple(moved), seq))
    return results


def forget(environment: StageEnvironment, pipeline: str, tenant_id: str, by: str, reason: str) -> int:
    """Let expired batches count no longer, so that GDPs can be computed whole from what is left; returns how many.

    What their units say stays known: a file that still lies at the source does not land again, a changed one does.
    """
    _require_reason(reason)
    datasets = [source.dataset for source in environment.declarations.effective(pipeline, tenant_id).spec.sources]
    with environment.exclusive(tenant_id, pipeline) as connection, connection.transaction():
        rows = fetch(connection, _TO_FORGET, (tenant_id, datasets))
        if rows:
            ids = [row[0] for row in rows]
            batches = [{"source_id": row[1], "content_sha256": row[2]} for row in rows]
            _record(connection, tenant_id, "raw.forgotten", pipeline, pipeline,
                    {"by": by, "reason": reason, "batches": batches})
            fetch(connection, "update platform.raw_batch set is_current = false where batch_id = any($1::bigint[])",
                  (ids,))
            fetch(connection, "update platform.raw_expiry set forgotten = true where batch_id = any($1::bigint[])",
                  (ids,))
    return len(rows)


def add_hold(
    environment: StageEnvironment, tenant_id: str, dataset: str | None, first_day: dt.date | None,
    last_day: dt.date | None, reason: str, by: str,
) -> int:
    """Keep partitions whatever retention says, until the hold is released; returns its number.

    Raises:
        BareCountError: usage without a reason, or for days in the wrong order; declaration.unknown.
    """
    _require_reason(reason)
    if first_day and last_day and first_day > last_day:
        raise BareCountError(ErrorCode.USAGE, f"the hold ends ({last_day}) before it begins ({first_day})",
                             hint="give --from the earlier day")
    environment.declarations.tenant(tenant_id)
    if dataset is not None:
        environment.declarations.contract(dataset, "raw")
    with environment.database.transaction() as connection:
        environment.register_tenant(connection, tenant_id)
        seq, token = _record(connection, tenant_id, "hold.added", dataset or "everything", None, {
            "dataset": dataset, "from": first_day and str(first_day), "to": last_day and str(last_day),
            "reason": reason, "by": by})
        return fetch(connection, _ADD_HOLD, (tenant_id, dataset, first_day, last_day, reason, dataset or "everything",
                                             token, by, seq))[0][0]


def release_hold(environment: StageEnvironment, hold_id: int, reason: str, by: str) -> None:
    """End a hold.

    Raises:
        BareCountError: usage without a reason; declaration.unknown for a hold that is not in force.
    """
    _require_reason(reason)
    with environment.database.transaction() as connection:
        held = [hold for hold in retention.holds(connection, None, released=False) if hold.hold_id == hold_id]
        if not held:
            raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no hold {hold_id} in force",
                                 hint="`barecount raw hold list` shows them")
        subject = held[0].dataset or "everything"
        seq, token = _record(connection, held[0].tenant_id, "hold.released", subject, None,
                             {"hold": hold_id, "reason": reason, "by": by})
        fetch(connection, _RELEASE_HOLD, (hold_id, held[0].tenant_id, reason, subject, token, by, seq))


def _declared(environment: StageEnvironment, tenant_id: str | None, dataset: str | None) -> list[_Kept]:
    """What is declared of everything that lands, once per tenant and dataset."""
    declared = environment.declarations
    found: dict[tuple[str, str], list[_Kept]] = {}
    for pipeline, manifest in declared.pipelines.items():
        for tenant in manifest.spec.tenants:
            spec = declared.effective(pipeline, tenant).spec
            for source in spec.sources:
                if (tenant_id or tenant) == tenant and (dataset or source.dataset) == source.dataset:
                    contract = declared.contract(source.dataset, "raw").retention_days or 0
                    found.setdefault((tenant, source.dataset), []).append(_Kept(
                        tenant, pipeline, source.dataset, max(spec.retention.raw_days, contract),
                        spec.retention.raw_class, source.delivery == "snapshot"))
    return [
        replace(max(each, key=lambda kept: kept.days), raw_class=min((k.raw_class for k in each), key=_CLASSES.index))
        for _, each in sorted(found.items())
    ]


def _expire(connection: Any, partition: Partition, days: int, by: str) -> int:
    ids = [batch.batch_id for batch in partition.batches]
    with connection.transaction():
        seq, token = _record(connection, partition.tenant_id, "raw.expired", partition.subject, partition.pipeline, {
            "dataset": partition.dataset, "day": str(partition.day), "kept_days": days, "since": str(partition.since),
            "by": by, "rows": sum(batch.rows for batch in partition.batches),
            "batches": [batch.facts() for batch in partition.batches]})
        fetch(connection, _EXPIRE, (partition.tenant_id, partition.subject, token, seq, ids))
        retention.delete_rows(connection, partition.dataset, ids)
    return seq


def _record(
    connection: Any, tenant_id: str, kind: str, subject: str, pipeline: str | None, payload: dict[str, Any]
) -> tuple[int, str]:
    """Evidence and event of one occurrence: (number of the entry, its run token)."""
    head = ledger.newest(connection, tenant_id)
    token = run_token(kind=kind, subject=subject, tenant=tenant_id, after=head)
    seq = ledger.append(connection, ledger.Entry(tenant_id, kind, subject, token, payload))
    facts = {name: value for name, value in payload.items() if name not in ("batches", "keys")}
    events.append(connection, events.Event(tenant_id, kind, subject, token, facts, pipeline, seq, token))
    return seq, token


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise BareCountError(ErrorCode.USAGE, "this goes on record, and has no reason", hint="say --reason WHY")


_EXPIRE = """
insert into platform.raw_expiry (batch_id, tenant_id, subject, run_token, evidence_seq)
select batch_id, $1, $2, $3, $4::bigint from unnest($5::bigint[]) as batch_id
"""
_TO_FORGET = """
select b.batch_id, b.source_id, b.content_sha256
from platform.raw_expiry e join platform.raw_batch b on b.batch_id = e.batch_id
where b.tenant_id = $1 and b.dataset = any($2) and b.is_current order by b.batch_id
"""
_ADD_HOLD = """
insert into platform.legal_hold (
    tenant_id, dataset, first_day, last_day, reason, subject, run_token, added_by, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning hold_id
"""
_RELEASE_HOLD = """
insert into platform.legal_hold_release (hold_id, tenant_id, reason, subject, run_token, released_by, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7)
"""
