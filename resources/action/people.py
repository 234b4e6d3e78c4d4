"""What people see of jobs, and do with them: list, approve, retry, acknowledge, silence.

Every answer of a person is on record with who gave it, in the caller's transaction.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from resources.action import jobs
from resources.action.model import JobDraft, JobState, Silence
from resources.action.rendering import Renderer
from resources.governance.actions import seconds
from resources.governance.declarations import Declarations
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger


@dataclass(frozen=True)
class JobRow:
    """A job on record."""

    job_id: int
    tenant_id: str
    job_key: str
    rule: str
    rule_version: str
    kind: str
    subject: str
    dimensions: Mapping[str, str]
    period: str
    window_name: str
    severity: str
    template: str
    digest: str | None
    route: Sequence[str]
    correlation: str
    state: str
    reason: str
    attempt: int
    not_before: dt.datetime | None
    expires_at: dt.datetime | None
    escalate_at: dt.datetime | None
    acked_by: str | None
    acked_at: dt.datetime | None
    approved_by: str | None
    decided_at: dt.datetime
    changed_at: dt.datetime
    evidence_seq: int
    message: Mapping[str, Any] | None
    draft: Mapping[str, Any]


@dataclass(frozen=True)
class Attention:
    """What of a tenant's actions waits for somebody.

    Attributes:
        to_approve, failed, given_up: jobs that wait for an approval, that failed, and of which a delivery was given up.
        unwell: names of endpoints that are blocked, or disabled with deliveries waiting.
    """

    tenant_id: str
    to_approve: int
    failed: int
    given_up: int
    unwell: Sequence[str]


def listed(
    connection: psycopg.Connection, *, tenant_id: str | None = None, state: str | None = None, rule: str | None = None,
    limit: int = 50,
) -> list[JobRow]:
    """The newest jobs."""
    return [JobRow(**row) for row in fetch_dicts(connection, _SELECT + _LIST, (tenant_id, state, rule, limit))]


def since(connection: psycopg.Connection, moment: dt.datetime, limit: int = 200) -> list[JobRow]:
    """Jobs that were decided on or changed since a moment, newest first."""
    return [JobRow(**row) for row in fetch_dicts(connection, _SELECT + _SINCE, (moment, limit))]


def attention(connection: psycopg.Connection) -> list[Attention]:
    """What waits for somebody, by tenant; tenants for whom nothing does are left out."""
    return [Attention(**row) for row in fetch_dicts(connection, _ATTENTION)]


def get(connection: psycopg.Connection, job_id: int, tenant_id: str | None = None) -> JobRow:
    """One job. Raises BareCountError declaration.unknown when the tenant has none of that number."""
    rows = fetch_dicts(connection, _SELECT + _ONE, (job_id, tenant_id))
    if not rows:
        owner = f" of tenant {tenant_id}" if tenant_id else ""
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no job {job_id}{owner}",
                             hint="`barecount actions jobs` lists them")
    return JobRow(**rows[0])


def approve(
    connection: psycopg.Connection, job_id: int, *, by: str, approve: bool, reason: str, now: dt.datetime,
    tenant_id: str | None = None,
) -> None:
    """Let a job be sent, or not, in the caller's transaction.

    Raises:
        BareCountError: action.conflict when it does not wait for an approval.
    """
    row = _locked(connection, job_id, tenant_id, (JobState.PENDING_APPROVAL,), "approved")
    if row["expires_at"] is not None and row["expires_at"] <= now:
        ended = f"the time to approve job {job_id} ended at {row['expires_at']}"
        raise BareCountError(ErrorCode.ACTION_CONFLICT, ended, hint=f"barecount actions retry {job_id} asks anew")
    state = JobState.QUEUED if approve else JobState.FAILED
    said = f"approved by {by}: {reason}" if approve else f"refused by {by}: {reason}"
    jobs.move(connection, [jobs.Move(row, state, said, by=by)], now)


def retry(
    connection: psycopg.Connection, declarations: Declarations, job_id: int, *, by: str, now: dt.datetime,
    tenant_id: str | None = None,
) -> str:
    """Send a failed or suppressed job after all, in the caller's transaction; returns its new state.

    It is rendered again, from the template that is published now; where the rule wants an approval and nobody gave one,
    it waits for one again. Deliveries that were given up are replayed with
    `barecount actions dlq replay`, not here: what was sent is not sent again.

    Raises:
        BareCountError: action.conflict for a job in another state; template.unpublished.
    """
    row = _locked(connection, job_id, tenant_id, (JobState.FAILED, JobState.SUPPRESSED), "retried")
    rule = declarations.action_rules.get(row["rule"])
    asks = rule is not None and rule.spec.approval.required and row["kind"] == "alert" and row["approved_by"] is None
    state = JobState.PENDING_APPROVAL if asks else JobState.QUEUED
    settled = Renderer(connection, declarations).settle(replace(JobDraft.from_json(row["draft"]), state=state))
    reason = settled.draft.reason if settled.draft.state is JobState.FAILED else f"retried by {by}"
    expires_at = now + dt.timedelta(seconds=seconds(rule.spec.approval.expires)) if rule and asks else None
    jobs.move(connection, [jobs.Move(row, settled.draft.state, reason, by=by, message=settled.message,
                                     digest=settled.digest, expires_at=expires_at)], now)
    return settled.draft.state.value


def acknowledge(
    connection: psycopg.Connection, job_id: int, *, by: str, now: dt.datetime, tenant_id: str | None = None
) -> None:
    """Say that somebody takes care: it is not escalated any more. In the caller's transaction; once."""
    row = _locked(connection, job_id, tenant_id, tuple(JobState), "acknowledged")
    if row["acked_by"] is not None:
        raise BareCountError(ErrorCode.ACTION_CONFLICT, f"job {job_id} was acknowledged by {row['acked_by']} already")
    seq = ledger.append(connection, ledger.Entry(
        row["tenant_id"], "action.acknowledged", row["job_key"], "1", {"job": job_id, "by": by}))
    events.append(connection, events.Event(row["tenant_id"], "action.acknowledged", row["rule"], row["job_key"],
                                           {"job_key": row["job_key"], "by": by}, evidence_seq=seq))
    fetch(connection, "update platform.action_job set acked_by = $2, acked_at = $3, escalate_at = null "
                      "where job_id = $1::bigint", (job_id, by, now))


