"""A run that is killed at any point leaves nothing half done, and the next one ends where an uninterrupted one would."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from resources.governance.declarations import load
from resources.runners.stage import Stage
from resources.runtime.database import Database
from resources.runtime.settings import Settings
from tests.lifecycle import harness
from tests.lifecycle.harness import PROJECT, Child, Deliveries, State

SEED = 20260102
KILLS = {  # per delivery, by stage
    1: {"outside": 1, Stage.INGESTION: 2, Stage.CALENDAR: 2, Stage.NORMALIZATION: 2, Stage.KPI_BUILD: 2, Stage.PUBLISH: 2},
    2: {"outside": 1, Stage.INGESTION: 3, Stage.NORMALIZATION: 3, Stage.KPI_BUILD: 2, Stage.PUBLISH: 3},
}


@dataclass(frozen=True)
class Uninterrupted:
    """What came of both deliveries when nobody disturbed the runs, and the steps those took."""

    state: State
    runs: dict[int, Child]


@pytest.fixture(scope="module")
def deliveries(tmp_path_factory: pytest.TempPathFactory) -> Deliveries:
    return Deliveries.make(tmp_path_factory.mktemp("sample"))


def _settings(folder: Path) -> Settings:
    return Settings(PROJECT, folder, str(folder / "raw"), None)


@pytest.mark.crash
def test_runs_killed_at_random_points_of_every_stage_end_like_uninterrupted_ones(
    tmp_path: Path, deliveries: Deliveries, new_database: Callable[[], Database], capsys: pytest.CaptureFixture[str]
) -> None:
    harness.warm_up()
    undisturbed = _settings(tmp_path / "undisturbed")
    expected = new_database()
    runs = {}
    for number in (1, 2):
        runs[number] = harness.finish(undisturbed, expected, deliveries.deliver(number, undisturbed))

    disturbed = _settings(tmp_path / "disturbed")
    database = new_database()
    chance = random.Random(SEED)
    killed: Counter[str] = Counter()
    with harness.watching(database, load(PROJECT)) as analyst:
        for number in (1, 2):
            request = deliveries.deliver(number, disturbed)
            for stop, delay in _plan(chance, runs[number], KILLS[number]):
                child = harness.run(disturbed, database, request, stop)
                reached = child.until_stop()
                if reached is None:
                    assert child.ended is not None
                    code = (child.ended.error or {}).get("code")
                    assert child.ended.error is None or code == "run.in_progress", child.ended
                    with capsys.disabled():
                        print("not reached", stop, child.ended)
                    continue
                time.sleep(delay)
                last = child.kill()
                assert last is not None
                killed[last.stage] += 1
                with capsys.disabled():
                    print(f"{sum(killed.values()):3} killed in {last.stage}: {last.label}   ({stop}, {delay:.3f})")
            harness.finish(disturbed, database, request)
        sights = analyst.stop()

    print(f"seed {SEED}, kills by stage: {dict(killed)}")
    assert killed.total() >= 20
    assert all(killed[stage] >= 2 for stage in Stage), killed
    differences = State.of(database, disturbed).differences(State.of(expected, undisturbed))
    assert not differences, "\n".join(differences)
    allowed = harness.publications(database)
    assert len(allowed) == 3
    assert set(sights) <= set(allowed), "an analyst saw something that was never published as a whole"
    assert allowed[1] in sights and allowed[2] in sights


def _plan(chance: random.Random, undisturbed: Child, kills: dict[str, int]) -> Iterator[tuple[harness.Stop, float]]:
    """Where to kill, stages in the order of the run: steps drawn from those that an undisturbed run took, by turns
    exactly before the step and some time after it.

    Ingestion keeps what has landed, so that each kill leaves fewer steps to the next attempt.
    """
    from tests.lifecycle.child import Stop

    exact = itertools.cycle((True, False))
    times = [at for at, _ in undisturbed.steps]
    for stage in dict.fromkeys(step.stage for _, step in undisturbed.steps):
        own = [number for number, (_, step) in enumerate(undisturbed.steps) if step.stage == stage]
        left = len(own)
        for _ in range(kills.get(stage, 0)):
            step = chance.randrange(max(1, left * 2 // 3) if stage == Stage.INGESTION else left)
            if stage == Stage.INGESTION:
                left -= step
            hold = next(exact)
            gap = times[min(own[step] + 1, len(times) - 1)] - times[own[step]]
            yield Stop(stage, step, hold), 0.0 if hold else chance.uniform(0, min(gap, 0.5))
