"""Drift in the whole lifecycle: a day waits, everybody else goes on, a steward decides, the day goes on."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from barecount_assets.instance import open_instance
from barecount_assets.lifecycle import RunOutcome
from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import FIRST_DAY, LAST_DAY, Books, Project, three_months, unchanged_environment

DRIFTED, SOUND = "2026-03-24", "2026-03-25"
DAY = dt.date.fromisoformat(DRIFTED)


def with_tip(path: Path) -> Path:
    """The file with one more column."""
    header, *records = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([header + b";Tip", *(record + b";2.50" for record in records)]) + b"\n")
    return path


@pytest.fixture(scope="module")
def shop(new_project: Callable[..., Project]) -> Project:
    """Three published months of two tenants; then acme's ERP adds a column for a day, and a sound day follows."""
    project = new_project()
    for tenant, currency in (("acme", "GBP"), ("globex", "EUR")):
        three_months(Books(project.folder(tenant), currency))
        outcome = project.run("order_to_cash", tenant, FIRST_DAY, LAST_DAY)
        assert outcome.error is None, outcome.error
    with_tip(Books(project.folder("acme")).invoices(DRIFTED, ("I7", "C1", "NORTH", DRIFTED, 1000)))
    return project


@pytest.fixture(scope="module")
def blocked(shop: Project) -> tuple[RunOutcome, dict[str, object], dict[str, object]]:
    """The run of the drifted day alone, and everything downstream before and after it."""

    def downstream() -> dict[str, object]:
        return {
            "tables": shop.state("gdp", "kpi", "published"),
            "stages": shop.rows("select stage, run_token from platform.stage_run where stage <> 'ingestion' "
                                "order by 1, 2"),
            "included": shop.rows("select batch_id from platform.normalized_batch order by 1"),
        }

    before = downstream()
    outcome = shop.run("order_to_cash", "acme", DAY, DAY)
    return outcome, before, downstream()


def march(project: Project, tenant: str) -> Decimal:
    return project.series("revenue", tenant, "period", "grain", "business_unit")["2026-03", "month_total", None]


def test_nothing_downstream_of_a_drifted_day_runs(
    shop: Project, blocked: tuple[RunOutcome, dict[str, object], dict[str, object]]
) -> None:
    outcome, before, after = blocked
    assert outcome.error is not None and outcome.error.code is ErrorCode.SCHEMA_DRIFT
    assert "field Tip was added" in outcome.error.message and "drift show 1" in outcome.error.message
    assert after == before
    with unchanged_environment(), open_instance(shop.settings, shop.database) as instance:
        run = instance.get_run_by_id(outcome.dagster_run_id)
        steps = {s.step_key: s.status.value for s in instance.get_run_step_stats(run.run_id) if s.status is not None}
        checks = [e.dagster_event.event_specific_data for e in instance.all_logs(run.run_id)
                  if e.dagster_event and e.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"]
    assert run.status.value == "FAILURE"
    ran = {key for key, status in steps.items() if status == "SUCCESS"}
    assert all(key.startswith("raw__") or key.endswith("__calendar") for key in ran), ran
    (failed,) = [check for check in checks if not check.passed]
    assert (failed.check_name, failed.severity.value) == ("schema_matches_contract", "ERROR")
    assert failed.metadata["acme"].value["partitions"] == [DRIFTED]


def test_a_second_look_finds_the_same_decision_pending(
    shop: Project, blocked: tuple[RunOutcome, dict[str, object], dict[str, object]]
) -> None:
    again = shop.run("order_to_cash", "acme", DAY, DAY)
    assert not again.changed and again.error is not None and again.error.code is ErrorCode.SCHEMA_DRIFT
    (row,) = [r for r in json.loads(shop.command("status", "--json").stdout)
              if (r["pipeline"], r["tenant"]) == ("order_to_cash", "acme")]
    assert row["held"] == [DRIFTED] and "field Tip was added" in row["drifts"][0]


def test_other_days_and_tenants_go_on_meanwhile(
    shop: Project, blocked: tuple[RunOutcome, dict[str, object], dict[str, object]]
) -> None:
    before = march(shop, "acme")
    for tenant, currency in (("acme", "GBP"), ("globex", "EUR")):
        Books(shop.folder(tenant), currency).invoices(SOUND, ("I8", "C1", "NORTH", SOUND, 10))
    held = shop.run("order_to_cash", "acme", DAY, DAY + dt.timedelta(days=1))
    assert held.error is not None and held.error.code is ErrorCode.SCHEMA_DRIFT, "done, and not all of it"
    assert march(shop, "acme") == before + 10, "the sound day is published"
    free = shop.run("order_to_cash", "globex", DAY, DAY + dt.timedelta(days=1))
    assert free.error is None and march(shop, "globex") == 1100 + 10
    explained = json.loads(shop.command("explain", "revenue", "--period", "2026-03", "--tenant", "acme",
                                        "--json").stdout)
    assert explained["held"] == [DRIFTED] and explained["holds"]


def test_once_a_steward_accepts_the_next_run_takes_the_day_up(
    shop: Project, blocked: tuple[RunOutcome, dict[str, object], dict[str, object]]
) -> None:
    before = march(shop, "acme")
    shown = shop.command("drift", "show", "1")
    assert "physicalName: Tip" in shown.stdout and "numeric(18,2)" in shown.stdout
    accepted = shop.command("drift", "accept", "1", "--reason", "tips are new", "--by", "marco.bianchi")
    assert accepted.exit_code == 0, accepted.output
    assert "version 1.1.0 is current" in accepted.stdout
    second = shop.command("drift", "reject", "1", "--reason", "no")
    assert second.exit_code == 1 and "accepted already by marco.bianchi" in second.stderr
    current = Project(shop.settings, shop.database)
    outcome = current.run("order_to_cash", "acme", DAY, DAY)
    assert outcome.error is None, outcome.error
    assert march(shop, "acme") == before + 1000
    tips = "select tip::text from raw.order_to_cash__invoices where invoice_id = 'I7' and tip is not null"
    assert shop.rows(tips) == [("2.50",)]
    assert not current.run("order_to_cash", "acme", DAY, DAY).changed
    verified = shop.command("evidence", "verify")
    assert verified.exit_code == 0, verified.output
