"""Green means complete: too much that is refused holds the publication, says so, and is decided by people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lifecycle.conftest import FIRST_DAY, LAST_DAY, PROJECT, Books, Project, three_months

RANGE = ("--from", FIRST_DAY.isoformat(), "--to", LAST_DAY.isoformat())


@pytest.fixture
def strict(new_project: Callable[..., Project], tmp_path: Path) -> Callable[..., Project]:
    """Makes projects whose manifest says this about completeness, and nothing by default."""

    def make(declared: str = "", engine: str = "postgres") -> Project:
        folder = tmp_path / "project"
        shutil.copytree(PROJECT / "contracts", folder / "contracts")
        (folder / "dbt_project").symlink_to(PROJECT / "dbt_project")
        file = folder / "contracts/pipelines/order_to_cash.yaml"
        lines = [line for line in file.read_text().splitlines() if "completeness:" not in line]
        at = lines.index("  slos:") + 1
        lines[at:at] = [f"    completeness: {declared}"] if declared else []
        file.write_text("\n".join(lines).replace("engine: postgres", f"engine: {engine}") + "\n")
        project = new_project(folder)
        books = Books(project.folder("acme"))
        three_months(books)
        books.payments("2026-03-18", ("P4", "I5", "2026-03-18", 10), ("P5", "I5", "2026-03-18", 0))
        return project

    return make


def _run(project: Project, *more: str):
    return project.command("run", "order_to_cash", "--tenant", "acme", *RANGE, *more)


@pytest.mark.parametrize("engine", ["postgres", "duckdb"])
def test_too_many_refused_records_hold_publication_until_they_are_decided(
    strict: Callable[..., Project], engine: str
) -> None:
    project = strict("", engine)
    held = _run(project)
    assert held.exit_code == 1, held.output
    for words in ("gate.failed", "payments completeness", "1 of 5 refused (20.00%)",
                  "payments_2026-03-18.jsonl: 1 of 2", "quarantine discard"):
        assert words in held.output, held.output
    assert project.versions("acme") == {}
    assert _run(project).exit_code == 1, "and it stays so, run after run"
    assert project.rows("select gate, passed, count(*) from platform.gate_result where gate = 'completeness' "
                        "group by 1, 2") == [("completeness", False, 1)]
    (state,) = [row for row in json.loads(project.command("status", "--json").output)
                if (row["pipeline"], row["tenant"]) == ("order_to_cash", "acme")]
    assert len(state["failed_gates"]) == 1 and state["freshness"] != "within SLO"

    discarded = project.command("quarantine", "discard", "--tenant", "acme", "--why", "a test payment")
    assert discarded.exit_code == 0, discarded.output
    done = _run(project)
    assert done.exit_code == 0, done.output
    assert set(project.versions("acme")) == {"revenue", "dso", "overdue_ratio"}
    assert dict(project.rows("select kpi, passed from platform.gate_result where gate = 'completeness' and run_token = "
                             "(select run_token from platform.stage_run where stage = 'publish')")) == {
        "invoices": True, "payments": True, "customers": True}


@pytest.mark.parametrize("engine", ["postgres", "duckdb"])
def test_a_payment_refused_before_its_invoice_came_holds_nothing_after_it(
    strict: Callable[..., Project], engine: str
) -> None:
    project = strict("", engine)
    books = Books(project.folder("acme"))
    books.payments("2026-03-18", ("P4", "I7", "2026-03-18", 10))
    held = _run(project)
    assert held.exit_code == 1 and "payments completeness" in held.output, held.output
    books.invoices("2026-03-19", ("I7", "C1", "NORTH", "2026-03-17", 100))
    done = _run(project)
    assert done.exit_code == 0, done.output
    assert project.rows("select reason, state, decision_reason from platform.quarantine_record") == [
        ("invoice_unknown", "replayed", "what it lacked is there")]
    assert _run(project).exit_code == 0


def test_what_is_refused_is_in_the_last_lines_of_a_run_that_only_warns(strict: Callable[..., Project]) -> None:
    project = strict("{max_refused: 0.01, on_breach: warn}")
    done = _run(project)
    assert done.exit_code == 0, done.output
    assert "payments: received 5, accepted 4, quarantined 1 (20.00%)" in done.output.splitlines()[-1]
    (machine,) = json.loads(_run(project, "--json").stdout)
    assert machine["quarantined"] == [{"source": "payments", "dataset": "order_to_cash.payments", "received": 5,
                                       "accepted": 4, "quarantined": 1}]


@pytest.mark.parametrize("on_null", ["fail", "withhold_series"])
def test_a_quiet_series_withholds_itself_where_the_kpi_says_so(
    new_project: Callable[..., Project], tmp_path: Path, on_null: str
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(PROJECT / "contracts", folder / "contracts")
    (folder / "dbt_project").symlink_to(PROJECT / "dbt_project")
    spec = folder / "contracts/kpis/order_to_cash/overdue_ratio.yaml"
    spec.write_text(spec.read_text().replace("max_null_ratio: 0\n", f"on_null: {on_null}\n"))
    project = new_project(folder)
    books = Books(project.folder("acme"))
    three_months(books)
    books.payments("2026-01-21", ("P7", "I2", "2026-01-21", 240))  # SOUTH owes nothing at the end of January
    done = _run(project)
    named = "month 2026-01 business_unit=SOUTH: no value"
    assert named in done.output, done.output
    if on_null == "fail":
        assert done.exit_code == 1 and "found nan" not in done.output and project.versions("acme") == {}
        return
    assert done.exit_code == 0, done.output
    series = project.series("overdue_ratio", "acme", "grain", "period", "business_unit")
    assert ("month", "2026-01", "SOUTH") not in series and None not in series.values()
    assert ("month", "2026-01", "NORTH") in series and ("month", "2026-02", "SOUTH") in series
    explained = project.command("explain", "overdue_ratio", "--period", "2026-01", "--tenant", "acme")
    assert explained.exit_code == 0 and "SOUTH" in explained.output, explained.output
    books.invoices("2026-01-22", ("I9", "C2", "SOUTH", "2026-01-22", 50))
    assert _run(project).exit_code == 0
    assert ("month", "2026-01", "SOUTH") in project.series("overdue_ratio", "acme", "grain", "period", "business_unit")
