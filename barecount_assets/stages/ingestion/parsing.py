"""From bytes to records, and from text to typed columns: exact, vectorised, without guessing.

What belongs here is shared by the text formats (and by any connector that receives text):

- `split_records` cuts a byte stream into blocks of whole records, whatever the size of its reads;
- `parse_text` turns a text column into a column of the contract's type, null where a value does not fit;
- `text_column` and `check` do so for the fields of a contract and name every fault;
- `assemble` puts rows and rejects into a `ParsedBatch`, and refuses to lose or duplicate a record.

A value is decided by itself alone: its neighbours, the block it lies in and the batch size never matter.
Nothing is trimmed, rounded or guessed. Formats know nothing of each other and live in `connectors/`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from barecount_assets.stages.ingestion import clocks
from barecount_assets.stages.ingestion.clocks import INSTANT, WALL
from barecount_assets.stages.ingestion.json_texts import canonical, shown
from barecount_assets.stages.ingestion.records import REJECT_SCHEMA, ROW_NUMBER, ExtractorSchema, Field, ParsedBatch
from resources.runtime.errors import BareCountError, ErrorCode

BLOCK_BYTES = 8 << 20
"""Bytes read at a time: large enough for vectorised work, small enough for a dozen copies to be cheap."""

BATCH_ROWS = 128 * 1024
"""Most records in one batch."""

MAX_RECORD_BYTES = 64 << 20
"""A longer record is a sign of a wrong delimiter or an unclosed quote, and would unbound the memory."""

MAX_MESSAGE = 500
_LF, _CR = 10, 13


# Records ------------------------------------------------------------------------------------------------


class ByteStream(Protocol):
    """What records are read from: at most `size` bytes per call, b"" at the end."""

    def read(self, size: int) -> bytes: ...


@dataclass(frozen=True)
class Records:
    """Consecutive records of one block, none of them blank.

    Attributes:
        data: uint8, the bytes of all records with their line ends.
        offsets: int64 of length n + 1; record i with its line end is `data[offsets[i]:offsets[i + 1]]`.
        ends: int64 of length n; record i without its line end is `data[offsets[i]:ends[i]]`.
    """

    data: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        """Record `index` without its line end."""
        return self.data[self.offsets[index] : self.ends[index]].tobytes()

    def take(self, indices: np.ndarray) -> list[bytes]:
        """Some records without their line ends."""
        return [self[index] for index in indices.tolist()]

    def slice(self, start: int, stop: int) -> Records:
        """Records start to stop, sharing memory."""
        first, last = self.offsets[start], self.offsets[stop]
        return Records(
            self.data[first:last], self.offsets[start : stop + 1] - first, self.ends[start:stop] - first
        )

    def owners(self, positions: np.ndarray) -> np.ndarray:
        """Index of the record each byte position belongs to."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def binary(self) -> pa.LargeBinaryArray:
        """The records with their line ends as an Arrow array, sharing memory."""
        buffers = [None, pa.py_buffer(self.offsets), pa.py_buffer(self.data)]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)

    def select(self, mask: np.ndarray) -> Records:
        """The records where mask is true; shares memory when that is all of them."""
        if mask.all():
            return self
        if not mask.any():
            return self.slice(0, 0)
        chosen = self.binary().filter(pa.array(mask))
        _, offsets, data = chosen.buffers()
        offsets = np.frombuffer(offsets, np.int64)[: len(chosen) + 1]
        ends = offsets[:-1] + (self.ends - self.offsets[:-1])[mask]
        return Records(np.frombuffer(data, np.uint8)[: offsets[-1]], offsets, ends)

    def invalid_utf8(self) -> np.ndarray:
        """Mask of the records that are not valid UTF-8."""
        whole = [None, pa.py_buffer(self.offsets[[0, -1]]), pa.py_buffer(self.data)]
        try:  # nearly always all of it is valid, which one pass over the block shows
            pa.Array.from_buffers(pa.large_string(), 1, whole).validate(full=True)
        except pa.ArrowInvalid:
            return ~pc.match_substring_regex(self.binary(), VALID_UTF8).to_numpy(zero_copy_only=False)
        return np.zeros(len(self), bool)


