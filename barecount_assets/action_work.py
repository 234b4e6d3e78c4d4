"""The work behind actions: decide about events, queue, deliver, follow up. The action job and the worker both do it.

Whoever is first does it, the other finds it done: what was decided, and what was sent, is in the database.
"""

from __future__ import annotations

import datetime as dt
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from barecount_assets.stages.environment import StageEnvironment
from resources.runtime import events, logs
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    import psycopg

    from resources.action.delivery.worker import Report, Worker
    from resources.action.engine import Rulebook
    from resources.action.jobs import Advance
    from resources.action.people import JobRow

_TICK_SECONDS = 1.0
_log = logs.get_logger("actions")


@dataclass(frozen=True)
class ActionWork:
    """The steps, on one project."""

    environment: StageEnvironment
    book: Rulebook
    now: Callable[[], dt.datetime]

    @classmethod
    def of(cls, environment: StageEnvironment, now: Callable[[], dt.datetime] | None = None) -> ActionWork:
        from resources.action import jobs

        return cls(environment, jobs.rulebook(environment.declarations), now or _now)

    def evaluate(self) -> Advance:
        """Decide about every event that waits."""
        from resources.action import jobs

        return jobs.evaluate(self.environment.database, self.environment.declarations, self.book, self.now)

    def enqueue(self) -> int:
        """Queue the deliveries of jobs that are due."""
        from resources.action import jobs

        return jobs.enqueue(self.environment.database, self.environment.declarations, self.now)

    def deliver(self) -> Report:
        """Send what is due now."""
        with self.worker() as worker:
            return worker.run_once(self.now())

    def settle(self) -> int:
        """Follow what became of deliveries; returns how many jobs changed."""
        from resources.action import jobs

        changed = total = 0
        while changed or not total:
            with self.environment.database.transaction() as connection:
                changed = jobs.settle(connection, self.now())
            total += changed
            if not changed:
                break
        return total

    def jobs_since(self, moment: dt.datetime) -> list[JobRow]:
        """Jobs that were decided on or changed since a moment."""
        from resources.action import people

        with self.environment.database.connect(autocommit=True) as connection:
            return people.since(connection, moment)

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A delivery worker with the tenants' egress policies."""
        from resources.action.delivery.worker import Worker
        from resources.security.egress import EgressPolicy
        from resources.trust.secrets import Secrets

        opened = self.environment
        policies = {name: tenant.egress_policy for name, tenant in opened.declarations.tenants.items()}
        secrets = Secrets.of(opened.settings.data_dir, opened.database)
        with Worker(opened.database, secrets, lambda tenant: policies.get(tenant, EgressPolicy())) as worker:
            yield worker

    # --- until stopped --------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Do all of it as soon as there is something to do, until `stop` is set; survives a database that goes away.

        Events wake it at once (`events.CHANNEL`); what is due by time is looked for every second.
        """
        failures: list[BaseException] = []
        delivering = threading.Thread(target=self._deliver, args=(stop, failures), name="deliver")
        delivering.start()
        try:
            while not stop.is_set():
                try:
                    self._decide_until(stop)
                except BareCountError as error:
                    if error.code is not ErrorCode.DATABASE_UNAVAILABLE:
                        raise
                    _log.warning("the database went away, trying again", exc_info=error)
                    stop.wait(_TICK_SECONDS)
        finally:
            stop.set()
            delivering.join()
        if failures:
            raise failures[0]

    def _deliver(self, stop: threading.Event, failures: list[BaseException]) -> None:
        try:
            with self.worker() as worker:
                worker.run(self.now, stop)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(error)
            stop.set()

    def _decide_until(self, stop: threading.Event) -> None:
        from resources.action import jobs
        from resources.runtime.database import unavailable_as_error

        with unavailable_as_error(), self.environment.database.connect(autocommit=True) as connection:
            connection.execute(f"listen {events.CHANNEL}")
            while not stop.is_set():
                if jobs.waiting(connection, self.book, self.now()):
                    self.evaluate()
                    self.enqueue()
                self.settle()
                _wait(connection, _TICK_SECONDS)


def _wait(connection: psycopg.Connection, seconds: float) -> None:
    """Wait until something is told on the connection's channels, or the time is over."""
    select.select([connection.fileno()], [], [], seconds)
    for _ in connection.notifies(timeout=0):
        pass


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
