"""EC2: the stage is a command on an instance that is started for it, checked before it, and terminated after it.

Dagster has no Pipes client for this: `PipesInstanceClient` is one, over SSM's RunCommand. The launch template's image
gives the instance a command, `barecount-stage RUN_SPEC`, and a file that says that it is ready. The template shuts an
instance down after the longest a stage may take, and a shut-down instance terminates: what a killed run leaves behind
ends by itself.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from resources.host.runner_catalog import Ec2, Environment
from resources.runners import pipes
from resources.runners.backends.aws import (
    Aws,
    conversation,
    network_of,
    of_stage,
    patiently,
    quietly,
    tags,
    variables,
)
from resources.runners.payload import Execute
from resources.runners.stage import StageReceipt
from resources.runners.work import Progress, Work
from resources.runtime.errors import BareCountError, ErrorCode

_READY_SECONDS = 600
_DELIVERY_SECONDS = 120
# The payload ends itself at its timeout; SSM ends a command that did not this much later.
_GRACE_SECONDS = 300
_READY_FILE = "/run/barecount-ready"
_NO_ROOM = ("InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientFreeAddressesInSubnet",
            "InstanceLimitExceeded", "VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow")
_OVER = frozenset({"Success", "Failed", "Cancelled", "TimedOut", "Undeliverable", "Terminated"})
_GONE = frozenset({"shutting-down", "terminated", "stopping", "stopped"})


class InstanceLost(Exception):
    """The instance, or its agent, is gone."""


@dataclass
class _Command:
    """A command on an instance, and what it printed last."""

    instance: str
    command: str | None = None
    status: str = ""
    words: str = ""


class PipesInstanceClient(dg.PipesClient):
    """Runs a command on an instance by SSM and speaks Dagster Pipes with it.

    Args:
        aws: the environment.
        injector, reader: of context and messages.
    """

    def __init__(self, aws: Aws, injector: dg.PipesContextInjector, reader: dg.PipesMessageReader) -> None:
        self._aws, self._injector, self._reader = aws, injector, reader

    def run(  # type: ignore[override]
        self, *, context: Any, command: _Command, line: str, environment: Mapping[str, str], timeout_seconds: int,
        extras: dict[str, Any] | None = None,
    ) -> dg.PipesClientCompletedInvocation:
        """Run a command line to its end.

        Raises:
            InstanceLost: the instance or its agent went away.
            BareCountError: runner.timeout when SSM ended the command.
            RuntimeError: the command ended otherwise than well.
        """
        ssm = self._aws.client("ssm")
        with dg.open_pipes_session(context, self._injector, self._reader, extras=extras) as session:
            script = [
                *(f"export {name}={shlex.quote(value)}"
                  for name, value in {**environment, **session.get_bootstrap_env_vars()}.items()),
                f"until [ -e {_READY_FILE} ]; do sleep 1; done", f"exec {line}"]
            command.command = ssm.send_command(
                InstanceIds=[command.instance], DocumentName="AWS-RunShellScript", TimeoutSeconds=_DELIVERY_SECONDS,
                Parameters={"commands": script, "executionTimeout": [str(timeout_seconds)]},
            )["Command"]["CommandId"]
            self._wait(ssm, command)
        return dg.PipesClientCompletedInvocation(session, metadata={"instance": command.instance})

    def _wait(self, ssm: Any, command: _Command) -> None:
        while command.status not in _OVER:
            self._aws.pause(self._aws.poll_seconds)
            try:
                found = ssm.get_command_invocation(CommandId=command.command, InstanceId=command.instance)
            except ssm.exceptions.InvocationDoesNotExist:  # SSM takes a moment to know its own command
                found = {"Status": "Pending"}
            command.status = found["Status"]
            command.words = " | ".join(
                (found.get("StandardOutputContent", "") + found.get("StandardErrorContent", "")).splitlines()[-8:])
            if command.status not in _OVER and (gone := whereabouts(self._aws, command.instance)) != "Online":
                command.words = f"instance {command.instance} was lost: {gone}"
                raise InstanceLost(command.words)
        if command.status in ("Undeliverable", "Terminated"):
            raise InstanceLost(f"the command did not reach instance {command.instance}: {command.status}")
        if command.status != "Success":
            if (gone := whereabouts(self._aws, command.instance)) != "Online":
                raise InstanceLost(f"instance {command.instance} was lost: {gone}")
            raise RuntimeError(f"the command on {command.instance} ended with {command.status}")


def whereabouts(aws: Aws, instance: str) -> str:
    """`Online` for an instance whose agent answers; else what EC2, or the agent, says of it."""
    reservations = aws.client("ec2").describe_instances(InstanceIds=[instance])["Reservations"]
    states = [item for reservation in reservations for item in reservation["Instances"]]
    state = states[0]["State"]["Name"] if states else "terminated"
    if state in _GONE:
        known = states[0] if states else {}
        reason = known.get("StateReason", {}).get("Message") or known.get("StateTransitionReason")
        return f"{state}{f' ({reason})' if reason else ''}"
    known = aws.client("ssm").describe_instance_information(
        Filters=[{"Key": "InstanceIds", "Values": [instance]}])["InstanceInformationList"]
    return known[0]["PingStatus"] if known else "no agent"


@dataclass(frozen=True)
class Ec2Backend:
    """Runs the stage on an instance of its own."""

    declared: Ec2
    aws: Aws
    name: str = "ec2"

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt:
        network, ec2 = network_of(self.aws, work), self.aws.client("ec2")
        self._end_leftovers(ec2, work, context)
        call = self._parameters(work, network)
        try:
            started = patiently(
                self.aws, work, lambda: ec2.run_instances(**call, ClientToken=uuid.uuid4().hex), _NO_ROOM)
            command = _Command(started["Instances"][0]["InstanceId"])
            progress(f"{work.spec.stage} on {command.instance}", 0, 0)
            self._await_agent(work, command.instance)
            return self._command(work, command, context)
        finally:  # by its tag: also an instance whose start was interrupted before its name was known
            self._end_leftovers(ec2, work, context)

    def _command(self, work: Work, command: _Command, context: Any) -> StageReceipt:
        with conversation(self.aws, work) as talk:
            client = PipesInstanceClient(self.aws, talk.injector, talk.reader)
            environment = {**variables(work), "BARECOUNT_INSTANCE_ID": command.instance}

            def invoke() -> dg.PipesClientCompletedInvocation:
                return client.run(
                    context=context, command=command, line=f"barecount-stage {talk.run_spec}", environment=environment,
                    timeout_seconds=work.size.timeout_seconds + _GRACE_SECONDS)

            try:
                return pipes.receipt_of(
                    invoke, work, where=f"the command on {command.instance}", last_words=lambda: command.words,
                    heard=talk.reader.heard)
            except BareCountError as error:
                if command.status == "TimedOut" and error.code is ErrorCode.RUNNER_LOST:
                    raise _timeout(work, command) from error
                raise
            finally:
                if command.command is not None and command.status not in _OVER:
                    quietly(context, f"cancel command {command.command}", lambda: self.aws.client("ssm").cancel_command(
                        CommandId=command.command, InstanceIds=[command.instance]))

    def _parameters(self, work: Work, network: Any) -> dict[str, Any]:
        kinds = ("instance", "volume", "network-interface")
        role = self.declared.stage_role
        return {
            **({} if role is None else {"IamInstanceProfile": {"Name": of_stage(role, work)}}),
            "LaunchTemplate": {"LaunchTemplateName": self.declared.launch_template, "Version": "$Default"},
            "MinCount": 1, "MaxCount": 1, "InstanceType": work.size.flavor,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "NetworkInterfaces": [{
                "DeviceIndex": 0, "SubnetId": network.subnets[0], "Groups": list(network.security_groups),
                "AssociatePublicIpAddress": work.network.public, "DeleteOnTermination": True}],
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags(work)} for kind in kinds],
        }

    def _await_agent(self, work: Work, instance: str) -> None:
        """Health first: a command goes only to an instance whose agent answers."""
        found = ""
        for _ in range(int(_READY_SECONDS / self.aws.poll_seconds)):
            found = whereabouts(self.aws, instance)
            if found == "Online":
                return
            if found.split(" ")[0] in _GONE:
                break
            self.aws.pause(self.aws.poll_seconds)
        raise BareCountError(
            ErrorCode.RUNNER_LOST,
            f"instance {instance} for {work.spec.stage} of {work.spec.pipeline} was not ready within {_READY_SECONDS} s"
            f": {found}; it was terminated, no command was sent",
            hint="see whether the profile's subnets reach SSM, and whether the launch template's image has its agent",
            retryable=True,
        )

    def _end_leftovers(self, ec2: Any, work: Work, context: Any) -> None:
        """Terminate every instance that carries the work's run token."""
        def terminate() -> None:
            pages = ec2.get_paginator("describe_instances").paginate(Filters=[
                {"Name": "tag:run_token", "Values": [work.tags["run_token"]]},
                {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}])
            found = [instance["InstanceId"] for page in pages for reservation in page["Reservations"]
                     for instance in reservation["Instances"]]
            if found:
                ec2.terminate_instances(InstanceIds=found)

        quietly(context, f"terminate the instances of run token {work.tags['run_token']}", terminate)


def _timeout(work: Work, command: _Command) -> BareCountError:
    return BareCountError(
        ErrorCode.RUNNER_TIMEOUT,
        f"the command on {command.instance} was not over {_GRACE_SECONDS} s after its {work.size.timeout_seconds} s, "
        f"and was ended; it printed last: {command.words or 'nothing'}",
        hint="nothing half-done is visible; give the pipeline a larger size, or run a shorter range",
    )


def build(declared: Ec2, environment: Environment, execute: Execute) -> Ec2Backend:
    return Ec2Backend(declared, Aws.of(environment))
