"""Shared parts of the crash, restart and concurrency tests: children that can be stopped and killed at any step, and
all that a pipeline leaves behind, as plain data that is equal when the outcome is equal.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from barecount_assets import sample
from barecount_assets.lifecycle import RunRequest
from resources.governance.declarations import Declarations
from resources.runtime.database import Database, fetch, fetch_dicts
from resources.runtime.settings import Settings
from resources.storage import content
from resources.trust import ledger
from tests.fork_server import having_imported

PROJECT = Path(__file__).resolve().parents[2]
PIPELINE = "order_to_cash"
TENANT = "acme"
KPIS = ("revenue", "dso", "overdue_ratio")
PATIENCE = 120.0  # seconds after which a child that says nothing is a failure of its own


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# --- sources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deliveries:
    """A small sample, delivered in two goes: four days, then two more and a corrected earlier file."""

    sample: Path
    first_day: dt.date
    last_days: tuple[dt.date, dt.date]  # last day with files of the first and of the second delivery

    @classmethod
    def make(cls, folder: Path, tenant: str = TENANT) -> Deliveries:
        facts = sample.write_sample(folder / tenant, tenant, invoices=200, business_days=10)
        days = sorted({_day_of(path) for path in (folder / tenant / "erp").iterdir()})
        return cls(folder / tenant, facts.start, (days[3], days[5]))

    def deliver(self, number: int, settings: Settings, tenant: str = TENANT) -> RunRequest:
        """Put the files of a delivery (1 or 2) where the pipeline looks; returns what to run then."""
        target = settings.data_dir / "sample" / tenant
        last_day = self.last_days[number - 1]
        for source in sorted(self.sample.glob("*/*_*")):
            if _day_of(source) <= last_day:
                copy = target / source.relative_to(self.sample)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        if number == 2:
            earlier = sorted((target / "erp").iterdir())[1]
            *lines, cancelled = earlier.read_bytes().splitlines(keepends=True)
            assert len(lines) > 2 and cancelled
            earlier.write_bytes(b"".join(lines))
        return RunRequest(PIPELINE, tenant, self.first_day, last_day)


def _day_of(path: Path) -> dt.date:
    match = re.search(r"\d{4}-\d{2}-\d{2}", path.name)
    assert match is not None, path
    return dt.date.fromisoformat(match[0])


@dataclass(frozen=True)
class Uninterrupted:
    """What comes of the deliveries when nobody disturbs the runs: the state after each, and the run's own steps.

    `tenants_own` is the part of the first state that is the tenant's.
    """

    deliveries: Deliveries
    states: Mapping[int, State]
    tenants_own: State
    runs: Mapping[int, Child]

    def stop_before(self, stage: str, label: str) -> Stop:
        """Stand still in the middle of a stage of the first run: before the middle one of the steps so labelled."""
        labels = [step.label for _, step in self.runs[1].steps if step.stage == stage]
        numbers = [number for number, found in enumerate(labels) if found.startswith(label)]
        return Stop(stage, numbers[len(numbers) // 2], hold=True)


@functools.cache
def uninterrupted(server: str, folder: Path) -> Uninterrupted:
    """Run both deliveries on a database of their own; once per session, which is why it is cached."""
    deliveries = Deliveries.make(folder / "sample")
    settings, database = project(folder / "undisturbed"), new_database(server, "undisturbed")
    runs = {1: attempt(settings, database, deliveries.deliver(1, settings))}
    states, tenants_own = {1: State.of(database, settings)}, State.of(database, settings, TENANT)
    runs[2] = attempt(settings, database, deliveries.deliver(2, settings))
    states[2] = State.of(database, settings)
    return Uninterrupted(deliveries, states, tenants_own, runs)


def project(folder: Path) -> Settings:
    """The shipped project with a data folder of its own."""
    return Settings(PROJECT, folder, str(folder / "raw"), None)


def new_database(server: str, name: str, *, synchronous_commit: bool = False) -> Database:
    """An empty migrated database on the server of which `server` is the URL of the migrated template.

    Where only clients of the server are killed, commits need not wait for the disk.
    """
    with psycopg.connect(server.replace("/barecount?", "/postgres?"), autocommit=True) as connection:
        connection.execute(f"create database {name} template barecount")
        if not synchronous_commit:
            connection.execute(f"alter database {name} set synchronous_commit = off")
    return Database(server.replace("/barecount?", f"/{name}?"), is_embedded=True)


# --- children ----------------------------------------------------------------------------------------------------


OUTSIDE = "outside"  # of every stage: the start of a run, and what Dagster does between stages


@dataclass(frozen=True)
class Stop:
    """Where a child tells its parent that it got there: before step number `step` (from 0) of a stage.

    With `hold` all its threads stand still until the parent says so, or kills it. A stage with fewer steps counts
    as reached when its work is done and nobody has heard of it yet.
    """

    stage: str
    step: int
    hold: bool


@dataclass(frozen=True)
class Step:
    """One thing a child is about to do."""

    stage: str
    label: str


@dataclass(frozen=True)
class Reached:
    """A child is at its stop."""


@dataclass(frozen=True)
class Ended:
    """A child's work came to an end of its own; `error` is the envelope of what stopped it."""

    changed: bool
    error: dict[str, Any] | None


