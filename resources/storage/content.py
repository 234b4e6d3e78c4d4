"""Content hashes of tables: what a set of rows is, whatever order or batches they came in.

A row's hash is SHA-256 over its columns as JSON text, or the `row_hash` it carries. The hash of a set is SHA-256 over
256 bucket hashes (by the row hash's first byte), each SHA-256 over its sorted row hashes: the order of rows does not
matter, memory stays bounded, and a row counted twice shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from resources.runtime.database import fetch

_CARRIED = sql.Identifier("row_hash")
_HASH_OF_SET = """
with rows as (select {row_hash} as h from {relation} as r where {condition}),
buckets as (
    select substr(h, 1, 1) as bucket, sha256(string_agg(h, ''::bytea order by h)) as h, count(*) as n
    from rows group by 1
)
select coalesce(encode(sha256(string_agg(h, ''::bytea order by bucket)), 'hex'), encode(sha256(''), 'hex')),
       coalesce(sum(n), 0)::bigint
from buckets
"""


def hash_of(
    connection: psycopg.Connection, relation: sql.Identifier, condition: sql.Composable, parameters: Sequence[Any],
    columns: Sequence[str] | None, *, row_hash: sql.Composable = _CARRIED,
) -> tuple[str, int]:
    """(SHA-256 hex, number of rows) of the rows of a relation that meet a condition.

    Args:
        columns: the columns that make a row's content; None when rows have a hash of their own.
        row_hash: that hash, as an expression; by default the column the relation carries.
    """
    if columns is not None:
        row_hash = sql.SQL("sha256(convert_to(jsonb_build_array({})::text, 'UTF8'))").format(
            sql.SQL(", ").join(sql.SQL("r.{}").format(sql.Identifier(column)) for column in columns)
        )
    statement = sql.SQL(_HASH_OF_SET).format(row_hash=row_hash, relation=relation, condition=condition)
    digest, rows = fetch(connection, statement.as_string(connection), parameters)[0]
    return digest, rows
