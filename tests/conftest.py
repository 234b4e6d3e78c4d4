"""Shared parts of the tests: a real PostgreSQL, a fresh database per test, a project with its own data folder."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil
import psycopg
import pytest
from click.testing import CliRunner, Result
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling

from resources.runtime import embedded, migrations
from resources.runtime.database import Database
from resources.runtime.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("BARECOUNT_SHARED_DATA", PROJECT.parent / "shared" / "data"))
_numbers = itertools.count(1)

gc.set_threshold(50_000)  # as the command does

# Few examples in every run of the suite; `--hypothesis-profile thorough` looks longer.
hypothesis_settings.register_profile("quick", max_examples=30, deadline=None)
hypothesis_settings.register_profile("thorough", max_examples=2_000, deadline=None)
hypothesis_settings.load_profile("quick")


class ByFixture(LoadScopeScheduling):
    """The tests of a file go to one worker for their fixtures' sake, and so do files that share a dear one."""

    _SHARED = {
        "sales": ("access", "events", "explain", "idempotency", "lineage", "order_to_cash"),
        "uninterrupted": ("concurrency", "crash", "restart"),
    }

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        name = Path(file).stem.removeprefix("test_")
        if "/lifecycle/" not in file:
            return file
        return next((fixture for fixture, files in self._SHARED.items() if name in files), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFixture:
    return ByFixture(config, log)


MEMORY, ENOUGH = Path("/dev/shm"), 6 * 2**30
"""A file system in memory, and how many bytes of it the databases of a worker may take."""


def folder_for_databases() -> Path:
    """In memory where there is room: each database is a thousand files, which some file systems make and drop slowly.

    Else in the system's temporary folder: running as root, PostgreSQL drops to a user of its own, which must be able to
    reach it, and a socket's path must be short.
    """
    in_memory = (MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH
                 and psutil.virtual_memory().available > 2 * ENOUGH)
    folder = Path(tempfile.mkdtemp(prefix="bc-test-", dir=MEMORY if in_memory else None))
    folder.chmod(0o755)
    return folder


def settle_for_speed(connection: psycopg.Connection) -> None:
    """Let a server of the tests skip what only a machine that loses its power needs."""
    # Killed processes lose nothing without them, only machines do; every database would cost hundreds of syncs.
    connection.execute("alter system set fsync = off")
    connection.execute("alter system set full_page_writes = off")
    connection.execute("alter system set max_wal_size = '512MB'")
    connection.execute("alter system set autovacuum_naptime = '10min'")  # it looks into every database
    connection.execute("select pg_reload_conf()")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a running server's migrated database, which is the template of all others."""
    folder = folder_for_databases()
    url = embedded.start(folder)
    with psycopg.connect(url, autocommit=True) as connection:
        settle_for_speed(connection)
    migrations.upgrade(url)
    yield url
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _verbs() -> click.Command:
    from typer.main import get_command

    from barecount_assets.cli.main import app

    return get_command(app)


def barecount(*words: str) -> Result:
    """The real command, in this process. Typer would build its tree of verbs each time, for longer than most take."""
    return CliRunner().invoke(_verbs(), list(words))


@contextmanager
def databases(server: str) -> Iterator[Callable[..., Database]]:
    """Makes databases like a template (by default empty and migrated) and drops them in the end."""
    made: list[str] = []
    admin = server.replace("/barecount?", "/postgres?")

    def make(template: str = "barecount") -> Database:
        name = f"t{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"create database {name} template {template} strategy file_copy")  # type: ignore[arg-type]
        made.append(name)
        return Database(server.replace("/barecount?", f"/{name}?"), is_embedded=True)

    try:
        yield make
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            for name in made:
                connection.execute(f"drop database if exists {name} with (force)")  # type: ignore[arg-type]


@pytest.fixture
def new_database(server: str) -> Iterator[Callable[..., Database]]:
    """Makes empty migrated databases."""
    with databases(server) as make:
        yield make


@pytest.fixture
def database(new_database: Callable[[], Database]) -> Database:
    """An empty migrated database."""
    return new_database()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The shipped project with a data folder of the test's own."""
    return Settings(PROJECT, tmp_path / "data", str(tmp_path / "data" / "raw"), None)


@pytest.fixture
def real_data() -> Path:
    """Folder of the real data; it lies beside the project and is not part of it."""
    folder = SHARED_DATA / "online-retail"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}; set BARECOUNT_SHARED_DATA")
    return folder