# Well-formed UTF-8 of Unicode 16, table 3-7. Arrow runs RE2 on binary columns byte by byte.
VALID_UTF8 = (
    r"\A(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    r"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    r"|\xf4[\x80-\x8f][\x80-\xbf]{2})*\z"
)


def split_records(
    stream: ByteStream,
    where: str,
    *,
    quote: int | None = None,
    drop_mark: bool = True,
    block_size: int = BLOCK_BYTES,
    rows: int = BATCH_ROWS,
) -> Iterator[Records]:
    """Cut a stream into blocks of whole, non-blank records.

    Lines end in LF or CRLF, the last one perhaps in nothing.

    Args:
        stream: read `block_size` bytes at a time.
        where: name of the source in errors.
        quote: byte value; a line end after an odd number of quotes belongs to the record (RFC 4180). None
            makes every line a record.
        drop_mark: drop a UTF-8 byte order mark at the start.
        block_size: bytes per read; the records that come out do not depend on it.
        rows: most records per block.

    Raises:
        BareCountError: source.malformed for a record above `MAX_RECORD_BYTES`.
    """
    tail = stream.read(len(codecs.BOM_UTF8))
    if drop_mark and tail == codecs.BOM_UTF8:
        tail = b""
    block = stream.read(block_size)
    while tail or block:
        following = stream.read(block_size) if block else b""
        data, tail = tail + block, b""
        line_ends = _record_ends(np.frombuffer(data, np.uint8), quote)
        cut = int(line_ends[-1]) + 1 if len(line_ends) else 0
        if following:
            tail = data[cut:]
            if len(tail) > MAX_RECORD_BYTES + 1:  # one byte more may be the CR of a CRLF
                raise _oversize(where)
        elif cut < len(data):  # the last line has no end, or a quote before it was never closed
            line_ends, cut = np.append(line_ends, len(data)), len(data) + 1
            data += b"\n"
        if cut:
            yield from _cut(np.frombuffer(data, np.uint8, count=cut), line_ends, where, rows)
        block = following


def _record_ends(data: np.ndarray, quote: int | None) -> np.ndarray:
    """Positions of the LFs that end a record."""
    line_ends = np.flatnonzero(data == _LF)
    if quote is None:
        return line_ends
    quotes = np.flatnonzero(data == quote)
    return line_ends[np.searchsorted(quotes, line_ends) % 2 == 0]


def _cut(data: np.ndarray, line_ends: np.ndarray, where: str, rows: int) -> Iterator[Records]:
    offsets = np.concatenate(([0], line_ends + 1))
    ends = line_ends - ((data[line_ends - 1] == _CR) & (line_ends > offsets[:-1]))
    lengths = ends - offsets[:-1]
    if lengths.max() > MAX_RECORD_BYTES:
        raise _oversize(where)
    records = Records(data, offsets, ends).select(lengths > 0)
    for start in range(0, len(records), rows):
        yield records.slice(start, min(start + rows, len(records)))


def _oversize(where: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_MALFORMED,
        f"{where}: a record is longer than {MAX_RECORD_BYTES >> 20} MB, the most allowed",
        hint="Check the line ends (LF or CRLF) and look for a quote that is never closed.",
    )


# Values -------------------------------------------------------------------------------------------------


