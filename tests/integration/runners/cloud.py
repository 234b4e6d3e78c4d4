"""AWS for tests: moto behind HTTP, every call on record, and machines that really run the payload.

moto answers AWS's APIs and runs no container. A `Cloud` sits in front of it: what a test registers with `on` is called
after moto has answered an operation, and starts the payload as a process of its own, with what the call carried as its
environment; `fail` answers the next calls of an operation in moto's place.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import psutil
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

REGION, ACCOUNT = "eu-west-1", "123456789012"
METADATA = "/task-metadata/"
"""Where a task asks who it is: ECS gives each an address of its own, here with its ARN in it."""
PROJECT = Path(__file__).resolve().parents[3]

_ERROR = {
    "ecs": '{{"__type": "{code}", "message": "{message}"}}',
    "ssm": '{{"__type": "{code}", "message": "{message}"}}',
    "glue": '{{"__type": "{code}", "message": "{message}"}}',
    "lambda": '{{"Type": "User", "message": "{message}"}}',
    "ec2": "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>",
}


@dataclass(frozen=True)
class Call:
    """One call of an operation, as it came over the wire."""

    service: str
    operation: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a call is answered in moto's place."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        return None


class Cloud:
    """moto's server with a record of calls, faults, and machines. Use as a context."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.machines: list[subprocess.Popen] = []
        self._faults: dict[str, list[Answer]] = defaultdict(list)
        self._after: dict[str, Callable[[Call, bytes], Answer | None]] = {}
        self._instead: dict[str, Callable[[Call], Answer]] = {}
        self.lost: list[str] = []
        self._loses = False
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Cloud:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end_machines()
        self._server.shutdown()

    def _end_machines(self) -> None:
        for machine in self.machines:
            machine.kill()
            machine.wait()

    def forget(self) -> None:
        """A fresh record, without faults and machines; moto's state stays."""
        self._end_machines()
        self.calls.clear()
        self.machines.clear()
        self._faults.clear()
        self._after.clear()
        self._instead.clear()
        self.lost.clear()
        self._loses = False

    def on(self, operation: str, act: Callable[[Call, bytes], Answer | None]) -> None:
        """Call `act` after moto answered an operation; what it returns replaces moto's answer."""
        self._after[operation] = act

    def instead(self, operation: str, act: Callable[[Call], Answer]) -> None:
        """Answer an operation in moto's place."""
        self._instead[operation] = act

    def fail(self, operation: str, code: str, message: str = "injected", times: int = 1, status: int = 400) -> None:
        """Answer the next calls of an operation with an error."""
        service = operation.partition(".")[0]
        body = _ERROR[service].format(code=code, message=message)
        self.answer(operation, Answer(status, body, {"x-amzn-ErrorType": code}), times)

    def answer(self, operation: str, answer: Answer, times: int = 1) -> None:
        """Answer the next calls of an operation in moto's place."""
        self._faults[operation] += [answer] * times

    def lose_messages(self) -> None:
        """Say that S3 has every chunk of messages, and keep nothing of them. How many there are is a matter of time."""
        self._loses = True

    def made(self, operation: str) -> list[Mapping[str, Any]]:
        """Bodies of the calls of an operation so far."""
        return [call.body for call in self.calls if f"{call.service}.{call.operation}" == operation]

    def start(self, command: Iterable[str], variables: Mapping[str, str], stdin: int = subprocess.DEVNULL
              ) -> subprocess.Popen:
        """A machine: a process that sees only the variables given, and AWS at this address."""
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(PROJECT),
                       **credentials(self.url), **variables}
        machine = subprocess.Popen(
            [sys.executable, *list(command)[1:]], cwd=PROJECT, env=environment, stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        self.machines.append(machine)
        return machine

    def running(self) -> list[int]:
        """Machines that still run."""
        return [machine.pid for machine in self.machines if machine.poll() is None and psutil.pid_exists(machine.pid)]

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        if environ["PATH_INFO"].startswith(METADATA):
            arn = environ["PATH_INFO"].removeprefix(METADATA).removesuffix("/task")
            return _send(Answer(200, json.dumps({"TaskARN": arn})), start_response)
        call = _call(environ, body)
        name = f"{call.service}.{call.operation}"
        self.calls.append(call)
        if self._loses and name == "s3.PUT" and re.search(r"/messages/\d+\.json$", environ["PATH_INFO"]):
            self.lost.append(environ["PATH_INFO"])
            return _send(Answer(200, ""), start_response)
        if self._faults[name]:
            return _send(self._faults[name].pop(0), start_response)
        if name in self._instead:
            return _send(self._instead[name](call), start_response)
        act = self._after.get(name)
        if act is None:
            return self._moto(environ, start_response)
        sent: list[Any] = []
        answered = b"".join(self._moto(environ, lambda status, headers, *_: sent.extend((status, headers))))
        replaced = act(call, answered)
        if replaced is not None:
            return _send(replaced, start_response)
        start_response(*sent)
        return [answered]


def credentials(url: str) -> dict[str, str]:
    """Variables with which a process finds this cloud."""
    return {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION, "AWS_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}


def _call(environ: Mapping[str, Any], body: bytes) -> Call:
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split(",")[0].split("/")
    service = scope[3] if len(scope) > 3 else "?"
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return Call(service, target.rpartition(".")[2], json.loads(body or b"{}"))
    if service in ("ec2", "sts", "iam"):
        query = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        return Call(service, query.get("Action", "?"), query)
    if service == "lambda" and path.endswith("/invocations"):
        return Call(service, "Invoke", {
            "function": path.split("/")[-2], "qualifier": parse_qs(environ["QUERY_STRING"]).get("Qualifier", [None])[0],
            "event": json.loads(body)})
    return Call(service, method, {"path": path})


def _send(answer: Answer, start_response: Any) -> Iterable[bytes]:
    start_response(f"{answer.status} OK", [("Content-Type", "application/x-amz-json-1.1"), *answer.headers.items()])
    return [answer.body.encode()]
