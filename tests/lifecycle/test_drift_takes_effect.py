"""A decision on drift takes effect: nested data, months of Parquet that differ, and what databases alone have."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from barecount_assets import scaffold
from resources.governance import drift_register
from resources.runtime.database import fetch
from resources.runtime.settings import code_version
from tests.lifecycle.conftest import PROJECT, Project

NAME, TENANT, GDP, KPI = "stall", "stall_keeper", "stall_sale", "stall_amount"
FIRST, LAST = dt.date(2026, 5, 1), dt.date(2026, 6, 30)
NUMBER = "numeric(18,2)"
_LOGICAL = {"text": "string", NUMBER: "number"}
ENGINES = ("postgres", "duckdb")


@dataclass(frozen=True)
class Stall:
    """A pipeline as `barecount new` writes it from a first file."""

    project: Project
    source: Path

    @classmethod
    def make(
        cls, folder: Path, new_project: Callable[..., Project], engine: str, first: Callable[[Path], None],
        kind: str = "text", **columns: str,
    ) -> Stall:
        """`first` writes the sample; `columns`: SQL of some of the GDP's columns, which are all of type `kind`."""
        home, source = folder / "project", folder / "source"
        source.mkdir(parents=True)
        for part in ("contracts/platform", "deploy", "dbt_project/macros", "dbt_project/tests/generic"):
            shutil.copytree(PROJECT / part, home / part)
        for file in ("dbt_project.yml", "profiles.yml", "models/sources.yml"):
            (home / "dbt_project" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / "dbt_project" / file, home / "dbt_project" / file)
        first(source)
        scaffold.write(home, scaffold.plan(home, scaffold.Request(
            NAME, source, "sale", "id", "day", "amount", None, TENANT, "owner@stall.example")))
        model = home / f"dbt_project/models/gdp/{NAME}/{GDP}.sql"
        text = model.read_text()
        for column, expression in columns.items():
            assert f" {column},\n" in text
            text = text.replace(f" {column},\n", f" {expression} as {column},\n")
        model.write_text(text)
        for path in (f"contracts/datasets/{NAME}/{GDP}/gold.yaml", f"dbt_project/models/gdp/{NAME}/{NAME}.yml"):
            document = yaml.safe_load((home / path).read_text())
            declared = document["schema"][0]["properties"] if "gold" in path else document["models"][0]["columns"]
            for column in declared:
                if column["name"] in columns:
                    column.update({"physicalType": kind, "logicalType": _LOGICAL[kind]} if "gold" in path
                                  else {"data_type": kind})
            (home / path).write_text(yaml.safe_dump(document, sort_keys=False))
        stall = cls(new_project(home), source)
        stall.change(lambda manifest: manifest["spec"]["transforms"].update(engine=engine))
        return stall

    def change(self, change: Callable[[Any], None]) -> None:
        """Change the manifest."""
        path = self.project.settings.project_dir / f"contracts/pipelines/{NAME}.yaml"
        document = yaml.safe_load(path.read_text())
        change(document)
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        code_version.cache_clear()  # a command would be a process of its own

    def run(self) -> str:
        """The error's code, or nothing."""
        outcome = self.project.run(NAME, TENANT, FIRST, LAST)
        return "" if outcome.error is None else outcome.error.code.value

    def publishes(self) -> dict[str, Decimal]:
        """Runs, and what is published by month."""
        outcome = self.project.run(NAME, TENANT, FIRST, LAST)
        assert outcome.error is None, outcome.error
        return dict(self.project.rows(
            f"select period, value from published.{KPI} where tenant_id = $1 and grain = 'month'", TENANT))

    def waiting(self) -> list[drift_register.Drift]:
        with self.project.database.connect(autocommit=True) as connection:
            return [drift for drift in drift_register.listed(connection, tenant_id=TENANT) if drift.waiting]

    def accept(self) -> Any:
        """The command, on the one drift that waits; before it, what it would show."""
        (drift,) = self.waiting()
        shown = json.loads(self.project.command("drift", "show", str(drift.drift_id), "--json").output)
        assert any(candidate["changed"] and candidate["words"] for candidate in shown["candidates"]), shown
        result = self.project.command("drift", "accept", str(drift.drift_id), "--reason", "declared")
        assert result.exit_code == 0, result.output
        return shown

    def head(self, *columns: str) -> list[tuple]:
        return self.project.rows(
            f"select id, {', '.join(columns)} from gdp.{GDP} where tenant_id = $1 and valid_to_run is null order by id",
            TENANT)

    def types(self, layer: str = "raw") -> dict[str, str]:
        contract = self.project.environment.declarations.contract(f"{NAME}.sales", layer)
        return {column.name: column.physical_type for column in contract.columns}


