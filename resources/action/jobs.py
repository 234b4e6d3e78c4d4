"""Jobs: what the engine decided on, stored, sent and followed to its end.

`advance` reads the events that no decision was made about, decides, and stores jobs, incidents, evidence, events and
how far it has come in one transaction: a crash leaves all of it or nothing, and whoever comes next goes on from there.
One evaluation happens at a time (an advisory lock); a second one waits and finds nothing left. Even an evaluation that
begins anew finds its jobs by their unique key.

`advance` also puts deliveries of due jobs into the queue, in the transaction that says so. `settle` follows what became
of them. Rows of jobs are only ever waited for before the ledger's head is locked, never after: no deadlock.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

from resources.action import engine, history
from resources.action.delivery import queue
from resources.action.delivery.model import Delivery, Message
from resources.action.engine import Rulebook
from resources.action.hours import TenantClock
from resources.action.model import (
    EVENT_PREFIX,
    Decision,
    Group,
    Incident,
    JobDraft,
    JobState,
    Occurrence,
    Silence,
    State,
    Unacknowledged,
)
from resources.action.rendering import Renderer, Settled
from resources.governance.actions import ActionRule, is_own_event, seconds
from resources.governance.declarations import Declarations
from resources.runtime import events
from resources.runtime.database import Database, as_json, fetch, fetch_dicts, unavailable_as_error
from resources.trust import ledger

READER = "action-engine"
PAGE = 1_000
_LOCK = 0x0BE0  # advisory lock: one evaluation at a time
_DISPATCH_PAGE = 500


@dataclass(frozen=True)
class Advance:
    """What one call of `advance` did: events read, jobs made by state, jobs whose deliveries were queued."""

    events: int
    jobs: Mapping[str, int]
    job_ids: tuple[int, ...]
    dispatched: int

    @property
    def idle(self) -> bool:
        return not (self.events or self.jobs or self.dispatched)


def rulebook(declarations: Declarations) -> Rulebook:
    """The declared rules, made ready."""
    clocks = {tenant_id: TenantClock(ZoneInfo(tenant.spec.timezone), declarations.calendar(tenant_id))
              for tenant_id, tenant in declarations.tenants.items()}
    return Rulebook(list(declarations.action_rules.values()), clocks)


# --- evaluating -------------------------------------------------------------------------------------------


def advance(
    database: Database, declarations: Declarations, book: Rulebook, now: Callable[[], dt.datetime], *,
    page: int = PAGE,
) -> Advance:
    """Decide about every event that waits, and everything that is due; then queue what may be sent.

    Any number of processes may call it at once.
    """
    evaluated = evaluate(database, declarations, book, now, page=page)
    return replace(evaluated, dispatched=enqueue(database, declarations, now))


def evaluate(
    database: Database, declarations: Declarations, book: Rulebook, now: Callable[[], dt.datetime], *,
    page: int = PAGE,
) -> Advance:
    """Decide about every event that waits, and everything that is due; each page of events is a transaction."""
    read, count = 0, 1
    made: Counter[str] = Counter()
    job_ids: list[int] = []
    with unavailable_as_error(), database.connect() as connection:
        while count:
            with connection.transaction():
                count, jobs = _evaluate_page(connection, declarations, book, now(), page)
            read += count
            made.update(state for _, state in jobs)
            job_ids += [job_id for job_id, _ in jobs]
    return Advance(read, dict(made), tuple(job_ids), 0)


def enqueue(database: Database, declarations: Declarations, now: Callable[[], dt.datetime]) -> int:
    """Queue the deliveries of every job that is due, and fail those not approved in time; returns how many jobs left
    the queue.
    """
    total = 0
    with unavailable_as_error(), database.connect() as connection:
        while True:
            with connection.transaction():
                expire(connection, now())
                sent = dispatch(connection, declarations, now())
            total += sent
            if sent < _DISPATCH_PAGE:
                return total


def waiting(connection: psycopg.Connection, book: Rulebook, now: dt.datetime) -> bool:
    """Whether `advance` or `settle` would find anything to do: cheap, for those who ask often."""
    found, _ = events.read(connection, events.reader_at(connection, READER), 1, types=book.event_types)
    return bool(found) or bool(fetch(connection, _DUE, (now,))[0][0])


def _evaluate_page(
    connection: psycopg.Connection, declarations: Declarations, book: Rulebook, now: dt.datetime, page: int
) -> tuple[int, list[tuple[int, str]]]:
    fetch(connection, "select pg_advisory_xact_lock($1::bigint)", (_LOCK,))
    before = events.reader_at(connection, READER)
    rows, after = events.read(connection, before, page, types=book.event_types)
    signals = [signal for signal in history.signals_of(rows) if book.for_event(signal)]
    signals = history.with_history(connection, book, declarations.kpis, signals)
    state = _load_state(connection, book, {(s.tenant_id, s.series) for s in signals}, now)
    decision = engine.decide(book, signals, state, now)
    made = store(connection, declarations, decision, now)
    if after != before:
        events.move_reader(connection, READER, after)
    return len(rows), made


def _load_state(
    connection: psycopg.Connection, book: Rulebook, series: set[tuple[str, str]], now: dt.datetime
) -> State:
    """What a decision about these series rests on."""
    inhibitors = sorted({i.rule for rule in book.rules.values() for i in rule.spec.inhibited_by})
    wanted = as_json([{"tenant_id": tenant_id, "series": name} for tenant_id, name in sorted(series)])
    incidents = [_incident(row) for row in fetch_dicts(connection, _INCIDENTS, (wanted, now, inhibitors))]
    groups = [_group(row) for row in fetch_dicts(connection, _GROUPS, (sorted({t for t, _ in series}), now))]
    silences = [Silence(**row) for row in fetch_dicts(connection, _ACTIVE_SILENCES, (now,))]
    late = [Unacknowledged(job_id, JobDraft.from_json(draft), at)
            for job_id, draft, at in fetch(connection, _TO_ESCALATE, (now,))]
    return State({incident.key: incident for incident in incidents}, {group.key: group for group in groups},
                 tuple(silences), tuple(late))


def store(
    connection: psycopg.Connection, declarations: Declarations, decision: Decision, now: dt.datetime
) -> list[tuple[int, str]]:
    """Store what was decided, in the caller's transaction; returns number and state of the jobs that are new.

    A job that is on record already, by its key, stays as it is.
    """
    fetch(connection, _KEEP_INCIDENTS, (as_json([_incident_row(incident) for incident in decision.incidents]),))
    fetch(connection, _KEEP_GROUPS, (as_json([_group_row(group) for group in decision.groups]),))
    if decision.escalated:
        fetch(connection, "update platform.action_job set escalate_at = null where job_id = any($1::bigint[])",
              (list(decision.escalated),))
    known = {(t, k) for t, k in fetch(connection, _KNOWN_JOBS, (
        as_json([{"tenant_id": job.tenant_id, "job_key": job.key} for job in decision.jobs]),))}
    fresh = [job for job in decision.jobs if (job.tenant_id, job.key) not in known]
    if not fresh:
        return []
    rendered = Renderer(connection, declarations)
    rows = [_job_row(rendered.settle(job), now) for job in fresh]
    numbers = ledger.append_many(connection, [_decided(row) for row in rows])
    for row, seq in zip(rows, numbers, strict=True):
        row["evidence_seq"] = seq
    made = [(job_id, state) for job_id, state in fetch(connection, _ADD_JOBS, (as_json(rows),))]
    events.append(connection, *(_event(row, row["state"], row["evidence_seq"], "0") for row in rows if _tells(row)))
    return made


# --- sending ----------------------------------------------------------------------------------------------


def dispatch(connection: psycopg.Connection, declarations: Declarations, now: dt.datetime) -> int:
    """Queue the deliveries of jobs that are due, in the caller's transaction; returns how many jobs left the queue.

    A job of whose route an endpoint is not registered fails, says so, and can be retried.
    """
    rows = fetch_dicts(connection, _TO_DISPATCH, (now, _DISPATCH_PAGE))
    registered = set(fetch(connection, "select tenant_id, name from platform.endpoint")) if rows else set()
    deliveries, changes = [], []
    for row in rows:
        missing = [name for name in row["route"] if (row["tenant_id"], name) not in registered]
        if missing:
            reason = f"no endpoint {', '.join(missing)} is registered for the tenant; register it, then retry the job"
            changes.append(Move(row, JobState.FAILED, reason))
            continue
        message = Message(**row["message"])
        deliveries += [
            Delivery(row["tenant_id"], _delivery_key(row, name), name, message, origin=f"action_job:{row['job_id']}",
                     is_quiet=not _tells(row))
            for name in row["route"]
        ]
        rule = declarations.action_rules.get(row["rule"])
        changes.append(Move(row, JobState.RUNNING, "", escalate_at=_escalate_at(rule, row, now)))
    if deliveries:
        queue.enqueue(connection, *deliveries, now=now)
    move(connection, changes, now)
    return len(rows)


def _delivery_key(row: Mapping[str, Any], endpoint: str) -> str:
    """One effect per job and endpoint; a retry after a failure that sent nothing is the same effect."""
    return f"{row['job_key']}.{endpoint}"


def _escalate_at(rule: ActionRule | None, row: Mapping[str, Any], now: dt.datetime) -> dt.datetime | None:
    if rule is None or rule.spec.escalation is None or row["kind"] != "alert":
        return None
    return now + dt.timedelta(seconds=seconds(rule.spec.escalation.after))


def settle(connection: psycopg.Connection, now: dt.datetime) -> int:
    """Follow what became of deliveries, in the caller's transaction; returns how many jobs changed."""
    changes = []
    for row in fetch_dicts(connection, _FINISHED, (_DISPATCH_PAGE,)):
        state = JobState.DLQ if row["dead"] else JobState.COMPLETED
        reason = f"given up at {', '.join(row['dead'])}; `barecount actions dlq list` shows why" if row["dead"] else ""
        changes.append(Move(row, state, reason))
    move(connection, changes, now)
    return len(changes)