def sql_type(field: Field) -> str:
    """The field's type in words, as messages say it: `bigint`, `numeric(18,2)`, `date as %d/%m/%Y`."""
    type_ = field.type
    if field.json:
        return "JSON"
    if pa.types.is_decimal(type_):
        return f"numeric({type_.precision},{type_.scale})"
    name = _SQL_TYPES[type_]
    if type_ == pa.date32():
        return f"{name} as {field.format or 'YYYY-MM-DD'}"
    if type_ == WALL:
        return f"{name} as {field.format or 'YYYY-MM-DD HH:MM:SS'}"
    if type_ == INSTANT:
        if field.time_zone is not None:
            return f"{name} as {field.format or 'YYYY-MM-DD HH:MM:SS'}, a time that {field.time_zone} has once"
        return f"{name} as {field.format or 'YYYY-MM-DD HH:MM:SS with Z or an offset'}"
    return name


_SQL_TYPES = {
    pa.string(): "text",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.date32(): "date",
    WALL: "timestamp",
    INSTANT: "timestamptz",
}


def parse_text(field: Field, text: pa.StringArray) -> pa.Array:
    """The column in the field's type; null where the text is null or not a value of the type.

    smallint, integer, bigint: sign and digits, in range. numeric(p,s): sign, digits and a point, at most s
    digits after it (one more is refused, not rounded) and p - s before it; no exponent, no thousands
    separators. double precision: the same with any number of digits and an exponent; finite. boolean: true,
    false, 1, 0 in any case. date, timestamp, timestamptz: the field's strptime format, else ISO 8601 (T or space,
    up to microseconds; further digits are zeros). A timestamptz ends in Z, UTC or an offset, or it is a time that the
    field's zone has exactly once; a timestamp that does is what the field's zone shows then. text: as it is. JSON: any
    JSON value, spelled in one way.

    Raises:
        BareCountError: declaration.invalid for a format that does not determine a date.
    """
    type_ = field.type
    if field.json:
        return pa.array(map(canonical, text.to_pylist()), pa.string())
    if type_ == pa.string():
        return text
    if pa.types.is_integer(type_):
        return _integers(text, type_)
    if pa.types.is_decimal(type_):
        return _decimals(text, type_)
    if type_ == pa.float64():
        return _doubles(text)
    if type_ == pa.bool_():
        return _booleans(text)
    if type_ == pa.date32():
        return _formatted(text, field) if field.format else _iso(text, type_)
    if type_ in (WALL, INSTANT):
        return _formatted(text, field) if field.format else _iso_times(text, field)
    raise BareCountError(
        ErrorCode.DECLARATION_INVALID, f"{field.name}: {type_} is not a type text is parsed to"
    )


_BOOLEANS = pa.array(["false", "true", "0", "1"])


def _only(text: pa.StringArray, pattern: str) -> pa.StringArray:
    """The text where it matches the RE2 pattern, else null."""
    return pc.if_else(pc.match_substring_regex(text, pattern), text, pa.scalar(None, pa.string()))


def _integers(text: pa.StringArray, type_: pa.DataType) -> pa.Array:
    text = _only(text, r"\A[+-]?[0-9]+\z")
    try:
        return text.cast(type_)
    except pa.ArrowInvalid:  # a plus sign, many leading zeros, or out of range: decided on 19 exact digits
        text = _only(pc.replace_substring_regex(text, r"\A\+?(-?)0*([0-9])", r"\1\2"), r"\A-?[0-9]{1,19}\z")
        numbers = text.cast(pa.decimal128(38, 0))
        half = 1 << (type_.bit_width - 1)
        low, high = (pa.scalar(bound, numbers.type) for bound in (-half, half - 1))
        fits = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
        return pc.if_else(fits, numbers, pa.scalar(None, numbers.type)).cast(type_)


def _decimals(text: pa.StringArray, type_: pa.Decimal128Type) -> pa.Array:
    whole, scale = type_.precision - type_.scale, type_.scale
    forms = [rf"0*[0-9]{{1,{whole}}}(?:\.[0-9]{{0,{scale}}})?" if whole else rf"0+(?:\.[0-9]{{0,{scale}}})?"]
    if scale:
        forms.append(rf"\.[0-9]{{1,{scale}}}")
    return _only(text, rf"\A[+-]?(?:{'|'.join(forms)})\z").cast(type_)


