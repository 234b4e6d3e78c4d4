"""What may not run starts nothing: no function, task, job or instance, and no word in S3."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import boto3
import dagster as dg

from barecount_assets.runner import Runner
from barecount_assets.stages.environment import StageEnvironment
from resources.host.tenants import RunnerBounds
from resources.runners.stage import Placement, Stage, StageSpec
from resources.runtime.errors import BareCountError
from tests.integration.runners.conftest import ENVIRONMENT, World

STARTS = ("lambda.Invoke", "ecs.RunTask", "glue.StartJobRun", "ec2.RunInstances", "ssm.SendCommand")
DENIALS = {
    "a policy denies": ({"network_profile": "public_vpc_egress"}, {}, "policy.denied"),
    "an approval is missing": ({"size": "xlarge"}, {}, "approval.required"),
    "the tenant is suspended": ({}, {"status": "suspended"}, "policy.denied"),
    "the tenant did not declare the profile": (
        {}, {"runners": RunnerBounds(network_profiles=("vpn",))}, "runner.not_allowed"),
    "the tenant's data may not leave its region": (
        {}, {"runners": RunnerBounds(regions=("eu-west-2",))}, "runner.not_allowed"),
}


def changed(environment: StageEnvironment, runner: dict[str, str], tenant: dict[str, Any]) -> StageEnvironment:
    declared = environment.declarations
    manifest, acme = declared.pipeline("order_to_cash"), declared.tenant("acme")
    spec = manifest.spec.model_copy(update={"runner": manifest.spec.runner.model_copy(update=runner)})
    return replace(environment, declarations=replace(
        declared, pipelines={**declared.pipelines, manifest.name: manifest.model_copy(update={"spec": spec})},
        tenants={**declared.tenants, "acme": acme.model_copy(update={"spec": acme.spec.model_copy(update=tenant)})}))


def attempt(environment: StageEnvironment) -> BareCountError | None:
    """The calendar stage through the resource that assets use."""
    runner, declared = Runner(environment), environment.declarations.pipeline("order_to_cash").spec.runner
    placement = Placement(declared.runner_class, declared.size, declared.network_profile)

    @dg.asset(name="calendar")
    def asset(context) -> None:
        runner.run(context, StageSpec(Stage.CALENDAR, "acme", "order_to_cash", placement))

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([asset], instance=instance, raise_on_error=False)
    return runner.first_error


def test_a_run_that_may_not_be_starts_nothing_on_any_class(world: World) -> None:
    opened = StageEnvironment.using(world.settings, world.database)
    for (denial, (runner, tenant, code)), runner_class in product(DENIALS.items(), ENVIRONMENT.spec.classes):
        error = attempt(changed(opened, {**runner, "runner_class": runner_class}, tenant))
        assert error is not None and error.code.value == code, (denial, runner_class, error)
    assert [started for started in STARTS if world.cloud.made(started)] == []
    assert boto3.client("ecs").list_tasks(cluster=ENVIRONMENT.backend_of("container").cluster)["taskArns"] == []
    assert boto3.client("ec2").describe_instances(Filters=[{"Name": "tag:product", "Values": ["barecount"]}, {
        "Name": "instance-state-name", "Values": ["pending", "running"]}])["Reservations"] == []
    assert world.left_in_s3() == [] and world.cloud.machines == []
