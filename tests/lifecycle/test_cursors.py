"""Incremental sources from the table to the published number: ties, late commits, corrections, a source restored."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from resources.runtime.database import Database
from resources.runtime.settings import code_version
from tests.conftest import databases
from tests.lifecycle.conftest import Project
from tests.lifecycle.shop import MANIFEST, NAME, TENANT, Models, Shop

ENGINES = ("postgres", "duckdb")
_TABLE = """
create table orders (order_id bigint, ordered_at timestamp, customer text, status bigint, amount numeric(18,2))
"""


class Orders:
    """A table of orders in a database of the shop's own; `status` is a number that grows, where a test has it so."""

    def __init__(self, dsn: str, connection: Any, mark: str) -> None:
        self.dsn, self._connection, self._mark = dsn, connection, mark
        self.run(_TABLE)

    def run(self, statement: str, *values: Any) -> None:
        self._connection.execute(statement.replace("?", self._mark), values or ())

    def insert(self, order: int, at: str, amount: int, number: int | None = 1) -> None:
        self.run("insert into orders values (?, ?, 'Ada', ?, ?)", order, f"2026-11-20 {at}", number, amount)


@pytest.fixture(params=["sqlite", "postgresql"])
def orders(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> Iterator[Orders]:
    if request.param == "sqlite":
        with sqlite3.connect(tmp_path / "shop.sqlite", isolation_level=None) as connection:
            yield Orders(f"sqlite:///{tmp_path}/shop.sqlite", connection, "?")
        return
    with databases(server) as new_database:
        database: Database = new_database()
        with psycopg.connect(database.admin_url, autocommit=True) as connection:
            yield Orders(database.admin_url, connection, "%s")


@pytest.fixture
def read_by(
    tmp_path: Path, new_project: Callable[..., Project], orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Shop]:
    """Makes a shop whose orders come from the table, with a cursor."""
    monkeypatch.setenv("SHOP_DSN", orders.dsn)

    def make(engine: str, **source: Any) -> Shop:
        shop = Shop.make(tmp_path / "shop", new_project, engine)

        def from_table(document: Any) -> None:
            (declared,) = document["spec"]["sources"]
            document["spec"]["sources"] = [{
                "name": declared["name"], "dataset": declared["dataset"], "connector": "sql", "dsn": "${env:SHOP_DSN}",
                "table": "orders", **source}]

        shop._change(MANIFEST, from_table)
        shop.edit(Models(measure="sum(amount)"))
        code_version.cache_clear()
        return shop

    return make


def month_after_a_run(shop: Shop) -> Decimal:
    outcome = shop.run()
    assert outcome.error is None, outcome.error
    return shop.month()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_with_the_instant_that_was_read_last_is_published(orders, read_by, engine):
    shop = read_by(engine, cursor_column="ordered_at")
    orders.insert(1, "10:00:00", 10)
    orders.insert(2, "10:00:01", 20)
    assert month_after_a_run(shop) == 30
    orders.insert(3, "10:00:01", 40)
    orders.insert(4, "10:00:02", 80)
    assert month_after_a_run(shop) == 150
    assert month_after_a_run(shop) == 150
    batches = shop.project.rows(
        "select received, accepted, quarantined from platform.raw_batch where tenant_id = $1 order by batch_id", TENANT)
    assert batches == [(2, 2, 0), (2, 2, 0)]


@pytest.mark.parametrize("engine", ENGINES)
def test_slices_of_a_number_are_in_the_order_of_numbers(orders, read_by, engine):
    shop = read_by(engine, cursor_column="status")
    orders.insert(1, "10:00:00", 100, 8)
    orders.insert(2, "10:00:00", 20, 9)
    assert month_after_a_run(shop) == 120
    for amount, number in ((75, 10), (60, 11)):
        orders.run("update orders set amount = ?, status = ? where order_id = 1", amount, number)
        assert month_after_a_run(shop) == amount + 20


def test_a_row_that_changes_and_changes_back_is_published_each_time(orders, read_by):
    shop = read_by("postgres", cursor_column="status")
    orders.insert(1, "10:00:00", 100)
    for amount in (100, 75, 100, 75, 75):
        orders.run("update orders set amount = ?", amount)
        assert month_after_a_run(shop) == amount


def test_rows_without_a_cursor_value_are_published_once(orders, read_by):
    shop = read_by("postgres", cursor_column="status", overlap=100)
    orders.insert(1, "10:00:00", 100, None)
    orders.insert(2, "10:00:00", 20, 500)
    orders.insert(3, "10:00:00", 3, None)
    assert month_after_a_run(shop) == 123
    orders.insert(4, "10:00:00", 4, 400)
    orders.run("update orders set status = 501 where order_id = 3")
    assert month_after_a_run(shop) == 127


def test_a_source_that_was_restored_is_read_on_and_the_run_says_so(orders, read_by):
    shop = read_by("postgres", cursor_column="status")
    for number in range(1, 5):
        orders.insert(number, "10:00:00", 10, number)
    assert month_after_a_run(shop) == 40
    orders.run("delete from orders where status > 2")
    orders.insert(5, "10:00:00", 7, 3)
    outcome = shop.run()
    (warning,) = outcome.warnings
    assert "the highest status is 3, below 4" in warning
    assert shop.month() == 47
    assert shop.run().warnings == ()


def test_a_cursor_is_shown_and_moved_with_a_reason(orders, read_by):
    shop = read_by("postgres", cursor_column="status")
    for number in (1, 2, 3):
        orders.insert(number, "10:00:00", 10, number)
    month_after_a_run(shop)
    name = shop.project.environment.declarations.pipeline(NAME).spec.sources[0].name
    words = ("sources", "cursor", NAME, name, "--tenant", TENANT)
    shown = json.loads(shop.project.command(*words, "--json").stdout)
    assert shown["cursor"]["value"] == 3
    assert shown["evidence"] is not None
    assert "has no reason" in shop.project.command(*words, "--reset").output
    assert "no value of a cursor" in shop.project.command(*words, "--set", "two", "--reason", "a try").output
    assert shop.project.command(*words, "--set", "1", "--reset", "--reason", "a try").exit_code == 2
    orders.insert(4, "10:00:00", 5, 2)
    moved = json.loads(shop.project.command(*words, "--set", "1", "--reason", "a late row", "--json").stdout)
    assert moved["cursor"]["value"] == 1
    assert month_after_a_run(shop) == 35
    shop.project.command(*words, "--reset", "--reason", "to be sure")
    assert month_after_a_run(shop) == 35
    entries = shop.project.rows(
        "select body::jsonb -> 'payload' ->> 'reason' from platform.evidence "
        "where tenant_id = $1 and kind = 'cursor.moved' order by seq", TENANT)
    assert [reason for (reason,) in entries] == ["a late row", "to be sure"]
    shop.project.command(*words, "--reset", "--forget", "--reason", "all of it")
    assert month_after_a_run(shop) == 35
    assert shop.project.command("evidence", "verify", "--tenant", TENANT).exit_code == 0
    unknown = shop.project.command("sources", "cursor", NAME, f"{name}s", "--tenant", TENANT).output
    assert f"did you mean '{name}'?" in unknown
