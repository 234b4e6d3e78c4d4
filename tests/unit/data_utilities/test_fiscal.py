"""Fiscal calendars, against pandas' independent implementation and against their own definition."""

import datetime as dt
import itertools

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.tseries.offsets import FY5253, FY5253Quarter

from resources.data_utilities.fiscal import (
    PATTERNS,
    WEEKDAYS,
    YEAR_ENDS,
    FiscalSettings,
    fiscal_period_of,
    fiscal_periods,
    fiscal_year_end,
    fiscal_year_ends,
    fiscal_year_of,
    fiscal_year_periods,
)
from resources.runtime.errors import BareCountError, ErrorCode

DAY = dt.timedelta(days=1)
RETAIL = FiscalSettings("445", end_month=1, end_weekday="saturday", year_end="last")

week_years = st.builds(
    FiscalSettings,
    pattern=st.sampled_from(PATTERNS[1:]),
    end_month=st.integers(1, 12),
    end_weekday=st.sampled_from(WEEKDAYS),
    year_end=st.sampled_from(YEAR_ENDS),
)
standard_years = st.builds(FiscalSettings, pattern=st.just("standard"), start_month=st.integers(1, 12))
any_settings = st.one_of(standard_years, week_years)
days = st.dates(dt.date(1950, 1, 1), dt.date(2100, 12, 31))


@pytest.mark.parametrize("year_end", YEAR_ENDS)
@pytest.mark.parametrize("end_month", range(1, 13))
@pytest.mark.parametrize("weekday", range(7))
def test_year_ends_agree_with_pandas_over_100_years(year_end: str, end_month: int, weekday: int):
    settings = FiscalSettings("445", end_month=end_month, end_weekday=WEEKDAYS[weekday], year_end=year_end)
    theirs = pd.date_range(
        "1949-01-01", "2052-12-31", freq=FY5253(weekday=weekday, startingMonth=end_month, variation=year_end)
    )
    ours = fiscal_year_ends(settings, 1950, 2050)
    assert len(ours) == 101
    assert ours == [day.date() for day in theirs if ours[0] <= day.date() <= ours[-1]]


@pytest.mark.parametrize("year_end", YEAR_ENDS)
@pytest.mark.parametrize("weekday", range(7))
def test_quarter_ends_agree_with_pandas_when_the_53rd_week_is_in_the_last_quarter(
    year_end: str, weekday: int
):
    settings = FiscalSettings("445", end_month=1, end_weekday=WEEKDAYS[weekday], year_end=year_end)
    quarter = FY5253Quarter(weekday=weekday, startingMonth=1, qtr_with_extra_week=4, variation=year_end)
    ends = [
        period.end
        for year in range(1990, 2031)
        for period in fiscal_year_periods(settings, year)
        if period.period % 3 == 0
    ]
    for before, end in itertools.pairwise(ends):
        assert (pd.Timestamp(before) + quarter).date() == end


def test_a_standard_year_is_named_by_the_year_it_ends_in():
    april = FiscalSettings("standard", start_month=4)
    assert fiscal_year_end(april, 2026) == dt.date(2026, 3, 31)
    assert fiscal_year_of(april, dt.date(2026, 3, 31)) == 2026
    assert fiscal_year_of(april, dt.date(2026, 4, 1)) == 2027
    period = fiscal_period_of(april, dt.date(2024, 2, 29))
    assert (period.year, period.quarter, period.period) == (2024, 4, 11)
    assert (period.start, period.end) == (dt.date(2024, 2, 1), dt.date(2024, 2, 29))


def test_a_standard_year_from_january_is_the_calendar_year():
    january = FiscalSettings("standard", start_month=1)
    for month, period in enumerate(fiscal_year_periods(january, 2025), start=1):
        assert (period.year, period.period, period.start) == (2025, month, dt.date(2025, month, 1))


def test_a_week_year_that_slips_into_january_keeps_the_label_of_its_december():
    december = FiscalSettings("445", end_month=12, end_weekday="saturday", year_end="nearest")
    assert fiscal_year_ends(december, 2014, 2016) == [
        dt.date(2015, 1, 3),
        dt.date(2016, 1, 2),
        dt.date(2016, 12, 31),
    ]
    assert fiscal_year_of(december, dt.date(2015, 1, 3)) == 2014
    assert fiscal_year_of(december, dt.date(2015, 1, 4)) == 2015


