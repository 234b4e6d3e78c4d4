"""Events: CloudEvents 1.0 envelopes in a transactional outbox, and readers that skip nothing.

Format: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md, JSON. `type` is
`barecount.<noun>.<verb in the past>`, `source` is `/barecount/<tenant>/<pipeline>` (or `/barecount/<tenant>`),
`subject` names what it happened to. Extensions: `tenant`, `partitionkey` (tenant and subject: order is kept per key),
and where there is one `runtoken` and `evidence` (number of the ledger entry that proves it).

Write in the transaction that changes the state, after its evidence: the tenant's evidence head is locked until commit,
so positions of one tenant grow in the order of commits.

Reading. A transaction that began early may commit late, so neither time nor position says that nothing is missing. A
`Watermark` is a window of transaction ids: its upper bound is the oldest transaction that was still running when the
window was opened (`pg_snapshot_xmin`), so everything inside is final. Within a window events come by position; the next
window begins where the last one ended. A transaction that began late may commit early: an event counts as of its
tenant's youngest transaction so far, not of its own alone, so that of two events of one key the earlier one is never in
a later window.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

from resources.runtime.database import as_json, fetch

CHANNEL = "barecount_events"
"""PostgreSQL notification channel; the payload is the tenant's id."""

_PREFIX = "barecount."


@dataclass(frozen=True)
class Event:
    """Something that happened to a tenant's data.

    Attributes:
        type: noun and verb in the past, as in the ledger: `kpi.published`, `gate.failed`, `drift.detected`.
        subject: what it happened to.
        key: what makes this occurrence one of its own, with tenant, type and subject; usually the run token. The
            event's id derives from it: the same occurrence has the same id wherever it is sent.
        data: facts, JSON-serialisable; amounts and ratios as strings.
        pipeline: where it happened, if anywhere.
        evidence_seq: number of the ledger entry that proves it.
        run_token: the piece of work that made it.
    """

    tenant_id: str
    type: str
    subject: str
    key: str
    data: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str | None = None
    evidence_seq: int | None = None
    run_token: str | None = None

    @property
    def id(self) -> str:
        """SHA-256 (hex) of tenant, type, subject and key, joined by newlines."""
        identity = "\n".join((self.tenant_id, self.type, self.subject, self.key))
        return hashlib.sha256(identity.encode()).hexdigest()

    def envelope(self, at: dt.datetime) -> dict[str, Any]:
        """The CloudEvents envelope."""
        envelope = {
            "specversion": "1.0",
            "id": self.id,
            "source": "/".join(filter(None, ("/barecount", self.tenant_id, self.pipeline))),
            "type": _PREFIX + self.type,
            "subject": self.subject,
            "time": at.isoformat(timespec="microseconds"),
            "datacontenttype": "application/json",
            "tenant": self.tenant_id,
            "partitionkey": f"{self.tenant_id}/{self.subject}",
            "data": dict(self.data),
        }
        if self.run_token is not None:
            envelope["runtoken"] = self.run_token
        if self.evidence_seq is not None:
            envelope["evidence"] = self.evidence_seq
        return envelope


@dataclass(frozen=True)
class StoredEvent:
    """An event as it lies in the outbox."""

    position: int
    tenant_id: str
    event_id: str
    type: str
    subject: str
    occurred_at: dt.datetime
    envelope: Mapping[str, Any]


@dataclass(frozen=True)
class Watermark:
    """How far a reader has come: the window of transactions it is in, and the last position it took from it."""

    from_xid: int = 0
    upto_xid: int = 0
    position: int = 0


def append(connection: psycopg.Connection, *events: Event) -> None:
    """Append in the caller's transaction.

    Raises a unique violation for an occurrence that is on record already: a state changes once.
    """
    by_tenant: dict[str, list[dict[str, Any]]] = defaultdict(list)
    at = dt.datetime.now(dt.UTC)
    for event in events:
        by_tenant[event.tenant_id].append(event.envelope(at))
    for tenant_id in sorted(by_tenant):  # heads are locked in one order everywhere: no deadlock
        fetch(connection, "select platform.append_events($1, $2::text::jsonb)",
              (tenant_id, as_json(by_tenant[tenant_id])))


