"""Queries of an analyst: all rows of an answer, in batches, as values or as a file that others read.

An answer is held by a cursor in PostgreSQL and read in batches, so that memory stays bounded however long it is.
Nothing is left out: who shows less than all asks for the number of rows.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

import psycopg

from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["json", "ndjson", "csv", "parquet", "arrow"]
FORMATS: tuple[str, ...] = get_args(Format)
BATCH_ROWS = 10_000
_LONGEST_DECIMAL = 38
_CURSOR = "barecount_answer"


class Answer:
    """The answer to one query.

    Attributes:
        names: of its columns.
        total: its rows.
    """

    def __init__(self, cursor: psycopg.Cursor[Any], total: int) -> None:
        self._cursor = cursor
        self.names = [column.name for column in cursor.description or ()]
        self.total = total

    def batches(self) -> Iterator[list[tuple[Any, ...]]]:
        """All rows from the first on, however often it is asked."""
        self._cursor.scroll(0, mode="absolute")
        while rows := self._cursor.fetchmany(BATCH_ROWS):
            yield rows

    def arrow_schema(self) -> pa.Schema:
        """Arrow types of the columns; of numbers without a declared scale the one that holds every value.

        Raises:
            BareCountError: usage for a number that has more than 38 digits.
        """
        import pyarrow as pa

        unscaled = [i for i, column in enumerate(self._cursor.description or ()) if _is_unscaled(column)]
        scales = dict.fromkeys(unscaled, 0)
        if unscaled:
            for rows in self.batches():
                for i in unscaled:
                    found = (-row[i].as_tuple().exponent for row in rows if row[i] is not None and row[i].is_finite())
                    scales[i] = max(scales[i], *found, 0)
        return pa.schema(
            [
                (column.name, _arrow_type(column, scales.get(i)))
                for i, column in enumerate(self._cursor.description or ())
            ]
        )


@contextmanager
def answer(connection: psycopg.Connection[Any], query: str) -> Iterator[Answer]:
    """Run one query of an analyst, in a transaction that ends with the block.

    Raises:
        BareCountError: access.denied, usage for what PostgreSQL refuses.
    """
    try:
        with connection.transaction():
            cursor = _declared(connection, query)
            cursor.scroll(0, mode="absolute")
            total = _rows_of(connection, cursor)
            yield Answer(cursor, total)
    except psycopg.errors.InsufficientPrivilege as error:
        raise BareCountError(
            ErrorCode.ACCESS_DENIED,
            str(error).strip().splitlines()[0],
            hint="analysts read the tables of schema published; \\d lists them",
        ) from error
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise BareCountError(ErrorCode.USAGE, str(error).strip(), hint="correct the statement") from error


def _declared(connection: psycopg.Connection[Any], query: str) -> psycopg.Cursor[Any]:
    """A cursor over the answer: the server's, or, of statements that have none (`show`, `explain`), the client's."""
    try:
        with connection.transaction():
            cursor = connection.cursor(_CURSOR, scrollable=True)
            cursor.execute(query)  # type: ignore[arg-type]  # the analyst's own text, with the analyst's own rights
            return cursor
    except psycopg.errors.SyntaxError:
        plain = connection.cursor()
        plain.execute(query)  # type: ignore[arg-type]
        if plain.description is None:
            raise BareCountError(
                ErrorCode.USAGE, f"{plain.statusmessage} answers nothing", hint="ask for rows, with select"
            ) from None
        return plain


def _rows_of(connection: psycopg.Connection[Any], cursor: psycopg.Cursor[Any]) -> int:
    if not isinstance(cursor, psycopg.ServerCursor):
        return cursor.rowcount
    with connection.cursor() as moving:
        moving.execute(f"move forward all in {_CURSOR}")
        return int((moving.statusmessage or "MOVE 0").split()[1])


# Writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Writer:
    """How an answer is written; `binary` needs a file or a pipe."""

    write: Callable[[Answer, IO[Any]], None]
    binary: bool


def write(found: Answer, kind: Format, target: IO[Any]) -> None:
    """Write all rows to an open stream: text for json, ndjson and csv, bytes for parquet and arrow (IPC stream).

    Numbers keep every digit, in JSON as text where they are decimals; dates and times are ISO 8601; bytes are
    hexadecimal.
    """
    _WRITERS[kind].write(found, target)


def is_binary(kind: Format) -> bool:
    """Whether a format is written as bytes."""
    return _WRITERS[kind].binary


def save(found: Answer, kind: Format, path: Path) -> None:
    """Write all rows to a file, which appears once it is whole.

    Raises:
        BareCountError: usage when the folder is not there or cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        if is_binary(kind):
            with unfinished.open("wb") as target:
                write(found, kind, target)
        else:
            with unfinished.open("w", encoding="utf-8", newline="") as text:
                write(found, kind, text)
        unfinished.replace(path)
    except OSError as error:
        raise BareCountError(
            ErrorCode.USAGE,
            f"{path} cannot be written: {error.strerror or error}",
            hint="name a file in a folder that you may write to",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write_json(found: Answer, target: IO[str]) -> None:
    target.write("[")
    separator = "\n  "
    for line in _json_lines(found):
        target.write(separator + line)
        separator = ",\n  "
    target.write("\n]\n" if found.total else "]\n")


def _write_ndjson(found: Answer, target: IO[str]) -> None:
    for line in _json_lines(found):
        target.write(line + "\n")


def _json_lines(found: Answer) -> Iterator[str]:
    for rows in found.batches():
        for row in rows:
            members = (
                f"{json.dumps(name, ensure_ascii=False)}: {_json(value)}"
                for name, value in zip(found.names, row, strict=True)
            )
            yield "{" + ", ".join(members) + "}"


def _json(value: Any) -> str:
    """A value as JSON. Decimals are texts: as numbers most readers would make floats of them, and lose digits."""
    return json.dumps(
        value if isinstance(value, _PLAIN) else _text(value), ensure_ascii=False, allow_nan=False, default=_text
    )


def _write_csv(found: Answer, target: IO[str]) -> None:
    writer = csv.writer(target)  # RFC 4180: CRLF, quotes doubled; a null is an empty field, an empty text is ""
    writer.writerow(found.names)
    for rows in found.batches():
        writer.writerows(
            [["" if v is None else v if isinstance(v, str | int) else _text(v) for v in row] for row in rows]
        )


def _text(value: Any) -> str:
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_text)
    return str(value)


