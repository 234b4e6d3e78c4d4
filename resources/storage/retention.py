"""Retention of raw partitions, as the database knows it: what is due, what is held, what went.

A partition is what a tenant received for one day of one dataset (for a dataset without days: what landed on one day).
It ages from its day or from the day its newest batch landed, whichever is later, and expires whole or not at all.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from resources.runtime.database import fetch, fetch_dicts
from resources.storage import raw_tables

DELETED = "deleted under retention"
"""Message of refused records whose partition expired: the old one may quote the record."""


@dataclass(frozen=True)
class Batch:
    """A batch of a partition, as its evidence will name it."""

    batch_id: int
    source_id: str
    content_sha256: str
    object_key: str
    object_sha256: str
    quarantine_key: str | None
    quarantine_sha256: str | None
    rows: int
    refused: int
    landed_in_entry: int

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its objects in the raw store."""
        return (self.object_key, *([self.quarantine_key] if self.quarantine_key else []))

    def facts(self) -> dict[str, Any]:
        """Everything but the number, which differs from one database to the next."""
        return {name: value for name, value in self.__dict__.items() if name != "batch_id"}


@dataclass(frozen=True)
class Partition:
    """A raw partition that is due.

    Attributes:
        day: the day it is of.
        since: the day it ages from.
        hold: number of the legal hold that keeps it, None when nothing does.
    """

    tenant_id: str
    pipeline: str
    dataset: str
    day: dt.date
    since: dt.date
    hold: int | None
    batches: tuple[Batch, ...]

    @property
    def subject(self) -> str:
        return f"{self.dataset}/{self.day}"


@dataclass(frozen=True)
class Hold:
    """A legal hold; None stands for all datasets, and for no first or last day."""

    hold_id: int
    tenant_id: str
    dataset: str | None
    first_day: dt.date | None
    last_day: dt.date | None
    reason: str
    added_by: str
    added_at: dt.datetime
    released_by: str | None
    released_at: dt.datetime | None
    release_reason: str | None


def due(
    connection: psycopg.Connection, tenant_id: str, dataset: str, days: int, today: dt.date, *, whole: bool = False
) -> list[Partition]:
    """Partitions older than `days`, oldest first, held ones included.

    Of a dataset without days, or whose deliveries are complete snapshots (`whole`), the batches that count are never
    due: they are what the source says now.
    """
    found: dict[tuple[str, dt.date], list[dict[str, Any]]] = {}
    for row in fetch_dicts(connection, _DUE, (tenant_id, dataset, days, today, whole)):
        found.setdefault((row["pipeline"], row["day"]), []).append(row)
    return [
        Partition(tenant_id, pipeline, dataset, day, rows[0]["since"], rows[0]["hold"], tuple(
            Batch(**{name: row[name] for name in Batch.__dataclass_fields__}) for row in rows))
        for (pipeline, day), rows in found.items()
    ]


def delete_rows(connection: psycopg.Connection, dataset: str, batch_ids: Sequence[int]) -> None:
    """Remove a partition's rows and what its refused records say, in the caller's transaction."""
    table = sql.Identifier(raw_tables.SCHEMA, raw_tables.table_name(dataset))
    fetch(connection, sql.SQL("delete from {} where _batch_id = any($1::bigint[])").format(table).as_string(connection),
          (list(batch_ids),))
    fetch(connection, "update platform.quarantine set payload = null, message = $2 where batch_id = any($1::bigint[])",
          (list(batch_ids), DELETED))


def expired_that_count(connection: psycopg.Connection, tenant_id: str, datasets: Sequence[str]) -> tuple[int, str]:
    """(number, day of the newest) of batches that count although their rows are gone."""
    return fetch(connection, _EXPIRED_THAT_COUNT, (tenant_id, list(datasets)))[0]  # type: ignore[return-value]


def expired_objects(connection: psycopg.Connection, tenant_id: str | None) -> list[str]:
    """Keys of all objects that are to be gone."""
    rows = fetch(connection, _OBJECTS, (tenant_id,))
    return [key for row in rows for key in row if key]


def objects(connection: psycopg.Connection, tenant_id: str, dataset: str) -> list[str]:
    """Keys of all objects of a dataset that are there."""
    return [key for row in fetch(connection, _KEPT, (tenant_id, dataset)) for key in row if key]


def holds(connection: psycopg.Connection, tenant_id: str | None, *, released: bool) -> list[Hold]:
    """Legal holds, oldest first; those in force only, unless `released` ones are asked for too."""
    return [Hold(**row) for row in fetch_dicts(connection, _HOLDS, (tenant_id, released))]


_DUE = """
with batches as (
    select b.*, coalesce(b.partition_date, b.load_date) as day
    from platform.raw_batch b
    where b.tenant_id = $1 and b.dataset = $2
        and not exists (select from platform.raw_expiry e where e.batch_id = b.batch_id)
        and (b.partition_date is not null or not b.is_current)
        and not ($5 and b.is_current and not exists (
            select from platform.replaced_batch r where r.batch_id = b.batch_id))
),
aged as (
    select day, greatest(day, max(load_date)) as since from batches group by day
)
select b.pipeline, b.day, a.since, b.batch_id, b.source_id, b.content_sha256, b.object_key, b.object_sha256,
    b.quarantine_key, b.quarantine_sha256, b.accepted as rows, b.quarantined as refused,
    b.evidence_seq as landed_in_entry,
    (select min(h.hold_id) from platform.legal_hold h
     where h.tenant_id = $1 and (h.dataset is null or h.dataset = $2)
        and (h.first_day is null or h.first_day <= a.day) and (h.last_day is null or h.last_day >= a.day)
        and not exists (select from platform.legal_hold_release r where r.hold_id = h.hold_id)) as hold
from aged a join batches b on b.day = a.day
where a.since + $3::int < $4::date
order by a.day, b.batch_id
"""
_EXPIRED_THAT_COUNT = """
select count(*), coalesce(max(coalesce(b.partition_date, b.load_date))::text, '')
from platform.raw_expiry e join platform.raw_batch b on b.batch_id = e.batch_id
where b.tenant_id = $1 and b.dataset = any($2) and b.is_current
    and not exists (select from platform.replaced_batch r where r.batch_id = b.batch_id)
"""
_OBJECTS = """
select b.object_key, b.quarantine_key
from platform.raw_expiry e join platform.raw_batch b on b.batch_id = e.batch_id
where $1::text is null or b.tenant_id = $1 order by b.batch_id
"""
_KEPT = """
select b.object_key, b.quarantine_key from platform.raw_batch b
where b.tenant_id = $1 and b.dataset = $2
    and not exists (select from platform.raw_expiry e where e.batch_id = b.batch_id)
order by b.batch_id
"""
_HOLDS = """
select h.hold_id, h.tenant_id, h.dataset, h.first_day, h.last_day, h.reason, h.added_by, h.added_at, r.released_by,
    r.released_at, r.reason as release_reason
from platform.legal_hold h left join platform.legal_hold_release r on r.hold_id = h.hold_id
where ($1::text is null or h.tenant_id = $1) and ($2 or r.hold_id is null) order by h.hold_id
"""
