"""Great Expectations, in a process of its own: what must hold of a KPI's series.

The library takes longer to import than many a run takes, and nothing else goes on in an interpreter meanwhile. Its
process can be started when a run is seen to have work, and is ready when the first gate is decided. Rows go there and
verdicts come back over pipes, as pickles, one at a time; the process ends with the one that started it.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from resources.governance.kpis import Kpi
from resources.runtime.errors import BareCountError, ErrorCode, unexpected

_EXAMPLES = 5
_PERIOD_PATTERN = {"day": r"^\d{4}-\d{2}-\d{2}$", "month": r"^\d{4}-\d{2}$"}

_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


@dataclass(frozen=True)
class Verdict:
    """What the suite of a KPI says of its series.

    Attributes:
        passed: whether every expectation holds.
        expectations: how many there are.
        failures: for each that does not hold its `expectation`, `arguments`, number of `unexpected` values, `examples`
            of them, the `rows` they are in (keys and values, the first few) and `observed` value.
    """

    passed: bool
    expectations: int
    failures: list[dict[str, Any]]


def start_ahead() -> None:
    """Start the process, unless it runs: who needs it later need not wait for it."""
    with _lock:
        _running()


def judge(kpi: Kpi, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Verdict:
    """Validate a series, rows of these columns, against the suite of its KPI, in the process.

    Raises:
        BareCountError: internal when the library fails; runner.lost (retryable) when its process ends meanwhile.
    """
    with _lock:
        process = _running()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((kpi, list(rows), list(columns)), process.stdin)
            process.stdin.flush()
            reply = pickle.load(process.stdout)
        except BaseException as error:
            process.kill()  # what it would answer late would be taken for the verdict of the next gate
            ended = process.wait()
            if not isinstance(error, OSError | EOFError | pickle.UnpicklingError):
                raise
            raise BareCountError(
                ErrorCode.RUNNER_LOST, f"gate of {kpi.name}: the process that decides it ended with {ended}",
                hint="nothing was published; run again, and look for what ends processes, such as a lack of memory",
                retryable=True,
            ) from error
    if isinstance(reply, BareCountError):
        raise reply
    return reply


def validate(kpi: Kpi, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Verdict:
    """`judge`, in this process."""
    gx = _library()
    import pandas as pd

    frame = pd.DataFrame(rows, columns=columns)
    for column in ("value", "numerator", "denominator"):
        frame[column] = frame[column].map(lambda v: float(v) if isinstance(v, Decimal) else v).astype(float)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("kpi").add_dataframe_asset(kpi.name)
        .add_batch_definition_whole_dataframe("series").get_batch({"dataframe": frame})
    )
    suite = gx.ExpectationSuite(name=kpi.name, expectations=_expectations(gx.expectations, kpi))
    outcome = batch.validate(suite, result_format="SUMMARY")
    failures = [
        {"expectation": result.expectation_config.type, "arguments": _arguments(result),
         "unexpected": result.result.get("unexpected_count"),
         "examples": [str(v) for v in (result.result.get("partial_unexpected_list") or [])[:_EXAMPLES]],
         "rows": [named(rows[at], kpi)
                  for at in (result.result.get("partial_unexpected_index_list") or [])[:_EXAMPLES]],
         "observed": str(result.result.get("observed_value", ""))}
        for result in outcome.results if not result.success
    ]
    return Verdict(bool(outcome.success), len(outcome.results), failures)


def named(row: dict[str, Any], kpi: Kpi) -> dict[str, Any]:
    """A row by its key, with its value and what that was computed of."""
    columns = ("grain", "period", *kpi.dimensions, "value", "numerator", "denominator")
    return {name: None if row[name] is None else str(row[name]) for name in columns if name in row}


def _running() -> subprocess.Popen[bytes]:
    global _process
    if _process is None or _process.poll() is not None:
        _process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                    stderr=subprocess.DEVNULL)
        atexit.register(_process.kill)  # it may be in the middle of its import, and holds nothing
    return _process


def _library() -> Any:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # no network call
    import great_expectations

    # Its own level is set at import; a line per suite about a temporary folder tells nobody anything.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    return great_expectations


def _expectations(gxe: Any, kpi: Kpi) -> list[Any]:
    thresholds = kpi.spec.thresholds
    grains = {grain.name: grain.period for grain in kpi.spec.grains}
    expectations = [
        gxe.ExpectTableRowCountToBeBetween(min_value=thresholds.min_rows),
        gxe.ExpectColumnValuesToNotBeNull(column="period"),
        gxe.ExpectColumnValuesToBeInSet(column="grain", value_set=sorted(grains)),
        gxe.ExpectColumnValuesToMatchRegex(
            column="period", regex="|".join(sorted({_PERIOD_PATTERN[period] for period in grains.values()}))),
        gxe.ExpectColumnValuesToBeInSet(column="kpi_version", value_set=[kpi.metadata.version]),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=["grain", "period", *kpi.dimensions], ignore_row_if="never"),
        gxe.ExpectColumnValuesToNotBeNull(column="value", mostly=1 - thresholds.max_null_ratio),
        gxe.ExpectColumnValuesToBeBetween(column="source_rows", min_value=0),
    ]
    if kpi.spec.calendar:  # a period without one lies beyond the years that calendars hold
        expectations.append(gxe.ExpectColumnValuesToNotBeNull(column="fiscal_period"))
    if thresholds.value.min is not None or thresholds.value.max is not None:
        expectations.append(
            gxe.ExpectColumnValuesToBeBetween(
                column="value", min_value=_number(thresholds.value.min), max_value=_number(thresholds.value.max)))
    return expectations


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _arguments(result: Any) -> dict[str, Any]:
    return {k: v for k, v in result.expectation_config.kwargs.items() if k not in {"batch_id"}}


def _serve() -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is interrupted is the process that asks
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the library prints is no reply
    with suppress(Exception):
        _library()  # what it raises here it raises again when it is asked for
    while True:
        try:
            asked = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply: Verdict | BareCountError = validate(*asked)
        except Exception as error:
            reply = unexpected(error)
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    from barecount_assets.stages import expectations

    expectations._serve()  # under its own name: as `__main__`, its verdicts would be unknown to who asks
