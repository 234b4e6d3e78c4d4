"""A small pipeline of a test's own, as `barecount new` writes it, whose models are then edited: orders of a shop."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from barecount_assets import definition_changes, project_definitions, scaffold
from barecount_assets.lifecycle import RunOutcome
from resources.governance import definitions
from resources.runtime.settings import code_version
from tests.lifecycle.conftest import PROJECT, Project

NAME, TENANT, GDP, KPI = "shop", "shop_keeper", "shop_order", "shop_amount"
DAY = dt.date(2026, 11, 20)
GOLD = f"contracts/datasets/{NAME}/{GDP}/gold.yaml"
ACTIVATION = f"contracts/datasets/{NAME}/{KPI}/activation.yaml"
SPECIFICATION = f"contracts/kpis/{NAME}/{KPI}.yaml"
MANIFEST = f"contracts/pipelines/{NAME}.yaml"
GDP_SQL, GDP_YAML = f"dbt_project/models/gdp/{NAME}/{GDP}.sql", f"dbt_project/models/gdp/{NAME}/{NAME}.yml"
KPI_SQL, KPI_YAML = f"dbt_project/models/kpi/{NAME}/{KPI}.sql", f"dbt_project/models/kpi/{NAME}/{NAME}.yml"
_LOGICAL = {"text": "string", "bigint": "integer", "date": "date", "timestamp": "timestamp", "boolean": "boolean"}


def upgrade(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """Let the platform be of another release, which compiles what is there now."""
    for module in (definitions, definition_changes, project_definitions):
        monkeypatch.setattr(module, "stage_code_version", lambda: release)
    code_version.cache_clear()


@dataclass(frozen=True)
class Order:
    """A record of the source."""

    order_id: int
    customer: str
    status: str
    amount: Decimal
    day: dt.date = DAY


ORDERS = (Order(1, "Ada", "paid", Decimal("12.50")), Order(2, "Bob", "open", Decimal("20.00")),
          Order(3, "Ada", "paid", Decimal("7.25"), dt.date(2026, 11, 21)))


@dataclass(frozen=True)
class Column:
    """A business column of the GDP: its SQL over the newest record of an order."""

    name: str
    kind: str
    sql: str


COLUMNS = (Column("order_id", "bigint", "order_id"), Column("customer", "text", "customer"),
           Column("status", "text", "status"), Column("amount", "numeric(18,2)", "amount"),
           Column("business_date", "date", "cast(ordered_at as date)"))
PAID = "sum(case when status = 'paid' then amount else 0 end)"


@dataclass(frozen=True)
class Models:
    """What the pipeline's models compute, and under which versions."""

    columns: tuple[Column, ...] = COLUMNS
    measure: str = PAID
    dimension: str = "customer"
    key: str = "order_id"
    gold: str = "1.0.0"
    kpi: str = "1.0.0"
    activation: str = "1.0.0"

    def column(self, called: str, /, **changes: str) -> Models:
        """With one column changed."""
        return replace(self, columns=tuple(replace(c, **changes) if c.name == called else c for c in self.columns))


