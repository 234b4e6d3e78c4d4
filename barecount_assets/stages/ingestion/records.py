"""What passes between a connector and the ingestion stage.

A connector turns one *unit* of a source (a file, a range of pages, a slice of a table) into a stream of
`ParsedBatch`: typed Arrow rows, and the records that could not be typed, kept whole. Connectors hold no
state: cursors and watermarks belong to the platform and are passed in.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from resources.governance.drift import ObservedSchema
from resources.runtime.errors import BareCountError

if TYPE_CHECKING:
    from barecount_assets.stages.ingestion.fingerprints import Fingerprints

__all__ = [
    "EXTRA", "REJECT_SCHEMA", "ROW_NUMBER", "ChangedInReading", "Connector", "Cursor", "ExtractorSchema", "Field",
    "ObservedSchema", "ParsedBatch", "Slice", "Unit", "Window", "json_payload",
]


class ChangedInReading(BareCountError):
    """A source changed while it was read, so that what was read is no state it ever had: read it from the start."""


ROW_NUMBER = "_row_number"
EXTRA = "_extra"
JSON_TEXT = {b"logicalType": b"json"}
"""Metadata of Arrow fields of texts that are JSON: tells them from other texts in a raw object."""

REJECT_SCHEMA = pa.schema(
    [
        ("row_number", pa.int64()),  # 1-based number of the record in its unit, header and blank lines not counted
        ("field", pa.string()),  # the field at fault; null when the whole record is
        # Code: wrong_type, missing_field, too_many_fields, too_few_fields, broken_quote, nul_byte, bad_encoding,
        # not_an_object, malformed.
        ("reason", pa.string()),
        ("message", pa.string()),  # what was found and what is allowed, at most 500 characters
        ("payload", pa.large_binary()),  # the record whole, as received
    ]
)
"""One row per rejected record: the first fault of a record decides its reason, `message` may name more."""


@dataclass(frozen=True)
class Field:
    """One field of an extraction contract.

    Attributes:
        name: column name in the raw layer (snake_case).
        source_name: the field's name at the source.
        type: Arrow type that values are parsed to: string, int32, int64, float64, decimal128(p, s), date32,
            timestamp('us') without zone, timestamp('us', 'UTC') for instants, bool_.
        required: a missing or null value makes the record unparsable. An empty CSV field is null.
        format: strptime format of dates and timestamps in text sources; None means ISO 8601.
        default: what a missing or null value becomes, a Python value of the type; None: it stays null.
        time_zone: of an instant: the zone on whose clock times without an offset are read, None: they are refused. Of a
            timestamp or date: the zone on whose clock an instant is shown; None: UTC, and refused in text.
        json: values of type string are JSON texts in one spelling: keys sorted, no blanks, numbers as written.
        names: all names the source may have the field under, most usual first; empty: `source_name` alone.
    """

    name: str
    source_name: str
    type: pa.DataType
    required: bool = False
    format: str | None = None
    default: Any = None
    time_zone: str | None = None
    json: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExtractorSchema:
    """The fields a connector must parse to, in contract order."""

    fields: tuple[Field, ...]

    @cached_property
    def arrow(self) -> pa.Schema:
        """Schema of `ParsedBatch.rows`: the contract's fields, then `_row_number` int64 and `_extra` string."""
        columns = [pa.field(f.name, f.type, metadata=JSON_TEXT if f.json else None) for f in self.fields]
        return pa.schema([*columns, pa.field(ROW_NUMBER, pa.int64()), pa.field(EXTRA, pa.string())])

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over all that is said of the fields: changes when parsing could."""
        body = [
            [f.name, f.source_name, str(f.type), f.required, f.format, *([] if f.default is None else [str(f.default)]),
             *([] if f.time_zone is None else [{"time_zone": f.time_zone}]), *(["json"] if f.json else []),
             *([list(f.names)] if f.names else [])]
            for f in self.fields
        ]
        return hashlib.sha256(json.dumps(body, separators=(",", ":")).encode()).hexdigest()


    def named_as(self, names: Sequence[str]) -> ExtractorSchema:
        """The schema for a unit whose fields have these names: a field goes by the first of its names that is there."""
        if not any(field.names for field in self.fields):
            return self
        return ExtractorSchema(tuple(
            replace(field, source_name=next((name for name in field.names if name in names), field.names[0]))
            if field.names else field
            for field in self.fields
        ))


@dataclass(frozen=True)
class Window:
    """Inclusive range of partition dates."""

    start: dt.date
    end: dt.date

    def __contains__(self, day: dt.date) -> bool:
        return self.start <= day <= self.end


@dataclass(frozen=True)
class Cursor:
    """How far an incremental source was read.

    Attributes:
        value: the greatest cursor value read, in the text form of its kind; None: nothing is behind the cursor.
        kind: the source's name of the value's type; None of a cursor that an earlier release stored, which knew the
            value alone and nothing of the rows that have it.
        reading: how many readings left something.
        memory: what else the connector knows of its last reading, as JSON.
    """

    value: str | None
    kind: str | None = None
    reading: int = 0
    memory: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """What a unit of an incremental source is, besides its rows.

    Attributes:
        cursor: what to store once the unit is read, all but `reading`.
        notes: what a person should know about the way it was read.
    """

    cursor: Cursor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """One thing to ingest, whole or not at all.

    Attributes:
        source_id: stable name within the source (relative file path, query slice): a newer unit with the
            same id replaces the older one.
        uri: where it is read from.
        partition_date: day it belongs to, None for undated sources.
        sha256: hex digest of the content as received, known before reading (files) or None (streams).
        size: bytes, when known.
        cursor: the cursor value it reaches, as text ('' for nulls alone), None where the source has none.
        delivery_order: key of its place among the deliveries, for one that has it already (see `delivery_order`).
        slice: what it is of an incremental source.
    """

    source_id: str
    uri: str
    partition_date: dt.date | None = None
    sha256: str | None = None
    size: int | None = None
    cursor: str | None = None
    delivery_order: str | None = None
    options: dict[str, Any] = field(default_factory=dict, compare=False)
    slice: Slice | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ParsedBatch:
    """Part of a unit: `received == rows.num_rows + rejects.num_rows`, always.

    Attributes:
        rows: record batch with `ExtractorSchema.arrow`; `_row_number` ascending within the unit.
        rejects: record batch with `REJECT_SCHEMA`.
        received: records read from the source for this batch.
        original: given positions in `rows` (int64), the records as received (large_binary), for sources that
            have a textual record; None where the typed row is the record.
        refused: (field, reason, records) of every fault of a field, also where it was not the first of its record.
        fingerprints: what tells the records apart, of a slice whose records may have been read before.
    """

    rows: pa.RecordBatch
    rejects: pa.RecordBatch
    received: int
    original: Callable[[pa.Int64Array], pa.LargeBinaryArray] | None = None
    refused: Sequence[tuple[str, str, int]] = ()
    fingerprints: Fingerprints | None = None

    def payload_of(self, positions: pa.Int64Array) -> pa.LargeBinaryArray:
        """The records at these positions of `rows`, whole: as received, else as one JSON object each."""
        if self.original is not None:
            return self.original(positions)
        return json_payload(self.rows.take(positions))


def json_payload(rows: pa.RecordBatch) -> pa.LargeBinaryArray:
    """One JSON object (UTF-8) per typed row, without the platform's own columns."""
    import polars as pl

    names = [name for name in rows.schema.names if name != ROW_NUMBER]
    frame = pl.from_arrow(pa.Table.from_batches([rows.select(names)]))
    assert isinstance(frame, pl.DataFrame)
    return frame.select(pl.struct(names).struct.json_encode()).to_series().to_arrow().cast(pa.large_binary())


class Connector(Protocol):
    """Stateless reader of one source."""

    def discover(self, window: Window, cursor: Cursor | None) -> list[Unit]:
        """Units in the window, by date and natural order of names, each with its digest where it has one.

        Raises BareCountError: source.not_found (missing folder or file), source.unreadable (permissions),
        source.unavailable (network, retryable).
        """
        ...

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        """The unit's own schema, from its header or metadata, without reading it whole."""
        ...

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        """Stream the unit in batches of bounded size; an empty unit yields nothing.

        Raises BareCountError source.malformed when no record can be told apart (truncated Parquet,
        a record above the size limit): then nothing of the unit lands.
        """
        ...
