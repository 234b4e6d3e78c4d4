"""Taking deliveries from the queue and recording what came of them: the two transactions of a worker.

`claim` takes what is due, up to what rate limits, health and order of each endpoint allow, and gives the worker a
lease: a delivery whose worker did not record anything by its end is taken again, with the same delivery key. `record`
writes receipts, evidence, events, the new states and the endpoints' health, all or nothing.

Rows are locked in one order everywhere (endpoints, limits, deliveries, heads of evidence): workers wait for each other
for milliseconds, and never in a circle.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.action.delivery import endpoints, schedule
from resources.action.delivery.endpoints import Health
from resources.action.delivery.model import DeliveryState, Message, Outcome, Result
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.redaction import redact
from resources.trust import ledger

EXCERPT = 1_000
"""Characters of an answer that a receipt keeps."""

Place = tuple[str, str]
"""Tenant and name of an endpoint."""


@dataclass(frozen=True)
class Claimed:
    """A delivery that a worker has a lease for.

    Attributes:
        attempt: number of this attempt, from 1.
        attempt_in_schedule: the same, since the last replay.
        before: state it was in; `running` when the attempt before was never recorded.
        is_quiet: whether what becomes of it is no event.
        health: of the endpoint, when it was claimed.
    """

    delivery_id: int
    tenant_id: str
    delivery_key: str
    endpoint: str
    adapter: str
    declaration_hash: str
    spec: Mapping[str, Any]
    message: Message
    message_sha256: str
    attempt: int
    attempt_in_schedule: int
    before: DeliveryState
    is_quiet: bool
    health: Health
    claimed_at: dt.datetime

    @property
    def place(self) -> Place:
        return self.tenant_id, self.endpoint

    @property
    def token(self) -> str:
        """Names this attempt in evidence and events."""
        return f"{self.delivery_key}#{self.attempt}"

    @property
    def was_lost(self) -> bool:
        """Whether the attempt before was never recorded."""
        return self.before is DeliveryState.RUNNING

    @property
    def is_last_straw(self) -> bool:
        """Whether so many attempts were lost that nothing is sent any more."""
        return self.was_lost and self.attempt_in_schedule > schedule.ATTEMPTS


@dataclass(frozen=True)
class Attempt:
    """What came of a claimed delivery."""

    claimed: Claimed
    outcome: Outcome
    latency_ms: float | None

    @property
    def wait(self) -> dt.timedelta | None:
        """Until the next attempt; None when there is none."""
        if self.outcome.result not in (Result.UNAVAILABLE, Result.THROTTLED):
            return None
        return schedule.wait_after(
            self.claimed.delivery_key, self.claimed.attempt_in_schedule, self.outcome.retry_after)

    @property
    def state(self) -> DeliveryState:
        if self.outcome.result is Result.DELIVERED:
            return DeliveryState.COMPLETED
        return DeliveryState.DLQ if self.wait is None else DeliveryState.FAILED


def claim(
    connection: psycopg.Connection, worker: str, now: dt.datetime, lease: dt.timedelta, free: int,
    busy: Mapping[Place, int], most: Callable[[Place], int],
) -> list[Claimed]:
    """Take deliveries that are due, in a transaction of its own.

    Args:
        free: how many the worker can take.
        busy: how many it has in hand already, by endpoint.
        most: how many it may have in hand for an endpoint that is well.
    """
    with connection.transaction():
        ready = fetch_dicts(connection, _READY, (now,))
        limits = {row["tenant_id"]: row for row in fetch_dicts(
            connection, _LIMITS, (sorted({row["tenant_id"] for row in ready}),))} if ready else {}
        wanted = _shares(ready, limits, now, free, busy, most)
        if not wanted:
            return []
        rows = fetch_dicts(connection, _CLAIM, (as_json(wanted), now, worker, now + lease, free))
        if not rows:
            return []
        _spend(connection, rows, ready, limits, now)
        by_place = {(row["tenant_id"], row["name"]): row for row in ready}
        claimed = [_claimed(row, by_place[row["tenant_id"], row["endpoint"]], now) for row in rows]
        _record_lost(connection, [(one, row["before_worker"]) for one, row in zip(claimed, rows, strict=True)
                                  if one.was_lost], now)
    return claimed


def record(connection: psycopg.Connection, worker: str, attempts: Sequence[Attempt], now: dt.datetime) -> list[Attempt]:
    """Record attempts, in a transaction of its own; returns those whose lease had ended: another worker has them."""
    with connection.transaction():
        unwell = _lock_unwell(connection, attempts)
        updates = as_json([
            {"delivery_id": one.claimed.delivery_id, "attempt": one.claimed.attempt, "state": one.state.value,
             "next_attempt_at": _next_attempt(one), "external_id": _clean(one.outcome.external_id)}
            for one in sorted(attempts, key=lambda one: one.claimed.delivery_id)])
        ours = {row[0] for row in fetch(connection, _FINISH, (updates, worker, now))}
        recorded = [one for one in attempts if one.claimed.delivery_id in ours]
        _record_health(connection, attempts, unwell, now)
        numbers = ledger.append_many(connection, [_evidence(one) for one in recorded])
        fetch(connection, _RECEIPTS, (worker, as_json([
            _receipt(one, number) for one, number in zip(recorded, numbers, strict=True)])))
        dead = [{"tenant_id": one.claimed.tenant_id, "delivery_id": one.claimed.delivery_id,
                 "attempt": one.claimed.attempt, "reason": _clean(one.outcome.reason), "evidence_seq": number}
                for one, number in zip(recorded, numbers, strict=True) if one.state is DeliveryState.DLQ]
        if dead:
            fetch(connection, _DEAD, (as_json(dead), now))
        events.append(connection, *(
            _event(one, number) for one, number in zip(recorded, numbers, strict=True) if not one.claimed.is_quiet))
    return [one for one in attempts if one.claimed.delivery_id not in ours]


def give_back(connection: psycopg.Connection, worker: str, unsent: Sequence[Claimed]) -> None:
    """Put deliveries that were claimed and not sent into the queue again, in a transaction of its own.

    They are due as before, the attempt does not count, and the limits get their tokens back.
    """
    places, tenants = Counter(one.place for one in unsent), Counter(one.tenant_id for one in unsent)
    with connection.transaction():
        fetch(connection, _UNSPEND, (as_json([
            {"tenant_id": tenant_id, "endpoint": name, "count": count}
            for (tenant_id, name), count in sorted(places.items())]),))
        fetch(connection, _UNSPEND_OF_TENANT, (as_json([
            {"tenant_id": tenant_id, "count": count} for tenant_id, count in sorted(tenants.items())]),))
        fetch(connection, _GIVE_BACK, (as_json([
            {"delivery_id": one.delivery_id, "attempt": one.attempt, "state": one.before.value,
             "due": one.claimed_at.isoformat()} for one in unsent]), worker))


def next_due(connection: psycopg.Connection) -> dt.datetime | None:
    """When the next delivery is due for an endpoint that takes any; may lie in the past while a limit holds it back."""
    return fetch(connection, _NEXT_DUE)[0][0]


# --- claiming ---------------------------------------------------------------------------------------------


def _shares(
    ready: Sequence[Mapping[str, Any]], limits: Mapping[str, Mapping[str, Any]], now: dt.datetime, free: int,
    busy: Mapping[Place, int], most: Callable[[Place], int],
) -> list[dict[str, Any]]:
    """How many each endpoint may be sent now: its share of what is free, within its limits."""
    tokens = {tenant_id: _tokens(row, now) for tenant_id, row in limits.items()}
    share = max(1, math.ceil(free / max(len(ready), 1)))
    if len(ready) <= 4:
        share = free  # the few may use what the others leave
    wanted = []
    for row in ready:
        alone = row["is_fifo"] or row["health"] != "healthy"
        place = (row["tenant_id"], row["name"])
        allowed = min(share, math.floor(_tokens(row, now)), (1 if alone else most(place)) - busy.get(place, 0))
        if row["tenant_id"] in tokens:
            allowed = min(allowed, math.floor(tokens[row["tenant_id"]]))
        if allowed > 0:
            if row["tenant_id"] in tokens:
                tokens[row["tenant_id"]] -= allowed
            wanted.append({"tenant_id": row["tenant_id"], "endpoint": row["name"], "allowed": allowed,
                           "in_order": row["is_fifo"], "alone": alone})
    return wanted


def _tokens(row: Mapping[str, Any], now: dt.datetime) -> float:
    """Tokens in a bucket now."""
    seconds = max((now - row["refilled_at"]).total_seconds(), 0.0)
    return min(row["burst"], row["tokens"] + seconds * row["rate_per_second"])


def _spend(
    connection: psycopg.Connection, rows: Iterable[Mapping[str, Any]], ready: Iterable[Mapping[str, Any]],
    limits: Mapping[str, Mapping[str, Any]], now: dt.datetime,
) -> None:
    """Take tokens from the buckets for what was claimed."""
    by_place: dict[Place, int] = defaultdict(int)
    by_tenant: dict[str, int] = defaultdict(int)
    for row in rows:
        by_place[row["tenant_id"], row["endpoint"]] += 1
        by_tenant[row["tenant_id"]] += 1
    spent = [{"tenant_id": row["tenant_id"], "endpoint": row["name"], "tokens": _tokens(row, now) - count}
             for row in ready if (count := by_place.get((row["tenant_id"], row["name"])))]
    fetch(connection, _SPEND, (as_json(spent), now))
    for tenant_id, row in limits.items():
        if count := by_tenant.get(tenant_id):
            fetch(connection, _SPEND_OF_TENANT, (tenant_id, _tokens(row, now) - count, now))


def _claimed(row: Mapping[str, Any], endpoint: Mapping[str, Any], now: dt.datetime) -> Claimed:
    return Claimed(
        row["delivery_id"], row["tenant_id"], row["delivery_key"], row["endpoint"], endpoint["adapter"],
        endpoint["declaration_hash"], endpoint["spec"], Message(**row["message"]), row["message_sha256"],
        row["attempts"], row["attempts"] - row["schedule_base"], DeliveryState(row["before_state"]), row["is_quiet"],
        _health(endpoint), now)


def _health(row: Mapping[str, Any]) -> Health:
    return Health(row["health"], row["consecutive_failures"], row["openings"], row["paused_until"])


def _record_lost(connection: psycopg.Connection, lost: Sequence[tuple[Claimed, str]], now: dt.datetime) -> None:
    """Receipts of the attempts before, which their workers never recorded."""
    if not lost:
        return
    reason = "the worker ended, or took longer than its lease, before it recorded what came of it"
    numbers = ledger.append_many(connection, [
        ledger.Entry(one.tenant_id, "delivery.lost", one.endpoint, f"{one.delivery_key}#{one.attempt - 1}",
                     {"adapter": one.adapter, "attempt": one.attempt - 1, "reason": reason}) for one, _ in lost])
    for (one, worker), number in zip(lost, numbers, strict=True):
        fetch(connection, _LOST, (one.tenant_id, one.delivery_id, one.attempt - 1, one.endpoint, one.delivery_key,
                                  worker, now, reason, number))


# --- recording --------------------------------------------------------------------------------------------


def _lock_unwell(connection: psycopg.Connection, attempts: Sequence[Attempt]) -> dict[Place, dict[str, Any]]:
    """Health of the endpoints that do not do well, or did not: those that were healthy and still are need no write."""
    places = sorted({
        one.claimed.place for one in attempts
        if one.outcome.result not in (Result.DELIVERED, Result.REJECTED) or one.claimed.health != Health()})
    if not places:
        return {}
    wanted = as_json([{"tenant_id": tenant_id, "endpoint": name} for tenant_id, name in places])
    return {(row["tenant_id"], row["name"]): row for row in fetch_dicts(connection, _HEALTH, (wanted,))}


def _record_health(
    connection: psycopg.Connection, attempts: Sequence[Attempt], unwell: Mapping[Place, Mapping[str, Any]],
    now: dt.datetime,
) -> None:
    """What the attempts say about their endpoints."""
    for place, row in unwell.items():
        ours = [one for one in attempts if one.claimed.place == place]
        outcomes, tells = [one.outcome for one in ours], not all(one.claimed.is_quiet for one in ours)
        before = _health(row)
        if any(outcome.result is Result.GONE for outcome in outcomes) and row["state"] != "disabled":
            endpoints.disable(connection, *place, "the receiver answered that it takes nothing any more (410)", now=now,
                              tells=tells)
        pauses = [schedule.pause(one.retry_after) for one in outcomes if one.result is Result.THROTTLED]
        succeeded = [outcome.result is not Result.UNAVAILABLE for outcome in outcomes
                     if outcome.result not in (Result.THROTTLED, Result.GONE)]
        after = before.after(succeeded, now, max(pauses, default=dt.timedelta()))
        if after != before:
            fetch(connection, _SET_HEALTH, (
                *place, after.state, after.failures, after.openings, after.paused_until))
        if after.state != before.state or after.openings > before.openings:
            endpoints.record(connection, *place, after.state, now, {
                "failures": after.failures, "reason": _clean(outcomes[-1].reason),
                "paused_until": None if after.paused_until is None else after.paused_until.isoformat()}, tells=tells)


def _next_attempt(one: Attempt) -> str:
    """Counted from when the attempt was made; of what is finished, when that was."""
    return (one.claimed.claimed_at + (one.wait or dt.timedelta())).isoformat()


def _facts(one: Attempt) -> dict[str, Any]:
    outcome = one.outcome
    return {
        "adapter": one.claimed.adapter, "delivery_key": one.claimed.delivery_key, "attempt": one.claimed.attempt,
        "reason": _clean(outcome.reason), "status": outcome.status,
        "latency_ms": None if one.latency_ms is None else round(one.latency_ms),
        "signature_key_id": outcome.signature_key_id, "external_id": _clean(outcome.external_id),
        "next_attempt_at": _next_attempt(one) if one.state is DeliveryState.FAILED else None,
    }


def _evidence(one: Attempt) -> ledger.Entry:
    claimed = one.claimed
    return ledger.Entry(claimed.tenant_id, f"delivery.{one.state.value}", claimed.endpoint, claimed.token,
                        {**_facts(one), "message_sha256": claimed.message_sha256})


def _event(one: Attempt, number: int) -> events.Event:
    claimed = one.claimed
    return events.Event(claimed.tenant_id, f"delivery.{one.state.value}", claimed.endpoint, claimed.token,
                        {"endpoint": claimed.endpoint, **_facts(one)}, evidence_seq=number)


def _receipt(one: Attempt, number: int) -> dict[str, Any]:
    claimed, outcome = one.claimed, one.outcome
    excerpt = None if outcome.response is None else redact(outcome.response).replace("\0", "\ufffd")[:EXCERPT]
    return {
        **_facts(one), "tenant_id": claimed.tenant_id, "delivery_id": claimed.delivery_id,
        "endpoint": claimed.endpoint, "attempted_at": claimed.claimed_at.isoformat(), "latency_ms": one.latency_ms,
        "outcome": one.state.value, "response_excerpt": excerpt, "evidence_seq": number,
    }


def _clean(text: str | None) -> str | None:
    return None if text is None else redact(text).replace("\0", "\ufffd")[:EXCERPT]


_READY = """
select e.tenant_id, e.name, e.adapter, e.spec, e.declaration_hash, e.health, e.consecutive_failures, e.openings,
    e.paused_until, e.is_fifo, e.rate_per_second, e.burst, e.tokens, e.refilled_at
