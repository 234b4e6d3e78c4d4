"""JSON as the platform keeps it: read strictly, written in one spelling, numbers as the source wrote them.

Strict is RFC 8259 without the usual leniencies: no NaN or Infinity, no key twice in an object (which of the two values
was meant, nobody can say), no half of a surrogate pair, at most `MAX_DEPTH` levels. One spelling is: keys sorted, no
blanks, numbers as they were written, so that the same value is the same text wherever it came from. Numbers never pass
through binary floating point.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
"""Most levels of objects and arrays: what is accepted must not depend on how deep the interpreter can go."""
_MAX_SHOWN = 80


class Number(str):
    """A JSON number, as written."""

    __slots__ = ()


KIND_NAMES: dict[type, str] = {str: "string", Number: "number", bool: "boolean", dict: "object", list: "array"}


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


def value_of(text: str) -> Any:
    """A valid JSON text, parsed; numbers as they were written."""
    return _decode(text)


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


class Refused(ValueError):
    """Reason and message of a line that is no strict object."""


def canonical(text: str | None) -> str | None:
    """A JSON text in the one spelling of its value; None for what is no strict JSON, and for none at all."""
    if text is None:
        return None
    try:
        value = _value(text.encode())
    except (Refused, ValueError, RecursionError):
        return None
    return json_text(value)


def strict_object(line: bytes) -> dict[str, Any]:
    """The members of a line that is a strict JSON object; raises Refused for any other."""
    if b"\0" in line:
        raise Refused("nul_byte", "found a NUL byte, allowed are characters")
    try:
        value = _value(line)
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
        raise Refused("not_an_object", f"found {described(value)}, allowed one JSON object per line")
    return value


def _value(line: bytes) -> Any:
    value = _decode(line.decode())
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise RecursionError
    if _SURROGATE.search(line):
        json_text(value).encode()
    return value


def _depth(value: Any) -> int:
    """Levels of objects and arrays, counted without recursion."""
    depth, level = 0, [value]
    while level := [inner for inner in level if type(inner) in (dict, list)]:
        depth += 1
        level = [child for inner in level for child in (inner.values() if type(inner) is dict else inner)]
    return depth


def described(value: Any) -> str:
    """A parsed value as messages show it."""
    if type(value) is dict:
        return "an object"
    if type(value) is list:
        return "an array"
    return shown(value) if type(value) is str else shown(json_text(value))[1:-1]


def shown(text: str) -> str:
    """A value from the source as messages show it: quoted, escaped, cut to a readable length."""
    return json.dumps(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…", ensure_ascii=False)
