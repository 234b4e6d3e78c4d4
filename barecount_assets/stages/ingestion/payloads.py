"""Refused records, read again from the bytes they were kept as.

A payload is the record as its source had it: a line of CSV without its line end, a JSON object. Reading it again is the
same code as reading the source, so a record is accepted now exactly if the source would be accepted now. Sources whose
records have no text of their own (Parquet, tables) keep a record as one JSON object, whose values are read again as the
source's own (see `rereading`). What normalization refused lies in quarantine as the row of the raw table, by column
names.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from barecount_assets.stages.ingestion import json_texts
from barecount_assets.stages.ingestion.connectors import jsonl
from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.parsing import Records, assemble, check, json_objects, split_records
from barecount_assets.stages.ingestion.records import EXTRA, ROW_NUMBER, ExtractorSchema, Field, ParsedBatch
from barecount_assets.stages.ingestion.rereading import AsStated
from resources.runtime.errors import BareCountError, ErrorCode


class PayloadReader(Protocol):
    """Reads payloads of one source.

    Attributes:
        encoding: of payloads that are text.
    """

    encoding: str

    def parse(self, payloads: Sequence[bytes], before: int) -> ParsedBatch:
        """Payloads as records; they are numbered from `before` + 1."""
        ...

    def corrected(self, payload: bytes, values: Mapping[str, str]) -> bytes:
        """The record with some fields set, everything else as it is; an empty value is none.

        Raises:
            BareCountError: usage for a record whose fields cannot be told apart.
        """
        ...

    def require_one(self, payload: bytes) -> None:
        """Raises BareCountError usage for bytes that are not one record."""
        ...


@dataclass(frozen=True)
class CsvPayloads:
    """Lines of a CSV source. `names` are those of the header the records stood under."""

    format: CsvFormat
    names: tuple[str, ...]
    schema: ExtractorSchema

    @property
    def encoding(self) -> str:
        return self.format.encoding

    def parse(self, payloads: Sequence[bytes], before: int) -> ParsedBatch:
        return self.format.parse(_records(payloads), self.names, self.schema, before)

    def corrected(self, payload: bytes, values: Mapping[str, str]) -> bytes:
        try:
            fields = self._fields(payload.decode(self.encoding))
        except UnicodeDecodeError:
            fields = []
        if len(fields) != len(self.names):
            raise _not_correctable(payload, f"it does not have the {len(self.names)} fields of its header")
        for name, value in values.items():
            fields[self._position(name)] = self._quoted(value)
        return self.format.delimiter.join(fields).encode(self.encoding)

    def require_one(self, payload: bytes) -> None:
        quote = ord(self.format.quote) if self.format.multiline and self.format.quote else None
        _require_one(payload, quote)

    def _fields(self, text: str) -> list[str]:
        """The fields as written, quotes included."""
        delimiter, quote = re.escape(self.format.delimiter), self.format.quote
        if quote is None or quote not in text:
            return text.split(self.format.delimiter)
        mark = re.escape(quote)
        one = rf"{mark}(?:[^{mark}]|{mark}{mark})*{mark}|[^{mark}{delimiter}]*"
        if not re.fullmatch(rf"(?:{one})(?:{delimiter}(?:{one}))*", text, re.DOTALL):
            return []
        return re.findall(rf"(?:\A|(?<={delimiter}))({one})(?={delimiter}|\Z)", text, re.DOTALL)

    def _position(self, name: str) -> int:
        if name not in self.names:
            raise BareCountError(
                ErrorCode.USAGE, f"these records have no field {name!r}; theirs are {', '.join(self.names)}",
                hint="replay records of one source at a time (--dataset, --reason)")
        return self.names.index(name)

    def _quoted(self, value: str) -> str:
        quote = self.format.quote
        if not any(mark in value for mark in (self.format.delimiter, "\n", "\r", quote or "\n")):
            return value
        if quote is None:
            raise BareCountError(ErrorCode.USAGE, f"the value {value!r} cannot be written: this source has no quotes",
                                 hint="give a value without the delimiter and line ends")
        return quote + value.replace(quote, quote * 2) + quote


@dataclass(frozen=True)
class JsonPayloads:
    """JSON objects, one a record, with the field names of the source, or of the raw table (`by_column`).

    `stated`: how values are read whose source stated types.
    """

    schema: ExtractorSchema
    by_column: bool = False
    encoding: str = "utf-8"
    stated: AsStated | None = None

    def parse(self, payloads: Sequence[bytes], before: int) -> ParsedBatch:
        schema = self.schema
        if self.by_column:
            schema = ExtractorSchema(tuple(replace(f, source_name=f.name, format=None) for f in schema.fields))
            batch = jsonl.parse(_records([_without_stamps(payload) for payload in payloads]), schema, before)
            return replace(batch, original=lambda rows: _originals(payloads, batch, before, rows))
        if self.stated is not None:
            return _parse_stated(payloads, self.stated, schema, before)
        return jsonl.parse(_records(payloads), schema, before)

    def corrected(self, payload: bytes, values: Mapping[str, str]) -> bytes:
        try:
            record = json_texts.strict_object(payload)
        except json_texts.Refused as refused:
            raise _not_correctable(payload, str(refused.args[1])) from refused
        fields = {(f.name if self.by_column else f.source_name): f for f in self.schema.fields}
        for name, value in values.items():
            record[name] = _json_value(fields[name], value)
        return json_texts.json_text(record).encode()

    def require_one(self, payload: bytes) -> None:
        _require_one(payload, None)


@dataclass(frozen=True)
class MixedPayloads:
    """Records of a CSV source, some of them as JSON objects: rows that were accepted once, and judged again.

    No sound CSV record begins with a brace and a quote.
    """

    lines: CsvPayloads
    objects: JsonPayloads

    @property
    def encoding(self) -> str:
        return self.lines.encoding

    def parse(self, payloads: Sequence[bytes], before: int) -> ParsedBatch:
        is_object = np.array([_is_object(payload) for payload in payloads], bool)
        parts: list[ParsedBatch] = []
        for mask, reader in ((~is_object, self.lines), (is_object, self.objects)):
            positions = np.flatnonzero(mask)
            if len(positions):
                part = reader.parse([payloads[position] for position in positions.tolist()], 0)
                parts.append(renumbered(part, positions + before + 1))
        if len(parts) == 1:
            return parts[0]
        rows, rejects = (_in_order(pa.concat_batches(batches)) for batches in (
            [part.rows for part in parts], [part.rejects for part in parts]))
        batch = ParsedBatch(rows, rejects, len(payloads), refused=[*parts[0].refused, *parts[1].refused])
        return replace(batch, original=lambda positions: _originals(payloads, batch, before, positions))

    def corrected(self, payload: bytes, values: Mapping[str, str]) -> bytes:
        return self._reader_of(payload).corrected(payload, values)

    def require_one(self, payload: bytes) -> None:
        self._reader_of(payload).require_one(payload)

    def _reader_of(self, payload: bytes) -> PayloadReader:
        return self.objects if _is_object(payload) else self.lines


def renumbered(batch: ParsedBatch, numbers: np.ndarray) -> ParsedBatch:
    """The batch, its record k under the number `numbers[k - 1]`."""
    rows, rejects = batch.rows, batch.rejects
    own = numbers[rows.column(ROW_NUMBER).to_numpy() - 1]
    refused = numbers[rejects.column("row_number").to_numpy() - 1]
    at = rows.schema.get_field_index(ROW_NUMBER)
    return ParsedBatch(
        rows.set_column(at, rows.schema.field(at), pa.array(own, pa.int64())),
        rejects.set_column(0, rejects.schema.field(0), pa.array(refused, pa.int64())),
        batch.received, batch.original, batch.refused,
    )


def _is_object(payload: bytes) -> bool:
    return payload.startswith(b'{"')


def _in_order(batch: pa.RecordBatch) -> pa.RecordBatch:
    number = ROW_NUMBER if ROW_NUMBER in batch.schema.names else "row_number"
    return batch.take(pc.sort_indices(batch.column(number)))


def _parse_stated(
    payloads: Sequence[bytes], stated: AsStated, schema: ExtractorSchema, before: int
) -> ParsedBatch:
    """Records whose values are read as their source's own; fields that it did not have are those of JSON."""
    declared = {field.source_name for field in schema.fields}
    names = list(dict.fromkeys([*stated.types, *declared]))
    records = jsonl.take_apart(_records(payloads), names)
    values = dict(zip(names, records.values, strict=True))
    parsed = np.array(records.positions, np.int64)
    columns = [stated.column(field, values[field.source_name]) for field in schema.fields]
    extra = json_objects({name: stated.texts(name, values[name]) for name in stated.types if name not in declared})
    return assemble(
        schema, columns, _with_others(extra, records.extras), parsed=parsed, received=len(payloads), before=before,
        faults=[*records.faults, *check(schema, columns, parsed)],
        payload=lambda rows: [payloads[row] for row in rows.tolist()],
    )


