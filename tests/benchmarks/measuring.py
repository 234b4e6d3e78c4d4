"""One measurement: a contender in a process of its own, its memory and processor time, and the server's."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from resources.runtime import embedded, migrations

_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Measured:
    """What a contender took.

    Attributes:
        rows: rows that were in the table in the end.
        seconds: wall time, without starting Python and importing.
        peak_bytes: most resident memory of the process and its children together, over its whole life.
        cpu_seconds: processor time of the process and its children within `seconds`.
        server_cpu_seconds: processor time of PostgreSQL meanwhile.
        cores_taken: how many of the machine's cores everybody else used meanwhile, on average.
    """

    rows: int
    seconds: float
    peak_bytes: int
    cpu_seconds: float
    server_cpu_seconds: float
    cores_taken: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


class Server:
    """An embedded server of the benchmark's own, with the settings every project gets."""

    def __init__(self, folder: Path) -> None:
        self._url = embedded.start(folder)
        migrations.upgrade(self._url)
        self.postmaster = int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def database(self, like: str | None = None) -> Iterator[str]:
        """URL of an empty migrated database, or of a copy of another; written out to disk, gone afterwards."""
        name = f"bench_{next(self._numbers)}"
        template = "barecount" if like is None else conninfo_to_dict(like)["dbname"]
        with psycopg.connect(self._url.replace("/barecount?", "/postgres?"), autocommit=True) as connection:
            connection.execute(f"create database {name} template {template} strategy file_copy")
            connection.execute("checkpoint")
            try:
                yield self._url.replace("/barecount?", f"/{name}?")
            finally:
                connection.execute(f"drop database {name} with (force)")


def server_cpu_seconds(postmaster: psutil.Process) -> float:
    """Processor time of all processes of a server so far, ended ones included."""
    while True:
        before = postmaster.cpu_times()
        total = before.user + before.system + before.children_user + before.children_system
        for child in postmaster.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                own = child.cpu_times()
                total += own.user + own.system
        after = postmaster.cpu_times()
        if (after.children_user, after.children_system) == (before.children_user, before.children_system):
            return total  # else one ended meanwhile, and is missing


def machine_cpu_seconds() -> float:
    """Processor time that the machine has spent on anything."""
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0) + getattr(times, "steal", 0)


@contextlib.contextmanager
def server_in(folder: Path) -> Iterator[Server]:
    """A server in a folder that is made anew: settings are those of the code, not of an earlier run."""
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield Server(folder)
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def remove(work: Path) -> None:
    """Remove a contender's folder, objects that are write-once included."""
    for path in work.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(work, ignore_errors=True)


def measure(task: Mapping[str, Any], server: Server) -> Measured:
    """Run a task (see `contenders`) in a process of its own.

    Raises:
        RuntimeError: with the end of what it wrote to its standard error.
    """
    task = {**task, "postmaster": server.postmaster}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.contenders", json.dumps(task)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child, sampled(child.pid) as peak:
        output, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{task['contender']} failed:\n{errors[-4000:]}")
    result = Measured(**json.loads(output.splitlines()[-1]))
    return replace(result, peak_bytes=max(result.peak_bytes, peak[0]))


@contextlib.contextmanager
def sampled(process_id: int) -> Iterator[list[int]]:
    """Watch a process and its children; the one number is the most bytes they had together."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        process = psutil.Process(process_id)
        while not stop.wait(_SAMPLE_SECONDS):
            with contextlib.suppress(psutil.NoSuchProcess):
                peak[0] = max(peak[0], sum(_resident(p) for p in (process, *process.children(recursive=True))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
