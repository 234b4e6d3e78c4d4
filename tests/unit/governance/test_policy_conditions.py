"""Conditions: what is accepted can be evaluated, what has a wrong name or type is found before it ever is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.governance.policy_conditions import ConditionError, check, compile_condition, context

TYPES = {"size": "int", "days": "int", "name": "string", "kpis": "list(string)", "late": "bool", "ratio": "double"}
VALUES = {"size": 3, "days": 40, "name": "acme", "kpis": ["dso", "revenue"], "late": True, "ratio": 0.5}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("name == 'acme'", True),
        ("days > 31 && name in ['acme', 'globex']", True),
        ("!late || days % 7 == 0", False),
        ("size(kpis) == 2 && kpis.size() == 2", True),
        ("kpis.exists(k, k.startsWith('d')) && !kpis.all(k, k == 'dso')", True),
        ("kpis.filter(k, k.matches('^r.*e$')) == ['revenue']", True),
        ("kpis.map(k, size(k)) == [3, 7]", True),
        ("kpis[0] == \"dso\"", True),
        ("(late ? days : -1) > 0", True),
        ("ratio * 2.0 >= 1.0 && double(days) > 1.5 && string(days) == '40'", True),
        ("kpis == []", False),
    ],
)
def test_what_passes_the_check_means_what_it_says(condition: str, holds: bool) -> None:
    assert check(condition, TYPES) is None
    assert compile_condition(condition).holds(context(VALUES)) is holds


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("dayz > 31", "unknown variable; did you mean 'days'?"),
        ("days > '31'", "different types for >"),
        ("days == '31'", "different types for =="),
        ("days", "is no condition"),
        ("name > 3 || true", "different types for >"),
        ("'x' in days", "wrong type for in"),
        ("3 in kpis", "different types for in"),
        ("late && days", "wrong type for &&"),
        ("!days", "wrong type for !"),
        ("kpis.name == 'x'", "has no fields"),
        ("name.all(k, true)", "has no such function"),
        ("kpis.exists(name, true)", "needs a name of its own"),
        ("kpis.exists(k, k)", "wrong type for exists"),
        ("now() > 3", "unknown function"),
        ("days = 3", "not understood at column 6"),
        ("days >", "a value is missing at column 7"),
        ("(days > 3", "not understood at column 10"),
        ("name.matches('(')", "not a valid regex"),
        ("days > 99999999999999999999", "more than 64 bits"),
        ("null == name", "not a name CEL allows"),
        ("ratio > 1", "different types for >"),
        ("", "a value is missing"),
        ("(" * 30 + "late" + ")" * 30, "nested too deeply"),
        ("!" * 300 + "late", "mean nothing together"),
        ("late " + "|| late " * 400, "longer than a condition may be"),
    ],
)
def test_what_is_wrong_is_said(condition: str, says: str) -> None:
    problem = check(condition, TYPES)
    assert problem is not None and says in problem.message


@pytest.mark.parametrize("condition", ["days / size > 1", "kpis[size] == 'x'"])
def test_what_fails_at_some_values_only_is_no_error_of_the_condition(condition: str) -> None:
    assert check(condition, TYPES) is None
    with pytest.raises(ConditionError):
        compile_condition(condition).holds(context({**VALUES, "size": 0, "kpis": []}))


_PARTS = st.sampled_from(
    [*TYPES, "'a'", '"b"', "1", "2.5", "true", "[", "]", "(", ")", "&&", "||", "!", "-", "==", "<", "in", "+", "/", "?",
     ":", ".", ",", "size(", "exists(k,", "k", "matches(", "null", "0x1F", "r'x'", "\\", "é", "\n", "{", "}", "`"])


@given(st.lists(_PARTS, max_size=12).map(" ".join) | st.text(max_size=20))
def test_any_text_is_a_condition_or_a_problem_and_what_passes_gives_true_or_false(text: str) -> None:
    if check(text, TYPES) is not None:
        return
    try:
        assert compile_condition(text).holds(context(VALUES)) in (True, False)
    except ConditionError as error:
        assert isinstance(error.__cause__, ZeroDivisionError | IndexError | OverflowError), error
