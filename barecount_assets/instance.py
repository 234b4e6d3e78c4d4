"""Dagster's instance: its storage is the platform's own PostgreSQL, its home a folder of the data folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from resources.runtime.database import PLATFORM_ROLE, Database, fetch, with_option
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

URL_VARIABLE = "BARECOUNT_DAGSTER_URL"
_EVENT_BATCH = "500"
_STATEMENT_TIMEOUT_MS = 600_000
_POOL_RECYCLE_SECONDS = 3_600
_MAX_OVERFLOW = 20

_INSTANCE = f"""\
# Written by BareCount. The URL comes from the environment, so that no password lies in this file.
storage:
  postgres:
    postgres_url:
      env: {URL_VARIABLE}
nux:
  enabled: false
telemetry:
  enabled: false
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    max_concurrent_runs: 2
    tag_concurrency_limits:
      - key: barecount/tenant
        limit: 1
        value:
          applyLimitPerUniqueValue: true
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 7
      success: 90
"""


def prepare(settings: Settings, database: Database) -> dict[str, str]:
    """Write the instance's settings and return the environment that a Dagster process needs.

    The URL names psycopg2: SQLAlchemy 2.1 takes a bare `postgresql://` for psycopg 3, whose NOTIFY takes no parameters.
    """
    home = settings.data_dir / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists() or config.read_text(encoding="utf-8") != _INSTANCE:
        config.write_text(_INSTANCE, encoding="utf-8")
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