def expire(connection: psycopg.Connection, now: dt.datetime) -> int:
    """Fail jobs whose approval came too late, in the caller's transaction; returns how many."""
    rows = fetch_dicts(connection, _EXPIRED, (now,))
    move(connection, [Move(row, JobState.FAILED, "nobody approved it in time") for row in rows], now)
    return len(rows)


@dataclass(frozen=True)
class Move:
    """A job that goes into another state."""

    row: Mapping[str, Any]
    state: JobState
    reason: str
    by: str | None = None
    escalate_at: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    message: Message | None = None
    digest: str | None = None


def move(connection: psycopg.Connection, changes: Sequence[Move], now: dt.datetime) -> None:
    """Write states with their evidence and events. The rows must be locked by the caller's transaction."""
    if not changes:
        return
    entries, told = [], []
    for change in changes:
        token = f"{change.row['rule_version']}/{change.row['changes'] + 1}"
        facts = {"job": change.row["job_id"], "state": change.state.value, "reason": change.reason, "by": change.by}
        kind = f"action.{_VERBS[change.state]}"
        entries.append(ledger.Entry(change.row["tenant_id"], kind, change.row["job_key"], token, facts))
    numbers = ledger.append_many(connection, entries)
    rows = []
    for change, seq in zip(changes, numbers, strict=True):
        rows.append({
            "job_id": change.row["job_id"], "state": change.state.value, "reason": change.reason,
            "escalate_at": change.escalate_at and change.escalate_at.isoformat(), "by": change.by,
            "expires_at": change.expires_at and change.expires_at.isoformat(),
            "message": change.message and change.message.__dict__, "digest": change.digest})
        if _tells(change.row):
            token = f"{change.row['rule_version']}/{change.row['changes'] + 1}"
            told.append(_event({**change.row, "reason": change.reason}, change.state.value, seq, token))
    fetch(connection, _CHANGE, (as_json(rows), now))
    events.append(connection, *told)


