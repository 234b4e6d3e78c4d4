"""Rules of a raw contract: the same verdict as pandera's own, on every row, and the first broken rule is named."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from types import SimpleNamespace

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barecount_assets.stages.ingestion.rules import ContractRules, Rule
from resources.governance.sources import FileSource


def rules(*columns: SimpleNamespace) -> ContractRules:
    return ContractRules(SimpleNamespace(columns=columns))


def column(name: str, *, required: bool = False, valid_values: tuple | None = None, **options: object):
    return SimpleNamespace(name=name, required=required, options=options, valid_values=valid_values)


def broken(judge: ContractRules, rows: pa.RecordBatch) -> dict[int, tuple[str, str]]:
    verdict = judge.judge(rows)
    if verdict is None:
        return {}
    return {p: (f, m) for p, f, m in zip(verdict.positions, verdict.fields, verdict.messages, strict=True)}


def pandera_breaks(rule: Rule, rows: pa.RecordBatch) -> set[int]:
    """Positions at which pandera itself, called on a frame, finds the check broken."""
    frame = pl.from_arrow(pa.Table.from_batches([rows]))
    assert rule.check is not None and isinstance(frame, pl.DataFrame)
    passed = rule.check(frame.lazy().select(rule.column), rule.column).check_output.collect().to_series()
    return {position for position, kept in enumerate(passed) if not kept}


CASES = [
    (column("v", minimum=2), pa.int64(), st.integers(-5, 5)),
    (column("v", maximum=2), pa.int32(), st.integers(-5, 5)),
    (column("v", exclusiveMinimum=Decimal("0.10")), pa.decimal128(9, 2), st.decimals(-1, 1, places=2)),
    (column("v", exclusiveMaximum=Decimal("0.10")), pa.decimal128(9, 2), st.decimals(-1, 1, places=2)),
    (column("v", minimum=0.5), pa.float64(), st.floats(allow_infinity=True, allow_nan=True)),
    (column("v", maximum=dt.date(2026, 1, 2)), pa.date32(), st.dates(dt.date(2025, 12, 30), dt.date(2026, 1, 5))),
    (column("v", minLength=2, maxLength=3), pa.string(), st.text("aé😀", max_size=5)),
    (column("v", minLength=1), pa.string(), st.text("a", max_size=2)),
    (column("v", pattern="a+|b"), pa.string(), st.text("ab\n", max_size=3)),
    (column("v", valid_values=("a", "b")), pa.string(), st.text("abc", max_size=1)),
    (column("v", valid_values=(1, 2)), pa.int64(), st.integers(0, 3)),
]


@pytest.mark.parametrize(
    ("declared", "type_", "values"), CASES, ids=[str(case[0].options or case[0].valid_values) for case in CASES]
)
def test_a_batch_is_judged_as_pandera_judges_it(declared, type_, values) -> None:
    judge = rules(declared)
    (rule,) = judge.rules

    @given(st.lists(st.none() | values, max_size=20))
    def check(found: list) -> None:
        rows = pa.record_batch([pa.array(found, type_)], names=["v"])
        assert set(broken(judge, rows)) == pandera_breaks(rule, rows)

    check()


def test_a_value_that_is_not_there_breaks_the_rule_that_it_is_required_and_no_other() -> None:
    rows = pa.record_batch([pa.array([None, 1, None, 9])], names=["v"])
    assert broken(rules(column("v", required=True, maximum=5)), rows) == {
        0: ("v", "v: is required"), 2: ("v", "v: is required"), 3: ("v", "v: at most 5")}
    assert broken(rules(column("v", maximum=5)), rows) == {3: ("v", "v: at most 5")}


def test_the_first_rule_a_row_breaks_is_named_in_the_contracts_order() -> None:
    judge = rules(column("a", minimum=0), column("b", valid_values=("x", "y")))
    rows = pa.record_batch([pa.array([1, -1, -1, 1]), pa.array(["x", "z", "x", "z"])], names=["a", "b"])
    assert broken(judge, rows) == {
        1: ("a", "a: at least 0"), 2: ("a", "a: at least 0"), 3: ("b", "b: one of x, y")}


def test_nothing_is_found_where_there_are_no_rules_no_rows_or_no_breach() -> None:
    rows = pa.record_batch([pa.array([1])], names=["v"])
    assert rules(column("v")).judge(rows) is None
    assert rules(column("v", minimum=0)).judge(rows) is None
    assert rules(column("v", minimum=0)).judge(rows.slice(0, 0)) is None


def marked(**declared: object) -> FileSource:
    return FileSource.model_validate_json(json.dumps({
        "name": "orders", "dataset": "shop.orders", "connector": "files", "format": {"type": "csv"}, **declared}))


ROWS = pa.record_batch({"id": ["A", "B", "C", "D", "E"], "amount": pa.array([1, None, None, -1, None], pa.int64()),
                        "op": ["c", "d", "u", "b", None]})


def test_a_record_that_says_no_state_need_not_keep_the_rules_of_values() -> None:
    source = marked(operations={"column": "op", "insert": ["c"], "update": ["u"], "delete": ["d"], "before": ["b"]})
    columns = SimpleNamespace(columns=(column("id", required=True), column("amount", minimum=0), column("op")))
    found = broken(ContractRules(columns, source, required=["amount"]), ROWS)
    assert found == {2: ("amount", "amount: is required"), 4: ("amount", "amount: is required")}
    assert 4 in broken(ContractRules(columns, source), ROWS), "no operation is none that is declared"


@pytest.mark.parametrize("value", ["x", "", "C", None])
def test_an_operation_that_nobody_declared_is_refused(value: str | None) -> None:
    source = marked(operations={"column": "op", "insert": ["c"], "delete": ["d"]})
    judge = ContractRules(SimpleNamespace(columns=(column("op"),)), source)
    assert broken(judge, pa.record_batch({"op": pa.array([value, "c", "d"], pa.string())})) == {
        0: ("op", "op: an operation of the source, one of c, d")}


@pytest.mark.parametrize(("values", "marks"), [
    ([True], pa.array([True, False, None])), ([1], pa.array([1, 0, None], pa.int32())),
    (["gone"], pa.array(["gone", "", None])), ([], pa.array([dt.date(2026, 5, 4), None, None])),
])
def test_a_tombstone_needs_no_values_and_every_other_record_does(values: list, marks: pa.Array) -> None:
    judge = ContractRules(SimpleNamespace(columns=(column("amount", required=True), column("mark"))),
                          marked(deleted={"column": "mark", "values": values}))
    rows = pa.record_batch({"amount": pa.array([None, None, None], pa.int64()), "mark": marks})
    assert set(broken(judge, rows)) == {1, 2}
