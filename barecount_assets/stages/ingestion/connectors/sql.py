"""Rows of a SQL database: a table or a query, whole or incremental on a column.

PostgreSQL is read through ADBC, which streams binary COPY into Arrow; any other database through the
SQLAlchemy dialect that its DSN names. Either way the transaction is read-only, and rows come in one order, so
that the same content gives the same row numbers.

A value fits a contract's type when it, written as text, would: 7.10 fits numeric(18,1), 7.15 does not, and a
text column may hold numbers. What does not fit rejects its row, kept as a JSON object.

Incremental: `discover` fixes the slice (stored cursor, highest value] and `read` of that unit gives the same
rows however often it is asked. A row that is committed later with a cursor value at or below the stored one
is not seen: the cursor column must only grow (an identity column, or a time written at commit).
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from psycopg import sql

from barecount_assets.stages.ingestion.clocks import INSTANT, WALL, walls_of
from barecount_assets.stages.ingestion.connectors.parquet import cast_exact
from barecount_assets.stages.ingestion.connectors.references import Lookup, References
from barecount_assets.stages.ingestion.json_texts import Number, json_text
from barecount_assets.stages.ingestion.parsing import (
    Column,
    assemble,
    check,
    json_objects,
    refuse_names,
    shown,
    text_column,
)
from barecount_assets.stages.ingestion.records import (
    ExtractorSchema,
    Field,
    ObservedSchema,
    ParsedBatch,
    Unit,
    Window,
)
from resources.governance.sources import SqlSource
from resources.runtime.errors import BareCountError, ErrorCode

_LISTED = 20  # names listed in an error
_DATE = pa.date32()


@dataclass(frozen=True)
class _SourceColumn:
    """One column of the source: the database's name of its type, whether it may be null and its comment, where the
    database tells.
    """

    name: str
    type: str | None
    nullable: bool | None = None
    comment: str | None = None


@dataclass(frozen=True)
class _Slice:
    """Rows with `after < cursor <= through`, as text; `after` None: from the beginning.

    `kind` names the type that the text is of.
    """

    after: str | None
    through: str
    kind: str


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows: the contract's fields, undeclared columns as JSON objects, and any row as one."""

    length: int
    columns: list[Column]
    extra: pa.StringArray | None
    payload: Callable[[int], bytes]

    def payloads(self, positions: np.ndarray) -> list[bytes]:
        """The rows at some positions as JSON objects: what "the record as received" can mean for a table."""
        return [self.payload(position) for position in positions.tolist()]


class _Database(Protocol):
    """An open read-only transaction on the source."""

    columns: list[_SourceColumn]

    def high_water(self, after: str | None) -> _Slice | None:
        """The slice after the cursor; None when it is empty. Raises source.malformed on null cursors."""
        ...

    def rows(self, part: _Slice | None, schema: ExtractorSchema) -> Iterator[_Rows]:
        """All rows, or those of a slice, in stable order."""
        ...


class SqlConnector:
    """Reads one table or query. Dates of the window do not apply: units are undated.

    Args:
        source: what to read, as declared.
        lookup: where references are looked up.
    """

    def __init__(self, source: SqlSource, *, lookup: Lookup = Lookup()) -> None:  # noqa: B008  # has no state
        self._source = source
        self._lookup = lookup

    def discover(self, window: Window, cursor: str | None) -> list[Unit]:
        """One unit: the whole source, or the slice after the cursor; none when no row is newer.

        Raises BareCountError: source.unavailable (retryable), source.unreadable (credentials, grants),
        source.not_found (table or column, with what exists), source.malformed (the cursor column holds nulls
        or an infinite value), declaration.invalid (the query does not run).
        """
        name = self._source.table or "query"
        with self._open() as (database, where):
            if self._source.cursor_column is None:
                return [Unit(source_id=name, uri=f"{where}#{name}")]
            part = database.high_water(cursor)
        if part is None:
            return []
        return [
            Unit(
                source_id=f"{name}[{self._source.cursor_column}:{part.after or ''}..{part.through}]",
                uri=f"{where}#{name}",
                cursor=part.through,
                options={"after": part.after, "kind": part.kind},
            )
        ]

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        """The source's columns in order, with the database's own type names, nullability and hints in comments.

        A comment gives hints as `unit: EUR` or `format: yyyy-MM-dd`, several of them apart by semicolons.
        """
        with self._open() as (database, _):
            columns = tuple(database.columns)
        types = tuple(column.type for column in columns if column.type is not None)
        return ObservedSchema(
            tuple(column.name for column in columns),
            types if len(types) == len(columns) else None,
            nullable=tuple(column.nullable for column in columns),
            hints=tuple(_hints(column.comment or "") for column in columns),
        )

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        """Stream the unit's rows; the transaction is open until the last batch or until `close`.

        Raises BareCountError as `discover` does, and source.unavailable when the connection is lost half way.
        """
        part = None
        if unit.cursor is not None:
            part = _Slice(unit.options["after"], unit.cursor, unit.options["kind"])
        before = 0
        with self._open() as (database, where):
            refuse_names([column.name for column in database.columns], schema, where, _subject(self._source))
            for rows in database.rows(part, schema):
                parsed = np.arange(rows.length)
                yield assemble(
                    schema,
                    rows.columns,
                    rows.extra,
                    parsed=parsed,
                    received=rows.length,
                    before=before,
                    faults=check(schema, rows.columns, parsed),
                    payload=rows.payloads,
                )
                before += rows.length

    @contextmanager
    def _open(self) -> Iterator[tuple[_Database, str]]:
        """A transaction on a source that has the declared columns, and where that is, without secrets."""
        references = References(self._lookup)
        url = _url(self._source.dsn, references)
        where = _describe(url)
        opened = _postgres if url.get_backend_name() == "postgresql" else _other
        with opened(self._source, url, where, references) as database:
            _require_columns(self._source, where, [column.name for column in database.columns])
            yield database, where


