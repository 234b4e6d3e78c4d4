"""Calendars of a tenant: weekends, public holidays, business days, and the date table built from them.

Holidays come from the `holidays` package: the country's public holidays, with the days on which they are
observed. Their names are English where the package has them (`en_US`), else the country's own language; the
process's locale never matters. A business day is neither a weekend day nor a holiday. Fiscal years are in
`fiscal`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from resources.data_utilities.fiscal import (
    WEEKDAYS,
    FiscalSettings,
    fiscal_period_of,
    fiscal_periods,
    fiscal_year_end,
    fiscal_year_of,
)
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# Not from the standard library's `calendar`, whose names follow the process's locale.
MONTH_NAMES = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
FIRST_DAY, LAST_DAY = dt.date(1900, 1, 1), dt.date(2200, 12, 31)
"""A date beyond them is taken for a mistake: no calendar is extended to hold it."""

DAY_NAMES = tuple(name.capitalize() for name in WEEKDAYS)

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CalendarSettings:
    """A tenant's calendar.

    Attributes:
        country: ISO 3166-1 alpha-2 code, as in the `holidays` package.
        subdivision: ISO 3166-2 part (`ENG`), or None for the holidays of the whole country.
        weekend: weekday names, any number short of all seven.
        start, end: the days the date table holds, both included.
        fiscal: how years are cut.

    Raises:
        BareCountError: `declaration.invalid` when a weekday is unknown, no day is left to work on, or the
            range is empty. The country is looked up when holidays are first needed, since that import is
            slow: `check_country` does it early.
    """

    country: str
    subdivision: str | None
    weekend: tuple[str, ...]
    start: dt.date
    end: dt.date
    fiscal: FiscalSettings

    def __post_init__(self) -> None:
        unknown = [name for name in self.weekend if name not in WEEKDAYS]
        if unknown:
            raise BareCountError(
                ErrorCode.DECLARATION_INVALID,
                f"calendar.weekend has {', '.join(map(repr, unknown))}; allowed are {', '.join(WEEKDAYS)}",
            )
        if len(set(self.weekend)) == len(WEEKDAYS):
            raise BareCountError(
                ErrorCode.DECLARATION_INVALID,
                "calendar.weekend names all seven days, so no day is a business day",
                hint="leave out the days on which the tenant works",
            )
        if self.end < self.start:
            raise BareCountError(
                ErrorCode.DECLARATION_INVALID,
                f"calendar.range ends on {self.end}, before it starts on {self.start}",
            )


def covering(settings: CalendarSettings, first: dt.date, last: dt.date) -> CalendarSettings:
    """The calendar with a table that also holds the days from `first` to `last`: by whole fiscal years, and from the
    first day of a month on, since that is where a month's value lies. No day is before `FIRST_DAY` or after `LAST_DAY`.
    """
    month = first.replace(day=1)
    start = min(settings.start, month)
    if month < settings.start:
        start = min(month, fiscal_period_of(settings.fiscal, month).year_start)
    end = settings.end
    if last > settings.end:
        end = fiscal_year_end(settings.fiscal, fiscal_year_of(settings.fiscal, last))
    least, most = min(FIRST_DAY, settings.start), max(LAST_DAY, settings.end)
    return replace(settings, start=max(start, least), end=min(end, most))


def check_country(country: str, subdivision: str | None) -> None:
    """Refuses a country or subdivision that has no holiday calendar.

    Raises:
        BareCountError: `declaration.invalid`, with what is allowed.
    """
    from holidays.registry import EntityLoader

    countries = sorted(EntityLoader.get_country_codes(include_aliases=False))
    if country not in countries:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            f"calendar.country is {country!r}; allowed is an ISO 3166-1 alpha-2 code, such as DE, GB or US",
            details={"allowed": countries},
        )
    if subdivision is None:  # the country's module is slow to import, and nothing in it is asked for
        return
    import holidays

    subdivisions = getattr(holidays, country).subdivisions
    if subdivision not in subdivisions:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            f"calendar.subdivision is {subdivision!r}; allowed for {country} are"
            f" {', '.join(subdivisions) or 'none'}",
            hint="leave subdivision out to take the holidays of the whole country",
        )


@lru_cache(maxsize=4096)
def holidays_of_year(country: str, subdivision: str | None, year: int) -> Mapping[dt.date, str]:
    """The public holidays of one calendar year by date; several on one day are joined by "; "."""
    import holidays

    check_country(country, subdivision)
    entity = getattr(holidays, country)
    # Without an explicit language the package asks the environment (LANGUAGE, LC_ALL, LANG).
    language = "en_US" if "en_US" in entity.supported_languages else entity.default_language
    found = holidays.country_holidays(
        country, subdiv=subdivision, years=year, expand=False, language=language
    )
    return MappingProxyType({day: "; ".join(sorted(found.get_list(day))) for day in sorted(found)})


def is_business_day(settings: CalendarSettings, day: dt.date) -> bool:
    """Whether `day` is neither a weekend day nor a holiday; days outside the table's range count too."""
    return WEEKDAYS[day.weekday()] not in settings.weekend and day not in holidays_of_year(
        settings.country, settings.subdivision, day.year
    )