def _doubles(text: pa.StringArray) -> pa.Array:
    numbers = _only(text, r"\A[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\z").cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))  # 1e999 is no double


def _booleans(text: pa.StringArray) -> pa.Array:
    index = pc.index_in(pc.ascii_lower(text), _BOOLEANS)  # null for anything else, odd for true
    return pc.bit_wise_and(index, 1).cast(pa.bool_())


# The calendar as a pattern, so that one pass decides and the cast cannot fail: days per month, leap years
# (divisible by 4 and not by 100, or by 400). Year 0 matches and is taken out by `_iso`: PostgreSQL has none.
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_ISO_DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_ISO_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?"


def _iso(text: pa.StringArray, type_: pa.DataType) -> pa.Array:
    pattern = _ISO_DATE if type_ == pa.date32() else f"{_ISO_DATE}[T ]{_ISO_TIME}"
    text = _only(text, rf"\A{pattern}\z")
    year_zero = pc.starts_with(text, "0000")
    if pc.any(year_zero).as_py():
        text = pc.if_else(year_zero, pa.scalar(None, pa.string()), text)
    return text.cast(type_)


_OFFSET = r" ?(?:Z|UTC|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?)"
_LONG_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6}0{0,3})?)?"
_ISO_INSTANT = rf"\A{_ISO_DATE}[T ]{_LONG_TIME}{_OFFSET}\z"


def _iso_times(text: pa.StringArray, field: Field) -> pa.Array:
    """Timestamps, with a zone or without, of texts that have an offset or lack it."""
    if field.type == WALL:
        walls = _iso(text, WALL)  # nearly always all of them are
        if field.time_zone is None or walls.null_count == text.null_count:
            return walls
        return pc.coalesce(walls, clocks.walls_of(_iso_instants(text), field.time_zone))
    instants = _iso_instants(text)
    if field.time_zone is None or instants.null_count == text.null_count:
        return instants
    return pc.coalesce(instants, clocks.instants_of(_iso(text, WALL), field.time_zone))


def _iso_instants(text: pa.StringArray) -> pa.Array:
    text = _only(text, _ISO_INSTANT)
    text = pc.replace_substring_regex(text, r"(\.[0-9]{6})0+", r"\1")
    text = pc.replace_substring_regex(pc.replace_substring(text, "UTC", "Z"), r" (Z|[+-][0-9:]+)\z", r"\1")
    instants = text.cast(INSTANT)
    lost = ~clocks.in_range(pc.fill_null(instants.cast(pa.int64()), 0).to_numpy()) | np.asarray(
        pc.fill_null(pc.starts_with(text, "0000"), False))
    return pc.if_else(pa.array(lost), pa.scalar(None, INSTANT), instants) if lost.any() else instants


_DIRECTIVES = {  # the part of a date and the pattern of its value at full width
    "Y": ("year", "[0-9]{4}"),
    "y": ("short_year", "[0-9]{2}"),
    "m": ("month", "[0-9]{2}"),
    "b": ("short_month_name", "[A-Za-z]{3}"),
    "B": ("month_name", "[A-Za-z]{3,9}"),
    "d": ("day", "[0-9]{2}"),
    "H": ("hour", "[0-9]{2}"),
    "I": ("hour12", "[0-9]{2}"),
    "p": ("half", "[AaPp][Mm]"),
    "M": ("minute", "[0-9]{2}"),
    "S": ("second", "[0-9]{2}"),
    "f": ("fraction", "[0-9]{6}"),
    "z": ("zone", "Z|[+-][0-9]{2}(?::?[0-9]{2})?"),
}
_NARROW = {"[0-9]{2}": "[0-9]{1,2}", "[0-9]{6}": "[0-9]{1,6}"}
_SHORTHANDS = {"%T": "%H:%M:%S", "%F": "%Y-%m-%d"}
_MONTHS = (  # English whatever the machine's locale
    "january february march april may june july august september october november december"
).split()


