"""Which of several deliveries counts: the one that was delivered last, whatever it is called and whatever it says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import Project
from tests.lifecycle.shop import NAME, Models, Order, Shop


def order(number: int, amount: int) -> Order:
    return Order(number, "Ada", "paid", Decimal(amount))


@pytest.fixture(params=["postgres", "duckdb"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, new_project: Callable[..., Project]) -> Shop:
    """A shop whose source is a folder without a file yet."""
    made = Shop.make(tmp_path, new_project, engine=request.param)
    made.edit(Models(measure="sum(amount)"))
    made.declare(file_name="*.csv")
    for file in made.source.iterdir():
        file.unlink()
    return made


def after(shop: Shop, name: str, *orders: Order) -> Decimal:
    """What is published once a file has been delivered."""
    shop.deliver(orders, name)
    outcome = shop.run()
    assert outcome.error is None, outcome.error
    return shop.month()


def test_of_two_numbered_files_in_one_run_the_greater_number_counts(shop: Shop) -> None:
    shop.deliver([order(1, 100), order(2, 20)], "export-9.csv")
    assert after(shop, "export-10.csv", order(1, 75)) == 95


def test_a_correction_with_an_earlier_name_counts_when_it_lands_later(shop: Shop) -> None:
    assert after(shop, "export-10.csv", order(1, 75), order(2, 20)) == 95
    assert after(shop, "export-9-corrected.csv", order(1, 60)) == 80
    assert after(shop, "a.csv", order(1, 50)) == 70


def test_a_state_that_returns_under_another_name_counts(shop: Shop) -> None:
    published = [after(shop, f"export-{number}.csv", order(1, amount), order(2, 1))
                 for number, amount in enumerate((100, 75, 100, 75, 100), 1)]
    assert published == [101, 76, 101, 76, 101]


def test_a_withdrawn_file_leaves_every_number_and_comes_back(shop: Shop) -> None:
    after(shop, "a.csv", order(1, 100), order(2, 20))
    assert after(shop, "b.csv", order(1, 75), order(3, 5)) == 100

    def withdraw(unit: str, *more: str) -> str:
        result = shop.project.command("raw", "withdraw", NAME, "orders", unit, "--reason", "sent by mistake", *more)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "would be withdrawn" in withdraw("b.csv", "--dry-run")
    assert "2 rows leave" in withdraw("b.csv")
    assert ran(shop) == 120
    assert shop.head(["order_id"]).keys() == {1, 2}
    assert "2 rows come back" in withdraw("b.csv", "--undo")
    assert ran(shop) == 100
    withdraw("a.csv")
    assert ran(shop) == 80
    withdraw("b.csv")
    outcome = shop.run()
    assert shop.head(["order_id"]) == {}, "all of it was withdrawn"
    assert outcome.error is not None and outcome.error.code is ErrorCode.GATE_FAILED, "a KPI wants a row at least"


def ran(shop: Shop) -> Decimal:
    outcome = shop.run()
    assert outcome.error is None, outcome.error
    return shop.month()


def test_a_declared_order_moves_what_has_been_published(shop: Shop) -> None:
    shop.declare(order="landing")
    after(shop, "x_05.01.2026.csv", order(1, 100), order(2, 1))
    assert after(shop, "x_31.12.2025.csv", order(1, 75)) == 76
    shop.declare(order={"date": "%d.%m.%Y"})
    assert ran(shop) == 101
    shop.declare(order="landing")
    assert ran(shop) == 76


def test_a_run_computed_again_takes_the_order_of_then(shop: Shop) -> None:
    for number, amount in ((1, 100), (2, 75)):
        after(shop, f"export-{number}.csv", order(1, amount), order(2, 1))
    token = shop.project.value(
        "select run_token from platform.stage_run where stage = 'normalization' order by evidence_seq desc limit 1")
    assert after(shop, "export-3.csv", order(1, 100), order(2, 1)) == 101
    result = shop.project.command("replay", token, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["identical"], "with 75, although the batch with 100 stands behind it now"


def test_a_table_read_whole_that_changes_twice_a_day_is_published_each_time(shop: Shop) -> None:
    database = shop.source / "shop.sqlite"
    shop.declare(connector="sql", dsn=f"sqlite:///{database}", table="orders", path=None, file_name=None, format=None)
    published = []
    for amounts in ((1,), (1, 2), (1,), (1, 2, 3)):
        with sqlite3.connect(database) as connection:
            connection.execute("drop table if exists orders")
            connection.execute("create table orders (order_id integer primary key, ordered_at text, customer text, "
                               "status text, amount numeric)")
            connection.executemany("insert into orders values (?, '2026-11-20 09:00:00', 'Ada', 'paid', ?)",
                                   enumerate(amounts))
        connection.close()
        published.append(ran(shop))
    assert published == [1, 3, 1, 6]


def test_slices_of_an_integer_cursor_are_newer_as_they_are_read(shop: Shop) -> None:
    database = shop.source / "shop.sqlite"
    shop.declare(connector="sql", dsn=f"sqlite:///{database}", query="select * from orders", cursor_column="seq",
                 path=None, file_name=None, format=None)
    shop.declare_column("seq", "bigint")
    with sqlite3.connect(database) as connection:
        connection.execute("create table orders (order_id integer, ordered_at text, customer text, status text, "
                           "amount numeric, seq integer primary key)")
    published = []
    for rows in (((1, 100, 8), (2, 20, 9)), ((1, 75, 10),), ((1, 60, 11),)):
        with sqlite3.connect(database) as connection:
            connection.executemany("insert into orders values (?, '2026-11-20 09:00:00', 'Ada', 'paid', ?, ?)", rows)
        published.append(ran(shop))
    connection.close()
    assert published == [120, 95, 80]