def _hints(comment: str) -> tuple[tuple[str, str], ...]:
    """Hints in a column's comment."""
    found = dict(re.findall(r"(?:^|;)\s*(unit|format)\s*[:=]\s*([^;]+?)\s*(?=;|$)", comment))
    return tuple(sorted(found.items()))


# --- declared -----------------------------------------------------------------------------------------------


def _url(dsn: str, references: References) -> sa.URL:
    """The DSN with its references resolved; a value within it is percent-encoded.

    Raises BareCountError declaration.invalid without quoting the DSN: it may hold a password anywhere.
    """
    try:
        url = sa.make_url(references.resolve(dsn, lambda value: quote(value, safe="")))
        backend = url.get_backend_name()
    except (sa.exc.ArgumentError, ValueError):
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            "the source's dsn is not a database URL",
            hint="write dialect://user:${secret://name#password}@host:port/database, or a reference for all of it",
        ) from None
    references.hide(str(url.password or ""))
    return url.set(drivername="postgresql") if backend in ("postgresql", "postgres") else url


def _describe(url: sa.URL) -> str:
    """`dialect://host:port/database`: no user, password or option."""
    host = url.host or str(url.query.get("host", ""))
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()}://{host}{port}/{url.database or ''}"


def _subject(source: SqlSource) -> str:
    return f"table {source.table}" if source.table else "the query"


def _query(source: SqlSource) -> str:
    """The declared SELECT, to stand in parentheses; the line break ends a comment on its last line."""
    return f"{(source.query or '').strip().rstrip(';')}\n"


def _require_columns(source: SqlSource, where: str, names: Sequence[str]) -> None:
    """Raise source.not_found for a declared column that is not there, declaration.invalid for twins."""
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            f"{_subject(source)} in {where} has more than one column named {', '.join(twins)}",
            hint="give each column of the query a name of its own",
        )
    declared = [*([source.cursor_column] if source.cursor_column else []), *source.order_by]
    missing = [name for name in declared if name not in names]
    if missing:
        raise BareCountError(
            ErrorCode.SOURCE_NOT_FOUND,
            f"{_subject(source)} in {where} has no column {', '.join(missing)}; it has {_listed(names)}",
            hint="correct cursor_column or order_by; names are compared exactly, case included",
            details={"missing": missing, "columns": list(names)},
        )


def _no_such_table(
    source: SqlSource, where: str, tables: Sequence[str], said: str | None = None
) -> BareCountError:
    subject = _subject(source)
    found = f"{where} cannot run {subject}: {said}" if said else f"{where} has no {subject}"
    return BareCountError(
        ErrorCode.SOURCE_NOT_FOUND,
        f"{found}; tables there: {_listed(tables)}",
        hint="names are compared exactly, case included; the user may lack the right to see the schema",
        details={"tables": list(tables[:100])},
    )


def _unfit_cursor(source: SqlSource, where: str, found: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_MALFORMED,
        f"cursor column {source.cursor_column} of {_subject(source)} in {where} holds {found}",
        hint="declare a column that is never null and only grows, or none to read all rows every time",
    )


_NULLS = "nulls: those rows would never be read"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more


# --- values -------------------------------------------------------------------------------------------------


def _trimmed(text: pa.StringArray) -> pa.StringArray:
    """Numbers without the zeros that end their fraction: they tell of the column, not of the value."""
    return pc.replace_substring_regex(
        pc.replace_substring_regex(text, r"\A(-?[0-9]+)\.0+\z", r"\1"),
        r"\A(-?[0-9]+\.[0-9]*[1-9])0+\z",
        r"\1",
    )


