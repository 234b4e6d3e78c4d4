"""The queue of deliveries: put in with the decision, read by people. Workers take from it in `worker.py`."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass

import psycopg

from resources.action.delivery.model import Delivery
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode

CHANNEL = "barecount_deliveries"
"""PostgreSQL notification channel: something was put into the queue."""


def enqueue(connection: psycopg.Connection, *deliveries: Delivery, now: dt.datetime) -> list[int]:
    """Put deliveries into the queue in the caller's transaction; returns their numbers, in order.

    What is in the queue already, by tenant and key, is not put in again: its number is returned.

    Raises:
        BareCountError: declaration.unknown for an endpoint that the tenant has not registered; delivery.conflict for
            a key that stands for another message or endpoint already.
    """
    rows = as_json([
        {"number": number, "tenant_id": one.tenant_id, "delivery_key": one.key, "endpoint": one.endpoint,
         "origin": one.origin, "is_quiet": one.is_quiet, "message": asdict(one.message),
         "message_sha256": one.message.sha256, "due": (one.not_before or now).isoformat()}
        for number, one in enumerate(deliveries)
    ])
    unknown = fetch(connection, _UNKNOWN_ENDPOINTS, (rows,))
    if unknown:
        names = ", ".join(f"{endpoint} of {tenant_id}" for tenant_id, endpoint in unknown)
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN, f"an endpoint is not registered: {names}",
            hint="declare it in contracts/actions/endpoints/<tenant>/<name>.yaml, then "
                 "`barecount actions endpoints sync`",
        )
    fetch(connection, _ENQUEUE, (rows, now))
    found = fetch(connection, _FIND, (rows,))
    for wanted, (_, endpoint, digest) in zip(deliveries, found, strict=True):
        if (endpoint, digest) != (wanted.endpoint, wanted.message.sha256):
            raise BareCountError(
                ErrorCode.DELIVERY_CONFLICT,
                f"delivery key {wanted.key!r} of tenant {wanted.tenant_id} stands for another message or endpoint "
                f"already ({endpoint})",
                hint="a key names one effect: derive it from everything that makes the effect another",
            )
    fetch(connection, "select pg_notify($1, '')", (CHANNEL,))
    return [delivery_id for delivery_id, _, _ in found]


@dataclass(frozen=True)
class DeliveryRow:
    """A delivery as it lies in the queue."""

    delivery_id: int
    tenant_id: str
    delivery_key: str
    endpoint: str
    origin: str | None
    state: str
    attempts: int
    next_attempt_at: dt.datetime
    external_id: str | None
    enqueued_at: dt.datetime
    finished_at: dt.datetime | None


@dataclass(frozen=True)
class ReceiptRow:
    """A receipt: one attempt."""

    delivery_id: int
    attempt: int
    tenant_id: str
    endpoint: str
    delivery_key: str
    attempted_at: dt.datetime
    latency_ms: float | None
    outcome: str
    reason: str
    status: int | None
    response_excerpt: str | None
    signature_key_id: str | None
    external_id: str | None
    next_attempt_at: dt.datetime | None
    worker: str
    evidence_seq: int


def deliveries(
    connection: psycopg.Connection, *, tenant_id: str | None = None, endpoint: str | None = None,
    state: str | None = None, origin: str | None = None, limit: int = 50,
) -> list[DeliveryRow]:
    """The newest deliveries."""
    rows = fetch_dicts(connection, _DELIVERIES, (tenant_id, endpoint, state, origin, limit))
    return [DeliveryRow(**row) for row in rows]


def receipts(
    connection: psycopg.Connection, *, tenant_id: str | None = None, delivery: str | None = None,
    endpoint: str | None = None, origin: str | None = None, limit: int = 50,
) -> list[ReceiptRow]:
    """The newest receipts; `delivery` is a delivery's number or key."""
    rows = fetch_dicts(connection, _RECEIPTS, (tenant_id, delivery, endpoint, origin, limit))
    return [ReceiptRow(**row) for row in rows]


_UNKNOWN_ENDPOINTS = """
select distinct w.tenant_id, w.endpoint
from jsonb_to_recordset($1::text::jsonb) as w (tenant_id text, endpoint text)
left join platform.endpoint e on e.tenant_id = w.tenant_id and e.name = w.endpoint
where e.name is null order by 1, 2
"""
_ENQUEUE = """
insert into platform.delivery
    (tenant_id, delivery_key, endpoint, origin, is_quiet, message, message_sha256, next_attempt_at, enqueued_at)
select tenant_id, delivery_key, endpoint, origin, is_quiet, message, message_sha256, due, $2::timestamptz
from jsonb_to_recordset($1::text::jsonb) as w (
    number int, tenant_id text, delivery_key text, endpoint text, origin text, is_quiet boolean, message jsonb,
    message_sha256 text, due timestamptz)
order by number
on conflict (tenant_id, delivery_key) do nothing
"""
_FIND = """
select d.delivery_id, d.endpoint, d.message_sha256
from jsonb_to_recordset($1::text::jsonb) as w (number int, tenant_id text, delivery_key text)
join platform.delivery d using (tenant_id, delivery_key)
order by w.number
"""
_DELIVERIES = """
select delivery_id, tenant_id, delivery_key, endpoint, origin, state, attempts, next_attempt_at, external_id,
    enqueued_at, finished_at
from platform.delivery
where ($1::text is null or tenant_id = $1) and ($2::text is null or endpoint = $2)
    and ($3::text is null or state = $3) and ($4::text is null or origin = $4)
order by delivery_id desc limit $5::bigint
"""
_RECEIPTS = """
select r.delivery_id, r.attempt, r.tenant_id, r.endpoint, r.delivery_key, r.attempted_at, r.latency_ms, r.outcome,
    r.reason, r.status, r.response_excerpt, r.signature_key_id, r.external_id, r.next_attempt_at, r.worker,
    r.evidence_seq
from platform.receipt r
where ($1::text is null or r.tenant_id = $1)
    and ($2::text is null or r.delivery_key = $2 or r.delivery_id::text = $2)
    and ($3::text is null or r.endpoint = $3)
    and ($4::text is null or exists (
        select from platform.delivery d where d.delivery_id = r.delivery_id and d.origin = $4))
order by r.attempted_at desc, r.delivery_id desc, r.attempt desc limit $5::bigint
"""
