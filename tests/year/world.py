"""The platform living through the steps: real files, real PostgreSQL, real processes, and what can be seen afterwards.

A ground is a running server with the opening of the year done once; worlds are copies of it, made in a moment.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import itertools
import json
import os
import shutil
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from barecount_assets import drift_decisions, lifecycle
from barecount_assets.instance import open_instance
from barecount_assets.lifecycle import RunRequest
from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.withdrawal import withdraw
from resources.governance import drift_register, registry
from resources.runners.stage import StageReceipt
from resources.runtime import embedded, migrations
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError
from resources.runtime.settings import Settings, code_version
from tests.conftest import folder_for_databases, settle_for_speed
from tests.lifecycle.conftest import unchanged_environment
from tests.lifecycle.harness import Child, Stop
from tests.year import shop, steps
from tests.year.design import Design
from tests.year.model import Model, Numbers, Series, Version, accepted_into
from tests.year.shop import DATASET, FIRST, GDP, KPI, LAST, PIPELINE, Shop
from tests.year.steps import Order

TENANT, BESIDE = "main", "beside"
OPENING = (
    Order("1", "2026-03-02T09:00:00+00:00", "north", "100.00", "opening"),
    Order("2", "2026-03-02T10:00:00+00:00", "south", "20.50"),
)
_numbers = itertools.count(1)


@dataclass(frozen=True)
class View:
    """What somebody who looks at the platform sees of a pipeline.

    Attributes:
        published: the current series.
        history: closed and open versions of every key, in order, as (values, step that opened, step that closed).
    """

    published: Series
    history: dict[int, list[tuple[dict[str, Any], int, int | None]]]


@dataclass(frozen=True)
class Sight:
    """What somebody who looks at the platform sees of the tenant.

    Attributes:
        views: what the pipelines show, by their names.
        counts: records received, accepted and quarantined, by file that counts.
        open: records in quarantine that wait, by file.
        beside: digest of everything that the other tenant has.
    """

    views: dict[str, View]
    counts: dict[str, tuple[int, int, int]]
    open: dict[str, int]
    beside: str


class World:
    """A project with files and a database of its own."""

    def __init__(self, ground: Ground, folder: Path, database: Database, shop: Shop) -> None:
        self.folder, self.database, self.shop = folder, database, shop
        data = folder / "data"
        self.settings = Settings(shop.folder, data, str(data / "raw"), None)
        self.design = Design()
        self.step = 0
        self._ground = ground
        self._steps_of_runs: dict[int, int] = {}

    # Living ---------------------------------------------------------------------------------------------

    def apply(self, step: steps.Step) -> str | None:
        """Live a step; returns the code of the error with which it was refused, None when it was not."""
        self.step += 1
        drop = self.drop(TENANT)
        match step:
            case steps.Deliver(name, orders, extra):
                (drop / name).write_text(written(orders, extra))
            case steps.Move(name, to):
                if (drop / name).exists() and not (drop / to).exists():
                    (drop / name).rename(drop / to)
            case steps.Copy(name, to):
                if (drop / name).exists() and not (drop / to).exists():
                    shutil.copyfile(drop / name, drop / to)
            case steps.Remove(name):
                (drop / name).unlink(missing_ok=True)
            case steps.Count(day, orders):
                (self.drop("stock") / f"stock_{day}.csv").write_text(written(orders))
            case steps.Book(table, order, seq):
                values = [getattr(order, name) or None for name in shop.HEADER] + ([seq] if table == "ledger" else [])
                with self.tables() as tables:
                    tables.execute(_BOOK.format(table, ", ".join("?" * len(values))), values)
            case steps.Strike(order_id):
                with self.tables() as tables:
                    tables.execute("delete from till where order_id = ?", (order_id,))
            case steps.Run():
                error = self._run(step)
                self._note_runs()
                return error
            case steps.Decide(accept):
                self._decide(accept)
            case steps.Withdraw(name, undo):
                try:
                    withdraw(self.environment(), PIPELINE, "orders", name, TENANT, "steward", "it was wrong", undo=undo)
                except BareCountError as error:
                    return error.code.value
            case steps.Restart():
                self._ground.restart()
            case _:
                self._declare(step.applied(self.design))  # type: ignore[attr-defined]
        return None

    def drop(self, tenant: str) -> Path:
        """Where the files of a tenant arrive."""
        return self.settings.data_dir / "drop" / tenant

    @contextmanager
    def tables(self) -> Iterator[sqlite3.Connection]:
        """The database with the ledger and the till; what is done in the block is committed after it."""
        with closing(sqlite3.connect(self.settings.data_dir / "tables.sqlite")) as connection, connection:
            yield connection

    def _declare(self, design: Design) -> None:
        """Edit the project, and register what its contracts say now, as whoever changes a contract does."""
        if design == self.design:
            return
        self.design = design
        self.shop.declare(design)
        code_version.cache_clear()  # a person's next command is another process
        environment = self.environment()
        with self.database.connect(autocommit=True) as connection:
            registry.sync(connection, environment.declarations, who="simulation", reason="the year goes on",
                          now=dt.datetime.now(dt.UTC))

    def _decide(self, accept: bool) -> None:
        """Decide about every drift that something waits for. What is accepted is current before the files say it."""
        with self.database.connect(autocommit=True) as connection:
            drifts = drift_register.listed(connection, pipeline=PIPELINE, tenant_id=TENANT, status="open")
        known = {"by": "steward", "reason": "the year goes on", "now": dt.datetime.now(dt.UTC)}
        waiting = {drift.drift_id: drift.blocking[0].field for drift in drifts if drift.waiting}
        for number, extra in sorted(waiting.items(), key=lambda item: (item[1], item[0])):
            if extra in self.design.declared:
                continue  # the drift before had the same column, or the files declare it: the next run takes it up
            if accept:
                drift_decisions.accept(self.environment(), number, **known)
                self.design = accepted_into(self.design, extra)
            else:
                drift_decisions.reject(self.environment(), number, **known)

    def environment(self) -> StageEnvironment:
        return StageEnvironment.using(self.settings, self.database)

    def _run(self, step: steps.Run) -> str | None:
        if step.pipeline != PIPELINE:
            return self.run_stages(TENANT, step.pipeline)
        match step.how:
            case "dagster":
                return self._run_in_dagster(TENANT)
            case "killed":
                child = self._command(Stop(step.stage, step.at, hold=True))
                if child.until_stop() is not None:
                    child.kill()
            case "outage":
                child = self._command(Stop(step.stage, step.at, hold=True))
                stopped = child.until_stop() is not None
                self._ground.restart()
                if stopped:
                    child.begin()
                    child.wait()
            case "together":
                for child in [self._command(), self._command()]:
                    child.wait()
            case "missing":
                drop = self.drop(TENANT)
                drop.rename(drop.with_name("away"))
                try:
                    return self.run_stages(TENANT)
                finally:
                    drop.with_name("away").rename(drop)
        return self.run_stages(TENANT)

    def _command(self, stop: Stop | None = None) -> Child:
        """`barecount run` in a process of its own, which has begun."""
        from tests.lifecycle import child

        output = self.folder / f"command{next(_numbers)}"
        output.mkdir()
        variables = {
            "BARECOUNT_PROJECT_DIR": str(self.settings.project_dir), "BARECOUNT_DATA_DIR": str(self.settings.data_dir),
            "BARECOUNT_RAW_STORE": self.settings.raw_store, "BARECOUNT_DATABASE_URL": self.database.admin_url}
        command = Child(child.barecount, variables, output, "run", PIPELINE, "--tenant", TENANT, "--from", f"{FIRST}",
                        "--to", f"{LAST}", "--json", stop=stop)
        command.begin()
        return command

    def run_stages(self, tenant: str, pipeline: str = PIPELINE) -> str | None:
        """The stages of a run, one after the other, stopped where a run would be."""
        for _ in range(100):  # the lock of a killed run is free moments after it
            error = self._attempt(tenant, pipeline)
            if error != "run.in_progress":
                return error
            time.sleep(0.02)
        raise AssertionError("the lock of a run that is gone was never set free")

    def _attempt(self, tenant: str, pipeline: str) -> str | None:
        request = RunRequest(pipeline, tenant, FIRST, LAST)
        receipts: list[StageReceipt] = []
        with unchanged_environment():
            os.environ["YEAR_TABLES"] = f"sqlite:///{self.settings.data_dir / 'tables.sqlite'}"
            environment = self.environment()
            manifest = environment.declarations.effective(pipeline, tenant)
            try:
                with environment.run_lock(tenant, pipeline):
                    for spec in lifecycle.specs(manifest, request):
                        receipts.append(execute(spec, _silent, environment))
                        if any(check.blocking and not check.passed for check in receipts[-1].checks):
                            return lifecycle._gate_error(receipts).code.value
                    held = lifecycle._held_error(receipts)
            except BareCountError as error:
                return error.code.value
            except Exception as error:  # a crash is a difference as any other, to be made short
                return f"{type(error).__name__}: {error}"
        return held and held.code.value

    def _run_in_dagster(self, tenant: str) -> str | None:
        with unchanged_environment():
            try:
                outcome = lifecycle.run(self.environment(), RunRequest(PIPELINE, tenant, FIRST, LAST), _silent)
            except BareCountError as error:
                return error.code.value
        return outcome.error and outcome.error.code.value

    # Looking --------------------------------------------------------------------------------------------

    def look(self) -> Sight:
        """What is there now."""
        with self.database.connect(autocommit=True) as connection:
            views = {pipeline: self._view(connection, pipeline) for pipeline in (PIPELINE, *shop.SOURCES)}
            counts = {name: tuple(numbers) for name, *numbers in fetch(connection, _COUNTS, (TENANT, DATASET))}
            waiting = dict(fetch(connection, _OPEN, (TENANT, DATASET)))
            beside = self._digest(connection, BESIDE)
        return Sight(views, counts, waiting, beside)

    def _view(self, connection: psycopg.Connection, pipeline: str) -> View:
        gdp, kpi = (GDP, KPI) if pipeline == PIPELINE else (f"{pipeline}_row", f"{pipeline}_amount")
        history = defaultdict(list)
        if fetch(connection, "select to_regclass($1)::text", (f"gdp.{gdp}",)) != [(None,)]:
            for text, opened, closed in fetch(connection, _HISTORY.format(gdp), (TENANT,)):
                row = json.loads(text, parse_float=Decimal)
                history[row["order_id"]].append((row, self._steps_of_runs.get(opened, -1),
                                                 None if closed is None else self._steps_of_runs.get(closed, -1)))
        published = {}
        if fetch(connection, "select to_regclass($1)::text", (f"published.{kpi}",)) != [(None,)]:
            published = {tuple(key): value for *key, value in fetch(connection, _PUBLISHED.format(kpi), (TENANT,))}
        return View(published, dict(history))

    def _note_runs(self) -> None:
        """Remember in which step each run of the normalization was."""
        with self.database.connect(autocommit=True) as connection:
            for (run_id,) in fetch(connection, "select run_id from platform.run where tenant_id = $1", (TENANT,)):
                self._steps_of_runs.setdefault(run_id, self.step)

    def _digest(self, connection: psycopg.Connection, tenant: str) -> str:
        """Everything that a tenant has in the raw, GDP, KPI and published tables, and its evidence.

        Nulls and the types in names are left out: tenants share tables, which get columns and put some aside.
        """
        digest = hashlib.sha256()
        for statement in _ALL_OF_A_TENANT:
            for row in fetch(connection, statement, (tenant,)):
                digest.update(repr(row).encode())
        return digest.hexdigest()


@contextmanager
def grounded() -> Iterator[Ground]:
    """A ground with a server of its own, which worlds may restart."""
    folder = folder_for_databases()
    url = embedded.start(folder)
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            settle_for_speed(connection)
        migrations.upgrade(url)
        yield Ground(url, folder)
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


class Ground:
    """A server, and the opening of the year on it: both tenants delivered once and were published."""

    def __init__(self, server: str, folder: Path) -> None:
        self.server, self.folder = server, folder
        self._admin = server.replace("/barecount?", "/postgres?")
        samples = {pipeline: folder / "samples" / pipeline for pipeline in (PIPELINE, *shop.SOURCES)}
        for pipeline, sample in samples.items():
            sample.mkdir(parents=True)
            rows = written(OPENING, "seq" if pipeline == "ledger" else "").replace("of ", "")
            (sample / f"{pipeline}_2026-03-02.csv").write_text(rows)
        self._shop = Shop(folder / "opening" / "project", "{data_dir}/drop/{tenant}", (TENANT, BESIDE), samples)
        self._shop.declare(Design())
        world = World(self, folder / "opening", self._new_database("barecount", "opening"), self._shop)
        with unchanged_environment(), open_instance(world.settings, world.database):
            pass  # Dagster's tables
        world.drop("stock").mkdir(parents=True)
        with world.tables() as tables:
            tables.execute(_TABLE.format("ledger", ", seq integer"))
            tables.execute(_TABLE.format("till", ""))
        for tenant in (BESIDE, TENANT):
            world.drop(tenant).mkdir(parents=True)
            (world.drop(tenant) / "orders_2026-03-02.csv").write_text(written(OPENING))
            assert world.run_stages(tenant) is None
        world._note_runs()
        self._opened = world._steps_of_runs

    @contextmanager
    def world(self) -> Iterator[tuple[World, Model]]:
        """A world right after the opening, and the model of it."""
        number = next(_numbers)
        folder = self.folder / f"world{number}"
        shutil.copytree(self.folder / "opening", folder)
        database = self._new_database("opening", f"world{number}")
        try:
            world = World(self, folder, database, self._shop.at(folder / "project"))
            world._steps_of_runs = dict(self._opened)
            model = Model()
            for step in (steps.Deliver("orders_2026-03-02.csv", OPENING), steps.Run()):
                model.apply(step)
            for versions in model.numbers.history.values():
                for version in versions:
                    version.opened = 0
            model.step = 0
            yield world, model
        finally:
            with psycopg.connect(self._admin, autocommit=True) as connection:
                connection.execute(f"drop database if exists world{number} with (force)")  # type: ignore[arg-type]
            shutil.rmtree(folder, ignore_errors=True)

    def restart(self) -> None:
        """The server ends as when somebody stops it, and is started again."""
        embedded.stop(self.folder)
        assert embedded.start(self.folder) == self.server

    def _new_database(self, template: str, name: str) -> Database:
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute(f"create database {name} template {template} strategy file_copy")  # type: ignore[arg-type]
        return Database(self.server.replace("/barecount?", f"/{name}?"), is_embedded=True)


def compare(model: Model, sight: Sight) -> list[str]:
    """Every difference between what is seen and what should be, in words; empty when there is none."""
    differences = _compare("records received, accepted, quarantined of", model.counts(), sight.counts)
    waiting = {name: refused for name, (_, _, refused) in model.counts().items() if refused}
    differences += _compare("records that wait in quarantine of", waiting, sight.open)
    numbers = {PIPELINE: model.numbers, **{name: beside.numbers for name, beside in model.beside.items()}}
    for pipeline, wanted in numbers.items():
        differences += [f"{pipeline}: {text}" for text in _numbers_unlike(wanted, sight.views[pipeline])]
    return differences


def _numbers_unlike(numbers: Numbers, view: View) -> list[str]:
    differences = _compare("published value", numbers.published, view.published)
    expected = {key: versions for key, versions in numbers.history.items() if versions}
    for key in sorted({*expected, *view.history}):
        there = view.history.get(key, [])
        wanted = expected.get(key, [])
        if [(v.opened, v.closed) for v in wanted] != [(opened, closed) for _, opened, closed in there]:
            differences.append(f"history of {key}: should be {_spans(wanted)}, is {there}")
            continue
        for version, (values, _, _) in zip(wanted, there, strict=True):
            differences += [f"history of {key} from step {version.opened}: {text}" for text in _unlike(version, values)]
    return differences


def _compare(what: str, wanted: Mapping[Any, Any], there: Mapping[Any, Any]) -> list[str]:
    return [f"{what} {key}: should be {wanted.get(key)}, is {there.get(key)}"
            for key in sorted({*wanted, *there}, key=repr) if wanted.get(key) != there.get(key)]


def _spans(versions: Sequence[Version]) -> list[tuple[dict[str, Any], int, int | None]]:
    return [({name: value for name, _, value in v.row}, v.opened, v.closed) for v in versions]


def _unlike(version: Version, values: Mapping[str, Any]) -> list[str]:
    """What of a version's values is not there; a column that is gone keeps them under its name and type."""
    differences = []
    for name, _, value in version.row:
        if version.closed is None:
            there = values.get(name)
        else:
            there = next((values[key] for key in values
                          if key.partition("__")[0] == name and values[key] is not None), None)
        if _plain(there, value) != value:
            differences.append(f"{name} should be {value!r}, is {there!r}")
    return differences


