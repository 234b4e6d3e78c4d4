"""Parquet: typed at the source, cast to the contract's types only where nothing is lost.

A value is accepted when the contract's type holds it exactly: wider integers and decimals always, narrower
ones if the value fits, a timestamp if it has no finer part than microseconds. One with a zone is an instant;
where the contract has a timestamp without, or a date, it is what the field's zone shows then. Only the step
from decimal or integer to double precision takes the nearest double, as text would. A float never becomes a
decimal, nor a string a number. Columns are matched by name in any order; what the contract does not know goes
to `_extra`.
"""

from __future__ import annotations

import base64
import decimal
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from barecount_assets.stages.ingestion import clocks
from barecount_assets.stages.ingestion.clocks import INSTANT, WALL
from barecount_assets.stages.ingestion.parsing import (
    BATCH_ROWS,
    VALID_UTF8,
    Column,
    assemble,
    check,
    json_objects,
    json_strings,
    refuse_names,
    shown,
)
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field, ObservedSchema, ParsedBatch
from resources.runtime.errors import BareCountError, ErrorCode

_BATCH_BYTES = 32 << 20


@dataclass(frozen=True)
class ParquetFormat:
    """Parquet has no dialect."""

    def observe(self, file: pa.NativeFile, where: str) -> ObservedSchema:
        """Names, Arrow types and field metadata in the file's footer.

        That a field may be null says nothing, as writers state it unasked; that it may not is the source's word.
        """
        schema = _open(file, where).schema_arrow
        return ObservedSchema(
            tuple(schema.names),
            tuple(map(str, schema.types)),
            nullable=tuple(None if field.nullable else False for field in schema),
            hints=tuple(_hints(field.metadata or {}) for field in schema),
        )

    def read(
        self, file: pa.NativeFile, schema: ExtractorSchema, where: str, *, batch_rows: int = BATCH_ROWS
    ) -> Iterator[ParsedBatch]:
        """Stream the rows.

        Raises:
            BareCountError: source.malformed for a file that is truncated, damaged or no Parquet, that names
                a column twice or shares no name with the contract.
        """
        parquet = _open(file, where)
        names = parquet.schema_arrow.names
        if not parquet.metadata.num_rows:
            return
        refuse_names(names, schema, where, "schema")
        before = 0
        for batch in _batches(parquet, _rows_per_batch(parquet, batch_rows), where):
            yield _parse(batch, schema, before)
            before += batch.num_rows
        if before != parquet.metadata.num_rows:
            raise _malformed(
                where, f"its footer promises {parquet.metadata.num_rows} rows, {before} are there"
            )


def _hints(metadata: Mapping[bytes, bytes]) -> tuple[tuple[str, str], ...]:
    """What a field's metadata says of its meaning, under the keys `unit` and `format`."""
    found = ((name, metadata.get(name.encode())) for name in ("format", "unit"))
    return tuple((name, value.decode(errors="replace")) for name, value in found if value is not None)


def _open(file: pa.NativeFile, where: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _failure(error, where) from error


def _batches(parquet: pq.ParquetFile, rows: int, where: str) -> Iterator[pa.RecordBatch]:
    batches = parquet.iter_batches(batch_size=rows)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise _failure(error, where) from error
        if batch is None:
            return
        if batch.num_rows:
            yield batch


def _failure(error: Exception, where: str) -> Exception:
    """What an error of Arrow's reader means: damaged contents and failed reads alike are OSErrors."""
    failed_read = isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error))
    return error if failed_read else _malformed(where, str(error).splitlines()[0])


def _malformed(where: str, why: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_MALFORMED,
        f"{where}: not a complete Parquet file: {why}",
        hint="Have the file delivered again; a writer still at work leaves such files.",
    )


def _rows_per_batch(parquet: pq.ParquetFile, most: int) -> int:
    """Rows that take about `_BATCH_BYTES`: wide rows come in smaller batches."""
    groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
    bytes_per_row = max(group.total_byte_size / max(group.num_rows, 1) for group in groups)
    return max(1, min(most, int(_BATCH_BYTES / max(bytes_per_row, 1))))


