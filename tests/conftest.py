"""Shared parts of the tests: a real PostgreSQL, a fresh database per test, a project with its own data folder."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
        # Killed processes lose nothing without it, only machines do; with it, every database costs hundreds of syncs.
        connection.execute("alter system set fsync = off")
        connection.execute("select pg_reload_conf()")
    migrations.upgrade(url)
    yield url
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_database(server: str) -> Callable[[], Database]:
    """Makes empty migrated databases."""

    def make() -> Database:
        name = f"t{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(server.replace("/barecount?", "/postgres?"), autocommit=True) as connection:
            connection.execute(f"create database {name} template barecount")
        return Database(server.replace("/barecount?", f"/{name}?"), is_embedded=True)

    return make


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
