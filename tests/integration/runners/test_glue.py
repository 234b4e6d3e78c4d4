"""A stage as the run of a Glue job: the call that starts it, and the payload that really runs from its arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import boto3
import dagster as dg

from resources.host.runner_catalog import Glue
from resources.runners.backends.glue import GlueBackend
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from tests.integration.runners.conftest import ENVIRONMENT, JOB, World

DECLARED = ENVIRONMENT.backend_of("managed_etl")


def backend(world: World) -> GlueBackend:
    assert isinstance(DECLARED, Glue)
    return GlueBackend(DECLARED, world.aws)


def test_a_stage_on_glue_leaves_what_it_leaves_in_process(world: World, new_database: Callable[[], Database]) -> None:
    work, glue = world.work("managed_etl"), boto3.client("glue")
    left = glue.start_job_run(JobName=JOB, Arguments={"--tag-run_token": work.tags["run_token"]})["JobRunId"]
    world.jobs()
    world.cloud.fail("glue.StartJobRun", "ConcurrentRunsExceededException")
    outcome = world.run(backend(world), work)
    assert outcome.error is None and outcome.receipt is not None
    here = world.in_process(new_database())
    assert outcome.receipt.outputs == here.outputs and outcome.receipt.counts == here.counts
    runs = {run["Id"]: run["JobRunState"] for run in glue.get_job_runs(JobName=JOB)["JobRuns"]}
    assert runs == {left: "STOPPED", outcome.receipt.runner["instance"]: "SUCCEEDED"}
    assert [call["JobRunIds"] for call in world.cloud.made("glue.BatchStopJobRun")] == [[left]]
    *_, call = world.cloud.made("glue.StartJobRun")
    assert (call["JobName"], call["WorkerType"], call["NumberOfWorkers"], call["Timeout"]) == (
        JOB, "G.1X", 5, 125)
    assert {f"--tag-{name}" for name in ("tenant", "pipeline", "stage", "run_token")} <= set(call["Arguments"])
    assert world.database.admin_url not in world.sent() and world.left_in_s3() == []


def test_a_profile_without_a_job_starts_nothing(world: World) -> None:
    error = world.run(backend(world), world.work("managed_etl", network="vpn")).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_UNKNOWN
    assert world.cloud.made("glue.StartJobRun") == []


def test_a_run_that_glue_ends_at_its_timeout_is_an_error_that_says_so(world: World, locked: None) -> None:
    def end(machine: subprocess.Popen, run: Any) -> None:
        run.status = "TIMEOUT"
        machine.kill()

    world.jobs(then=end)
    error = world.run(backend(world), world.work("managed_etl")).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_TIMEOUT
    assert "5 minutes after its 7200 s" in error.message
    assert world.ended() and world.left_in_s3() == []


def test_a_cancelled_run_leaves_no_job_run_behind(world: World, locked: None) -> None:
    world.jobs(then=lambda *_: (time.sleep(2), os.kill(os.getpid(), signal.SIGINT)))
    error = world.run(backend(world), world.work("managed_etl")).error
    assert isinstance(error, (KeyboardInterrupt, dg.DagsterExecutionInterruptedError))
    states = [run["JobRunState"] for run in boto3.client("glue").get_job_runs(JobName=JOB)["JobRuns"]]
    assert states and "RUNNING" not in states and "STARTING" not in states and world.ended()
    assert len(world.cloud.made("glue.BatchStopJobRun")) == 1


def test_a_job_with_another_role_than_the_stages_is_not_run(world: World) -> None:
    declared = DECLARED.model_copy(update={"stage_role": "of-others"})
    error = world.run(GlueBackend(declared, world.aws), world.work("managed_etl")).error
    assert isinstance(error, BareCountError) and "declared is of-others-calendar" in error.message
    assert world.cloud.made("glue.StartJobRun") == []
