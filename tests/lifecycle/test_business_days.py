"""A day is the tenant's: instants of every kind of source are cut where the tenant's days begin, on every engine."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from barecount_assets import lifecycle, partitions, scaffold
from barecount_assets.lifecycle import RunOutcome
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import code_version
from tests.lifecycle.conftest import PROJECT, Project

NAME, TENANT, KPI = "tills", "till_keeper", "tills_amount"
DAY = dt.date(2026, 5, 31)
MAY, JUNE = {"2026-05": Decimal(10)}, {"2026-06": Decimal(60)}
ORDERS = [(1, dt.datetime(2026, 5, 31, 12, tzinfo=dt.UTC), 10),
          (2, dt.datetime(2026, 5, 31, 23, 30, tzinfo=dt.UTC), 20),
          (3, dt.datetime(2026, 6, 1, 0, 30, tzinfo=dt.UTC), 40)]
ZULU = "order_id,ordered_at,amount\n1,2026-05-31T12:00:00Z,10.00\n"
WALL = "order_id,ordered_at,amount\n1,2026-05-31 12:00:00,10.00\n"


@dataclass(frozen=True)
class Tills:
    """A pipeline as `barecount new` writes it from a sample, whose source is then another one."""

    project: Project
    source: Path

    @classmethod
    def make(
        cls, folder: Path, new_project: Callable[..., Project], sample: str, engine: str = "postgres",
        time_zone: str | None = None,
    ) -> Tills:
        home, source = folder / "project", folder / "source"
        source.mkdir(parents=True)
        for part in ("contracts/platform", "deploy", "dbt_project/macros", "dbt_project/tests/generic"):
            shutil.copytree(PROJECT / part, home / part)
        for file in ("dbt_project.yml", "profiles.yml", "models/sources.yml"):
            (home / "dbt_project" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / "dbt_project" / file, home / "dbt_project" / file)
        (source / "orders.csv").write_text(sample)
        scaffold.write(home, scaffold.plan(home, scaffold.Request(
            NAME, source, "order", "order_id", "ordered_at", "amount", None, TENANT, "owner@tills.example",
            time_zone=time_zone)))
        tills = cls(new_project(home), source)
        tills.change(f"contracts/pipelines/{NAME}.yaml", lambda d: d["spec"]["transforms"].update(engine=engine))
        return tills

    @property
    def home(self) -> Path:
        return self.project.settings.project_dir

    def change(self, path: str, change: Callable[[Any], None]) -> None:
        document = yaml.safe_load((self.home / path).read_text())
        change(document)
        (self.home / path).write_text(yaml.safe_dump(document, sort_keys=False))
        code_version.cache_clear()  # a command would be a process of its own

    def read_from(self, **source: Any) -> None:
        """Another source for the same dataset."""
        def change(document: Any) -> None:
            (declared,) = document["spec"]["sources"]
            document["spec"]["sources"] = [{"name": declared["name"], "dataset": declared["dataset"], **source}]

        self.change(f"contracts/pipelines/{NAME}.yaml", change)

    def write_parquet(self, orders: list[tuple] = ORDERS, zone: str | None = "Europe/London") -> None:
        numbers, moments, amounts = zip(*orders, strict=True)
        table = pa.table({"order_id": pa.array(numbers, pa.int64()),
                          "ordered_at": pa.array(moments, pa.timestamp("us", zone)),
                          "amount": pa.array([Decimal(amount) for amount in amounts], pa.decimal128(18, 2))})
        for file in self.source.iterdir():
            file.unlink()
        pq.write_table(table, self.source / "orders.parquet")
        self.read_from(connector="files", path=str(self.source / "orders.parquet"), format={"type": "parquet"})

    def kind(self, layer: str = "raw") -> str:
        dataset = f"{NAME}_order" if layer == "gold" else "orders"
        document = yaml.safe_load((self.home / f"contracts/datasets/{NAME}/{dataset}/{layer}.yaml").read_text())
        return next(p["physicalType"] for p in document["schema"][0]["properties"] if p["name"] == "ordered_at")

    def run(self) -> RunOutcome:
        outcome = self.project.run(NAME, TENANT, DAY, DAY)
        assert outcome.error is None, outcome.error
        return outcome

    def series(self, grain: str) -> dict[str, Decimal]:
        return dict(self.project.rows(
            f"select period, value from published.{KPI} where tenant_id = $1 and grain = $2", TENANT, grain))


@pytest.fixture(params=["postgres", "duckdb"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def api() -> Iterator[str]:
    """A source that answers with instants as its JSON library writes them."""
    body = json.dumps({"data": [
        {"order_id": 1, "ordered_at": "2026-05-31T12:00:00Z", "amount": 10},
        {"order_id": 2, "ordered_at": "2026-05-31T23:30:00.123Z", "amount": 20},
        {"order_id": 3, "ordered_at": "2026-06-01T01:30:00+01:00", "amount": 40}]}).encode()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/orders"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("source", "sample", "engine"), [
    *((source, ZULU, engine) for source in ("parquet", "csv", "postgres", "rest") for engine in ("postgres", "duckdb")),
    ("parquet", WALL, "postgres"), ("csv", WALL, "duckdb"), ("postgres", WALL, "duckdb"), ("rest", WALL, "postgres"),
])
def test_an_instant_counts_on_the_day_that_the_tenant_had(
    source: str, sample: str, engine: str, tmp_path: Path, new_project: Callable[..., Project],
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:
    tills = Tills.make(tmp_path, new_project, sample, engine)
    if source == "parquet":
        tills.write_parquet()
    elif source == "csv":
        (tills.source / "orders.csv").write_text(
            "order_id,ordered_at,amount\n1,2026-05-31T12:00:00Z,10.00\n2,2026-05-31T19:30:00-0400,20.00\n"
            "3,2026-06-01T02:30:00.000+02:00,40.00\n")
    elif source == "postgres":
        with psycopg.connect(tills.project.database.admin_url, autocommit=True) as connection:
            connection.execute("create schema erp")
            connection.execute("create table erp.orders (order_id int primary key, ordered_at timestamptz, amount int)")
            for order in ORDERS:
                connection.execute("insert into erp.orders values (%s, %s, %s)", order)
        monkeypatch.setenv("ERP_DSN", tills.project.database.admin_url)
        tills.read_from(connector="sql", dsn="${env:ERP_DSN}", table="erp.orders")
    else:
        tills.read_from(connector="rest", url=request.getfixturevalue("api"), records="data")
    tills.run()
    assert tills.kind() == ("timestamptz" if sample is ZULU else "timestamp")
    assert tills.series("month") == {**MAY, **JUNE}
    assert tills.series("day") == {"2026-05-31": 10, "2026-06-01": 60}


def test_a_tenant_that_moves_has_other_days(engine: str, tmp_path: Path, new_project: Callable[..., Project]) -> None:
    tills = Tills.make(tmp_path, new_project, ZULU, engine, time_zone="America/New_York")
    tills.write_parquet()
    tills.run()
    assert tills.series("month") == {"2026-05": 70}
    tills.change(f"contracts/tenants/{TENANT}.yaml", lambda d: d["spec"].update(timezone="Asia/Kolkata"))
    tills.run()
    assert tills.series("month") == {**MAY, **JUNE}
    result = tills.project.command("explain", f"{NAME}.{KPI}", "--tenant", TENANT, "--period", "2026-06")
    assert result.exit_code == 0, result.output


def test_results_do_not_depend_on_the_zone_of_machine_or_server(
    engine: str, tmp_path: Path, new_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for number, zone in enumerate(("UTC", "Asia/Tokyo", "America/Los_Angeles")):
        tills = Tills.make(tmp_path / str(number), new_project, ZULU, engine)
        tills.write_parquet()
        with psycopg.connect(tills.project.database.admin_url, autocommit=True) as connection:
            connection.execute(f'alter database "{connection.info.dbname}" set timezone = \'{zone}\'')
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            tills.run()
        finally:
            monkeypatch.delenv("TZ")
            time.tzset()
        objects = tills.project.rows("select content_sha256, object_sha256 from platform.raw_batch")
        hashes.append((tills.project.gdp_hashes(NAME, TENANT), tills.project.publication_hashes(TENANT), objects))
        assert os.environ.get("TZ") is None
    assert hashes[0] == hashes[1] == hashes[2]


def test_both_engines_give_the_same_bytes(tmp_path: Path, new_project: Callable[..., Project]) -> None:
    found = []
    for engine in ("postgres", "duckdb"):
        tills = Tills.make(tmp_path / engine, new_project, ZULU, engine, time_zone="Africa/Casablanca")
        tills.write_parquet([(n, dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + n * dt.timedelta(hours=5, minutes=59), n)
                             for n in range(1, 3000)])
        tills.run()
        found.append((tills.project.gdp_hashes(NAME, TENANT), tills.project.publication_hashes(TENANT)))
    assert found[0] == found[1]


def test_a_time_twice_on_the_clock_is_quarantined_unless_it_has_its_offset(
    tmp_path: Path, new_project: Callable[..., Project]
) -> None:
    tills = Tills.make(tmp_path, new_project, ZULU)
    for layer in ("extraction", "raw"):
        tills.change(f"contracts/datasets/{NAME}/orders/{layer}.yaml", lambda d: next(
            p for p in d["schema"][0]["properties"] if p["name"] == "ordered_at").update(
                logicalTypeOptions={"timezone": True, "defaultTimezone": "Europe/London"}))
    (tills.source / "orders.csv").write_text(
        "order_id,ordered_at,amount\n" + "".join(f"{n},2026-05-{n % 28 + 1:02} 23:30:00,1.00\n" for n in range(4, 400))
        + "1,2026-10-25 01:30:00,10.00\n2,2026-10-25T01:30:00+01:00,20.00\n3,2026-11-01 00:30:00,40.00\n")
    tills.project.run(NAME, TENANT, DAY, DAY)
    ((message,),) = tills.project.rows("select message from platform.quarantine")
    assert "2026-10-25 01:30:00" in message and "a time that Europe/London has once" in message
    assert tills.series("month") == {"2026-05": 396, "2026-10": 20, "2026-11": 40}


@pytest.mark.parametrize("source", ["parquet", "csv"])
def test_offsets_that_vanish_wait_until_the_zone_is_declared(
    source: str, tmp_path: Path, new_project: Callable[..., Project]
) -> None:
    tills = Tills.make(tmp_path, new_project, ZULU)
    walls = [dt.datetime(2026, 5, 31, 13) + n * dt.timedelta(minutes=1) for n in range(60)]
    if source == "parquet":
        tills.write_parquet()
    tills.run()
    if source == "parquet":
        tills.write_parquet([(n, wall, 1) for n, wall in enumerate(walls, 10)], None)
    else:
        (tills.source / "orders.csv").write_text(
            "order_id,ordered_at,amount\n" + "".join(f"{n},{wall},1.00\n" for n, wall in enumerate(walls, 10)))
    error = tills.project.run(NAME, TENANT, DAY, DAY).error
    assert error is not None and error.code is ErrorCode.SCHEMA_DRIFT
    refused = tills.project.command("drift", "accept", "1", "--reason", "an export of another program")
    assert refused.exit_code == 1 and "defaultTimezone" in " ".join(refused.output.split())
    for layer in ("extraction", "raw"):
        def declare(document: Any) -> None:
            document["version"] = "2.0.0"
            next(p for p in document["schema"][0]["properties"] if p["name"] == "ordered_at").update(
                logicalTypeOptions={"defaultTimezone": "Europe/London"})

        tills.change(f"contracts/datasets/{NAME}/orders/{layer}.yaml", declare)
    synced = tills.project.command("contracts", "sync", "--reason", "the program runs in London")
    assert synced.exit_code == 0, synced.output
    tills.run()
    assert tills.series("month") == {"2026-05": 60}


def fiscal(tills: Tills) -> dict[str, tuple[int, int]]:
    return {period: (year, number) for period, year, number in tills.project.rows(
        f"select period, fiscal_year, fiscal_period from published.{KPI} where tenant_id = $1 and grain = 'month'",
        TENANT)}


def test_dates_beyond_the_calendar_have_their_fiscal_period(
    engine: str, tmp_path: Path, new_project: Callable[..., Project]
) -> None:
    tills = Tills.make(tmp_path, new_project, WALL, engine)
    tills.change(f"contracts/tenants/{TENANT}.yaml", lambda d: d["spec"]["calendar"].update(
        range={"from": dt.date(2026, 1, 1), "to": dt.date(2026, 12, 31)},
        fiscal={"pattern": "445", "end_month": 1, "end_weekday": "saturday", "year_end": "last"}))
    tills.run()
    before = tills.project.rows("select date, fiscal_year, fiscal_week, is_business_day from gdp.calendar")
    (tills.source / "orders.csv").write_text(
        WALL + "2,2031-02-03 10:00:00,20.00\n3,1999-12-31 23:59:59,40.00\n")
    tills.run()
    assert fiscal(tills) == {"2026-05": (2027, 3), "2031-02": (2032, 1), "1999-12": (2000, 11)}
    (first, last), = tills.project.rows("select min(date), max(date) from gdp.calendar")
    assert first <= dt.date(1999, 12, 1) and last >= dt.date(2031, 2, 28) and (last - first).days < 33 * 366
    assert set(before) <= set(
        tills.project.rows("select date, fiscal_year, fiscal_week, is_business_day from gdp.calendar"))
    assert not tills.project.run(NAME, TENANT, DAY, DAY).changed  # and a rerun leaves the calendar as it is
    token = tills.project.value("select run_token from platform.stage_run where stage = 'kpi_build' "
                                "order by evidence_seq desc limit 1")
    replayed = tills.project.command("replay", token, "--tenant", TENANT)
    assert replayed.exit_code == 0, replayed.output


def test_a_year_that_no_calendar_holds_is_not_published(tmp_path: Path, new_project: Callable[..., Project]) -> None:
    tills = Tills.make(tmp_path, new_project, WALL)
    tills.run()
    (tills.source / "orders.csv").write_text(WALL + "2,3026-05-04 10:00:00,20.00\n")
    error = tills.project.run(NAME, TENANT, DAY, DAY).error
    assert error is not None and error.code is ErrorCode.GATE_FAILED and "fiscal_period" in str(error.message)
    assert tills.series("month") == MAY


def test_today_is_the_tenants_day(tmp_path: Path, new_project: Callable[..., Project]) -> None:
    tills = Tills.make(tmp_path, new_project, WALL, time_zone="Pacific/Auckland")
    declared = tills.project.environment.declarations
    manifest, tenant = declared.pipeline(NAME), declared.tenant(TENANT)
    for hour, today in ((10, dt.date(2026, 5, 31)), (12, dt.date(2026, 6, 1))):
        now = dt.datetime(2026, 5, 31, hour, tzinfo=dt.UTC)
        assert lifecycle.today_of(tenant, now) == today
        assert lifecycle.window_of(manifest, None, None, today)[1] == today
    with pytest.raises(BareCountError):
        lifecycle.window_of(manifest, None, dt.date(2026, 6, 1), dt.date(2026, 5, 31))
    days = partitions.days_and_tenants(declared, manifest).get_partitions_def_for_dimension("date")
    assert days.get_last_partition_key() == lifecycle.today_of(tenant).isoformat()


def test_check_refuses_an_instant_as_the_date_of_a_kpi(tmp_path: Path, new_project: Callable[..., Project]) -> None:
    tills = Tills.make(tmp_path, new_project, ZULU)
    assert tills.project.command("check").exit_code == 0
    tills.change(f"contracts/kpis/{NAME}/{KPI}.yaml",
                 lambda d: d["spec"]["depends_on"][0].update(date_column="ordered_at"))
    result = tills.project.command("check")
    assert result.exit_code == 1
    assert "give the GDP a date, {{ local_date('ordered_at') }}" in " ".join(result.output.split())


def test_new_declares_the_tenants_zone_once(tmp_path: Path, new_project: Callable[..., Project]) -> None:
    tills = Tills.make(tmp_path, new_project, ZULU, time_zone="Asia/Kathmandu")
    (tills.source / "orders.csv").write_text(ZULU)
    words = ("new", "other", "--source", str(tills.source), "--key", "order_id", "--date", "ordered_at", "--measure",
             "amount")
    refused = tills.project.command(*words, "--tenant", TENANT, "--timezone", "UTC")
    assert refused.exit_code == 2 and "exists already" in refused.output
    unknown = tills.project.command(*words, "--tenant", "another", "--timezone", "Asia/Atlantis")
    assert unknown.exit_code == 2 and "Asia/Atlantis" in unknown.output
    assert tills.project.command(*words, "--tenant", TENANT).exit_code == 0
    declared = yaml.safe_load((tills.home / f"contracts/tenants/{TENANT}.yaml").read_text())
    assert declared["spec"]["timezone"] == "Asia/Kathmandu"
