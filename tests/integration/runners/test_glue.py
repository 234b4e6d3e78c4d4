"""A stage as the run of a Glue job: the call that starts it, and the payload that really runs from its arguments."""

from __future__ import annotations

from collections.abc import Callable

import boto3

from resources.host.runner_catalog import Glue
from resources.runners.backends.glue import GlueBackend
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from tests.integration.runners.conftest import ENVIRONMENT, World

DECLARED = ENVIRONMENT.backend_of("managed_etl")
JOB = "barecount-dev-stage-private-vpc"


def backend(world: World) -> GlueBackend:
    assert isinstance(DECLARED, Glue)
    return GlueBackend(DECLARED, world.aws)


def test_a_stage_on_glue_leaves_what_it_leaves_in_process(world: World, new_database: Callable[[], Database]) -> None:
    world.jobs()
    world.cloud.fail("glue.StartJobRun", "ConcurrentRunsExceededException")
    outcome = world.run(backend(world), world.work("managed_etl"))
    assert outcome.error is None and outcome.receipt is not None
    here = world.in_process(new_database())
    assert outcome.receipt.outputs == here.outputs and outcome.receipt.counts == here.counts
    (run,) = boto3.client("glue").get_job_runs(JobName=JOB)["JobRuns"]
    assert outcome.receipt.runner["instance"] == run["Id"]
    *_, call = world.cloud.made("glue.StartJobRun")
    assert (call["JobName"], call["WorkerType"], call["NumberOfWorkers"], call["Timeout"]) == (
        JOB, "G.1X", 5, 125)
    assert {f"--tag-{name}" for name in ("tenant", "pipeline", "stage", "run_token")} <= set(call["Arguments"])
    assert world.database.admin_url not in world.sent() and world.left_in_s3() == []


def test_a_profile_without_a_job_starts_nothing(world: World) -> None:
    error = world.run(backend(world), world.work("managed_etl", network="vpn")).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_UNKNOWN
    assert world.cloud.made("glue.StartJobRun") == []