_VERBS = {
    JobState.PENDING_APPROVAL: "asked_approval", JobState.QUEUED: "queued", JobState.RUNNING: "sent",
    JobState.COMPLETED: "completed", JobState.FAILED: "failed", JobState.DLQ: "dlq", JobState.SUPPRESSED: "suppressed",
}


def _tells(row: Mapping[str, Any]) -> bool:
    """Whether a job and its deliveries make events: not one that answers such events, which would answer itself."""
    occurrences = (row.get("draft") or {}).get("occurrences") or [{}]
    kind = (occurrences[-1].get("envelope") or {}).get("type", "")
    return not is_own_event(kind.removeprefix(EVENT_PREFIX))


def _event(row: Mapping[str, Any], state: str, seq: int, token: str) -> events.Event:
    data = {name: row[name] for name in ("rule", "rule_version", "kind", "subject", "dimensions", "period", "severity",
                                         "job_key", "reason")}
    return events.Event(row["tenant_id"], f"action.{_VERBS[JobState(state)]}", row["rule"],
                        f"{row['job_key']}/{token}", {**data, "state": state}, evidence_seq=seq)


def _decided(row: Mapping[str, Any]) -> ledger.Entry:
    newest = row["draft"]["occurrences"][-1]
    return ledger.Entry(row["tenant_id"], "action.decided", row["job_key"], row["rule_version"], {
        "rule": row["rule"], "kind": row["kind"], "subject": row["subject"], "dimensions": row["dimensions"],
        "period": row["period"], "window": row["window_name"], "state": row["state"], "reason": row["reason"],
        "template": row["template"], "template_digest": row["digest"], "facts": newest["facts"],
        "events": [occurrence["event_id"] for occurrence in row["draft"]["occurrences"]],
        "event_evidence": newest["envelope"].get("evidence"),
    })


