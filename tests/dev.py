"""`barecount dev` as a process: Dagster's webserver and daemon, and the worker for actions."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT

_PATIENCE_SECONDS = 180


@contextmanager
def developing(variables: Mapping[str, str], log: Path, sensor: str) -> Iterator[None]:
    """`barecount dev` with these variables of the environment, from when a sensor was asked for the first time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **variables, "PYTHONPATH": str(PROJECT)}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "barecount_assets.cli.main", "dev", "--port", str(port)],
                                   env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for(sensor, port, process)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _wait_for(sensor: str, port: int, process: subprocess.Popen[bytes]) -> None:
    query = ('query ($name: String!) {sensorOrError(sensorSelector: {repositoryName: "__repository__", '
             'repositoryLocationName: "barecount_assets.definitions", sensorName: $name}) '
             '{... on Sensor {sensorState {ticks(limit: 1) {status}}}}}')
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "barecount dev ended by itself"
        try:
            answer = _answer(port, query, name=sensor)
            if answer["sensorOrError"].get("sensorState", {}).get("ticks"):
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{sensor} has not been asked once")


def _answer(port: int, query: str, **values: Any) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", json.dumps({"query": query, "variables": values}).encode(),
        {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=10))["data"]