class Child:
    """A forked process at work, and all it said: its steps in order, with the times (s) they were heard at."""

    def __init__(self, target: Callable[..., None], *arguments: Any, stop: Stop | None = None) -> None:
        processes = having_imported("tests.lifecycle.child")
        self._pipe, theirs = processes.Pipe()
        self.steps: list[tuple[float, Step]] = []
        self.ended: Ended | None = None
        self._process = processes.Process(target=target, args=(theirs, stop, *arguments), daemon=True)  # ends with us
        self._process.start()
        theirs.close()
        self.pid = self._process.pid

    def begin(self) -> None:
        """Let a child that waits for it begin, or go on after a stop that holds."""
        self._pipe.send(None)

    def until_stop(self) -> Reached | None:
        """Listen until the child is at its stop; None when it ended without getting there."""
        while True:
            if not self._pipe.poll(PATIENCE):
                self.kill()
                raise AssertionError(f"nothing heard of the child for {PATIENCE} s; last steps: {self.steps[-3:]}")
            try:
                heard = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                return None  # it is gone
            if isinstance(heard, Reached):
                return heard
            if isinstance(heard, Ended):
                self.ended = heard
            else:
                self.steps.append((time.monotonic(), heard))

    def wait(self) -> int:
        """Listen to the end; returns the exit code."""
        while self.until_stop() is not None:
            pass
        self._process.join(PATIENCE)
        code = self._process.exitcode
        assert code is not None, "the child said that it is done, and is still there"
        return code

    def kill(self, seconds: float = 0.0) -> Step | None:
        """SIGKILL, `seconds` from now or when its next step begins, whichever comes first.

        Returns the last step it announced, None when it had come to its end already.
        """
        self._pipe.poll(seconds)
        self._process.kill()
        code = self.wait()
        return self.steps[-1][1] if code == -signal.SIGKILL else None


def run(
    settings: Settings, database: Database, request: RunRequest, stop: Stop | None = None
) -> Child:
    """`lifecycle.run` in a child."""
    from tests.lifecycle import child

    return Child(child.run, settings, database.admin_url, request, stop=stop)


def attempt(settings: Settings, database: Database, request: RunRequest, stop: Stop | None = None) -> Child:
    """Run until the stop, or to the end when there is none or it is not on the way; nothing else may end it.

    The lock of a killed run is free when the server notices that its connection is gone, moments after the kill;
    until then the next run is refused, which is right, and told to come back.
    """
    for _ in range(100):
        child = run(settings, database, request, stop)
        if child.until_stop() is not None:
            return child
        assert child.wait() == 0 and child.ended is not None
        if child.ended.error is None:
            return child
        assert child.ended.error["code"] == "run.in_progress", child.ended.error
    raise AssertionError("the lock of a run that is gone was never set free")


