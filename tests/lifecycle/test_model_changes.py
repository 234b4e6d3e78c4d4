"""A changed model computes what it touches again, whole: its columns are part of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from barecount_assets.stages.verification import Normalized, evidence, verify_gdps
from resources.runtime.database import fetch
from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import Project
from tests.lifecycle.shop import GDP, KPI, NAME, ORDERS, TENANT, Column, Models, Order, Shop, upgrade


@pytest.fixture(params=["postgres", "duckdb"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, new_project: Callable[..., Project]) -> Shop:
    return Shop.make(tmp_path, new_project, request.param)


def published(shop: Shop) -> Decimal:
    """Run, and give the value of the month; everything ever computed must still be proven."""
    outcome = shop.run()
    assert outcome.error is None, outcome.error
    assert unproven(shop) == []
    result = shop.project.command("explain", f"{NAME}.{KPI}", "--tenant", TENANT, "--period", "2026-11")
    assert result.exit_code == 0, result.output
    return shop.month()


def unproven(shop: Shop) -> list[str]:
    """Comparisons that fail, of every normalization that was ever committed."""
    declarations = shop.project.environment.declarations
    with shop.project.database.connect(autocommit=True) as connection:
        runs = fetch(connection, "select run_id, evidence_seq from platform.stage_run "
                                 "where tenant_id = $1 and stage = 'normalization'", (TENANT,))
        return [item.name for run_id, seq in runs for item in verify_gdps(
            connection, declarations, Normalized(NAME, TENANT, run_id, evidence(connection, TENANT, seq)))
            if not item.ok]


def test_a_renamed_column_keeps_the_value(shop: Shop) -> None:
    assert published(shop) == Decimal("19.75")
    renamed = Models(gold="2.0.0").column("status", name="order_status")
    shop.edit(replace(renamed, measure="sum(case when order_status = 'paid' then amount else 0 end)"))
    shop.accept_contracts()
    assert published(shop) == Decimal("19.75")
    assert {row[1] for row in shop.head(["order_id", "order_status"]).values()} == {"paid", "open"}


def next_state(models: Models, number: int, **changes: object) -> Models:
    """A changed state under new versions of everything."""
    version = f"{number}.0.0"
    return replace(models, gold=version, kpi=version, activation=version, **changes)  # type: ignore[arg-type]


def without(models: Models, *names: str) -> tuple[Column, ...]:
    return tuple(column for column in models.columns if column.name not in names)


START = Models()
NOTE = Column("note", "text", "'order ' || cast(order_id as text)")
EDITS: dict[str, Callable[[Models], Models]] = {
    "add": lambda m: replace(m, columns=(*m.columns, NOTE)),
    "drop": lambda m: replace(m, columns=without(m, "note")),
    "add again": lambda m: replace(m, columns=(NOTE, *m.columns)),
    "reorder": lambda m: replace(m, columns=tuple(reversed(m.columns))),
    "finer": lambda m: m.column("amount", kind="numeric(18,4)", sql="amount / 8"),
    "coarser": lambda m: m.column("amount", kind="numeric(18,2)", sql="amount"),
    "text to date": lambda m: m.column("note", kind="date", sql="cast(ordered_at as date)"),
    "date to text": lambda m: m.column("note", kind="text", sql="status"),
    "expression": lambda m: m.column("amount", sql="amount * 2"),
    "key": lambda m: replace(m.column("order_id", name="order_number"), key="order_number"),
    "key back": lambda m: replace(m.column("order_number", name="order_id"), key="order_id"),
    "two swap names": lambda m: replace(
        m.column("customer", name="held").column("status", name="customer").column("held", name="status"),
        measure="sum(case when customer = 'paid' then amount else 0 end)"),
    "swap back": lambda m: START,
    "dimension": lambda m: replace(m.column("customer", name="buyer"), dimension="buyer"),
}
VALUES = {"finer": "2.468800", "expression": "39.50", "key": "39.50", "key back": "39.50", "two swap names": "39.50"}


def test_any_edit_from_any_state_gives_what_a_build_from_nothing_gives(shop: Shop) -> None:
    models = START
    assert published(shop) == Decimal("19.75")
    for number, (name, edit) in enumerate(EDITS.items(), start=2):
        models = next_state(edit(models), number)
        shop.edit(models)
        shop.accept_contracts()
        assert published(shop) == Decimal(VALUES.get(name, "19.75")), name
        head = shop.head([models.key, *(c.name for c in models.columns)])
        assert set(head) == {1, 2, 3}, name
        assert all(value is not None for row in head.values() for value in row), name
    rows = shop.project.rows(f"select buyer, sum(value) from published.{KPI} where grain = 'by_dimension' group by 1")
    assert dict(rows) == {"Ada": Decimal("19.75"), "Bob": 0}


def test_a_column_that_is_gone_cannot_be_read_by_mistake(shop: Shop) -> None:
    published(shop)
    shop.edit(Models(gold="2.0.0").column("status", name="order_status"))  # the KPI still reads `status`
    shop.accept_contracts()
    outcome = shop.run()
    assert outcome.error is not None and outcome.error.code is ErrorCode.TRANSFORM_FAILED
    assert "status" in outcome.error.message
    assert shop.month() == Decimal("19.75")


def test_a_publication_that_could_not_be_explained_is_refused(shop: Shop) -> None:
    published(shop)
    shop.project.as_owner(f"update gdp.{GDP} set amount = amount + 1 where order_id = 1")
    shop.edit(Models(kpi="1.1.0", measure="sum(amount)"))
    outcome = shop.run()
    assert outcome.error is not None and outcome.error.code is ErrorCode.EVIDENCE_BROKEN
    assert "its rows' values" in outcome.error.message
    assert shop.month() == Decimal("19.75")


def test_a_tenant_who_has_not_run_since_keeps_his_numbers(shop: Shop) -> None:
    shop.serve("neighbour")
    for tenant in (TENANT, "neighbour"):
        assert shop.run(tenant).error is None
    models = START.column("status", name="order_status").column("customer", name="buyer")
    shop.edit(next_state(replace(
        models, dimension="buyer", measure="sum(case when order_status = 'paid' then amount else 0 end)"), 2))
    shop.accept_contracts()
    assert published(shop) == Decimal("19.75")
    explain = ("explain", f"{NAME}.{KPI}", "--tenant", "neighbour", "--period", "2026-11")
    assert shop.project.command(*explain).exit_code == 0
    by_customer = f"select customer, sum(value) from published.{KPI} where tenant_id = $1 and customer > '' group by 1"
    assert dict(shop.project.rows(by_customer, "neighbour")) == {"Ada": Decimal("19.75"), "Bob": 0}
    assert shop.run("neighbour").error is None
    assert shop.month("neighbour") == Decimal("19.75") and shop.project.command(*explain).exit_code == 0
    columns = [column for (column,) in shop.project.rows(
        "select attname::text from pg_attribute where attrelid = to_regclass($1)", f"published.{KPI}")]
    assert "buyer" in columns and "customer" not in columns
    assert dict(shop.project.rows(
        f"select customer, sum(value) from published.{KPI}__versions where version = 1 and grain <> 'month' "
        "and tenant_id = $1 group by 1", "neighbour")) == {"Ada": Decimal("19.75"), "Bob": 0}


def test_rows_hashed_before_hashes_covered_columns_stay_and_stay_proven(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    macros = shop.home / "dbt_project" / "macros" / "history.sql"
    now = macros.read_text()
    before = now.replace("""{%- set parts = ["'" ~ columns_label() ~ "'"] -%}""", "{%- set parts = [] -%}")
    assert before != now
    macros.write_text(before)
    assert published(shop) == Decimal("19.75")
    macros.write_text(now)
    upgrade(monkeypatch, "the next release")
    assert published(shop) == Decimal("19.75")
    versions = f"select row_version, valid_to_run from gdp.{GDP} order by 1"
    assert shop.project.rows(versions) == [(1, None)] * 3, "an upgrade by itself gives no row a new version"
    shop.edit(replace(START.column("status", name="order_status"), gold="2.0.0",
                      measure="sum(case when order_status = 'paid' then amount else 0 end)"))
    shop.accept_contracts()
    assert published(shop) == Decimal("19.75")
    assert len(shop.project.rows(versions)) == 6
    for (token,) in shop.project.rows("select run_token from platform.stage_run where stage = 'normalization'"):
        result = shop.project.command("replay", token, "--json")
        assert result.exit_code == 0, result.output


# Random edits ---------------------------------------------------------------------------------------------------

VALUE: dict[str, Callable[[Order], object]] = {
    "order_id": lambda o: o.order_id,
    "customer": lambda o: o.customer,
    "status": lambda o: o.status,
    "upper(status)": lambda o: o.status.upper(),
    "nullif(status, 'open')": lambda o: None if o.status == "open" else o.status,
    "cast(order_id as text)": lambda o: str(o.order_id),
    "amount": lambda o: o.amount,
    "amount * 2": lambda o: o.amount * 2,
    "amount / 8": lambda o: o.amount / 8,
    "cast(ordered_at as date)": lambda o: o.day,
}
TEXTS = ["customer", "status", "upper(status)", "nullif(status, 'open')", "cast(order_id as text)"]
NUMBERS = ["amount", "amount * 2", "amount / 8"]
DECIMALS = ["numeric(18,2)", "numeric(18,4)", "numeric(20,3)"]
KINDS = {**dict.fromkeys(TEXTS, ["text"]), **dict.fromkeys(NUMBERS, DECIMALS)}
NAMES = ["customer", "status", "amount", "a", "b", "c"]
FIXED = ("order_id", "business_date")


def of_kind(column: Column, value: object) -> object:
    """A value as a column of this type holds it."""
    if column.kind.startswith("numeric") and value is not None:
        scale = int(column.kind.rpartition(",")[2].rstrip(")"))
        return Decimal(value).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)  # type: ignore[arg-type]
    return value


@st.composite
def some_columns(draw: st.DrawFn) -> tuple[Column, ...]:
    """Any columns with one number and one text among them, in any order: an edit of any others."""
    names = draw(st.permutations(NAMES))
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
    numbers = draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=2))
    columns = [Column(name, draw(st.sampled_from(KINDS[text])), text)
               for name, text in zip(names, [*texts, *numbers], strict=False)]
    fixed = [column for column in START.columns if column.name in FIXED]
    return tuple(draw(st.permutations([*fixed, *columns])))


def measured(columns: tuple[Column, ...]) -> Models:
    """The KPI adds up the first number by the first text."""
    number = next(c.name for c in columns if c.kind.startswith("numeric"))
    text = next(c.name for c in columns if c.kind == "text")
    return replace(START, columns=columns, measure=f"sum({number})", dimension=text)


@settings(max_examples=5, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate))
@given(states=st.lists(some_columns(), min_size=2, max_size=3), back=st.integers(0, 1))
def test_random_edits_leave_what_a_plain_model_computes(
    states: list[tuple[Column, ...]], back: int, new_project: Callable[..., Project],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shop = Shop.make(tmp_path_factory.mktemp("shop"), new_project)
    published(shop)
    for number, columns in enumerate([*states, states[back]], start=2):
        models = next_state(measured(columns), number)
        shop.edit(models)
        shop.accept_contracts()
        value = published(shop)
        names = ["order_id", *(column.name for column in columns)]
        assert shop.head(names) == {o.order_id: (o.order_id, *(of_kind(c, VALUE[c.sql](o)) for c in columns))
                                    for o in ORDERS}
        number_of = next(c for c in columns if c.kind.startswith("numeric"))
        assert value == sum(of_kind(number_of, VALUE[number_of.sql](o)) for o in ORDERS)  # type: ignore[misc]