def lines(source: Path, name: str, *records: dict[str, Any]) -> None:
    (source / name).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("engine", ENGINES)
def test_nested_json_is_accepted_once_and_its_parts_reach_the_gdp(
    new_project: Callable[..., Project], tmp_path: Path, engine: str
) -> None:
    stall = Stall.make(
        tmp_path, new_project, engine,
        lambda source: lines(source, "0.jsonl", {"id": "a0", "day": "2026-05-03", "amount": 1.25, "customer": None}),
        customer="{{ json_field('customer', 'name') }}")
    assert stall.publishes() == {"2026-05": Decimal("1.25")}
    lines(stall.source, "a.jsonl",
          {"id": "a1", "day": "2026-05-04", "amount": 5.00, "customer": {"name": "Ann", "tier": 2}, "tags": ["x"]},
          {"id": "a2", "day": "2026-05-04", "amount": 7.50, "customer": None, "tags": []})
    assert stall.run() == "contract.schema_drift"
    assert "drift" in stall.project.command("drift", "list").output
    stall.accept()
    assert stall.types()["customer"] == stall.types()["tags"] == "json"
    assert stall.publishes() == {"2026-05": Decimal("13.75")} and stall.waiting() == []
    lines(stall.source, "b.jsonl",
          {"id": "b1", "day": "2026-05-05", "amount": 9.00, "customer": {"tier": 1, "name": "Bob"},
           "tags": ["z", 2]})
    assert stall.publishes() == {"2026-05": Decimal("22.75")} and stall.waiting() == []
    assert stall.head("customer") == [("a0", None), ("a1", "Ann"), ("a2", None), ("b1", "Bob")]
    assert stall.project.rows(f"select tags from raw.{NAME}__sales where id = 'b1'") == [('["z",2]',)]
    assert stall.project.command("explain", f"{NAME}.{KPI}", "--period", "2026-05", "--tenant", TENANT).exit_code == 0


def month(source: Path, name: str, **columns: pa.Array) -> None:
    pq.write_table(pa.table(columns), source / name)


def moments(unit: str, *days: str) -> pa.Array:
    return pa.array([dt.datetime.fromisoformat(day) for day in days], pa.timestamp(unit))


def money(*values: str) -> pa.Array:
    return pa.array(map(Decimal, values), pa.decimal128(18, 2))


@pytest.mark.parametrize("engine", ENGINES)
def test_months_of_other_precision_names_and_null_columns_are_one_dataset(
    new_project: Callable[..., Project], tmp_path: Path, engine: str
) -> None:
    def may(source: Path, amount: str = "12.25") -> None:
        month(source, "trips-a.parquet", id=pa.array(["a", "b"]), day=moments("ns", "2026-05-05", "2026-05-06"),
              passengers=pa.array([1, 2]), airport_fee=pa.nulls(2), amount=money("10.50", amount))

    stall = Stall.make(tmp_path, new_project, engine, may, NUMBER, passengers=f"cast(passengers as {NUMBER})",
                       airport_fee=f"cast(airport_fee as {NUMBER})")
    assert stall.publishes() == {"2026-05": Decimal("22.75")}
    month(stall.source, "trips-b.parquet", id=pa.array(["c", "d"]).dictionary_encode(), amount=money("7.10", "8.20"),
          day=moments("us", "2026-06-05", "2026-06-06"), passengers=pa.array([1.0, 1.5]),
          Airport_fee=pa.array([1.25, 0.0]))
    assert stall.run() == "contract.schema_drift"
    shown = stall.accept()
    assert "field airport_fee comes under the name Airport_fee" in json.dumps(shown)
    assert (stall.types()["passengers"], stall.types()["airport_fee"]) == ("double precision", "double precision")
    assert stall.publishes() == {"2026-05": Decimal("22.75"), "2026-06": Decimal("15.30")}
    assert stall.waiting() == []
    may(stall.source, "13.00")  # again in its own shape, with a correction
    assert stall.publishes() == {"2026-05": Decimal("23.50"), "2026-06": Decimal("15.30")}
    assert stall.waiting() == []
    assert stall.head("passengers", "airport_fee") == [
        ("a", Decimal(1), None), ("b", Decimal(2), None), ("c", Decimal(1), Decimal("1.25")),
        ("d", Decimal("1.5"), Decimal(0))]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_as_new_writes_it_goes_on_with_an_accepted_type(
    new_project: Callable[..., Project], tmp_path: Path, engine: str
) -> None:
    def may(source: Path) -> None:
        month(source, "trips-a.parquet", id=pa.array(["a", "b"]), day=moments("us", "2026-05-05", "2026-05-06"),
              tip=pa.nulls(2), amount=pa.array([10.1, 12.2]))

    stall = Stall.make(tmp_path, new_project, engine, may)
    assert stall.publishes() == {"2026-05": Decimal("22.3")}
    month(stall.source, "trips-b.parquet", id=pa.array(["c"]), day=moments("us", "2026-06-05"),
          tip=pa.array([1.25]), amount=pa.array([7.1]))
    assert stall.run() == "contract.schema_drift"
    stall.accept()
    assert stall.types()["tip"] == "double precision"
    assert stall.publishes() == {"2026-05": Decimal("22.3"), "2026-06": Decimal("7.1")}
    assert stall.head("tip", "amount") == [
        ("a", None, Decimal("10.1")), ("b", None, Decimal("12.2")), ("c", "1.25", Decimal("7.1"))]


