"""Every kind of source, read three times within a moment: a state, another one, and the first one again."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import declarations
from resources.runners.stage import Placement, Stage, StageReceipt, StageSpec
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.trust import ledger
from tests.conftest import PROJECT

TENANT, DATASET, DAY = "acme", "order_to_cash.customers", "2026-01-05"
COLUMNS = {"customer_id": "text", "name": "text", "segment": "text", "country": "text", "credit_limit": "numeric(18,2)",
           "payment_terms_days": "integer", "quality_score": "double precision", "updated_at": "timestamp"}


def kind(column: str) -> str:
    return COLUMNS.get(column, "integer")


def record(limit: Any, days: int = 14, quality: Any = 0.5) -> dict[str, Any]:
    return {"customer_id": "C1", "name": "Firm", "segment": "small", "country": "GB", "credit_limit": limit,
            "payment_terms_days": days, "quality_score": quality, "updated_at": f"{DAY} 10:00:00"}


class Answering(BaseHTTPRequestHandler):
    """Answers every request with the server's records."""

    def do_GET(self) -> None:
        body = json.dumps(self.server.records).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def api() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@dataclass
class Customers:
    """A source of customers of one kind, and the platform that reads it."""

    environment: StageEnvironment
    folder: Path
    api: ThreadingHTTPServer
    kind: str

    def say(self, *records: dict[str, Any]) -> None:
        """Let the source say this from now on."""
        KINDS[self.kind][1](self, list(records))

    def read(self) -> StageReceipt:
        placement = Placement("container", "medium", "private_vpc")
        return execute(StageSpec(Stage.INGESTION, TENANT, "order_to_cash", placement, "customers", (DAY, DAY)),
                       lambda *_: None, self.environment)

    def rows(self, statement: str, *parameters: Any) -> list[tuple]:
        with self.environment.database.connect(autocommit=True) as connection:
            return fetch(connection, statement, parameters)

    def newest(self) -> Decimal:
        """The limit in the newest current record of the customer."""
        return self.rows(
            "select r.credit_limit from raw.order_to_cash__customers r "
            "join platform.raw_batch b on b.batch_id = r._batch_id and b.is_current where b.tenant_id = $1 "
            "order by b.partition_date desc nulls last, b.delivery_order desc, r._row_number desc limit 1", TENANT)[0][0]

    # One writer per medium -------------------------------------------------------------------------------

    def write_csv(self, records: list[dict[str, Any]]) -> None:
        lines = [",".join(records[0]), *(",".join(str(value) for value in one.values()) for one in records)]
        (self.folder / "customers.csv").write_text("\n".join(lines) + "\n")

    def write_jsonl(self, records: list[dict[str, Any]]) -> None:
        (self.folder / "customers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))

    def write_parquet(self, records: list[dict[str, Any]]) -> None:
        typed = [one | {"credit_limit": Decimal(one["credit_limit"]),
                        "updated_at": dt.datetime.fromisoformat(one["updated_at"])} for one in records]
        pq.write_table(pa.Table.from_pylist(typed), self.folder / "customers.parquet")

    def write_sqlite(self, records: list[dict[str, Any]]) -> None:
        with sqlite3.connect(self.folder / "shop.db") as connection:
            connection.execute("drop table if exists customers")
            types = ", ".join(f"{name} {'text' if kind(name) == 'timestamp' else kind(name)}" for name in records[0])
            connection.execute(f"create table customers ({types})")
            for one in records:
                connection.execute(f"insert into customers values ({', '.join('?' * len(one))})", list(one.values()))
        connection.close()

    def write_postgres(self, records: list[dict[str, Any]]) -> None:
        with psycopg.connect(self.environment.database.admin_url, autocommit=True) as connection:
            connection.execute("drop table if exists customers")
            types = ", ".join(f"{name} {kind(name)}" for name in records[0])
            connection.execute(f"create table customers ({types})")  # type: ignore[arg-type]
            for one in records:
                places = ", ".join(["%s"] * len(one))
                connection.execute(f"insert into customers values ({places})", list(one.values()))  # type: ignore[arg-type]

    def write_api(self, records: list[dict[str, Any]]) -> None:
        self.api.records = records  # type: ignore[attr-defined]


def files(kind: str) -> dict[str, Any]:
    return {"connector": "files", "path": "{folder}", "file_name": f"*.{kind}", "format": {"type": kind}}


def sql(dsn: str, **what: Any) -> dict[str, Any]:
    return {"connector": "sql", "dsn": dsn, **what}


def rest(**what: Any) -> dict[str, Any]:
    return {"connector": "rest", "url": "{api}/customers", **what}


SQLITE, POSTGRES = "sqlite:///{folder}/shop.db", "{postgres}"
KINDS: dict[str, tuple[dict[str, Any], Callable[[Customers, list[dict[str, Any]]], None]]] = {
    "csv": (files("csv"), Customers.write_csv),
    "jsonl": (files("jsonl"), Customers.write_jsonl),
    "parquet": (files("parquet"), Customers.write_parquet),
    "sqlite table": (sql(SQLITE, table="customers"), Customers.write_sqlite),
    "sqlite query": (sql(SQLITE, query="select * from customers"), Customers.write_sqlite),
    "postgres table": (sql(POSTGRES, table="customers"), Customers.write_postgres),
    "postgres query": (sql(POSTGRES, query="select * from customers"), Customers.write_postgres),
    "rest": (rest(), Customers.write_api),
    "rest of a day": (rest(params={"day": "{date}"}), Customers.write_api),
    "sqlite cursor": (sql(SQLITE, table="customers", cursor_column="payment_terms_days"), Customers.write_sqlite),
    "postgres cursor": (sql(POSTGRES, table="customers", cursor_column="payment_terms_days"), Customers.write_postgres),
    "rest cursor": (rest(params={"since": "{cursor}"}, incremental={
        "start": "2026-01-01T00:00:00.000000Z", "lag_seconds": 0, "format": "%Y-%m-%dT%H:%M:%S.%fZ"}),
        Customers.write_api),
}
STREAMS = [kind for kind in KINDS if KINDS[kind][0]["connector"] != "files" and "cursor" not in kind]


@pytest.fixture
def customers(
    request: pytest.FixtureRequest, database: Database, settings: Settings, tmp_path: Path, api: ThreadingHTTPServer
) -> Customers:
    """The shipped project, whose customers come from a source of the kind the test asks for."""
    project, folder = tmp_path / "project", tmp_path / "source"
    folder.mkdir()
    for part in ("contracts", "dbt_project"):
        shutil.copytree(PROJECT / part, project / part, ignore=shutil.ignore_patterns("target", "logs"))
    manifest = project / "contracts" / "pipelines" / "order_to_cash.yaml"
    document = yaml.safe_load(manifest.read_text())
    (source,) = [source for source in document["spec"]["sources"] if source["name"] == "customers"]
    source.clear()
    places = {"{folder}": str(folder), "{api}": f"http://127.0.0.1:{api.server_port}", "{postgres}": database.admin_url}
    text = json.dumps({"name": "customers", "dataset": DATASET, **KINDS[request.param][0]})
    for name, value in places.items():
        text = text.replace(name, value)
    source |= json.loads(text)
    manifest.write_text(yaml.safe_dump(document, sort_keys=False))
    assert declarations.check(project) == []
    environment = StageEnvironment.using(replace(settings, project_dir=project), database)
    return Customers(environment, folder, api, request.param)


@pytest.mark.parametrize("customers", KINDS, indirect=True)
def test_a_state_that_returns_within_a_moment_is_the_newest_again(customers: Customers) -> None:
    seen = []
    for days, limit in enumerate((100, 75, 100, 75), 9):  # the cursor passes from one digit to two
        customers.say(record(limit, days if "cursor" in customers.kind else 14))
        receipt = customers.read()
        assert receipt.changed, receipt
        seen.append(customers.newest())
    assert seen == [100, 75, 100, 75]
    with customers.environment.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, TENANT).findings == ()
        orders = fetch(connection, "select body::jsonb -> 'payload' ->> 'delivery_order' from platform.evidence "
                                   "where kind like 'batch.%' order by seq")
    assert len(set(orders)) == len(orders) == 4 and sorted(orders) == orders, "each landing says where it stands"