def _json_object(members: Iterable[tuple[str, str]]) -> bytes:
    """A JSON object of names and JSON texts."""
    texts = (f"{json.dumps(name, ensure_ascii=False)}:{value}" for name, value in members)
    return f"{{{','.join(texts)}}}".encode()


def is_nested(type_name: str) -> bool:
    """Whether a type of a database holds objects or arrays: `jsonb`, `_int4`, `JSON`, `VARCHAR[]`."""
    return bool(re.match(r"_|jsonb?\Z|array\b|.*\[\]\Z", type_name, re.IGNORECASE))


def column_again(field: Field, values: Sequence[Any], type_name: str) -> Column:
    """A field of rows that were kept as JSON, judged as the source's own rows are: by the text of each value.

    Args:
        values: JSON values as `json_texts` parses them.
        type_name: the source's type of the column; empty where the database does not tell.
    """
    if field.json:
        texts = [value if type(value) is str and not _is_scalar(type_name) else _json_or_none(value)
                 for value in values]
        return text_column(field, pa.array(texts, pa.string()), len(values))
    texts = pa.array([_written(value, field.type, type_name) for value in values], pa.string())
    if field.format is None or _is_scalar(type_name):
        return text_column(replace(field, format=None), texts, len(values))
    own, typed = text_column(field, texts, len(values)), text_column(replace(field, format=None), texts, len(values))
    both = None if own.wrong is None or typed.wrong is None else own.wrong & typed.wrong
    return Column(pc.coalesce(own.values, typed.values), both, own.found)


def json_again(values: Sequence[Any], type_name: str) -> pa.StringArray:
    """The JSON texts of values that were kept as JSON."""
    return pa.array([json_text(value) for value in values], pa.string())


def _is_scalar(type_name: str) -> bool:
    """Whether a text of a column is a value and not the text of JSON, by PostgreSQL's name of the column's type.

    Text columns hold either, and other drivers (whose types are in capitals) give JSON as text.
    """
    return type_name != type_name.upper() and type_name not in _TEXTS and not is_nested(type_name)


def _json_or_none(value: Any) -> str | None:
    return None if value is None else json_text(value)


def _written(value: Any, type_: pa.DataType, type_name: str) -> str | None:
    """A JSON value as the text that reading its source would have judged."""
    if value is None or type(value) is str and type_ not in (_DATE, WALL):
        return value
    if type(value) is str:
        if type_ == _DATE:  # of a text both would be no value of the type
            return re.sub(r"[ T]00:00:00\Z", "", value) if re.match("(?i)timestamp|datetime", type_name) else value
        return f"{value} 00:00:00" if type_name.lower() == "date" and " " not in value else value
    if type(value) is Number and type_ != pa.string():
        plain = str.__str__(value) if type_name in _NUMBERS else format(Decimal(str.__str__(value)), "f")
        return _trimmed(pa.array([plain], pa.string()))[0].as_py()
    return json_text(value)


# --- PostgreSQL, through ADBC -------------------------------------------------------------------------------

_PRIMARY_KEY = """
select a.attname
  from pg_index i
 cross join unnest(i.indkey::int2[]) with ordinality as k(attnum, position)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
 where i.indrelid = to_regclass($1) and i.indisprimary
 order by k.position
"""

# Of a table, as a query has no attributes of its own. A view's columns may always be null: that says nothing.
_ATTRIBUTES = """
select a.attname::text, case when c.relkind in ('r', 'p', 'f') then not a.attnotnull end,
       col_description(a.attrelid, a.attnum)
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid
 where a.attrelid = to_regclass(nullif($1, '')) and a.attnum > 0 and not a.attisdropped
"""

_TABLES = """
select format('%s.%s', n.nspname, c.relname)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'v', 'm', 'f', 'p')
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
 order by 1
"""

# Settings that the text of a value depends on, and the ends of the slice. The ends are bound here and read
# back by current_setting(): a statement with parameters cannot be a COPY, and without COPY the driver holds
# the whole result in memory.
_SESSION = """
select set_config('datestyle', 'ISO, YMD', true), set_config('timezone', 'UTC', true),
       set_config('intervalstyle', 'iso_8601', true), set_config('bytea_output', 'hex', true),
       set_config('extra_float_digits', '1', true),
       set_config('barecount.after', $1, true), set_config('barecount.through', $2, true)
"""

_HIGH_WATER = """
select (select {cursor}::text from {source} where {cursor} is not null and {after}
         order by {cursor} desc limit 1),
       exists (select 1 from {source} where {cursor} is null)
"""  # not max(), which some types with an order lack: uuid, boolean

