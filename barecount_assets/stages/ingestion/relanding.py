"""Landed batches, read again under other contracts: from the raw store alone, which nobody has to have kept but us.

The rows of a batch's raw object meet the new types, undeclared values in `_extra` become the columns that now declare
them, and refused records are read again as a replay reads them (see `payloads`). Records keep their numbers. Objects
are only read: what comes out lands as a batch of its own. What a record was besides its typed values and extras
(quotes, blanks) is not in a raw object, so an accepted row that the new contracts refuse is in quarantine as one JSON
object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from barecount_assets.stages.ingestion.connectors import jsonl, parquet
from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.connectors.files import file_format
from barecount_assets.stages.ingestion.parsing import Column, assemble, check, json_objects, text_column
from barecount_assets.stages.ingestion.payloads import CsvPayloads, JsonPayloads
from barecount_assets.stages.ingestion.records import (
    EXTRA,
    REJECT_SCHEMA,
    ROW_NUMBER,
    ExtractorSchema,
    Field,
    ObservedSchema,
    ParsedBatch,
)
from resources.governance.sources import FileSource

if TYPE_CHECKING:
    from resources.governance.sources import AnySource
    from resources.storage.raw_store import RawStore

Reparse = Callable[[Sequence[bytes]], Iterator[ParsedBatch]]


def read(
    store: RawStore, batch: Mapping[str, Any], source: AnySource, observed: ObservedSchema, schema: ExtractorSchema
) -> Iterator[ParsedBatch]:
    """Stream a landed batch in the fields of `schema`.

    Args:
        batch: its row of `platform.raw_batch`.
        source: the manifest's source: how the payloads of refused records are written.
        observed: what the unit itself said it has.

    Raises:
        BareCountError: store.corrupt.
    """
    for rows in store.read(batch["object_key"]):
        if rows.num_rows:
            yield _accepted(rows, schema)
    if batch["quarantine_key"] is not None:
        reparse = _reparser(source, observed, schema)
        for rejects in store.read(batch["quarantine_key"]):
            yield from _refused(rejects, schema, reparse)


# --- accepted rows ------------------------------------------------------------------------------------------


def _accepted(rows: pa.RecordBatch, schema: ExtractorSchema) -> ParsedBatch:
    originals = [{} if text is None else jsonl.members(text) for text in rows.column(EXTRA).to_pylist()]
    extras = [dict(members) for members in originals]
    columns = [_column(field, rows, extras) for field in schema.fields]
    parsed = np.arange(rows.num_rows)
    left = pa.array([jsonl.json_text(members) if members else None for members in extras], pa.string())
    batch = assemble(
        schema, columns, left, parsed=parsed, received=rows.num_rows, before=0, faults=check(schema, columns, parsed),
        payload=lambda positions: _payloads(rows, originals, schema, positions),
    )
    return _renumbered(batch, rows.column(ROW_NUMBER).to_numpy())


def _column(field: Field, rows: pa.RecordBatch, extras: list[dict[str, Any]]) -> Column:
    """A field from its column, if the batch has one, else from the undeclared values, which it takes away."""
    if field.name in rows.schema.names:
        values = rows.column(field.name)
        if values.type == field.type:
            return Column(values, None, str)
        cast = parquet.cast_exact(values, field.type, field.time_zone)
        if cast.null_count == values.null_count:
            return Column(cast, None, str)
        return text_column(replace(field, format=None), values.cast(pa.string()), len(values))
    texts = pa.array([_text(members.pop(field.source_name, None)) for members in extras], pa.string())
    return text_column(field, texts, len(texts))


def _text(value: Any) -> str | None:
    """An undeclared value as a text format would have written it."""
    if value is None or type(value) is str:
        return value
    return jsonl.json_text(value)


def _payloads(
    rows: pa.RecordBatch, extras: list[dict[str, Any]], schema: ExtractorSchema, positions: np.ndarray
) -> list[bytes]:
    """Rows as JSON objects under the source's names, undeclared values included."""
    names = {field.name: field.source_name for field in schema.fields}
    taken = rows.take(pa.array(positions))
    texts = json_objects({
        names.get(name, name): parquet.json_values(taken.column(name))
        for name in taken.schema.names if name not in (ROW_NUMBER, EXTRA)
    })
    assert texts is not None
    return [
        (f"{text[:-1]},{jsonl.json_text(extras[position])[1:]}" if extras[position] else text).encode()
        for text, position in zip(texts.to_pylist(), positions.tolist(), strict=True)
    ]