class Command:
    """The command `barecount run` for one tenant, in a child that waits for `begin`.

    Attributes:
        child: the process.
        outcome: what it printed as JSON, once it has ended.
    """

    def __init__(
        self, settings: Settings, database: Database, request: RunRequest, output: Path, stop: Stop | None = None
    ) -> None:
        from tests.lifecycle import child

        environment = {
            "BARECOUNT_PROJECT_DIR": str(settings.project_dir), "BARECOUNT_DATA_DIR": str(settings.data_dir),
            "BARECOUNT_RAW_STORE": settings.raw_store, "BARECOUNT_DATABASE_URL": database.admin_url,
        }
        output.mkdir(parents=True)
        self._output = output
        self.child = Child(
            child.barecount, environment, output, "run", request.pipeline, "--tenant", request.tenant_id,
            "--from", request.start.isoformat(), "--to", request.end.isoformat(), "--json", stop=stop,
        )

    def wait(self) -> int:
        """Listen to the end; returns the exit code. A command that printed a traceback fails the test."""
        code = self.child.wait()
        printed = {name: (self._output / name).read_text() for name in ("stdout", "stderr")}
        assert printed["stderr"] == "" and "Traceback" not in printed["stdout"], printed
        self.outcome: dict[str, Any] = json.loads(printed["stdout"])
        if isinstance(self.outcome, list):
            (self.outcome,) = self.outcome
        return code


# --- what is left behind -----------------------------------------------------------------------------------------

# Of every table: the columns whose values follow from what was done, each with the table whose numbers it holds.
# What only the clock or a counter decides is left out: times with a zone (business times carry none), transaction ids,
# and numbers that a table hands out (identity), wherever they are kept, but for batches and runs, which have names.
_TABLES = r"""
with numbered as (
    select c.oid as table_id, a.attnum as number, c.relname::text as name
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attidentity <> ''
    where c.relnamespace = 'platform'::regnamespace
), referring as (
    select k.conrelid as table_id, k.conkey[1] as number, n.name
    from pg_constraint k
    join numbered n on n.table_id = k.confrelid and k.confkey = array[n.number]
    where k.contype = 'f'
    union
    select * from numbered
)
select n.nspname::text as schema, c.relname::text as name,
    jsonb_object_agg(a.attname, coalesce(r.name, '') order by a.attnum) as columns
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join referring r on r.table_id = c.oid and r.number = a.attnum
where n.nspname in ('raw', 'gdp', 'kpi', 'published', 'platform') and c.relkind in ('r', 'p')
    and c.relname not in ('alembic_version', 'evidence', 'evidence_head', 'event')
    and not c.relname like '%\_\_rejected'  -- what the run before refused, on its way into quarantine
    and a.atttypid not in ('timestamptz'::regtype, 'xid8'::regtype) and a.attname <> 'load_date'
    and coalesce(r.name, '') in ('', 'raw_batch', 'run')
group by 1, 2
"""
# That an attempt failed is told too, each time; it is no part of what comes of the work.
_EVENTS = """
select type, subject, envelope from platform.event
where tenant_id = $1 and type <> 'barecount.stage.failed' order by position
"""
_NUMBERS = {  # what names are held by columns, and by keys in documents, of tables that refer to nothing
    "_batch_id": "raw_batch", "batch_id": "raw_batch", "run_id": "run", "valid_from_run": "run", "valid_to_run": "run",
    "decision": "policy_decision",
}
_HANDED_OUT = ("policy_decisions",)  # numbers in a text
_DAY = r"\d{4}-\d{2}-\d{2}"
_CLOCK = re.compile(rf"load_date={_DAY}|{_DAY}[T ]\d{{2}}:\d{{2}}:\d{{2}}(\.\d+)?(Z|[+-]\d{{2}}(:?\d{{2}})?)")


Names = Mapping[str, Mapping[int, str]]
"""What the numbers of a table stand for."""


