"""Landed batches, read again under other contracts: from the raw store alone, which nobody has to have kept but us.

The rows of a batch's raw object meet the new types, undeclared values in `_extra` become the columns that now declare
them, and refused records are read again as a replay reads them (see `payloads`). Records keep their numbers. Objects
are only read: what comes out lands as a batch of its own. What a record was besides its typed values and extras
(quotes, blanks) is not in a raw object, so an accepted row that the new contracts refuse is in quarantine as one JSON
object.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from barecount_assets.stages.ingestion import json_texts
from barecount_assets.stages.ingestion.connectors import parquet
from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.connectors.files import file_format
from barecount_assets.stages.ingestion.parsing import Column, assemble, check, json_objects, text_column
from barecount_assets.stages.ingestion.payloads import CsvPayloads, JsonPayloads, MixedPayloads, renumbered
from barecount_assets.stages.ingestion.records import (
    EXTRA,
    JSON_TEXT,
    REJECT_SCHEMA,
    ROW_NUMBER,
    ExtractorSchema,
    Field,
    ObservedSchema,
    ParsedBatch,
)
from barecount_assets.stages.ingestion.rereading import AsStated, Rereading, rereading
from resources.governance.sources import FileSource

if TYPE_CHECKING:
    from resources.governance.sources import AnySource
    from resources.storage.raw_store import RawStore

BY_COLUMN = "quarantine/gdp/"
"""How the ids of batches begin whose refused records are rows of the raw table, by its column names."""

Reparse = Callable[[Sequence[bytes]], Iterator[ParsedBatch]]


def read(
    store: RawStore, batch: Mapping[str, Any], source: AnySource, observed: ObservedSchema, schema: ExtractorSchema,
    decided: Collection[int] = (),
) -> Iterator[ParsedBatch]:
    """Stream a landed batch in the fields of `schema`.

    Args:
        batch: its row of `platform.raw_batch`.
        source: the manifest's source: how the payloads of refused records are written.
        observed: what the unit itself said it has.
        decided: numbers of refused records that somebody replayed or gave up: they stay refused, as they are.

    Raises:
        BareCountError: store.corrupt.
    """
    schema = schema.named_as(observed.names)
    again = rereading_of(source, batch, observed)
    for rows in store.read(batch["object_key"]):
        if rows.num_rows:
            yield accepted(rows, schema, batch, again)
    yield from refused(store, batch, source, observed, schema, decided)


def rereading_of(source: AnySource, batch: Mapping[str, Any], observed: ObservedSchema) -> Rereading:
    """How a batch's values are read again, by what is on record of its types."""
    return rereading(source, observed.names, observed.types or batch["observed_types"])


def refused(
    store: RawStore, batch: Mapping[str, Any], source: AnySource, observed: ObservedSchema, schema: ExtractorSchema,
    decided: Collection[int] = (),
) -> Iterator[ParsedBatch]:
    """`read`, of the records in quarantine alone."""
    if batch["quarantine_key"] is None:
        return
    by_column, again = batch["source_id"].startswith(BY_COLUMN), rereading_of(source, batch, observed)
    reparse = _reparser(source, observed, schema.named_as(observed.names), again, by_column)
    numbers = pa.array(sorted(decided), pa.int64())
    for rejects in store.read(batch["quarantine_key"]):
        stays = pc.is_in(rejects.column("row_number"), value_set=numbers)
        if pc.any(stays).as_py():
            yield _as_they_are(rejects.filter(stays), schema)
            rejects = rejects.filter(pc.invert(stays))
        if rejects.num_rows:
            yield from _refused(rejects, schema, reparse)


# --- accepted rows ------------------------------------------------------------------------------------------


def accepted(
    rows: pa.RecordBatch, schema: ExtractorSchema, batch: Mapping[str, Any], again: Rereading
) -> ParsedBatch:
    """Rows of a batch's raw object in the fields of `schema`."""
    by_column = batch["source_id"].startswith(BY_COLUMN)
    originals = [{} if text is None else json_texts.members(text) for text in rows.column(EXTRA).to_pylist()]
    extras = [dict(members) for members in originals]
    columns = [_column(field, rows, extras, again) for field in schema.fields]
    for own in extras:
        for field in schema.fields:
            own.pop(field.source_name, None)
    parsed = np.arange(rows.num_rows)
    left = pa.array([json_texts.json_text(members) if members else None for members in extras], pa.string())
    read_again = assemble(
        schema, columns, left, parsed=parsed, received=rows.num_rows, before=0, faults=check(schema, columns, parsed),
        payload=lambda positions: _payloads(rows, originals, schema, positions, by_column),
    )
    return renumbered(read_again, rows.column(ROW_NUMBER).to_numpy())