@pytest.mark.parametrize(("pattern", "weeks"), [("445", (4, 4, 5)), ("454", (4, 5, 4)), ("544", (5, 4, 4))])
@pytest.mark.parametrize(("year", "extra"), [(2022, 0), (2026, 1)])
def test_the_53rd_week_goes_to_the_last_period(pattern: str, weeks: tuple, year: int, extra: int):
    settings = FiscalSettings(pattern, end_month=1, end_weekday="saturday", year_end="last")
    lengths = [((p.end - p.start).days + 1) / 7 for p in fiscal_year_periods(settings, year)]
    assert lengths == [*(weeks * 4)[:-1], weeks[-1] + extra]


def test_weeks_are_counted_from_the_first_day_of_the_year():
    first = fiscal_year_end(RETAIL, 2025) + DAY
    assert fiscal_period_of(RETAIL, first).week_of(first) == 1
    assert fiscal_period_of(RETAIL, first + 6 * DAY).week_of(first + 6 * DAY) == 1
    assert fiscal_period_of(RETAIL, first + 7 * DAY).week_of(first + 7 * DAY) == 2
    last = fiscal_year_end(RETAIL, 2026)
    assert fiscal_period_of(RETAIL, last).week_of(last) == 53


@given(any_settings, st.integers(1950, 2100))
def test_periods_tile_the_year(settings: FiscalSettings, year: int):
    periods = fiscal_year_periods(settings, year)
    assert [period.period for period in periods] == list(range(1, 13))
    assert [period.quarter for period in periods] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert periods[0].start == periods[0].year_start == fiscal_year_end(settings, year - 1) + DAY
    assert periods[-1].end == fiscal_year_end(settings, year)
    for period, following in itertools.pairwise(periods):
        assert period.start <= period.end == following.start - DAY


@given(any_settings, days)
def test_every_day_is_in_exactly_one_period(settings: FiscalSettings, day: dt.date):
    near = [p for year in range(day.year - 2, day.year + 3) for p in fiscal_year_periods(settings, year)]
    assert [p for p in near if p.start <= day <= p.end] == [fiscal_period_of(settings, day)]


@given(any_settings, days, st.integers(0, 800))
def test_the_periods_of_a_range_cover_it_and_no_more(settings: FiscalSettings, start: dt.date, n: int):
    end = start + n * DAY
    periods = fiscal_periods(settings, start, end)
    assert periods[0] == fiscal_period_of(settings, start)
    assert periods[-1] == fiscal_period_of(settings, end)
    for period, following in itertools.pairwise(periods):
        assert period.end == following.start - DAY


@given(week_years, st.integers(1950, 2100))
def test_a_week_year_has_52_or_53_whole_weeks_and_ends_on_its_weekday(settings: FiscalSettings, year: int):
    before, end = fiscal_year_ends(settings, year - 1, year)
    assert (end - before).days in (364, 371)
    assert WEEKDAYS[end.weekday()] == settings.end_weekday


@given(any_settings, days)
def test_fiscal_weeks_rise_by_one_every_seven_days(settings: FiscalSettings, day: dt.date):
    period, week_later = fiscal_period_of(settings, day), fiscal_period_of(settings, day + 7 * DAY)
    if period.year == week_later.year:
        assert week_later.week_of(day + 7 * DAY) == period.week_of(day) + 1
    assert 1 <= period.week_of(day) <= 53


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pattern": "446"}, "fiscal.pattern is '446'; allowed are standard, 445, 454, 544"),
        ({"pattern": "standard"}, "fiscal.start_month is missing"),
        ({"pattern": "standard", "start_month": 13}, "fiscal.start_month is 13"),
        ({"pattern": "standard", "start_month": True}, "fiscal.start_month is True"),
        (
            {"pattern": "standard", "start_month": 4, "end_month": 3},
            "has no such field; it takes start_month",
        ),
        (
            {"pattern": "445", "end_month": 1, "end_weekday": "sat", "year_end": "last"},
            "end_weekday is 'sat'",
        ),
        ({"pattern": "445", "end_month": 1, "end_weekday": "friday"}, "fiscal.year_end is missing"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(fields: dict, says: str):
    with pytest.raises(BareCountError) as refused:
        FiscalSettings(**fields)
    assert refused.value.code is ErrorCode.DECLARATION_INVALID
    assert says in refused.value.message
