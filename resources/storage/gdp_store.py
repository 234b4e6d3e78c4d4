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
    """(content hash, rows) of a tenant's rows as of a run."""
    return content.hash_of(connection, sql.Identifier(SCHEMA, model), _AS_OF, (tenant_id, run_id), None)


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
