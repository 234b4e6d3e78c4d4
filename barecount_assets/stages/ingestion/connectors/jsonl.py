"""JSON Lines: one strict JSON object per line, numbers kept as written until they meet their type.

RFC 8259 without the usual leniencies: UTF-8 only, no NaN or Infinity, no key twice in an object (which of
the two values was meant, nobody can say). A string is not a number, a number not a string, 1 not true, and
an object or array fits no field. Numbers never pass through binary floating point: `1.10` reaches a
numeric(18,2) and `_extra` as `1.10`. Undeclared keys go to `_extra`, with keys sorted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from barecount_assets.stages.ingestion.parsing import (
    BLOCK_BYTES,
    ByteStream,
    Column,
    Fault,
    Records,
    assemble,
    check,
    parse_text,
    shown,
    split_records,
)
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field, ObservedSchema, ParsedBatch

BATCH_RECORDS = 64 * 1024
"""Most records in one batch: parsed JSON takes several times its size on the line."""


@dataclass(frozen=True)
class JsonlFormat:
    """JSON Lines has no dialect."""

    def observe(self, stream: ByteStream, where: str) -> ObservedSchema:
        """Keys of the objects in the first block, in order of appearance."""
        names: dict[str, None] = {}
        for records in split_records(stream, where, rows=BATCH_RECORDS):
            for record in _parse(records)[0]:
                names.update(dict.fromkeys(record))
            break
        return ObservedSchema(tuple(names))

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
                yield _batch(records, schema, before)
                before += len(records)


class Number(str):
    """A JSON number, as written."""

    __slots__ = ()


def json_text(value: Any) -> str:
    """A parsed value as JSON text, keys sorted, numbers as they were written."""
    kind = type(value)
    if kind is str:
        return json.dumps(value, ensure_ascii=False)
    if kind is Number:
        return str.__str__(value)
    if kind is dict:
        return f"{{{','.join(f'{json_text(key)}:{json_text(value[key])}' for key in sorted(value))}}}"
    if kind is list:
        return f"[{','.join(map(json_text, value))}]"
    return json.dumps(value)  # true, false, null


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(key)} twice in one object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON number")


_decode: Callable[[str], Any] = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=_refuse_constant
).decode

_WHITESPACE = np.zeros(256, bool)
_WHITESPACE[list(b" \t\r\n")] = True
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a pair, or with its other half a character


def _blank(lines: Records) -> np.ndarray:
    """Mask of the lines that hold JSON whitespace only."""
    return np.logical_and.reduceat(_WHITESPACE[lines.data], lines.offsets[:-1])


def _parse(lines: Records) -> tuple[list[dict[str, Any]], list[int], list[Fault]]:
    """Objects, the positions of their lines, and the faults of the other lines."""
    objects, positions, faults = [], [], []

    def refuse(position: int, reason: str, message: str) -> None:
        faults.append(Fault(np.array([position]), None, reason, [message]))

    for position in range(len(lines)):
        line = lines[position]
        if b"\0" in line:
            refuse(position, "nul_byte", "found a NUL byte, allowed are characters")
            continue
        try:
            value = _decode(line.decode())
            if type(value) is dict and _SURROGATE.search(line):
                json_text(value).encode()
        except UnicodeDecodeError:
            refuse(position, "bad_encoding", "found bytes that are not utf-8")
        except UnicodeEncodeError:
            refuse(position, "bad_encoding", "found half of a surrogate pair, which is no character")
        except RecursionError:
            refuse(position, "malformed", "found objects nested too deeply, allowed one JSON object per line")
        except ValueError as error:
            refuse(position, "malformed", f"found {error}, allowed one strict JSON object per line")
        else:
            if type(value) is dict:
                objects.append(value)
                positions.append(position)
            else:
                refuse(position, "not_an_object", f"found {_found(value)}, allowed one JSON object per line")
    return objects, positions, faults


def _batch(lines: Records, schema: ExtractorSchema, before: int) -> ParsedBatch:
    objects, positions, faults = _parse(lines)
    parsed = np.array(positions, np.int64)
    columns = [
        _column(field, [record.get(field.source_name) for record in objects]) for field in schema.fields
    ]
    return assemble(
        schema,
        columns,
        _extras(objects, {field.source_name for field in schema.fields}),
        parsed=parsed,
        received=len(lines),
        before=before,
        faults=[*faults, *check(schema, columns, parsed)],
        payload=lines.take,
    )


def _column(field: Field, values: list[Any]) -> Column:
    """One field of all objects: values of another JSON kind are wrong before they are parsed."""
    kind = _kind(field.type)
    texts = [value if type(value) is kind else None for value in values]
    if kind is bool:
        typed = pa.array(texts, pa.bool_())
    else:
        typed = parse_text(field, pa.array(texts, pa.string()))
    wrong = None
    if typed.null_count != values.count(None):
        there = np.fromiter((value is not None for value in values), bool, len(values))
        wrong = there & typed.is_null().to_numpy(zero_copy_only=False)
    return Column(typed, wrong, lambda index: _found(values[index]))


def _kind(type_: pa.DataType) -> type:
    """The Python type of the JSON values that may become an Arrow type."""
    if pa.types.is_boolean(type_):
        return bool
    numeric = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    return Number if numeric else str


def _found(value: Any) -> str:
    if type(value) is dict:
        return "an object"
    if type(value) is list:
        return "an array"
    return shown(value) if type(value) is str else shown(json_text(value))[1:-1]


def _extras(objects: list[dict[str, Any]], declared: set[str]) -> pa.StringArray:
    texts = []
    for record in objects:
        names = record.keys() - declared
        texts.append(json_text({name: record[name] for name in names}) if names else None)
    return pa.array(texts, pa.string())
