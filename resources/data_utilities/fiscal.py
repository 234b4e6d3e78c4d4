"""Fiscal calendars: years of calendar months, and years of 52 or 53 whole weeks.

A *standard* fiscal year is twelve calendar months from `start_month`. A *week* year (patterns 445, 454 and
544) always ends on the same weekday: the last such day of `end_month`, or the one nearest to that month's
last day. It has 52 or 53 weeks; each quarter has three periods of as many weeks as the pattern's digits say,
and a 53rd week belongs to the last period.

The year's label is the calendar year of the month it ends in. For `nearest`, where the last day can slip
a few days into the month after, the label still is that of the `end_month` aimed at: the year that ends on
2015-01-03, nearest to December 2014, is 2014. (Labelling it by the day it ends on would give two years the
label 2016 and none 2015's.) Year ends are those of pandas' `FY5253`, variations `last` and `nearest`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from resources.runtime.errors import BareCountError, ErrorCode

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
PATTERNS = ("standard", "445", "454", "544")
YEAR_ENDS = ("last", "nearest")

_DAY = dt.timedelta(days=1)
_WEEK = dt.timedelta(weeks=1)


@dataclass(frozen=True, slots=True)
class FiscalSettings:
    """How a tenant cuts its years.

    Attributes:
        pattern: one of `PATTERNS`.
        start_month: standard only: month 1..12 the year starts in.
        end_month: week years only: month 1..12 the year ends in or near.
        end_weekday: week years only: the weekday every year ends on, one of `WEEKDAYS`.
        year_end: week years only: `last` such weekday of the month, or the one `nearest` to its last day.

    Raises:
        BareCountError: `declaration.invalid` when a field is missing, out of range or of the other kind.
    """

    pattern: str
    start_month: int | None = None
    end_month: int | None = None
    end_weekday: str | None = None
    year_end: str | None = None

    def __post_init__(self) -> None:
        _require("pattern", self.pattern, PATTERNS)
        weekly = {"end_month": self.end_month, "end_weekday": self.end_weekday, "year_end": self.year_end}
        months = {"start_month": self.start_month}
        needed, foreign = (months, weekly) if self.pattern == "standard" else (weekly, months)
        for field, value in foreign.items():
            if value is not None:
                raise BareCountError(
                    ErrorCode.DECLARATION_INVALID,
                    f"fiscal.{field} is {value!r}, but pattern {self.pattern!r} has no such field;"
                    f" it takes {', '.join(needed)}",
                    hint=f"remove {field}, or choose another pattern",
                )
        allowed = {"end_weekday": WEEKDAYS, "year_end": YEAR_ENDS}
        for field, value in needed.items():
            _require(field, value, allowed.get(field, tuple(range(1, 13))))


@dataclass(frozen=True, slots=True)
class FiscalPeriod:
    """One of the twelve periods of a fiscal year; `start` and `end` are inclusive."""

    year: int
    quarter: int
    period: int
    start: dt.date
    end: dt.date
    year_start: dt.date

    def week_of(self, day: dt.date) -> int:
        """Week 1..53 of the fiscal year `day` lies in; weeks are counted from the year's first day."""
        return (day - self.year_start).days // 7 + 1


def fiscal_year_end(settings: FiscalSettings, year: int) -> dt.date:
    """The last day of the fiscal year labelled `year`."""
    if settings.pattern == "standard":
        return _month_end(year, (settings.start_month + 10) % 12 + 1)
    month_end = _month_end(year, settings.end_month)
    days_back = (month_end.weekday() - WEEKDAYS.index(settings.end_weekday)) % 7
    last = month_end - days_back * _DAY
    return last + _WEEK if settings.year_end == "nearest" and days_back > 3 else last


def fiscal_year_ends(settings: FiscalSettings, from_year: int, to_year: int) -> list[dt.date]:
    """The last days of the fiscal years labelled `from_year` to `to_year`, both included."""
    return [fiscal_year_end(settings, year) for year in range(from_year, to_year + 1)]


def fiscal_year_periods(settings: FiscalSettings, year: int) -> tuple[FiscalPeriod, ...]:
    """The twelve periods of the fiscal year labelled `year`, in order, without gap or overlap."""
    year_start = fiscal_year_end(settings, year - 1) + _DAY
    year_end = fiscal_year_end(settings, year)
    if settings.pattern == "standard":
        ends = [_month_end(day.year, day.month) for day in _months_from(year_start)]
    else:
        weeks = [int(digit) for digit in settings.pattern] * 4
        weeks[-1] += (year_end - year_start).days // 7 - 51
        ends = [year_start + sum(weeks[: n + 1]) * _WEEK - _DAY for n in range(12)]
    starts = [year_start, *(end + _DAY for end in ends[:-1])]
    return tuple(
        FiscalPeriod(year, n // 3 + 1, n + 1, start, end, year_start)
        for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def fiscal_periods(settings: FiscalSettings, start: dt.date, end: dt.date) -> list[FiscalPeriod]:
    """The periods that hold the days `start` to `end`, in order: the first and the last may reach beyond."""
    years = range(fiscal_year_of(settings, start), fiscal_year_of(settings, end) + 1)
    periods = [period for year in years for period in fiscal_year_periods(settings, year)]
    return [period for period in periods if period.end >= start and period.start <= end]


def fiscal_year_of(settings: FiscalSettings, day: dt.date) -> int:
    """The label of the fiscal year `day` lies in."""
    # A year end lies at most three days outside its calendar year, so three candidates are enough.
    return next(year for year in range(day.year - 1, day.year + 2) if day <= fiscal_year_end(settings, year))


def fiscal_period_of(settings: FiscalSettings, day: dt.date) -> FiscalPeriod:
    """The one period `day` lies in."""
    periods = fiscal_year_periods(settings, fiscal_year_of(settings, day))
    return next(period for period in periods if day <= period.end)


def _month_end(year: int, month: int) -> dt.date:
    first_of_next = dt.date(year + month // 12, month % 12 + 1, 1)
    return first_of_next - _DAY


def _months_from(first: dt.date) -> Iterator[dt.date]:
    """The first days of the twelve months from `first` on."""
    for n in range(first.month - 1, first.month + 11):
        yield dt.date(first.year + n // 12, n % 12 + 1, 1)


def _require(field: str, value: object, allowed: tuple) -> None:
    # bool is an int, and `start_month: true` in YAML must not pass for January.
    if isinstance(value, bool) or value not in allowed:
        found = "missing" if value is None else repr(value)
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            f"fiscal.{field} is {found}; allowed are {', '.join(map(str, allowed))}",
        )
