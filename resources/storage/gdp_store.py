"""The GDP store: every version of every conformed entity, visible as of a committed run.

A GDP table holds all versions of its rows; `valid_from_run` and `valid_to_run` say for which runs a version counts.
What consumers of GDPs see is the state as of the newest *committed* normalization: the commit, with its evidence, is
what makes a run's rows count, so a run that died half-way is never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from resources.runtime.database import fetch, fetch_dicts
from resources.storage import content

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
        columns: (name, PostgreSQL type) of the business columns, in the order of the model's contract.
    """
    text = sql.SQL(" || ").join(_canonical_text(name, kind) for name, kind in columns)
    row_hash = sql.SQL("sha256(convert_to({}, 'UTF8'))").format(text)
    return content.hash_of(
        connection, sql.Identifier(SCHEMA, model), _AS_OF, (tenant_id, run_id), None, row_hash=row_hash)


def _canonical_text(name: str, kind: str) -> sql.Composable:
    """Text of a column's value in a row hash: that of the macro `canonical_text` (dbt_project/macros/history.sql)."""
    if kind == "text":
        template = "coalesce(length(r.{0})::text || ':' || r.{0}, '~')"
    elif kind == "date":
        template = "coalesce(to_char(r.{0}, 'YYYY-MM-DD'), '') || ';'"
    elif kind.startswith("timestamp"):
        template = """coalesce(to_char(r.{0}, 'YYYY-MM-DD"T"HH24:MI:SS.US'), '') || ';'"""
    else:  # numbers and booleans
        template = "coalesce(r.{0}::text, '') || ';'"
    return sql.SQL(template).format(sql.Identifier(name))


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


def last_date(connection: psycopg.Connection, model: str, tenant_id: str, date_column: str) -> Any:
    """Greatest value of a date column among a tenant's rows, None when there is none."""
    statement = sql.SQL("select max({}::date) from {} where tenant_id = $1").format(
        sql.Identifier(date_column), sql.Identifier(SCHEMA, model)
    )
    return fetch(connection, statement.as_string(connection), (tenant_id,))[0][0]
