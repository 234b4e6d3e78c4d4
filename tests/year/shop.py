"""Writes a design as a project: the files that `barecount new` writes for a sample, edited as a person would."""

from __future__ import annotations

import copy
import datetime as dt
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from barecount_assets import scaffold
from tests.conftest import PROJECT
from tests.year.design import Column, Design

PIPELINE, DATASET, GDP, KPI = "shop", "shop.orders", "shop_order", "shop_amount"
FIRST, LAST = dt.date(2026, 1, 1), dt.date(2026, 12, 31)
"""The year that every run is about."""
HEADER = ("order_id", "ordered_at", "shop", "amount", "note")
SOURCES: Mapping[str, Mapping[str, Any]] = {
    "stock": {"connector": "files", "path": "{data_dir}/drop/stock", "file_name": "stock_{date}.csv",
              "format": {"type": "csv"}, "delivers": "snapshot"},
    "ledger": {"connector": "sql", "dsn": "${env:YEAR_TABLES}", "table": "ledger", "cursor_column": "seq",
               "overlap": 5},
    "till": {"connector": "sql", "dsn": "${env:YEAR_TABLES}", "table": "till"},
}
"""What the pipelines beside the shop read: whole states as files, a table by a cursor, a table whole."""
MODEL = Path("dbt_project/models/gdp/shop/shop_order.sql")
_CHOSEN = re.compile(r"(?<=chosen as \(\n    select\n)(.*?)(?=,\n +[^\n]* as business_date\n)", re.DOTALL)
_LOGICAL = {"bigint": "integer", "text": "string", "timestamptz": "timestamp", "timestamp": "timestamp", "date": "date"}