from platform.endpoint e
where e.state = 'active' and (e.paused_until is null or e.paused_until <= $1::timestamptz)
    and exists (
        select from platform.delivery d
        where d.tenant_id = e.tenant_id and d.endpoint = e.name and d.state in ('queued', 'running', 'failed')
            and d.next_attempt_at <= $1::timestamptz)
order by e.tenant_id, e.name
for no key update of e
"""
_LIMITS = """
select tenant_id, rate_per_second, burst, tokens, refilled_at from platform.delivery_limit
where tenant_id = any($1::text[]) order by tenant_id for update
"""
# A delivery in order is the first unfinished one of its endpoint or none; others are taken as they fall due. An
# endpoint that is tried out takes one at a time, over all workers.
_CLAIM = """
with wanted as (
    select * from jsonb_to_recordset($1::text::jsonb)
        as w (tenant_id text, endpoint text, allowed int, in_order boolean, alone boolean)
), first as (
    select head.* from wanted w cross join lateral (
        select d.delivery_id, d.state, d.worker, d.next_attempt_at from platform.delivery d
        where d.tenant_id = w.tenant_id and d.endpoint = w.endpoint and d.state in ('queued', 'running', 'failed')
        order by d.delivery_id limit 1 for update) head
    where w.in_order and head.next_attempt_at <= $2::timestamptz
), due as (
    select d.* from wanted w cross join lateral (
        select d.delivery_id, d.state, d.worker, d.next_attempt_at from platform.delivery d
        where d.tenant_id = w.tenant_id and d.endpoint = w.endpoint and d.state in ('queued', 'running', 'failed')
            and d.next_attempt_at <= $2::timestamptz
        order by d.next_attempt_at, d.delivery_id limit w.allowed for update skip locked) d
    where not w.in_order and not (w.alone and exists (
        select from platform.delivery r where r.tenant_id = w.tenant_id and r.endpoint = w.endpoint
            and r.state = 'running' and r.next_attempt_at > $2::timestamptz))
), picked as (
    select * from (select * from first union all select * from due) together
    order by next_attempt_at, delivery_id limit $5::bigint
)
update platform.delivery d
set state = 'running', attempts = d.attempts + 1, worker = $3, next_attempt_at = $4::timestamptz
from picked p where d.delivery_id = p.delivery_id
returning d.delivery_id, d.tenant_id, d.delivery_key, d.endpoint, d.message, d.message_sha256, d.attempts,
    d.schedule_base, d.is_quiet, p.state as before_state, p.worker as before_worker
