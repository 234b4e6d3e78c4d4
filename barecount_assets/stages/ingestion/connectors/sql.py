"""Rows of a SQL database: a table or a query, whole or incremental on a column.

PostgreSQL is read through ADBC, which streams binary COPY into Arrow; any other database through the
SQLAlchemy dialect that its DSN names. Either way the transaction is read-only, and rows come in one order, so
that the same content gives the same row numbers.

A value fits a contract's type when it, written as text, would: 7.10 fits numeric(18,1), 7.15 does not, and a
text column may hold numbers. What does not fit rejects its row, kept as a JSON object.

Incremental: `discover` fixes the slice from the stored cursor, that value included and less the declared overlap, to
the highest value; rows without a cursor value are in every slice. What is read again is told from what is new by its
fingerprint (see `cursors`). Of a PostgreSQL table a slice also holds what was written by transactions that were not
over at the last reading, whatever its cursor values: a row keeps the number of the transaction that wrote it, and the
cursor remembers the oldest one that ran. Rows with the same cursor values come along, so that copies can be counted.
When the source went back (the highest value is below the stored one, another server, an older timeline) all of it is
read and compared.
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
from barecount_assets.stages.ingestion.fingerprints import Fingerprints, Measure, of_texts
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
    Cursor,
    ExtractorSchema,
    Field,
    ObservedSchema,
    ParsedBatch,
    Slice,
    Unit,
    Window,
)
from resources.governance.sources import SqlSource, seconds_of
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
    """Rows whose cursor is between two values, as text, and those that have none.

    Attributes:
        kind: names the type that the texts are of.
        low: the first value; None: from the beginning.
        through: the last value; None: no row has one.
        floor: rows up to this value were read by a release that kept no fingerprints, and stay out.
        late: rows written by this or a later transaction are there too, whatever their cursor.
    """

    kind: str
    low: str | None
    through: str | None
    floor: str | None = None
    late: int | None = None


@dataclass(frozen=True)
class _Plan:
    """A slice to read, what to remember of the source until the next one, and what a person should know."""

    part: _Slice
    memory: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows: the contract's fields, undeclared columns as JSON objects, and any row as one."""

    length: int
    columns: list[Column]
    extra: pa.StringArray | None
    payload: Callable[[int], bytes]
    texts: Mapping[str, pa.Array] | None = None  # all columns, for fingerprints

    def payloads(self, positions: np.ndarray) -> list[bytes]:
        """The rows at some positions as JSON objects: what "the record as received" can mean for a table."""
        return [self.payload(position) for position in positions.tolist()]


