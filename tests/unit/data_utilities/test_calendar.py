"""The date table, against the standard library day by day, and the business-day helpers."""

import datetime as dt
import itertools
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.data_utilities.calendar import (
    FIRST_DAY,
    LAST_DAY,
    CalendarSettings,
    add_business_days,
    business_days,
    calendar_schema,
    check_country,
    covering,
    date_table,
    holidays_of_year,
    is_business_day,
)
from resources.data_utilities.fiscal import (
    WEEKDAYS,
    FiscalSettings,
    fiscal_period_of,
    fiscal_year_end,
    fiscal_year_of,
)
from resources.runtime.errors import BareCountError, ErrorCode

DAY = dt.timedelta(days=1)
APRIL = FiscalSettings("standard", start_month=4)
RETAIL = FiscalSettings("445", end_month=1, end_weekday="saturday", year_end="last")


def calendar_of(country: str = "GB", subdivision: str | None = "ENG", **changes) -> CalendarSettings:
    fields = {
        "weekend": ("saturday", "sunday"),
        "start": dt.date(2009, 1, 1),
        "end": dt.date(2030, 12, 31),
        "fiscal": APRIL,
    }
    return CalendarSettings(country, subdivision, **(fields | changes))


@pytest.mark.parametrize("fiscal", [APRIL, RETAIL])
@pytest.mark.parametrize(
    ("country", "subdivision", "weekend"),
    [
        ("GB", "ENG", ("saturday", "sunday")),
        ("DE", None, ("saturday", "sunday")),
        ("SA", None, ("friday", "saturday")),
    ],
)
def test_every_row_is_what_the_standard_library_says(
    country: str, subdivision: str | None, weekend: tuple[str, ...], fiscal: FiscalSettings
):
    calendar = calendar_of(country, subdivision, weekend=weekend, fiscal=fiscal)
    rows = date_table("acme", calendar).to_pylist()
    assert len(rows) == (calendar.end - calendar.start).days + 1
    index = of_month = 0
    for n, row in enumerate(rows):
        day = calendar.start + n * DAY
        iso = day.isocalendar()
        month_start = day.replace(day=1)
        holiday = holidays_of_year(country, subdivision, day.year).get(day)
        business = WEEKDAYS[day.weekday()] not in weekend and holiday is None
        index += business
        of_month = (0 if day.day == 1 else of_month) + business
        period = fiscal_period_of(fiscal, day)
        assert row == {
            "tenant_id": "acme",
            "date": day,
            "date_key": int(f"{day:%Y%m%d}"),
            "year": day.year,
            "quarter": (day.month + 2) // 3,
            "month": day.month,
            "month_name": f"{day:%B}",
            "day": day.day,
            "day_of_week": day.isoweekday(),
            "day_name": f"{day:%A}",
            "iso_year": iso.year,
            "iso_week": iso.week,
            "day_of_year": day.timetuple().tm_yday,
            "is_weekend": WEEKDAYS[day.weekday()] in weekend,
            "is_holiday": holiday is not None,
            "holiday_name": holiday,
            "is_business_day": business,
            "business_day_index": index,
            "business_day_of_month": of_month,
            "month_start": month_start,
            "month_end": (month_start + 31 * DAY).replace(day=1) - DAY,
            "fiscal_year": period.year,
            "fiscal_quarter": period.quarter,
            "fiscal_period": period.period,
            "fiscal_week": period.week_of(day),
            "fiscal_period_start": period.start,
            "fiscal_period_end": period.end,
        }


def test_the_table_has_the_declared_columns_and_no_null_but_where_there_is_no_holiday():
    table = date_table("acme", calendar_of())
    table.validate(full=True)
    assert table.schema == calendar_schema()
    assert {name for name in table.column_names if table[name].null_count} == {"holiday_name"}


def test_business_days_of_a_month_cut_off_by_the_range_are_counted_from_its_first_day():
    first = date_table("acme", calendar_of(start=dt.date(2026, 1, 20))).slice(0, 1).to_pylist()[0]
    assert first["business_day_index"] == 1
    assert first["business_day_of_month"] == 13  # 20 January 2026, New Year's Day being a holiday


@given(st.dates(dt.date(2009, 1, 1), dt.date(2030, 12, 31)), st.integers(0, 500))
@settings(max_examples=20)
def test_a_shorter_table_is_a_part_of_the_longer_but_for_its_index(start: dt.date, n: int):
    whole = date_table("acme", calendar_of(end=dt.date(2032, 12, 31)))
    part = date_table("acme", calendar_of(start=start, end=start + n * DAY))
    offset = (start - dt.date(2009, 1, 1)).days
    same = [name for name in part.column_names if name != "business_day_index"]
    assert part.select(same).equals(whole.slice(offset, n + 1).select(same))


def test_observed_holidays_are_no_business_days():
    assert not is_business_day(calendar_of(), dt.date(2026, 12, 28))  # for Boxing Day, a Saturday
    assert is_business_day(calendar_of("DE", None), dt.date(2026, 12, 28))