"""
_SPEND = """
update platform.endpoint e set tokens = s.tokens, refilled_at = $2::timestamptz
from jsonb_to_recordset($1::text::jsonb) as s (tenant_id text, endpoint text, tokens double precision)
where e.tenant_id = s.tenant_id and e.name = s.endpoint
"""
_SPEND_OF_TENANT = """
update platform.delivery_limit set tokens = $2, refilled_at = $3::timestamptz where tenant_id = $1
"""
_UNSPEND = """
update platform.endpoint e set tokens = least(e.burst, e.tokens + s.count)
from jsonb_to_recordset($1::text::jsonb) as s (tenant_id text, endpoint text, count int)
where e.tenant_id = s.tenant_id and e.name = s.endpoint
"""
_UNSPEND_OF_TENANT = """
update platform.delivery_limit l set tokens = least(l.burst, l.tokens + s.count)
from jsonb_to_recordset($1::text::jsonb) as s (tenant_id text, count int)
where l.tenant_id = s.tenant_id
"""
# Of a lost attempt the receipt is written: what comes next is another attempt after a failure.
_GIVE_BACK = """
update platform.delivery d
set state = case u.state when 'running' then 'failed' else u.state end, attempts = d.attempts - 1,
    next_attempt_at = u.due, worker = null