_TEXTS = frozenset({"text", "varchar", "bpchar", "name"})
_NUMBERS = frozenset({"int2", "int4", "int8", "float4", "float8", "numeric", "money", "oid"})
_IN_ARROW = {  # contract types, and the types that travel to them as they are
    pa.int32(): {"int2", "int4"},
    pa.int64(): {"int2", "int4", "int8"},
    pa.bool_(): {"bool"},
}
_INSTANTS = {  # contract types, and the expression by which a type travels to them
    (_DATE, "date"): "{column}",
    (WALL, "date"): "{column}::timestamp",
    (WALL, "timestamp"): "{column}",
    (INSTANT, "date"): "{column}::timestamp",
    (INSTANT, "timestamp"): "{column}",
    **{(type_, "timestamptz"): "({column} at time zone 'UTC')" for type_ in (_DATE, WALL, INSTANT)},
}
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class _Postgres:
    """`_Database` over one ADBC connection."""

    def __init__(self, source: SqlSource, connection: Any, where: str) -> None:
        self._declared = source
        self._connection = connection
        self._where = where
        self._relation = None
        if source.table:
            relation = sql.Identifier(*source.table.split("."))
            self._relation = relation.as_string(None)
            self._source = sql.SQL("{} as source").format(relation)
            if self._row("select to_regclass($1)::text", self._relation)[0] is None:
                raise _no_such_table(source, where, _tables(connection))
        else:
            self._source = sql.SQL("({}) as source").format(sql.SQL(_query(source)))
        self._cursor = _of_source(source.cursor_column or "")
        with connection.cursor() as cursor:
            arrow = cursor.adbc_execute_schema(self._sql("select * from {source}"))
            cursor.execute(_ATTRIBUTES, (self._relation or "",))
            stated = {name: (nullable, comment) for name, nullable, comment in cursor.fetchall()}
        self.columns = [
            _SourceColumn(f.name, f.metadata[b"POSTGRESQL:type"].decode(), *stated.get(f.name, (None, None)))
            for f in arrow
        ]

    def high_water(self, after: str | None) -> _Slice | None:
        kind = next(c.type for c in self.columns if c.name == self._declared.cursor_column) or ""
        self._bind(after, None)
        high, nulls = self._row(self._sql(_HIGH_WATER, cursor=self._cursor, after=self._after(after, kind)))
        if nulls:
            raise _unfit_cursor(self._declared, self._where, _NULLS)
        if high is None:
            return None
        if high in ("infinity", "Infinity", "NaN"):
            raise _unfit_cursor(self._declared, self._where, f"{high}: no later row could be newer")
        return _Slice(after, high, kind)

    def rows(self, part: _Slice | None, schema: ExtractorSchema) -> Iterator[_Rows]:
        fields = {field.source_name: field for field in schema.fields}
        carriers = [_Carrier(column, fields.get(column.name)) for column in self.columns]
        condition: sql.Composable = sql.SQL("true")
        if part:
            condition = sql.SQL(
                "{after} and {cursor} <= current_setting('barecount.through')::{kind}"
            ).format(
                after=self._after(part.after, part.kind), cursor=self._cursor, kind=sql.Identifier(part.kind)
            )
        self._bind(part and part.after, part and part.through)
        statement = self._sql(
            "select {terms} from {source} where {condition} order by {order}",
            terms=sql.SQL(", ").join(term for carrier in carriers for term in carrier.terms()),
            condition=condition,
            order=sql.SQL(", ").join(self._order()),
        )
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            with cursor.fetch_record_batch() as reader:
                for batch in _batches(reader):
                    yield _arrow_rows(batch, carriers, schema)

    def _order(self) -> Iterator[sql.Composable]:
        """ORDER BY terms: cursor, then declared columns, else the key, else the row as text in byte order."""
        if self._declared.cursor_column:
            yield self._cursor
        names: Sequence[str] = self._declared.order_by
        if not names and self._relation:
            with self._connection.cursor() as cursor:
                cursor.execute(_PRIMARY_KEY, (self._relation,))
                names = [name for (name,) in cursor.fetchall()]
        if names:
            yield from map(_of_source, names)
        else:
            everything = sql.SQL(", ").join(_of_source(column.name) for column in self.columns)
            yield sql.SQL('row({})::text collate "C"').format(everything)

    def _after(self, after: str | None, kind: str) -> sql.Composable:
        if after is None:
            return sql.SQL("true")
        compared = sql.SQL("{} > current_setting('barecount.after')::{}")
        return compared.format(self._cursor, sql.Identifier(kind))

    def _bind(self, after: str | None, through: str | None) -> None:
        self._row(_SESSION, after or "", through or "")

    def _row(self, statement: str, *parameters: str) -> tuple[Any, ...]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchone()

    def _sql(self, template: str, **parts: sql.Composable) -> str:
        return sql.SQL(template).format(source=self._source, **parts).as_string(None)


def _of_source(column: str) -> sql.Identifier:
    """A column of the source. ORDER BY would take a bare name for that of a term, and order by its text."""
    return sql.Identifier("source", column)


