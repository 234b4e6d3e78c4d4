"""A small declared project to break: one tenant, one pipeline, one source, one GDP, one KPI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from resources.governance import declarations
from resources.runtime.yaml_source import Finding

TENANT = "contracts/tenants/acme.yaml"
PIPELINE = "contracts/pipelines/sales.yaml"
KPI = "contracts/kpis/sales/turnover.yaml"
EXTRACTION = "contracts/datasets/sales/orders/extraction.yaml"
RAW = "contracts/datasets/sales/orders/raw.yaml"
GOLD = "contracts/datasets/sales/order/gold.yaml"
ACTIVATION = "contracts/datasets/sales/turnover/activation.yaml"
DBT_PROJECT = "dbt_project/dbt_project.yml"
DBT_GDP = "dbt_project/models/gdp/sales/order.yml"
DBT_KPI = "dbt_project/models/kpi/turnover.yml"
SQL_GDP = "dbt_project/models/gdp/sales/order.sql"
SQL_KPI = "dbt_project/models/kpi/turnover.sql"

_PROPERTY = """\
      - name: {name}
        logicalType: {logical}
        physicalType: {physical}
        classification: internal
        description: The {name} of an order.
"""
_CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: {dataset}.{layer}
name: Orders
version: 1.0.0
status: active
description:
  purpose: What customers ordered.
schema:
  - name: orders
    logicalType: object
    properties:
{properties}team:
  members:
    - {{username: ann@example.com, role: owner}}
    - {{username: bob@example.com, role: steward}}
slaProperties:
  - {{property: retention, value: 2, unit: y}}
customProperties:
  - {{property: dataset, value: {dataset}}}
  - {{property: layer, value: {layer}}}
"""
_LOGICAL = {"text": "string", "bigint": "integer", "integer": "integer", "date": "date"}
_ORDERS = {"order_no": "text", "ordered_on": "date", "region": "text", "amount": "numeric(18,2)"}
_SERIES = {
    "tenant_id": "text", "grain": "text", "period": "text", "period_start": "date", "fiscal_year": "integer",
    "fiscal_period": "integer", "region": "text", "value": "numeric", "numerator": "numeric",
    "denominator": "numeric", "source_rows": "bigint", "kpi_version": "text",
}  # fmt: skip
_VERSIONED = {
    "tenant_id": "text", "row_hash": "bytea", "row_version": "integer", "valid_from_run": "bigint",
    "valid_to_run": "bigint",
}  # fmt: skip


def _contract(dataset: str, layer: str, columns: dict[str, str]) -> str:
    properties = "".join(
        _PROPERTY.format(name=name, physical=kind, logical=_LOGICAL.get(kind, "number"))
        for name, kind in columns.items()
    )
    return _CONTRACT.format(dataset=dataset, layer=layer, properties=properties)


def _dbt_model(name: str, columns: dict[str, str], meta: str = "") -> str:
    listed = "".join(f"      - {{name: {column}, data_type: '{kind}'}}\n" for column, kind in columns.items())
    return f"models:\n  - name: {name}\n{meta}    columns:\n{listed}"


FILES = {
    TENANT: """\
apiVersion: barecount/v1
kind: Tenant
metadata: {id: acme, name: Acme, description: Sells things.}
spec:
  status: active
  region: eu-west-2
  currency: GBP
  timezone: Europe/London
  calendar:
    country: GB
    subdivision: ENG
    weekend: [saturday, sunday]
    range: {from: 2020-01-01, to: 2030-12-31}
    fiscal: {pattern: standard, start_month: 4}
  contacts:
    - {role: owner, name: Ann, email: ann@acme.example}
  overrides:
    sales:
      schedule: {cron: "30 6 * * *"}
""",
    PIPELINE: """\
apiVersion: barecount/v1
kind: Pipeline
metadata:
  name: sales
  title: Sales
  description: Orders to turnover.
  version: 1.0.0
  owners:
    - {name: Ann, email: ann@example.com, role: owner}
  tags: {domain: sales}
spec:
  tenants: [acme]
  partitions: {start: 2024-01-01, end: null}
  sources:
    - name: orders
      dataset: sales.orders
      connector: files
      path: "{data_dir}/{tenant}"
      file_name: "orders_{date}*.csv"
      format: {type: csv, delimiter: ";"}
  transforms:
    engine: postgres
    calendar: true
    gdp: [order]
  kpis: [turnover]
  publication:
    consumers: [finance]
    description: Turnover per month.
  runner: {class: serverless, size: small, network_profile: vpn}
  schedule: {cron: "0 5 * * *", timezone: UTC}
  retention: {raw_class: standard, raw_days: 30}
  alerts: {route: [ann@example.com]}
""",
    KPI: """\
apiVersion: barecount/v1
kind: Kpi
metadata:
  name: turnover
  pipeline: sales
  title: Turnover
  description: What was sold.
  version: 1.0.0
  owners:
    - {name: Ann, email: ann@example.com, role: owner}
spec:
  unit: currency
  formula: sum of amounts
  grains:
    - {name: month, period: month, dimensions: [region]}
  depends_on:
    - {gdp: order, date_column: ordered_on, effect: period}
  calendar: true
  thresholds:
    value: {min: 0, max: 100}
  reconciliation:
    system_of_record: sales.orders
    grain: month
    key: {source: order_no, format: "{date}"}
    value: amount
    tolerance: 0.01
""",
    EXTRACTION: _contract("sales.orders", "extraction", _ORDERS),
    RAW: _contract("sales.orders", "raw", _ORDERS),
    GOLD: _contract("sales.order", "gold", _ORDERS),
    ACTIVATION: _contract("sales.turnover", "activation", _SERIES),
    DBT_PROJECT: "name: shop\nmodels:\n  shop:\n    +contract: {enforced: true}\n",
    DBT_GDP: _dbt_model("order", _ORDERS | _VERSIONED),
    DBT_KPI: _dbt_model(
        "turnover", _SERIES,
        "    config:\n      meta:\n        grains:\n          - {name: month, period: month, dimensions: [region]}\n",
    ),
    SQL_GDP: "select 1\n",
    SQL_KPI: "select 1\n",
}  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A project on disk."""

    root: Path

    def write(self, file: str, content: str | bytes) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def replace(self, file: str, old: str, new: str) -> int:
        """Replace the one occurrence of `old`; returns the 1-based line it began on."""
        text = FILES[file]
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        self.write(file, text.replace(old, new))
        return text.count("\n", 0, text.index(old)) + 1

    def remove(self, file: str) -> None:
        (self.root / file).unlink()

    def check(self) -> list[Finding]:
        return declarations.check(self.root)

    def load(self) -> declarations.Declarations:
        return declarations.load(self.root)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project, without errors."""
    project = Project(tmp_path)
    for file, content in FILES.items():
        project.write(file, content)
    return project


@pytest.fixture(scope="session")
def shipped() -> Path:
    """Root of the project as shipped."""
    return Path(__file__).parents[3]
