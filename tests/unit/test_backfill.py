"""A back-fill's partitions are the calendar's, cut to the range, and together they are the range."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, cast

import pytest

from barecount_assets.backfill import BackfillRequest, Granularity, partitions_of
from barecount_assets.lifecycle import RunRequest
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import declarations
from resources.runtime.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]


def parts(granularity: Granularity, start: str, end: str) -> list[tuple[str, str]]:
    environment = StageEnvironment(
        Settings(PROJECT, PROJECT, "", None), cast(Any, None), declarations.load(PROJECT))
    run = RunRequest("order_to_cash", "acme", dt.date.fromisoformat(start), dt.date.fromisoformat(end))
    found = partitions_of(environment, BackfillRequest(run, granularity, "marco"))
    assert [part.first for part in found[1:]] == [part.last + dt.timedelta(days=1) for part in found[:-1]]
    return [(str(part.first), str(part.last)) for part in found]


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("month", [("2026-01-15", "2026-01-31"), ("2026-02-01", "2026-02-28"), ("2026-03-01", "2026-03-02")]),
        ("fiscal_period", [("2026-01-15", "2026-01-31"), ("2026-02-01", "2026-02-28"), ("2026-03-01", "2026-03-02")]),
    ],
)
def test_months_and_fiscal_periods(granularity: Granularity, expected: list[tuple[str, str]]) -> None:
    assert parts(granularity, "2026-01-15", "2026-03-02") == expected


def test_weeks_end_on_sunday_and_days_stand_alone() -> None:
    assert parts("week", "2026-01-15", "2026-01-20") == [("2026-01-15", "2026-01-18"), ("2026-01-19", "2026-01-20")]
    assert parts("day", "2026-01-15", "2026-01-16") == [("2026-01-15", "2026-01-15"), ("2026-01-16", "2026-01-16")]
    assert parts("month", "2026-01-15", "2026-01-15") == [("2026-01-15", "2026-01-15")]