SOURCE = """
create schema {schema};
create type {schema}.mood as enum ('glad', 'sad');
create table {schema}.sales (id text primary key, day date, amount numeric, feeling {schema}.mood, about jsonb,
    tags text[], counts int[], host inet, took interval, picture bytea, ref uuid);
insert into {schema}.sales
select 's' || n, date '2026-05-04', n * 1.5, 'glad', jsonb_build_object('b', 1.10, 'a', n), array['x', 'y"'], array[n],
    '10.0.0.1', interval '1 day 2 hours', '\\x00ff', ('00000000-0000-0000-0000-00000000000' || n)::uuid
from generate_series(1, 3) as n;
update {schema}.sales set amount = 1.234 where id = 's3';
"""


def test_what_only_databases_have_is_held_as_declared_beside_a_refused_value(
    new_project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("about", "tags", "counts", "feeling", "host", "took", "picture", "ref")

    def sample(source: Path) -> None:
        (source / "s.csv").write_text(
            "id,day,amount," + ",".join(names) + "\ns0,2026-05-03,1.50," + ",".join("x" * len(names)) + "\n")

    stall = Stall.make(tmp_path, new_project, "postgres", sample)
    monkeypatch.setenv("SHOP_DSN", stall.project.database.admin_url)
    with psycopg.connect(stall.project.database.admin_url, autocommit=True) as connection:
        connection.execute(SOURCE.format(schema="shop").encode())

    def from_database(manifest: Any) -> None:
        (source,) = manifest["spec"]["sources"]
        manifest["spec"]["sources"] = [{
            "name": source["name"], "dataset": source["dataset"], "connector": "sql", "table": "shop.sales",
            "dsn": "${env:SHOP_DSN}"}]
        manifest["spec"]["slos"]["completeness"] = {"max_refused": 1}

    stall.change(from_database)
    assert stall.publishes() == {"2026-05": Decimal("4.50")}, "one value is refused, and marks no other column"
    assert stall.waiting() == []
    with stall.project.database.connect(autocommit=True) as connection:
        assert fetch(connection, "select field, count(*) from platform.quarantine group by 1", ()) == [("amount", 1)]
    for layer in ("extraction", "raw"):  # a steward declares what two of them are
        file = stall.project.settings.project_dir / f"contracts/datasets/{NAME}/sales/{layer}.yaml"
        document = yaml.safe_load(file.read_text())
        document["version"] = "2.0.0"
        for declared in document["schema"][0]["properties"]:
            if declared["name"] in ("about", "tags", "counts"):
                declared.update(physicalType="json", logicalType="object" if declared["name"] == "about" else "array")
        file.write_text(yaml.safe_dump(document, sort_keys=False))
    code_version.cache_clear()
    assert stall.project.command("contracts", "sync", "--reason", "what they are").exit_code == 0
    with psycopg.connect(stall.project.database.admin_url, autocommit=True) as connection:
        connection.execute("update shop.sales set amount = 2.00, tags = null where id = 's1'")
    assert stall.publishes() == {"2026-05": Decimal("5.00")} and stall.waiting() == []
    newest = (f"select {', '.join(names)} from raw.{NAME}__sales__stamped where id = $1 and _is_current "
              "order by _batch_id desc limit 1")
    assert stall.project.rows(newest, "s1") == [(
        '{"a":1,"b":1.10}', None, "[1]", "glad", "10.0.0.1/32", "P1DT2H", "\\x00ff",
        "00000000-0000-0000-0000-000000000001")]
    assert stall.project.rows(newest, "s2")[0][1] == '["x","y\\""]'