@dataclass(frozen=True)
class _Carrier:
    """How one column travels: in Arrow where both sides mean the same by it, else as PostgreSQL's own text.

    An instant takes two terms. Arrow has no infinity and the platform no year 0 or 10000, so the second term
    holds the text of what the first cannot.
    """

    column: _SourceColumn
    field: Field | None

    @property
    def _in_arrow(self) -> bool:
        return self.field is not None and self.column.type in _IN_ARROW.get(self.field.type, ())

    @property
    def _nested(self) -> bool:
        return is_nested(self.column.type or "")

    @property
    def _instant(self) -> str | None:
        return _INSTANTS.get((self.field.type, self.column.type)) if self.field else None

    def terms(self) -> list[sql.Composable]:
        """Terms of the select list."""
        name = _of_source(self.column.name)
        if self.field is None:
            return [sql.SQL("coalesce(to_json({})::text, 'null')").format(name)]
        if self.field.json:
            return [name if self.column.type in _TEXTS else sql.SQL("to_json({})::text").format(name)]
        if self._nested:  # the second term is for a refused row: from an array's own text no JSON can be made
            return [sql.SQL("{}::text").format(name), sql.SQL("to_json({})::text").format(name)]
        if self._instant:
            known = sql.SQL("{} >= '0001-01-01' and {} < '10000-01-01'").format(name, name)
            carried = sql.SQL(self._instant).format(column=name)
            return [
                sql.SQL("case when {} then {} end").format(known, carried),
                sql.SQL("case when not ({}) then {}::text end").format(known, name),
            ]
        if self._in_arrow or self.column.type in _TEXTS:
            return [name]
        if self.column.type == "money":  # its text depends on the locale
            return [sql.SQL("{}::numeric::text").format(name)]
        return [sql.SQL("{}::text").format(name)]

    def parsed(self, arrays: Sequence[pa.Array]) -> Column:
        """The contract's column. `arrays` holds one per term."""
        assert self.field is not None
        values, field = arrays[0], self.field
        if self._instant:
            if self.column.type == "timestamptz":
                values = values.cast(INSTANT)
            cast = cast_exact(values, field.type, field.time_zone)
            wrong = arrays[1].is_valid() if cast.null_count == values.null_count else pc.or_(
                arrays[1].is_valid(), pc.and_(values.is_valid(), cast.is_null()))
            return Column(cast, wrong.to_numpy(zero_copy_only=False), lambda index: shown(self._said(arrays, index)))
        if self._in_arrow:
            return Column(values.cast(field.type), None, str)
        if field.type != pa.string() and not field.json:
            if self.column.type in _NUMBERS:
                values = _trimmed(values)
            if field.type == _DATE and self.column.type == "timestamp":
                values = pc.replace_substring_regex(values, r" 00:00:00\z", "")
            if self.column.type not in _TEXTS:  # a declared format is that of texts
                field = replace(field, format=None)
        return text_column(field, values, len(values))

    def _said(self, arrays: Sequence[pa.Array], row: int) -> Any:
        """The value: text, or what Arrow carried; an instant with its offset, which alone makes it one."""
        value = next((v for array in arrays if (v := array[row].as_py()) is not None), None)
        if isinstance(value, dt.date):
            return f"{value}+00:00" if self.column.type == "timestamptz" else str(value)
        return value

    def json(self, arrays: Sequence[pa.Array], row: int) -> str:
        """The value as JSON text."""
        value = self._said(arrays, row)
        if self.field is None:
            return str(value)
        if self.field.json and self.column.type not in _TEXTS or self._nested:
            return arrays[-1][row].as_py() or "null"
        if self.column.type in _NUMBERS and _JSON_NUMBER.fullmatch(str(value)):
            return str(value)
        return json.dumps(value, ensure_ascii=False, default=str)


def _arrow_rows(batch: pa.RecordBatch, carriers: Sequence[_Carrier], schema: ExtractorSchema) -> _Rows:
    """A batch with the carriers' terms as columns."""
    arrays = iter(batch.columns)
    carried = {
        carrier.column.name: (carrier, [next(arrays) for _ in carrier.terms()]) for carrier in carriers
    }

    def parsed(field: Field) -> Column:
        if field.source_name not in carried:
            return Column(pa.nulls(batch.num_rows, field.type), None, str)
        carrier, own = carried[field.source_name]
        return carrier.parsed(own)

    def payload(row: int) -> bytes:
        return _json_object((name, carrier.json(own, row)) for name, (carrier, own) in carried.items())

    return _Rows(
        batch.num_rows,
        [parsed(field) for field in schema.fields],
        json_objects({name: own[0] for name, (carrier, own) in carried.items() if carrier.field is None}),
        payload,
    )