def _plain(there: Any, like: Any) -> Any:
    """A value of JSON as the Python value it should be."""
    if isinstance(like, dt.datetime) and isinstance(there, str):
        return dt.datetime.fromisoformat(there)
    if isinstance(like, Decimal) and there is not None:
        return Decimal(str(there))
    return there


def written(orders: Sequence[Order], extra: str = "") -> str:
    """Orders as a file of the source, with an undeclared column where it has a name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*shop.HEADER, *([extra] if extra else [])])
    for order in orders:
        writer.writerow([*(getattr(order, name) for name in shop.HEADER), *([f"of {order.order_id}"] if extra else [])])
    return text.getvalue()


def _silent(message: str, done: int, total: int) -> None:
    return None


_PUBLISHED = "select grain, period, shop, value from published.{} where tenant_id = $1"
_HISTORY = """
select to_jsonb(g)::text, valid_from_run, valid_to_run from gdp.{} g where tenant_id = $1
order by row_version, valid_from_run
"""
_COUNTS = """
select u.source_id, b.received, b.accepted, b.quarantined
from platform.source_unit u join platform.raw_batch b using (batch_id)
where u.tenant_id = $1 and u.dataset = $2 and u.withdrawn_seq is null
"""
_OPEN = """
select u.source_id, count(*)
from platform.source_unit u join platform.quarantine_record q using (batch_id)
where u.tenant_id = $1 and u.dataset = $2 and u.withdrawn_seq is null and q.state = 'open' and q.stage = 'ingestion'
group by 1
"""
_TABLE = """
create table {} (order_id integer primary key, ordered_at text, shop text, amount text, note text{})
"""
_BOOK = "insert or replace into {} values ({})"
_ROWS_OF_A_TENANT = """
select (
    select jsonb_object_agg(split_part(key, '__', 1), value)::text from jsonb_each(to_jsonb(t)) where value <> 'null')
from {table} t where tenant_id = $1 order by 1
"""
_ALL_OF_A_TENANT = (
    *(_ROWS_OF_A_TENANT.format(table=table) for table in (f"gdp.{GDP}", f"kpi.{KPI}", f"published.{KPI}")),
    # Contracts are everybody's: what is decided about one is on record for every tenant whose data is under it.
    "select kind, subject, body from platform.evidence where tenant_id = $1 "
    "and kind not like 'contract.%' and subject not like 'contract_change/%' order by seq",
    "select source_id, batch_id from platform.source_unit where tenant_id = $1 order by 1",
)