from jsonb_to_recordset($1::text::jsonb) as u (delivery_id bigint, attempt int, state text, due timestamptz)
where d.delivery_id = u.delivery_id and d.attempts = u.attempt and d.state = 'running' and d.worker = $2
"""
_LOST = """
insert into platform.receipt (tenant_id, delivery_id, attempt, endpoint, delivery_key, worker, attempted_at, outcome,
    reason, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7, 'lost', $8, $9)
"""
_FINISH = """
update platform.delivery d
set state = u.state, next_attempt_at = u.next_attempt_at, external_id = coalesce(u.external_id, d.external_id),
    finished_at = case when u.state in ('completed', 'dlq') then $3::timestamptz end
from jsonb_to_recordset($1::text::jsonb)
    as u (delivery_id bigint, attempt int, state text, next_attempt_at timestamptz, external_id text)
where d.delivery_id = u.delivery_id and d.attempts = u.attempt and d.state = 'running' and d.worker = $2
returning d.delivery_id
"""
_RECEIPTS = """
insert into platform.receipt (tenant_id, delivery_id, attempt, endpoint, delivery_key, worker, attempted_at, latency_ms,
    outcome, reason, status, response_excerpt, signature_key_id, external_id, next_attempt_at, evidence_seq)
select tenant_id, delivery_id, attempt, endpoint, delivery_key, $1, attempted_at, latency_ms, outcome, reason, status,
    response_excerpt, signature_key_id, external_id, next_attempt_at, evidence_seq