@lru_cache(maxsize=256)
def strptime_pattern(format: str) -> str:
    """The RE2 pattern, with one named group per part, of values written in a strptime format.

    Allowed: %Y %y %m %b %B %d %H %I %p %M %S %f %z %T %F %%. Numbers of one or two digits may lack their
    leading zero where no digit stands beside them; %y never. Every other character, also a space, stands
    for itself.

    Raises:
        BareCountError: declaration.invalid for another directive, one given twice, or no full date.
    """
    format = re.sub("%.", lambda match: _SHORTHANDS.get(match[0], match[0]), format)
    pieces = re.findall(r"%.|[^%]+|%", format, re.DOTALL)
    pattern, parts = [], []
    for before, piece, after in zip(["", *pieces], pieces, [*pieces[1:], ""], strict=False):
        if piece == "%%" or not piece.startswith("%"):
            pattern.append(re.escape(piece.replace("%%", "%")))
        elif piece[1:] in _DIRECTIVES:
            part, values = _DIRECTIVES[piece[1:]]
            glued = _is_number(before, last=True) or _is_number(after, last=False) or part == "short_year"
            pattern.append(f"(?P<{part}>{values if glued else _NARROW.get(values, values)})")
            parts.append(part)
        else:
            raise _bad_format(format, f"{piece} is not a directive that values are parsed by")
    if len(parts) != len(set(parts)):
        raise _bad_format(format, "a directive is given twice")
    for choice in (("year", "short_year"), ("month", "month_name", "short_month_name"), ("day",)):
        if len(set(choice) & set(parts)) != 1:
            raise _bad_format(
                format, f"it must have the {choice[0]} once, and has it {len(set(choice) & set(parts))} times"
            )
    if ("hour12" in parts) != ("half" in parts):
        raise _bad_format(format, "%I and %p go together")
    return rf"\A{''.join(pattern)}\z"


def _is_number(piece: str, *, last: bool) -> bool:
    """Whether a format's piece ends, or begins, with a digit in every value."""
    if piece.startswith("%"):
        return "[0-9]" in _DIRECTIVES.get(piece[1:], ("", ""))[1]
    return piece[-1:].isdigit() if last else piece[:1].isdigit()


def _bad_format(format: str, why: str) -> BareCountError:
    return BareCountError(
        ErrorCode.DECLARATION_INVALID,
        f"format {format!r}: {why}",
        hint="Allowed: %Y or %y, %m or %b or %B, %d, %H or %I with %p, %M, %S, %f, %z, %T, %F, %%.",
    )


_DAY_MICROSECONDS = 86_400_000_000


