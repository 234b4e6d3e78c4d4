"""A source of customers, of any kind, in the shipped project: what tests of ingestion write, and what it lands."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import sqlite3
from dataclasses import dataclass, replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import declarations
from resources.runners.stage import Placement, Stage, StageReceipt, StageSpec
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
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


@dataclass
class Customers:
    """A source of customers of one kind, and the platform that reads it: `declared` is the source in the manifest."""

    environment: StageEnvironment
    folder: Path
    api: ThreadingHTTPServer | None = None

    @classmethod
    def make(
        cls, folder: Path, settings: Settings, database: Database, declared: dict[str, Any],
        api: ThreadingHTTPServer | None = None,
    ) -> Customers:
        """The shipped project, whose customers come from the declared source."""
        project, source_folder = folder / "project", folder / "source"
        source_folder.mkdir()
        for part in ("contracts", "dbt_project"):
            shutil.copytree(PROJECT / part, project / part, ignore=shutil.ignore_patterns("target", "logs"))
        made = cls(StageEnvironment.using(replace(settings, project_dir=project), database), source_folder, api)
        return made.declare(declared)

    def declare(self, declared: dict[str, Any]) -> Customers:
        """Let the manifest declare the source so from now on."""
        project = self.environment.settings.project_dir
        places = {"{folder}": str(self.folder), "{postgres}": self.environment.database.admin_url,
                  "{api}": f"http://127.0.0.1:{self.api.server_port}" if self.api else ""}
        text = json.dumps({"name": "customers", "dataset": DATASET, **declared})
        for name, value in places.items():
            text = text.replace(name, value)
        manifest = project / "contracts" / "pipelines" / "order_to_cash.yaml"
        document = yaml.safe_load(manifest.read_text())
        (source,) = [source for source in document["spec"]["sources"] if source["name"] == "customers"]
        source.clear()
        source |= json.loads(text)
        manifest.write_text(yaml.safe_dump(document, sort_keys=False))
        assert declarations.check(project) == []
        self.environment = StageEnvironment.using(self.environment.settings, self.environment.database)
        return self

    def read(self) -> StageReceipt:
        placement = Placement("container", "medium", "private_vpc")
        return execute(StageSpec(Stage.INGESTION, TENANT, "order_to_cash", placement, "customers", (DAY, DAY)),
                       lambda *_: None, self.environment)

    def rows(self, statement: str, *parameters: Any) -> list[tuple]:
        with self.environment.database.connect(autocommit=True) as connection:
            return fetch(connection, statement, parameters)

    def newest(self) -> Decimal:
        """The limit in the newest current record of the customer."""
        ((limit,),) = self.rows(
            "select r.credit_limit from raw.order_to_cash__customers r "
            "join platform.raw_batch b on b.batch_id = r._batch_id and b.is_current where b.tenant_id = $1 "
            "order by b.partition_date desc nulls last, b.delivery_order desc, r._row_number desc limit 1", TENANT)
        return limit

    # One writer per medium -------------------------------------------------------------------------------

    def write_csv(self, records: list[dict[str, Any]], name: str = "customers.csv") -> None:
        lines = [",".join(records[0]), *(",".join(str(value) for value in one.values()) for one in records)]
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

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
        assert self.api is not None
        self.api.records = records  # type: ignore[attr-defined]


def files(kind: str) -> dict[str, Any]:
    return {"connector": "files", "path": "{folder}", "file_name": f"*.{kind}", "format": {"type": kind}}


def sql(dsn: str, **what: Any) -> dict[str, Any]:
    return {"connector": "sql", "dsn": dsn, **what}


def rest(**what: Any) -> dict[str, Any]:
    return {"connector": "rest", "url": "{api}/customers", **what}