def silence(
    connection: psycopg.Connection, tenant_id: str, *, rule: str | None, labels: Mapping[str, str],
    starts_at: dt.datetime, ends_at: dt.datetime, reason: str, by: str,
) -> int:
    """Suppress jobs of a rule (None: any) with these labels for a time, in the caller's transaction."""
    number = fetch(connection, "select nextval('platform.action_silence_silence_id_seq')")[0][0]
    facts = {"rule": rule, "labels": dict(labels), "starts_at": starts_at.isoformat(), "ends_at": ends_at.isoformat(),
             "reason": reason, "by": by}
    seq = ledger.append(connection, ledger.Entry(tenant_id, "silence.created", str(number), "1", facts))
    fetch(connection, _SILENCE, (number, tenant_id, rule, as_json(dict(labels)), starts_at, ends_at, reason, by, seq))
    return number


def unsilence(connection: psycopg.Connection, silence_id: int, *, by: str, now: dt.datetime,
              tenant_id: str | None = None) -> None:
    """End a silence now, in the caller's transaction."""
    rows = fetch(connection, _END_SILENCE, (silence_id, now, tenant_id))
    if not rows:
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no active silence {silence_id}",
                             hint="`barecount actions silences` lists them")
    ledger.append(connection, ledger.Entry(rows[0][0], "silence.ended", str(silence_id), "1", {"by": by}))


def silences(connection: psycopg.Connection, now: dt.datetime, tenant_id: str | None = None) -> list[Silence]:
    """Silences that count now or will."""
    return [Silence(**row) for row in fetch_dicts(connection, _SILENCES, (now, tenant_id))]


def _locked(
    connection: psycopg.Connection, job_id: int, tenant_id: str | None, allowed: tuple[JobState, ...], verb: str
) -> dict[str, Any]:
    get(connection, job_id, tenant_id)
    row = fetch_dicts(connection, _LOCK_ONE, (job_id,))[0]
    if row["state"] not in allowed:
        states = ", ".join(allowed)
        raise BareCountError(ErrorCode.ACTION_CONFLICT, f"job {job_id} is {row['state']}, only {states} can be {verb}",
                             hint=f"barecount actions show {job_id}")
    return row


_SILENCES = """
select silence_id, tenant_id, rule, labels, starts_at, ends_at, reason, created_by
from platform.action_silence where ends_at > $1 and ($2::text is null or tenant_id = $2) order by silence_id
"""
_SILENCE = """
insert into platform.action_silence (
    silence_id, tenant_id, rule, labels, starts_at, ends_at, reason, created_by, evidence_seq)
overriding system value values ($1::bigint, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9::bigint)
"""
_END_SILENCE = """
update platform.action_silence set ends_at = greatest($2, starts_at + interval '1 microsecond')
where silence_id = $1::bigint and ends_at > $2 and ($3::text is null or tenant_id = $3)
returning tenant_id
"""
_SELECT = """
select job_id, tenant_id, job_key, rule, rule_version, kind, subject, dimensions, period, window_name, severity,
    template, digest, route, correlation, state, reason, attempt, not_before, expires_at, escalate_at, acked_by,
    acked_at, approved_by, decided_at, changed_at, evidence_seq, message, draft
from platform.action_job
"""
_LIST = """
where ($1::text is null or tenant_id = $1) and ($2::text is null or state = $2) and ($3::text is null or rule = $3)
order by job_id desc limit $4::bigint
"""
_SINCE = "where changed_at >= $1 order by job_id desc limit $2::bigint"
_LOCK_ONE = "select * from platform.action_job where job_id = $1::bigint for update"
_ONE = "where job_id = $1::bigint and ($2::text is null or tenant_id = $2)"
_ATTENTION = """
with waiting as (
    select tenant_id, count(*) filter (where state = 'pending approval') as to_approve,
        count(*) filter (where state = 'failed') as failed, count(*) filter (where state = 'dlq') as given_up
    from platform.action_job where state in ('pending approval', 'failed', 'dlq') group by tenant_id
), unwell as (
    select e.tenant_id, array_agg(e.name order by e.name) as names
    from platform.endpoint e
    where (e.state = 'active' and e.health = 'blocked') or (e.state <> 'active' and exists (
        select from platform.delivery d where d.tenant_id = e.tenant_id and d.endpoint = e.name
            and d.state in ('queued', 'running', 'failed')))
    group by e.tenant_id
)
select tenant_id, coalesce(to_approve, 0) as to_approve, coalesce(failed, 0) as failed,
    coalesce(given_up, 0) as given_up, coalesce(names, '{}') as unwell
from waiting full join unwell using (tenant_id) order by tenant_id
"""
