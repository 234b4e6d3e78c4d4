"""`barecount dev`: the Dagster UI, its daemon and a worker for actions, child processes on the project's database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from barecount_assets import lifecycle
from barecount_assets.instance import prepare
from barecount_assets.stages.environment import StageEnvironment
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

_HOST = "127.0.0.1"
_PATIENCE_SECONDS = 10


def serve(settings: Settings, port: int) -> int:
    """Serve until interrupted; returns the exit code of Dagster.

    Raises:
        BareCountError: network.port_in_use; declaration.invalid before anything starts.
    """
    from resources.governance import declarations

    declared = declarations.load(settings.project_dir)
    _require_free(port)
    database = Database.open(settings)
    lifecycle.close_abandoned(StageEnvironment(settings, database, declared))
    environment = {**os.environ, **prepare(settings, database)}
    print(f"Dagster UI: http://{_HOST}:{port}  (Ctrl-C stops it; PostgreSQL keeps running, see `barecount stop`)",
          flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", "dev", "-m", "barecount_assets.definitions", "-h", _HOST, "-p", str(port)],
        env=environment, cwd=settings.project_dir, start_new_session=True,
    )
    # Starting a run takes Dagster some seconds; the worker acts at once, and the action job finds it done.
    worker = subprocess.Popen([sys.executable, "-m", "barecount_assets.cli.main", "actions", "work"],
                              env=environment, cwd=settings.project_dir, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return _stop(process)
    finally:
        _stop(worker)


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Stop Dagster and all it started: asked first, then told. A shell may have made its children deaf to SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return 0
        os.killpg(process.pid, number)
        try:
            process.wait(_PATIENCE_SECONDS)
            return 0
        except subprocess.TimeoutExpired:
            continue
    return 0


def _require_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise BareCountError(
                ErrorCode.PORT_IN_USE, f"port {port} on {_HOST} cannot be used: {error.strerror}",
                hint=f"choose another: barecount dev --port {port + 1 if port < 65535 else 3000}",
            ) from error
