"""Parquet: typed at the source, cast to the contract's types only where nothing is lost.

A value is accepted when the contract's type holds it exactly: wider integers and decimals always, narrower
ones if the value fits, a timestamp if it has no finer part than microseconds. One with a zone is an instant;
where the contract has a timestamp without, or a date, it is what the field's zone shows then. Only the step
from decimal or integer to double precision takes the nearest double, as text would. A float never becomes a
decimal, nor a string a number, nor a number a text: whether 7 is the code 007, nobody can say. Times of day,
durations and UUIDs, for which contracts have no type, are texts. Structs, lists and maps are JSON, and so may
be anything else. Columns are matched by name in any order; what the contract does not know goes to `_extra`.

A refused row is kept as one JSON object. Read again under other contracts, its values first become what the
file said they are, and then meet the contract as the file's own do (`column_again`).
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from barecount_assets.stages.ingestion import clocks
from barecount_assets.stages.ingestion.clocks import INSTANT, WALL
from barecount_assets.stages.ingestion.json_texts import Number, canonical, json_text
from barecount_assets.stages.ingestion.parsing import (
    BATCH_ROWS,
    VALID_UTF8,
    Column,
    assemble,
    check,
    json_objects,
    json_strings,
    parse_text,
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
    nothing = pa.nulls(batch.num_rows)
    columns = [typed_column(field, found.get(field.source_name, nothing)) for field in schema.fields]
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
    if isinstance(type_, pa.UuidType):
        digits = _encoded(values.storage, "hex")
        return pc.replace_substring_regex(digits, r"\A(.{8})(.{4})(.{4})(.{4})(.{12})\z", r"\1-\2-\3-\4-\5")
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
    if isinstance(type_, pa.JsonType):
        return pc.fill_null(values.storage.cast(pa.string()), "null")
    if pa.types.is_struct(type_):
        fields = {type_.field(index).name: json_values(_plain(child)) for index, child in enumerate(values.flatten())}
        return _or_null(values, json_objects(fields) or pa.array(["{}"] * len(values)))
    if pa.types.is_map(type_):
        return _map_values(values)
    if pa.types.is_fixed_size_list(type_):
        return json_values(values.cast(pa.list_(type_.value_type)))
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _list_values(values)
    if is_bytes(type_):
        return json_strings(_encoded(values, "base64"))
    return json_strings(_as_text(values))


def _list_values(values: pa.Array) -> pa.StringArray:
    elements = json_values(_plain(values.flatten()))
    counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    offsets = pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, elements), ",")
    return _or_null(values, pc.binary_join_element_wise("[", joined, "]", ""))


def _map_values(values: pa.MapArray) -> pa.StringArray:
    """Maps as JSON objects; a key that comes twice counts as it comes last, as Parquet says."""
    names, items = _as_text(_plain(values.keys)).to_pylist(), json_values(_plain(values.items)).to_pylist()
    bounds = values.offsets.to_pylist()
    texts = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        own = dict(zip(names[start:stop], items[start:stop], strict=True))
        texts.append(f"{{{','.join(f'{json_text(name)}:{own[name]}' for name in sorted(own))}}}")
    return _or_null(values, pa.array(texts, pa.string()))


def _or_null(values: pa.Array, texts: pa.StringArray) -> pa.StringArray:
    return pc.if_else(values.is_valid(), texts, "null") if values.null_count else texts


def _as_text(values: pa.Array) -> pa.StringArray:
    """Scalars as Arrow writes them; what it does not write, as Python does."""
    try:
        return values.cast(pa.string())
    except pa.ArrowNotImplementedError:
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())


def is_bytes(type_: pa.DataType) -> bool:
    """Whether values are bytes that are not said to be text."""
    types = pa.types
    return types.is_binary(type_) or types.is_large_binary(type_) or types.is_fixed_size_binary(type_) or (
        types.is_binary_view(type_))


def _encoded(values: pa.Array, encoding: str) -> pa.StringArray:
    import polars as pl

    series = pl.from_arrow(values.cast(pa.large_binary()))
    assert isinstance(series, pl.Series)
    return series.bin.encode(encoding).to_arrow().cast(pa.string())


# Rows read again ----------------------------------------------------------------------------------------


def column_again(field: Field, values: Sequence[object], type_name: str) -> Column:
    """A field of rows that were kept as JSON: its values, typed as the file said, held against the field."""
    array, wrong = typed(values, type_name)
    if field.json and _WRITTEN.match(type_name):
        texts = pc.if_else(array.is_valid(), json_strings(array), pa.scalar(None, pa.string()))
        return Column(texts, wrong, lambda index: shown(texts[index].as_py()))
    return typed_column(field, array, wrong)


def json_again(values: Sequence[object], type_name: str) -> pa.StringArray:
    """The JSON texts of values that were kept as JSON, as reading the file writes them."""
    return json_values(typed(values, type_name)[0])


def typed(values: Sequence[object], type_name: str) -> tuple[pa.Array, np.ndarray | None]:
    """JSON values as an array of a type that Parquet states, and which of them are none of it (None: all are).

    A type without a spelling of its own in JSON (nested ones) stays JSON.
    """
    type_ = _type_of(type_name)
    if type_ is None:
        texts = pa.array([None if value is None else json_text(value) for value in values], pa.string())
        return pa.ExtensionArray.from_storage(pa.json_(pa.string()), texts), None
    texts = [_spelled(value, type_) for value in values]
    try:
        result = _of_texts(pa.array(texts, pa.string()), type_)
    except pa.ArrowInvalid:  # an edited record: each value by itself
        result = pa.concat_arrays([_of_one(text, type_) for text in texts])
    if result.null_count == values.count(None):
        return result, None
    there = np.fromiter((value is not None for value in values), bool, len(values))
    return result, there & result.is_null().to_numpy(zero_copy_only=False)


def _spelled(value: object, type_: pa.DataType) -> str | None:
    """A JSON value as text, None where it is of another kind than the type has."""
    if type(value) is bool:
        return ("true" if value else "false") if pa.types.is_boolean(type_) else None
    number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    if type(value) is Number:
        return str.__str__(value) if number else None
    if type(value) is str and not pa.types.is_boolean(type_):
        return value if not number or value in _NOT_FINITE and pa.types.is_floating(type_) else None
    return None


_NOT_FINITE = ("nan", "inf", "-inf", "NaN", "Infinity", "-Infinity")


def _of_one(text: str | None, type_: pa.DataType) -> pa.Array:
    try:
        return _of_texts(pa.array([text], pa.string()), type_)
    except pa.ArrowInvalid:
        return pa.nulls(1, type_)


def _of_texts(texts: pa.StringArray, type_: pa.DataType) -> pa.Array:
    if is_bytes(type_):
        import polars as pl

        series = pl.from_arrow(texts)
        assert isinstance(series, pl.Series)
        return series.str.decode("base64", strict=False).to_arrow().cast(pa.large_binary())
    return texts.cast(type_)


_WRITTEN = re.compile(r"time(32|64)\[|duration\[|month_day_nano")
_WRAPPED = re.compile(r"dictionary<values=(.*), indices=.*>\Z")
_DECIMAL = re.compile(r"decimal(?:128|256)?\((\d+), (-?\d+)\)\Z")
_TIME = re.compile(r"timestamp\[(s|ms|us|ns)(, tz=.*)?\]\Z")
_SCALARS = {
    str(type_): type_ for type_ in (
        pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float32(),
        pa.float64(), pa.bool_(), pa.date32(), pa.date64(), pa.string(), pa.binary(), pa.large_binary())
} | {"large_string": pa.string(), "string_view": pa.string(), "halffloat": pa.float32(), "null": pa.string()}


def _type_of(name: str) -> pa.DataType | None:
    """The type whose values `_plain` makes of a stated one; None for types that JSON carries as they are."""
    wrapped = _WRAPPED.match(name)
    if wrapped:
        return _type_of(wrapped[1])
    number, time = _DECIMAL.match(name), _TIME.match(name)
    if number:
        precision, scale = int(number[1]), int(number[2])
        return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    if time:
        return pa.timestamp(time[1], "UTC" if time[2] else None)
    if name.startswith("fixed_size_binary["):
        return pa.binary()
    return _SCALARS.get(name, pa.string() if _WRITTEN.match(name) or name.startswith("extension<arrow.uuid") else None)


# Types --------------------------------------------------------------------------------------------------


def typed_column(field: Field, values: pa.Array, wrong: np.ndarray | None = None) -> Column:
    """A field from typed values; `wrong` are those that were none of their own type."""
    cast = _as_json(values) if field.json else cast_exact(values, field.type, field.time_zone)
    if cast.null_count != values.null_count:
        unfit = pc.and_(values.is_valid(), cast.is_null()).to_numpy(zero_copy_only=False)
        wrong = unfit if wrong is None else wrong | unfit

    def found(index: int) -> str:
        text = json_values(values.slice(index, 1))[0].as_py()
        return f"{_short(values.type)} {shown(text.strip(chr(34)))}"

    return Column(cast, wrong, found)


def _short(type_: pa.DataType) -> str:
    return re.sub(r"<.*", "", str(type_))


def _as_json(values: pa.Array) -> pa.StringArray:
    """Any values as JSON texts: a text is one already, or is wrong; null where there is none."""
    if pa.types.is_string(values.type):
        return parse_text(Field("", "", pa.string(), json=True), values)
    if isinstance(values.type, pa.JsonType):
        return pa.array([canonical(text) for text in values.storage.to_pylist()], pa.string())
    return pc.if_else(values.is_valid(), json_values(values), pa.scalar(None, pa.string()))


def cast_exact(values: pa.Array, type_: pa.DataType, time_zone: str | None = None) -> pa.Array:
    """The values in a contract's type; null where it does not hold them (see the module for the rules).

    `time_zone` is that of the field, see `Field`.
    """
    types, given = pa.types, values.type
    given_number = types.is_integer(given) or (types.is_decimal(given) and not types.is_decimal256(given))
    if given == type_:
        return values
    if types.is_null(given):
        return pa.nulls(len(values), type_)
    if types.is_string(type_) and is_bytes(given):
        texts = values.cast(pa.large_binary())
        return _only(texts, pc.match_substring_regex(texts, VALID_UTF8)).cast(type_)
    if types.is_string(type_) and (types.is_time(given) or types.is_duration(given) or types.is_interval(given)):
        return _as_text(values)
    if types.is_decimal256(given) and (types.is_decimal(type_) or types.is_integer(type_) or types.is_floating(type_)):
        plain = pc.replace_substring_regex(values.cast(pa.string()), r"\A(-?[0-9]+)\.0*\z", r"\1")
        return parse_text(Field("", "", type_), pc.replace_substring_regex(plain, r"(\.[0-9]*[1-9])0+\z", r"\1"))
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
