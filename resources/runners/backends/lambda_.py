"""Lambda: the stage is one call of a function, of the function that has the work's size and network profile.

AWS binds memory, time and network to a function, so there is one for each size and profile. A call is synchronous and
AWS has no way to end it: a payload looks for a stop sign in S3, and ends itself when it finds one or its time is over.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError
from dagster import DagsterExecutionInterruptedError
from dagster_aws.pipes import PipesLambdaClient, PipesLambdaEventContextInjector

from resources.host.runner_catalog import Environment, Lambda
from resources.runners import pipes
from resources.runners.backends.aws import (
    Aws,
    Conversation,
    Network,
    conversation,
    network_of,
    network_refused,
    of_stage,
    patient,
    patiently,
)
from resources.runners.payload import Execute
from resources.runners.stage import StageReceipt
from resources.runners.work import Progress, Work
from resources.runtime.errors import BareCountError, ErrorCode

LARGEST_EVENT_BYTES = 6 * 1024 * 1024
"""What AWS takes with a synchronous call."""
_LONGER_THAN_THE_CALL_SECONDS = 60
_NO_ROOM = ("TooManyRequestsException", "EC2ThrottledException", "ENILimitReachedException",
            "ResourceNotReadyException", "SubnetIPAddressLimitReachedException")


class _Injector(PipesLambdaEventContextInjector):
    """The context lies in S3, its address in the event: the Pipes client fills in the event for this class only."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    def inject_context(self, context: Any) -> AbstractContextManager[Any]:  # type: ignore[override]
        return self._talk.injector.inject_context(context)


@dataclass
class _Told:
    """What a call said about itself: its error and the end of its log, of which AWS sends four kilobytes."""

    words: str = ""


@dataclass(frozen=True)
class LambdaBackend:
    """Runs the stage as a synchronous call of `<function>-<size>-<network profile>`."""

    declared: Lambda
    aws: Aws
    name: str = "lambda"

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt:
        function, told = self._function(work), _Told()
        self._validate(work, function, network_of(self.aws, work))
        # A call the client gives up goes on, and one that it tries again runs twice: wait longer than it can take, and
        # leave trying again to the step.
        client = self.aws.client("lambda", read_timeout=work.size.timeout_seconds + _LONGER_THAN_THE_CALL_SECONDS,
                                 tcp_keepalive=True, retries={"mode": "standard", "total_max_attempts": 1})
        with conversation(self.aws, work) as talk:
            pipes_client = PipesLambdaClient(
                client=patient(client, invoke=lambda **call: self._invoke(client, work, told, call)),
                context_injector=_Injector(talk), message_reader=talk.reader)
            event = {"run_spec": work.run_spec.to_json(), "stop": talk.stop, "tags": dict(work.tags)}
            progress(f"{work.spec.stage} as a call of {function}", 0, 0)
            try:
                return pipes.receipt_of(
                    lambda: pipes_client.run(function_name=function, event=event, context=context), work,
                    where=f"the call of {function}", last_words=lambda: told.words, heard=talk.reader.heard)
            except (KeyboardInterrupt, DagsterExecutionInterruptedError):
                talk.keep(talk.stop, "its run was cancelled")
                raise

    def _function(self, work: Work) -> str:
        profile = work.identity["network_profile"].replace("_", "-")
        name, role = self.declared.function, self.declared.stage_role
        return f"{name if role is None else of_stage(name, work)}-{work.identity['size']}-{profile}"

    def _validate(self, work: Work, function: str, network: Network) -> None:
        """Refuse a function that is not what size and profile declare: its limits or network would be others."""
        try:
            found = self.aws.client("lambda").get_function_configuration(
                FunctionName=function, Qualifier=self.declared.qualifier)
        except ClientError as cause:
            if cause.response["Error"]["Code"] != "ResourceNotFoundException":
                raise
            raise self._not_declared(work, f"there is no function {function}") from cause
        size, vpc = work.size, found.get("VpcConfig", {})
        if found["MemorySize"] < size.memory_mb or found["Timeout"] < size.timeout_seconds:
            raise self._not_declared(
                work, f"function {function} has {found['MemorySize']} MB and {found['Timeout']} s, declared are "
                f"{size.memory_mb} MB and {size.timeout_seconds} s")
        role = self.declared.stage_role
        if role is not None and found["Role"].rpartition("/")[2] != of_stage(role, work):
            raise self._not_declared(
                work, f"function {function} has the role {found['Role']}, declared is {of_stage(role, work)}")
        strange = [*(set(vpc.get("SubnetIds", ())) - set(network.subnets)),
                   *(set(vpc.get("SecurityGroupIds", ())) - set(network.security_groups))]
        if strange or not vpc.get("SubnetIds"):
            raise network_refused(work, f"function {function} is in {', '.join(sorted(strange)) or 'no VPC'}")

    def _not_declared(self, work: Work, what: str) -> BareCountError:
        return BareCountError(
            ErrorCode.RUNNER_UNKNOWN,
            f"size {work.identity['size']} of environment {work.identity['environment']}: {what}; nothing was started",
            hint="make the function: one for each size and network profile, named <function>-<size>-<profile>; with "
            "stage_role one for each stage too, named <function>-<stage>-<size>-<profile>",
        )

    def _invoke(self, client: Any, work: Work, told: _Told, call: dict[str, Any]) -> dict[str, Any]:
        size = len(call["Payload"].encode())
        if size > LARGEST_EVENT_BYTES:
            raise BareCountError(
                ErrorCode.RUNNER_TOO_LARGE,
                f"the event for {call['FunctionName']} has {size} bytes, Lambda takes {LARGEST_EVENT_BYTES}; nothing "
                "was started",
                hint="run fewer sources or shorter paths at once, or use the runner class container",
            )
        answer = patiently(
            self.aws, work, lambda: client.invoke(**call, Qualifier=self.declared.qualifier, LogType="Tail"), _NO_ROOM)
        if "FunctionError" in answer:
            body = answer["Payload"].read()
            told.words = " | ".join(_words(body, answer.get("LogResult", "")))
            if "timed out" in told.words:
                raise BareCountError(
                    ErrorCode.RUNNER_TIMEOUT, f"{call['FunctionName']} was ended by AWS at its timeout: {told.words}",
                    hint="no call lasts longer than 15 minutes: use the runner class container, or a shorter range")
            answer["Payload"] = io.BytesIO(body)
        return answer


def _words(body: bytes, log: str) -> Iterator[str]:
    yield str(json.loads(body or b"{}").get("errorMessage", "no message"))
    yield from (line for line in base64.b64decode(log).decode("utf-8", "replace").splitlines()[-8:] if line.strip())


def build(declared: Lambda, environment: Environment, execute: Execute) -> LambdaBackend:
    return LambdaBackend(declared, Aws.of(environment))
