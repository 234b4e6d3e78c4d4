"""What runs in the forked children of the lifecycle tests: the real platform, which tells its parent every step.

Imported once, in the fork server, so that a child starts at once. Nothing here opens a connection, a file that
stays open, or a thread: what is used before a fork breaks after it.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dagster_postgres  # noqa: F401
import dbt.adapters.postgres  # noqa: F401
import dbt.cli.main  # noqa: F401
import great_expectations  # noqa: F401
import pandas  # noqa: F401
import pandera.polars  # noqa: F401
import pgpq  # noqa: F401
import psycopg
from dbt.adapters.sql.connections import SQLConnectionManager

import barecount_assets.definitions  # noqa: F401
import barecount_assets.runner
import barecount_assets.stages.calendar
import barecount_assets.stages.dbt
import barecount_assets.stages.ingestion.stage
import barecount_assets.stages.kpi_build
import barecount_assets.stages.normalization
import barecount_assets.stages.publish  # noqa: F401
from barecount_assets import lifecycle, stages
from barecount_assets.cli import main as command_line
from barecount_assets.cli import runs  # noqa: F401
from barecount_assets.lifecycle import RunRequest
from barecount_assets.stages import expectations
from barecount_assets.stages.environment import StageEnvironment
from resources.governance.declarations import Declarations, load
from resources.runners.stage import Stage, StageSpec
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError
from resources.runtime.settings import Settings, code_version
from tests.lifecycle.harness import OUTSIDE, PROJECT, Ended, Reached, Step, Stop

DECLARATIONS: Declarations = load(PROJECT)
CODE_VERSION = code_version(PROJECT)  # cached for all children: they all run the code imported here
with tempfile.TemporaryDirectory() as _folder:
    barecount_assets.stages.dbt._parsed(Settings(PROJECT, Path(_folder), _folder, None))  # and the models parsed here
gc.set_threshold(50_000)  # as the command does
gc.freeze()  # a child that looked through all this would get a copy of it, page by page
_LABEL = 70
_ORDER = (Stage.CALENDAR, Stage.INGESTION, Stage.NORMALIZATION, Stage.KPI_BUILD, Stage.PUBLISH)


class Steps:
    """Tells the parent every step: stages, their progress, each statement and commit, each object put."""

    def __init__(self, pipe: Connection, stop: Stop | None) -> None:
        self._pipe, self._stop = pipe, stop
        self._stage, self._count = OUTSIDE, 0
        self._one = threading.RLock()

    def step(self, label: str) -> None:
        with self._one:
            self._pipe.send(Step(self._stage, label))
            stop = self._stop
            if stop is not None and stop.stage == self._stage:
                if self._count == stop.step:
                    self._stop = None  # once is enough, whatever is tried again
                    self._pipe.send(Reached())
                    if stop.hold:
                        self._pipe.recv()
                self._count += 1

    def progress(self, message: str, done: int, total: int) -> None:
        self.step(f"progress: {message}")

    def execute(self, spec: StageSpec, progress: Any, environment: StageEnvironment | None = None) -> Any:
        """Stands in for the entry point of the stages, where the runner calls it."""
        self._stage = spec.stage.value
        self._overtake()
        try:
            self.step(f"begin: {spec.stage} {spec.source or ''}".rstrip())
            receipt = stages.execute(spec, progress, environment)
            if self._stop is not None and self._stop.stage == self._stage and spec.source is None:
                self._stop = Stop(self._stage, self._count, self._stop.hold)
            self.step(f"end: {spec.stage} {spec.source or ''}".rstrip())
            return receipt
        finally:
            self._stage = OUTSIDE

    def _overtake(self) -> None:
        """Stop at once in a stage that comes after the one to stop in: that one had less to do than was thought."""
        stop = self._stop
        if stop is not None and stop.stage in _ORDER and _ORDER.index(stop.stage) < _ORDER.index(self._stage):
            self._stop = Stop(self._stage, self._count, stop.hold)

    def watch(self) -> None:
        """Announce what the platform does from now on. The platform's own code and behaviour stay as they are."""
        self._before(psycopg.Cursor, "execute", lambda _, query, *__: _text(query))
        self._before(psycopg.Cursor, "copy", lambda _, query, *__: _text(query))
        self._before(psycopg.Transaction, "__exit__", lambda *_: "end of transaction")
        self._before(SQLConnectionManager, "add_query", lambda _, query, *__: f"dbt: {_text(query)}")
        self._before(SQLConnectionManager, "commit", lambda *_: "dbt: commit")
        self._before(os, "link", lambda _, key, *__: f"put: {key}")
        barecount_assets.runner.execute = self.execute
        # In here, where its library is imported: a process of its own for each child would take longer than the child.
        expectations.judge, expectations.start_ahead = expectations.validate, lambda: None

    def _before(self, owner: Any, name: str, label: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def announced(*args: Any, **kwargs: Any) -> Any:
            self.step(label(*args))
            return original(*args, **kwargs)

        setattr(owner, name, announced)


def run(pipe: Connection, stop: Stop | None, settings: Settings, url: str, request: RunRequest) -> None:
    """`lifecycle.run` on a database."""
    steps = Steps(pipe, stop)
    steps.watch()
    environment = StageEnvironment(settings, Database(url, is_embedded=True), DECLARATIONS)
    try:
        outcome = lifecycle.run(environment, request, steps.progress)
    except BareCountError as error:
        pipe.send(Ended(False, error.envelope()["error"]))
        return
    pipe.send(Ended(outcome.changed, outcome.error and outcome.error.envelope()["error"]))


def barecount(pipe: Connection, stop: Stop | None, environment: dict[str, str], output: Path, *words: str) -> None:
    """The command `barecount`; it prints into files of the folder `output` and exits with the command's code."""
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    logging.getLogger().handlers.clear()  # of libraries that are imported ahead of the command here, and after it there
    steps = Steps(pipe, stop)
    steps.watch()
    pipe.recv()  # everybody begins at the same moment
    sys.argv = ["barecount", *words]
    command_line.main()


def _text(query: Any) -> str:
    text = query.decode() if isinstance(query, bytes) else str(query)
    if text.startswith("/*"):
        text = text.partition("*/")[2]
    return " ".join(text.split())[:_LABEL]
