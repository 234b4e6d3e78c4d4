"""A stage on an instance of its own: started, checked, commanded, and terminated, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import boto3
import dagster as dg
import pytest
from moto.backends import get_backend
from moto.ec2.models.instances import StateReason

from resources.host.runner_catalog import Ec2
from resources.runners.backends.ec2 import Ec2Backend
from resources.runners.work import Work
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from tests.integration.runners.cloud import ACCOUNT, REGION
from tests.integration.runners.conftest import ENVIRONMENT, World, subnets

DECLARED = ENVIRONMENT.backend_of("dedicated_compute")
CAPACITY = "InsufficientInstanceCapacity"


def backend(world: World) -> Ec2Backend:
    assert isinstance(DECLARED, Ec2)
    return Ec2Backend(DECLARED, world.aws)


def work(world: World) -> Work:
    return world.work("dedicated_compute")


def failed(world: World) -> BareCountError:
    error = world.run(backend(world), work(world)).error
    assert isinstance(error, BareCountError), error
    return error


def alive() -> list[str]:
    reservations = boto3.client("ec2").describe_instances(Filters=[
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}])["Reservations"]
    return [instance["InstanceId"] for reservation in reservations for instance in reservation["Instances"]]


def test_a_stage_on_ec2_leaves_what_it_leaves_in_process(world: World, new_database: Callable[[], Database]) -> None:
    pings = iter(["Inactive", "ConnectionLost"])
    world.instances(ping=lambda instance: next(pings, "Online"))
    world.cloud.fail("ec2.RunInstances", CAPACITY)
    world.cloud.fail("ec2.RunInstances", "RequestLimitExceeded", status=503)
    outcome = world.run(backend(world), work(world))
    assert outcome.error is None and outcome.receipt is not None
    here = world.in_process(new_database())
    assert outcome.receipt.outputs == here.outputs and outcome.receipt.counts == here.counts

    *_, call = world.cloud.made("ec2.RunInstances")
    assert call["LaunchTemplate.LaunchTemplateName"] == "barecount-dev-stage" and call["MaxCount"] == "1"
    assert call["IamInstanceProfile.Name"] == "barecount-dev-ec2-calendar"
    assert call["InstanceType"] == "m7i.xlarge" and call["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert call["NetworkInterface.1.SubnetId"] in subnets("barecount-dev-private-a")
    assert call["NetworkInterface.1.AssociatePublicIpAddress"] == "false"
    tagged = {value for name, value in call.items() if name.endswith(".Key")}
    assert {"tenant", "pipeline", "stage", "run_token", "environment"} <= tagged
    assert {call[f"TagSpecification.{n}.ResourceType"] for n in (1, 2, 3)} == {
        "instance", "volume", "network-interface"}
    (command,) = world.cloud.made("ssm.SendCommand")
    assert command["DocumentName"] == "AWS-RunShellScript"
    assert command["Parameters"]["executionTimeout"] == [str(14_400 + 300)]
    assert outcome.receipt.runner["instance"] == command["InstanceIds"][0]

    order = [call.operation for call in world.cloud.calls]
    assert order.index("DescribeInstanceInformation") < order.index("SendCommand") < order.index("TerminateInstances")
    assert alive() == [] and world.left_in_s3() == [] and world.database.admin_url not in world.sent()


def test_an_instance_whose_agent_never_answers_is_terminated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.runners.backends.ec2._READY_SECONDS", 1)
    world.instances(ping=lambda instance: "Inactive")
    error = failed(world)
    assert error.code is ErrorCode.RUNNER_LOST and error.retryable and "Inactive" in error.message
    assert world.cloud.made("ssm.SendCommand") == [] and alive() == []


def test_an_agent_lost_during_the_work_is_an_error_and_the_instance_is_terminated(world: World, locked: None) -> None:
    pings = iter(["Online"])
    world.instances(ping=lambda instance: next(pings, "ConnectionLost"))
    error = failed(world)
    assert error.code is ErrorCode.RUNNER_LOST and error.retryable and "ConnectionLost" in error.message
    assert len(world.cloud.made("ssm.CancelCommand")) == 1 and alive() == [] and world.ended()


def test_a_spot_instance_that_aws_takes_back_is_an_error_that_may_be_tried_again(world: World, locked: None) -> None:
    def take_back(machine: subprocess.Popen) -> None:
        (instance,) = alive()
        taken = get_backend("ec2")[ACCOUNT][REGION].get_instance(instance)
        taken.terminate()
        taken._reason = ""
        why = "Server.SpotInstanceTermination"
        taken.state_reason = StateReason(f"{why}: no capacity", why)
        machine.kill()

    world.instances(then=take_back)
    error = failed(world)
    assert error.code is ErrorCode.RUNNER_LOST and error.retryable
    assert "was lost: terminated (Server.SpotInstanceTermination" in error.message
    assert alive() == [] and world.ended() and world.left_in_s3() == []


def test_capacity_that_never_comes_is_an_error_that_may_be_tried_again(world: World) -> None:
    world.cloud.fail("ec2.RunInstances", CAPACITY, times=9)
    error = failed(world)
    assert error.code is ErrorCode.RUNNER_UNAVAILABLE and error.retryable and CAPACITY in error.message
    assert len(world.cloud.made("ec2.RunInstances")) == 5 and alive() == []


def test_a_cancelled_run_leaves_no_instance_behind(world: World, locked: None) -> None:
    world.instances(then=lambda machine: (time.sleep(2), os.kill(os.getpid(), signal.SIGINT)))
    error = world.run(backend(world), work(world)).error
    assert isinstance(error, (KeyboardInterrupt, dg.DagsterExecutionInterruptedError))
    assert alive() == [] and world.ended()
