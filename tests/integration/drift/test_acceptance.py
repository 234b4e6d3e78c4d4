"""After an acceptance the same unit passes, and the next of its shape; one that would change nothing is refused."""

from __future__ import annotations

import csv
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from barecount_assets import drift_decisions, scaffold
from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import drift_register
from resources.governance.drift_register import Drift
from resources.runners.stage import Placement, Stage, StageSpec
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from tests.integration.drift.conftest import NOW, PROJECT

TENANT, DAY, EXAMPLES = "field_co", "2026-05-04", 5
FORMATS = ("csv", "jsonl", "parquet", "sqlite")
DECLARED = ("text", "bigint", "numeric(18,2)", "double precision", "boolean", "date", "timestamp", "json")
LOGICAL = {"text": "string", "bigint": "integer", "numeric(18,2)": "number", "double precision": "number",
           "boolean": "boolean", "date": "date", "timestamp": "timestamp", "json": "object"}
KINDS: dict[str, Callable[[random.Random], Any]] = {
    "word": lambda chance: chance.choice(["paid", "open", "é", "007"]),
    "whole": lambda chance: chance.randrange(-9, 10**6),
    "money": lambda chance: Decimal(chance.randrange(10**6)) / 100,
    "fine": lambda chance: chance.random() * 10**-7,
    "flag": lambda chance: chance.random() < 0.5,
    "day": lambda chance: f"2026-0{chance.randrange(1, 9)}-1{chance.randrange(9)}",
    "moment": lambda chance: f"2026-05-04 1{chance.randrange(9)}:00:00",
    "instant": lambda chance: f"2026-05-04T1{chance.randrange(9)}:00:00Z",
    "object": lambda chance: {"b": chance.randrange(9), "a": [None, "x"]},
    "list": lambda chance: [chance.randrange(9)],
    "nothing": lambda chance: None,
}
ARROW = {"whole": pa.int64(), "money": pa.decimal128(12, 2), "fine": pa.float64(), "flag": pa.bool_(),
         "nothing": pa.null(), "list": pa.list_(pa.int64()),
         "object": pa.struct([("b", pa.int32()), ("a", pa.list_(pa.string()))])}


@dataclass(frozen=True)
class Example:
    """Columns of a unit by the kind of their values, and the types a contract declares, for some of them."""

    kinds: dict[str, str]
    declared: dict[str, str]
    rows: int

    @classmethod
    def drawn(cls, chance: random.Random) -> Example:
        names = ["First", "second", "third col"][: chance.randrange(1, 4)]
        kinds = {name: chance.choice(list(KINDS)) for name in names}
        return cls(kinds, {name: chance.choice(DECLARED) for name in names if chance.random() < 0.7},
                   chance.choice([3, 12]))

    def records(self, chance: random.Random, first: int) -> list[dict[str, Any]]:
        return [{"id": first + n, "day": DAY, "amount": Decimal("1.50"),
                 **{name: KINDS[kind](chance) if chance.random() < 0.8 or kind == "nothing" else None
                    for name, kind in self.kinds.items()}} for n in range(self.rows)]


@dataclass
class Site:
    """A project with one pipeline for each example."""

    settings: Settings
    database: Database
    folder: Path

    @cached_property
    def environment(self) -> StageEnvironment:
        return StageEnvironment.using(self.settings, self.database)

    def ingest(self, pipeline: str) -> None:
        spec = StageSpec(Stage.INGESTION, TENANT, pipeline, Placement("container", "medium", "private_vpc"), "records",
                         (DAY, DAY))
        execute(spec, lambda *_: None, self.environment)

    def deliver(
        self, pipeline: str, form: str, name: str, records: list[dict[str, Any]], kinds: dict[str, str]
    ) -> None:
        folder = self.folder / pipeline
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.{form}"
        if form == "csv":
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(records[0])
                writer.writerows([[_cell(value) for value in record.values()] for record in records])
        elif form == "jsonl":
            path.write_text("".join(json.dumps(record, default=float) + "\n" for record in records))
        elif form == "parquet":
            types = {"id": pa.int64(), "day": pa.string(), "amount": pa.decimal128(18, 2)}
            pq.write_table(pa.table({
                column: pa.array([record[column] for record in records],
                                 types.get(column) or ARROW.get(kinds[column], pa.string()))
                for column in records[0]}), path)
        else:
            with sqlite3.connect(folder / "source.db") as source:
                columns = ", ".join(f'"{column}"' for column in records[0])
                source.execute(f"create table if not exists t ({columns})")
                marks = ", ".join("?" * len(records[0]))
                source.executemany(f"insert into t values ({marks})",
                                   [[_cell(value) for value in record.values()] for record in records])

    def drifts(self, pipeline: str) -> list[Drift]:
        """Those that somebody has to decide, and those that batches wait for."""
        with self.database.connect(autocommit=True) as connection:
            return [drift for drift in drift_register.listed(connection, pipeline=pipeline) if drift.waiting]

    def accept(self, drift: Drift) -> None:
        drift_decisions.accept(self.environment, drift.drift_id, by="ann", reason="declared", now=NOW)
        del self.environment

    def quarantined(self, pipeline: str) -> int:
        with self.database.connect(autocommit=True) as connection:
            return fetch(connection, "select coalesce(sum(b.quarantined), 0) from platform.raw_batch b "
                         "where b.pipeline = $1 and b.is_current", (pipeline,))[0][0]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, Decimal) else (
        json.dumps(value))


