"""Rules of time zones, against Python's zoneinfo reading the same database: gaps, folds, skipped days, odd offsets."""

from __future__ import annotations

import datetime as dt
import io
import zoneinfo
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.data_utilities.time_zones import rules_of

ZONES = (
    "Europe/London", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Apia", "America/Sao_Paulo",
    "Africa/Cairo", "Africa/Casablanca", "Australia/Lord_Howe", "Europe/Dublin", "America/Havana", "America/St_Johns",
    "Asia/Gaza", "Pacific/Kiritimati", "Antarctica/Troll", "Asia/Tehran", "Europe/Amsterdam", "UTC", "Etc/GMT+5",
)  # fmt: skip
EPOCH = dt.datetime(1970, 1, 1)
MICROSECOND = dt.timedelta(microseconds=1)
moments = st.datetimes(dt.datetime(1850, 1, 1), dt.datetime(2200, 6, 1))


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    content = files("tzdata.zoneinfo").joinpath(*name.split("/")).read_bytes()
    return zoneinfo.ZoneInfo.from_file(io.BytesIO(content), key=name)


def micros(moment: dt.datetime) -> int:
    return (moment - EPOCH) // MICROSECOND


def instants_by_zoneinfo(zone: zoneinfo.ZoneInfo, wall: dt.datetime) -> set[int]:
    """Instants at which the zone's clocks show a time: both folds, unless the round trip shows another time."""
    found = set()
    for fold in (0, 1):
        instant = wall.replace(tzinfo=zone, fold=fold).astimezone(dt.UTC)
        if instant.astimezone(zone).replace(tzinfo=None) == wall:
            found.add(micros(instant.replace(tzinfo=None)))
    return found


@pytest.mark.parametrize("name", ZONES)
@settings(deadline=None, max_examples=60)
@given(st.lists(moments, min_size=1, max_size=20))
def test_an_instant_is_shown_as_the_zone_shows_it(name: str, instants: list[dt.datetime]) -> None:
    zone = zone_of(name)
    expected = [micros(i.replace(tzinfo=dt.UTC).astimezone(zone).replace(tzinfo=None)) for i in instants]
    assert rules_of(name).walls(np.array([micros(i) for i in instants], np.int64)).tolist() == expected


@pytest.mark.parametrize("name", ZONES)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_times_near_a_change_of_clocks_are_shown_once_or_refused(name: str, data: st.DataObject) -> None:
    rules, zone = rules_of(name), zone_of(name)
    changes = [EPOCH + dt.timedelta(seconds=start) for start in rules.starts] or [EPOCH]
    near = st.tuples(st.sampled_from(changes), st.integers(-30 * 3600, 30 * 3600)).map(
        lambda pair: pair[0] + dt.timedelta(seconds=pair[1]))
    for wall in data.draw(st.lists(near, min_size=1, max_size=20)):
        expected = instants_by_zoneinfo(zone, wall)
        instants, once = rules.instants(np.array([micros(wall)], np.int64))
        assert once.tolist() == [len(expected) == 1]
        if len(expected) == 1:
            assert {int(instants[0])} == expected


def test_a_day_that_a_zone_skipped_has_no_instant_and_the_next_instant_is_two_days_on() -> None:
    rules = rules_of("Pacific/Apia")
    skipped = micros(dt.datetime(2011, 12, 30, 12))
    assert rules.instants(np.array([skipped], np.int64))[1].tolist() == [False]
    midnight = micros(dt.datetime(2011, 12, 30, 10))  # UTC, when the 29th ended
    shown = rules.walls(np.array([midnight - 1, midnight], np.int64)).tolist()
    assert [EPOCH + dt.timedelta(microseconds=w) for w in shown] == [
        dt.datetime(2011, 12, 29, 23, 59, 59, 999999), dt.datetime(2011, 12, 31)]


def test_a_zone_that_nobody_knows_is_refused() -> None:
    for name in ("Europe/Atlantis", "", "../secret", "Europe", "__init__.py", "zone.tab"):
        with pytest.raises(ValueError):
            rules_of(name)


@pytest.mark.parametrize("name", ZONES)
def test_the_text_for_models_holds_every_rule(name: str) -> None:
    rules = rules_of(name)
    numbers = [int(number) for number in rules.as_text().split()]
    assert (tuple(numbers[1::2]), tuple(numbers[0::2])) == (rules.starts, rules.offsets)
