"""When a failed delivery is tried again."""

from __future__ import annotations

import datetime as dt

from resources.action.delivery import schedule
from resources.action.delivery.adapters.base import retry_after_seconds
from resources.action.delivery.endpoints import Health

NOW = dt.datetime(2026, 3, 2, 9, 0, tzinfo=dt.UTC)
DECLARED = [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]


def test_there_are_nine_retries_each_within_a_fifth_of_its_wait() -> None:
    for attempt, seconds in enumerate(DECLARED, 1):
        waits = {schedule.wait_after(f"key-{number}", attempt).total_seconds() for number in range(200)}
        assert all(0.8 * seconds <= wait <= 1.2 * seconds for wait in waits)
        assert min(waits) < 0.85 * seconds and max(waits) > 1.15 * seconds and len(waits) > 190
    assert schedule.wait_after("key", len(DECLARED) + 1) is None


def test_the_jitter_of_one_delivery_is_always_the_same() -> None:
    assert schedule.wait_after("key", 3) == schedule.wait_after("key", 3) != schedule.wait_after("other", 3)


def test_what_the_receiver_asks_for_makes_a_wait_longer_and_never_shorter() -> None:
    assert schedule.wait_after("key", 1, 3600) == dt.timedelta(hours=1)
    assert schedule.wait_after("key", 2, 1) == schedule.wait_after("key", 2)
    assert schedule.wait_after("key", 1, 10**9) == dt.timedelta(hours=24)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_seconds("120", NOW) == 120
    assert retry_after_seconds("Mon, 02 Mar 2026 09:01:00 GMT", NOW) == 60
    assert retry_after_seconds("Mon, 02 Mar 2026 08:00:00 GMT", NOW) == 0
    assert retry_after_seconds("soon", NOW) is retry_after_seconds(None, NOW) is None


def test_a_circuit_opens_after_ten_failures_for_longer_each_time_and_closes_with_a_success() -> None:
    health, moment = Health(), NOW
    states = []
    for _ in range(10):
        health = health.after([False], moment)
        states.append(health.state)
    assert states == ["healthy"] * 2 + ["degraded"] * 7 + ["blocked"]
    for minutes in (1, 2, 4, 8, 16, 32, 60, 60):
        assert health.paused_until == moment + dt.timedelta(minutes=minutes)
        late = health.after([False, False], moment)  # were under way when the circuit opened
        assert late.paused_until == health.paused_until and late.openings == health.openings
        moment = health.paused_until
        health = health.after([False], moment)
    assert health.after([True], moment) == Health()
