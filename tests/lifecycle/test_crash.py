"""A run killed at any point leaves nothing half done, and the next one ends where an uninterrupted one would."""

from __future__ import annotations

import bisect
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from barecount_assets import lifecycle
from barecount_assets.stages.environment import StageEnvironment
from resources.governance.declarations import load
from resources.runners.stage import Stage
from resources.runtime.database import fetch
from tests.lifecycle import harness
from tests.lifecycle.harness import OUTSIDE, PROJECT, Child, State, Step, Stop, Uninterrupted

SEED = int(os.environ.get("BARECOUNT_CRASH_SEED", "20260102"))
KILLS: Mapping[int, Mapping[str, int]] = {  # per delivery, by stage
    1: {OUTSIDE: 1, Stage.CALENDAR: 3, Stage.INGESTION: 2, Stage.NORMALIZATION: 2, Stage.KPI_BUILD: 2,
        Stage.PUBLISH: 2},
    2: {OUTSIDE: 1, Stage.INGESTION: 3, Stage.NORMALIZATION: 3, Stage.KPI_BUILD: 2, Stage.PUBLISH: 3},
}


@pytest.fixture(scope="module")
def uninterrupted(server: str, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return harness.uninterrupted(server, tmp_path_factory.getbasetemp())


@pytest.mark.crash
def test_runs_killed_at_random_points_of_every_stage_end_like_uninterrupted_ones(
    tmp_path: Path, server: str, uninterrupted: Uninterrupted
) -> None:
    settings = harness.project(tmp_path, like=uninterrupted.settings)
    database = harness.new_database(server, "crashed")
    chance = random.Random(SEED)
    killed: list[Step] = []
    print(f"seed {SEED}")
    declarations = load(PROJECT)
    with harness.watching(database, declarations) as analyst:
        for number, undisturbed in uninterrupted.runs.items():
            request = uninterrupted.deliveries.deliver(number, settings)
            for stop, delay in _plan(chance, undisturbed, KILLS[number]):
                child = harness.attempt(settings, database, request, stop)
                time.sleep(delay)
                last = child.kill()
                if last is not None:  # else the kill before came after the last commit, and nothing was left to do
                    killed.append(last)
                    print(f"killed in {last.stage}, before or in: {last.label}")
            harness.attempt(settings, database, request)
        sights = analyst.stop()

    by_stage = Counter(step.stage for step in killed)
    assert len(killed) >= 20
    assert all(by_stage[stage] >= 2 for stage in Stage), by_stage
    differences = State.of(database, settings).differences(uninterrupted.states[2])
    assert not differences, "\n".join(differences)
    lifecycle.close_abandoned(StageEnvironment(settings, database, declarations))
    with database.connect(autocommit=True) as connection:
        unfinished = fetch(connection, "select status from dagster.runs where status not in ('SUCCESS', 'FAILURE')")
    assert not unfinished, "Dagster takes killed runs for running ones, and starts no others beside them"
    allowed = harness.publications(database)
    assert len(allowed) == 3
    assert set(sights) <= set(allowed), "an analyst saw something that was never published as a whole"
    assert allowed[1] in sights and allowed[2] in sights


def _plan(chance: random.Random, undisturbed: Child, kills: Mapping[str, int]) -> Iterator[tuple[Stop, float]]:
    """Where to kill, and how many seconds later; stages come in the order of the run.

    In each stage by turns exactly before a step, all of them equally likely, and at some moment, all of them equally
    likely. Ingestion keeps what has landed, so that a kill leaves fewer steps to the next attempt.
    """
    begins = [at for at, _ in undisturbed.steps]
    ends = [*begins[1:], begins[-1]]
    for stage in dict.fromkeys(step.stage for _, step in undisturbed.steps):
        own = [number for number, (_, step) in enumerate(undisturbed.steps) if step.stage == stage]
        left = len(own)
        for kill in range(kills.get(stage, 0)):
            span = own[: max(1, left * 2 // 3)] if stage == Stage.INGESTION else own
            if kill % 2 == 0:
                number = chance.randrange(len(span))
                yield Stop(stage, number, hold=True), 0.0
            else:
                moment = chance.uniform(0, sum(ends[step] - begins[step] for step in span))
                number, delay = _at(moment, [ends[step] - begins[step] for step in span])
                yield Stop(stage, number, hold=False), delay
            left -= number


def _at(moment: float, durations: Sequence[float]) -> tuple[int, float]:
    """Which of consecutive durations a moment falls into, and how far."""
    ends = list(itertools.accumulate(durations))
    number = min(bisect.bisect_right(ends, moment), len(ends) - 1)
    return number, moment - (ends[number] - durations[number])