def _parse(batch: pa.RecordBatch, schema: ExtractorSchema, before: int) -> ParsedBatch:
    found = dict(zip(batch.schema.names, map(_plain, batch.columns), strict=True))
    columns = [_column(field, found.get(field.source_name), batch.num_rows) for field in schema.fields]
    declared = {field.source_name for field in schema.fields}
    parsed = np.arange(batch.num_rows)
    return assemble(
        schema,
        columns,
        json_objects({name: json_values(values) for name, values in found.items() if name not in declared}),
        parsed=parsed,
        received=batch.num_rows,
        before=before,
        faults=check(schema, columns, parsed),
        payload=lambda rows: _json_rows(found, rows),
    )


def _json_rows(columns: dict[str, pa.Array], rows: np.ndarray) -> list[bytes]:
    """The rows at some positions as JSON objects: what "the record as received" can mean for Parquet."""
    texts = json_objects({name: json_values(values.take(pa.array(rows))) for name, values in columns.items()})
    return [text.encode() for text in texts.to_pylist()]


def _plain(values: pa.Array) -> pa.Array:
    """The same values without the types that only say how they are stored, or which zone to show them in."""
    type_ = values.type
    if pa.types.is_dictionary(type_):
        return _plain(values.dictionary_decode())
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return values.cast(pa.string())
    if pa.types.is_timestamp(type_) and type_.tz:  # instants are stored in UTC whatever the zone
        return values.cast(pa.timestamp(type_.unit, "UTC"))
    return values


def json_values(values: pa.Array) -> pa.StringArray:
    """Each value as JSON text: numbers as numbers, not-a-number and everything JSON lacks as strings."""
    type_ = values.type
    if pa.types.is_string(type_):
        return json_strings(values)
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_) or pa.types.is_time(type_):
        return json_strings(values.cast(pa.string()))
    if pa.types.is_boolean(type_) or pa.types.is_integer(type_) or pa.types.is_decimal(type_):
        return pc.fill_null(values.cast(pa.string()), "null")
    if pa.types.is_floating(type_):
        text = values.cast(pa.string())
        return pc.if_else(pc.fill_null(pc.is_finite(values), False), text, json_strings(text))
    return pa.array(
        [json.dumps(value, default=_json_default, sort_keys=True) for value in values.to_pylist()],
        pa.string(),
    )


