"""CSV: RFC 4180 read strictly, one decision per record, without a Python loop over rows.

By default one physical line is one record, so that an unclosed quote costs one record and not the rest of
the file; with `multiline` a quoted field may hold line ends. A block of records is judged on its bytes
(NUL, encoding, quotes, number of fields); only the sound ones reach Arrow's CSV parser, as text, and then
the contract's types. A record that is not sound is rejected whole, with its bytes as received.

Columns are matched by name in any order. An empty unquoted field is null; an empty quoted one is the empty
string of text fields. What the contract does not know goes to `_extra`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from barecount_assets.stages.ingestion.parsing import (
    BLOCK_BYTES,
    ByteStream,
    Fault,
    Records,
    assemble,
    check,
    json_objects,
    json_strings,
    refuse_names,
    split_records,
    text_column,
)
from barecount_assets.stages.ingestion.records import ExtractorSchema, ObservedSchema, ParsedBatch
from resources.runtime.errors import BareCountError, ErrorCode

ENCODINGS = ("utf-8", "iso-8859-1", "iso-8859-15", "windows-1252")
"""Encodings in which every byte below 128 is ASCII, so that records can be cut before they are decoded."""

_LF, _CR = 10, 13
_HEADER_BYTES = 64 << 10


@dataclass(frozen=True)
class CsvFormat:
    """Dialect of a CSV source.

    Attributes:
        delimiter: one ASCII character.
        quote: one ASCII character, doubled to stand for itself; None when fields are never quoted.
        encoding: one of `ENCODINGS`.
        header: the first record names the columns; otherwise they are the contract's, in its order.
        multiline: a quoted field may hold line ends. An unclosed quote then swallows records.

    Raises:
        BareCountError: declaration.invalid.
    """

    delimiter: str = ","
    quote: str | None = '"'
    encoding: str = "utf-8"
    header: bool = True
    multiline: bool = False

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise _invalid("encoding", self.encoding, ", ".join(ENCODINGS))
        for name, value in (("delimiter", self.delimiter), ("quote", self.quote)):
            if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n\0"):
                raise _invalid(name, value, "one ASCII character, not a line end")
        if self.delimiter == self.quote:
            raise _invalid("quote", self.quote, "another character than the delimiter")

    def observe(self, stream: ByteStream, where: str) -> ObservedSchema:
        """Names in the header; without one, none, as positions have no names. An empty file has none."""
        if not self.header:
            return ObservedSchema(())
        for records in self._records(stream, where, _HEADER_BYTES):
            return ObservedSchema(self._header(records.slice(0, 1), where))
        return ObservedSchema(())

    def read(
        self, stream: ByteStream, schema: ExtractorSchema, where: str, *, block_size: int = BLOCK_BYTES
    ) -> Iterator[ParsedBatch]:
        """Stream the records; see the module for what is a row and what a reject.

        Raises:
            BareCountError: source.malformed for a header that cannot be read, names a column twice or
                shares no name with the contract, and for a record above the size limit.
        """
        names: tuple[str, ...] = () if self.header else tuple(field.source_name for field in schema.fields)
        before = 0
        for records in self._records(stream, where, block_size):
            if not names:
                names = self._header(records.slice(0, 1), where)
                refuse_names(names, schema, where, "header")
                records = records.slice(1, len(records))
            if len(records):
                yield self.parse(records, names, schema, before)
                before += len(records)

    def _records(self, stream: ByteStream, where: str, block_size: int) -> Iterator[Records]:
        quote = ord(self.quote) if self.multiline and self.quote else None
        utf8 = self.encoding == "utf-8"
        blocks = split_records(stream, where, quote=quote, drop_mark=utf8, block_size=block_size)
        for index, records in enumerate(blocks):
            if index == 0 and not utf8 and records[0].startswith(codecs.BOM_UTF8):
                raise BareCountError(
                    ErrorCode.SOURCE_MALFORMED,
                    f"{where}: begins with the byte order mark of utf-8, but {self.encoding} is declared",
                    hint="Declare encoding: utf-8, or have the source write what was agreed.",
                )
            yield records

    def _header(self, record: Records, where: str) -> tuple[str, ...]:
        """Column names in the first record."""
        for faults in self._judge(record, fields=None)[1]:
            raise BareCountError(
                ErrorCode.SOURCE_MALFORMED,
                f"{where}: the header cannot be read: {faults.messages[0]}",
                hint=f"The manifest declares {self.encoding}, lines ended by LF or CRLF, quote {self.quote}.",
                details={"found": record[0][:500].decode("utf-8", "backslashreplace")},
            )
        fields = self._count_fields(record, self._quotes(record))[0]
        return tuple(column[0].as_py() for column in self._columns(record, int(fields), nulls=False))

    def parse(
        self, records: Records, names: tuple[str, ...], schema: ExtractorSchema, before: int
    ) -> ParsedBatch:
        """Records of a file whose columns have these names; `before` records of it came earlier."""
        sound, faults = self._judge(records, fields=len(names))
        parsed = np.flatnonzero(sound)
        texts = dict(zip(names, self._columns(records.select(sound), len(names)), strict=True))
        columns = [
            text_column(field, texts.get(field.source_name), len(parsed)) for field in schema.fields
        ]
        declared = {field.source_name for field in schema.fields}
        return assemble(
            schema,
            columns,
            json_objects({name: json_strings(text) for name, text in texts.items() if name not in declared}),
            parsed=parsed,
            received=len(records),
            before=before,
            faults=[*faults, *check(schema, columns, parsed)],
            payload=records.take,
        )

    # Judging records on their bytes ---------------------------------------------------------------------

    def _judge(self, records: Records, fields: int | None) -> tuple[np.ndarray, list[Fault]]:
        """Mask of the sound records, and the faults of the others, one each.

        Args:
            records: a block.
            fields: number of fields a record must have, None for any.
        """
        sound = np.ones(len(records), bool)
        faults = []

        def refuse(bad: np.ndarray, reason: str, message: str) -> None:
            at = np.flatnonzero(bad & sound)
            if len(at):
                sound[at] = False
                faults.append(Fault(at, None, reason, [message] * len(at)))

        def holding(positions: np.ndarray) -> np.ndarray:
            bad = np.zeros(len(records), bool)
            bad[records.owners(positions)] = True
            return bad

        data = records.data
        if not data.all():
            refuse(holding(np.flatnonzero(data == 0)), "nul_byte", "found a NUL byte, allowed are characters")
        refuse(self._undecodable(records), "bad_encoding", f"found bytes that are not {self.encoding}")
        quotes = self._quotes(records)
        refuse(
            quotes.broken,
            "broken_quote",
            f"found a {self.quote} that neither opens nor closes a field, allowed as in RFC 4180",
        )
        bare = _bare_carriage_returns(records, quotes)
        if len(bare):
            refuse(
                holding(bare),
                "malformed",
                "found a carriage return outside quotes, allowed before a line feed only",
            )
        if fields is not None:
            counts = self._count_fields(records, quotes)
            for reason, wrong in (("too_few_fields", counts < fields), ("too_many_fields", counts > fields)):
                at = np.flatnonzero(wrong & sound)
                if len(at):
                    sound[at] = False
                    messages = [f"found {count} fields, allowed {fields}" for count in counts[at].tolist()]
                    faults.append(Fault(at, None, reason, messages))
        return sound, faults

    def _undecodable(self, records: Records) -> np.ndarray:
        if self.encoding == "utf-8":
            return records.invalid_utf8()
        bad = np.zeros(len(records), bool)
        undefined = _undefined(self.encoding)
        if undefined.any():
            bad[records.owners(np.flatnonzero(undefined[records.data]))] = True
        return bad

    def _quotes(self, records: Records) -> _Quotes:
        """Find the quotes, and the records where they are not RFC 4180's.

        A record has an even number of quotes, and they alternate: one stands outside a quoted field, so it
        must open one (first in the record, or after a delimiter) or be the second of a pair; the next one
        stands inside, so it must close (last in the record, or before a delimiter) or be the first of a pair.
        """
        data = records.data
        at = np.flatnonzero(data == ord(self.quote)) if self.quote else np.empty(0, np.int64)
        if not len(at):
            return _Quotes(np.zeros(len(records), bool), at, at)
        counts = np.diff(np.searchsorted(at, records.offsets))
        broken = counts % 2 == 1
        if broken.any():
            at = at[~np.repeat(broken, counts)]
        start, stop = at[0::2], at[1::2]
        beside = np.zeros(256, bool)
        beside[[ord(self.delimiter), ord(self.quote), _LF]] = True
        after = data[stop + 1]  # at least the line end, LF or CR LF
        right = beside[data[start - 1]] & (
            beside[after] | (after == _CR) & (data[stop + 2 - (after == _LF)] == _LF)
        )
        broken[records.owners(start[~right])] = True
        return _Quotes(broken, start, stop)

    def _count_fields(self, records: Records, quotes: _Quotes) -> np.ndarray:
        """Number of fields of each record whose quotes are sound."""
        delimiters = np.flatnonzero(records.data == ord(self.delimiter))
        fields = np.diff(np.searchsorted(delimiters, records.offsets)) + 1
        if len(quotes.start):
            quoted = np.searchsorted(delimiters, quotes.stop) - np.searchsorted(delimiters, quotes.start)
            total = np.concatenate(([0], np.cumsum(quoted)))
            fields -= np.diff(total[np.searchsorted(quotes.start, records.offsets)])
        return fields

    # Parsing sound records ------------------------------------------------------------------------------

    def _columns(self, records: Records, fields: int, *, nulls: bool = True) -> list[pa.StringArray]:
        """The fields of sound records, as text, by position; empty unquoted ones are null if asked."""
        names = [str(position) for position in range(fields)]
        if not len(records):
            return [pa.array([], pa.string()) for _ in names]
        data = pa.py_buffer(records.data)
        if self.encoding != "utf-8":
            data = pa.py_buffer(codecs.decode(data, self.encoding).encode())
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                column_names=names, block_size=data.size + 1, use_threads=False
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self.delimiter,
                quote_char=self.quote or False,
                double_quote=True,
                escape_char=False,
                newlines_in_values=True,  # also a lone carriage return is one
                ignore_empty_lines=False,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=nulls,
                quoted_strings_can_be_null=False,
                null_values=[""],
                check_utf8=False,  # done above
            ),
        )
        if table.num_rows != len(records):
            raise BareCountError(
                ErrorCode.INTERNAL,
                f"{len(records)} sound CSV records were parsed to {table.num_rows}",
                hint="This is a fault of the platform, please report it with the file.",
            )
        return [column.combine_chunks() for column in table.columns]


@dataclass(frozen=True)
class _Quotes:
    """The quotes of a block of records.

    Attributes:
        broken: mask of the records with a quote out of place.
        start: int64, positions of the quotes from which on text is quoted.
        stop: int64, positions of the ones at which that ends; as many.
    """

    broken: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def _bare_carriage_returns(records: Records, quotes: _Quotes) -> np.ndarray:
    """Positions of the carriage returns that belong neither to a line end nor to a quoted field."""
    if np.count_nonzero(records.data == _CR) == np.count_nonzero(records.data[records.ends] == _CR):
        return np.empty(0, np.int64)
    at = np.flatnonzero(records.data == _CR)
    at = at[at != records.ends[records.owners(at)]]
    return at[np.searchsorted(quotes.start, at) == np.searchsorted(quotes.stop, at)]


@lru_cache(maxsize=len(ENCODINGS))
def _undefined(encoding: str) -> np.ndarray:
    """Mask of the 256 bytes that stand for nothing in a single-byte encoding."""
    return np.array([bytes([code]).decode(encoding, "ignore") == "" for code in range(256)])


def _invalid(option: str, found: object, allowed: str) -> BareCountError:
    return BareCountError(
        ErrorCode.DECLARATION_INVALID, f"CSV format, {option}: found {found!r}, allowed {allowed}"
    )