class _BrokenStream(Exception):
    """What libpq said when the result ended early."""


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The reader's batches that hold rows. Raises `_BrokenStream` for Arrow's several types of it."""
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise _BrokenStream(str(error)) from error
        if batch.num_rows:
            yield batch


def _tables(connection: Any) -> list[str]:
    """Names of the tables and views outside the system schemas."""
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        return [name for (name,) in cursor.fetchall()]


@contextmanager
def _postgres(source: SqlSource, url: sa.URL, where: str, references: References) -> Iterator[_Postgres]:
    """A repeatable-read, read-only transaction; driver errors within become BareCountErrors."""
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi as adbc

    timeout = {"connect_timeout": str(source.connect_timeout_seconds)}
    try:
        connection = adbc.connect(
            url.set(query={**timeout, **url.query}).render_as_string(hide_password=False)
        )
    except adbc_driver_manager.Error as error:
        # Not chained, here and below: the driver's own text may hold what was redacted.
        raise _refused(where, references.redact(_said(error))) from None
    try:
        with connection.cursor() as cursor:
            cursor.execute("set transaction isolation level repeatable read, read only")
        yield _Postgres(source, connection, where)
    except (adbc_driver_manager.Error, _BrokenStream) as error:
        state, said = getattr(error, "sqlstate", None) or "", references.redact(_said(error))
        if state in ("42P01", "3F000"):
            connection.rollback()
            raise _no_such_table(source, where, _tables(connection), said) from None
        raise _postgres_failed(source, where, state, said) from None
    finally:
        connection.close()


def _said(error: Exception) -> str:
    """What the server or libpq said, without the statement and the driver's wrapping."""
    text = re.sub(r"\n\nQuery was: .*", "", str(error), flags=re.DOTALL)
    text = re.sub(r"^.*?(ERROR|FATAL|Failed to connect):\s*", "", text, flags=re.DOTALL)
    return " ".join(text.split())[:400]


def _refused(where: str, said: str) -> BareCountError:
    """Error of an attempt to connect, which carries no SQLSTATE: by its words."""
    if re.search(
        r"authentication failed|role .* does not exist|no password supplied|pg_hba|access denied", said, re.I
    ):
        return BareCountError(
            ErrorCode.SOURCE_UNREADABLE,
            f"{where} refused the login: {said}",
            hint="check the user and the password that the dsn refers to",
        )
    if re.search(r"database .* does not exist|unknown database", said, re.I):
        return BareCountError(
            ErrorCode.SOURCE_NOT_FOUND, f"{where}: {said}", hint="correct the dsn's database"
        )
    if re.search(r"invalid (URI|connection option)|invalid .* value", said):
        return BareCountError(
            ErrorCode.DECLARATION_INVALID, f"{where}: {said}", hint="correct the dsn's options"
        )
    return BareCountError(
        ErrorCode.SOURCE_UNAVAILABLE,
        f"{where} cannot be reached: {said}",
        hint="check that the database runs and that the network profile reaches it",
        retryable=True,
    )


def _postgres_failed(source: SqlSource, where: str, state: str, said: str) -> BareCountError:
    """Error of a statement or stream, by its SQLSTATE; a lost connection has none."""
    details = {"sqlstate": state} if state else {}
    if state == "42703":
        found, hint = f"{where} cannot run {_subject(source)}: {said}", "correct the query's columns"
        return BareCountError(ErrorCode.SOURCE_NOT_FOUND, found, hint=hint, details=details)
    if state == "42501":
        found, hint = (
            f"{where} does not let {_subject(source)} be read: {said}",
            "grant the dsn's user select",
        )
        return BareCountError(ErrorCode.SOURCE_UNREADABLE, found, hint=hint, details=details)
    if state[:2] in ("0A", "25", "42"):
        return _unsound(source, where, said, details)
    if state[:2] in ("08", "40", "53", "55", "57", "58") or re.search(r"connection|SSL SYSCALL", said):
        return _broken_off(source, where, said, details)
    return _not_computable(source, where, said, details)


def _unsound(source: SqlSource, where: str, said: str, details: Mapping[str, Any]) -> BareCountError:
    return BareCountError(
        ErrorCode.DECLARATION_INVALID,
        f"{where} cannot run {_subject(source)}: {said}",
        hint="a query is one SELECT that the source accepts; a cursor column needs a type with an order",
        details=details,
    )


def _broken_off(source: SqlSource, where: str, said: str, details: Mapping[str, Any]) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_UNAVAILABLE,
        f"reading {_subject(source)} in {where} broke off: {said}",
        hint="try again; nothing of the unit has landed",
        retryable=True,
        details=details,
    )


def _not_computable(source: SqlSource, where: str, said: str, details: Mapping[str, Any]) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_MALFORMED,
        f"reading {_subject(source)} in {where} failed: {said}",
        hint="the database cannot give one of the rows; correct the query or the data",
        details=details,
    )


# --- any other database, through SQLAlchemy -----------------------------------------------------------------