def add_business_days(settings: CalendarSettings, day: dt.date, n: int) -> dt.date:
    """The n-th business day after `day` (before it when n < 0), whether or not `day` is one itself.

    With n = 0: `day` if it is a business day, else the next one.
    """
    step = -_DAY if n < 0 else _DAY
    if n == 0:
        day, n = day - _DAY, 1
    remaining = abs(n)
    while remaining:
        day += step
        remaining -= is_business_day(settings, day)
    return day


def business_days(settings: CalendarSettings, start: dt.date, n: int) -> list[dt.date]:
    """The first `n` business days from `start` on, `start` included if it is one."""
    days: list[dt.date] = []
    while len(days) < n:
        if is_business_day(settings, start):
            days.append(start)
        start += _DAY
    return days


def calendar_schema() -> pa.Schema:
    """The date table's columns: those of `gdp.calendar`. Only `holiday_name` can be null."""
    import pyarrow as pa

    int32, date32, boolean, string = pa.int32(), pa.date32(), pa.bool_(), pa.string()
    columns = {
        "tenant_id": string,
        "date": date32,
        "date_key": int32,
        "year": int32,
        "quarter": int32,
        "month": int32,
        "month_name": string,
        "day": int32,
        "day_of_week": int32,
        "day_name": string,
        "iso_year": int32,
        "iso_week": int32,
        "day_of_year": int32,
        "is_weekend": boolean,
        "is_holiday": boolean,
        "holiday_name": string,
        "is_business_day": boolean,
        "business_day_index": int32,
        "business_day_of_month": int32,
        "month_start": date32,
        "month_end": date32,
        "fiscal_year": int32,
        "fiscal_quarter": int32,
        "fiscal_period": int32,
        "fiscal_week": int32,
        "fiscal_period_start": date32,
        "fiscal_period_end": date32,
    }
    return pa.schema(
        [pa.field(name, kind, nullable=name == "holiday_name") for name, kind in columns.items()]
    )


