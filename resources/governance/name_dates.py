"""Dates in the names of files: written in a declared format, or found by looking, to ask what they are.

A format is written as for strftime, with the directives below. What it leaves out begins the period: the first day of
a month, the Monday of a week.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ISO = "%Y-%m-%d"
_MONTHS = "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:tember)?|oct(?:ober)?|" \
    "nov(?:ember)?|dec(?:ember)?"
_DIRECTIVES = {
    "%Y": r"\d{4}", "%y": r"\d{2}", "%m": r"\d{2}", "%-m": r"\d{1,2}", "%d": r"\d{2}", "%-d": r"\d{1,2}",
    "%j": r"\d{3}", "%G": r"\d{4}", "%V": r"\d{2}", "%u": "[1-7]", "%b": "[A-Za-z]{3}", "%B": "[A-Za-z]{3,9}",
    "%H": r"\d{2}", "%M": r"\d{2}", "%S": r"\d{2}", "%f": r"\d{1,6}", "%%": "%",
}
DIRECTIVES = tuple(_DIRECTIVES)
_TIMES = frozenset({"%H", "%M", "%S", "%f"})
_TOKEN = re.compile(r"%-?.|.", re.DOTALL)


def problem_of(formats: Sequence[str], *, times: bool) -> str | None:
    """What keeps formats, which together tell one date, from being one; None for nothing."""
    directives = {token for text in formats for token in _TOKEN.findall(text) if token.startswith("%")} - {"%%"}
    known = set(_DIRECTIVES) if times else set(_DIRECTIVES) - _TIMES
    if unknown := sorted(directives - known):
        return f"{unknown[0]} is none of {', '.join(name for name in DIRECTIVES if name in known)}"
    if not directives & {"%Y", "%y", "%G"}:
        return "it tells no year"
    if ("%G" in directives) != ("%V" in directives):
        return "%G, the year of a week, and %V, the week, need each other"
    if directives & {"%d", "%-d"} and not directives & {"%m", "%-m", "%b", "%B"}:
        return "it tells a day of no month"
    return None


def pattern_of(format: str) -> str:
    """Regular expression of texts in a format, without groups; digits stand alone at both ends."""
    parts = [_DIRECTIVES.get(token) or re.escape(token) for token in _TOKEN.findall(format)]
    return rf"(?<!\d){''.join(parts)}(?!\d)"


def parse(texts: Sequence[str], formats: Sequence[str]) -> dt.datetime:
    """The time that texts in as many formats tell together.

    Raises:
        ValueError: there is no such day.
    """
    format = "\n".join(formats).replace("%-", "%")
    text = "\n".join(texts)
    if "%G" in format and "%u" not in format:
        format, text = f"{format}\n%u", f"{text}\n1"
    return dt.datetime.strptime(text, format)


@dataclass(frozen=True)
class NameDate:
    """Something in a name that looks like a date: where it stands, and the formats it can be read in."""

    start: int
    end: int
    formats: tuple[str, ...]


def look_for_date(name: str) -> NameDate | None:
    """The first thing in a name that looks like a date; a bare number that is none of the calendar's does not."""
    for pattern, formats in _LOOKS:
        for match in pattern.finditer(name):
            fitting = tuple(format for format in (_spelled(format, match) for format in formats)
                            if _fits(match[0], format))
            if fitting:
                return NameDate(match.start(), match.end(), fitting)
    return None


def common_file_names(names: Iterable[str]) -> list[str]:
    """Globs with `{date:FORMAT}` that read the date of every name, for names that differ only in it and after it."""
    listed = list(names)
    found = [look_for_date(name) for name in listed]
    if not listed or any(date is None for date in found):
        return []
    dates = [date for date in found if date is not None]
    heads = {name[: date.start] for name, date in zip(listed, dates, strict=True)}
    tails = {name[date.end:] for name, date in zip(listed, dates, strict=True)}
    if len(heads) != 1:
        return []
    formats = [format for format in dates[0].formats if all(format in date.formats for date in dates)]
    endings = {_ending(tail) for tail in tails}
    stem = tails.pop().removesuffix(next(iter(endings))) if len(tails) == 1 else ""
    ending = endings.pop() if len(endings) == 1 else ""
    head, stem, ending = (_glob_text(text) for text in (heads.pop(), stem, ending))
    return [f"{head}{{date}}{stem}*{ending}" if format == ISO else f"{head}{{date:{format}}}{stem}*{ending}"
            for format in formats]


