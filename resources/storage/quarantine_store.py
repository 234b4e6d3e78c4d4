"""The quarantine: refused records, kept whole, and what became of each.

A record is open until it is replayed (accepted as a row of another batch, or in place by a later run), refused again
(its new form is a record of its own), or discarded. Two more states follow from others: superseded (the source has
delivered a newer version of its unit), expired (its raw partition was deleted under retention).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode

STATES = ("open", "replayed", "refused_again", "discarded", "superseded", "expired")
PAGE = 16_384  # records in memory at once


@dataclass(frozen=True)
class Selection:
    """Which records; what is None does not narrow.

    Attributes:
        run: run token (or its beginning) of the batch or run that refused them, or a number of a run.
        field: the field at fault; for records refused by normalization, the GDP.
        stage: `ingestion` or `normalization`.
    """

    tenant_id: str | None = None
    pipeline: str | None = None
    dataset: str | None = None
    run: str | None = None
    reason: str | None = None
    field: str | None = None
    stage: str | None = None
    state: str | None = None
    ids: Sequence[int] | None = None

    @property
    def narrowed(self) -> dict[str, str]:
        """What narrows it beside tenant, pipeline, state and numbers, by name."""
        return {name: value for name in ("dataset", "run", "reason", "field") if (value := getattr(self, name))}

    def parameters(self, connection: psycopg.Connection) -> tuple[Any, ...]:
        """Parameters $1 to $9 of every statement over the selection.

        Raises:
            BareCountError: usage for an unknown state, declaration.unknown for a number that no run has.
        """
        if self.state is not None and self.state not in STATES:
            raise BareCountError(ErrorCode.USAGE, f"found state {self.state!r}, allowed: {', '.join(STATES)}")
        return (self.tenant_id, self.pipeline, self.dataset, self._run(connection), self.reason, self.field,
                self.stage, self.state, None if self.ids is None else list(self.ids))

    def _run(self, connection: psycopg.Connection) -> str | None:
        if self.run is None or not (self.run.isdigit() and len(self.run) < 12):
            return self.run
        rows = fetch(connection, "select run_token from platform.run where run_id = $1::bigint", (int(self.run),))
        if not rows:
            raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no run number {self.run}",
                                 hint="`barecount quarantine list` shows runs")
        return rows[0][0]


@dataclass(frozen=True)
class Group:
    """Selected records of one batch, refused by one stage."""

    tenant_id: str
    pipeline: str
    dataset: str
    stage: str
    batch_id: int
    source_id: str
    partition_date: Any
    content_sha256: str
    observed_names: tuple[str, ...] | None
    observed_types: tuple[str, ...] | None
    records: int


def listed(connection: psycopg.Connection, selection: Selection, limit: int) -> list[dict[str, Any]]:
    """The newest records of a selection, without their payloads' bytes (`payload` is escaped text)."""
    return fetch_dicts(connection, _LIST, (*selection.parameters(connection), limit))


def counts(connection: psycopg.Connection, selection: Selection) -> list[dict[str, Any]]:
    """Records by tenant, pipeline, dataset, stage, reason and state."""
    return fetch_dicts(connection, _COUNTS, selection.parameters(connection))


def groups(connection: psycopg.Connection, selection: Selection) -> list[Group]:
    """The batches that the selected records are of, in order of landing."""
    rows = fetch_dicts(connection, _GROUPS, selection.parameters(connection))
    return [Group(**{**row, "observed_names": row["observed_names"] and tuple(row["observed_names"]),
                     "observed_types": row["observed_types"] and tuple(row["observed_types"])}) for row in rows]


def by_owner(found: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """Groups by tenant and pipeline, in the order given."""
    owners: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        owners.setdefault((group.tenant_id, group.pipeline), []).append(group)
    return owners


def ids_of(connection: psycopg.Connection, selection: Selection, group: Group) -> list[int]:
    """Numbers of the selected records of a group, in the order the source had them."""
    rows = fetch(connection, _IDS, (*selection.parameters(connection), group.batch_id, group.stage))
    return [number for (number,) in rows]


def page(connection: psycopg.Connection, ids: Sequence[int]) -> list[tuple[int, str | None, str, str, bytes]]:
    """(number, field, reason, message, payload) of some records, in the order given."""
    with connection.cursor(binary=True) as cursor:
        cursor.execute(_PAGE, (list(ids),))
        return cursor.fetchall()


def stream(connection: psycopg.Connection, selection: Selection) -> Iterator[list[dict[str, Any]]]:
    """Every selected record, page by page, with its payload's bytes."""
    parameters = selection.parameters(connection)
    with connection.transaction(), psycopg.RawServerCursor(connection, "quarantine") as cursor:
        cursor.execute(_STREAM, parameters, binary=True)
        names = [column.name for column in cursor.description or ()]
        while rows := cursor.fetchmany(PAGE):
            yield [dict(zip(names, row, strict=True)) for row in rows]


_WHERE = """
where ($1::text is null or r.tenant_id = $1) and ($2::text is null or r.pipeline = $2)
    and ($3::text is null or r.dataset = $3) and ($4::text is null or starts_with(r.run_token, $4))
    and ($5::text is null or r.reason = $5) and ($6::text is null or r.field = $6)
    and ($7::text is null or r.stage = $7) and ($8::text is null or r.state = $8)
    and ($9::bigint[] is null or r.quarantine_id = any($9::bigint[]))
"""
_COLUMNS = """
r.quarantine_id, r.tenant_id, r.pipeline, r.dataset, r.stage, r.source_id, r.partition_date, r.row_number, r.field,
r.reason, r.message, r.run_token, r.quarantined_at, r.state, r.into_batch, r.into_row, r.into_run, r.again_id,
r.decided_by, r.decision_reason, r.decided_at, r.decision_token
"""
_LIST = f"""
select {_COLUMNS}, encode(r.payload, 'escape') as payload
from platform.quarantine_record r {_WHERE} order by r.quarantine_id desc limit $10::bigint
"""
_STREAM = f"""
select {_COLUMNS}, r.payload from platform.quarantine_record r {_WHERE} order by r.quarantine_id
"""
_COUNTS = f"""
select r.tenant_id, r.pipeline, r.dataset, r.stage, r.reason, r.state, count(*) as records
from platform.quarantine_record r {_WHERE} group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
"""
_GROUPS = f"""
with selected as (
    select r.tenant_id, r.pipeline, r.dataset, r.stage, r.batch_id, count(*) as records
    from platform.quarantine_record r {_WHERE} group by 1, 2, 3, 4, 5
)
select s.tenant_id, s.pipeline, s.dataset, s.stage, s.batch_id, b.source_id, b.partition_date, b.content_sha256,
    b.observed_names, b.observed_types, s.records
from selected s join platform.raw_batch b on b.batch_id = s.batch_id order by s.batch_id, s.stage
"""
_IDS = f"""
select r.quarantine_id from platform.quarantine_record r {_WHERE} and r.batch_id = $10::bigint and r.stage = $11
order by r.row_number, r.quarantine_id
"""
_PAGE = """
select q.quarantine_id, q.field, q.reason, q.message, q.payload
from unnest($1::bigint[]) with ordinality as wanted (quarantine_id, number)
join platform.quarantine q on q.quarantine_id = wanted.quarantine_id
order by wanted.number
"""
