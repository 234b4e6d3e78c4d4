"""The ends of refused records: accounted for once, with who, why and when, evidence and an event.

`settle` puts a replay or a discard on record; `settle_accepted` closes what normalization refused once and accepts now,
because its rules changed or what it lacked has come. Whatever ends a record runs in the transaction that changes the
state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from barecount_assets.stages.environment import StageEnvironment
from resources.runners.stage import run_token
from resources.runtime import events
from resources.runtime.database import as_json, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import gdp_store, quarantine_store
from resources.storage.quarantine_store import Group, Selection
from resources.trust import ledger

PLATFORM = "platform"
"""Who decided, where a changed rule did."""


@dataclass(frozen=True)
class Decision:
    """What was decided about some records of one dataset.

    Attributes:
        kind: `replayed` or `discarded`.
        subject, run_token: identity of the decision, also in the ledger.
        decided_by, reason: who and why.
        fix: what was changed in the records before; goes into the table, not into the evidence.
        facts: what the evidence and the event say beyond the numbers.
    """

    tenant_id: str
    pipeline: str
    dataset: str
    kind: str
    subject: str
    run_token: str
    decided_by: str
    reason: str | None
    records: int
    facts: Mapping[str, Any]
    fix: Mapping[str, Any] | None = None


def record(connection: psycopg.Connection, decision: Decision) -> int:
    """Put a decision on record in the caller's transaction; returns its number."""
    payload = {"pipeline": decision.pipeline, "dataset": decision.dataset, "records": decision.records,
               "by": decision.decided_by, "reason": decision.reason, **decision.facts}
    kind = f"quarantine.{decision.kind}"
    seq = ledger.append(
        connection, ledger.Entry(decision.tenant_id, kind, decision.subject, decision.run_token, payload))
    number = fetch(connection, "select nextval('platform.quarantine_decision_decision_id_seq')")[0][0]
    fetch(connection, _DECIDE, (as_json({
        "decision_id": number, "tenant_id": decision.tenant_id, "pipeline": decision.pipeline,
        "dataset": decision.dataset, "kind": decision.kind, "subject": decision.subject,
        "run_token": decision.run_token, "decided_by": decision.decided_by, "reason": decision.reason,
        "records": decision.records, "fix": decision.fix, "evidence_seq": seq}),))
    events.append(connection, events.Event(
        decision.tenant_id, kind, decision.subject, decision.run_token, payload, decision.pipeline, seq,
        decision.run_token))
    return number


def discard(
    environment: StageEnvironment, selection: Selection, decided_by: str, reason: str, *, dry_run: bool = False
) -> list[Group]:
    """Give selected open records up; they stay on record, whole. Returns the batches they are of.

    Raises:
        BareCountError: usage without a reason.
    """
    if not reason.strip():
        raise BareCountError(ErrorCode.USAGE, "a record is not given up without a reason", hint="say --reason WHY")
    with environment.database.connect(autocommit=True) as connection:
        found = quarantine_store.groups(connection, selection)
    if dry_run:
        return found
    discarded = []
    for group in found:
        with environment.exclusive(group.tenant_id, group.pipeline) as connection, connection.transaction():
            ids = quarantine_store.ids_of(connection, selection, group)  # a replay may have taken them meanwhile
            if not ids:
                continue
            token = run_token(discard=group.content_sha256, source_id=group.source_id, ids=len(ids),
                              after=ledger.newest(connection, group.tenant_id))
            number = record(connection, Decision(
                group.tenant_id, group.pipeline, group.dataset, "discarded", f"{group.dataset}/{group.source_id}",
                token, decided_by, reason, len(ids), {"stage": group.stage, "batch": group.content_sha256}))
            fetch(connection, _DISCARD, (ids, number))
            discarded.append(group)
    return discarded


def has_open(connection: psycopg.Connection, tenant_id: str, pipeline: str) -> bool:
    """Whether records that normalization refused are still open."""
    return bool(fetch(connection, _HAS_OPEN, (tenant_id, pipeline)))


