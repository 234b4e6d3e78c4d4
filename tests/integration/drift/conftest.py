"""A project whose sources drift: the shipped contracts, with a unit declared, and a policy for rejections."""

from __future__ import annotations

import csv
import datetime as dt
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from barecount_assets import drift_decisions
from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import drift_register
from resources.governance.drift_register import Drift
from resources.runners.stage import CheckOutcome, Placement, Stage, StageReceipt, StageSpec
from resources.runtime.database import Database, fetch, fetch_dicts
from resources.runtime.settings import Settings

PROJECT = Path(__file__).resolve().parents[3]
TENANTS = ("acme", "globex")
FIRST, SECOND, THIRD = "2026-01-05", "2026-01-06", "2026-01-07"
NOW = dt.datetime(2026, 1, 8, 9, tzinfo=dt.UTC)
RECORDS = 12
CLASSES = ("field_added", "field_missing", "type_changed", "enum_grown", "nullability", "semantic_hint")
HEADER = ["InvoiceID", "CustomerID", "CustomerName", "BusinessUnit", "InvoiceDate", "DueDate", "Currency", "NetAmount",
          "TaxAmount", "GrossAmount", "LastModified"]


def invoices(day: str, *, without: str = "", empty: str = "", discount: bool = False, unit: str = "NORTH",
             order: list[str] | None = None) -> bytes:
    """A file of the ERP: `unit` is that of its last record."""
    names = [name for name in order or HEADER if name != without] + (["DiscountPct"] if discount else [])
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\n")
    writer.writerow(names)
    for number in range(RECORDS):
        record = {
            "InvoiceID": f"I{day[-2:]}{number}", "CustomerID": f"C{number}", "CustomerName": "Firm; Sons",
            "BusinessUnit": unit if number == RECORDS - 1 else "NORTH", "InvoiceDate": day, "DueDate": day,
            "Currency": "GBP", "NetAmount": "10.00", "TaxAmount": "2.00", "GrossAmount": "12.00",
            "LastModified": f"{day} 12:00:00", "DiscountPct": f"{number}.5" if number else "",
        }
        record[empty] = ""
        writer.writerow([record[name] for name in names])
    return text.getvalue().encode("windows-1252")


def customers(*, terms: pa.Array | None = None, unit: str = "GBP") -> bytes:
    """A file of the CRM."""
    ids = [f"C{number}" for number in range(RECORDS)]
    terms = pa.array([14] * RECORDS, pa.int32()) if terms is None else terms
    columns: dict[str, tuple[Any, dict[str, str]]] = {
        "customer_id": (pa.array(ids), {}), "name": (pa.array(ids), {}), "segment": (pa.array(ids), {}),
        "country": (pa.array(ids), {}),
        "credit_limit": (pa.array([Decimal("1000.00")] * RECORDS, pa.decimal128(18, 2)), {"unit": unit}),
        "payment_terms_days": (terms, {}), "quality_score": (pa.array([0.5] * RECORDS), {}),
        "updated_at": (pa.array([dt.datetime(2026, 1, 5)] * RECORDS, pa.timestamp("us")), {}),
    }
    fields = [pa.field(name, values.type, metadata=hints) for name, (values, hints) in columns.items()]
    target = io.BytesIO()
    pq.write_table(pa.table([values for values, _ in columns.values()], schema=pa.schema(fields)), target)
    return target.getvalue()


DRIFTED: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "field_added": ("invoices", lambda day: invoices(day, discount=True)),
    "field_missing": ("invoices", lambda day: invoices(day, without="CustomerID")),
    "type_changed": ("customers", lambda day: customers(terms=pa.array([f"{day} net"] * RECORDS))),
    "enum_grown": ("invoices", lambda day: invoices(day, unit="WEST")),
    "nullability": ("invoices", lambda day: invoices(day, empty="Currency")),
    "semantic_hint": ("customers", lambda day: customers(unit="GBP thousands")),
}
"""Per class the source that drifts, and its file of a day."""

_FILES = {
    "invoices": "erp/invoices_{}.csv", "payments": "bank/payments_{}.jsonl", "customers": "crm/customers_{}.parquet"}


