"""The GDP store: every version of every conformed entity, visible as of a committed run.

A GDP table holds all versions of its rows; `valid_from_run` and `valid_to_run` say for which runs a version counts.
What consumers of GDPs see is the state as of the newest *committed* normalization: the commit, with its evidence, is
what makes a run's rows count, so a run that died half-way is never seen.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from resources.runtime.database import fetch, fetch_dicts
from resources.storage import content, model_tables

SCHEMA = "gdp"
VERSION_COLUMNS = ("tenant_id", "row_hash", "row_version", "valid_from_run", "valid_to_run")
_HEAD = sql.SQL("tenant_id = $1 and valid_to_run is null")


def head_hash(connection: psycopg.Connection, model: str, tenant_id: str) -> tuple[str, int]:
    """(content hash, rows) of a tenant's newest versions."""
    return content.hash_of(connection, sql.Identifier(SCHEMA, model), _HEAD, (tenant_id,), None)


def as_of_hash(connection: psycopg.Connection, model: str, tenant_id: str, run_id: int) -> tuple[str, int]:
    """(content hash, rows) of a tenant's rows as of a run, by the row hashes they carry."""
    return content.hash_of(connection, sql.Identifier(SCHEMA, model), _AS_OF, (tenant_id, run_id), None)


def recomputed_hash(
    connection: psycopg.Connection, model: str, tenant_id: str, run_id: int, columns: Sequence[tuple[str, str]]
) -> tuple[str, int]:
    """Like `as_of_hash`, with every row's hash computed again from its values: a value changed in place shows.

    Args:
        columns: (name, PostgreSQL type) of the business columns that the model had then, in order.
    """
    return content.hash_of(
        connection, sql.Identifier(SCHEMA, model), _AS_OF, (tenant_id, run_id), None,
        row_hash=_proper_hash(connection, model, columns))


def rehashed(
    connection: psycopg.Connection, model: str, tenant_id: str, run_id: int, columns: Sequence[tuple[str, str]]
) -> tuple[str, int]:
    """Like `recomputed_hash`, as if today's software had written every row: for comparison with rows of today."""
    row_hash = _row_hash(*_parts(connection, model, columns))
    return content.hash_of(
        connection, sql.Identifier(SCHEMA, model), _AS_OF, (tenant_id, run_id), None, row_hash=row_hash)


def disagreeing(
    connection: psycopg.Connection, model: str, tenant_id: str, run_id: int, columns: Sequence[tuple[str, str]],
    *, since_run: int = 0, every: int = 1,
) -> int:
    """Number of rows as of a run whose values are not those that their hash was taken of.

    Args:
        columns: as for `recomputed_hash`.
        since_run: look at rows that a later run opened.
        every: look at one row in so many, chosen by its hash.
    """
    proper = _proper_hash(connection, model, columns)
    statement = sql.SQL(
        "select count(*) from {} as r where {} and valid_from_run > $3::bigint "
        "and get_byte(row_hash, 0) % $4::int = 0 and row_hash is distinct from {}"
    ).format(sql.Identifier(SCHEMA, model), _AS_OF, proper)
    return fetch(connection, statement.as_string(connection), (tenant_id, run_id, since_run, every))[0][0]


def opened(connection: psycopg.Connection, model: str, tenant_id: str, run_id: int, since_run: int) -> int:
    """Number of rows as of a run that a run after `since_run` opened."""
    statement = sql.SQL("select count(*) from {} where {} and valid_from_run > $3::bigint").format(
        sql.Identifier(SCHEMA, model), _AS_OF)
    return fetch(connection, statement.as_string(connection), (tenant_id, run_id, since_run))[0][0]


def _proper_hash(
    connection: psycopg.Connection, model: str, columns: Sequence[tuple[str, str]]
) -> sql.Composable:
    """The hash that a row `r` must carry. Rows written before hashes covered the columns have one of values alone."""
    label, texts = _parts(connection, model, columns)
    return sql.SQL(
        "case r.row_hash when {named} then r.row_hash when {values} then r.row_hash else {named} end"
    ).format(values=_row_hash(None, texts), named=_row_hash(label, texts))


