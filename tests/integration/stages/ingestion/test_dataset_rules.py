"""Rules of a raw contract about all rows together are judged over the batches of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from barecount_assets.stages.ingestion import dataset_rules
from resources.governance.contracts import Column, Contract, Rule
from resources.runtime.database import Database, fetch

COLUMN = Column("code", "code", "text", "string", False, False, False, "internal", "A code.")
CONTRACT = Contract("shop.orders", "raw", "1.0.0", "h", "Orders", "Orders.", "active", "a@b.example", None,
                    (COLUMN, replace(COLUMN, name="amount", physical_type="bigint")))


@pytest.fixture
def rows(database: Database) -> Database:
    with database.transaction() as connection:
        fetch(connection, "create table raw.shop__orders (code text, amount bigint, _batch_id bigint)")
        for code, amount, batch in (("A", 1, 1), ("A", 2, 1), (None, 3, 1), (None, 3, 1), ("x1", 1, 2)):
            fetch(connection, "insert into raw.shop__orders values ($1, $2::bigint, $3::bigint)", (code, amount, batch))
    return database


@pytest.mark.parametrize(
    ("rule", "passed", "found"),
    [
        (Rule("rowCount", (), "mustBeBetween", (4, 10)), True, None),
        (Rule("rowCount", (), "mustBeGreaterThan", (4,)), False, "found 4"),
        (Rule("duplicateValues", ("code",), "mustBe", (0,)), False, "found 1"),
        (Rule("duplicateValues", ("code", "amount"), "mustBe", (1,)), True, None),
        (Rule("nullValues", ("code",), "mustBeLessThan", (50,), unit="percent"), False, "found 50"),
        (Rule("nullValues", ("amount",), "mustBe", (0,)), True, None),
        (Rule("invalidValues", ("code",), "mustBeLessOrEqualTo", (0,), valid_values=("A",)), True, None),
        (Rule("invalidValues", ("code",), "mustBe", (0,), pattern="[B-Z]"), False, "found 2"),
    ],
)
def test_each_metric_is_measured(rows: Database, rule: Rule, passed: bool, found: str | None) -> None:
    with rows.connect(autocommit=True) as connection:
        outcome = dataset_rules.check(connection, replace(CONTRACT, rules=(rule,)), [1])
    assert (outcome.passed, outcome.blocking) == (passed, True)
    assert found is None or found in outcome.summary


def test_a_column_declared_unique_is_judged(rows: Database) -> None:
    contract = replace(CONTRACT, columns=(replace(COLUMN, unique=True),))
    with rows.connect(autocommit=True) as connection:
        assert not dataset_rules.check(connection, contract, [1]).passed
        assert dataset_rules.check(connection, contract, [2]).passed