@dataclass
class Site:
    """A project with its own database, whose stages run one by one."""

    settings: Settings
    database: Database

    @cached_property
    def environment(self) -> StageEnvironment:
        """What a command opens: contracts are those that are current at that moment."""
        return StageEnvironment.using(self.settings, self.database)

    def deliver(self, tenant: str, source: str, day: str, content: bytes) -> Path:
        path = self.settings.data_dir / "sample" / tenant / _FILES[source].format(day)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def deliver_soundly(self, tenant: str, day: str) -> None:
        """A day without drift, of every source."""
        self.deliver(tenant, "invoices", day, invoices(day))
        self.deliver(tenant, "customers", day, customers())
        self.deliver(tenant, "payments", day, (
            f'{{"paymentId":"P{day}","invoiceId":"I050","amount":1.00,"currency":"GBP","bookedAt":"{day}T09:30:00",'
            '"payer":"Firm","reference":"I050"}\n').encode())

    def ingest(self, tenant: str, source: str, *days: str) -> StageReceipt:
        window = (min(days), max(days))
        return execute(self._spec(Stage.INGESTION, tenant, source, window), _silent, self.environment)

    def ingest_all(self, tenant: str, *days: str) -> None:
        for source in _FILES:
            self.ingest(tenant, source, *days)

    def normalize(self, tenant: str, *, probe: bool = False) -> StageReceipt:
        return execute(self._spec(Stage.NORMALIZATION, tenant, None, None, probe), _silent, self.environment)

    def rows(self, statement: str, *parameters: Any) -> list[tuple]:
        with self.database.connect(autocommit=True) as connection:
            return fetch(connection, statement, parameters)

    def dicts(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        with self.database.connect(autocommit=True) as connection:
            return fetch_dicts(connection, statement, parameters)

    def drifts(self, tenant: str) -> list[Drift]:
        with self.database.connect(autocommit=True) as connection:
            return drift_register.listed(connection, tenant_id=tenant)

    def held(self, tenant: str) -> list[str]:
        with self.database.connect(autocommit=True) as connection:
            return [str(day) for day in drift_register.held_days(connection, tenant, "order_to_cash")]

    def counted(self, tenant: str, day: str) -> set[str]:
        """Sources of which a batch of the day counts downstream."""
        return {dataset.partition(".")[2] for (dataset,) in self.rows(
            "select dataset from platform.counted_batch where tenant_id = $1 and partition_date = $2::text::date "
            "and is_current", tenant, day)}

    def accept(self, drift: Drift, **options: Any) -> drift_decisions.Acceptance:
        done = drift_decisions.accept(
            self.environment, drift.drift_id, by="marco.bianchi", reason="the ERP was upgraded", now=NOW, **options)
        del self.environment
        return done

    def reject(self, drift: Drift) -> Drift:
        return drift_decisions.reject(
            self.environment, drift.drift_id, by="marco.bianchi", reason="nobody asked for it", now=NOW)

    @staticmethod
    def _spec(
        stage: Stage, tenant: str, source: str | None, window: tuple[str, str] | None, probe: bool = False
    ) -> StageSpec:
        placement = Placement("container", "medium", "private_vpc")
        return StageSpec(stage, tenant, "order_to_cash", placement, source, window, probe=probe)


def schema_check(receipt: StageReceipt) -> CheckOutcome:
    (found,) = [check for check in receipt.checks if check.name == "schema_matches_contract"]
    return found


def _silent(message: str, done: int, total: int) -> None:
    return None


@pytest.fixture(scope="session")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Project folders by what their manifest says of a rejection of any class: `quarantine_part` or `hold_batch`."""
    made: dict[str, Path] = {}

    def project(policy: str) -> Path:
        if policy not in made:
            folder = tmp_path_factory.mktemp(policy)
            shutil.copytree(PROJECT / "contracts", folder / "contracts")
            (folder / "dbt_project").symlink_to(PROJECT / "dbt_project")
            for layer in ("extraction", "raw"):
                file = folder / "contracts/datasets/order_to_cash/customers" / f"{layer}.yaml"
                text = file.read_text()
                at = text.index("      - name: payment_terms_days")
                file.write_text(text[:at] + "        customProperties: [{property: unit, value: GBP}]\n" + text[at:])
            manifest = folder / "contracts/pipelines/order_to_cash.yaml"
            classes = ", ".join(f"{name}: {policy}" for name in CLASSES)
            manifest.write_text(manifest.read_text() + f"  on_drift: {{{classes}}}\n")
            made[policy] = folder
        return made[policy]

    return project


@pytest.fixture
def new_site(
    declared: Callable[[str], Path], new_database: Callable[[], Database], tmp_path: Path
) -> Callable[[str], Site]:
    """Makes sites on which two tenants have delivered one sound day."""

    def make(policy: str = "quarantine_part") -> Site:
        data = tmp_path / "data"
        site = Site(Settings(declared(policy), data, str(data / "raw"), None), new_database())
        for tenant in TENANTS:
            site.deliver_soundly(tenant, FIRST)
            site.ingest_all(tenant, FIRST)
            site.deliver_soundly(tenant, SECOND)
        return site

    return make