_READ_ONLY = {
    "sqlite": "pragma query_only = on",
    "mysql": "start transaction read only",
    "mariadb": "start transaction read only",
    "oracle": "set transaction read only",
}
"""What makes a transaction read-only. Other dialects rely on the SELECT and on the rollback at the end."""


class _Other:
    """`_Database` over one SQLAlchemy connection.

    Columns are selected without SQLAlchemy types, so that values arrive as the driver gives them: a type
    would raise for the whole result at one bad value.
    """

    def __init__(self, source: SqlSource, connection: sa.Connection, where: str) -> None:
        self._declared = source
        self._connection = connection
        self._where = where
        self._key: Sequence[str] = ()
        if source.table:
            *schemas, name = source.table.split(".")
            schema = schemas[0] if schemas else None
            inspector = sa.inspect(connection)
            if name not in [*inspector.get_table_names(schema), *inspector.get_view_names(schema)]:
                raise _no_such_table(source, where, _inspected_tables(connection))
            self.columns = [
                _SourceColumn(c["name"], str(c["type"]), c.get("nullable"), c.get("comment"))
                for c in inspector.get_columns(name, schema)
            ]
            self._key = inspector.get_pk_constraint(name, schema)["constrained_columns"]
            self._source: Any = sa.table(name, *(sa.column(c.name) for c in self.columns), schema=schema)
        else:
            # SQLAlchemy would take a colon before a word for a parameter.
            query = re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", _query(source))
            everything = sa.select(sa.text("*")).select_from(sa.text(f"({query}) source"))
            names = connection.execute(everything.where(sa.text("1 = 0"))).keys()
            self.columns = [_SourceColumn(name, None) for name in names]
            self._source = sa.text(query).columns(*map(sa.column, dict.fromkeys(names))).subquery("source")

    def high_water(self, after: str | None) -> _Slice | None:
        column = self._source.c[self._declared.cursor_column]
        if self._connection.execute(sa.select(column).where(column.is_(None)).limit(1)).first():
            raise _unfit_cursor(self._declared, self._where, _NULLS)
        high = self._connection.scalar(sa.select(sa.func.max(column)))
        if high is not None and after is not None:  # the cursor is of the type the column has
            low = _CURSORS[self._kind(high)].decode(after)
            high = self._connection.scalar(sa.select(sa.func.max(column)).where(column > low))
        if high is None:
            return None
        kind = self._kind(high)
        return _Slice(after, _CURSORS[kind].encode(high), kind)

    def rows(self, part: _Slice | None, schema: ExtractorSchema) -> Iterator[_Rows]:
        source, declared, names = self._source, self._declared, [column.name for column in self.columns]
        statement = sa.select(*source.c)
        if part:
            column, cursor = source.c[declared.cursor_column], _CURSORS[part.kind]
            statement = statement.where(column <= cursor.decode(part.through)).order_by(column)
            if part.after is not None:
                statement = statement.where(column > cursor.decode(part.after))
        statement = statement.order_by(*(source.c[name] for name in declared.order_by or self._key or names))
        options = {"stream_results": True, "max_row_buffer": declared.batch_rows}
        with self._connection.execute(statement, execution_options=options) as result:
            for rows in result.partitions(declared.batch_rows):
                yield _python_rows(dict(zip(names, zip(*rows, strict=True), strict=True)), len(rows), schema)

    def _kind(self, value: Any) -> str:
        kind = type(value).__name__
        if kind not in _CURSORS:
            found = f"values of type {kind}; allowed are {', '.join(_CURSORS)}"
            raise _unfit_cursor(self._declared, self._where, found)
        return kind


@dataclass(frozen=True)
class _CursorType:
    """Text of a cursor value, and back."""

    encode: Callable[[Any], str]
    decode: Callable[[str], Any]


_CURSORS = {
    "int": _CursorType(str, int),
    "float": _CursorType(repr, float),
    "str": _CursorType(str, str),
    "Decimal": _CursorType(str, Decimal),
    "datetime": _CursorType(dt.datetime.isoformat, dt.datetime.fromisoformat),
    "date": _CursorType(dt.date.isoformat, dt.date.fromisoformat),
}


def _python_rows(found: Mapping[str, Sequence[Any]], length: int, schema: ExtractorSchema) -> _Rows:
    """Rows from columns of driver values, by the source's names."""
    declared = {field.source_name for field in schema.fields}
    return _Rows(
        length,
        [_driver_column(field, found.get(field.source_name), length) for field in schema.fields],
        json_objects(
            {
                name: pa.array([_json(value) for value in values], pa.string())
                for name, values in found.items()
                if name not in declared
            }
        ),
        lambda row: _json_object((name, _json(values[row])) for name, values in found.items()),
    )


_AS_TEXT = (str, bytes, bytearray, memoryview, dt.date)  # of which only a text can be one of JSON