class Shop:
    """A project of the shop in a folder of its own.

    Attributes:
        folder: the project.
        drop: folder where the files of a tenant arrive, as a template.
    """

    def __init__(self, folder: Path, drop: str, tenants: tuple[str, ...], samples: Mapping[str, Path]) -> None:
        """Make the project from a sample file of each pipeline."""
        self.folder, self.drop, self._tenants = folder, drop, tenants
        for part in ("macros", "tests/generic"):
            shutil.copytree(PROJECT / "dbt_project" / part, folder / "dbt_project" / part)
        for name in ("dbt_project.yml", "profiles.yml"):
            shutil.copyfile(PROJECT / "dbt_project" / name, folder / "dbt_project" / name)
        for part in ("contracts/platform", "contracts/policies", "deploy/environments"):
            shutil.copytree(PROJECT / part, folder / part)
        self._platform_sources()
        request = scaffold.Request(PIPELINE, samples[PIPELINE], "order", "order_id", "ordered_at", "amount", "shop",
                                   tenants[0], "owner@shop.example")
        self._files = scaffold.plan(folder, request)
        self._beside = {
            pipeline: scaffold.plan(folder, replace(request, pipeline=pipeline, path=samples[pipeline], entity="row"))
            for pipeline in SOURCES}

    def at(self, folder: Path) -> Shop:
        """The same shop, in a copy of its folder."""
        other = copy.copy(self)
        other.folder = folder
        return other

    def declare(self, design: Design) -> None:
        """Write every file as the design has it."""
        edits: dict[str, Callable[[dict[str, Any], Design], None]] = {
            "extraction.yaml": self._source_contract, "raw.yaml": self._source_contract, "gold.yaml": self._gold,
            f"gdp/{PIPELINE}/{PIPELINE}.yml": self._gdp, f"pipelines/{PIPELINE}.yaml": self._manifest,
            f"kpis/{PIPELINE}/{KPI}.yaml": self._kpi,
        }
        for path, text in self._files.items():
            edit = next((edit for end, edit in edits.items() if path.as_posix().endswith(end)), None)
            if "tenants" in path.parts:
                for tenant in self._tenants:
                    document = yaml.safe_load(text)
                    document["metadata"].update(id=tenant, name=tenant)
                    document["spec"]["timezone"] = design.zone if tenant == self._tenants[0] else Design().zone
                    self._write(path.with_name(f"{tenant}.yaml"), document)
            elif edit is not None:
                document = yaml.safe_load(text)
                edit(document, design)
                self._write(path, document)
            elif path == MODEL:
                self._write(path, self._gdp_model(text, design))
            elif path.name == f"{KPI}.sql":
                self._write(path, self._kpi_model(text, design))
            else:
                self._write(path, text)

        for pipeline, files in self._beside.items():
            for path, text in files.items():
                if "pipelines" in path.parts:
                    document = yaml.safe_load(text)
                    document["spec"]["partitions"]["start"] = FIRST
                    document["spec"]["transforms"]["engine"] = design.engine
                    source = document["spec"]["sources"][0]
                    document["spec"]["sources"] = [{"name": source["name"], "dataset": source["dataset"],
                                                    **SOURCES[pipeline]}]
                    self._write(path, document)
                elif "tenants" not in path.parts:
                    self._write(path, text)

    def _write(self, path: Path, content: str | dict[str, Any]) -> None:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False, width=110)
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)

    def _platform_sources(self) -> None:
        """The relations that the platform fills, without the raw datasets of the shipped pipelines."""
        document = yaml.safe_load((PROJECT / "dbt_project/models/sources.yml").read_text())
        document["sources"] = [source for source in document["sources"] if source["name"] in ("platform", "gdp")]
        self._write(Path("dbt_project/models/sources.yml"), document)

    # What a design changes ------------------------------------------------------------------------------

    def _source_contract(self, document: dict[str, Any], design: Design) -> None:
        layer = document["id"].rpartition(".")[2]
        document["version"] = f"1.{design.versions['raw']}.0"
        properties = {field["name"]: field for field in document["schema"][0]["properties"]}
        document["schema"][0]["properties"] += [
            {"name": name, "physicalName": name, "logicalType": "string", "physicalType": "text",
             "classification": "internal", "description": f"{name}."} for name in design.declared]
        if layer == "raw":
            rule = design.rules[-1]
            properties["amount"]["logicalTypeOptions"] = {"minimum": float(rule.minimum)}
            document["customProperties"].append(
                {"property": "applies", "value": f"from {rule.since}" if rule.since else "all"})

    def _gold(self, document: dict[str, Any], design: Design) -> None:
        document["version"] = f"1.{design.versions['gold']}.0"
        schema = document["schema"][0]
        day = schema["properties"][-1]
        schema["properties"] = [self._property(column) for column in design.columns] + [day]

    def _property(self, column: Column) -> dict[str, Any]:
        declared = {"name": column.name, "logicalType": _LOGICAL.get(column.kind, "number"),
                    "physicalType": column.kind, "classification": "internal", "description": f"{column.source}."}
        return {**declared, "required": True} if column.source == "order_id" else declared

    def _gdp(self, document: dict[str, Any], design: Design) -> None:
        (model,) = document["models"]
        stamps = model["columns"][-6:]  # the day, and what every GDP has
        model["columns"] = [
            {"name": column.name, "data_type": column.kind, "description": f"{column.source}.",
             **({"data_tests": ["not_null"]} if column.source == "order_id" else {})}
            for column in design.columns
        ] + stamps

    def _gdp_model(self, text: str, design: Design) -> str:
        columns = ",\n".join(
            f"        {column.source}" + (f" as {column.name}" if column.name != column.source else "")
            for column in design.columns)
        written, count = _CHOSEN.subn(columns, text)
        assert count == 1, text
        return written

    def _kpi(self, document: dict[str, Any], design: Design) -> None:
        document["metadata"]["version"] = f"1.{design.versions['kpi']}.0"

    def _kpi_model(self, text: str, design: Design) -> str:
        shop, amount = design.column_of("shop"), design.column_of("amount")
        assert shop is not None and amount is not None
        times = f" * {design.factor}" if design.factor != 1 else ""
        text = text.replace("sum(amount) as amount", f"sum({amount.name}){times} as amount")
        text = text.replace("cast(shop as", f"cast({shop.name} as")
        return text.replace("group by business_date, shop", f"group by business_date, {shop.name}")

    def _manifest(self, document: dict[str, Any], design: Design) -> None:
        document["metadata"]["version"] = f"1.{design.versions['manifest']}.0"
        spec = document["spec"]
        spec["partitions"]["start"] = FIRST
        spec["tenants"] = list(self._tenants)
        spec["transforms"]["engine"] = design.engine
        whole, unit = design.tolerated
        spec["slos"]["completeness"] = {"max_refused": whole, "max_refused_per_unit": unit, "on_breach": "hold"}
        spec["sources"][0].update(path=self.drop, file_name="orders_{date}*.csv")