from jsonb_to_recordset($2::text::jsonb) as r (
    tenant_id text, delivery_id bigint, attempt int, endpoint text, delivery_key text, attempted_at timestamptz,
    latency_ms double precision, outcome text, reason text, status int, response_excerpt text, signature_key_id text,
    external_id text, next_attempt_at timestamptz, evidence_seq bigint)
"""
_DEAD = """
insert into platform.dead_letter (tenant_id, delivery_id, attempt, reason, died_at, evidence_seq)
select tenant_id, delivery_id, attempt, reason, $2::timestamptz, evidence_seq
from jsonb_to_recordset($1::text::jsonb) as d (
    tenant_id text, delivery_id bigint, attempt int, reason text, evidence_seq bigint)
"""
_HEALTH = """
select tenant_id, name, state, health, consecutive_failures, openings, paused_until from platform.endpoint
where (tenant_id, name) in (
    select tenant_id, endpoint from jsonb_to_recordset($1::text::jsonb) as w (tenant_id text, endpoint text))
order by tenant_id, name
for no key update
"""
_SET_HEALTH = """
update platform.endpoint set health = $3, consecutive_failures = $4, openings = $5, paused_until = $6
where tenant_id = $1 and name = $2
"""
_NEXT_DUE = """
select min(greatest(d.next_attempt_at, e.paused_until))
from platform.endpoint e cross join lateral (
    select d.next_attempt_at from platform.delivery d
    where d.tenant_id = e.tenant_id and d.endpoint = e.name and d.state in ('queued', 'running', 'failed')
    order by d.next_attempt_at limit 1) d
where e.state = 'active'
"""
