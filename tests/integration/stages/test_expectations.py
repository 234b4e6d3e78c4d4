"""The suite of a KPI is decided in a process of its own, which has imported its library ahead and ends with ours."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from barecount_assets.stages import expectations
from resources.governance.declarations import load
from resources.governance.kpis import Kpi
from resources.runtime.errors import BareCountError, ErrorCode
from tests.conftest import PROJECT
from tests.lifecycle.harness import until

COLUMNS = ("grain", "period", "period_start", "fiscal_year", "fiscal_period", "business_unit", "kpi_version", "value",
           "numerator", "denominator", "source_rows")


@pytest.fixture(scope="module")
def dso() -> Kpi:
    return load(PROJECT).kpis["dso"]


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    if expectations._process is not None:
        expectations._process.kill()


def _series(kpi: Kpi, **changed: Any) -> list[dict[str, Any]]:
    row = {"grain": "month", "period": "2026-03", "period_start": date(2026, 3, 1), "business_unit": "NORTH",
           "kpi_version": kpi.metadata.version, "value": Decimal("31.5"), "numerator": Decimal(63),
           "denominator": Decimal(2), "source_rows": 7, "fiscal_year": 2026, "fiscal_period": 3}
    return [row, {**row, "business_unit": "SOUTH", **changed}]


def test_a_series_that_keeps_every_rule_passes(dso: Kpi) -> None:
    verdict = expectations.judge(dso, _series(dso), COLUMNS)
    assert verdict.passed and verdict.expectations >= 8 and verdict.failures == []


@pytest.mark.parametrize("changed, expectation, example", [
    ({"value": Decimal(-1)}, "expect_column_values_to_be_between", "-1.0"),
    ({"period": "2026-3"}, "expect_column_values_to_match_regex", "2026-3"),
    ({"grain": "week"}, "expect_column_values_to_be_in_set", "week"),
    ({"kpi_version": "0.0.1"}, "expect_column_values_to_be_in_set", "0.0.1"),
    ({"business_unit": "NORTH"}, "expect_compound_columns_to_be_unique", "NORTH"),
])
def test_what_breaks_a_rule_is_named_with_an_example(
    dso: Kpi, changed: dict[str, Any], expectation: str, example: str
) -> None:
    verdict = expectations.judge(dso, _series(dso, **changed), COLUMNS)
    assert not verdict.passed
    (failure,) = verdict.failures
    assert failure["expectation"] == expectation and failure["unexpected"] >= 1
    assert any(example in found for found in failure["examples"])


def test_one_process_serves_all_and_this_one_never_imports_the_library() -> None:
    script = """
import sys
from barecount_assets.stages import expectations
expectations.start_ahead()
first = expectations._process.pid
expectations.start_ahead()
print(first == expectations._process.pid, "great_expectations" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["True", "False"], 0), done.stderr


def test_a_library_that_fails_says_so_and_goes_on(dso: Kpi) -> None:
    with pytest.raises(BareCountError, match="KeyError|not in index|columns") as refused:
        expectations.judge(dso, _series(dso), ("grain",))
    assert refused.value.code is ErrorCode.INTERNAL
    assert expectations.judge(dso, _series(dso), COLUMNS).passed


def test_a_process_that_dies_is_told_of_and_the_next_gate_gets_a_new_one(dso: Kpi) -> None:
    expectations.start_ahead()
    died = expectations._process
    assert died is not None
    os.kill(died.pid, signal.SIGSTOP)  # so that it is asked, and dies before it answers
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(expectations.judge, dso, _series(dso), COLUMNS)
        until(lambda: _bytes_in(died) > 0)
        died.kill()
        with pytest.raises(BareCountError, match="dso: the process that decides it ended with -9") as lost:
            asked.result()
    assert (lost.value.code, lost.value.retryable) == (ErrorCode.RUNNER_LOST, True)
    assert expectations.judge(dso, _series(dso), COLUMNS).passed


def test_a_gate_that_is_given_up_leaves_no_answer_for_the_next_one(
    dso: Kpi, monkeypatch: pytest.MonkeyPatch
) -> None:
    expectations.start_ahead()
    given_up = expectations._process
    assert given_up is not None

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(expectations.pickle, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            expectations.judge(dso, _series(dso, value=Decimal(-1)), COLUMNS)
    assert given_up.returncode is not None
    assert expectations.judge(dso, _series(dso), COLUMNS).passed


def test_it_ends_with_the_process_that_started_it_however_that_ends() -> None:
    script = """
import sys
from barecount_assets.stages import expectations
expectations.start_ahead()
print(expectations._process.pid, flush=True)
sys.stdin.read()
"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    assert starter.stdout is not None
    process = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    until(lambda: not _is_running(process))


def _bytes_in(process: subprocess.Popen[bytes]) -> int:
    """What lies unread in the pipe to a process."""
    assert process.stdin is not None
    return int.from_bytes(fcntl.ioctl(process.stdin.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