def test_holiday_names_do_not_follow_the_locale():
    script = (
        "import datetime as dt; from resources.data_utilities.calendar import holidays_of_year as h;"
        "print(h('DE', None, 2026)[dt.date(2026, 12, 26)], h('GB', 'ENG', 2026)[dt.date(2026, 5, 25)])"
    )
    environment = os.environ | {"LANG": "th_TH.UTF-8", "LANGUAGE": "th", "LC_ALL": "th_TH.UTF-8"}
    said = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "Second Day of Christmas Spring Bank Holiday"


def test_business_days_are_added_over_weekends_and_holidays():
    thursday_before_easter = dt.date(2026, 4, 2)
    assert add_business_days(calendar_of(), thursday_before_easter, 1) == dt.date(2026, 4, 7)
    assert add_business_days(calendar_of(), dt.date(2026, 4, 7), -1) == thursday_before_easter
    good_friday = dt.date(2026, 4, 3)
    assert add_business_days(calendar_of(), good_friday, 0) == dt.date(2026, 4, 7)
    assert add_business_days(calendar_of(), thursday_before_easter, 0) == thursday_before_easter


@given(st.dates(dt.date(2000, 1, 1), dt.date(2040, 1, 1)), st.integers(-60, 60))
def test_adding_business_days_agrees_with_numpy(day: dt.date, n: int):
    import numpy as np

    years = range(day.year - 1, day.year + 2)
    holidays = [date for year in years for date in holidays_of_year("GB", "ENG", year)]
    roll = "backward" if n > 0 else "forward"
    assert (
        add_business_days(calendar_of(), day, n)
        == np.busday_offset(day, n, roll=roll, holidays=holidays).item()
    )


@given(st.dates(dt.date(2000, 1, 1), dt.date(2040, 1, 1)), st.integers(1, 40))
def test_business_days_are_all_there_are_and_in_order(start: dt.date, n: int):
    days = business_days(calendar_of(), start, n)
    span = [start + i * DAY for i in range((days[-1] - start).days + 1)]
    assert days == [day for day in span if is_business_day(calendar_of(), day)]
    assert all(add_business_days(calendar_of(), a, 1) == b for a, b in itertools.pairwise(days))


def test_an_unknown_weekday_an_endless_weekend_and_an_empty_range_are_refused():
    for changes, says in (
        ({"weekend": ("saturday", "Sun")}, "'Sun'; allowed are monday"),
        ({"weekend": WEEKDAYS}, "all seven days"),
        ({"end": dt.date(2008, 12, 31)}, "ends on 2008-12-31, before it starts on 2009-01-01"),
    ):
        with pytest.raises(BareCountError) as refused:
            calendar_of(**changes)
        assert refused.value.code is ErrorCode.DECLARATION_INVALID
        assert says in refused.value.message


@pytest.mark.parametrize(
    ("country", "subdivision", "says"),
    [
        ("XX", None, "calendar.country is 'XX'"),
        ("GBR", None, "calendar.country is 'GBR'"),
        ("HolidayBase", None, "calendar.country is 'HolidayBase'"),
        ("GB", "BY", "calendar.subdivision is 'BY'; allowed for GB are ENG, NIR, SCT, WLS"),
    ],
)
def test_a_country_without_holiday_calendar_is_refused(country: str, subdivision: str | None, says: str):
    for ask in (
        lambda: check_country(country, subdivision),
        lambda: date_table("acme", calendar_of(country, subdivision)),
    ):
        with pytest.raises(BareCountError) as refused:
            ask()
        assert refused.value.code is ErrorCode.DECLARATION_INVALID
        assert says in refused.value.message


def test_importing_the_calendar_imports_nothing_heavy():
    script = (
        "import sys, resources.data_utilities.calendar;"
        "print(sorted({'numpy', 'pandas', 'pyarrow', 'holidays'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("fiscal", [
    FiscalSettings("standard", start_month=4),
    FiscalSettings("445", end_month=1, end_weekday="saturday", year_end="last"),
    FiscalSettings("544", end_month=12, end_weekday="monday", year_end="nearest"),
])
@given(st.dates(FIRST_DAY, LAST_DAY), st.dates(FIRST_DAY, LAST_DAY))
def test_an_extended_calendar_holds_the_days_their_months_and_whole_fiscal_years(fiscal, one, other):
    settings = CalendarSettings("GB", None, ("sunday",), dt.date(2020, 3, 5), dt.date(2026, 7, 9), fiscal)
    first, last = min(one, other), max(one, other)
    extended = covering(settings, first, last)
    assert extended.start <= min(settings.start, first.replace(day=1)) and extended.end >= max(settings.end, last)
    assert FIRST_DAY <= extended.start and extended.end <= LAST_DAY
    year_start = fiscal_period_of(fiscal, extended.start).year_start
    year_end = fiscal_year_end(fiscal, fiscal_year_of(fiscal, extended.end))
    assert extended.start in (settings.start, FIRST_DAY, year_start)
    assert extended.end in (settings.end, LAST_DAY, year_end)
    assert covering(extended, first, last) == extended