def _declare(project: Path, pipeline: str, form: str, folder: Path, example: Example) -> None:
    sample = folder / f"{pipeline}.csv"
    sample.write_text(f"id,day,amount\n1,{DAY},1.50\n")
    contents = scaffold.plan(project, scaffold.Request(
        pipeline, sample, "record", "id", "day", "amount", None, TENANT, "owner@field.example"))
    scaffold.write(project, contents)
    for layer in ("extraction", "raw"):
        path = project / f"contracts/datasets/{pipeline}/records/{layer}.yaml"
        document = yaml.safe_load(path.read_text())
        document["schema"][0]["properties"] += [
            {"name": f"c_{number}", "physicalName": name, "physicalType": kind, "logicalType": LOGICAL[kind],
             "classification": "internal", "description": name}
            for number, (name, kind) in enumerate(example.declared.items())]
        path.write_text(yaml.safe_dump(document, sort_keys=False))
    manifest = project / f"contracts/pipelines/{pipeline}.yaml"
    document = yaml.safe_load(manifest.read_text())
    (source,) = document["spec"]["sources"]
    named = {"name": source["name"], "dataset": source["dataset"]}
    document["spec"]["sources"] = [
        {**named, "connector": "sql", "dsn": f"sqlite:///{folder / pipeline / 'source.db'}", "table": "t"}
        if form == "sqlite" else
        {**named, "connector": "files", "path": str(folder / pipeline), "format": {"type": form}}]
    manifest.write_text(yaml.safe_dump(document, sort_keys=False))


@pytest.mark.parametrize("form", FORMATS)
def test_after_an_acceptance_the_unit_and_the_next_of_its_shape_pass(
    form: str, new_database: Callable[[], Database], tmp_path: Path
) -> None:
    project, folder = tmp_path / "project", tmp_path / "sources"
    folder.mkdir()
    shutil.copytree(PROJECT / "contracts/platform", project / "contracts/platform")
    shutil.copytree(PROJECT / "dbt_project", project / "dbt_project", ignore=shutil.ignore_patterns("target", "models"))
    (project / "dbt_project/models").mkdir()
    shutil.copyfile(PROJECT / "dbt_project/models/sources.yml", project / "dbt_project/models/sources.yml")
    chance = random.Random(f"drift in {form}")
    examples = {f"{form}_{number}": Example.drawn(chance) for number in range(EXAMPLES)}
    for pipeline, example in examples.items():
        _declare(project, pipeline, form, folder, example)
    site = Site(Settings(project, tmp_path / "data", str(tmp_path / "data/raw"), None), new_database(), folder)
    accepted = refused = 0
    for pipeline, example in examples.items():
        records = example.records(chance, 1)
        site.deliver(pipeline, form, "a", records, example.kinds)
        site.ingest(pipeline)
        for drift in site.drifts(pipeline):
            try:
                site.accept(drift)
            except BareCountError as error:
                assert error.code is ErrorCode.DRIFT_UNACCEPTABLE, (example, str(error))
                assert [d.status for d in site.drifts(pipeline)] == ["open"], "refused, and asked as before"
                refused += 1
                break
            accepted += 1
            site.ingest(pipeline)
            assert site.drifts(pipeline) == [], (pipeline, example, drift.changes)
        else:
            before = site.quarantined(pipeline)
            again = [{**record, "id": record["id"] + 100} for record in records]
            site.deliver(pipeline, form, "b", again, example.kinds)
            site.ingest(pipeline)
            assert site.drifts(pipeline) == [], (pipeline, example)
            assert site.quarantined(pipeline) == 2 * before, (pipeline, example)
    assert accepted, refused