def _with_others(extra: pa.StringArray | None, others: Sequence[str | None]) -> pa.StringArray | None:
    """Undeclared fields together with those that somebody put into an edited record."""
    if not any(others):
        return extra
    texts: Sequence[str | None] = [None] * len(others) if extra is None else extra.to_pylist()
    return pa.array([
        json_texts.json_text({**json_texts.members(text or "{}"), **json_texts.members(other)}) if other else text
        for text, other in zip(texts, others, strict=True)
    ], pa.string())


def _records(payloads: Sequence[bytes]) -> Records:
    """Payloads, none of them empty, as a block of records."""
    data = np.frombuffer(b"\n".join([*payloads, b""]), np.uint8)
    offsets = np.zeros(len(payloads) + 1, np.int64)
    np.cumsum([len(payload) + 1 for payload in payloads], out=offsets[1:])
    return Records(data, offsets, offsets[1:] - 1)


def _require_one(payload: bytes, quote: int | None) -> None:
    blocks = list(split_records(io.BytesIO(payload), "the record", quote=quote, drop_mark=False))
    if sum(map(len, blocks)) != 1 or blocks[0][0] != payload or not payload.strip():
        raise BareCountError(
            ErrorCode.USAGE, f"found {payload[:80].decode('utf-8', 'backslashreplace')!r}, allowed is one record as "
            "its source writes it, without a line end", hint="to give a record up, discard it")


