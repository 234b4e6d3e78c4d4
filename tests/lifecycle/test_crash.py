"""A run killed at any point leaves nothing half done, and the next one ends where an uninterrupted one would."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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
KILLS: Mapping[int, Mapping[str, int]] = {  # per delivery, by stage; and once more after all is committed
    1: {OUTSIDE: 1, Stage.CALENDAR: 3, Stage.INGESTION: 4, Stage.NORMALIZATION: 2, Stage.KPI_BUILD: 1,
        Stage.PUBLISH: 2},
    2: {OUTSIDE: 1, Stage.INGESTION: 2, Stage.NORMALIZATION: 2, Stage.KPI_BUILD: 2, Stage.PUBLISH: 2},
}


@dataclass(frozen=True)
class Kill:
    """To be killed when the stop is reached, or up to `seconds` later: before the next step at the latest."""

    stop: Stop
    seconds: float = 0.0


@pytest.fixture(scope="module")
def uninterrupted(server: str, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return harness.uninterrupted(server, tmp_path_factory.getbasetemp())


@pytest.mark.crash
def test_runs_killed_at_random_points_of_every_stage_end_like_uninterrupted_ones(
    tmp_path: Path, server: str, uninterrupted: Uninterrupted
) -> None:
    settings = harness.project(tmp_path)
    database = harness.new_database(server, "crashed")
    chance = random.Random(SEED)
    killed: list[Step] = []
    print(f"seed {SEED}")
    declarations = load(PROJECT)
    with harness.watching(database, declarations) as analyst:
        for number, undisturbed in uninterrupted.runs.items():
            request = uninterrupted.deliveries.deliver(number, settings)
            for kill in _plan(chance, undisturbed, KILLS[number]):
                last = harness.attempt(settings, database, request, kill.stop).kill(kill.seconds)
                if last is None:
                    # The kill before came after the last commit, and nothing was left to do.
                    assert kill.stop.stage == Stage.PUBLISH, f"at its end before {kill}; killed so far: {killed}"
                    break
                killed.append(last)
                print(f"delivery {number}: killed in {last.stage}, before or in: {last.label}")
            harness.attempt(settings, database, request)
        sights = analyst.stop()

    by_stage = Counter(step.stage for step in killed)
    assert len(killed) >= 20
    assert all(by_stage[stage] >= 2 for stage in (OUTSIDE, *Stage)), by_stage
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


def _plan(chance: random.Random, undisturbed: Child, kills: Mapping[str, int]) -> list[Kill]:
    """Where to kill, in the order of the run, so that each attempt has something left to do when its turn comes.

    In each stage by turns exactly before a step, all of them equally likely, and in the middle of one; outside of the
    stages before the first of them; at last when all is committed and nobody has heard of it.
    """
    steps = [step for _, step in undisturbed.steps]
    begins = [at for at, _ in undisturbed.steps]
    first = next(number for number, step in enumerate(steps) if step.stage != OUTSIDE)
    committed = max(number for number, step in enumerate(steps)
                    if step.stage == Stage.PUBLISH and step.label == "end of transaction")
    chosen = []
    for stage, count in kills.items():
        own = [number for number, step in enumerate(steps[: committed + 1])
               if step.stage == stage and (stage != OUTSIDE or number < first)]
        for kill in range(count):
            number = chance.choice(own)
            chosen.append((number, 0.0 if kill % 2 == 0 else chance.uniform(0, begins[number + 1] - begins[number])))
    chosen.append((max(number for number, step in enumerate(steps) if step.stage == Stage.PUBLISH), 0.0))
    plan, landed = [], 0
    for number, seconds in sorted(chosen):
        stage = steps[number].stage
        before = sum(step.stage == stage for step in steps[:number])  # within the stage
        if stage == Stage.INGESTION:  # keeps what has landed: the next attempt begins there
            before, landed = before - landed, before
        plan.append(Kill(Stop(stage, before, hold=not seconds), seconds))
    return plan
