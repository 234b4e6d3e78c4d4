"""A stage on Fargate: the calls that start it, the payload that really runs, and what happens when it does not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import boto3
import dagster as dg
import pytest

from resources.host.runner_catalog import Network
from resources.runners.backends.fargate import FargateBackend
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from tests.integration.runners.cloud import Answer
from tests.integration.runners.conftest import ENVIRONMENT, IMAGE, World, subnets

DECLARED = ENVIRONMENT.backend_of("container")


def backend(world: World) -> FargateBackend:
    return FargateBackend(DECLARED, world.aws)


def running_tasks() -> list[str]:
    return boto3.client("ecs").list_tasks(cluster=DECLARED.cluster, desiredStatus="RUNNING")["taskArns"]


def test_a_stage_on_fargate_leaves_what_it_leaves_in_process(
    world: World, new_database: Callable[[], Database]
) -> None:
    world.fargate()
    work = world.work("container", size="medium")
    outcome = world.run(backend(world), work)
    assert outcome.error is None and outcome.receipt is not None
    here = world.in_process(new_database())
    assert outcome.receipt.outputs == here.outputs and outcome.receipt.counts == here.counts
    (task,) = boto3.client("ecs").list_tasks(cluster=DECLARED.cluster, desiredStatus="STOPPED")["taskArns"]
    who = outcome.receipt.runner
    assert (who["class"], who["size"], who["backend"]) == ("container", "medium", "fargate")
    assert (who["environment"], who["network_profile"]) == ("aws-dev", "private_vpc")
    assert (who["region"], who["instance"], who["image"]) == (world.aws.region, task, IMAGE)
    assert "psycopg" in who["drivers"] and len(who["code"]) == 64
    assert who["cost_tags"] == ("environment=dev, pipeline=order_to_cash, product=barecount, stage=calendar, "
                                "tenant=acme")

    (call,) = world.cloud.made("ecs.RunTask")
    assert call["cluster"] == DECLARED.cluster and call["taskDefinition"] == DECLARED.task_definition
    assert call["launchType"] == "FARGATE" and call["count"] == 1
    network = call["networkConfiguration"]["awsvpcConfiguration"]
    assert sorted(network["subnets"]) == subnets("barecount-dev-private-a", "barecount-dev-private-b")
    assert len(network["securityGroups"]) == 1 and network["assignPublicIp"] == "DISABLED"
    assert (call["overrides"]["cpu"], call["overrides"]["memory"]) == ("1024", "4096")
    assert call["overrides"]["taskRoleArn"].endswith(":role/barecount-dev-fargate-calendar")
    tags = {tag["key"]: tag["value"] for tag in call["tags"]}
    assert work.tags.items() <= tags.items()
    assert {"tenant", "pipeline", "stage", "run_token", "environment"} <= set(tags)
    assert call["startedBy"] == work.tags["run_token"]

    assert world.database.admin_url not in world.sent()  # secrets come to a payload by its task definition
    assert world.left_in_s3() == [] and running_tasks() == []


def test_the_network_is_looked_up_before_anything_starts(world: World) -> None:
    work = replace(world.work("container"), network=Network(
        public=False, subnets=("barecount-dev-private-a", "nowhere"), security_groups=("nobody",),
        endpoints=("s3.eu-west-1.amazonaws.com", "private.invalid")))
    error = world.run(backend(world), work).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_NETWORK
    for what in ("no subnet named nowhere", "no security group named nobody", "endpoint private.invalid"):
        assert what in error.message
    assert world.cloud.made("ecs.RunTask") == [] and world.left_in_s3() == []


def test_throttled_calls_and_missing_capacity_are_tried_again(world: World) -> None:
    world.fargate()
    world.cloud.fail("ecs.RunTask", "ThrottlingException", times=1)
    world.cloud.answer("ecs.RunTask", no_capacity(), times=2)
    outcome = world.run(backend(world), world.work("container"))
    assert outcome.error is None, outcome.error
    assert len(world.cloud.made("ecs.RunTask")) == 4 and len(world.pauses) == 2
    assert world.pauses[0] <= 5 and world.pauses[1] <= 10


def test_capacity_that_never_comes_is_an_error_that_may_be_tried_again(world: World) -> None:
    world.cloud.answer("ecs.RunTask", no_capacity(), times=99)
    error = world.run(backend(world), world.work("container")).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_UNAVAILABLE and error.retryable
    assert "Capacity is unavailable" in error.message and len(world.cloud.made("ecs.RunTask")) == 5
    assert world.left_in_s3() == []


def test_a_task_that_is_killed_is_an_error_that_says_what_is_known(world: World) -> None:
    world.fargate(then=lambda machine: os.kill(machine.pid, signal.SIGKILL))
    error = world.run(backend(world), world.work("container")).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_LOST and error.retryable
    assert "exit code -9" in error.message and "Essential container" in error.message
    assert running_tasks() == [] and world.left_in_s3() == []


def test_a_task_that_does_not_end_in_time_is_stopped(
    world: World, locked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.runners.backends.fargate._GRACE_SECONDS", -3600 + 4)
    world.fargate()
    error = world.run(backend(world), world.work("container", size="small")).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_TIMEOUT
    assert running_tasks() == [] and world.ended()


def test_a_cancelled_run_leaves_no_task_behind(world: World, locked: None) -> None:
    world.fargate(then=lambda machine: (time.sleep(2), os.kill(os.getpid(), signal.SIGINT)))
    error = world.run(backend(world), world.work("container")).error
    assert isinstance(error, (KeyboardInterrupt, dg.DagsterExecutionInterruptedError))
    assert running_tasks() == [] and world.ended()
    # What a payload says while it is being stopped may come after the place was emptied; the bucket's rules remove it.
    assert all("/messages/" in key for key in world.left_in_s3())


def test_a_task_left_by_a_killed_run_is_ended_when_it_is_tried_again(world: World) -> None:
    world.fargate()
    work = world.work("container")
    ecs = boto3.client("ecs")
    left = ecs.run_task(
        cluster=DECLARED.cluster, taskDefinition=DECLARED.task_definition, launchType="FARGATE",
        startedBy=work.tags["run_token"], overrides={"containerOverrides": [
            {"name": "stage", "command": ["python", "-c", "import time; time.sleep(60)"], "environment": []}]},
        networkConfiguration={"awsvpcConfiguration": {
            "subnets": subnets("barecount-dev-private-a"), "securityGroups": []}},
    )["tasks"][0]["taskArn"]
    assert world.run(backend(world), work).error is None
    assert [call["task"] for call in world.cloud.made("ecs.StopTask")] == [left]
    assert running_tasks() == []


def no_capacity() -> Answer:
    return Answer(200, '{"tasks": [], "failures": [{"reason": "Capacity is unavailable at this time"}]}')