def _ending(tail: str) -> str:
    """From the last dot on, in the last segment of a path."""
    return tail[at:] if (at := tail.rfind(".")) > tail.rfind("/") else ""


def _glob_text(text: str) -> str:
    """A glob that matches a text and nothing else."""
    return re.sub(r"[*?[]", lambda sign: f"[{sign[0]}]", text)


def _spelled(format: str, match: re.Match[str]) -> str:
    """The format with the separators that the text has."""
    separators = iter([sign for sign in match.groupdict().values() if sign is not None])
    return re.sub("~", lambda _: next(separators, "").replace("%", "%%"), format)


def _fits(text: str, format: str) -> bool:
    try:
        day = parse([text], [format])
    except ValueError:
        return False
    return re.fullmatch(pattern_of(format), text) is not None and 1970 <= day.year < 2100


_SIGN = r"[-_. /]"
_LOOKS: Sequence[tuple[re.Pattern[str], Sequence[str]]] = [
    (re.compile(rf"(?<!\d)\d{{4}}(?P<one>{_SIGN})\d{{2}}(?P<two>(?P=one))\d{{2}}(?!\d)"), ("%Y~%m~%d",)),
    (re.compile(rf"(?<!\d)\d{{2}}(?P<one>{_SIGN})\d{{2}}(?P<two>(?P=one))\d{{4}}(?!\d)"), ("%d~%m~%Y", "%m~%d~%Y")),
    (re.compile(rf"(?<!\d)\d{{1,2}}(?P<one>{_SIGN})\d{{1,2}}(?P<two>(?P=one))\d{{4}}(?!\d)"),
     ("%-d~%-m~%Y", "%-m~%-d~%Y")),
    (re.compile(r"(?<!\d)\d{8}(?!\d)"), ("%Y%m%d", "%d%m%Y", "%m%d%Y")),
    (re.compile(r"(?<!\d)(?:19|20)\d{12}(?!\d)"), ("%Y%m%d%H%M%S",)),
    (re.compile(r"(?<!\d)\d{4}(?P<one>[-_. ]?)[Ww]\d{2}(?!\d)"), ("%G~W%V", "%G~w%V")),
    (re.compile(rf"(?<!\d)\d{{1,2}}(?P<one>{_SIGN}?)(?:{_MONTHS})(?P<two>(?P=one))\d{{4}}(?!\d)", re.IGNORECASE),
     ("%d~%b~%Y", "%-d~%b~%Y", "%d~%B~%Y", "%-d~%B~%Y")),
    (re.compile(rf"(?<![A-Za-z])(?:{_MONTHS})(?P<one>{_SIGN}?)\d{{4}}(?!\d)", re.IGNORECASE), ("%b~%Y", "%B~%Y")),
    (re.compile(rf"(?<!\d)\d{{4}}(?P<one>{_SIGN}?)(?:{_MONTHS})(?![A-Za-z])", re.IGNORECASE), ("%Y~%b", "%Y~%B")),
    (re.compile(rf"(?<!\d)\d{{4}}(?P<one>{_SIGN})\d{{2}}(?!\d)"), ("%Y~%m",)),
    (re.compile(rf"(?<!\d)\d{{2}}(?P<one>{_SIGN})\d{{4}}(?!\d)"), ("%m~%Y",)),
    (re.compile(r"(?<!\d)(?:19|20)\d{4}(?!\d)"), ("%Y%m",)),
    (re.compile(r"(?<![A-Za-z])year=\d{4}(?P<one>/)month=\d{1,2}(?P<two>/)day=\d{1,2}(?!\d)"),
     ("year=%Y~month=%m~day=%d", "year=%Y~month=%-m~day=%-d")),
    (re.compile(rf"(?<!\d)\d{{2}}(?P<one>{_SIGN})\d{{2}}(?P<two>(?P=one))\d{{2}}(?!\d)"),
     ("%y~%m~%d", "%d~%m~%y", "%m~%d~%y")),
]
