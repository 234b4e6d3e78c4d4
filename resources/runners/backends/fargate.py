"""Fargate: the stage is a task of its own on ECS, started for it and gone after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import WaiterError
from dagster_aws.pipes import PipesECSClient

from resources.host.runner_catalog import Environment, Fargate
from resources.runners import pipes
from resources.runners.backends.aws import (
    Aws,
    Conversation,
    NoCapacity,
    conversation,
    log_tail,
    network_of,
    of_stage,
    patient,
    patiently,
    quietly,
    tags,
    variables,
)  # fmt: skip
from resources.runners.payload import Execute
from resources.runners.stage import StageReceipt
from resources.runners.work import Progress, Work
from resources.runtime.errors import BareCountError, ErrorCode

# The payload ends itself at its timeout; a task that lives this much longer has lost its payload, or never started it.
_GRACE_SECONDS = 300
_CPU_UNITS = 1024


@dataclass
class _Task:
    """The task of a piece of work, once it is started."""

    arn: str | None = None
    last: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FargateBackend:
    """Runs the stage as a task with the size's processor and memory in the profile's subnets."""

    declared: Fargate
    aws: Aws
    name: str = "fargate"

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt:
        network, ecs, task = network_of(self.aws, work), self.aws.client("ecs"), _Task()
        self._end_leftovers(ecs, work, context)
        with conversation(self.aws, work) as talk:
            parameters = self._parameters(work, network, talk)
            client = PipesECSClient(
                client=patient(ecs, run_task=lambda **call: self._start(ecs, work, task, call),
                               describe_tasks=lambda **call: self._describe(ecs, task, call)),
                context_injector=talk.injector, message_reader=talk.reader)
            waiter = {"Delay": self.aws.poll_seconds,
                      "MaxAttempts": math.ceil((work.size.timeout_seconds + _GRACE_SECONDS) / self.aws.poll_seconds)}
            progress(f"{work.spec.stage} as a task on Fargate", 0, 0)
            try:
                return pipes.receipt_of(
                    lambda: self._run(client, work, context, parameters, waiter), work, where="the Fargate task",
                    last_words=lambda: self._last_words(ecs, task), heard=talk.reader.heard)
            finally:
                if task.arn is not None and task.last.get("lastStatus") != "STOPPED":
                    quietly(context, f"stop {task.arn}", lambda: self._stop(ecs, task.arn, "its run is over"))

    def _run(self, client: PipesECSClient, work: Work, context: Any, parameters: dict[str, Any], waiter: Any) -> Any:
        try:
            return client.run(context=context, run_task_params=parameters, waiter_config=waiter)
        except WaiterError as cause:
            if "Max attempts" not in str(cause):
                raise
            raise BareCountError(
                ErrorCode.RUNNER_TIMEOUT,
                f"the Fargate task of {work.spec.stage} of {work.spec.pipeline} for {work.spec.tenant_id} was not over "
                f"{_GRACE_SECONDS} s after its {work.size.timeout_seconds} s, and was stopped",
                hint="see whether the image can be pulled from the profile's subnets; otherwise a larger size",
            ) from cause

    def _parameters(self, work: Work, network: Any, talk: Conversation) -> dict[str, Any]:
        environment = [{"name": name, "value": value} for name, value in variables(work).items()]
        overrides: dict[str, Any] = {
            "cpu": str(int(work.size.vcpu * _CPU_UNITS)), "memory": str(work.size.memory_mb),
            "containerOverrides": [{
                "name": self.declared.container, "environment": environment,
                "command": ["python", "-m", "barecount_assets.stages", talk.run_spec]}],
        }
        if self.declared.stage_role is not None:
            overrides["taskRoleArn"] = self._role(work)
        return {
            "cluster": self.declared.cluster, "taskDefinition": self.declared.task_definition, "count": 1,
            "launchType": "FARGATE", "startedBy": work.tags["run_token"], "enableECSManagedTags": True,
            "networkConfiguration": {"awsvpcConfiguration": {
                "subnets": list(network.subnets), "securityGroups": list(network.security_groups),
                "assignPublicIp": "ENABLED" if work.network.public else "DISABLED"}},
            "overrides": overrides, "tags": tags(work, "key", "value"),
        }

    def _role(self, work: Work) -> str:
        caller = self.aws.client("sts").get_caller_identity()
        partition = caller["Arn"].split(":")[1]
        assert self.declared.stage_role is not None
        return f"arn:{partition}:iam::{caller['Account']}:role/{of_stage(self.declared.stage_role, work)}"

    def _start(self, ecs: Any, work: Work, task: _Task, call: dict[str, Any]) -> Any:
        def start() -> Any:
            answer = ecs.run_task(**call)
            if not answer["tasks"]:  # ECS says so in its answer, it is no error of the call
                raise NoCapacity("; ".join(failure.get("reason", "no reason") for failure in answer["failures"]))
            task.arn = answer["tasks"][0]["taskArn"]
            return answer

        return patiently(self.aws, work, start, ("CapacityException", "LimitExceededException"))

    def _describe(self, ecs: Any, task: _Task, call: dict[str, Any]) -> Any:
        """A task that was stopped from outside is no success, though its container may have had no exit code."""
        answer = ecs.describe_tasks(**call)
        if answer["tasks"]:
            task.last = answer["tasks"][0]
        return answer

    def _stop(self, ecs: Any, arn: str, reason: str) -> None:
        ecs.stop_task(cluster=self.declared.cluster, task=arn, reason=reason)

    def _end_leftovers(self, ecs: Any, work: Work, context: Any) -> None:
        """A run whose process was killed and is tried again left a task of the same token: nobody hears it any more."""
        pages = ecs.get_paginator("list_tasks").paginate(
            cluster=self.declared.cluster, startedBy=work.tags["run_token"], desiredStatus="RUNNING")
        for arn in [arn for page in pages for arn in page["taskArns"]]:
            quietly(context, f"stop {arn}", lambda arn=arn: self._stop(ecs, arn, "its run was tried again"))

    def _last_words(self, ecs: Any, task: _Task) -> str:
        """Why the task stopped, its exit codes, and the end of its log."""
        known = [task.last.get("stopCode", ""), task.last.get("stoppedReason", "")]
        for container in task.last.get("containers", ()):
            known.append(container.get("reason", ""))
            if "exitCode" in container:
                known.append(f"exit code {container['exitCode']}")
        known.append(self._log(ecs, task))
        return " | ".join(filter(None, known))

    def _log(self, ecs: Any, task: _Task) -> str:
        if task.arn is None:
            return ""
        answer = ecs.describe_task_definition(taskDefinition=self.declared.task_definition)
        containers = answer["taskDefinition"]["containerDefinitions"]
        declared = next((item for item in containers if item["name"] == self.declared.container), {})
        options = declared.get("logConfiguration", {}).get("options", {})
        if "awslogs-group" not in options:
            return ""
        stream = f"{options.get('awslogs-stream-prefix')}/{self.declared.container}/{task.arn.rsplit('/', 1)[1]}"
        return log_tail(self.aws, options["awslogs-group"], stream)


def build(declared: Fargate, environment: Environment, execute: Execute) -> FargateBackend:
    return FargateBackend(declared, Aws.of(environment))
