"""A stage on Lambda: the function that is called, the payload that really runs, and what happens when it does not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import boto3
import dagster as dg

from resources.host.runner_catalog import Lambda
from resources.runners.backends.lambda_ import LARGEST_EVENT_BYTES, LambdaBackend
from resources.runners.work import Work
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from tests.integration.runners.conftest import ENVIRONMENT, World, function_error

DECLARED = ENVIRONMENT.backend_of("serverless")
FUNCTION = "barecount-dev-stage-calendar-small-private-vpc"


def backend(world: World) -> LambdaBackend:
    assert isinstance(DECLARED, Lambda)
    return LambdaBackend(DECLARED, world.aws)


def small(world: World, **changes: str) -> Work:
    return world.work("serverless", size="small", **changes)


def refused(world: World, work: Work) -> BareCountError:
    error = world.run(backend(world), work).error
    assert isinstance(error, BareCountError)
    return error


def test_a_stage_on_lambda_leaves_what_it_leaves_in_process(world: World, new_database: Callable[[], Database]) -> None:
    world.functions()
    outcome = world.run(backend(world), small(world))
    assert outcome.error is None and outcome.receipt is not None
    here = world.in_process(new_database())
    assert outcome.receipt.outputs == here.outputs and outcome.receipt.counts == here.counts
    assert outcome.receipt.runner["backend"] == "lambda"

    # The function is warm now: a second call in the same process speaks to its own run.
    again = world.run(backend(world), small(world, occasion="run-2"))
    assert again.error is None and again.receipt is not None and again.receipt.changed is False

    first, second = world.cloud.made("lambda.Invoke")
    assert first["function"] == FUNCTION and first["qualifier"] == "$LATEST"
    assert {"tenant", "pipeline", "stage", "run_token", "environment"} <= set(first["event"]["tags"])
    assert first["event"]["tags"]["run_token"] != second["event"]["tags"]["run_token"]
    assert world.database.admin_url not in world.sent() and world.left_in_s3() == []
    assert len(world.cloud.machines) == 1


def test_a_function_that_is_not_what_is_declared_is_not_called(world: World) -> None:
    client = boto3.client("lambda")
    client.update_function_configuration(FunctionName=FUNCTION, MemorySize=128)
    try:
        assert "has 128 MB" in refused(world, small(world)).message
    finally:
        client.update_function_configuration(FunctionName=FUNCTION, MemorySize=1024)
    other_role = boto3.client("iam").create_role(RoleName="of-everything", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    own_role = client.get_function_configuration(FunctionName=FUNCTION)["Role"]
    client.update_function_configuration(FunctionName=FUNCTION, Role=other_role)
    try:
        assert "declared is barecount-dev-lambda-calendar" in refused(world, small(world)).message
    finally:
        client.update_function_configuration(FunctionName=FUNCTION, Role=own_role)
    wrong_network = refused(world, replace(small(world), network=ENVIRONMENT.network_of("vpn")))
    assert wrong_network.code is ErrorCode.RUNNER_NETWORK and "subnet-" in wrong_network.message
    assert refused(world, world.work("serverless", size="large")).code is ErrorCode.RUNNER_UNKNOWN
    assert world.cloud.made("lambda.Invoke") == []


def test_an_event_that_lambda_does_not_take_is_not_sent(world: World) -> None:
    work = small(world)
    large = replace(work, spec=replace(work.spec, source_paths={"orders": "x" * LARGEST_EVENT_BYTES}))
    error = refused(world, large)
    assert error.code is ErrorCode.RUNNER_TOO_LARGE and str(LARGEST_EVENT_BYTES) in error.message
    assert world.cloud.made("lambda.Invoke") == [] and world.left_in_s3() == []


def test_a_throttled_call_is_tried_again_and_then_given_up(world: World) -> None:
    world.cloud.fail("lambda.Invoke", "TooManyRequestsException", "rate exceeded", times=9, status=429)
    error = refused(world, small(world))
    assert error.code is ErrorCode.RUNNER_UNAVAILABLE and error.retryable and "rate exceeded" in error.message
    assert len(world.cloud.made("lambda.Invoke")) == 5 and len(world.pauses) == 4


def test_a_function_that_aws_ends_is_an_error_that_says_why(world: World) -> None:
    world.cloud.answer("lambda.Invoke", function_error("2026 id Task timed out after 300.00 seconds"))
    assert refused(world, small(world)).code is ErrorCode.RUNNER_TIMEOUT
    world.cloud.answer("lambda.Invoke", function_error("Runtime exited with error: signal: killed", "the last line\n"))
    error = refused(world, small(world))
    assert error.code is ErrorCode.RUNNER_LOST and "signal: killed" in error.message
    assert "the last line" in error.message


def test_messages_lost_on_the_way_do_not_lose_the_receipt(world: World) -> None:
    world.functions()
    world.cloud.lose_messages()
    outcome = world.run(backend(world), small(world))
    assert outcome.error is None and outcome.receipt is not None and outcome.receipt.outputs[0].rows > 0
    assert world.cloud.lost and world.left_in_s3() == []


def test_a_cancelled_call_ends_itself(world: World, locked: None) -> None:
    world.functions()
    threading.Thread(target=lambda: (_first_machine(world), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
    error = world.run(backend(world), small(world)).error
    assert isinstance(error, (KeyboardInterrupt, dg.DagsterExecutionInterruptedError))
    assert world.ended()
    # The stop sign stays for as long as the bucket keeps messages, and so does what came after it.
    assert [key for key in world.left_in_s3() if "/messages/" not in key.partition("/")[2]][0].endswith("/stop")


def _first_machine(world: World) -> None:
    while not world.cloud.made("lambda.Invoke"):
        time.sleep(0.1)
    time.sleep(2)
