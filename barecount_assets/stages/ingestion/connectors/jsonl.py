"""JSON Lines: one strict JSON object per line, numbers kept as written until they meet their type.

RFC 8259 without the usual leniencies: UTF-8 only, no NaN or Infinity, no key twice in an object (which of
the two values was meant, nobody can say). A string is not a number, a number not a string, 1 not true, and
an object or array fits no field but one of JSON, which takes any value. Numbers never pass through binary
floating point: `1.10` reaches a numeric(18,2) and `_extra` as `1.10`. Undeclared keys go to `_extra`, with
keys sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from barecount_assets.stages.ingestion.json_texts import (
    KIND_NAMES,
    Number,
    Refused,
    described,
    json_text,
    strict_object,
)
from barecount_assets.stages.ingestion.parsing import (
    BLOCK_BYTES,
    ByteStream,
    Column,
    Fault,
    Records,
    assemble,
    check,
    parse_text,
    split_records,
)
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field, ObservedSchema, ParsedBatch

BATCH_RECORDS = 64 * 1024
"""Most records in one batch: parsed JSON takes several times its size on the line."""

_OBSERVED_RECORDS = 1000
_OBSERVED_BYTES = 1 << 20


@dataclass(frozen=True)
class JsonlFormat:
    """JSON Lines has no dialect."""

    def observe(self, stream: ByteStream, where: str) -> ObservedSchema:
        """Keys of the first thousand objects, in order of appearance, and the kinds of JSON value each of them has."""
        kinds: dict[str, set[str]] = {}
        sampled = 0
        for records in split_records(stream, where, block_size=_OBSERVED_BYTES, rows=_OBSERVED_RECORDS):
            for line in records.take(np.arange(len(records))):
                with suppress(Refused):  # reported when it is read
                    for name, value in strict_object(line).items():
                        kinds.setdefault(name, set()).update(() if value is None else (KIND_NAMES[type(value)],))
                    sampled += 1
            break
        types = tuple("|".join(f"JSON {kind}" for kind in sorted(found)) or "JSON null" for found in kinds.values())
        return ObservedSchema(tuple(kinds), types, ordered=False, sampled=sampled)

    def read(
        self, stream: ByteStream, schema: ExtractorSchema, where: str, *, block_size: int = BLOCK_BYTES
    ) -> Iterator[ParsedBatch]:
        """Stream the records: lines of JSON whitespace are none.

        Raises:
            BareCountError: source.malformed for a line above the size limit.
        """
        before = 0
        for lines in split_records(stream, where, block_size=block_size, rows=BATCH_RECORDS):
            records = lines.select(~_blank(lines))
            if len(records):
                yield parse(records, schema, before)
                before += len(records)


def _blank(lines: Records) -> np.ndarray:
    """Mask of the lines that hold JSON whitespace only."""
    blank = np.zeros(len(lines), bool)
    for index in np.flatnonzero(lines.data[lines.offsets[:-1]] <= ord(" ")).tolist():
        blank[index] = not lines[index].strip(b" \t\r\n")
    return blank


@dataclass(frozen=True)
class TakenApart:
    """The objects of a block of lines, taken apart at once: keeping them would cost memory and collections.

    Attributes:
        values: per declared name, its value in each object, None where it is absent.
        extras: per object, the JSON text of its other fields, None for none.
        positions: per object, the position of its line.
        faults: of the other lines.
    """

    values: list[list[Any]]
    extras: list[str | None]
    positions: list[int]
    faults: list[Fault]


def take_apart(lines: Records, names: Sequence[str]) -> TakenApart:
    """The objects of a block of lines by member; `names` are those that are told apart from the others."""
    declared = set(names)
    parsed = TakenApart([[] for _ in names], [], [], [])
    sinks = [(name, values.append) for name, values in zip(names, parsed.values, strict=True)]
    for position in range(len(lines)):
        try:
            record = strict_object(lines[position])
        except Refused as refused:
            reason, message = refused.args
            parsed.faults.append(Fault(np.array([position]), None, reason, [message]))
            continue
        parsed.positions.append(position)
        for name, append in sinks:
            append(record.get(name))
        extra = None
        if not record.keys() <= declared:
            extra = json_text({name: value for name, value in record.items() if name not in declared})
        parsed.extras.append(extra)
    return parsed


def parse(lines: Records, schema: ExtractorSchema, before: int) -> ParsedBatch:
    """Lines, none of them blank, as records of the schema; `before` records of the unit came earlier."""
    records = take_apart(lines, [field.source_name for field in schema.fields])
    parsed = np.array(records.positions, np.int64)
    columns = [typed_column(field, values) for field, values in zip(schema.fields, records.values, strict=True)]
    return assemble(
        schema,
        columns,
        pa.array(records.extras, pa.string()),
        parsed=parsed,
        received=len(lines),
        before=before,
        faults=[*records.faults, *check(schema, columns, parsed)],
        payload=lines.take,
    )


def typed_column(field: Field, values: list[Any]) -> Column:
    """One field of all objects: values of another JSON kind are wrong before they are parsed.

    A field of JSON takes every value as it is.
    """
    if field.json:
        texts = [None if value is None else json_text(value) for value in values]
        return Column(pa.array(texts, pa.string()), None, lambda index: described(values[index]))
    kind = _kind(field.type)
    texts = values
    if not set(map(type, values)) <= {kind, type(None)}:
        texts = [value if type(value) is kind else None for value in values]
    if kind is bool:
        typed = pa.array(texts, pa.bool_())
    else:
        typed = parse_text(field, pa.array(texts, pa.string()))
    wrong = None
    if typed.null_count != values.count(None):
        there = np.fromiter((value is not None for value in values), bool, len(values))
        wrong = there & typed.is_null().to_numpy(zero_copy_only=False)
    return Column(typed, wrong, lambda index: described(values[index]))


def _kind(type_: pa.DataType) -> type:
    """The Python type of the JSON values that may become an Arrow type."""
    if pa.types.is_boolean(type_):
        return bool
    numeric = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    return Number if numeric else str