# --- refused records ----------------------------------------------------------------------------------------


def _refused(rejects: pa.RecordBatch, schema: ExtractorSchema, reparse: Reparse) -> Iterator[ParsedBatch]:
    payloads = rejects.column("payload").to_pylist()
    numbers = rejects.column("row_number").to_numpy()
    batches = list(reparse(payloads)) if all(payloads) else []
    if sum(batch.received for batch in batches) == len(payloads):
        yield from (_renumbered(batch, numbers) for batch in batches)
    else:  # records that cannot be told apart any more, an empty line among them, stay refused as they are
        nothing = pa.RecordBatch.from_pylist([], schema=schema.arrow)
        yield ParsedBatch(nothing, rejects.cast(REJECT_SCHEMA), rejects.num_rows)


def _reparser(source: AnySource, observed: ObservedSchema, schema: ExtractorSchema) -> Reparse:
    """Parses payloads as records of the source's format; those of typed formats and of rows are JSON objects."""
    declared = file_format(source.format.model_dump()) if isinstance(source, FileSource) else None
    objects = JsonPayloads(schema)
    if not isinstance(declared, CsvFormat):
        return lambda payloads: iter([objects.parse(payloads, 0)])
    lines = CsvPayloads(declared, tuple(observed.names) or tuple(f.source_name for f in schema.fields), schema)

    def mixed(payloads: Sequence[bytes]) -> Iterator[ParsedBatch]:
        # A batch that was read again holds both: no sound CSV record begins with a brace and a quote.
        is_object = np.array([payload.startswith(b'{"') for payload in payloads])
        for mask, reader in ((~is_object, lines), (is_object, objects)):
            at = np.flatnonzero(mask)
            if len(at):
                yield _renumbered(reader.parse([payloads[i] for i in at.tolist()], 0), at + 1)

    return mixed


def _renumbered(batch: ParsedBatch, numbers: np.ndarray) -> ParsedBatch:
    """The batch, its record k under the number `numbers[k - 1]`."""
    rows, rejects = batch.rows, batch.rejects
    own = numbers[rows.column(ROW_NUMBER).to_numpy() - 1]
    refused = numbers[rejects.column("row_number").to_numpy() - 1]
    at = rows.schema.get_field_index(ROW_NUMBER)
    return ParsedBatch(
        rows.set_column(at, rows.schema.field(at), pa.array(own, pa.int64())),
        rejects.set_column(0, rejects.schema.field(0), pa.array(refused, pa.int64())),
        batch.received, batch.original,
    )


# --- types of values ----------------------------------------------------------------------------------------

_CANDIDATES: Sequence[tuple[str, str]] = (  # the first whose pattern every value matches
    ("boolean", r"\A(?i:true|false)\z"),
    ("bigint", r"\A[+-]?(?:0|[1-9][0-9]{0,17})\z"),
    ("numeric", r"\A[+-]?(?:0|[1-9][0-9]{0,26})(?:\.[0-9]{1,9})?\z"),
    ("date", r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\z"),
    ("timestamptz", r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?"
     r" ?(?:Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)\z"),
    ("timestamp", r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?\z"),
)


def infer_type(texts: Iterator[pa.Array]) -> str:
    """The narrowest contract type that every value can have; `text` for none. A code like `007` is no number."""
    left = dict(_CANDIDATES)
    whole, decimals, anything = 0, 0, False
    for chunk in texts:
        values = chunk.drop_null()
        values = values.filter(pc.not_equal(values, ""))
        anything = anything or len(values) > 0
        left = {name: pattern for name, pattern in left.items()
                if pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py()}
        fractions = pc.utf8_length(pc.replace_substring_regex(values, r"\A[^.]*\.?", ""))
        decimals = max(decimals, pc.max(fractions).as_py() or 0)
        whole = max(whole, pc.max(pc.utf8_length(values)).as_py() or 0)
    if not anything or not left:
        return "text"
    kind = next(iter(left))
    scale = max(2, min(decimals, 9))
    return f"numeric({18 if whole + scale <= 18 else 38},{scale})" if kind == "numeric" else kind


def values_of(
    store: RawStore, batches: Sequence[Mapping[str, Any]], source: AnySource, observed: ObservedSchema, field: Field
) -> Iterator[pa.Array]:
    """One field of landed batches as text, in chunks, whatever its type was."""
    schema = ExtractorSchema((field,))
    for batch in batches:
        for parsed in read(store, batch, source, observed, schema):
            yield parsed.rows.column(field.name)