def _column(field: Field, rows: pa.RecordBatch, extras: list[dict[str, Any]], again: Rereading) -> Column:
    """A field from its column, if the batch has one, else from the undeclared values."""
    elsewhere = field.names and any(field.source_name in members for members in extras)  # by an alias made since
    if field.name in rows.schema.names and not elsewhere:
        values = rows.column(field.name)
        was_json = _is_json(rows.schema.field(field.name))
        if was_json != field.json:
            return again.column(field, _parsed(values, was_json))
        if values.type == field.type:
            return Column(values, None, str)
        cast = parquet.cast_exact(values, field.type, field.time_zone)
        if cast.null_count == values.null_count:
            return Column(cast, None, str)
        return text_column(replace(field, format=None), values.cast(pa.string()), len(values))
    return again.column(field, [members.get(field.source_name) for members in extras])


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).items() >= JSON_TEXT.items()


def _parsed(values: pa.Array, are_json: bool) -> list[Any]:
    """Values of a raw object as JSON values."""
    texts = pc.fill_null(values, "null") if are_json else parquet.json_values(values)
    return [json_texts.value_of(text) for text in texts.to_pylist()]


def _payloads(
    rows: pa.RecordBatch, extras: list[dict[str, Any]], schema: ExtractorSchema, positions: np.ndarray,
    by_column: bool,
) -> list[bytes]:
    """Rows as JSON objects under the source's names (or the columns'), undeclared values included."""
    names = {} if by_column else {field.name: field.source_name for field in schema.fields}
    formats = {} if by_column else {field.name: field.format for field in schema.fields if field.format is not None}
    taken = rows.take(pa.array(positions))
    texts = json_objects({
        names.get(name, name): pc.fill_null(taken.column(name), "null") if _is_json(taken.schema.field(name))
        else parquet.json_values(_as_written(taken.column(name), formats.get(name)))
        for name in taken.schema.names if name not in (ROW_NUMBER, EXTRA)
    })
    assert texts is not None
    return [
        (f"{text[:-1]},{json_texts.json_text(extras[position])[1:]}" if extras[position] else text).encode()
        for text, position in zip(texts.to_pylist(), positions.tolist(), strict=True)
    ]


def _as_written(values: pa.Array, form: str | None) -> pa.Array:
    """Dates and times in the form (of strptime) that the source writes them in: so they are read again."""
    if form is None or not (pa.types.is_date(values.type) or pa.types.is_timestamp(values.type)):
        return values
    import polars as pl

    series = pl.from_arrow(values)
    assert isinstance(series, pl.Series)
    return series.dt.to_string(form.replace("%f", "%6f")).to_arrow().cast(pa.string())


# --- refused records ----------------------------------------------------------------------------------------


def _refused(rejects: pa.RecordBatch, schema: ExtractorSchema, reparse: Reparse) -> Iterator[ParsedBatch]:
    payloads = rejects.column("payload").to_pylist()
    numbers = rejects.column("row_number").to_numpy()
    batches = list(reparse(payloads)) if all(payloads) else []
    if sum(batch.received for batch in batches) == len(payloads):
        yield from (renumbered(batch, numbers) for batch in batches)
    else:  # records that cannot be told apart any more, an empty line among them, stay refused as they are
        yield _as_they_are(rejects, schema)


def _as_they_are(rejects: pa.RecordBatch, schema: ExtractorSchema) -> ParsedBatch:
    nothing = pa.RecordBatch.from_pylist([], schema=schema.arrow)
    return ParsedBatch(nothing, rejects.cast(REJECT_SCHEMA), rejects.num_rows)


def _reparser(
    source: AnySource, observed: ObservedSchema, schema: ExtractorSchema, again: Rereading, by_column: bool
) -> Reparse:
    """Parses payloads as records of the source's format; those of typed formats and of rows are JSON objects."""
    declared = file_format(source.format.model_dump()) if isinstance(source, FileSource) else None
    objects = JsonPayloads(schema, by_column, stated=again if isinstance(again, AsStated) else None)
    if by_column or not isinstance(declared, CsvFormat):
        return lambda payloads: iter([objects.parse(payloads, 0)])
    names = tuple(observed.names) or tuple(field.source_name for field in schema.fields)
    mixed = MixedPayloads(CsvPayloads(declared, names, schema), objects)
    return lambda payloads: iter([mixed.parse(payloads, 0)])


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
    in_text = isinstance(source, FileSource) and source.format.type == "csv"
    schema = ExtractorSchema((replace(field, type=pa.string(), json=not in_text, format=None, required=False),))
    for batch in batches:
        for parsed in read(store, batch, source, observed, schema):
            values = parsed.rows.column(field.name)
            yield values if in_text else pa.array(map(_unquoted, values.to_pylist()), pa.string())


def _unquoted(text: str | None) -> str | None:
    """A JSON text as a text format would have written its value."""
    return str(json_texts.value_of(text)) if text is not None and text.startswith('"') else text


def holds(
    store: RawStore, batches: Sequence[Mapping[str, Any]], source: AnySource, observed: ObservedSchema, field: Field
) -> bool:
    """Whether every value that landed batches have of a field is one of its type."""
    schema = ExtractorSchema((replace(field, required=False),))
    return not any(
        parsed.refused for batch in batches for parsed in read(store, batch, source, observed, schema))
