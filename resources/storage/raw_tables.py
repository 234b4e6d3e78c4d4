"""Raw tables in PostgreSQL: what the raw store holds, loaded by binary COPY, and rebuildable from it.

One table per dataset, `raw.<namespace>__<name>`: the contract's columns between the stamps `_batch_id`, `_row_number`
and `_tenant_id`, `_extra`. The batch number leads to everything else a row is stamped with (run, schema hash, contract
version, source id) in `platform.raw_batch`; the view `raw.<namespace>__<name>__stamped` spells it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import arrow_copy

SCHEMA = "raw"
# The index on `_batch_id` is kept up row by row: it would read over every column before it.
_FIRST_STAMPS = (("_batch_id", "bigint not null"), ("_row_number", "bigint not null"))
_LAST_STAMPS = (("_tenant_id", "text not null"), ("_extra", "text"))
STAMPS = (*_FIRST_STAMPS, *_LAST_STAMPS)


def table_name(dataset: str) -> str:
    """`namespace.name` as a table name."""
    return dataset.replace(".", "__")


def ensure(connection: psycopg.Connection, dataset: str, columns: Sequence[tuple[str, str]]) -> None:
    """Create the dataset's table and view, or give it the columns and types that a newer contract version brought.

    Args:
        columns: (name, PostgreSQL type) of the contract's columns, in order.

    Raises:
        BareCountError: store.conflict when the new type of a column does not hold what is stored.
    """
    name = table_name(dataset)
    if _columns_of(connection, name).items() >= dict(columns).items():
        return
    table = sql.Identifier(SCHEMA, name)
    view = sql.Identifier(SCHEMA, f"{name}__stamped")
    with connection.transaction():
        # Two tenants may bring a dataset's first rows at the same moment.
        fetch(connection, "select pg_advisory_xact_lock(hashtextextended($1, 0))", (f"{SCHEMA}.{name}",))
        existing = _columns_of(connection, name)
        if not existing:
            definitions = sql.SQL(", ").join(
                sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind))
                for column, kind in (*_FIRST_STAMPS, *columns, *_LAST_STAMPS)
            )
            _run(connection, sql.SQL("create table {} ({})").format(table, definitions))
            _run(connection, sql.SQL("create index on {} using brin (_batch_id)").format(table))
        else:
            _run(connection, sql.SQL("drop view if exists {}").format(view))
            for column, kind in columns:
                identifier, type_ = sql.Identifier(column), sql.SQL(kind)
                if column not in existing:
                    _run(connection, sql.SQL("alter table {} add column {} {}").format(table, identifier, type_))
                elif existing[column] != kind:
                    _change_type(connection, dataset, column, existing[column], kind)
        _run(connection, sql.SQL(
            "create view {} as select r.*, b.source_id as _source_id, b.partition_date as _partition_date, "
            "b.load_date as _load_date, b.run_token as _run_token, b.schema_hash as _schema_hash, "
            "b.contract_version as _contract_version, b.is_current as _is_current "
            "from {} r join platform.raw_batch b on b.batch_id = r._batch_id"
        ).format(view, table))


def _columns_of(connection: psycopg.Connection, name: str) -> dict[str, str]:
    """Types of the table's columns, as contracts write them; empty when there is no table."""
    return dict(fetch(
        connection,
        "select attname::text, case atttypid when 'timestamp'::regtype then 'timestamp' when 'timestamptz'::regtype "
        "then 'timestamptz' else format_type(atttypid, atttypmod) end "
        "from pg_attribute where attrelid = to_regclass($1) and attnum > 0 and not attisdropped",
        (f"{SCHEMA}.{name}",),
    ))


def _change_type(connection: psycopg.Connection, dataset: str, column: str, old: str, new: str) -> None:
    """Cast a column, by way of text, if every value of it is one of the new type.

    Which instant a time without an offset is, or on whose clock an instant is to be shown, no stored value tells.
    """
    parts = {
        "table": sql.Identifier(SCHEMA, table_name(dataset)), "column": sql.Identifier(column), "type": sql.SQL(new),
        "name": sql.Literal(new),
    }
    unfit = fetch(connection, sql.SQL(_unfit(old, new)).format(**parts).as_string(connection))[0][0]
    if unfit:
        raise BareCountError(
            ErrorCode.STORE_CONFLICT,
            f"column {column} of {dataset} is {old} and shall be {new}, but {unfit} stored values are none of it",
            hint=f"declare a type that holds both (text does), or a new column beside {column}"
            + _ABOUT_INSTANTS * ("timestamptz" in (old, new)),
        )
    _run(connection, sql.SQL(_CHANGE_TYPE).format(**parts))


