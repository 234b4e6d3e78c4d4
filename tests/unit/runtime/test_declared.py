"""The fields declared documents share."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.runtime.declared import cron_problem, did_you_mean


@pytest.mark.parametrize(
    "expression",
    ["* * * * *", "0 6 * * *", "*/15 8-18 * * mon-fri", "0 0 1,15 jan *", "5 4 29 2 *", "0 0 31 2 1", "@daily"],
)
def test_schedules_that_run_are_accepted(expression: str):
    assert cron_problem(expression) is None


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "0 fields"),
        ("0 6 * *", "4 fields"),
        ("0 6 * * * *", "6 fields"),
        ("0  6 * * *", "single spaces"),
        ("60 6 * * *", "minute '60'"),
        ("0 24 * * *", "hour '24'"),
        ("0 6 0 * *", "day of month '0'"),
        ("0 6 * 13 *", "month '13'"),
        ("0 6 * * 8", "day of week '8'"),
        ("0 6 * * fri-mon", "day of week"),
        ("*/0 6 * * *", "minute"),
        ("5/10 6 * * *", "minute"),
        ("0 6 30 2 *", "never run"),
        ("0 6 31 4,6,9,11 *", "never run"),
        ("@reboot", "1 fields"),
        ("0 6 L * *", "day of month"),
    ],
)
def test_schedules_that_do_not_are_refused_with_the_part_at_fault(expression: str, words: str):
    assert words in (cron_problem(expression) or "")


_TERMS = st.one_of(
    st.just("*"),
    st.integers(0, 70).map(str),
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map("{0[0]}-{0[1]}".format),
    st.tuples(st.sampled_from(["*", "1-5", "0-23"]), st.integers(0, 70)).map("{0[0]}/{0[1]}".format),
    st.sampled_from(["jan", "mon", "JAN-MAR", "mon-fri", "x", "", "L", "?", "1-", "-1", "1#2", "H"]),
)
_FIELDS = st.lists(_TERMS, min_size=1, max_size=3).map(",".join)


@given(expression=st.lists(_FIELDS, min_size=5, max_size=5).map(" ".join))
@settings(max_examples=100)
def test_what_is_accepted_the_scheduler_accepts_too(expression: str):
    from dagster._utils.schedules import is_valid_cron_string

    if cron_problem(expression) is None:
        assert is_valid_cron_string(expression)


def test_a_near_name_is_offered_and_a_far_one_is_not():
    assert did_you_mean("tenats", ["tenants", "sources"]) == "; did you mean 'tenants'?"
    assert did_you_mean("xyz", ["tenants", "sources"]) == ""