def _driver_column(field: Field, values: Sequence[Any] | None, length: int) -> Column:
    """The contract's column of driver values: each becomes text by itself, then all are parsed.

    A driver may mix types in a column, and a guess at their common one would change some: 1 beside 2.5.
    """
    if values is None:
        return text_column(field, None, length)
    if field.json:
        own = [None if value is None else _text(value, field) if isinstance(value, _AS_TEXT) else _json(value)
               for value in values]
        return text_column(field, pa.array(own, pa.string()), length)
    texts = pa.array([None if value is None else _text(value, field) for value in values], pa.string())
    if field.format is None:
        return text_column(field, texts, length)
    # A declared format is that of texts; typed instants are written in ISO 8601.
    written = pa.array([isinstance(value, str) for value in values])
    null = pa.scalar(None, pa.string())
    own = text_column(field, pc.if_else(written, texts, null), length)
    typed = text_column(replace(field, format=None), pc.if_else(written, null, texts), length)
    wrong = [column.wrong for column in (own, typed) if column.wrong is not None]
    return Column(
        pc.coalesce(own.values, typed.values),
        np.logical_or.reduce(wrong) if wrong else None,
        lambda index: shown(texts[index].as_py()),
    )


def _text(value: Any, field: Field | None = None) -> str:
    """A driver's value as text, in the way the contract's type writes it; text where there is none."""
    type_ = field.type if field else pa.string()
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case Decimal() | float() if type_ != pa.string() and math.isfinite(value):
            plain = format(value if isinstance(value, Decimal) else Decimal(repr(value)), "f")
            return plain.rstrip("0").rstrip(".") if "." in plain else plain
        case dt.datetime():
            if field and value.tzinfo and type_ in (_DATE, WALL):
                value = walls_of(pa.array([value.astimezone(dt.UTC)], INSTANT), field.time_zone)[0].as_py()
            if type_ == _DATE and value.time() == dt.time():
                return value.date().isoformat()
            return value.isoformat(" ")
        case dt.date():
            return f"{value} 00:00:00" if type_ in (WALL, INSTANT) else value.isoformat()
        case bytes() | bytearray() | memoryview():  # as PostgreSQL writes them
            return f"\\x{bytes(value).hex()}"
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _json(value: Any) -> str:
    """A driver's value as JSON text; what JSON has no type for as a string."""
    match value:
        case None | bool() | int() | str() | dict() | list():
            return json.dumps(value, ensure_ascii=False, default=str)
        case Decimal() | float() if math.isfinite(value):
            return str(value) if isinstance(value, float) else format(value, "f")
    return json.dumps(_text(value), ensure_ascii=False)


def _inspected_tables(connection: sa.Connection) -> list[str]:
    """Names of the tables and views of the DSN's schema."""
    inspector = sa.inspect(connection)
    return sorted([*inspector.get_table_names(), *inspector.get_view_names()])


@contextmanager
def _other(source: SqlSource, url: sa.URL, where: str, references: References) -> Iterator[_Other]:
    """A read-only transaction through SQLAlchemy; driver errors within become BareCountErrors."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        url = _existing_sqlite(url)
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            f"no driver for {url.drivername} is installed: {references.redact(str(error))}",
            hint="install the dialect's driver beside the platform, or correct the dsn",
        ) from None
    try:
        connection = engine.connect()
    except sa.exc.DBAPIError as error:
        raise _refused(where, references.redact(" ".join(str(error.orig).split())[:400])) from None
    with connection:
        try:
            if backend in _READ_ONLY:
                connection.execute(sa.text(_READ_ONLY[backend]))
            yield _Other(source, connection, where)
        except sa.exc.DBAPIError as error:
            raise _other_failed(source, where, connection, error, references) from None


def _existing_sqlite(url: sa.URL) -> sa.URL:
    """The URL with its file opened read-only: SQLite would create one that is missing."""
    if not url.database or not Path(url.database).is_file():
        raise BareCountError(
            ErrorCode.SOURCE_NOT_FOUND,
            f"there is no SQLite file {url.database}",
            hint="correct the dsn's path",
        )
    return url.set(
        database=f"file:{quote(str(Path(url.database).resolve()))}", query={"mode": "ro", "uri": "true"}
    )


def _other_failed(
    source: SqlSource, where: str, connection: sa.Connection, error: sa.exc.DBAPIError, references: References
) -> BareCountError:
    """Error of a statement: by its words where drivers class it differently, else by DB-API's classes."""
    said = references.redact(" ".join(str(error.orig).split())[:400])
    if re.search(r"no such (table|column)|not exist|doesn't exist|unknown column|ORA-009(42|04)", said, re.I):
        return _no_such_table(source, where, _inspected_tables(connection), said)
    if isinstance(error, sa.exc.ProgrammingError) or "syntax error" in said:
        return _unsound(source, where, said, {})
    if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) or error.connection_invalidated:
        return _broken_off(source, where, said, {})
    return _not_computable(source, where, said, {})
