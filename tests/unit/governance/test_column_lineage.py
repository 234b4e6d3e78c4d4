"""Column lineage: what a column comes from, through everything SQL offers, and what cannot be known is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resources.governance import column_lineage, declarations, lineage_lock
from resources.governance.column_lineage import Dependency, ProjectLineage, Unresolved, of_model, run_variables
from resources.governance.contracts import Contract
from resources.governance.declarations import Declarations

PROJECT = Path(__file__).resolve().parents[3]
SCHEMA = {
    "raw": {"shop__sales": {"id": "text", "buyer": "text", "amount": "numeric", "sold_on": "date"}},
    "gdp": {"person": {"person_id": "text", "name": "text"}},
}


def found(sql: str, column: str = "x") -> set[str]:
    """Dependencies of a column, each as `KIND SUBTYPE [MASKED] asset.column`."""
    columns, unresolved = of_model("gdp.model", sql, SCHEMA, [column])
    assert not unresolved
    return {" ".join(filter(None, (d.kind, d.subtype, "MASKED" if d.masked else "", d.name))) for d in columns[column]}


def problems(sql: str, column: str = "x") -> list[str]:
    return [problem.message for problem in of_model("gdp.model", sql, SCHEMA, [column])[1]]


SALES = "raw.shop.sales"


@pytest.mark.parametrize(("expression", "expected"), [
    ("buyer", {f"DIRECT IDENTITY {SALES}.buyer"}),
    ("upper(trim(buyer))", {f"DIRECT TRANSFORMATION {SALES}.buyer"}),
    ("buyer || '-' || id", {f"DIRECT TRANSFORMATION {SALES}.buyer", f"DIRECT TRANSFORMATION {SALES}.id"}),
    ("cast(sold_on as text)", {f"DIRECT TRANSFORMATION {SALES}.sold_on"}),
    ("sha256(convert_to(buyer, 'UTF8'))", {f"DIRECT TRANSFORMATION MASKED {SALES}.buyer"}),
    ("md5(buyer)", {f"DIRECT TRANSFORMATION MASKED {SALES}.buyer"}),
    ("case when amount > 0 then buyer else 'nobody' end",
     {f"INDIRECT CONDITIONAL {SALES}.amount", f"DIRECT TRANSFORMATION {SALES}.buyer",
      "DIRECT TRANSFORMATION constant.'nobody'"}),
    ("row_number() over (partition by buyer order by sold_on)",
     {f"INDIRECT WINDOW {SALES}.buyer", f"INDIRECT WINDOW {SALES}.sold_on"}),
    ("'GBP'", {"DIRECT IDENTITY constant.'GBP'"}),
    ("cast(null as text)", {"DIRECT IDENTITY constant.NULL"}),
    ("(select max(p.name) from gdp.person p where p.person_id = s.buyer)",
     {"DIRECT AGGREGATION gdp.person.name", "INDIRECT CONDITIONAL gdp.person.*",
      "INDIRECT CONDITIONAL gdp.person.person_id", f"INDIRECT CONDITIONAL {SALES}.buyer"}),
    ("exists (select 1 from gdp.person p where p.person_id = s.buyer)",
     {"INDIRECT CONDITIONAL gdp.person.*", "INDIRECT CONDITIONAL gdp.person.person_id",
      f"INDIRECT CONDITIONAL {SALES}.buyer"}),
])
def test_an_expression_comes_from_what_is_in_it(expression: str, expected: set[str]) -> None:
    assert found(f"select {expression} as x from raw.shop__sales s") == expected


@pytest.mark.parametrize(("aggregate", "expected"), [
    ("sum(amount)", f"DIRECT AGGREGATION {SALES}.amount"),
    ("max(buyer)", f"DIRECT AGGREGATION {SALES}.buyer"),
    ("count(distinct buyer)", f"DIRECT AGGREGATION MASKED {SALES}.buyer"),
    ("count(*)", f"DIRECT AGGREGATION MASKED {SALES}.*"),
])
def test_a_count_masks_what_it_counts_and_a_maximum_shows_it(aggregate: str, expected: str) -> None:
    assert found(f"select {aggregate} as x from raw.shop__sales group by sold_on") == {expected}


def test_stars_ctes_unions_and_derived_tables_are_followed() -> None:
    sql = """
        with named as (select s.*, p.name from raw.shop__sales s left join gdp.person p on p.person_id = s.buyer),
        both_kinds as (select id, name from named union all select person_id, 'unknown' from gdp.person)
        select x from (select b.name as x from both_kinds b) as derived
    """
    assert found(sql) == {"DIRECT IDENTITY gdp.person.name", "DIRECT IDENTITY constant.'unknown'"}


def test_which_rows_there_are_depends_on_joins_filters_and_groups() -> None:
    columns, _ = of_model("gdp.model", """
        select p.name from raw.shop__sales s join gdp.person p on p.person_id = s.buyer
        where s.amount > 0 group by p.name
    """, SCHEMA, ["name"])
    assert {(d.subtype, d.name) for d in columns["*"]} == {
        ("ROWS", "gdp.person.*"), ("ROWS", f"{SALES}.*"), ("JOIN", "gdp.person.person_id"), ("JOIN", f"{SALES}.buyer"),
        ("FILTER", f"{SALES}.amount"), ("GROUP_BY", "gdp.person.name"),
    }
    assert all(d.kind == "INDIRECT" for d in columns["*"])


def test_what_a_run_is_given_has_a_name() -> None:
    given = run_variables(["revenue"], {})
    sql = f"""select '{given["tenant"]}' as a, cast({given["run_id"]} as bigint) as b,
        '{given["kpi_versions"]["revenue"]}' as c from gdp.person"""
    columns, unresolved = of_model("gdp.model", sql, SCHEMA, ["a", "b", "c"])
    assert not unresolved
    names = [dependency.name for column in ("a", "b", "c") for dependency in columns[column]]
    assert names == ["variable.tenant", "variable.run_id", "variable.kpi_versions.revenue"]


@pytest.mark.parametrize(("sql", "message"), [
    ("select buyers as x from raw.shop__sales", "column buyers is of no relation"),
    ("select s.buyers as x from raw.shop__sales s join gdp.person p on true", "buyers"),
    ("select id as y from raw.shop__sales", "no such column"),
    ("select now() as x from raw.shop__sales", "another value every time"),
    ("select gen_random_uuid() as x from raw.shop__sales", "another value every time"),
    ("select from where", "cannot be read"),
    ("select x from unknown_function_table() as t(y)", "x"),
])
def test_a_column_that_cannot_be_resolved_is_a_finding(sql: str, message: str) -> None:
    assert any(message in problem for problem in problems(sql)), problems(sql)


def test_a_model_without_sql_is_a_finding() -> None:
    assert of_model("gdp.model", None, SCHEMA, ["x"]) == ({}, [
        Unresolved("gdp.model", "*", "dbt does not compile the model")])


@pytest.fixture(scope="module")
def shipped() -> ProjectLineage:
    declared = declarations.load(PROJECT)
    lineage = lineage_lock.read(PROJECT / lineage_lock.PLACE, column_lineage.fingerprint(declared))
    assert lineage is not None, "models or contracts changed: run `barecount lineage compile` and commit its file"
    return lineage


def test_every_published_column_comes_from_sources_constants_run_variables_or_the_calendar(
    shipped: ProjectLineage
) -> None:
    assert shipped.unresolved == ()
    declared = declarations.load(PROJECT)
    for manifest in declared.pipelines.values():
        for kpi in manifest.spec.kpis:
            for column in declared.contract(f"{manifest.name}.{kpi}", "activation").column_names:
                ends = {d.asset.partition(".")[0] if d.asset != "gdp.calendar" else "calendar"
                        for d in shipped.upstream(f"published.{kpi}", column)
                        if d.asset not in shipped.assets or d.column.startswith("_")}
                assert ends, f"published.{kpi}.{column} comes from nothing"
                assert ends <= {"source", "raw", "calendar", "constant", "variable", "platform"}, (kpi, column, ends)


@pytest.mark.parametrize(("column", "source"), [
    ("published.revenue.value", "source.order_to_cash.invoices.NetAmount"),
    ("published.dso.value", "source.order_to_cash.payments.amount"),
    ("published.net_sales.value", "source.online_retail.invoices.UnitPrice"),
    ("published.active_customers.value", "source.online_retail.invoices.Customer ID"),
])
def test_a_published_value_leads_to_the_field_of_the_source(
    shipped: ProjectLineage, column: str, source: str
) -> None:
    asset, _, name = column.rpartition(".")
    names = {dependency.name for dependency in shipped.upstream(asset, name)}
    assert any(found.lower().replace(" ", "") == source.lower().replace(" ", "") for found in names), sorted(names)


def test_lineage_survives_its_file_and_a_file_of_something_else_does_not_count(
    shipped: ProjectLineage, tmp_path: Path
) -> None:
    path = tmp_path / "lineage.json"
    lineage_lock.write(path, shipped)
    assert lineage_lock.read(path, shipped.fingerprint) == shipped
    assert lineage_lock.read(path, "another") is None
    path.write_text('{"fingerprint": "' + shipped.fingerprint + '", "assets": 3}')
    assert lineage_lock.read(path, shipped.fingerprint) is None


def test_raw_data_may_grow_without_compiling_models_again_and_may_not_lose_what_they_read(
    shipped: ProjectLineage
) -> None:
    declared = declarations.load(PROJECT)
    contract = declared.contract("order_to_cash.invoices", "raw")
    more = replace(contract, columns=(*contract.columns, replace(contract.columns[0], name="discount_pct")))
    less = replace(contract, columns=tuple(c for c in contract.columns if c.name != "net_amount"))

    def now(changed: Contract) -> Declarations:
        return replace(declared, contracts={**declared.contracts, ("order_to_cash.invoices", "raw"): changed})

    assert column_lineage.fingerprint(now(more)) == shipped.fingerprint
    grown = column_lineage.with_raw(shipped, now(more))
    assert grown is not None and "discount_pct" in grown.assets["raw.order_to_cash.invoices"].columns
    assert column_lineage.with_raw(shipped, declared) == shipped
    assert column_lineage.with_raw(shipped, now(less)) is None


def test_dependencies_are_written_and_read_whatever_their_names() -> None:
    odd = (Dependency("constant", "'a. b MASKED'"), Dependency("source.a.b", "Customer ID", masked=True))
    asset = column_lineage.AssetLineage("gdp.m", "p.normalization", {"x": odd})
    lineage = ProjectLineage("f", {"gdp.m": asset})
    assert ProjectLineage.from_json(lineage.to_json()).assets["gdp.m"].columns["x"] == odd