def _json_default(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


# Types --------------------------------------------------------------------------------------------------


def _column(field: Field, values: pa.Array | None, length: int) -> Column:
    if values is None:
        return Column(pa.nulls(length, field.type), None, str)
    cast = cast_exact(values, field.type, field.time_zone)
    wrong = None
    if cast.null_count != values.null_count:
        wrong = pc.and_(values.is_valid(), cast.is_null()).to_numpy(zero_copy_only=False)

    def found(index: int) -> str:
        text = json_values(values.slice(index, 1))[0].as_py()
        return f"{values.type} {shown(text.strip(chr(34)))}"

    return Column(cast, wrong, found)


def cast_exact(values: pa.Array, type_: pa.DataType, time_zone: str | None = None) -> pa.Array:
    """The values in a contract's type; null where it does not hold them (see the module for the rules).

    `time_zone` is that of the field, see `Field`.
    """
    types, given = pa.types, values.type
    given_number = types.is_integer(given) or (types.is_decimal(given) and not types.is_decimal256(given))
    if given == type_:
        return values
    if types.is_string(type_) and (types.is_binary(given) or types.is_large_binary(given)):
        return _only(values, pc.match_substring_regex(values, VALID_UTF8)).cast(type_)
    if types.is_floating(type_) and (given_number or types.is_floating(given)):
        return values.cast(type_, safe=False)
    if types.is_integer(type_) and types.is_floating(given):
        return _float_to_integer(values, type_)
    if given_number and (types.is_integer(type_) or types.is_decimal(type_)):
        return _exact_number(values, type_)
    if types.is_timestamp(given) and given.tz:
        instants = cast_exact(values.cast(pa.int64()).cast(pa.timestamp(given.unit)), WALL).cast(INSTANT)
        return instants if type_ == INSTANT else cast_exact(clocks.walls_of(instants, time_zone), type_)
    if type_ == INSTANT:
        walls = cast_exact(values, WALL)
        return pa.nulls(len(values), type_) if time_zone is None else clocks.instants_of(walls, time_zone)
    if given in _TICKS_PER_DAY and type_ in _TICKS_PER_DAY:
        return _instant(values, type_)
    return pa.nulls(len(values), type_)


def _only(values: pa.Array, mask: pa.BooleanArray) -> pa.Array:
    return pc.if_else(mask, values, pa.scalar(None, values.type))


def _float_to_integer(values: pa.Array, type_: pa.DataType) -> pa.Array:
    values = values.cast(pa.float64())
    bound = float(1 << (type_.bit_width - 1))
    whole = pc.and_(pc.is_finite(values), pc.equal(pc.trunc(values), values))
    fits = pc.and_(whole, pc.and_(pc.greater_equal(values, -bound), pc.less(values, bound)))
    return _only(values, fits).cast(type_, safe=False)


_FRAME = pa.decimal256(76, 38)  # holds every integer and every decimal of 38 digits exactly


def _exact_number(values: pa.Array, type_: pa.DataType) -> pa.Array:
    scale = type_.scale if pa.types.is_decimal(type_) else 0
    if pa.types.is_integer(values.type) and pa.types.is_decimal(type_) and scale <= _SPARE_DIGITS:
        values = values.cast(pa.decimal128(38, scale))  # Arrow judges the types here, not the values
    try:
        return values.cast(type_)  # nearly always all of them fit
    except pa.ArrowInvalid:
        values = _in_frame(values)
    if pa.types.is_decimal(type_):
        most = 10 ** (type_.precision - scale) - 1
        least = -most
    else:
        most = (1 << type_.bit_width - 1) - 1
        least = -most - 1
    whole = pc.round(values, ndigits=0, round_mode="towards_zero")
    in_range = pc.and_(pc.greater_equal(whole, _in_frame(least)), pc.less_equal(whole, _in_frame(most)))
    exact = pc.equal(pc.round(values, ndigits=scale, round_mode="towards_zero"), values)
    return _only(values, pc.and_(in_range, exact)).cast(type_)


_FRAME = pa.decimal256(76, 38)  # holds every integer and every decimal of 38 digits exactly
_SPARE_DIGITS = 18  # of decimal128 beside the 20 of the largest integer


def _in_frame(values: pa.Array | int) -> pa.Array | pa.Scalar:
    if isinstance(values, int):
        return pa.scalar(decimal.Decimal(values), _FRAME)
    if pa.types.is_integer(values.type):
        values = values.cast(pa.decimal128(20, 0))
    return values.cast(_FRAME)


_TICKS_PER_DAY = {
    pa.date32(): 1,
    pa.date64(): 86_400_000,
    pa.timestamp("s"): 86_400,
    pa.timestamp("ms"): 86_400_000,
    pa.timestamp("us"): 86_400_000_000,
    pa.timestamp("ns"): 86_400_000_000_000,
}


def _instant(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Dates and timestamps in another unit, null where a remainder or the range would be lost."""
    storage = pa.int32() if values.type == pa.date32() else pa.int64()
    ticks = pc.fill_null(values.cast(storage), 0).to_numpy().astype(np.int64)
    given, wanted = _TICKS_PER_DAY[values.type], _TICKS_PER_DAY[type_]
    if given >= wanted:
        result, rest = np.divmod(ticks, given // wanted)
        fits = rest == 0
    else:
        factor = wanted // given
        fits = np.abs(ticks) <= np.iinfo(np.int64).max // factor
        result = np.where(fits, ticks, 0) * factor
    target = np.int32 if type_ == pa.date32() else np.int64
    fits &= result == result.astype(target)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    return pa.array(result.astype(target), mask=missing | ~fits).cast(type_)