@dataclass(frozen=True)
class State:
    """All that a pipeline left in one database and raw store, without what may differ from one to the next: clock
    times, and numbers that are only handed out (batches and runs go by what they are of instead).

    Attributes:
        tables: rows of every table of every layer and of the platform, as JSON texts with how often each is there.
        ledger: (number, kind, subject, run token, payload) of each entry, in order, by tenant.
        events: (type, subject, envelope) of each event, in order, by tenant.
        objects: SHA-256 of each file of the raw store, by key.
        unfinished: files left in the raw store's folder for objects in the making.
    """

    tables: Mapping[str, Counter[str]]
    ledger: list[tuple[int, str, str, str, str]]
    events: list[tuple[str, str, str]]
    objects: Mapping[str, str]
    unfinished: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, database: Database, settings: Settings, tenant: str | None = None) -> State:
        """The state now; of one tenant only when one is named.

        Fails when the ledger of a tenant does not verify.
        """
        with psycopg.connect(database.admin_url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
            names = _natural_names(connection)
            tables = {
                f"{table['schema']}.{table['name']}": _rows(connection, table, names, tenant)
                for table in fetch_dicts(connection, _TABLES)
            }
            entries, events = [], []
            for name in ledger.tenants_with_evidence(connection):
                verified = ledger.verify(connection, name)
                assert verified.intact, verified.findings
                if tenant in (None, name):
                    entries += _entries(connection, name)
                    events += [(*what, _text(envelope, names)) for *what, envelope in
                               fetch(connection, _EVENTS, (name,))]
        root = Path(settings.raw_store)
        objects = {
            _CLOCK.sub("*", str(path.relative_to(root))): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*.parquet")
            if tenant is None or f"tenant={tenant}" in path.parts
        }
        return cls(tables, entries, events, objects, sorted(path.name for path in root.glob(".writing/*")))

    def differences(self, other: State) -> list[str]:
        """What is not the same here (<) and there (>), readable, few examples of each."""
        found = []
        for table in sorted({*self.tables, *other.tables}):
            here, there = self.tables.get(table, Counter()), other.tables.get(table, Counter())
            for mark, rows in (("<", here - there), (">", there - here)):
                found += [f"{mark} {table}: {row} ({sum(rows.values())} such rows)" for row in sorted(rows)[:2]]
        for name, ours, theirs in (("ledger", self.ledger, other.ledger), ("events", self.events, other.events)):
            first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
            if first is not None:
                found += [f"< {name}: {first[0]}", f"> {name}: {first[1]}"]
            if len(ours) != len(theirs):
                found.append(f"{name}: {len(ours)} here, {len(theirs)} there")
        objects = {*self.objects.items()} ^ {*other.objects.items()}
        found += [f"raw store: {key} {digest}" for key, digest in sorted(objects)[:4]]
        found += [f"left unfinished: {name}" for name in (*self.unfinished, *other.unfinished)]
        return found


def entries(database: Database, tenant: str = TENANT) -> list[tuple[int, str, str, str, str]]:
    """The ledger of a tenant now, as in `State`."""
    with psycopg.connect(database.admin_url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        return _entries(connection, tenant)


def _entries(connection: psycopg.Connection, tenant: str) -> list[tuple[int, str, str, str, str]]:
    found = []
    for seq, body in fetch(
        connection, "select seq, body from platform.evidence where tenant_id = $1 order by seq", (tenant,)
    ):
        entry = json.loads(body)
        payload = {name: value for name, value in entry["payload"].items() if name != "load_date"}
        found.append((seq, entry["kind"], entry["subject"], entry["run_token"], _text(payload, {})))
    return found


def _rows(
    connection: psycopg.Connection, table: dict[str, Any], names: Names, tenant: str | None
) -> Counter[str]:
    """Rows of a table as texts that are equal where the outcome is, with how often each is there."""
    referred = {column: of or _NUMBERS.get(column, "") for column, of in table["columns"].items()}
    statement = sql.SQL("select {} from {}").format(
        sql.SQL(", ").join(map(sql.Identifier, referred)), sql.Identifier(table["schema"], table["name"]))
    return Counter(
        _text({column: names[of].get(value, value) if (of := referred[column]) else value
               for column, value in row.items()}, names)
        for row in fetch_dicts(connection, statement.as_string(connection))
        if tenant in (None, row.get("tenant_id", row.get("_tenant_id", tenant)))
    )


def _natural_names(connection: psycopg.Connection) -> Names:
    """Batches, runs and decisions by number, as what they are of."""
    batches = fetch(
        connection, "select batch_id, concat_ws(' ', tenant_id, dataset, source_id, content_sha256) "
        "from platform.raw_batch")
    numbers = fetch(connection, "select run_id, concat_ws(' ', tenant_id, stage, run_token) from platform.run")
    decisions = fetch(
        connection, "select decision_id, concat_ws(' ', tenant_id, point, subject, occurrence) "
        "from platform.policy_decision")
    return {"raw_batch": dict(batches), "run": dict(numbers), "policy_decision": dict(decisions)}


def _text(value: Any, names: Names) -> str:
    """A value as JSON, without clock times and with names for the numbers in documents."""
    return _CLOCK.sub("*", json.dumps(_named(value, names), default=_plain, sort_keys=True, ensure_ascii=False))


def _named(value: Any, names: Names) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(value, dict):
        return {
            key: names.get(_NUMBERS.get(key, ""), {}).get(item, item) if isinstance(item, int) else _named(item, names)
            for key, item in value.items() if key not in _HANDED_OUT
        }
    return value


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes | memoryview) else str(value)


# --- what consumers see ------------------------------------------------------------------------------------------

Sight = frozenset[tuple[str, int, int, str]]
"""What an analyst saw at one moment: (name, version, rows, content hash) of every published KPI."""


class Analyst(threading.Thread):
    """Reads everything published over and over, as the analyst of the tenant, and remembers what it ever saw."""

    def __init__(self, database: Database, declarations: Declarations) -> None:
        super().__init__(name="analyst", daemon=True)
        self._database = database
        self._columns = {
            name: declarations.contract(f"{PIPELINE}.{name}", "activation").column_names for name in KPIS
        }
        self._done = threading.Event()
        self.sights: dict[Sight, int] = {}
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self._done.is_set() and not self._is_registered():
                self._done.wait(0.02)
            with psycopg.connect(
                self._database.analyst_url(TENANT), autocommit=True, cursor_factory=psycopg.RawCursor
            ) as connection:
                while not self._done.wait(0.05):
                    sight = self._look(connection)
                    self.sights[sight] = self.sights.get(sight, 0) + 1
        except Exception as error:  # told by `stop`, in the thread of the test
            self.failure = error

    def stop(self) -> dict[Sight, int]:
        """Stop reading; returns each distinct sight and how often it was seen."""
        self._done.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        return self.sights

    def _is_registered(self) -> bool:
        with psycopg.connect(self._database.admin_url, autocommit=True) as connection:
            return connection.execute("select 1 from platform.tenant").fetchone() is not None

    def _look(self, connection: psycopg.Connection) -> Sight:
        seen = []
        with connection.transaction():
            fetch(connection, "set transaction isolation level repeatable read, read only")
            current = dict(fetch(connection, "select name, version from published.current_version"))
            for name, columns in self._columns.items():
                if fetch(connection, "select to_regclass($1)::text", (f"published.{name}",)) == [(None,)]:
                    assert name not in current, f"{name} is current and not there"
                    continue
                digest, rows = content.hash_of(
                    connection, sql.Identifier("published", name), sql.SQL("tenant_id = $1"), (TENANT,), columns
                )
                if name in current or rows:
                    seen.append((name, current.get(name, 0), rows, digest))
        return frozenset(seen)


@contextmanager
def watching(database: Database, declarations: Declarations) -> Iterator[Analyst]:
    """An analyst who reads during the block."""
    analyst = Analyst(database, declarations)
    analyst.start()
    try:
        yield analyst
    finally:
        analyst.stop()


def publications(database: Database) -> list[Sight]:
    """What an analyst may see according to the platform: nothing, then the state after each publishing run."""
    with psycopg.connect(database.admin_url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        rows = fetch(
            connection, "select run_token, name, version, row_count, content_sha256 from platform.publication "
            "where tenant_id = $1 order by evidence_seq", (TENANT,))
    states: list[Sight] = [frozenset()]
    current: dict[str, tuple[str, int, int, str]] = {}
    for number, (token, name, *rest) in enumerate(rows):
        current[name] = (name, *rest)
        if number + 1 == len(rows) or rows[number + 1][0] != token:
            states.append(frozenset(current.values()))
    return states
