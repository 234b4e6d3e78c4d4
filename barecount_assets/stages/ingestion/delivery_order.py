"""The order of deliveries, as keys: texts whose binary order is the order of what they stand for.

A key never is the beginning of another one of its kind, so keys can be put one after the other and compare as tuples
do. In the raw store's register they are compared with collation "C", in Python as they are.
"""

from __future__ import annotations

import datetime as dt
import posixpath
import re
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal

_END, _ESCAPE = "!", '"'  # the least characters of a key: what is shorter comes first
_NINES = str.maketrans("0123456789", "9876543210")
_EXPONENT = 10**6 // 2
_LANDING_DIGITS = 12
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)  # no digit is rounded away


def landing_key(number: int) -> str:
    """Key of the number of a landing, which counts from 1."""
    return f"{number:0{_LANDING_DIGITS}d}"


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