def _formatted(text: pa.StringArray, field: Field) -> pa.Array:
    parts = pc.extract_regex(text, strptime_pattern(field.format))
    names = {part.name for part in parts.type}

    def part(name: str, default: int = 0) -> np.ndarray:
        if name not in names:
            return np.full(len(text), default, np.int64)
        return pc.fill_null(pc.struct_field(parts, name).cast(pa.int64()), default).to_numpy()

    valid = parts.is_valid().to_numpy(zero_copy_only=False)
    year = part("year")
    if "short_year" in names:  # POSIX: 69 to 99 are 1969 to 1999, 00 to 68 are 2000 to 2068
        year = part("short_year") + 1900
        year += np.where(year < 1969, 100, 0)
    month = part("month", 1)
    for name, known in (("month_name", _MONTHS), ("short_month_name", [month[:3] for month in _MONTHS])):
        if name in names:
            index = pc.index_in(pc.ascii_lower(pc.struct_field(parts, name)), pa.array(known))
            month = pc.fill_null(index, -1).to_numpy() + 1
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (part("day", 1) - 1)
    valid &= (year >= 1) & (month >= 1) & (month <= 12)
    valid &= days.astype("datetime64[M]") == months

    hour, minute, second = part("hour"), part("minute"), part("second")
    if "half" in names:
        hour12 = part("hour12", 12)
        valid &= (hour12 >= 1) & (hour12 <= 12)
        afternoon = pc.equal(pc.ascii_lower(pc.struct_field(parts, "half")), "pm")
        hour = hour12 % 12 + 12 * pc.fill_null(afternoon, False).to_numpy(zero_copy_only=False)
    valid &= (hour <= 23) & (minute <= 59) & (second <= 59)
    micros = days.astype(np.int64) * _DAY_MICROSECONDS + ((hour * 60 + minute) * 60 + second) * 1_000_000
    if "fraction" in names:
        fraction = pc.utf8_rpad(pc.struct_field(parts, "fraction"), 6, padding="0")
        micros += pc.fill_null(fraction.cast(pa.int64()), 0).to_numpy()
    if "zone" in names:  # wall time to UTC
        zone = pc.replace_substring(pc.struct_field(parts, "zone"), ":", "")
        zone = pc.utf8_rpad(pc.if_else(pc.equal(zone, "Z"), "+", zone), 5, padding="0")
        offset = pc.fill_null(pc.utf8_slice_codeunits(zone, 1).cast(pa.int64()), 0).to_numpy()
        valid &= (offset // 100 <= 23) & (offset % 100 <= 59)
        east = pc.fill_null(pc.starts_with(zone, "+"), True).to_numpy(zero_copy_only=False)
        micros -= np.where(east, 1, -1) * (offset // 100 * 60 + offset % 100) * 60_000_000
    valid &= clocks.in_range(micros)
    times = pa.array(micros, mask=~valid)
    if "zone" in names:
        return times.cast(INSTANT) if field.type == INSTANT else clocks.walls_of(times, field.time_zone)
    if field.type == INSTANT:
        return clocks.instants_of(times, field.time_zone or "UTC")
    if field.type == pa.date32():  # a time of day would be lost
        valid &= micros % _DAY_MICROSECONDS == 0
        return pa.array((micros // _DAY_MICROSECONDS).astype(np.int32), mask=~valid).cast(pa.date32())
    return times.cast(field.type)


# Faults and batches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One field of the parsed records of a batch.

    Attributes:
        values: of the field's type, null where there is none or it is wrong.
        wrong: mask of the values that are there and do not fit, None for none at all.
        found: what stands at an index, as a message should show it.
    """

    values: pa.Array
    wrong: np.ndarray | None
    found: Callable[[int], str]


@dataclass(frozen=True)
class Fault:
    """One reason for which some records of a batch are rejected.

    Attributes:
        rows: int64, positions of the records in the batch (0-based, in order).
        field: the contract's name of the field at fault, None when the whole record is.
        reason: code, see `REJECT_SCHEMA`.
        messages: one per row.
    """

    rows: np.ndarray
    field: str | None
    reason: str
    messages: Sequence[str]


_NO_JSON = pa.array(["", "null"])


def text_column(field: Field, text: pa.StringArray | None, length: int) -> Column:
    """A text column parsed to the field's type; None when the source lacks it.

    The empty string is a value of text fields only: for all others it is null, as is the word null for JSON.
    """
    if text is None:
        return Column(pa.nulls(length, field.type), None, str)
    if field.type != pa.string() or field.json:
        empty = pc.is_in(text, _NO_JSON) if field.json else pc.equal(text, "")
        if pc.any(empty).as_py():
            text = pc.if_else(empty, pa.scalar(None, pa.string()), text)
    values = parse_text(field, text)
    wrong = None
    if values.null_count != text.null_count:
        wrong = pc.and_(text.is_valid(), values.is_null()).to_numpy(zero_copy_only=False)
    return Column(values, wrong, lambda index: shown(text[index].as_py()))


def check(schema: ExtractorSchema, columns: Sequence[Column], rows: np.ndarray) -> list[Fault]:
    """The faults of the parsed records, in contract order.

    Args:
        schema: the contract's fields.
        columns: one per field, equally long.
        rows: int64, position in the batch of each parsed record.
    """
    faults = []
    for field, column in zip(schema.fields, columns, strict=True):
        if column.wrong is not None and column.wrong.any():
            at = np.flatnonzero(column.wrong)
            allowed = sql_type(field)
            messages = [f"{field.name}: found {column.found(i)}, allowed {allowed}" for i in at.tolist()]
            faults.append(Fault(rows[at], field.name, "wrong_type", messages))
        nul = _nul(field, column.values)
        if nul is not None:
            at = np.flatnonzero(nul)
            messages = [
                f"{field.name}: found {column.found(i)}, allowed text without U+0000" for i in at.tolist()
            ]
            faults.append(Fault(rows[at], field.name, "nul_byte", messages))
        if field.required and field.default is None and column.values.null_count:
            missing = column.values.is_null().to_numpy(zero_copy_only=False)
            at = np.flatnonzero(missing if column.wrong is None else missing & ~column.wrong)
            message = f"{field.name}: found nothing, a value of type {sql_type(field)} is required"
            faults.append(Fault(rows[at], field.name, "missing_field", [message] * len(at)))
    return faults


_JSON_NUL = r"(?:^|[^\\])(?:\\\\)*\\u0000"  # not a backslash that is itself escaped, before a u


def _nul(field: Field, values: pa.Array) -> pa.BooleanArray | None:
    """Where a text has U+0000, a character of JSON and Parquet and none of PostgreSQL's text; None for nowhere."""
    if field.json:
        nul = pc.fill_null(pc.match_substring_regex(values, _JSON_NUL), False)
        return nul if pc.any(nul).as_py() else None
    if field.type != pa.string() or not _holds_nul(values):
        return None
    return pc.fill_null(pc.match_substring(values, "\0"), False)


def _holds_nul(text: pa.StringArray) -> bool:
    """Whether a NUL byte lies in the column's bytes: one pass, without looking at values."""
    _, offsets, data = text.buffers()
    if data is None or not len(text):
        return False
    bounds = np.frombuffer(offsets, np.int32)[[text.offset, text.offset + len(text)]]
    return not np.frombuffer(data, np.uint8)[bounds[0] : bounds[1]].all()


def assemble(
    schema: ExtractorSchema,
    columns: Sequence[Column],
    extra: pa.StringArray | None,
    *,
    parsed: np.ndarray,
    received: int,
    before: int,
    faults: Sequence[Fault],
    payload: Callable[[np.ndarray], list[bytes]],
) -> ParsedBatch:
    """The batch of `received` records, each of them a row or a reject.

    Args:
        schema: the contract's fields.
        columns: the parsed records' fields, in contract order.
        extra: their undeclared fields as JSON texts, None for none.
        parsed: int64, position in the batch of each parsed record, ascending.
        received: records in the batch.
        before: records of the unit before this batch.
        faults: why records are rejected; the first one of a record decides its field and reason.
        payload: the bytes of the records at some positions in the batch, as received.

    Raises:
        BareCountError: internal when a record is neither or both: nothing may be lost in silence.
    """
    found: dict[int, tuple[str | None, str, list[str]]] = {}
    for fault in faults:
        for row, message in zip(fault.rows.tolist(), fault.messages, strict=True):
            found.setdefault(row, (fault.field, fault.reason, []))[2].append(message)

    extra = pa.nulls(len(parsed), pa.string()) if extra is None else extra
    values = [_with_default(field, column.values) for field, column in zip(schema.fields, columns, strict=True)]
    arrays = [*values, pa.array(parsed + before + 1, pa.int64()), extra]
    rows = pa.RecordBatch.from_arrays(arrays, schema=schema.arrow)
    rejected = np.array(sorted(found), np.int64)
    if len(rejected):
        rows = rows.filter(pa.array(~np.isin(parsed, rejected)))
    if rows.num_rows + len(rejected) != received:
        raise BareCountError(
            ErrorCode.INTERNAL,
            f"records {before + 1} to {before + received}: {received} received, but {rows.num_rows} accepted "
            f"and {len(rejected)} rejected",
            hint="This is a fault of the platform, please report it with the file.",
        )
    faulty = [found[row] for row in rejected.tolist()]
    rejects = [
        pa.array(rejected + before + 1, pa.int64()),
        pa.array([field for field, _, _ in faulty], pa.string()),
        pa.array([reason for _, reason, _ in faulty], pa.string()),
        pa.array(["; ".join(messages)[:MAX_MESSAGE] for _, _, messages in faulty], pa.string()),
        pa.array(payload(rejected) if len(rejected) else [], pa.large_binary()),
    ]

    def original(positions: pa.Int64Array) -> pa.LargeBinaryArray:
        numbers = rows.column(ROW_NUMBER).take(positions).to_numpy()
        return pa.array(payload(numbers - before - 1), pa.large_binary())

    refused = [(fault.field, fault.reason, len(fault.rows)) for fault in faults if fault.field is not None]
    return ParsedBatch(rows, pa.RecordBatch.from_arrays(rejects, schema=REJECT_SCHEMA), received, original, refused)


def _with_default(field: Field, values: pa.Array) -> pa.Array:
    """The field's default in place of nulls. A value of the wrong type is null too, but its record is rejected."""
    if field.default is None or not values.null_count:
        return values
    return pc.fill_null(values, pa.scalar(field.default, field.type))


# Undeclared fields --------------------------------------------------------------------------------------


def json_strings(text: pa.StringArray) -> pa.StringArray:
    """Each value as a JSON string, null as the JSON null, as `json.dumps(..., ensure_ascii=False)` would."""
    text = pc.replace_substring(text, "\\", "\\\\")
    text = pc.replace_substring(text, '"', '\\"')
    if pc.any(pc.match_substring_regex(text, r"[\x00-\x1f]")).as_py():
        for code in range(0x20):
            text = pc.replace_substring(text, chr(code), json.dumps(chr(code))[1:-1])
    return pc.fill_null(pc.binary_join_element_wise('"', text, '"', ""), "null")


def json_objects(fields: Mapping[str, pa.StringArray]) -> pa.StringArray | None:
    """One JSON object text per row, keys sorted, from columns of JSON texts; None for no columns."""
    if not fields:
        return None
    pieces: list[pa.StringArray | str] = []
    for name in sorted(fields):
        pieces += [f"{',' if pieces else '{'}{json.dumps(name, ensure_ascii=False)}:", fields[name]]
    return pc.binary_join_element_wise(*pieces, "}", "")


def refuse_names(found: Sequence[str], schema: ExtractorSchema, where: str, what: str) -> None:
    """Refuse a source whose own field names are ambiguous, or share nothing with the contract's.

    Args:
        found: names in the source's header or metadata.
        schema: the contract's fields.
        where: name of the source in the error.
        what: "header" or whatever the names were found in.

    Raises:
        BareCountError: source.malformed, with what was found and what is expected.
    """
    expected = [field.source_name for field in schema.fields]
    twice = sorted({name for name in found if found.count(name) > 1})
    details = {"found": list(found)[:100], "expected": expected}
    if twice:
        raise BareCountError(
            ErrorCode.SOURCE_MALFORMED,
            f"{where}: the {what} has {', '.join(map(shown, twice[:5]))} more than once, allowed once",
            hint="Have the source name its fields apart: BareCount does not choose between them.",
            details=details,
        )
    if not set(found) & set(expected):
        raise BareCountError(
            ErrorCode.SOURCE_MALFORMED,
            f"{where}: the {what} has {', '.join(map(shown, found[:10])) or 'no name'} "
            f"and none of the expected {', '.join(map(shown, expected[:10]))}",
            hint="Check delimiter and encoding in the manifest, and names (case matters) in the contract.",
            details=details,
        )
