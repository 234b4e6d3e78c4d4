"""A stage done by an agent that polls: the word in the queue, the payload that really runs, and what may go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import dagster as dg
import psutil
import pytest

from resources.host.runner_catalog import Agent as DeclaredAgent
from resources.runners.agent import Agent
from resources.runners.backends.agent import AgentBackend
from resources.runners.work import Work
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from tests.integration.runners.cloud import Call
from tests.integration.runners.conftest import ENVIRONMENT, World

DECLARED = ENVIRONMENT.backend_on("container", "on_premise_agent")


@pytest.fixture
def queue(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The agent's queue, and what an agent's own machine sets."""
    for name, value in {**world.defined, "BARECOUNT_IMAGE_DIGEST": ""}.items():
        monkeypatch.setenv(name, value)
    address = boto3.client("sqs").create_queue(QueueName=DECLARED.queue)["QueueUrl"]
    yield address
    boto3.client("sqs").delete_queue(QueueUrl=address)


def backend(world: World) -> AgentBackend:
    assert isinstance(DECLARED, DeclaredAgent)
    return AgentBackend(DECLARED, world.aws)


def work(world: World) -> Work:
    return world.work("container", network="on_premise_agent")


def agent(world: World, name: str = "warehouse-7") -> Agent:
    return Agent(world.aws, DECLARED.queue, name, beat_seconds=0.3, wait_seconds=1)


class Polling:
    """Agents that poll until one of them has worked, in a thread each. Use as a context."""

    def __init__(self, *agents: Agent) -> None:
        self.over = threading.Event()
        self.worked: list[str] = []
        self._threads = [threading.Thread(target=self._poll, args=(agent,), daemon=True) for agent in agents]

    def _poll(self, agent: Agent) -> None:
        while not self.over.is_set():
            if agent.poll():
                self.worked.append(agent.name)

    def __enter__(self) -> Polling:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def payloads() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True)
            if "barecount_assets.stages" in " ".join(child.cmdline())]


def left_in(queue: str) -> int:
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    found = boto3.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=list(names))["Attributes"]
    return sum(int(found[name]) for name in names)


def claimed(world: World) -> bool:
    return any(call.operation == "PUT" and call.body["path"].endswith("/alive") for call in world.cloud.calls)


def test_a_stage_at_an_agent_leaves_what_it_leaves_in_process(
    world: World, queue: str, new_database: Callable[[], Database]
) -> None:
    """The word comes twice, as SQS may do, and to two agents."""
    def twice(call: Call, answered: bytes) -> None:
        world.cloud.on("sqs.SendMessage", lambda *_: None)
        boto3.client("sqs").send_message(QueueUrl=queue, MessageBody=call.body["MessageBody"])

    world.cloud.on("sqs.SendMessage", twice)
    with Polling(agent(world, "warehouse-7"), agent(world, "warehouse-8")) as polling:
        outcome = world.run(backend(world), work(world))
    assert outcome.error is None and outcome.receipt is not None
    here = world.in_process(new_database())
    assert outcome.receipt.outputs == here.outputs and outcome.receipt.counts == here.counts

    assert len(polling.worked) == 1 and outcome.receipt.runner["instance"] == polling.worked[0]
    assert outcome.receipt.runner["backend"] == "agent" and outcome.receipt.changed
    word = world.cloud.made("sqs.SendMessage")[0]["MessageBody"]
    assert '"run_token"' in word and "DAGSTER_PIPES_CONTEXT" in word
    assert world.database.admin_url not in world.sent()
    assert left_in(queue) == 0 and world.left_in_s3() == [] and payloads() == []


def test_an_agent_that_dies_with_the_work_is_an_error_and_takes_the_payload_along(
    world: World, queue: str, locked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.runners.backends.agent._SILENT_SECONDS", 3)
    machine = world.cloud.start(
        ["barecount", "-c", "from barecount_assets.cli.main import main; main()", "agent", "--environment", "aws-dev",
         "--name", "warehouse-9", "--once"], world.defined)

    def kill() -> None:
        while not claimed(world):
            time.sleep(0.05)
        machine.kill()

    threading.Thread(target=kill, daemon=True).start()
    error = world.run(backend(world), work(world)).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_LOST and error.retryable
    assert "agent warehouse-9 took the work and was silent" in error.message
    assert [key.rpartition("/")[2] for key in world.left_in_s3() if "/messages/" not in key[9:]] == ["stop"]
    deadline = time.monotonic() + 15
    while stages_of(machine) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert stages_of(machine) == []


def stages_of(machine: subprocess.Popen) -> list[psutil.Process]:
    """Payloads in the session of a machine, also when nobody is their parent any more."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == machine.pid and "barecount_assets.stages" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_stopped_run_stops_the_agents_payload(world: World, queue: str, locked: None) -> None:
    def stop() -> None:
        while not (claimed(world) and payloads()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with Polling(agent(world)) as polling:
        error = world.run(backend(world), work(world)).error
        assert isinstance(error, (KeyboardInterrupt, dg.DagsterExecutionInterruptedError))
        deadline = time.monotonic() + 30
        while not polling.worked and time.monotonic() < deadline:
            time.sleep(0.1)
    assert polling.worked == ["warehouse-7"] and payloads() == []
    assert not any(key.endswith("/ended") for key in world.left_in_s3())


def test_a_payload_that_dies_at_an_agent_is_an_error_that_says_what_is_known(
    world: World, queue: str, tmp_path: Path
) -> None:
    broken = Agent(world.aws, DECLARED.queue, "warehouse-7", beat_seconds=0.3, wait_seconds=1,
                   entry_point=("sh", "-c", "echo disk is full; kill -9 $$"))
    with Polling(broken):
        error = world.run(backend(world), work(world)).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_LOST and error.retryable
    assert "exit code -9" in error.message and "disk is full" in error.message
    assert world.left_in_s3() == []


def test_work_that_nobody_takes_is_given_up_and_not_done_later(
    world: World, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.runners.backends.agent._CLAIMED_SECONDS", 1)
    error = world.run(backend(world), work(world)).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_UNAVAILABLE and error.retryable
    assert left_in(queue) == 1
    assert agent(world).poll() is False
    assert left_in(queue) == 0 and not claimed(world)


def test_without_a_queue_nothing_is_sent(world: World) -> None:
    error = world.run(backend(world), work(world)).error
    assert isinstance(error, BareCountError) and error.code is ErrorCode.RUNNER_UNKNOWN
    assert world.cloud.made("sqs.SendMessage") == [] and world.left_in_s3() == []
