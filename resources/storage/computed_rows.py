"""Rows that an engine computed for a model, on their way into PostgreSQL: `<schema>.<model>__computed`.

Unlogged, loaded by binary COPY in one transaction, read once by the model of that name, and dropped. What a killed run
left is replaced by the next. They are nobody's state: what counts is what the model makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg
import pyarrow as pa
from psycopg import sql

from resources.runtime.database import fetch
from resources.storage import arrow_copy

SUFFIX = "__computed"


def replace(
    connection: psycopg.Connection, schema: str, model: str, columns: Sequence[tuple[str, str]],
    rows: pa.RecordBatchReader,
) -> None:
    """Load the rows of a model.

    Args:
        columns: (name, declared PostgreSQL type). A plain `numeric` gets the precision and scale of the rows: its
            scale is part of a value's text, and so of content hashes.
    """
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(_exact(kind, rows.schema.field(name).type)))
        for name, kind in columns)
    with connection.transaction():
        _drop(connection, schema, model)
        fetch(connection, sql.SQL("create unlogged table {} ({})").format(
            sql.Identifier(schema, model + SUFFIX), definitions).as_string(None))
        arrow_copy.append(connection, schema, model + SUFFIX, rows.schema, rows)


@contextmanager
def forgotten(connection: psycopg.Connection, models: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Drop the rows of some models, (schema, model), when the block ends, however it ends."""
    try:
        yield
    finally:
        with suppress(Exception):  # a lost server is told by what lost it, and what is left is replaced
            for schema, model in models:
                _drop(connection, schema, model)


def _drop(connection: psycopg.Connection, schema: str, model: str) -> None:
    fetch(connection, sql.SQL("drop table if exists {}").format(sql.Identifier(schema, model + SUFFIX)).as_string(None))


def _exact(kind: str, found: pa.DataType) -> str:
    if kind == "numeric" and pa.types.is_decimal(found):
        return f"numeric({found.precision},{found.scale})"
    return kind