def _unfit(old: str, new: str) -> str:
    """The statement that counts values that the new type does not hold."""
    if (old, new) in (("timestamptz", "timestamp"), ("timestamptz", "date"), ("timestamp", "timestamptz"),
                      ("date", "timestamptz")):
        return _ANY
    if new == "double precision" and (old == "bigint" or old.startswith("numeric")):
        return _NOT_EXACT
    return _WITHOUT_OFFSET if new == "timestamptz" else _UNFIT


_ABOUT_INSTANTS = "; timestamptz is a point in time, and the others do not say in which zone they are"
_UNFIT = "select count(*) from {table} where not pg_input_is_valid({column}::text, {name})"
_ANY = "select count({column}) from {table}"
_NOT_EXACT = (
    "select count(*) from {table} where {column}::double precision::text::numeric <> {column}::numeric"
)
_WITHOUT_OFFSET = (
    "select count(*) from {table} where not pg_input_is_valid({column}::text, {name}) "
    "or {column}::text !~ ':[0-9.]+ ?(Z|UTC|[+-][0-9:]+)$'"
)
_CHANGE_TYPE = "alter table {table} alter column {column} type {type} using {column}::text::{type}"


def count_unfit(connection: psycopg.Connection, dataset: str, column: str, kind: str) -> int:
    """Values stored in a column that are none of a type; 0 where there is no such column yet."""
    stored = _columns_of(connection, table_name(dataset)).get(column)
    if stored in (None, kind):
        return 0
    parts = {"table": sql.Identifier(SCHEMA, table_name(dataset)), "column": sql.Identifier(column),
             "name": sql.Literal(kind)}
    return fetch(connection, sql.SQL(_unfit(stored, kind)).format(**parts).as_string(connection))[0][0]


def append(
    connection: psycopg.Connection, dataset: str, tenant_id: str, batch_id: int, batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
) -> None:
    """COPY the rows of one batch in, in the connection's transaction. Memory is that of one record batch."""
    constants = (pa.scalar(tenant_id), pa.scalar(batch_id))
    stamped = pa.schema([*schema, ("_tenant_id", pa.string()), ("_batch_id", pa.int64())])

    def with_stamps() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield pa.RecordBatch.from_arrays(
                [*batch.columns, *(pa.repeat(value, batch.num_rows) for value in constants)], schema=stamped)

    arrow_copy.append(connection, SCHEMA, table_name(dataset), stamped, with_stamps())


def append_quarantine(
    connection: psycopg.Connection, rejects: Iterable[pa.RecordBatch], constants: Mapping[str, Any]
) -> None:
    """COPY refused records into `platform.quarantine`; `constants` are the columns all of them share."""
    rejects = iter(rejects)
    first = next(rejects)
    types = {name: pa.int64() if isinstance(value, int) else pa.string() for name, value in constants.items()}
    schema = pa.schema([*first.schema, *(pa.field(name, kind) for name, kind in types.items())])

    def with_constants() -> Iterator[pa.RecordBatch]:
        batch: pa.RecordBatch | None = first
        while batch is not None:
            filled = [pa.repeat(pa.scalar(constants[name], kind), batch.num_rows) for name, kind in types.items()]
            yield pa.RecordBatch.from_arrays([*batch.columns, *filled], schema=schema)
            batch = next(rejects, None)

    arrow_copy.append(connection, "platform", "quarantine", schema, with_constants())


def count_rows(connection: psycopg.Connection, dataset: str, batch_ids: Sequence[int]) -> int:
    """Rows stored for the given batches."""
    statement = sql.SQL("select count(*) from {} where _batch_id = any($1)").format(
        sql.Identifier(SCHEMA, table_name(dataset))
    )
    return fetch(connection, statement.as_string(connection), (list(batch_ids),))[0][0]


def delete_statement(dataset: str) -> str:
    """Statement that removes the rows of batch `$1`, to load them again from the raw store."""
    statement = sql.SQL("delete from {} where _batch_id = $1").format(sql.Identifier(SCHEMA, table_name(dataset)))
    return statement.as_string(None)


def _run(connection: psycopg.Connection, statement: sql.Composable) -> None:
    fetch(connection, statement.as_string(connection))