def date_table(tenant_id: str, settings: CalendarSettings) -> pa.Table:
    """One row per day from `settings.start` to `settings.end`, in order, as `calendar_schema()`.

    `business_day_index` is the number of business days from the table's first day to this one, both
    included: it rises by one on every business day and stands still between. `business_day_of_month` is
    the same from the first day of the month, also where the table starts later. The difference of two days'
    indices is the number of business days after the one, up to and including the other.

    Raises:
        BareCountError: `declaration.invalid` when the country or subdivision has no holiday calendar.
    """
    import numpy as np
    import pyarrow as pa

    # From the first of the month, so that the business days of a month cut off by the range are counted.
    lead_in = settings.start.day - 1
    days = np.arange(np.datetime64(settings.start, "D") - lead_in, np.datetime64(settings.end, "D") + 1)
    months = days.astype("M8[M]")
    weekday = (days.astype(np.int64) + 3) % 7  # Monday is 0; 1970-01-01 was a Thursday
    is_weekend = np.isin(weekday, [WEEKDAYS.index(name) for name in settings.weekend])
    names = _holiday_names(settings, days)
    is_holiday = names != ""
    is_business = ~is_weekend & ~is_holiday
    # business_before[i]: business days before row i; its last element is that of the day after the table.
    business_before = np.concatenate(([0], np.cumsum(is_business)))
    month_row = (months.astype("M8[D]") - days[0]).astype(np.int64)

    years = days.astype("M8[Y]")
    year = years.astype(np.int64) + 1970
    month = months.astype(np.int64) % 12 + 1
    day = (days - months).astype(np.int64) + 1
    thursday = days - weekday + 3  # ISO 8601: a week belongs to the year of its Thursday
    iso_years = thursday.astype("M8[Y]")

    columns = {
        "tenant_id": pa.repeat(tenant_id, len(days)),
        "date": days,
        "date_key": year * 10_000 + month * 100 + day,
        "year": year,
        "quarter": (month - 1) // 3 + 1,
        "month": month,
        "month_name": np.array(MONTH_NAMES)[month - 1],
        "day": day,
        "day_of_week": weekday + 1,
        "day_name": np.array(DAY_NAMES)[weekday],
        "iso_year": iso_years.astype(np.int64) + 1970,
        "iso_week": (thursday - iso_years).astype(np.int64) // 7 + 1,
        "day_of_year": (days - years).astype(np.int64) + 1,
        "is_weekend": is_weekend,
        "is_holiday": is_holiday,
        "holiday_name": pa.array(names, pa.string(), mask=~is_holiday),
        "is_business_day": is_business,
        "business_day_index": business_before[1:] - business_before[lead_in],
        "business_day_of_month": business_before[1:] - business_before[month_row],
        "month_start": months.astype("M8[D]"),
        "month_end": (months + 1).astype("M8[D]") - 1,
        **_fiscal_columns(settings.fiscal, days),
    }
    schema = calendar_schema()
    table = pa.table([pa.array(columns[field.name]).cast(field.type) for field in schema], schema=schema)
    return table.slice(lead_in)


def _holiday_names(settings: CalendarSettings, days: np.ndarray) -> np.ndarray:
    """The holiday of each day, "" where there is none."""
    import numpy as np

    names = np.full(len(days), "", dtype=object)
    first, last = days[0].item(), days[-1].item()
    for year in range(first.year, last.year + 1):
        for day, name in holidays_of_year(settings.country, settings.subdivision, year).items():
            if first <= day <= last:
                names[(day - first).days] = name
    return names


def _fiscal_columns(settings: FiscalSettings, days: np.ndarray) -> dict[str, np.ndarray]:
    import numpy as np

    periods = fiscal_periods(settings, days[0].item(), days[-1].item())
    starts = np.array([period.start for period in periods], dtype="M8[D]")
    row = np.searchsorted(starts, days, side="right") - 1  # the period each day lies in

    def of_period(attribute: str, kind: str) -> np.ndarray:
        return np.array([getattr(period, attribute) for period in periods], dtype=kind)[row]

    return {
        "fiscal_year": of_period("year", "i8"),
        "fiscal_quarter": of_period("quarter", "i8"),
        "fiscal_period": of_period("period", "i8"),
        "fiscal_week": (days - of_period("year_start", "M8[D]")).astype(np.int64) // 7 + 1,
        "fiscal_period_start": of_period("start", "M8[D]"),
        "fiscal_period_end": of_period("end", "M8[D]"),
    }
