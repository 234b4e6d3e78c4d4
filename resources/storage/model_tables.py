"""The columns of a model's table while the model changes: tables `gdp.<model>` and `kpi.<model>`.

A table has the columns that its model declares under their own names. A column that is not declared any more, or is
declared with another type, keeps its values as `<name>__<type>`: older versions of rows stay readable, and whoever
still asks for the name gets an error instead of nulls. Declared again with that type, it has its name back.

So the place of a column follows from its name and type, and from nothing else: a change that is taken back, a run that
died half-way and two tenants of whom one has the new columns already all find what they wrote.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import psycopg
from psycopg import sql

from resources.runtime.database import fetch

_MOST = 63  # bytes of a name in PostgreSQL
_SPELLED = {
    "timestamp": "timestamp without time zone", "timestamptz": "timestamp with time zone",
    "character varying": "text",
}  # fmt: skip


def conform(
    connection: psycopg.Connection, schema: str, table: str, columns: Sequence[tuple[str, str]],
    platform_columns: Collection[str], required: Collection[str],
) -> bool:
    """Give a table, if there is one, the declared columns; True when that changed it.

    Statements are the caller's transaction's, or each its own: what is done half is completed by the next call.

    Args:
        columns: (name, PostgreSQL type) of the columns that the model declares.
        platform_columns: names of columns that every such table has, and that are left alone.
        required: names of declared columns that hold no null; the others may.
    """
    existing = _columns(connection, schema, table)
    if not existing:
        return False
    name = sql.Identifier(schema, table)
    declared = {column: spelled(kind) for column, kind in columns}
    changed = False
    for column, (kind, is_required) in existing.items():
        if column in platform_columns:
            continue
        place = column
        if declared.get(column) != kind and (column in declared or not is_retired(column)):
            place = retired(column, kind)
            _run(connection, "alter table {} rename column {} to {}", name, sql.Identifier(column),
                 sql.Identifier(place))
            changed = True
        if is_required and (declared.get(column) != kind or column not in required):
            _run(connection, "alter table {} alter column {} drop not null", name, sql.Identifier(place))
    for column, kind in columns:
        if column in existing and existing[column][0] == declared[column]:
            continue
        if retired(column, declared[column]) in existing:
            _run(connection, "alter table {} rename column {} to {}", name,
                 sql.Identifier(retired(column, declared[column])), sql.Identifier(column))
        else:
            _run(connection, "alter table {} add column {} {}", name, sql.Identifier(column), sql.SQL(kind))
        changed = True
    return changed


def places(
    connection: psycopg.Connection, schema: str, table: str, columns: Sequence[tuple[str, str]]
) -> Mapping[str, str]:
    """Where a table holds columns as they were declared once: name in the table by declared name.

    A column that the table does not have is left out.
    """
    existing = _columns(connection, schema, table)
    held = {}
    for column, kind in columns:
        if column in existing and existing[column][0] == spelled(kind):
            held[column] = column
        elif retired(column, spelled(kind)) in existing:
            held[column] = retired(column, spelled(kind))
    return held


def retired(column: str, kind: str) -> str:
    """The name under which a column of this type is kept when it is not declared."""
    suffix = "__" + re.sub(r"[^a-z0-9]+", "_", spelled(kind)).strip("_")
    return column[: _MOST - len(suffix)] + suffix


def is_retired(column: str) -> bool:
    """Whether a name is one that `retired` gave: it ends in a type."""
    return _RETIRED.search(column) is not None


def spelled(kind: str) -> str:
    """A declared type as PostgreSQL's catalogue spells it."""
    return _SPELLED.get(kind, kind)


def _columns(connection: psycopg.Connection, schema: str, table: str) -> dict[str, tuple[str, bool]]:
    """(type, whether it is not null) of the columns of a table, in order; empty when there is no such table."""
    relation = sql.Identifier(schema, table).as_string(connection)
    return {column: (spelled(kind), is_required) for column, kind, is_required
            in fetch(connection, _COLUMNS, (relation,))}


def _run(connection: psycopg.Connection, template: str, *parts: sql.Composable) -> None:
    fetch(connection, sql.SQL(template).format(*parts).as_string(connection))


_RETIRED = re.compile(
    r"__(text|date|boolean|smallint|integer|bigint|double_precision|numeric(_\d+_\d+)?|jsonb?"
    r"|timestamp_with(out)?_time_zone)\Z")
_COLUMNS = """
select attname::text, format_type(atttypid, atttypmod), attnotnull
from pg_attribute
where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
order by attnum
"""