def _not_correctable(payload: bytes, why: str) -> BareCountError:
    return BareCountError(
        ErrorCode.USAGE,
        f"a field of {payload[:80].decode('utf-8', 'backslashreplace')!r} cannot be set: {why}",
        hint="select other records (--reason, --field), or export these, edit them, and replay with --from FILE")


def _json_value(field: Field, value: str) -> Any:
    """The value as the JSON kind that the field's type takes."""
    if value == "":
        return None
    if pa.types.is_boolean(field.type) and value in ("true", "false"):
        return value == "true"
    number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
    if number and re.fullmatch(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", value):
        return json_texts.Number(value)
    return value  # of the wrong kind, and refused for it


def _without_stamps(payload: bytes) -> bytes:
    """The raw row with its undeclared fields beside the declared ones, as the source had them."""
    row = json_texts.strict_object(payload)
    extra = row.pop(EXTRA, None)
    found = {name: value for name, value in row.items() if value is not None}
    return json_texts.json_text({**(json.loads(extra) if extra else {}), **found}).encode()


def _originals(
    payloads: Sequence[bytes], batch: ParsedBatch, before: int, positions: pa.Int64Array
) -> pa.LargeBinaryArray:
    numbers = batch.rows.column("_row_number").take(positions).to_pylist()
    return pa.array([payloads[number - before - 1] for number in numbers], pa.large_binary())
