"""Shared parts of the lifecycle tests: projects with a database of their own, run as the command runs them."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from barecount_assets import lifecycle, sample
from barecount_assets.instance import open_instance
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.sample import SampleFacts
from barecount_assets.stages import dbt
from barecount_assets.stages.environment import StageEnvironment
from resources.runners.stage import Stage, StageReceipt
from resources.runtime.database import Database, fetch, fetch_dicts
from resources.runtime.settings import Settings
from resources.storage import gdp_store
from tests.conftest import barecount, databases

PROJECT = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("BARECOUNT_SHARED_DATA", PROJECT.parent / "shared" / "data"))
STATE_SCHEMAS = ("platform", "raw", "gdp", "kpi", "published", "dagster")

Content = dict[str, str]


@dataclass(frozen=True)
class Project:
    """Declarations, a data folder and a database; what a newcomer has after the install."""

    settings: Settings
    database: Database

    @property
    def environment(self) -> StageEnvironment:
        return StageEnvironment.using(self.settings, self.database)

    def folder(self, tenant: str) -> Path:
        """Where the sources of `order_to_cash` lie."""
        return self.settings.data_dir / "sample" / tenant

    # Running --------------------------------------------------------------------------------------------

    def run(self, pipeline: str, tenant: str, start: dt.date, end: dt.date, **sources: Path) -> RunOutcome:
        """What `barecount run` does for one tenant."""
        paths = {name: str(path) for name, path in sources.items()}
        with unchanged_environment():
            return lifecycle.run(
                self.environment, RunRequest(pipeline, tenant, start, end, paths), lambda *_: None
            )

    def command(self, *arguments: str) -> Result:
        """The real command, in this process, on this project; nothing may escape it but an exit code."""
        with unchanged_environment():
            os.environ.update(self.variables)
            result = barecount(*arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which a command works on this project."""
        return {
            "BARECOUNT_PROJECT_DIR": str(self.settings.project_dir),
            "BARECOUNT_DATA_DIR": str(self.settings.data_dir),
            "BARECOUNT_RAW_STORE": self.settings.raw_store,
            "BARECOUNT_DATABASE_URL": self.database.admin_url,
        }

    # Looking --------------------------------------------------------------------------------------------

    def rows(self, statement: str, *parameters: Any) -> list[tuple]:
        """Rows of a statement as the platform role."""
        with self.database.connect(autocommit=True) as connection:
            return fetch(connection, statement, parameters)

    def dicts(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        with self.database.connect(autocommit=True) as connection:
            return fetch_dicts(connection, statement, parameters)

    def value(self, statement: str, *parameters: Any) -> Any:
        """The one value of a statement."""
        ((value,),) = self.rows(statement, *parameters)
        return value

    def series(self, kpi: str, tenant: str, *keys: str, column: str = "value") -> dict[Any, Any]:
        """A column of the published series, by `keys` (one key bare, several as a tuple)."""
        rows = self.rows(f"select {', '.join(keys)}, {column} from published.{kpi} where tenant_id = $1", tenant)
        found = {row[:-1] if len(keys) > 1 else row[0]: row[-1] for row in rows}
        assert len(found) == len(rows), f"{keys} do not identify the rows of {kpi}"
        return found

    def versions(self, tenant: str) -> dict[str, int]:
        """Current version of everything published for a tenant."""
        return dict(self.rows("select name, version from published.current_version where tenant_id = $1", tenant))

    def gdp_hashes(self, pipeline: str, tenant: str) -> Content:
        """Content hash of every GDP's head."""
        models = self.environment.declarations.pipeline(pipeline).spec.transforms.gdp
        with self.database.connect(autocommit=True) as connection:
            return {model: gdp_store.head_hash(connection, model, tenant)[0] for model in models}

    def publication_hashes(self, tenant: str) -> Content:
        """Content hash of everything published now."""
        return dict(self.rows(
            "select name, content_sha256 from platform.publication "
            "join published.current_version using (tenant_id, name, version) where tenant_id = $1", tenant))

    def state(self, *schemas: str) -> dict[str, tuple[int, str]]:
        """Number of rows of every table, and a digest that any insert, update or delete changes."""
        tables = self.rows(
            "select schemaname, tablename from pg_tables where schemaname = any($1) order by 1, 2",
            list(schemas or STATE_SCHEMAS))
        with psycopg.connect(self.database.admin_url) as connection:
            return {
                f"{schema}.{table}": connection.execute(
                    "select count(*), coalesce(md5(string_agg(ctid::text || xmin::text, ',' "
                    f'order by ctid)), \'\') from "{schema}"."{table}"'  # type: ignore[arg-type]
                ).fetchone()
                for schema, table in tables
            }  # type: ignore[return-value]

    # Meddling -------------------------------------------------------------------------------------------

    def as_owner(self, *statements: str) -> None:
        """What somebody with the owner's rights could do, with the guards switched off."""
        with psycopg.connect(self.database.admin_url) as connection:
            connection.execute("set session_replication_role = replica")
            for statement in statements:
                assert connection.execute(statement).rowcount != 0, f"nothing was changed by: {statement}"  # type: ignore[arg-type]


@contextmanager
def unchanged_environment() -> Iterator[None]:
    """Commands set variables for Dagster's sake, which must not reach the next test."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def receipt(outcome: RunOutcome, stage: Stage, source: str | None = None) -> StageReceipt:
    """The receipt of one stage (and source) of a run."""
    (found,) = [r for r in outcome.receipts if r.stage is stage and r.facts.get("source") == source]
    return found


def published(outcome: RunOutcome) -> dict[str, str]:
    """What the run's publish stage did, by KPI: published or unchanged."""
    assert outcome.error is None, outcome.error
    return {output.name: output.facts["state"] for output in receipt(outcome, Stage.PUBLISH).outputs}


@pytest.fixture(scope="session")
def first_use(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which dbt has parsed the shipped project; database `used` has Dagster's tables.

    Every project would do both by itself on its first run, for seconds.
    """
    data = tmp_path_factory.mktemp("first")
    settings = Settings(PROJECT, data, str(data / "raw"), None)
    with psycopg.connect(server.replace("/barecount?", "/postgres?"), autocommit=True) as connection:
        connection.execute("create database used template barecount")
    with unchanged_environment(), open_instance(settings, Database(server.replace("/barecount?", "/used?"), True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dbt, "_manifests", {})  # what this process has parsed elsewhere leaves nothing in the folder
            dbt._parsed(settings)
    return data


@pytest.fixture(scope="session")
def new_project(
    server: str, first_use: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Project]]:
    """Makes projects; `project_dir` is that of the declarations, the shipped ones by default."""

    with databases(server) as new_database:

        def make(project_dir: Path = PROJECT) -> Project:
            data = tmp_path_factory.mktemp("data")
            shutil.copytree(first_use / "dbt", data / "dbt")  # of a changed project, dbt parses what changed
            return Project(Settings(project_dir, data, str(data / "raw"), None), new_database("used"))

        yield make


# Order to cash, as generated -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sales:
    """A project in which `order_to_cash` ran for both tenants, and the truth about its sources."""

    project: Project
    facts: dict[str, SampleFacts]
    outcomes: dict[str, RunOutcome]


@pytest.fixture(scope="session")
def sales(new_project: Callable[..., Project]) -> Sales:
    project = new_project()
    facts = {
        tenant: sample.write_sample(project.folder(tenant), tenant, invoices=1_500, business_days=45)
        for tenant in ("acme", "globex")
    }
    outcomes = {
        tenant: project.run("order_to_cash", tenant, truth.start, truth.end) for tenant, truth in facts.items()
    }
    assert all(outcome.error is None for outcome in outcomes.values()), outcomes
    return Sales(project, facts, outcomes)


# Order to cash, by hand ------------------------------------------------------------------------------------

_ERP_HEADER = ("InvoiceID", "CustomerID", "CustomerName", "BusinessUnit", "InvoiceDate", "DueDate", "Currency",
               "NetAmount", "TaxAmount", "GrossAmount", "LastModified")


@dataclass(frozen=True)
class Books:
    """Three systems of one tenant with very few records, for tests that say what is in them."""

    folder: Path
    currency: str = "GBP"

    def invoices(self, day: str, *records: Sequence[Any], suffix: str = "") -> Path:
        """A file of the ERP; a record is (invoice, customer, unit, invoice date, net amount), 20 % tax on top."""
        path = self._path("erp", f"invoices_{day}{suffix}.csv")
        with path.open("w", encoding="windows-1252", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(_ERP_HEADER)
            for invoice, customer, unit, date, net in records:
                net = Decimal(net)
                due = dt.date.fromisoformat(date) + dt.timedelta(days=14)
                writer.writerow((invoice, customer, f"Firm {customer}", unit, date, due, self.currency, f"{net:.2f}",
                                 f"{net / 5:.2f}", f"{net * 6 / 5:.2f}", f"{day} 12:00:00"))
        return path

    def payments(self, day: str, *records: Sequence[Any], suffix: str = "") -> Path:
        """A file of the bank; a record is (payment, invoice, day booked, amount)."""
        path = self._path("bank", f"payments_{day}{suffix}.jsonl")
        path.write_text("".join(
            f'{{"paymentId":{json.dumps(payment)},"invoiceId":{json.dumps(invoice)},"amount":{Decimal(amount):.2f},'
            f'"currency":"{self.currency}","bookedAt":"{booked}T09:30:00","payer":"Firm","reference":"{invoice}"}}\n'
            for payment, invoice, booked, amount in records))
        return path

    def customers(self, day: str, *customers: str) -> Path:
        """A file of the CRM."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = len(customers)
        table = pa.table({
            "customer_id": pa.array(customers, pa.string()),
            "name": pa.array([f"Firm {customer} Ltd" for customer in customers], pa.string()),
            "segment": pa.array(["small"] * count, pa.string()),
            "country": pa.array(["GB"] * count, pa.string()),
            "credit_limit": pa.array([Decimal("1000.00")] * count, pa.decimal128(18, 2)),
            "payment_terms_days": pa.array([14] * count, pa.int32()),
            "quality_score": pa.array([0.9] * count, pa.float64()),
            "updated_at": pa.array([dt.datetime.fromisoformat(day)] * count, pa.timestamp("us")),
        })
        path = self._path("crm", f"customers_{day}.parquet")
        pq.write_table(table, path)
        return path

    def _path(self, system: str, name: str) -> Path:
        path = self.folder / system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def three_months(books: Books) -> None:
    """Two invoices a month, one per business unit, and a payment a month; both owe something at every month's end.

    Open at the end of January, February and March: NORTH 60, 60, 360; SOUTH 240, 720, 1440.
    """
    books.customers("2026-01-05", "C1", "C2")
    books.invoices("2026-01-05", ("I1", "C1", "NORTH", "2026-01-05", 100), ("I2", "C2", "SOUTH", "2026-01-05", 200))
    books.invoices("2026-02-03", ("I3", "C1", "NORTH", "2026-02-03", 300), ("I4", "C2", "SOUTH", "2026-02-03", 400))
    books.invoices("2026-03-03", ("I5", "C1", "NORTH", "2026-03-03", 500), ("I6", "C2", "SOUTH", "2026-03-03", 600))
    books.payments("2026-01-20", ("P1", "I1", "2026-01-20", 60))
    books.payments("2026-02-17", ("P2", "I3", "2026-02-17", 360))
    books.payments("2026-03-17", ("P3", "I5", "2026-03-17", 300))


FIRST_DAY, LAST_DAY = dt.date(2026, 1, 2), dt.date(2026, 3, 31)  # of the books
