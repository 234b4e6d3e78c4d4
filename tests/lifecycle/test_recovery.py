"""Runs are computed again from raw as they were and as declared now; refused records are fixed and counted."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest

from barecount_assets import recompute, retention
from barecount_assets.recompute import Recomputation, Versions
from resources.governance import approvals
from resources.runners.stage import Stage
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger
from tests.lifecycle.conftest import FIRST_DAY, LAST_DAY, PROJECT, Books, Project, receipt, three_months

FIRST_MONTHS = ("2026-01", "2026-02", "2026-03")


@dataclass(frozen=True)
class Recovery:
    """Books that ran once; `changed` is the same project with another definition of revenue."""

    project: Project
    changed: Project
    books: Books
    first_token: str

    def recompute(self, project: Project, versions: Versions, **how: bool) -> Recomputation:
        return recompute.recompute(
            project.environment, self.first_token, None, versions, "marco", lambda *_: None, **how)

    def require_evidence(self) -> None:
        with self.project.database.connect(autocommit=True) as connection:
            assert ledger.verify(connection, "acme").findings == ()


@pytest.fixture(scope="module")
def recovery(new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Recovery:
    folders = [tmp_path_factory.mktemp("project") for _ in range(2)]
    for folder in folders:
        for tree in ("contracts", "dbt_project"):
            shutil.copytree(PROJECT / tree, folder / tree, ignore=shutil.ignore_patterns("target", "logs"))
    edit(folders[1] / "dbt_project/models/kpi/order_to_cash/revenue.sql", "sum(net_amount)", "2 * sum(net_amount)")
    edit(folders[1] / "contracts/kpis/order_to_cash/revenue.yaml", "version: 1.0.0", "version: 1.1.0")
    edit(folders[1] / "contracts/tenants/acme.yaml", "subdivision: ENG", "subdivision: SCT")
    project = new_project(folders[0])
    changed = Project(replace(project.settings, project_dir=folders[1]), project.database)
    books = Books(project.folder("acme"))
    three_months(books)
    books.payments("2026-03-18", ("P4", "I77", "2026-03-18", 10))  # of no invoice
    outcome = project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
    assert outcome.error is None, outcome.error
    return Recovery(project, changed, books, receipt(outcome, Stage.PUBLISH).run_token)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_run_comes_out_the_same_with_the_versions_of_then_whatever_is_declared_now(recovery: Recovery) -> None:
    before = recovery.project.state("gdp", "kpi", "published", "raw")
    found = recovery.recompute(recovery.changed, "recorded")
    assert found.identical
    assert {output.name for output in found.outputs} == {
        "customer", "invoice_payment", "invoice_settlement", "calendar", "revenue", "dso", "overdue_ratio"}
    assert recovery.project.state("gdp", "kpi", "published", "raw") == before
    assert recovery.project.rows("select tablename from pg_tables where schemaname = 'scratch'") == []
    recovery.require_evidence()


def test_what_differs_with_the_versions_of_now_is_named_key_by_key(recovery: Recovery) -> None:
    found = recovery.recompute(recovery.changed, "current")
    differing = {output.name: output for output in found.outputs if not output.identical}
    assert set(differing) == {"revenue", "calendar"}
    revenue = differing["revenue"]
    assert revenue.differences == len(revenue.named) > 0
    month = next(d for d in revenue.named if d.key == "grain month, period 2026-01, business_unit NORTH")
    assert month.change == "changed"
    assert {name: tuple(map(Decimal, month.columns[name])) for name in ("value", "numerator")} == {
        "value": (Decimal(100), Decimal(200)), "numerator": (Decimal(100), Decimal(200))}


def test_what_the_evidence_says_must_come_out_or_the_run_is_not_identical(recovery: Recovery) -> None:
    recovery.project.as_owner("update raw.order_to_cash__invoices set net_amount = 101 where invoice_id = 'I1'")
    try:
        result = recovery.project.command("replay", recovery.first_token[:20], "--json")
    finally:
        recovery.project.as_owner("update raw.order_to_cash__invoices set net_amount = 100 where invoice_id = 'I1'")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert not document["identical"]
    settlement = next(output for output in document["outputs"] if output["name"] == "invoice_settlement")
    assert [(d["key"], d["change"]) for d in settlement["named"]] == [("invoice_id I1", "changed")]
    assert settlement["named"][0]["columns"]["net_amount"] == ["100.00", "101.00"]


def test_recomputed_numbers_are_published_and_linked_to_the_run(recovery: Recovery) -> None:
    with pytest.raises(BareCountError) as refused:
        recovery.recompute(recovery.project, "recorded", publish=True)
    assert refused.value.code is ErrorCode.USAGE
    versions = recovery.project.versions("acme")
    found = recovery.recompute(recovery.changed, "current", publish=True)
    assert found.published is not None and found.published["revenue"] == {
        "version": versions["revenue"] + 1, "state": "published"}
    assert recovery.project.series("revenue", "acme", "grain", "period", "business_unit")[
        "month_total", "2026-01", None] == 600
    assert recovery.project.value(
        "select replay_of from platform.replay where published is not null") == recovery.first_token
    recovery.require_evidence()


def test_a_record_that_normalization_refused_is_fixed_replayed_and_counted(recovery: Recovery) -> None:
    project = recovery.changed
    (record,) = json.loads(project.command("quarantine", "list", "--json").stdout)
    assert (record["stage"], record["state"]) == ("normalization", "open")
    before = project.series("overdue_ratio", "acme", "grain", "period", "business_unit", column="numerator")

    unfixed = json.loads(project.command("quarantine", "replay", "--json").stdout)
    assert [row["still_refused"] for row in unfixed["normalization"]] == [1]
    fixed = json.loads(project.command(
        "quarantine", "replay", "--fix", "invoiceId=I2", "--why", "the bank's typing error", "--json").stdout)
    assert [(row["replayed"], row["refused_again"]) for row in fixed["ingestion"]] == [(1, 0)]
    outcome = project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
    assert outcome.error is None, outcome.error
    assert project.value("select paid_amount from gdp.invoice_settlement "
                         "where invoice_id = 'I2' and valid_to_run is null") == 10
    assert project.series("overdue_ratio", "acme", "grain", "period", "business_unit", column="numerator") != before
    assert project.value("select count(*) from platform.quarantine_record where state <> 'replayed'") == 0
    recovery.require_evidence()


def test_raw_that_has_moved_on_is_computed_again_as_it_was_and_not_published(recovery: Recovery) -> None:
    recovery.books.payments("2026-03-25", ("P5", "I5", "2026-03-25", 300))
    outcome = recovery.changed.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
    assert outcome.error is None, outcome.error
    assert recovery.recompute(recovery.changed, "recorded").identical
    with pytest.raises(BareCountError, match="raw batches of then are not those of now"):
        recovery.recompute(recovery.changed, "current", publish=True)
    assert dt.date(2026, 3, 25) in [row[0] for row in recovery.project.rows(
        "select paid_on from gdp.invoice_payment where valid_to_run is null")]


def test_a_number_whose_raw_expired_says_so_and_its_rows_do_not_vanish(recovery: Recovery) -> None:
    project = recovery.changed
    retention.expire(project.environment, dt.datetime(2040, 1, 1, tzinfo=dt.UTC), "marco", "acme",
                     "order_to_cash.invoices")
    shown = json.loads(project.command("explain", "revenue", "--period", "2026-01", "--tenant", "acme",
                                       "--json").stdout)
    assert shown["holds"] and len(shown["expired"]) == 3
    with pytest.raises(BareCountError, match="deleted under retention"):
        recovery.recompute(project, "recorded")
    outcome = recovery.project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)  # its models are others
    assert outcome.error is not None and outcome.error.code is ErrorCode.STORE_EXPIRED
    recovery.require_evidence()


def test_a_run_goes_on_without_what_somebody_let_go(recovery: Recovery) -> None:
    project = recovery.project
    current = "from gdp.{} where valid_to_run is null order by 1".format
    payments = project.value("select count(*) from gdp.invoice_payment where valid_to_run is null")
    forgotten = project.command("raw", "forget", "order_to_cash", "--tenant", "acme", "--reason", "the year is closed")
    assert forgotten.exit_code == 0, forgotten.output
    recovery.books.invoices("2026-04-07", ("I7", "C1", "NORTH", "2026-04-07", 700))
    outcome = project.run("order_to_cash", "acme", FIRST_DAY, dt.date(2026, 4, 30))
    assert outcome.error is None, outcome.error
    assert project.rows("select invoice_id " + current("invoice_settlement")) == [("I7",)]
    assert project.value("select count(*) from gdp.invoice_settlement where invoice_id = 'I1'") > 0, "history stays"
    assert project.rows("select payment_id " + current("invoice_payment")) == []
    assert project.value("select count(*) from platform.quarantine_record where state = 'open' and stage = "
                         "'normalization'") == payments > 0, "payments of no invoice any more"
    assert set(project.series("revenue", "acme", "grain", "period", "business_unit").values()) == {700}
    again = project.run("order_to_cash", "acme", FIRST_DAY, dt.date(2026, 4, 30))
    assert not again.changed, again.receipts
    recovery.require_evidence()


def test_a_backfill_that_stopped_is_resumed_and_leaves_one_trail(new_project: Callable[..., Project]) -> None:
    project = new_project()
    books = Books(project.folder("acme"))
    three_months(books)
    damaged = books.customers("2026-02-04", "C1", "C2")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    command = ("run", "order_to_cash", "--tenant", "acme", "--from", "2026-01-02", "--to", "2026-02-28", "--backfill",
               "--json")
    waiting = project.command(*command)
    assert waiting.exit_code == 1 and json.loads(waiting.stdout)["error"]["code"] == "approval.required"
    with project.database.transaction() as connection:
        (request,) = approvals.listed(connection, dt.datetime.now(dt.UTC))
        approvals.answer(connection, request.approval_id, approve=True, by="nadia", reason="agreed with finance",
                         now=dt.datetime.now(dt.UTC))

    stopped = project.command(*command)
    (document,) = json.loads(stopped.stdout)
    assert stopped.exit_code == 1 and document["error"]["code"] == "source.malformed"
    assert (document["partitions"], document["done"], document["resumed"]) == (2, 1, 0)
    assert project.value("select max(period) from published.revenue where tenant_id = 'acme'").startswith("2026-01")

    damaged.write_bytes(whole)
    resumed = project.command(*command)
    (document,) = json.loads(resumed.stdout)
    assert resumed.exit_code == 0, resumed.output
    assert (document["done"], document["resumed"]) == (2, 1)
    kinds = project.rows("select kind, run_token from platform.evidence where kind like 'backfill.%' order by seq")
    assert kinds == [("backfill.started", document["run_token"]), ("backfill.finished", document["run_token"])]
    entry = json.loads(project.value("select body from platform.evidence where kind = 'backfill.finished'"))
    known = {token for (token,) in project.rows("select run_token from platform.stage_run")}
    parts = entry["payload"]["partitions"]
    assert [(part["from"], part["to"]) for part in parts] == [
        ("2026-01-02", "2026-01-31"), ("2026-02-01", "2026-02-28")]
    assert all(part["runs"] and set(part["runs"].values()) <= known for part in parts)
    with project.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").findings == ()