def read(
    connection: psycopg.Connection, after: Watermark, limit: int = 1_000, *, tenant_id: str | None = None,
    types: Iterable[str] | None = None,
) -> tuple[list[StoredEvent], Watermark]:
    """At most `limit` events after a watermark, in order, and the watermark behind them.

    Args:
        tenant_id: only this tenant's.
        types: only these types, as in `Event.type`.
    """
    wanted = None if types is None else [_PREFIX + name for name in types]
    while True:
        window = after if after.position or after.from_xid < after.upto_xid else _next_window(connection, after)
        if window is None:
            return [], after
        rows = fetch(connection, _READ, (str(window.from_xid), str(window.upto_xid), window.position, tenant_id, wanted,
                                         limit))
        events = [StoredEvent(*row) for row in rows]
        if len(events) == limit:
            return events, Watermark(window.from_xid, window.upto_xid, events[-1].position)
        after = Watermark(window.upto_xid, window.upto_xid, 0)
        if events:
            return events, after


def count(connection: psycopg.Connection, after: Watermark, types: Iterable[str]) -> tuple[int, Watermark]:
    """How many events of these types became final after a watermark, and the watermark behind them."""
    upto = now(connection)
    if upto.upto_xid <= after.upto_xid:
        return 0, after
    rows = fetch(connection, "select count(*) from platform.event "
                             "where xid >= $1::text::xid8 and xid < $2::text::xid8 and type = any($3::text[])",
                 (str(after.upto_xid), str(upto.upto_xid), [_PREFIX + name for name in types]))
    return rows[0][0], upto


def first_time(connection: psycopg.Connection, after: Watermark, types: Iterable[str]) -> dt.datetime | None:
    """When the first event of these types after a watermark occurred; None when there is none."""
    return fetch(connection, "select min(occurred_at) from platform.event "
                             "where xid >= $1::text::xid8 and type = any($2::text[])",
                 (str(after.upto_xid), [_PREFIX + name for name in types]))[0][0]


def at_time(connection: psycopg.Connection, since: dt.datetime) -> Watermark:
    """A watermark before every event that occurred at `since` or later; some earlier ones may follow it too."""
    row = fetch(connection, "select min(xid)::text from platform.event where occurred_at >= $1", (since,))[0]
    if row[0] is None:
        return now(connection)
    return Watermark(int(row[0]), int(row[0]), 0)


def at_position(connection: psycopg.Connection, position: int) -> Watermark:
    """A watermark before the event at `position`; a few earlier ones may follow it too."""
    row = fetch(connection, "select min(xid)::text from platform.event where position >= $1", (position,))[0]
    return now(connection) if row[0] is None else Watermark(int(row[0]), int(row[0]), 0)


def now(connection: psycopg.Connection) -> Watermark:
    """A watermark after everything that is final now."""
    xmin = int(fetch(connection, "select pg_snapshot_xmin(pg_current_snapshot())::text")[0][0])
    return Watermark(xmin, xmin, 0)


def reader_at(connection: psycopg.Connection, reader: str) -> Watermark:
    """Where a named reader stopped; the beginning for one that never read."""
    rows = fetch(
        connection, "select from_xid::text, upto_xid::text, position from platform.event_reader where reader = $1",
        (reader,),
    )
    return Watermark(int(rows[0][0]), int(rows[0][1]), rows[0][2]) if rows else Watermark()


def move_reader(connection: psycopg.Connection, reader: str, to: Watermark) -> None:
    """Remember how far a named reader has come, in the caller's transaction: with what it did about the events."""
    fetch(connection, _MOVE, (reader, str(to.from_xid), str(to.upto_xid), to.position))


def _next_window(connection: psycopg.Connection, after: Watermark) -> Watermark | None:
    xmin = now(connection).upto_xid
    return Watermark(after.upto_xid, xmin, 0) if xmin > after.upto_xid else None


_READ = """
select position, tenant_id, event_id, type, subject, occurred_at, envelope
from platform.event
where xid >= $1::text::xid8 and xid < $2::text::xid8 and position > $3::bigint
    and ($4::text is null or tenant_id = $4) and ($5::text[] is null or type = any($5))
order by position
limit $6::bigint
"""
_MOVE = """
insert into platform.event_reader (reader, from_xid, upto_xid, position)
values ($1, $2::text::xid8, $3::text::xid8, $4::bigint)
on conflict (reader) do update
set from_xid = excluded.from_xid, upto_xid = excluded.upto_xid, position = excluded.position, updated_at = now()
"""
