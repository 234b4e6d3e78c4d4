"""What a stage works with: the declarations, the database, the raw store, and the lock of its tenant and pipeline."""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import psycopg

from resources.governance import registry
from resources.governance.declarations import Declarations, load
from resources.runtime.database import Database, fetch, unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings, code_version

if TYPE_CHECKING:
    from resources.storage.artefacts import Artefact
    from resources.storage.raw_store import RawStore

_LOCK_SPACE = 0x0BC0  # first key of the two-key advisory locks of stages
_RUN_LOCK_SPACE = 0x0BC1
_BUILD_LOCK_SPACE = 0x0BC2
_LOCK_TIMEOUT = "15min"


@dataclass(frozen=True)
class StageEnvironment:
    """Opened once per process and shared by the stages that run in it."""

    settings: Settings
    database: Database
    declarations: Declarations

    @classmethod
    def open(cls, settings: Settings | None = None) -> StageEnvironment:
        """Open everything a stage needs.

        Raises:
            BareCountError: declaration.invalid, database.unavailable, database.migration.
        """
        settings = settings or Settings.from_environment()
        return cls.using(settings, Database.open(settings))

    @classmethod
    def using(cls, settings: Settings, database: Database) -> StageEnvironment:
        """The environment of an opened database: what is declared, with the contracts that are current in the registry.

        Raises:
            BareCountError: declaration.invalid, database.unavailable.
        """
        declarations = load(settings.project_dir)
        with unavailable_as_error(), database.connect(autocommit=True) as connection:
            return cls(settings, database, registry.overlay(connection, declarations))

    def admit_contracts(self, tenant_id: str, pipeline: str) -> None:
        """Register what is new or compatible of a pipeline's contracts; once per environment.

        Raises:
            BareCountError: contract.breaking, contract.immutable.
        """
        if (tenant_id, pipeline) in self._admitted:
            return
        with unavailable_as_error(), self.database.connect(autocommit=True) as connection:
            registry.admit(connection, self.declarations, pipeline, tenant_id, dt.datetime.now(dt.UTC))
        self._admitted.add((tenant_id, pipeline))

    @cached_property
    def _admitted(self) -> set[tuple[str, str]]:
        return set()

    @cached_property
    def raw_store(self) -> RawStore:
        from resources.storage.raw_store import RawStore

        return RawStore(self.settings.raw_store)

    @cached_property
    def artefact(self) -> Artefact:
        """The project's sources, packed when a run first asks: it computes with these."""
        from resources.storage.artefacts import pack

        return pack(self.settings.project_dir, [
            (dataset, layer, contract.version, contract.hash)
            for (dataset, layer), contract in self.declarations.contracts.items()])

    @property
    def code_version(self) -> str:
        return code_version(self.settings.project_dir)

    @contextmanager
    def exclusive(self, tenant_id: str, pipeline: str) -> Iterator[psycopg.Connection]:
        """An autocommit connection that holds the stage lock of a tenant and pipeline until the block ends.

        Waits for another stage of the same tenant and pipeline, and refuses after 15 minutes.
        """
        with unavailable_as_error(), self.database.connect(autocommit=True) as connection:
            connection.execute(f"set lock_timeout = '{_LOCK_TIMEOUT}'")
            try:
                connection.execute(
                    "select pg_advisory_lock($1, $2)", (_LOCK_SPACE, lock_key(tenant_id, pipeline))
                )
            except psycopg.errors.LockNotAvailable as error:
                raise in_progress(tenant_id, pipeline) from error
            connection.execute("set lock_timeout = 0")
            yield connection

    @contextmanager
    def building(self, connection: psycopg.Connection, pipeline: str) -> Iterator[None]:
        """Held while models of a pipeline are built: tenants share the tables, whose first build makes them."""
        key = (_BUILD_LOCK_SPACE, lock_key("", pipeline))
        fetch(connection, "select pg_advisory_lock($1, $2)", key)
        try:
            yield
        finally:
            if not connection.closed:
                fetch(connection, "select pg_advisory_unlock($1, $2)", key)

    @contextmanager
    def run_lock(self, tenant_id: str, pipeline: str) -> Iterator[Callable[[], None]]:
        """Held by a whole run from the command line; a second one is refused at once.

        Yields a check that the lock is still held: a server that restarts sets it free, and another run may begin.
        The check raises database.unavailable when it is lost.

        Raises:
            BareCountError: run.in_progress.
        """
        with unavailable_as_error(), self.database.connect(autocommit=True) as connection:
            key = (_RUN_LOCK_SPACE, lock_key(tenant_id, pipeline))
            if not fetch(connection, "select pg_try_advisory_lock($1, $2)", key)[0][0]:
                raise in_progress(tenant_id, pipeline)

            def check() -> None:
                with unavailable_as_error():
                    fetch(connection, "select 1")

            yield check

    def register_tenant(self, connection: psycopg.Connection, tenant_id: str) -> None:
        """Make the tenant known to the database: its row, its chain of evidence, its analyst role."""
        tenant = self.declarations.tenant(tenant_id)
        fetch(
            connection, "select platform.register_tenant($1, $2, $3)", (tenant_id, tenant.metadata.name, tenant.hash)
        )


def lock_key(tenant_id: str, pipeline: str) -> int:
    """Signed 32-bit key of an advisory lock."""
    return zlib.crc32(f"{tenant_id}/{pipeline}".encode()) - 2**31


def in_progress(tenant_id: str, pipeline: str) -> BareCountError:
    return BareCountError(
        ErrorCode.RUN_IN_PROGRESS,
        f"a run of {pipeline} for tenant {tenant_id} is in progress: two runs of the same data never interleave",
        hint="wait for it to finish (`barecount status` shows it), then run again",
        retryable=True,
    )
