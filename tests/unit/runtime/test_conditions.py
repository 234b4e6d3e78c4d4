"""Conditions hold, do not hold, or say what was missing."""

from __future__ import annotations

import sys

import pytest

from resources.runtime import conditions

KNOWN = {"value": 1.5, "previous": 1.5, "count": 3, "dimensions": {"country": "x"}, "value_scaled": 1_500_000}


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("value > 60.0 && previous != null", None), ("abs(value - previous) > 1.0", None),
        ("dimensions.country in ['x', 'y']", None), ("[1, 2].all(n, n > 0)", None), ("has(dimensions.region)", None),
        ("value >", "parse"), ("valu > 1.0", "reads valu"), ("value * 2 > 1.0", "Unsupported operation"),
        ("exec('x')", "calls exec"), ("value", "is no condition"), ("value > 'x'", "No such overload"),
        ("value > 1.0 || " * 200 + "true", "characters long"),
    ],
)  # fmt: skip
def test_a_wrong_condition_is_found_without_events(expression: str, problem: str | None) -> None:
    found = conditions.problem(expression, KNOWN)
    assert found is None if problem is None else problem in (found or "")


def test_what_is_missing_is_told_and_never_holds() -> None:
    condition = conditions.compile_condition("previous > 1.0 && value > 1.0")
    assert condition.variables == {"previous", "value"}
    assert condition.evaluate({"value": 2.0, "previous": 2.0}) == conditions.Outcome(True)
    assert condition.evaluate({"value": 2.0, "previous": None}) == conditions.Outcome(
        False, "there is no previous", missing=True)
    one = conditions.compile_condition("dimensions.region == 'x'").evaluate({"dimensions": {}})
    assert one.missing and "region" in one.reason


def test_money_is_compared_exactly_through_scaled_integers() -> None:
    exact = conditions.compile_condition("value_scaled == 90071992547409931")
    assert exact.evaluate({"value_scaled": 90071992547409931}).holds
    assert not exact.evaluate({"value_scaled": 90071992547409932}).holds


def test_the_librarys_command_line_is_not_imported() -> None:
    conditions.problem("value > 1.0", KNOWN)
    assert "prompt_toolkit" not in sys.modules
