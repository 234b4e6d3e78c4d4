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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
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

MAX_DEPTH = 100
"""Most levels of objects and arrays: what is accepted must not depend on how deep the interpreter can go."""

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
                        kinds.setdefault(name, set()).update(() if value is None else (_KIND_NAMES[type(value)],))
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


class Number(str):
    """A JSON number, as written."""

    __slots__ = ()


_KIND_NAMES: dict[type, str] = {str: "string", Number: "number", bool: "boolean", dict: "object", list: "array"}


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


def members(text: str) -> dict[str, Any]:
    """The members of a valid JSON object, numbers as they were written."""
    return _decode(text)


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

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a pair, or with its other half a character


def _blank(lines: Records) -> np.ndarray:
    """Mask of the lines that hold JSON whitespace only."""
    blank = np.zeros(len(lines), bool)
    for index in np.flatnonzero(lines.data[lines.offsets[:-1]] <= ord(" ")).tolist():
        blank[index] = not lines[index].strip(b" \t\r\n")
    return blank


@dataclass(frozen=True)
class _Parsed:
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


def _parse(lines: Records, names: Sequence[str]) -> _Parsed:
    declared = set(names)
    parsed = _Parsed([[] for _ in names], [], [], [])
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


class Refused(ValueError):
    """Reason and message of a line that is no strict object."""


def strict_object(line: bytes) -> dict[str, Any]:
    if b"\0" in line:
        raise Refused("nul_byte", "found a NUL byte, allowed are characters")
    try:
        value = _decode(line.decode())
        if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise RecursionError
        if _SURROGATE.search(line):
            json_text(value).encode()
    except UnicodeDecodeError:
        raise Refused("bad_encoding", "found bytes that are not utf-8") from None
    except UnicodeEncodeError:
        raise Refused("bad_encoding", "found half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise Refused(
            "malformed", f"found more than {MAX_DEPTH} levels of nesting, the most allowed"
        ) from None
    except ValueError as error:
        raise Refused("malformed", f"found {error}, allowed one strict JSON object per line") from None
    if type(value) is not dict:
        raise Refused("not_an_object", f"found {_found(value)}, allowed one JSON object per line")
    return value


def _depth(value: Any) -> int:
    """Levels of objects and arrays, counted without recursion."""
    depth, level = 0, [value]
    while level := [inner for inner in level if type(inner) in (dict, list)]:
        depth += 1
        level = [child for inner in level for child in (inner.values() if type(inner) is dict else inner)]
    return depth


def parse(lines: Records, schema: ExtractorSchema, before: int) -> ParsedBatch:
    """Lines, none of them blank, as records of the schema; `before` records of the unit came earlier."""
    records = _parse(lines, [field.source_name for field in schema.fields])
    parsed = np.array(records.positions, np.int64)
    columns = [_column(field, values) for field, values in zip(schema.fields, records.values, strict=True)]
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


def _column(field: Field, values: list[Any]) -> Column:
    """One field of all objects: values of another JSON kind are wrong before they are parsed."""
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
