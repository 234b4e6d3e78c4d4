"""The order of deliveries, as keys: texts whose binary order is the order of what they stand for.

A key never is the beginning of another one of its kind, so keys can be put one after the other and compare as tuples
do. In the raw store's register they are compared with collation "C", in Python as they are.
"""

from __future__ import annotations

import datetime as dt
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING

from resources.governance import name_dates
from resources.governance.sources import DateInName, NumberInName
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from resources.governance.sources import AnySource, FileSource

_END, _ESCAPE = "!", '"'  # the least characters of a key: what is shorter comes first
_NINES = str.maketrans("0123456789", "9876543210")
_EXPONENT = 10**6 // 2
LANDING_LENGTH = 12
"""Characters of a landing's key, which ends the key of every unit."""
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)  # no digit is rounded away

_NUMBERS = frozenset({"int", "float", "Decimal", "int2", "int4", "int8", "float4", "float8", "numeric", "oid"})
_TIMES = frozenset({"datetime", "timestamp", "timestamptz"})
"""Kinds of cursors, as connectors name them: types of Python, or of PostgreSQL."""


@dataclass(frozen=True)
class Delivered:
    """What a source's declared order may go by.

    Attributes:
        source_id: name of the unit.
        modified_at: the file's time, with zone.
        cursor, kind: end of the slice as text, and its type.
    """

    source_id: str
    modified_at: dt.datetime | None = None
    cursor: str | None = None
    kind: str | None = None


def declared_key(source: AnySource, unit: Delivered) -> str:
    """Key of a unit by the order its source declares; empty for that of landing. The landing's own key comes after it.

    Raises:
        BareCountError: source.malformed for a name without what it is to be ordered by.
    """
    by = source.ordered_by
    if by == "landing":
        return ""
    if source.connector == "files":
        return _key_of_file(source, unit)
    end = unit.cursor
    if end is None:  # a slice of records without a cursor's value: the first there are
        return ""
    if source.connector == "rest":
        assert source.incremental is not None
        format = source.incremental.format
        return _or_as_text(end, lambda: instant_key(dt.datetime.strptime(end, format)))
    return cursor_key(end, unit.kind or "")


def _key_of_file(source: FileSource, unit: Delivered) -> str:
    order, name = source.order, unit.source_id
    if order == "natural":
        return natural_key(name)
    if order == "modified":
        return instant_key(unit.modified_at or dt.datetime.fromtimestamp(0, dt.UTC))
    if isinstance(order, NumberInName):
        numbers = re.findall(r"[0-9]+", posixpath.splitext(posixpath.basename(name))[0])
        return number_key(int(_chosen(numbers, order.number, name, "number")))
    assert isinstance(order, DateInName)
    texts = re.findall(name_dates.pattern_of(order.date), name)
    if order.which is None and len(set(texts)) > 1:
        raise _unordered(name, f"{len(set(texts))} dates as {order.date}", "say which of them counts: which: 1, or -1")
    text = _chosen(texts, order.which or 1, name, f"date as {order.date}")
    try:
        return instant_key(name_dates.parse([text], [order.date]))
    except ValueError as error:
        raise _unordered(name, f"{text}, which is no day of the calendar", "rename it, or move it away") from error


def _chosen(found: list[str], which: int, name: str, what: str) -> str:
    at = which - 1 if which > 0 else which
    if not -len(found) <= at < len(found):
        raise _unordered(name, f"{len(found)} of the {what} number {which} is asked of" if found else f"no {what}",
                         "rename it, move it away, or declare another order")
    return found[at]


def _unordered(name: str, found: str, hint: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_MALFORMED, f"{name}: its name has {found}, so its place among the deliveries is unknown",
        hint=hint)


def cursor_key(value: str, kind: str) -> str:
    """Key of a cursor's value by its kind; what is neither number nor time is ordered as text."""
    if kind in _NUMBERS:
        return _or_as_text(value, lambda: number_key(Decimal(value)))
    if kind in _TIMES:
        return _or_as_text(value, lambda: instant_key(dt.datetime.fromisoformat(value)))
    return text_key(value)


def _or_as_text(value: str, key: Callable[[], str]) -> str:
    try:
        return key()
    except (ValueError, InvalidOperation):
        return f"~{text_key(value)}"  # after all that can be told apart


def landing_key(number: int) -> str:
    """Key of the number of a landing, which counts from 1."""
    return f"{number:0{LANDING_LENGTH}d}"


def replay_key(original: str, number: int) -> str:
    """Key of replayed records: after the delivery that held them, before every later one."""
    return f"{original}/{landing_key(number)}"


def number_key(value: int | Decimal) -> str:
    """Key of a finite number: its sign, its magnitude, its digits; all of it turned round below zero.

    Raises:
        ValueError: not a number, or infinite, or of half a million digits.
    """
    sign, digits, exponent = Decimal(value).normalize(_EXACT).as_tuple()
    if not isinstance(exponent, int) or abs(exponent + len(digits)) >= _EXPONENT:
        raise ValueError(f"{value} is no number that has an order")
    if not any(digits):
        return "1"
    text = f"{exponent + len(digits) + _EXPONENT:06d}{''.join(map(str, digits))}"
    return f"0{text.translate(_NINES)}~" if sign else f"2{text}{_END}"


def instant_key(value: dt.date | dt.datetime) -> str:
    """Key of a day, or of a time: one with an offset in UTC, one without as it stands."""
    if not isinstance(value, dt.datetime):
        return value.isoformat()
    plain = value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo is not None else value
    return plain.isoformat(timespec="microseconds")


def text_key(value: str) -> str:
    """Key of a text, by code points."""
    return _escaped(value) + _END


def natural_key(name: str) -> str:
    """Key of a name as people order names: runs of digits are numbers, and an extension comes after all else."""
    return "".join(f"{_natural(part)}{_END}" for part in posixpath.splitext(name))


def _natural(text: str) -> str:
    parts = re.split(r"([0-9]+)", text)
    return "".join(_counted(part.lstrip("0") or "0") if at % 2 else _escaped(part) for at, part in enumerate(parts))


def _counted(digits: str) -> str:
    """Digits after their number: 1 to 8 as it is, more in steps of 8."""
    steps, rest = divmod(len(digits) - 1, 8)
    return f"{'9' * steps}{rest + 1}{digits}"


def _escaped(text: str) -> str:
    return re.sub(r'[\x00-"]', lambda character: f"{_ESCAPE}{ord(character[0]):02x}", text)
