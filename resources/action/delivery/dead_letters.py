"""Deliveries that were given up, and their way back.

Every time a delivery is given up it gets a dead letter with a position; positions grow, and a reader that remembers the
last one it saw has a watermark. A replay puts the delivery back into the queue under its delivery key, with the whole
retry schedule before it; what has been replayed is not replayed again unless it was given up again.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import psycopg

from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger


@dataclass(frozen=True)
class DeadLetter:
    """A delivery that was given up after an attempt."""

    position: int
    tenant_id: str
    delivery_id: int
    endpoint: str
    delivery_key: str
    attempt: int
    reason: str
    died_at: dt.datetime
    replayed_at: dt.datetime | None


@dataclass(frozen=True)
class Selection:
    """Which dead letters; every part that is given must hold.

    Attributes:
        deliveries: numbers or keys of deliveries.
        since, until: when they were given up, `until` not included.
        after: only positions behind this watermark.
    """

    endpoint: str | None = None
    deliveries: tuple[str, ...] = ()
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    after: int | None = None

    @property
    def is_everything(self) -> bool:
        return self == Selection()


def listed(
    connection: psycopg.Connection, tenant_id: str | None, selection: Selection, *, waiting_only: bool = True,
    limit: int | None = None,
) -> list[DeadLetter]:
    """Dead letters by position; `waiting_only` leaves out those that were replayed."""
    rows = fetch_dicts(connection, _LIST, (
        tenant_id, selection.endpoint, list(selection.deliveries) or None, selection.since, selection.until,
        selection.after, waiting_only, limit))
    return [DeadLetter(**row) for row in rows]


def replay(
    connection: psycopg.Connection, tenant_id: str, selection: Selection, *, requested_by: str, now: dt.datetime
) -> list[DeadLetter]:
    """Put dead letters of one tenant back into the queue, in the caller's transaction; returns them.

    Raises:
        BareCountError: declaration.unknown when a delivery is named that has no dead letter waiting.
    """
    waiting = listed(connection, tenant_id, selection)
    known = {name for letter in waiting for name in (str(letter.delivery_id), letter.delivery_key)}
    unknown = [name for name in selection.deliveries if name not in known]
    if unknown:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN, f"no dead letter of tenant {tenant_id} waits for {', '.join(unknown)}",
            hint=f"`barecount actions dlq list --tenant {tenant_id}` shows those that wait")
    ids = [letter.delivery_id for letter in waiting]
    replayed = {row[0] for row in fetch(connection, _REQUEUE, (tenant_id, ids, now))}
    letters = [letter for letter in waiting if letter.delivery_id in replayed]
    numbers = ledger.append_many(connection, [
        ledger.Entry(tenant_id, "delivery.replayed", letter.endpoint, f"{letter.delivery_key}#{letter.attempt}",
                     {"delivery_key": letter.delivery_key, "position": letter.position, "requested_by": requested_by})
        for letter in letters])
    fetch(connection, _REPLAYED, (tenant_id, requested_by, now, as_json([
        {"position": letter.position, "evidence_seq": number}
        for letter, number in zip(letters, numbers, strict=True)])))
    events.append(connection, *(
        events.Event(tenant_id, "delivery.replayed", letter.endpoint, f"{letter.delivery_key}#{letter.attempt}",
                     {"endpoint": letter.endpoint, "delivery_key": letter.delivery_key}, evidence_seq=number)
        for letter, number in zip(letters, numbers, strict=True)))
    fetch(connection, "select pg_notify('barecount_deliveries', '')")
    return letters


_LIST = """
select l.position, l.tenant_id, l.delivery_id, d.endpoint, d.delivery_key, l.attempt, l.reason, l.died_at,
    r.replayed_at
from platform.dead_letter l
join platform.delivery d using (delivery_id)
left join platform.dead_letter_replay r using (position)
where ($1::text is null or l.tenant_id = $1) and ($2::text is null or d.endpoint = $2)
    and ($3::text[] is null or d.delivery_key = any($3) or d.delivery_id::text = any($3))
    and ($4::timestamptz is null or l.died_at >= $4) and ($5::timestamptz is null or l.died_at < $5)
    and ($6::bigint is null or l.position > $6)
    and (not $7::boolean or (r.position is null and d.state = 'dlq'))
order by l.position limit $8::bigint
"""
_REQUEUE = """
update platform.delivery set state = 'queued', next_attempt_at = $3::timestamptz, schedule_base = attempts,
    finished_at = null, worker = null
where delivery_id in (
    select delivery_id from platform.delivery
    where tenant_id = $1 and delivery_id = any($2::bigint[]) and state = 'dlq' order by delivery_id for update)
returning delivery_id
"""
_REPLAYED = """
insert into platform.dead_letter_replay (position, tenant_id, requested_by, replayed_at, evidence_seq)
select position, $1, $2, $3::timestamptz, evidence_seq
from jsonb_to_recordset($4::text::jsonb) as r (position bigint, evidence_seq bigint)
"""