def _row_hash(label: str | None, texts: Sequence[sql.Composable]) -> sql.Composable:
    parts = [*([] if label is None else [sql.Literal(label)]), *texts]
    return sql.SQL("sha256(convert_to({}, 'UTF8'))").format(sql.SQL(" || ").join(parts))


def _parts(
    connection: psycopg.Connection, model: str, columns: Sequence[tuple[str, str]]
) -> tuple[str, list[sql.Composable]]:
    """What a row hash is taken of: which columns they are, and the text of each one's value."""
    held = model_tables.places(connection, SCHEMA, model, columns)
    return columns_label(columns), [_canonical_text(held.get(name), kind) for name, kind in columns]


def columns_label(columns: Sequence[tuple[str, str]]) -> str:
    """Which columns a row hash is of: that of the macro `columns_label` (dbt_project/macros/history.sql)."""
    listed = "".join(f"{name} {kind};" for name, kind in columns)
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()


def _canonical_text(place: str | None, kind: str) -> sql.Composable:
    """Text of a column's value in a row hash: that of the macro `canonical_text` (dbt_project/macros/history.sql).

    A column that the table does not have reads as null.
    """
    if kind == "text":
        template = "coalesce(length({0})::text || ':' || {0}, '~')"
    elif kind == "date":
        template = "coalesce(to_char({0}, 'YYYY-MM-DD'), '') || ';'"
    elif kind == "timestamptz":
        template = """coalesce(to_char({0} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') || 'Z', '') || ';'"""
    elif kind.startswith("timestamp"):
        template = """coalesce(to_char({0}, 'YYYY-MM-DD"T"HH24:MI:SS.US'), '') || ';'"""
    else:  # numbers and booleans
        template = "coalesce({0}::text, '') || ';'"
    value = sql.Identifier("r", place) if place is not None else sql.SQL("null::{}").format(sql.SQL(kind))
    return sql.SQL(template).format(value)


_AS_OF = sql.SQL(
    "tenant_id = $1 and valid_from_run <= $2::bigint and (valid_to_run is null or valid_to_run > $2::bigint)"
)


def read_as_of(
    connection: psycopg.Connection, model: str, tenant_id: str, run_id: int, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """The given columns of a tenant's rows as they were after a run, in no particular order."""
    statement = sql.SQL("select {} from {} where {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(SCHEMA, model), _AS_OF
    )
    return fetch_dicts(connection, statement.as_string(connection), (tenant_id, run_id))


def changed_dates(
    connection: psycopg.Connection, model: str, tenant_id: str, date_column: str, since_run: int
) -> list[Any]:
    """Distinct values of a date column among versions that began or ended after a run, ascending."""
    statement = sql.SQL(
        "select distinct {column}::date from {table} where tenant_id = $1 "
        "and (valid_from_run > $2::bigint or valid_to_run > $2::bigint) and {column} is not null order by 1"
    ).format(column=sql.Identifier(date_column), table=sql.Identifier(SCHEMA, model))
    return [value for (value,) in fetch(connection, statement.as_string(connection), (tenant_id, since_run))]


def date_range(
    connection: psycopg.Connection, model: str, tenant_id: str, date_column: str, since_run: int,
    bounds: tuple[dt.date, dt.date],
) -> tuple[dt.date, dt.date] | None:
    """Least and greatest date within bounds among a tenant's head rows that opened after a run; None for no such."""
    statement = sql.SQL(
        "select min({column})::date, max({column})::date from {table} where tenant_id = $1 and valid_to_run is null "
        "and valid_from_run > $2::bigint and {column} >= $3::text::date and {column} < $4::text::date + 1"
    ).format(column=sql.Identifier(date_column), table=sql.Identifier(SCHEMA, model))
    first, last = fetch(connection, statement.as_string(connection), (tenant_id, since_run, *map(str, bounds)))[0]
    return None if first is None else (first, last)


def last_date(connection: psycopg.Connection, model: str, tenant_id: str, date_column: str) -> Any:
    """Greatest value of a date column among a tenant's rows, None when there is none."""
    statement = sql.SQL("select max({}::date) from {} where tenant_id = $1").format(
        sql.Identifier(date_column), sql.Identifier(SCHEMA, model)
    )
    return fetch(connection, statement.as_string(connection), (tenant_id,))[0][0]