def _write_parquet(found: Answer, target: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    schema = found.arrow_schema()
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in _arrow_batches(found, schema):
            writer.write_batch(batch)


def _write_arrow(found: Answer, target: IO[bytes]) -> None:
    import pyarrow as pa

    schema = found.arrow_schema()
    with pa.ipc.new_stream(target, schema) as writer:
        for batch in _arrow_batches(found, schema):
            writer.write_batch(batch)


def _arrow_batches(found: Answer, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for rows in found.batches():
        columns = zip(*rows, strict=True)
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(_as_arrow(values, field.type), field.type)
                for values, field in zip(columns, schema, strict=True)
            ],
            schema=schema,
        )


def _as_arrow(values: Sequence[Any], type_: pa.DataType) -> Sequence[Any]:
    import pyarrow as pa

    if pa.types.is_string(type_):
        return [value if value is None or isinstance(value, str) else _text(value) for value in values]
    return values


def _is_unscaled(column: psycopg.Column) -> bool:
    return column.type_code == _NUMERIC and column.scale is None


def _arrow_type(column: psycopg.Column, scale: int | None) -> pa.DataType:
    import pyarrow as pa

    if column.type_code == _NUMERIC:
        wanted = scale if column.scale is None else column.scale
        if wanted is None or wanted > _LONGEST_DECIMAL:
            raise BareCountError(
                ErrorCode.USAGE,
                f"column {column.name} has a number of more than {_LONGEST_DECIMAL} digits",
                hint="round it in the query, or take csv, json or ndjson",
            )
        return pa.decimal128(_LONGEST_DECIMAL if column.precision is None else column.precision, wanted)
    return {
        "bool": pa.bool_(),
        "int2": pa.int16(),
        "int4": pa.int32(),
        "int8": pa.int64(),
        "float4": pa.float32(),
        "float8": pa.float64(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", "UTC"),
        "bytea": pa.binary(),
    }.get(_type_name(column.type_code), pa.string())


def _type_name(oid: int) -> str:
    known = psycopg.adapters.types.get(oid)
    return known.name if known is not None and known.oid == oid else "text"  # arrays are known by their elements


_NUMERIC = psycopg.adapters.types["numeric"].oid
_PLAIN = (str, int, float, bool, type(None), list, dict)
_WRITERS: dict[str, _Writer] = {
    "json": _Writer(_write_json, False),
    "ndjson": _Writer(_write_ndjson, False),
    "csv": _Writer(_write_csv, False),
    "parquet": _Writer(_write_parquet, True),
    "arrow": _Writer(_write_arrow, True),
}
