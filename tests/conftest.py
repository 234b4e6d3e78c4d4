"""Shared parts of the tests: a real PostgreSQL, a fresh database per test, a project with its own data folder."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings

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


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a running server's migrated database, which is the template of all others.

    It lies in the system's temporary folder: running as root, PostgreSQL drops to a user of its own, which must be
    able to reach it, and a socket's path must be short.
    """
    folder = Path(tempfile.mkdtemp(prefix="bc-test-"))
    folder.chmod(0o755)
    url = embedded.start(folder)
    with psycopg.connect(url, autocommit=True) as connection:
        # Killed processes lose nothing without them, only machines do; every database would cost hundreds of syncs.
        connection.execute("alter system set fsync = off")
        connection.execute("alter system set full_page_writes = off")
        connection.execute("alter system set autovacuum_naptime = '10min'")  # it looks into every database
        connection.execute("select pg_reload_conf()")
    migrations.upgrade(url)
    yield url
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


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

    yield make
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