def _job_row(settled: Settled, now: dt.datetime) -> dict[str, Any]:
    job = settled.draft
    return {
        "tenant_id": job.tenant_id, "job_key": job.key, "rule": job.rule, "rule_version": job.rule_version,
        "kind": job.kind, "subject": job.subject, "dimensions": dict(job.dimensions), "period": job.period,
        "window_name": job.window, "severity": job.severity, "template": job.template, "digest": settled.digest,
        "route": list(job.route), "correlation": job.correlation, "draft": job.to_json(),
        "message": settled.message and settled.message.__dict__, "state": job.state.value, "reason": job.reason,
        "not_before": job.not_before and job.not_before.isoformat(),
        "expires_at": job.expires_at and job.expires_at.isoformat(), "now": now.isoformat(),
    }


# --- rows -------------------------------------------------------------------------------------------------


def _incident(row: Mapping[str, Any]) -> Incident:
    return Incident(**{**row, "occurrence": row["occurrence"] and Occurrence.from_json(row["occurrence"])})


def _incident_row(incident: Incident) -> dict[str, Any]:
    return {**incident.__dict__, "due_at": incident.due_at and incident.due_at.isoformat(),
            "occurrence": incident.occurrence and incident.occurrence.__dict__}


def _group(row: Mapping[str, Any]) -> Group:
    return Group(
        row["tenant_id"], row["rule"], row["labels"], tuple(map(Occurrence.from_json, row["waiting"])),
        tuple(map(Occurrence.from_json, row["sent"])), row["flush_at"], row["sent_at"], row["window_no"],
        row["episode"], row["told"])


def _group_row(group: Group) -> dict[str, Any]:
    return {
        "tenant_id": group.tenant_id, "rule": group.rule, "name": group.name, "labels": dict(group.labels),
        "waiting": [occurrence.__dict__ for occurrence in group.waiting],
        "sent": [occurrence.__dict__ for occurrence in group.sent],
        "flush_at": group.flush_at and group.flush_at.isoformat(),
        "sent_at": group.sent_at and group.sent_at.isoformat(),
        "window_no": group.window, "episode": group.episode, "told": group.told}