def settle_accepted(
    connection: psycopg.Connection, tenant_id: str, pipeline: str, models: Sequence[str], token: str, run_id: int,
    reason: str = "the rules changed",
) -> int:
    """Close open records of normalization that a run over everything refuses no longer; returns how many.

    Call it in the run's transaction, after what it refuses has been copied into quarantine. A record that another rule
    refuses now is closed too: its refusal under that rule is a record of its own.
    """
    closed = 0
    for model in models:
        relation = f"{gdp_store.SCHEMA}.{model}__rejected"
        if fetch(connection, "select to_regclass($1)", (relation,)) == [(None,)]:
            continue
        statement = sql.SQL(_SETTLED).format(rejected=sql.Identifier(gdp_store.SCHEMA, f"{model}__rejected"))
        rows = fetch(connection, statement.as_string(connection), (tenant_id, pipeline, model))
        for dataset in sorted({row[0] for row in rows}):
            own = [row for row in rows if row[0] == dataset]
            number = record(connection, Decision(
                tenant_id, pipeline, dataset, "replayed", f"{dataset}/{model}", token, PLATFORM,
                reason, len(own),
                {"stage": "normalization", "gdp": model, "run_id": run_id,
                 "accepted": sum(row[2] is None for row in own)}))
            fetch(connection, _SETTLE, ([row[1] for row in own], [row[2] for row in own], number, run_id))
            closed += len(own)
    return closed


def carry_over(connection: psycopg.Connection, tenant_id: str, batch_ids: Sequence[int]) -> None:
    """Give refused records of batches that took another's place what was decided about the same records of that one.

    What a run of normalization settled by itself is not carried: the next one says it again.
    """
    fetch(connection, _CARRY_OVER, (tenant_id, list(batch_ids)))


_DECIDE = """
insert into platform.quarantine_decision (
    decision_id, tenant_id, pipeline, dataset, kind, subject, run_token, decided_by, reason, records, fix, evidence_seq)
overriding system value
select decision_id, tenant_id, pipeline, dataset, kind, subject, run_token, decided_by, reason, records,
    nullif(fix, 'null'::jsonb), evidence_seq
from jsonb_populate_record(null::platform.quarantine_decision, $1::text::jsonb)
"""
_DISCARD = """
insert into platform.quarantine_outcome (quarantine_id, state, decision_id)
select id, 'discarded', $2::bigint from unnest($1::bigint[]) as id
"""
_CARRY_OVER = """
insert into platform.quarantine_outcome (quarantine_id, state, decision_id, batch_id, row_number, again_id, run_id)
select distinct on (q.quarantine_id) q.quarantine_id, o.state, o.decision_id, o.batch_id, o.row_number, o.again_id,
    o.run_id
from platform.quarantine q
join platform.raw_batch b on b.batch_id = q.batch_id and b.supersedes is not null
join platform.quarantine earlier on earlier.tenant_id = q.tenant_id and earlier.batch_id = b.supersedes
    and earlier.stage = q.stage and earlier.row_number = q.row_number and earlier.reason = q.reason
    and earlier.field is not distinct from q.field
join platform.quarantine_outcome o on o.quarantine_id = earlier.quarantine_id
where q.tenant_id = $1 and q.batch_id = any($2) and (o.run_id is null or q.stage = 'ingestion') and not exists (
    select from platform.quarantine_outcome own where own.quarantine_id = q.quarantine_id)
order by q.quarantine_id, o.decision_id desc
"""
_HAS_OPEN = """
select 1 from platform.quarantine q
where q.tenant_id = $1 and q.pipeline = $2 and q.stage = 'normalization' and q.payload is not null
    and not exists (select from platform.quarantine_outcome o where o.quarantine_id = q.quarantine_id)
limit 1
"""
_SETTLED = """
select q.dataset, q.quarantine_id, max(a.quarantine_id)
from platform.quarantine q
join platform.raw_batch b on b.batch_id = q.batch_id and b.is_current
    and not exists (select from platform.replaced_batch p where p.batch_id = b.batch_id)
left join {rejected} r on r.tenant_id = q.tenant_id and r.batch_id = q.batch_id and r.row_number = q.row_number
left join platform.quarantine a on a.tenant_id = q.tenant_id and a.pipeline = q.pipeline
    and a.stage = 'normalization' and a.batch_id = r.batch_id and a.row_number = r.row_number and a.reason = r.rule
    and a.field = $3
where q.tenant_id = $1 and q.pipeline = $2 and q.stage = 'normalization' and q.field = $3
    and r.rule is distinct from q.reason and q.payload is not null
    and not exists (select from platform.quarantine_outcome o where o.quarantine_id = q.quarantine_id)
group by q.dataset, q.quarantine_id
order by q.dataset, q.quarantine_id
"""
_SETTLE = """
insert into platform.quarantine_outcome (quarantine_id, state, decision_id, again_id, run_id)
select id, case when again is null then 'replayed' else 'refused_again' end, $3::bigint, again, $4::bigint
from unnest($1::bigint[], $2::bigint[]) as settled (id, again)
"""
