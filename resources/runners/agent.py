"""The agent: polls a queue from inside a network that lets nobody in, and does the work there.

All connections go out, over HTTPS, to SQS and S3 (and to PostgreSQL, as every payload's). A word in the queue names a
run specification below the environment's `messages`; nothing else of it is executed. The payload is the platform's own
entry point, as a process with the agent's environment: where project, stores, database and secrets are, only the agent
knows.

A word is taken off the queue as soon as the work is claimed: work whose agent dies is not done by another one that gets
the word again, but tried again by its run, which hears that the agent is silent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from resources.runners import pipes
from resources.runners.backends.agent import ALIVE, CLAIM, ENDED, GRACE_SECONDS
from resources.runners.backends.aws import STOP, Aws
from resources.runners.payload import PARENT_VARIABLE
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode

_ENTRY_POINT = (sys.executable, "-m", "barecount_assets.stages")
_WITHOUT_AWS_SECONDS = 30
_STOP_SECONDS = 15  # a payload that is interrupted ends within ten
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


@dataclass(frozen=True)
class Word:
    """What came by the queue.

    Attributes:
        run_spec: `s3://` address of the run specification; its folder is where the run listens.
        variables: for the payload: the environment's name and the parameters of Dagster Pipes, and no other.
        timeout_seconds: after which the payload ends itself.
    """

    run_spec: str
    variables: Mapping[str, str]
    timeout_seconds: int

    @classmethod
    def read(cls, text: str, messages: str) -> Word:
        """Raises ValueError for what no run of this environment sent."""
        try:
            found = json.loads(text)
            given = {**found["environment"], **found["bootstrap"]}
            word = cls(found["run_spec"], {
                name: value for name, value in given.items()
                if name == "BARECOUNT_ENVIRONMENT" or name.startswith("DAGSTER_PIPES_")}, int(found["timeout_seconds"]))
        except (KeyError, TypeError, AttributeError) as cause:
            raise ValueError(f"it lacks {cause}") from cause
        if not word.run_spec.startswith(f"{messages.rstrip('/')}/") or not word.run_spec.endswith("/run_spec.json"):
            raise ValueError(f"{word.run_spec} is not a run specification below {messages}")
        return word


@dataclass(frozen=True)
class Agent:
    """Takes work from a queue, one piece at a time. Start as many as there is to do at once.

    Attributes:
        aws: the environment: where the queue and the messages are.
        queue: name of the queue.
        name: of this agent; evidence names it as the instance.
        beat_seconds: how often it says that it is alive, and looks whether to stop.
        wait_seconds: how long to wait for a word when there is none, 20 at the most.
        entry_point: what runs a payload; the run specification follows.
    """

    aws: Aws
    queue: str
    name: str
    beat_seconds: float = 5.0
    wait_seconds: int = 20
    entry_point: Sequence[str] = _ENTRY_POINT

    def serve(self) -> None:
        """Poll until interrupted. An interrupted agent ends its payload and says so; one without AWS waits for it."""
        while True:
            try:
                self.poll()
            except (ClientError, BotoCoreError) as cause:
                logs.get_logger("agent").warning("%s cannot be polled: %s", self.queue, cause)
                self.aws.pause(_WITHOUT_AWS_SECONDS)

    def poll(self) -> bool:
        """Wait for a word and do what it says; False when none came, or nothing had to be done.

        Raises:
            BareCountError: runner.unknown when there is no such queue.
        """
        sqs = self.aws.client("sqs")
        try:
            address = sqs.get_queue_url(QueueName=self.queue)["QueueUrl"]
        except sqs.exceptions.QueueDoesNotExist as cause:
            raise BareCountError(ErrorCode.RUNNER_UNKNOWN, f"there is no queue {self.queue} in {self.aws.region}",
                                 hint="see the environment's networks, and this agent's credentials") from cause
        found = sqs.receive_message(QueueUrl=address, MaxNumberOfMessages=1, WaitTimeSeconds=self.wait_seconds)
        for message in found.get("Messages", ()):
            claimed = self._claim(message["Body"])
            sqs.delete_message(QueueUrl=address, ReceiptHandle=message["ReceiptHandle"])
            if claimed is not None:
                self._work(claimed)
                return True
        return False

    def _claim(self, text: str) -> Word | None:
        """The word, when this agent is the first to have it and a run still waits for it."""
        log = logs.get_logger("agent")
        try:
            word = Word.read(text, self.aws.messages)
        except ValueError as cause:
            log.error("a word in %s is not work: %s", self.queue, cause)
            return None
        place = _Place(self.aws.client("s3"), word)
        if place.has(STOP) or not place.has("run_spec.json"):
            log.info("nobody waits for %s any more", word.run_spec)
            return None
        if not place.claim({"agent": self.name}):
            log.info("%s is claimed already", word.run_spec)
            return None
        return word

    def _work(self, word: Word) -> None:
        place, unwanted = _Place(self.aws.client("s3"), word), False
        with tempfile.TemporaryDirectory(prefix="barecount-agent-") as folder:
            output = Path(folder) / "output.log"
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [*self.entry_point, word.run_spec], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    env={**os.environ, **word.variables, "BARECOUNT_INSTANCE_ID": self.name,
                         PARENT_VARIABLE: str(os.getpid())})
            try:
                unwanted = self._watch(process, place, word.timeout_seconds + GRACE_SECONDS / 2)
            finally:
                _end(process)
                if not unwanted:
                    place.put(ENDED, {"agent": self.name, "exit_code": process.returncode,
                                      "last_words": pipes.tail(output)})

    def _watch(self, process: subprocess.Popen, place: _Place, longest: float) -> bool:
        """Say that the work goes on until it ends, is not wanted any more, or takes too long; True when unwanted."""
        beats = 0
        while process.poll() is None and beats * self.beat_seconds < longest:
            try:
                if place.has(STOP) or not place.has("run_spec.json"):
                    return True
                place.put(ALIVE, {"agent": self.name, "beat": (beats := beats + 1)})
            except (ClientError, BotoCoreError) as cause:  # silent for too long, its run takes it for lost
                logs.get_logger("agent").warning("S3 cannot be reached: %s", cause)
                beats += 1
            try:
                process.wait(self.beat_seconds)
            except subprocess.TimeoutExpired:
                continue
        return False


class _Place:
    """Where the run of a word listens."""

    def __init__(self, client: Any, word: Word) -> None:
        bucket, _, key = word.run_spec.removeprefix("s3://").partition("/")
        self._client, self._bucket, self._prefix = client, bucket, key.rpartition("/")[0]

    def has(self, name: str) -> bool:
        try:
            self._client.head_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")
        except ClientError as cause:
            if cause.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                return False
            raise
        return True

    def put(self, name: str, content: Mapping[str, Any]) -> None:
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=json.dumps(content).encode())

    def claim(self, content: Mapping[str, Any]) -> bool:
        """Put the claim where there is none; False where there is one."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{CLAIM}", IfNoneMatch="*",
                                    Body=json.dumps(content).encode())
        except ClientError as cause:
            if cause.response["Error"]["Code"] in _TAKEN:
                return False
            raise
        return True


def _end(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