_DUE = """
select exists (select from platform.action_job where state = 'queued' and (not_before is null or not_before <= $1))
    or exists (select from platform.action_job where state = 'pending approval' and expires_at <= $1)
    or exists (select from platform.action_job where escalate_at <= $1 and acked_at is null)
    or exists (select from platform.action_incident where due_at <= $1)
    or exists (select from platform.action_group where flush_at <= $1)
"""
_INCIDENTS = """
select tenant_id, rule, series, phase, position, streak, episode, due_at, occurrence, told
from platform.action_incident i
where exists (
        select from jsonb_to_recordset($1::text::jsonb) as w (tenant_id text, series text)
        where w.tenant_id = i.tenant_id and w.series = i.series)
    or due_at <= $2 or (phase = 'firing' and rule = any($3::text[]))
"""
_GROUPS = """
select tenant_id, rule, labels, waiting, sent, flush_at, sent_at, window_no, episode, told
from platform.action_group where tenant_id = any($1::text[]) or flush_at <= $2
"""
_ACTIVE_SILENCES = """
select silence_id, tenant_id, rule, labels, starts_at, ends_at, reason, created_by
from platform.action_silence where starts_at <= $1 and ends_at > $1 order by silence_id
"""
_TO_ESCALATE = """
select job_id, draft, escalate_at from platform.action_job
where escalate_at <= $1 and acked_at is null and state in ('running', 'completed', 'dlq')
order by escalate_at, job_id limit 500
"""
_KEEP_INCIDENTS = """
insert into platform.action_incident
select tenant_id, rule, series, phase, position, streak, episode, due_at, nullif(occurrence, 'null'), told
from jsonb_to_recordset($1::text::jsonb) as i (
    tenant_id text, rule text, series text, phase text, position bigint, streak int, episode int, due_at timestamptz,
    occurrence jsonb, told boolean)
on conflict (tenant_id, rule, series) do update
set phase = excluded.phase, position = excluded.position, streak = excluded.streak, episode = excluded.episode,
    due_at = excluded.due_at, occurrence = excluded.occurrence, told = excluded.told
"""
_KEEP_GROUPS = """
insert into platform.action_group
select tenant_id, rule, name, labels, waiting, sent, flush_at, sent_at, window_no, episode, told
from jsonb_to_recordset($1::text::jsonb) as g (
    tenant_id text, rule text, name text, labels jsonb, waiting jsonb, sent jsonb, flush_at timestamptz,
    sent_at timestamptz, window_no int, episode int, told boolean)
on conflict (tenant_id, rule, name) do update
set waiting = excluded.waiting, sent = excluded.sent, flush_at = excluded.flush_at, sent_at = excluded.sent_at,
    window_no = excluded.window_no, episode = excluded.episode, told = excluded.told
"""
_KNOWN_JOBS = """
select j.tenant_id, j.job_key
from jsonb_to_recordset($1::text::jsonb) as w (tenant_id text, job_key text)
join platform.action_job j using (tenant_id, job_key)
"""
_ADD_JOBS = """
insert into platform.action_job (
    tenant_id, job_key, rule, rule_version, kind, subject, dimensions, period, window_name, severity, template, digest,
    route, correlation, draft, message, state, reason, not_before, expires_at, decided_at, changed_at, evidence_seq)
select tenant_id, job_key, rule, rule_version, kind, subject, dimensions, period, window_name, severity, template,
    digest, route, correlation, draft, nullif(message, 'null'), state, reason, not_before, expires_at, now, now,
    evidence_seq
from rows from (jsonb_to_recordset($1::text::jsonb) as (
    tenant_id text, job_key text, rule text, rule_version text, kind text, subject text, dimensions jsonb, period text,
    window_name text, severity text, template text, digest text, route text[], correlation text, draft jsonb,
    message jsonb, state text, reason text, not_before timestamptz, expires_at timestamptz, now timestamptz,
    evidence_seq bigint)) with ordinality
order by ordinality
returning job_id, state
"""
_TO_DISPATCH = """
select job_id, tenant_id, job_key, rule, rule_version, kind, subject, dimensions, period, severity, route, message,
    draft, reason, changes
from platform.action_job
where state = 'queued' and (not_before is null or not_before <= $1) and message is not null
order by job_id limit $2::bigint
for update skip locked
"""
_FINISHED = """
select j.job_id, j.tenant_id, j.job_key, j.rule, j.rule_version, j.kind, j.subject, j.dimensions, j.period, j.severity,
    j.draft, j.reason, j.changes, j.state, d.dead
from platform.action_job j
cross join lateral (
    select array_agg(endpoint order by endpoint) filter (where state = 'dlq') as dead,
        bool_and(state in ('completed', 'dlq')) as finished
    from platform.delivery d where d.tenant_id = j.tenant_id and d.origin = 'action_job:' || j.job_id
) as d
where j.state in ('running', 'dlq') and d.finished and (j.state = 'running' or d.dead is null)
order by j.job_id limit $1::bigint
for update of j skip locked
"""
_EXPIRED = """
select job_id, tenant_id, job_key, rule, rule_version, kind, subject, dimensions, period, severity, draft, reason,
    changes
from platform.action_job where state = 'pending approval' and expires_at <= $1
order by job_id for update skip locked
"""
_CHANGE = """
update platform.action_job j
set state = c.state, reason = c.reason, changes = j.changes + 1, changed_at = $2,
    attempt = j.attempt + (c.state = 'running')::int, escalate_at = coalesce(c.escalate_at, j.escalate_at),
    expires_at = coalesce(c.expires_at, j.expires_at),
    approved_by = case when j.state = 'pending approval' and c.state = 'queued' then c.by else j.approved_by end,
    message = coalesce(nullif(c.message, 'null'), j.message), digest = coalesce(c.digest, j.digest)
from jsonb_to_recordset($1::text::jsonb) as c (
    job_id bigint, state text, reason text, escalate_at timestamptz, expires_at timestamptz, by text, message jsonb,
    digest text)
where j.job_id = c.job_id
"""
