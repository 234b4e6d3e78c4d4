"""Dagster's instance: its storage is the platform's own PostgreSQL, its home a folder of the data folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from resources.runtime.database import PLATFORM_ROLE, Database, fetch, with_option
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

URL_VARIABLE = "BARECOUNT_DAGSTER_URL"
_EVENT_BATCH = "500"
_STATEMENT_TIMEOUT_MS = 600_000
_POOL_RECYCLE_SECONDS = 3_600
_MAX_OVERFLOW = 20

RUNS_VARIABLE = "BARECOUNT_CONCURRENT_RUNS"
SETTINGS_FILE = Path(__file__).resolve().parents[1] / "deploy" / "dagster.yaml"


def instance_settings() -> str:
    """The instance's settings as YAML: `deploy/dagster.yaml`, with the number of runs at once that was asked for.

    Raises:
        BareCountError: usage, when that is no number.
    """
    settings = yaml.safe_load(SETTINGS_FILE.read_text(encoding="utf-8"))
    if wanted := os.environ.get(RUNS_VARIABLE):
        if not wanted.isdecimal() or int(wanted) == 0:
            raise BareCountError(ErrorCode.USAGE, f"{RUNS_VARIABLE} is {wanted!r}, allowed: a whole number from 1",
                                 hint="say how many runs may be in progress at once")
        settings["concurrency"]["runs"]["max_concurrent_runs"] = int(wanted)
    return f"# Written by BareCount from deploy/dagster.yaml.\n{yaml.safe_dump(settings, sort_keys=False)}"


def prepare(settings: Settings, database: Database) -> dict[str, str]:
    """Write the instance's settings and return the environment that a Dagster process needs.

    The URL names psycopg2: SQLAlchemy 2.1 takes a bare `postgresql://` for psycopg 3, whose NOTIFY takes no parameters.
    """
    home = settings.data_dir / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    wanted = instance_settings()
    if not config.exists() or config.read_text(encoding="utf-8") != wanted:
        fresh = config.with_suffix(f".{os.getpid()}.tmp")  # others may be reading it
        fresh.write_text(wanted, encoding="utf-8")
        fresh.replace(config)
    url = with_option(database.admin_url, f"-crole={PLATFORM_ROLE} -csearch_path=dagster")
    scheme, _, rest = url.partition("://")
    assert scheme in {"postgresql", "postgres"}
    return {
        "DAGSTER_HOME": str(home),
        URL_VARIABLE: f"postgresql+psycopg2://{rest}",
        "DAGSTER_EVENT_BATCH_SIZE": os.environ.get("DAGSTER_EVENT_BATCH_SIZE", _EVENT_BATCH),
        "BARECOUNT_PROJECT_DIR": str(settings.project_dir),
        "BARECOUNT_DATA_DIR": str(settings.data_dir),
    }


def open_instance(settings: Settings, database: Database) -> dg.DagsterInstance:
    """The instance, in this process."""
    environment = prepare(settings, database)
    os.environ.update(environment)
    import dagster as dg

    # The first one makes Dagster's tables, which two processes at once would get in each other's way with.
    with database.connect(autocommit=True) as connection:
        fetch(connection, "select pg_advisory_lock(hashtextextended('dagster', 0))")
        instance = dg.DagsterInstance.from_config(environment["DAGSTER_HOME"])
    # Dagster opens a connection for every statement unless told to keep some, as its webserver does: a run over a
    # year of partitions would spend most of its time on connecting.
    instance.optimize_for_webserver(
        statement_timeout=_STATEMENT_TIMEOUT_MS, pool_recycle=_POOL_RECYCLE_SECONDS, max_overflow=_MAX_OVERFLOW)
    return instance