@dataclass(frozen=True)
class Shop:
    """A project with the pipeline."""

    project: Project
    source: Path

    @classmethod
    def make(cls, folder: Path, new_project: Callable[..., Project], engine: str = "postgres",
             orders: Sequence[Order] = ORDERS) -> Shop:
        """The pipeline alone, beside the platform's macros and declarations."""
        home, source = folder / "project", folder / "source"
        source.mkdir(parents=True)
        for part in ("contracts/platform", "deploy", "dbt_project/macros", "dbt_project/tests/generic"):
            shutil.copytree(PROJECT / part, home / part)
        for file in ("dbt_project.yml", "profiles.yml", "models/sources.yml"):
            (home / "dbt_project" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / "dbt_project" / file, home / "dbt_project" / file)
        shop = cls(new_project(home), source)
        shop.deliver(orders)
        scaffold.write(home, scaffold.plan(home, scaffold.Request(
            NAME, source, "order", "order_id", "ordered_at", "amount", "customer", TENANT, "owner@shop.example")))
        shop._change(MANIFEST, lambda document: document["spec"]["transforms"].update(engine=engine))
        shop.edit(Models())
        return shop

    @property
    def home(self) -> Path:
        return self.project.settings.project_dir

    def serve(self, tenant: str) -> None:
        """Let the pipeline serve another tenant, with the same source."""
        declared = (self.home / f"contracts/tenants/{TENANT}.yaml").read_text().replace(TENANT, tenant)
        self._write(f"contracts/tenants/{tenant}.yaml", declared)
        self._change(MANIFEST, lambda document: document["spec"]["tenants"].append(tenant))

    def deliver(self, orders: Sequence[Order], name: str = "2026-11-20.csv") -> None:
        lines = [f"{o.order_id},{o.day} 09:00:00,{o.customer},{o.status},{o.amount}\n" for o in orders]
        (self.source / name).write_text("order_id,ordered_at,customer,status,amount\n" + "".join(lines))

    def edit(self, models: Models) -> None:
        """Write the models, and everything that declares them, as an engineer would."""
        names = ", ".join(f"{c.sql} as {c.name}" for c in models.columns)
        rank = "binary_text('delivery_order')"
        self._write(GDP_SQL, f"""
with ranked as (
    select records.*, row_number() over (
        partition by order_id order by partition_date desc nulls last, {{{{ {rank} }}}} desc, _row_number desc) as rank
    from {{{{ raw_rows('{NAME}.orders') }}}} as records
    where {{{{ in_scope('order_id') }}}}
),
chosen as (select {names} from ranked where rank = 1)
{{{{ versioned('chosen') }}}}
""")
        self._write(KPI_SQL, f"""
with facts as (
    select business_date, {models.dimension}, {models.measure} as measured, count(*) as source_rows
    from {{{{ gdp_head('{GDP}') }}}} as gdp
    where {{{{ in_any_affected_period('{KPI}', 'business_date') }}}}
    group by business_date, {models.dimension}
)
{{{{ kpi_series('{KPI}', facts='facts', date_column='business_date', numerator='sum(measured)',
    source_rows='sum(source_rows)') }}}}
""")
        grains = [{"name": "by_dimension", "period": "day", "dimensions": [models.dimension]},
                  {"name": "month", "period": "month", "dimensions": []}]

        def gold(document: Any) -> None:
            document["version"] = models.gold
            document["schema"][0]["properties"] = [{
                "name": c.name, "physicalType": c.kind, "logicalType": _LOGICAL.get(c.kind, "number"),
                "classification": "internal", "description": c.name} for c in models.columns]

        def gdp_yaml(document: Any) -> None:
            (model,) = document["models"]
            model["config"]["unique_key"] = model["config"]["meta"]["scope"]["key"] = models.key
            model["data_tests"] = [{"unique_head": {"arguments": {"columns": [models.key]}}}]
            model["columns"] = [*({"name": c.name, "data_type": c.kind} for c in models.columns),
                                *model["columns"][-5:]]

        def kpi_yaml(document: Any) -> None:
            (model,) = document["models"]
            model["config"]["meta"]["grains"] = grains
            model["columns"] = [*model["columns"][:6], {"name": models.dimension, "data_type": "text"},
                                *model["columns"][-5:]]
            model["data_tests"] = []

        def activation(document: Any) -> None:
            document["version"] = models.activation
            columns = document["schema"][0]["properties"]
            columns[6]["name"] = models.dimension

        def specification(document: Any) -> None:
            document["metadata"]["version"] = models.kpi
            document["spec"]["formula"] = models.measure
            document["spec"]["grains"] = grains

        for path, change in ((GOLD, gold), (GDP_YAML, gdp_yaml), (KPI_YAML, kpi_yaml), (ACTIVATION, activation),
                             (SPECIFICATION, specification)):
            self._change(path, change)
        code_version.cache_clear()  # a command would be a process of its own

    def declare(self, **changes: Any) -> None:
        """Change what the manifest says of the source; None takes a field away."""
        def source(document: Any) -> None:
            (declared,) = document["spec"]["sources"]
            declared.update(changes)
            for field in [name for name, value in declared.items() if value is None]:
                del declared[field]

        self._change(MANIFEST, source)
        code_version.cache_clear()

    def declare_column(self, name: str, kind: str) -> None:
        """Let the source's contracts know one more column."""
        for layer in ("extraction", "raw"):
            self._change(f"contracts/datasets/{NAME}/orders/{layer}.yaml", lambda document: document["schema"][0][
                "properties"].append({"name": name, "physicalType": kind, "logicalType": _LOGICAL.get(kind, "number"),
                                      "classification": "internal", "description": name}))
        code_version.cache_clear()

    def accept_contracts(self) -> None:
        """A steward accepts what breaks somebody."""
        result = self.project.command("contracts", "sync", "--reason", "agreed with consumers")
        assert result.exit_code == 0, result.output

    def run(self, tenant: str = TENANT) -> RunOutcome:
        return self.project.run(NAME, tenant, DAY, DAY)

    def head(self, columns: Sequence[str], tenant: str = TENANT) -> dict[Any, tuple]:
        """The GDP's head rows by their first column."""
        rows = self.project.rows(
            f"select {', '.join(columns)} from gdp.{GDP} where tenant_id = $1 and valid_to_run is null", tenant)
        return {row[0]: row for row in rows}

    def month(self, tenant: str = TENANT) -> Decimal:
        """The published value of November."""
        return self.project.value(
            f"select value from published.{KPI} where tenant_id = $1 and grain = 'month'", tenant)

    def _change(self, path: str, change: Callable[[Any], None]) -> None:
        document = yaml.safe_load((self.home / path).read_text())
        change(document)
        self._write(path, yaml.safe_dump(document, sort_keys=False))

    def _write(self, path: str, text: str) -> None:
        (self.home / path).write_text(text)
