"""A blocking obligation stops the publication of a whole run, says so everywhere, and lets it go on once it holds."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result

from barecount_assets.instance import open_instance
from resources.governance import declarations
from tests.lifecycle.conftest import PROJECT, Books, Content, Project, unchanged_environment

OBLIGATION = "order_to_cash_is_fresh"
TODAY = dt.datetime.now(dt.UTC).date()  # freshness is judged by the clock, so the books end today
FIRST, LATE = TODAY - dt.timedelta(days=41), TODAY - dt.timedelta(days=40)


@dataclass(frozen=True)
class Blocked:
    """A project with one published day, and the run of the next day's file that a blocking obligation stopped."""

    project: Project
    before: Content
    result: Result

    def state(self) -> dict[str, object]:
        """The pipeline's line of `barecount status`."""
        (row,) = [row for row in json.loads(self.project.command("status", "--json").stdout)
                  if (row["pipeline"], row["tenant"]) == ("order_to_cash", "acme")]
        return row


def deliver(books: Books, day: dt.date, *invoices: tuple[str, dt.date]) -> None:
    """A file of every source; an invoice is (number, date), over 100 for either business unit."""
    books.customers(str(day), "C1", "C2")
    books.payments(str(day), (f"P{day}", invoices[0][0] + "N", day, 5))
    books.invoices(str(day), *((number + unit[0], "C1", unit, str(date), 100) for number, date in invoices
                               for unit in ("NORTH", "SOUTH")))


def run(project: Project, end: dt.date) -> Result:
    return project.command("run", "order_to_cash", "--tenant", "acme", "--from", str(FIRST), "--to", str(end))


def months_after(day: dt.date) -> list[dt.date]:
    """First days of the months up to today's: a month without invoices has no DSO, which a gate would not let pass."""
    days = (day + dt.timedelta(days=number) for number in range(1, (TODAY - day).days + 1))
    return [found for found in days if found.day == 1]


@pytest.fixture(scope="module")
def blocked(new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Blocked:
    root: Path = tmp_path_factory.mktemp("obliged")
    for folder in ("contracts", "dbt_project"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("target", "logs"))
    project = new_project(root)
    deliver(Books(project.folder("acme")), FIRST, ("I1", FIRST))
    first = run(project, FIRST)
    assert first.exit_code == 0, first.output  # late, of which the shipped obligation warns
    before = project.publication_hashes("acme")

    declared = root / "contracts" / "obligations" / f"{OBLIGATION}.yaml"
    declared.write_text(declared.read_text().replace("on_failure: warn", "on_failure: block")
                        .replace("version: 1.0.0", "version: 1.1.0"))
    assert declarations.check(root) == []
    deliver(Books(project.folder("acme")), LATE, ("I2", FIRST))
    return Blocked(project, before, run(project, LATE))


def test_the_run_stops_before_its_publication_and_says_what_is_wrong_and_what_to_do(blocked: Blocked) -> None:
    result = blocked.result
    assert result.exit_code == 1
    assert "stopped" in result.stdout and "kpi_build" in result.stdout
    assert "obligation.failed" in result.stderr
    assert f"{OBLIGATION}: the newest day of source customers is {LATE}" in result.stderr.replace("\n", " ")
    assert "the previous publication stays" in result.stderr


def test_the_previous_publication_stays_and_is_proven(blocked: Blocked) -> None:
    assert blocked.project.publication_hashes("acme") == blocked.before
    assert blocked.project.versions("acme") == {"revenue": 1, "dso": 1, "overdue_ratio": 1}
    assert blocked.project.value("select max(version) from published.revenue__versions") == 1, "not even hidden"
    month = f"{FIRST:%Y-%m}"
    explained = blocked.project.command("explain", "revenue", "--period", month, "--tenant", "acme", "--json")
    assert json.loads(explained.stdout)["holds"]


def test_the_failure_is_on_record_with_evidence_event_and_lineage_and_fails_one_step_in_dagster(
    blocked: Blocked,
) -> None:
    project = blocked.project
    ((seq, token),) = project.rows(
        "select evidence_seq, run_token from platform.obligation_result "
        "where obligation = $1 and status = 'fail' and blocking", OBLIGATION)
    assert project.rows("select kind, subject from platform.evidence where tenant_id = 'acme' and seq = $1", seq) == [
        ("obligation.failed", f"order_to_cash/{OBLIGATION}")]
    assert project.value("select count(*) from platform.event where type = 'barecount.obligation.failed' "
                         "and (envelope ->> 'evidence')::bigint = $1", seq) == 1
    assert project.value("select max(seq) from platform.evidence where kind = 'kpi.published'") < seq
    assert project.rows("select state from platform.lineage_run where run_token = $1", token) == [("failed",)]
    with unchanged_environment(), open_instance(project.settings, project.database) as instance:
        newest = instance.get_runs(limit=1)[0]
        steps = {step.step_key: (step.status.value, step.attempts)
                 for step in instance.get_run_step_stats(newest.run_id) if step.status is not None}
    assert newest.status.value == "FAILURE"
    assert [(key, attempts) for key, (status, attempts) in steps.items() if status == "FAILURE"] == [
        ("order_to_cash__publish", 1)], "not tried again: trying cannot help"


def test_status_and_lineage_name_it(blocked: Blocked) -> None:
    (failed,) = blocked.state()["failed_obligations"]
    assert failed.startswith(f"{OBLIGATION}: the newest day of source")
    assert OBLIGATION in blocked.project.command("status").stdout
    listed = json.loads(blocked.project.command("lineage", "obligations", "--tenant", "acme", "--json").stdout)
    assert {item["obligation"]: item["status"] for item in listed}[OBLIGATION] == "fail"


def test_once_it_holds_the_publication_goes_on_with_what_was_held(blocked: Blocked) -> None:
    project = blocked.project
    deliver(Books(project.folder("acme")), TODAY, ("I3", FIRST), *(
        (f"I4{month:%m}", month) for month in months_after(FIRST)))
    result = run(project, TODAY)
    assert result.exit_code == 0, result.output
    revenue = project.series("revenue", "acme", "period", "grain", "business_unit")
    assert revenue[f"{FIRST:%Y-%m}", "month_total", None] == 600, "of three deliveries, the one that was held included"
    assert project.versions("acme")["revenue"] == 2
    assert blocked.state()["failed_obligations"] == []
    assert project.command("evidence", "verify").exit_code == 0
