"""Where a stage runs is the environment's business: the numbers stay the same, and evidence says where it ran."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import FIRST_DAY, LAST_DAY, Books, Project, three_months, unchanged_environment


@pytest.fixture(scope="module")
def in_process(new_project: Callable[..., Project]) -> Project:
    project = new_project()
    three_months(Books(project.folder("acme")))
    assert project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY).error is None
    return project


@pytest.fixture(scope="module")
def in_processes(new_project: Callable[..., Project]) -> Project:
    project = new_project()
    project = replace(project, settings=replace(project.settings, environment="local-processes"))
    three_months(Books(project.folder("acme")))
    return project


def killer(done: threading.Event, name: str) -> Callable[[], None]:
    """Kills the first payload of a stage that it finds among the children of this process."""

    def kill() -> None:
        while not done.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                try:
                    words = child.cmdline()
                except psutil.Error:
                    continue
                if "barecount_assets.stages" in words and f'"stage": "{name}"' in words[-1]:
                    os.kill(child.pid, signal.SIGKILL)
                    return

    return kill


def test_a_payload_that_dies_without_a_word_is_an_error_that_says_what_is_known(in_processes: Project) -> None:
    done = threading.Event()
    thread = threading.Thread(target=killer(done, "normalization"))
    thread.start()
    outcome = in_processes.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
    done.set()
    thread.join()
    events = in_processes.rows(
        "select envelope -> 'data' -> 'error' ->> 'code' from platform.event where type = 'barecount.stage.failed'")
    assert events[0] == (ErrorCode.RUNNER_LOST.value,)
    if outcome.error is not None:  # the step's own retries may have brought it to its end
        assert outcome.error.code is ErrorCode.RUNNER_LOST
        assert "-9" in outcome.error.message


def test_a_stage_in_a_process_of_its_own_leaves_what_it_leaves_in_process(
    in_process: Project, in_processes: Project
) -> None:
    outcome = in_processes.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
    assert outcome.error is None
    assert in_processes.gdp_hashes("order_to_cash", "acme") == in_process.gdp_hashes("order_to_cash", "acme")
    assert in_processes.publication_hashes("acme") == in_process.publication_hashes("acme")


def test_evidence_says_where_a_stage_ran(in_process: Project, in_processes: Project) -> None:
    for project, backend in ((in_process, "in_process"), (in_processes, "subprocess")):
        bodies = project.rows("select body from platform.evidence where kind like '%.finished'")
        runners = [json.loads(body)["payload"]["runner"] for (body,) in bodies]
        assert {runner["backend"] for runner in runners} == {backend}
        assert all(runner["class"] == "container" and "psycopg" in runner["drivers"] for runner in runners)
        decided = {str(number) for (number,) in project.rows("select decision_id from platform.policy_decision")}
        for runner in runners:
            assert runner["policy_decisions"] and set(runner["policy_decisions"].split(", ")) <= decided
            assert runner["instance"] and len(runner["code"]) == 64 and "tenant=acme" in runner["cost_tags"]


def test_no_payload_outlives_its_run(in_processes: Project) -> None:
    left = [c for c in psutil.Process().children(recursive=True) if "barecount_assets.stages" in c.cmdline()]
    assert left == []


def test_the_entry_point_speaks_json_without_dagster(in_process: Project) -> None:
    from barecount_assets.lifecycle import RunRequest, specs
    from resources.runners.work import RunSpec

    manifest = in_process.environment.declarations.pipeline("order_to_cash")
    spec = specs(manifest, RunRequest("order_to_cash", "acme", FIRST_DAY, LAST_DAY), probe=True)[-1]
    with unchanged_environment():
        os.environ.update(in_process.variables)
        run_spec = RunSpec(spec, {"backend": "by hand"}, 600).text()
        ran, usage = (
            subprocess.run([sys.executable, "-m", "barecount_assets.stages", argument], capture_output=True, text=True,
                           timeout=120)
            for argument in (run_spec, "{}"))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["receipt"]["changed"] is False
    assert usage.returncode == 2 and "RUN_SPEC" in usage.stderr
