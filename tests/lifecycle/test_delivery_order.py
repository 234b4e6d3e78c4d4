"""Which of several deliveries counts: the one that was delivered last, whatever it is called and whatever it says."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from tests.lifecycle.conftest import Project
from tests.lifecycle.shop import Models, Order, Shop


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
