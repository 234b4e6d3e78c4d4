"""Workers: they take what is due, send it, and record what came of it. Any number of them, on any number of machines.

A worker claims deliveries in one transaction, sends them from a pool of threads with no transaction open, and records
the attempts that have ended in another. Killed in between, it leaves deliveries whose lease ends; another worker sends
them again under the same delivery key, so that a receiver that deduplicates sees one effect.

Time that decides anything comes from the caller: `run_once` is given the moment, `run` a clock.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets as random_source
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psycopg

from resources.action.delivery import claims, endpoints
from resources.action.delivery.adapters import adapters
from resources.action.delivery.adapters.base import Challenge, Dispatch, Network
from resources.action.delivery.claims import Attempt, Claimed, Place
from resources.action.delivery.lanes import Lanes
from resources.action.delivery.model import DeliveryState, Message, Outcome, Result
from resources.action.delivery.queue import CHANNEL
from resources.governance.endpoints import EndpointSpec
from resources.runtime import logs
from resources.runtime.database import Database, unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode
from resources.security.egress import EgressDenied, EgressPolicy
from resources.trust.secrets import Secrets, SecretValue

THREADS = 48
PER_ENDPOINT = 32
LEASE = dt.timedelta(minutes=3)
"""Longer than the slowest delivery: a ticket takes up to five requests of 15 s, after waiting for a thread."""

_SECRETS_FRESH = dt.timedelta(seconds=30)
_FIRST_SECONDS = 0.2
_GATHER_SECONDS = 0.05
_IDLE_SECONDS = 1.0
_log = logs.get_logger("delivery")


@dataclass(frozen=True)
class Report:
    """What a worker did: attempts by the state they left their delivery in."""

    attempts: int = 0
    completed: int = 0
    failed: int = 0
    dlq: int = 0

    def plus(self, attempts: Iterable[Attempt]) -> Report:
        counted = Counter(one.state for one in attempts)
        return Report(
            self.attempts + sum(counted.values()), self.completed + counted[DeliveryState.COMPLETED],
            self.failed + counted[DeliveryState.FAILED], self.dlq + counted[DeliveryState.DLQ])


@dataclass
class _Run:
    """What is under way."""

    clock: Callable[[], dt.datetime]
    remaining: int | None
    stop: threading.Event
    unrecorded: list[Attempt] = field(default_factory=list)
    unsent: list[Claimed] = field(default_factory=list)
    report: Report = Report()


class Worker:
    """Delivers. Close it to end its threads and connections; use it from one thread."""

    def __init__(
        self, database: Database, secrets: Secrets, policy_of: Callable[[str], EgressPolicy], *,
        network: Network | None = None, name: str | None = None, lease: dt.timedelta = LEASE, threads: int = THREADS,
        per_endpoint: int = PER_ENDPOINT,
    ) -> None:
        """`policy_of` gives a tenant's egress policy; `name` says in receipts who it was."""
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{random_source.token_hex(3)}"
        self._database, self._lease = database, lease
        self._threads = threads
        self._sender = Sender(database, secrets, policy_of, network or Network.open())
        self._lanes = Lanes(self._sender.send, threads, per_endpoint)
        self._connection: psycopg.Connection | None = None

    def run_once(self, now: dt.datetime, limit: int = 10_000) -> Report:
        """Deliver what is due at `now`, at most `limit` attempts, and return when everything is recorded.

        Raises:
            BareCountError: database.unavailable; what was sent and not recorded is sent again after its lease.
        """
        return self._work(_Run(lambda: now, limit, threading.Event()))

    def run(
        self, clock: Callable[[], dt.datetime], stop: threading.Event,
        progress: Callable[[Report], None] | None = None,
    ) -> Report:
        """Deliver until `stop` is set; what is under way then is still recorded. Survives a database that goes away.

        Args:
            progress: is told what was done so far, whenever something was.
        """
        run, told = _Run(clock, None, stop), 0
        while not stop.is_set():
            try:
                self._work(run)
                if progress is not None and run.report.attempts > told:
                    told = run.report.attempts
                    progress(run.report)
                self._wait(clock, stop)
            except BareCountError as error:
                if error.code is not ErrorCode.DATABASE_UNAVAILABLE:
                    raise
                _log.warning("the database went away, trying again", exc_info=error)
                self._disconnect()
                stop.wait(_IDLE_SECONDS)
        return run.report

    def close(self) -> None:
        """End threads and connections."""
        self._lanes.close()
        self._sender.network.close()
        self._disconnect()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _work(self, run: _Run) -> Report:
        """Claim, send and record until nothing is due and nothing is under way."""
        while True:
            claimed = self._claim(run)
            if not (claimed or self._lanes.in_hand or run.unrecorded or run.unsent):
                return run.report
            self._record(run)
            self._give_back(run)

    def _claim(self, run: _Run) -> int:
        """Take more when a good part of the hands is free."""
        free = self._lanes.free
        if run.remaining is not None:
            free = min(free, run.remaining)
        if run.stop.is_set() or free < 1 or (self._lanes.in_hand and free < self._threads // 2):
            return 0
        with unavailable_as_error():
            claimed = claims.claim(self._connected(), self.name, run.clock(), self._lease, free, self._lanes.busy,
                                   self._lanes.depth)
        if run.remaining is not None:
            run.remaining -= len(claimed)
        self._lanes.add(claimed)
        return len(claimed)

    def _give_back(self, run: _Run) -> None:
        """Put into the queue again what was taken and will not be sent."""
        run.unsent += self._lanes.unsent()
        if not run.unsent:
            return
        with unavailable_as_error():
            claims.give_back(self._connected(), self.name, run.unsent)
        if run.remaining is not None:
            run.remaining += len(run.unsent)
        run.unsent = []

    def _record(self, run: _Run) -> None:
        if not run.unrecorded:  # else the database went away with them
            run.unrecorded = self._lanes.gather(_GATHER_SECONDS, _FIRST_SECONDS)
        attempts = run.unrecorded
        if not attempts:
            return
        with unavailable_as_error():
            late = claims.record(self._connected(), self.name, attempts, run.clock())
        for one in late:
            _log.warning("an attempt ended after its lease", extra={"fields": {
                "tenant": one.claimed.tenant_id, "endpoint": one.claimed.endpoint,
                "delivery_id": one.claimed.delivery_id, "attempt": one.claimed.attempt}})
        run.unrecorded = []
        run.report = run.report.plus(one for one in attempts if one not in late)

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._database.connect(autocommit=True)
            self._connection.execute(f"listen {CHANNEL}")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _wait(self, clock: Callable[[], dt.datetime], stop: threading.Event) -> None:
        """Until something is put into the queue, the next delivery is due, or a second has passed."""
        if stop.is_set():
            return
        with unavailable_as_error():
            connection = self._connected()
            due = claims.next_due(connection)
            seconds = _IDLE_SECONDS if due is None else min(_IDLE_SECONDS, max((due - clock()).total_seconds(), 0.05))
            for _ in connection.notifies(timeout=seconds, stop_after=1):
                pass


class Sender:
    """Sends one claimed delivery: its secrets, its policy, its adapter. Safe to use from many threads."""

    def __init__(
        self, database: Database, secrets: Secrets, policy_of: Callable[[str], EgressPolicy], network: Network
    ) -> None:
        self.network = network
        self._database, self._secrets, self._policy_of = database, secrets, policy_of
        self._adapters = adapters(network)
        self._specs: dict[str, EndpointSpec] = {}
        self._values: dict[Place, _Fresh] = {}
        self._locks: dict[Place, threading.Lock] = {}

    def send(self, claimed: Claimed) -> Outcome:
        """Send, and turn everything that can go wrong into an outcome."""
        if claimed.is_last_straw:
            return Outcome(Result.REJECTED, "given up: too many workers ended while they sent it")
        try:
            spec = self._spec(claimed)
            dispatch = self._dispatch(claimed.tenant_id, claimed.endpoint, claimed.delivery_key, claimed.message, spec,
                                      claimed.claimed_at, claimed.declaration_hash)
            return self._adapters[claimed.adapter].deliver(dispatch)
        except EgressDenied as error:
            return Outcome(Result.REJECTED, f"egress denied: {error.message}")
        except BareCountError as error:
            return Outcome(Result.UNAVAILABLE, error.message)
        except Exception as error:  # of one message and its adapter; the other deliveries must go on
            _log.error("an adapter failed", exc_info=error, extra={"fields": {
                "tenant": claimed.tenant_id, "endpoint": claimed.endpoint, "delivery_id": claimed.delivery_id}})
            return Outcome(Result.UNAVAILABLE, f"the {claimed.adapter} adapter failed: {type(error).__name__}")

    def challenge(self, row: endpoints.EndpointRow, code: str, now: dt.datetime) -> Challenge:
        """Make a registered endpoint's receiver prove that it wants deliveries.

        Raises:
            BareCountError: delivery.unverified when it does not; egress.denied, secret.unknown, source.unavailable.
        """
        dispatch = self._dispatch(row.tenant_id, row.name, f"challenge-{code}", Message("", ""), row.declared, now,
                                  row.declaration_hash)
        return self._adapters[row.adapter].challenge(dispatch, code)

    def _dispatch(
        self, tenant_id: str, endpoint: str, key: str, message: Message, spec: EndpointSpec, now: dt.datetime,
        declaration_hash: str,
    ) -> Dispatch:
        values = self._secret_values((tenant_id, endpoint), declaration_hash, now)
        return Dispatch(tenant_id, endpoint, key, message, spec.target, self._policy_of(tenant_id), now, values)

    def _spec(self, claimed: Claimed) -> EndpointSpec:
        spec = self._specs.get(claimed.declaration_hash)
        if spec is None:
            spec = EndpointSpec.model_validate_json(endpoints.as_json(claimed.spec))
            self._specs[claimed.declaration_hash] = spec
        return spec

    def _secret_values(
        self, place: Place, declaration_hash: str, now: dt.datetime
    ) -> dict[str, list[SecretValue]]:
        """Values by purpose, read when first needed and again after half a minute; each reading is on record."""
        with self._locks.setdefault(place, threading.Lock()):
            fresh = self._values.get(place)
            if fresh is None or fresh.declaration_hash != declaration_hash or not fresh.since <= now < fresh.until:
                fresh = _Fresh(declaration_hash, now, now + _SECRETS_FRESH, self._read(place, now))
                self._values[place] = fresh
            return fresh.values

    def _read(self, place: Place, now: dt.datetime) -> dict[str, list[SecretValue]]:
        with self._database.connect(autocommit=True) as connection:
            uses = endpoints.secret_uses(connection, *place, now)
        values: dict[str, list[SecretValue]] = {}
        for use in uses:
            if use.purpose in values and use.purpose != "signing":
                continue  # only signatures come in twos
            values.setdefault(use.purpose, []).append(self._secrets.read(
                place[0], use.reference, purpose=f"delivery to {place[1]}: {use.purpose}", version=use.version))
        return values


@dataclass(frozen=True)
class _Fresh:
    """Secret values, and how long they may be used without asking again."""

    declaration_hash: str
    since: dt.datetime
    until: dt.datetime
    values: dict[str, list[SecretValue]] = field(repr=False)
