"""Dates in names of files: what looks like one, in which formats it can be read, and the globs that read it."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barecount_assets.stages.ingestion.connectors.files import partition_date_of
from resources.governance.name_dates import common_file_names, look_for_date, parse, problem_of

FORMATS = ["%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%d-%m-%Y", "%m_%d_%Y", "%Y_%m_%d", "%d%b%Y", "%d %B %Y", "%Y/%m/%d"]
MONTHS = ["%Y-%m", "%Y%m", "%b %Y", "%B-%Y", "%Y_%b"]


@given(st.dates(dt.date(1990, 1, 1), dt.date(2099, 12, 31)), st.sampled_from(FORMATS + MONTHS),
       st.sampled_from(["", "sales_", "sales-", "export 7 "]), st.sampled_from(["", "-b", "_eu"]))
def test_a_date_in_a_name_is_found_and_one_of_its_readings_is_the_date(
    day: dt.date, format: str, head: str, tail: str
) -> None:
    written = day.strftime(format)
    name = f"{head}{written}{tail}.csv"
    found = look_for_date(name)
    assert found is not None, name
    meant = day if format in FORMATS else day.replace(day=1)
    text = name[found.start:found.end]
    assert meant in {parse([text], [reading]).date() for reading in found.formats}, (text, found.formats)
    assert meant in {partition_date_of(name, glob) for glob in common_file_names([name])}


@pytest.mark.parametrize("name", [
    "export_10.csv", "part-0003.csv", "00000001.csv", "20261301.csv", "v1.2.3.csv", "sales_2026.csv", "1777777777.csv",
    "mayor_7.csv", "marching 12.csv", "a.csv", "",
])
def test_what_is_no_date_of_the_calendar_does_not_look_like_one(name: str) -> None:
    assert look_for_date(name) is None


def test_names_of_one_source_decide_between_readings_together() -> None:
    assert common_file_names(["r 04.05.2026.csv"]) == ["r {date:%d.%m.%Y}*.csv", "r {date:%m.%d.%Y}*.csv"]
    assert common_file_names(["r 04.05.2026.csv", "r 13.05.2026.csv"]) == ["r {date:%d.%m.%Y}*.csv"]
    assert common_file_names(["a_20260504.csv", "b_20260504.csv"]) == []
    assert common_file_names(["a_20260504.csv", "readme.csv"]) == []
    (glob,) = common_file_names(["[x]*20260504.csv"])
    assert partition_date_of("[x]*20260504.csv", glob) == dt.date(2026, 5, 4)


@pytest.mark.parametrize(("formats", "said"), [
    (["%d.%m"], "no year"), (["%Y-%d"], "a day of no month"), (["%Y%q"], "%q is none of"), (["%G"], "need each other"),
    (["%Y%m%d %H"], "%H is none of"), ([""], "no year"),
])
def test_a_format_that_tells_no_day_is_refused(formats: list[str], said: str) -> None:
    assert said in (problem_of(formats, times=False) or "")


def test_parts_of_a_date_are_read_together() -> None:
    assert problem_of(["%Y", "%m", "%d"], times=False) is None
    glob = "y={date:%Y}/m={date:%m}/{date:%d}-*.csv"
    assert partition_date_of("y=2026/m=02/28-1.csv", glob) == dt.date(2026, 2, 28)
    assert partition_date_of("2026-02-28_2026-02-27.csv", "{date}_{date}.csv") is None, "the same day every time"