@pytest.mark.parametrize("customers", STREAMS, indirect=True)
def test_reading_a_state_again_lands_nothing_and_leaves_no_object(customers: Customers) -> None:
    customers.say(record(100))
    customers.read()
    objects = sorted(path for path in customers.environment.settings.data_dir.rglob("*.parquet*"))
    again = customers.read()
    assert (again.changed, again.counts["landed"]) == (False, 0)
    assert sorted(customers.environment.settings.data_dir.rglob("*.parquet*")) == objects


@pytest.mark.parametrize("customers", ["sqlite table", "rest", "rest of a day"], indirect=True)
def test_a_change_of_a_refused_record_alone_is_a_change(customers: Customers) -> None:
    payloads = []
    for quality in ("bad", "worse", "bad"):
        customers.say(record(100), record(50, quality=quality))
        assert customers.read().counts["quarantined"] == 1
        payloads += customers.rows(
            "select convert_from(q.payload, 'UTF8')::jsonb ->> 'quality_score' from platform.quarantine q "
            "join platform.raw_batch b using (batch_id) where b.is_current")
    assert payloads == [("bad",), ("worse",), ("bad",)]


@pytest.mark.parametrize("customers", ["csv", "sqlite table", "postgres table", "rest", "rest of a day"], indirect=True)
def test_a_source_that_drifts_is_read_on_while_it_waits(customers: Customers) -> None:
    limits = []
    for limit in (100, 75, 100):
        customers.say(record(limit) | {"surprise": 1})
        assert customers.read().changed
        limits.append(customers.newest())
    assert limits == [100, 75, 100]
    customers.say(record(60))
    assert customers.read().changed and customers.newest() == 60
