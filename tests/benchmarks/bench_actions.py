"""Events the engine decides about in a second: python -m tests.benchmarks.bench_actions

Pure deciding (no database), then the whole of `jobs.evaluate`: read from the outbox, decide, store jobs with evidence.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resources.action import engine, jobs
from resources.action.model import Signal, State
from resources.runtime import embedded, events, migrations
from resources.runtime.database import Database
from resources.runtime.settings import Settings
from tests.conftest import PROJECT
from tests.integration.action.engine_world import NOW, World, rule

EVENTS = 50_000
STORED = 20_000
FIRING = 100  # one event in so many fires
RULES = [rule(), rule("far_too_high", condition="value > 90.0 && change > 10.0"),
         rule("odd", condition="score > 3.5", anomaly={"periods": 28})]


def _value(number: int) -> str:
    return "75.5" if number % FIRING == 0 else "41.25"


@dataclass(frozen=True)
class Rate:
    """Events a second, of the clock and of this process's processor time: the second says what a free machine does."""

    by_clock: float
    by_processor: float

    def __str__(self) -> str:
        return f"{self.by_clock:,.0f} events/s, {self.by_processor:,.0f} per second of processor time"


def _rate(events_read: int, work: Callable[[], None]) -> Rate:
    before, start = os.times(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, os.times()
    used = after.user + after.system - before.user - before.system
    return Rate(events_read / seconds, events_read / used)


def deciding(world: World) -> Rate:
    """Three rules each."""
    signals = []
    for number in range(EVENTS):
        data = {"kpi": "dso", "grain": "month", "period": "2026-03", "period_start": "2026-03-01",
                "value": _value(number), "dimensions": {"business_unit": f"u{number}"}, "publication_version": 1}
        signals.append(Signal(number + 1, f"e{number}", "acme", "barecount.kpi.changed", "dso", NOW,
                              {"subject": "dso", "data": data}))
    book = world.book

    def decide() -> None:
        assert len(engine.decide(book, signals, State(), NOW).jobs) == EVENTS // FIRING

    return _rate(EVENTS, decide)


def evaluating(world: World) -> Rate:
    """From the outbox to stored jobs, three rules each."""
    with world.database.transaction() as connection:
        events.append(connection, *(
            events.Event("acme", "kpi.changed", "dso", str(number), {
                "kpi": "dso", "pipeline": "order_to_cash", "grain": "month", "period": "2026-03", "unit": "days",
                "period_start": "2026-03-01", "value": _value(number), "previous": None, "publication_version": 1,
                "dimensions": {"business_unit": f"u{number}"}}) for number in range(STORED)))
    def evaluate() -> None:
        done = jobs.evaluate(world.database, world.declarations, world.book, lambda: NOW)
        assert (done.events, sum(done.jobs.values())) == (STORED, STORED // FIRING)

    return _rate(STORED, evaluate)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bc-bench-"))
    folder.chmod(0o755)
    try:
        url = embedded.start(folder)
        migrations.upgrade(url)
        settings = Settings(PROJECT, folder / "data", str(folder / "data" / "raw"), None)
        world = World.make(settings, Database(url, is_embedded=True), *RULES).publish()
        print(f"deciding, {len(RULES)} rules: {deciding(world)}")
        print(f"outbox to stored jobs, 1 in {FIRING} fires: {evaluating(world)}")
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