class _Database(Protocol):
    """An open read-only transaction on the source."""

    columns: list[_SourceColumn]

    def plan(self, cursor: Cursor | None) -> _Plan | None:
        """How to read on from the cursor; None of an empty source of which nothing was read."""
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

    def discover(self, window: Window, cursor: Cursor | None) -> list[Unit]:
        """One unit: the whole source, or the slice from the cursor on; none of an empty source.

        Raises BareCountError: source.unavailable (retryable), source.unreadable (credentials, grants),
        source.not_found (table or column, with what exists), source.malformed (the cursor column holds an infinite
        value, numbers as text, or values of another type than before), declaration.invalid (the query does not run,
        the overlap does not fit the cursor's type).
        """
        name = self._source.table or "query"
        with self._open() as (database, where):
            if self._source.cursor_column is None:
                return [Unit(source_id=name, uri=f"{where}#{name}")]
            plan = database.plan(cursor)
        if plan is None:
            return []
        after, reading = (cursor.value, cursor.reading) if cursor else (None, 0)
        through = plan.part.through
        # What a slice holds depends on what was read before: two of them never have one name.
        number = f"#{reading + 1}" if reading else ""
        return [
            Unit(
                source_id=f"{name}[{self._source.cursor_column}:{after or ''}..{through or ''}]{number}",
                uri=f"{where}#{name}",
                cursor=through or "",
                options={"part": plan.part},
                slice=Slice(Cursor(through, plan.part.kind, reading, plan.memory), plan.notes),
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
        part: _Slice | None = unit.options.get("part")
        before = 0
        with self._open() as (database, where):
            refuse_names([column.name for column in database.columns], schema, where, _subject(self._source))
            for rows in database.rows(part, schema):
                parsed = np.arange(rows.length)
                batch = assemble(
                    schema,
                    rows.columns,
                    rows.extra,
                    parsed=parsed,
                    received=rows.length,
                    before=before,
                    faults=check(schema, rows.columns, parsed),
                    payload=rows.payloads,
                )
                yield batch if part is None else replace(batch, fingerprints=self._fingerprints(rows, part))
                before += rows.length

    def _fingerprints(self, rows: _Rows, part: _Slice) -> Fingerprints:
        assert rows.texts is not None and self._source.cursor_column is not None
        measure = _measure(part.kind, rows.texts[self._source.cursor_column])
        return of_texts(rows.texts, self._source.cursor_column, measure, ever=False)

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


def _unfit_cursor(source: SqlSource, where: str, found: str, hint: str | None = None) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_MALFORMED,
        f"cursor column {source.cursor_column} of {_subject(source)} in {where} holds {found}",
        hint=hint or "declare a column that only grows, or none to read all rows every time",
    )


_NUMBER_KINDS = frozenset({
    "int2", "int4", "int8", "float4", "float8", "numeric", "money", "oid", "int", "float", "Decimal"})
_TIME_KINDS = frozenset({"date", "timestamp", "timestamptz", "datetime"})
_TEXT_KINDS = frozenset({"text", "varchar", "bpchar", "name", "str"})


def _family(kind: str) -> str:
    """Kinds whose values can be compared with each other."""
    families = {"numbers": _NUMBER_KINDS, "dates or timestamps": _TIME_KINDS, "texts": _TEXT_KINDS}
    return next((name for name, kinds in families.items() if kind in kinds), kind)


def _measure(kind: str, values: pa.Array) -> Measure:
    """What values of the kind are measured in. Instants of the years 1 to 9999 are in the order of their texts."""
    if kind in _NUMBER_KINDS and kind != "money":
        return "number"
    if kind in _TEXT_KINDS:
        return "text"
    if kind in _TIME_KINDS:
        ordinary = pc.match_substring_regex(values, r"\A[0-9]{4}-[^B]*\z")
        return "text" if pc.all(ordinary, min_count=0).as_py() else "none"
    return "none"


def _floor(cursor: Cursor | None) -> str | None:
    """The value up to which a release that kept no fingerprints read."""
    if cursor is None:
        return None
    floor = cursor.memory.get("floor")
    return cursor.value if floor is None and cursor.kind is None else floor


def _overlap(source: SqlSource, kind: str) -> float:
    """The declared overlap, in the numbers of a numeric cursor, in seconds of one in time.

    Raises BareCountError declaration.invalid where the cursor's type has none.
    """
    family, overlap = _family(kind), source.overlap
    if family == "dates or timestamps" or not overlap:
        return seconds_of(overlap)
    if family == "numbers" and not isinstance(overlap, str):
        return overlap
    raise BareCountError(
        ErrorCode.DECLARATION_INVALID,
        f"overlap of source {source.name} is {overlap!r}, and its cursor column {source.cursor_column} is {kind}",
        hint="a number goes with a numeric cursor, a duration or seconds with dates and timestamps, none with text",
    )


def _require_family(source: SqlSource, where: str, cursor: Cursor, kind: str) -> None:
    """Raise source.malformed when stored and found values cannot be compared."""
    if cursor.kind is not None and _family(cursor.kind) != _family(kind):
        raise _unfit_cursor(
            source, where, f"values of type {kind} now; the last one read, {cursor.value}, is of type {cursor.kind}",
            f"`barecount sources cursor PIPELINE {source.name} --reset --reason WHY` reads all of it and keeps what is "
            "new; or declare a query that gives the column the type it had",
        )


def _numbers_as_text(source: SqlSource, where: str, high: str) -> BareCountError:
    return _unfit_cursor(
        source, where, f"numbers as text: {high!r} is behind longer ones, as texts are compared by code point",
        "declare a query that casts the column to a number; numbers of equal length, zeros first, would do too",
    )


_DIGITS = re.compile("[0-9]+")
_WENT_BACK = (
    "the highest {column} is {high}, below {value}, which was read before: all rows were compared with those read "
    "before, and reading goes on from {high}; rows that are gone cannot be seen here"
)
_OTHER_SERVER = (
    "the source is another server than at the last reading, or was restored: all rows were compared with those read "
    "before"
)


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
       set_config('barecount.low', $1, true), set_config('barecount.through', $2, true),
       set_config('barecount.floor', $3, true)
"""

_HIGH_WATER = """
select (select {cursor}::text from {source} where {cursor} is not null order by {ordered} desc limit 1),
       exists (select 1 from {source} where {cursor} is null)
"""  # not max(), which some types with an order lack: uuid, boolean

_IS_BELOW = "select {through} < {low}"

_LONGER_NUMBER = """
select exists (select 1 from {source} where length({cursor}) > {length} and {ordered} >= '0' and {ordered} < ':')
"""

_LOWERED = {  # the first value of a slice that overlaps the last one
    "date": "select ({low} - {days})::text",
    "timestamp": "select ({low} - make_interval(secs => {amount}))::text",
    "timestamptz": "select ({low} - make_interval(secs => {amount}))::text",
    "numeric": "select ({low} - {amount}::numeric)::text",
    "money": "select ({low} - {amount}::numeric::money)::text",
    "float4": "select ({low} - {amount}::float8)::float4::text",
    "float8": "select ({low} - {amount}::float8)::text",
}
_LEAST = {"int2": -(1 << 15), "int4": -(1 << 31), "int8": -(1 << 63), "oid": 0}

# Ordinary and partitioned tables and materialized views have rows that know the transaction that wrote them.
_SNAPSHOT = """
select txid_snapshot_xmin(txid_current_snapshot()), txid_snapshot_xmax(txid_current_snapshot()),
       case when has_function_privilege('pg_control_system()', 'execute')
            then (select system_identifier::text from pg_control_system()) end,
       case when has_function_privilege('pg_control_checkpoint()', 'execute')
            then (select timeline_id from pg_control_checkpoint()) end,
       exists (select 1 from pg_class where oid = to_regclass(nullif($1, '')) and relkind in ('r', 'p', 'm'))
"""

# A row knows 32 of its transaction's 64 bits; it is of the last 2^32 transactions, or so old that reading it once more
# does no harm. A part of a transaction (a savepoint's) has a number of its own, above that of the whole.
_LATE = """
source.xmin::text::bigint + {base} - case when source.xmin::text::bigint + {base} >= {next} then 4294967296 else 0 end
    >= {late}
"""

_ANY_LATE = "select exists (select 1 from {source} where {late} and {cursor} is not null and not ({from_low}))"

_PART = """
({cursor} is null or {ordered} <= {through})
and ({cursor} is null or ({from_low} and {above_floor}) or {late}
     or ({above_floor} and {cursor} in (select {cursor} from {source} where {late})))
"""

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

    def plan(self, cursor: Cursor | None) -> _Plan | None:
        kind = next(c.type for c in self.columns if c.name == self._declared.cursor_column) or ""
        declared, where = self._declared, self._where
        overlap = _overlap(declared, kind)
        self._bind()
        high, nulls = self._row(self._sql(_HIGH_WATER, ordered=self._ordered(kind)))
        if high in ("infinity", "Infinity", "NaN"):
            raise _unfit_cursor(declared, where, f"{high}: no later row could be newer")
        if high and kind in _TEXTS and _DIGITS.fullmatch(high) and self._row(
                self._sql(_LONGER_NUMBER, ordered=self._ordered(kind), length=sql.Literal(len(high))))[0]:
            raise _numbers_as_text(declared, where, high)
        value = cursor and cursor.value
        if high is None and not nulls and value is None:
            return None
        memory, late, other_server = self._snapshot(cursor)
        floor = _floor(cursor)
        if floor is not None:
            memory["floor"] = floor
        if cursor is None or value is None:
            return _Plan(_Slice(kind, None, high, floor), memory)
        if high is not None:
            _require_family(declared, where, cursor, kind)
        self._bind(value, high)
        if high is None or self._row(self._sql(_IS_BELOW, **self._ends(kind)))[0]:
            note = _WENT_BACK.format(column=declared.cursor_column, high=high or "gone", value=value)
            return _Plan(_Slice(kind, None, high, floor), memory, (note,))
        if other_server:
            return _Plan(_Slice(kind, None, high, floor), memory, (_OTHER_SERVER,))
        return _Plan(_Slice(kind, self._lowered(kind, value, overlap), high, floor, late), memory)

    def _snapshot(self, cursor: Cursor | None) -> tuple[dict[str, Any], int | None, bool]:
        """What to remember of this moment, from which transaction on rows are late, and whether those numbers are
        another server's than the remembered ones.
        """
        if self._declared.late_commits != "snapshot" or self._relation is None:
            return {}, None, False
        oldest, following, system, timeline, has_transactions = self._row(_SNAPSHOT, self._relation)
        if not has_transactions:
            return {}, None, False
        memory = {"oldest_transaction": oldest, "server": [system, timeline]}
        remembered = dict(cursor.memory) if cursor else {}
        if "oldest_transaction" not in remembered:
            return memory, None, False
        late = remembered["oldest_transaction"]
        return memory, late, remembered["server"] != memory["server"] or following < late

    def _lowered(self, kind: str, value: str, overlap: float) -> str:
        if not overlap:
            return value
        if kind in _LEAST:
            return str(max(_LEAST[kind], int(value) - math.ceil(overlap)))
        amounts = {"amount": sql.Literal(overlap), "days": sql.Literal(math.ceil(overlap / 86_400))}
        return self._row(self._sql(_LOWERED[kind], **self._ends(kind), **amounts))[0]

    def rows(self, part: _Slice | None, schema: ExtractorSchema) -> Iterator[_Rows]:
        fields = {field.source_name: field for field in schema.fields}
        carriers = [_Carrier(column, fields.get(column.name)) for column in self.columns]
        terms = [term for carrier in carriers for term in carrier.terms()]
        condition: sql.Composable = sql.SQL("true")
        self._bind(part and part.low, part and part.through, part and part.floor)
        if part:
            condition = self._condition(part)
            terms += [term for carrier in carriers for term in carrier.text_terms()]
        statement = self._sql(
            "select {terms} from {source} where {condition} order by {order}",
            terms=sql.SQL(", ").join(terms),
            condition=condition,
            order=sql.SQL(", ").join(self._order(part)),
        )
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            with cursor.fetch_record_batch() as reader:
                for batch in _batches(reader):
                    yield _arrow_rows(batch, carriers, schema, with_texts=part is not None)

    def _condition(self, part: _Slice) -> sql.Composable:
        never, always = sql.SQL("false"), sql.SQL("true")
        ends, ordered = self._ends(part.kind), self._ordered(part.kind)
        compared = sql.SQL("{} {} {}")
        from_low = always if part.low is None else compared.format(ordered, sql.SQL(">="), ends["low"])
        late: sql.Composable = never
        if part.late is not None:
            following = self._row("select txid_snapshot_xmax(txid_current_snapshot())")[0]
            late = sql.SQL(_LATE).format(
                base=sql.Literal(following >> 32 << 32), next=sql.Literal(following), late=sql.Literal(part.late))
            if not self._row(self._sql(_ANY_LATE, late=late, from_low=from_low))[0]:
                late = never
        return sql.SQL(_PART).format(
            source=self._source, cursor=self._cursor, ordered=ordered, late=late,
            through=ends["through"] if part.through is not None else sql.SQL("null"),
            from_low=from_low,
            above_floor=always if part.floor is None else compared.format(ordered, sql.SQL(">"), ends["floor"]),
        )

    def _order(self, part: _Slice | None) -> Iterator[sql.Composable]:
        """ORDER BY terms: cursor, then declared columns, else the key, else the row as text in byte order."""
        if part:
            yield self._ordered(part.kind)
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

    def _ordered(self, kind: str) -> sql.Composable:
        """The cursor column in the order in which its values are compared: texts by code point."""
        return sql.SQL('{} collate "C"').format(self._cursor) if kind in _TEXTS else self._cursor

    def _ends(self, kind: str) -> dict[str, sql.Composable]:
        """The ends of a slice as they were bound, in the cursor's type."""
        bound = sql.SQL("current_setting({})::{}")
        return {
            name: bound.format(sql.Literal(f"barecount.{name}"), sql.Identifier(kind))
            for name in ("low", "through", "floor")
        }

    def _bind(self, low: str | None = None, through: str | None = None, floor: str | None = None) -> None:
        self._row(_SESSION, low or "", through or "", floor or "")

    def _row(self, statement: str, *parameters: str) -> tuple[Any, ...]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchone()

    def _sql(self, template: str, **parts: sql.Composable) -> str:
        return sql.SQL(template).format(source=self._source, cursor=self._cursor, **parts).as_string(None)


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

    @property
    def _is_text(self) -> bool:
        return self.field is not None and self.column.type in _TEXTS

    def text_terms(self) -> list[sql.Composable]:
        """Terms for the column's own text, whatever the contract makes of it, where `terms` has it not."""
        return [] if self._is_text else [sql.SQL("{}::text").format(_of_source(self.column.name))]

    def text(self, arrays: Sequence[pa.Array], texts: Iterator[pa.Array]) -> pa.Array:
        """The column's own text; numbers without the zeros that tell of the column."""
        if self._is_text:
            return arrays[0]
        return _trimmed(next(texts)) if self.column.type in _NUMBERS else next(texts)

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


def _arrow_rows(
    batch: pa.RecordBatch, carriers: Sequence[_Carrier], schema: ExtractorSchema, *, with_texts: bool
) -> _Rows:
    """A batch with the carriers' terms as columns, and after them their texts."""
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
        {name: carrier.text(own, arrays) for name, (carrier, own) in carried.items()} if with_texts else None,
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

    def plan(self, cursor: Cursor | None) -> _Plan | None:
        declared, where = self._declared, self._where
        plain = self._source.c[declared.cursor_column]
        some = self._connection.scalar(sa.select(plain).where(plain.is_not(None)).limit(1))
        nulls = self._connection.execute(sa.select(plain).where(plain.is_(None)).limit(1)).first() is not None
        column = self._ordered(some)
        high = None if some is None else self._connection.scalar(sa.select(sa.func.max(column)))
        value = cursor and cursor.value
        if high is None and not nulls and value is None:
            return None
        kind = cursor.kind or "str" if high is None and cursor else self._kind("" if high is None else high)
        overlap = 0 if high is None else _overlap(declared, kind)
        longer = sa.select(plain).where(sa.func.length(column) > len(str(high)), column >= "0", column < ":").limit(1)
        if isinstance(high, str) and _DIGITS.fullmatch(high) and self._connection.scalar(longer):
            raise _numbers_as_text(declared, where, high)
        through = None if high is None else _CURSORS[kind].encode(high)
        floor = _floor(cursor)
        memory = {} if floor is None else {"floor": floor}
        if cursor is None or value is None:
            return _Plan(_Slice(kind, None, through, floor), memory)
        if high is not None:
            _require_family(declared, where, cursor, kind)
        last = _CURSORS[cursor.kind or kind].decode(value)
        if high is None or _comparable(high) < _comparable(last):
            note = _WENT_BACK.format(column=declared.cursor_column, high=through or "gone", value=value)
            return _Plan(_Slice(kind, None, through, floor), memory, (note,))
        low = _in_kind(_lowered(last, overlap), kind)
        return _Plan(_Slice(kind, _CURSORS[kind].encode(low), through, floor), memory)

    def _ordered(self, value: Any) -> Any:
        """The cursor column in the order in which its values are compared: texts by code point."""
        column = self._source.c[self._declared.cursor_column]
        collation = _BY_CODE_POINT.get(self._connection.dialect.name)
        return column.collate(collation) if isinstance(value, str) and collation else column

    def rows(self, part: _Slice | None, schema: ExtractorSchema) -> Iterator[_Rows]:
        source, declared, names = self._source, self._declared, [column.name for column in self.columns]
        statement = sa.select(*source.c)
        if part:
            plain, cursor = source.c[declared.cursor_column], _CURSORS[part.kind]
            column = self._ordered(part.through) if part.kind == "str" else plain
            within = sa.false() if part.through is None else column <= cursor.decode(part.through)
            if part.low is not None:
                within = within & (column >= cursor.decode(part.low))
            if part.floor is not None:
                within = within & (column > cursor.decode(part.floor))
            statement = statement.where(plain.is_(None) | within).order_by(column)
        statement = statement.order_by(*(source.c[name] for name in declared.order_by or self._key or names))
        options = {"stream_results": True, "max_row_buffer": declared.batch_rows}
        with self._connection.execute(statement, execution_options=options) as result:
            for rows in result.partitions(declared.batch_rows):
                columns = dict(zip(names, zip(*rows, strict=True), strict=True))
                yield _python_rows(columns, len(rows), schema, with_texts=part is not None)

    def _kind(self, value: Any) -> str:
        kind = type(value).__name__
        if kind not in _CURSORS:
            found = f"values of type {kind}; allowed are {', '.join(_CURSORS)}"
            raise _unfit_cursor(self._declared, self._where, found)
        return kind


_BY_CODE_POINT = {"sqlite": "BINARY", "mysql": "utf8mb4_bin", "mariadb": "utf8mb4_bin", "mssql": "Latin1_General_BIN2"}
"""Collations of dialects whose own may hold two texts for equal, or order them by language."""


def _comparable(value: Any) -> Any:
    """Dates beside timestamps, and timestamps with a zone beside those without, are compared as UTC."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value
    return dt.datetime.combine(value, dt.time()) if isinstance(value, dt.date) else value


def _in_kind(value: Any, kind: str) -> Any:
    """A value of the family in a kind of it, not above what it was: the column's type may have changed."""
    if kind == "int":
        return math.floor(value)
    if kind == "date" and isinstance(value, dt.datetime):
        return value.date()
    return _comparable(value) if kind == "datetime" and not isinstance(value, dt.datetime) else value


def _lowered(value: Any, overlap: float) -> Any:
    """A cursor value less the overlap: in its own numbers, or in seconds."""
    match value:
        case _ if not overlap:
            return value
        case int():
            return value - math.ceil(overlap)
        case Decimal():
            return value - Decimal(str(overlap))
        case float():
            return value - overlap
        case dt.datetime():
            return value - dt.timedelta(seconds=overlap)
        case dt.date():
            return value - dt.timedelta(days=math.ceil(overlap / 86_400))
    return value


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


def _python_rows(
    found: Mapping[str, Sequence[Any]], length: int, schema: ExtractorSchema, *, with_texts: bool = False
) -> _Rows:
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
        {
            name: pa.array([None if value is None else _plain_text(value) for value in values], pa.string())
            for name, values in found.items()
        } if with_texts else None,
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


def _plain_text(value: Any) -> str:
    """A driver's value as text; numbers without the zeros that tell of the column."""
    match value:
        case bool():
            return _text(value)
        case Decimal() | float() if math.isfinite(value):
            plain = format(value if isinstance(value, Decimal) else Decimal(repr(value)), "f")
            return plain.rstrip("0").rstrip(".") if "." in plain else plain
    return _text(value)


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
