"""Late and corrected data: history is kept, only what is affected is computed again, and earlier states stay readable.

The books have six invoices over three months. Then the bank delivers late, the ERP corrects a file, and takes the
correction back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from barecount_assets import lifecycle
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.stages import execute
from resources.runners.stage import Stage
from resources.storage import gdp_store
from resources.trust import ledger
from tests.lifecycle.conftest import FIRST_DAY, LAST_DAY, Books, Content, Project, published, receipt, three_months

MODELS = ("customer", "invoice_payment", "invoice_settlement")
KPIS = ("revenue", "dso", "overdue_ratio")


@dataclass(frozen=True)
class Moment:
    """A run and what was there after it."""

    outcome: RunOutcome
    run_id: int
    gdps: Content
    content: Content
    versions: dict[str, int]
    written: dict[str, dict[tuple[str, str], set[str]]]
    """By KPI, and by grain and period: the transactions that wrote its rows."""


@dataclass(frozen=True)
class History:
    project: Project
    first: Moment
    late: Moment
    corrected: Moment
    reverted: Moment


@pytest.fixture(scope="module")
def history(new_project: Callable[..., Project]) -> History:
    project = new_project()
    books = Books(project.folder("acme"))
    three_months(books)

    def moment() -> Moment:
        outcome = project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
        assert outcome.error is None, outcome.error
        written: dict[str, dict[tuple[str, str], set[str]]] = {}
        for kpi in KPIS:
            for grain, period, transaction in project.rows(f"select grain, period, xmin::text from kpi.{kpi}"):
                written.setdefault(kpi, {}).setdefault((grain, period), set()).add(transaction)
        return Moment(
            outcome, receipt(outcome, Stage.NORMALIZATION).facts["run_id"], project.gdp_hashes("order_to_cash", "acme"),
            project.publication_hashes("acme"), project.versions("acme"), written)

    first = moment()
    books.payments("2026-03-20", ("P4", "I4", "2026-02-20", 100), suffix="_late")  # of February, a month late
    late = moment()
    file = project.folder("acme") / "erp" / "invoices_2026-02-03.csv"
    original = file.read_bytes()
    books.invoices("2026-02-03", ("I3", "C1", "NORTH", "2026-02-03", 350), ("I4", "C2", "SOUTH", "2026-02-03", 400))
    corrected = moment()
    file.write_bytes(original)
    reverted = moment()
    return History(project, first, late, corrected, reverted)


def settlement(history: History, invoice: str) -> list[tuple[Any, ...]]:
    """(version, from run, to run, paid, gross) of every version of an invoice."""
    return history.project.rows(
        "select row_version, valid_from_run, valid_to_run, paid_amount, gross_amount from gdp.invoice_settlement "
        "where invoice_id = $1 order by row_version", invoice)


def as_of(history: History, moment: Moment) -> Content:
    with history.project.database.connect() as connection:
        return {model: gdp_store.as_of_hash(connection, model, "acme", moment.run_id)[0] for model in MODELS}


def rewritten(before: Moment, after: Moment, kpi: str) -> set[str]:
    """Periods whose rows another transaction wrote."""
    return {period for (grain, period), wrote in after.written[kpi].items()
            if before.written[kpi].get((grain, period)) != wrote}


def test_a_late_payment_gives_its_invoice_a_second_version_and_closes_the_first(history: History) -> None:
    first, second, *_ = settlement(history, "I4")
    assert first == (1, history.first.run_id, history.late.run_id, Decimal("0.00"), Decimal("480.00"))
    assert (second[0], second[1], second[3]) == (2, history.late.run_id, Decimal("100.00"))


def test_what_did_not_change_keeps_its_only_version(history: History) -> None:
    for invoice in ("I1", "I2", "I5", "I6"):
        assert [row[:3] for row in settlement(history, invoice)] == [(1, history.first.run_id, None)]
    versions = {output.name: output.facts for output in receipt(history.late.outcome, Stage.NORMALIZATION).outputs}
    assert versions == {
        "customer": {"versions_added": 0, "versions_closed": 0},
        "invoice_payment": {"versions_added": 1, "versions_closed": 0},
        "invoice_settlement": {"versions_added": 1, "versions_closed": 1},
    }


@pytest.mark.parametrize("name", ["first", "late", "corrected", "reverted"])
def test_reading_as_of_a_run_gives_what_was_there_after_it(history: History, name: str) -> None:
    moment: Moment = getattr(history, name)
    assert as_of(history, moment) == moment.gdps
    assert moment.gdps == {o.name: o.content_sha256 for o in receipt(moment.outcome, Stage.NORMALIZATION).outputs}


def test_rows_can_be_read_as_of_a_run(history: History) -> None:
    def paid(moment: Moment) -> dict[str, Decimal]:
        with history.project.database.connect() as connection:
            rows = gdp_store.read_as_of(connection, "invoice_settlement", "acme", moment.run_id,
                                        ["invoice_id", "paid_amount"])
        return {row["invoice_id"]: row["paid_amount"] for row in rows}

    assert paid(history.first)["I4"] == 0 and paid(history.late)["I4"] == 100
    assert len(paid(history.first)) == len(paid(history.late)) == 6


def test_a_late_payment_rebuilds_the_months_it_touches_and_no_other(history: History) -> None:
    # Open at a month's end depends on every payment until then: from February on. Revenue knows no payments, but the
    # changed version of the settlement is of February.
    assert rewritten(history.first, history.late, "dso") == {"2026-02", "2026-03"}
    assert rewritten(history.first, history.late, "overdue_ratio") == {"2026-02", "2026-03"}
    assert rewritten(history.first, history.late, "revenue") == {"2026-02"}


def test_a_corrected_invoice_rebuilds_its_month_of_revenue_only(history: History) -> None:
    assert rewritten(history.late, history.corrected, "revenue") == {"2026-02"}
    assert rewritten(history.late, history.corrected, "dso") == {"2026-02", "2026-03"}


def test_only_kpis_whose_content_changed_get_a_new_version(history: History) -> None:
    assert published(history.late.outcome) == {"revenue": "unchanged", "dso": "published", "overdue_ratio": "published"}
    assert history.first.versions == {"revenue": 1, "dso": 1, "overdue_ratio": 1}
    assert history.late.versions == {"revenue": 1, "dso": 2, "overdue_ratio": 2}
    assert history.corrected.versions["revenue"] == 2


def test_every_earlier_publication_stays_readable_as_it_was(history: History) -> None:
    analyst = history.project.database.analyst_url("acme")
    with psycopg.connect(analyst) as connection:
        found = dict(connection.execute(
            "select version, numerator from published.dso__versions "
            "where grain = 'month_total' and period = '2026-02'").fetchall())
        current = connection.execute(
            "select numerator from published.dso where grain = 'month_total' and period = '2026-02'").fetchone()
    # Open at the end of February, times its 28 days: 60 of I1, 240 of I2, 480 of I4 (less 100), and of I3, which is
    # settled, 60 while it was corrected.
    assert found == {1: 780 * 28, 2: 680 * 28, 3: 740 * 28, 4: 680 * 28}
    assert current == (680 * 28,)


def test_a_replaced_file_supersedes_what_the_same_file_said(history: History) -> None:
    assert [(row[0], row[4]) for row in settlement(history, "I3")] == [
        (1, Decimal("360.00")), (2, Decimal("420.00")), (3, Decimal("360.00"))]
    batches = history.project.rows(
        "select is_current from platform.raw_batch where source_id = 'invoices_2026-02-03.csv' order by batch_id")
    assert batches == [(True,), (False,)], "both stay, the reinstated one counts"


def test_reverting_a_file_brings_the_old_content_back(history: History) -> None:
    assert history.corrected.content != history.late.content
    assert history.reverted.gdps == history.late.gdps
    assert history.reverted.content == history.late.content
    assert receipt(history.reverted.outcome, Stage.INGESTION, "invoices").counts["reinstated"] == 1


def test_going_back_is_work_of_its_own_and_on_record(history: History) -> None:
    tokens = {receipt(moment.outcome, Stage.NORMALIZATION).run_token
              for moment in (history.first, history.late, history.corrected, history.reverted)}
    assert len(tokens) == 4
    assert history.project.value(
        "select count(*) from platform.evidence where kind = 'batch.reinstated'") == 1
    assert history.project.value("select count(*) from platform.evidence where kind = 'kpi.published'") == 3 + 2 + 3 + 3


def test_after_going_back_nothing_is_to_be_done(history: History) -> None:
    before = history.project.state()
    assert not history.project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY).changed
    assert history.project.state() == before


def test_a_pointer_turned_back_to_an_older_publication_is_found(history: History) -> None:
    project, explain = history.project, ("explain", "dso", "--tenant", "acme", "--period", "2026-02")
    assert project.command(*explain).exit_code == 0
    turn = "update published.current_version set version = {} where tenant_id = 'acme' and name = 'dso'"
    project.as_owner(turn.format(1))
    try:
        result = project.command(*explain)
    finally:
        project.as_owner(turn.format(4))
    assert result.exit_code == 1 and "NOT PROVEN" in result.stdout
    assert "current version of dso: evidence says 4" in result.stdout
    assert project.command(*explain).exit_code == 0


# Copies of a file ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counter:
    """The ERP's files of one day, and the invoices that count after they were ingested."""

    project: Project
    books: Books

    def say(self, suffix: str, *invoices: str) -> None:
        """One of the day's files has these invoices now."""
        self.books.invoices(
            "2026-01-05", *((name, "C1", "NORTH", "2026-01-05", 100) for name in invoices), suffix=suffix)

    def counted(self) -> list[str]:
        """Ingest, twice; the invoices that count, each as often as it does."""
        environment = self.project.environment
        manifest = environment.declarations.effective("order_to_cash", "acme")
        specs = lifecycle.specs(manifest, RunRequest("order_to_cash", "acme", FIRST_DAY, LAST_DAY))
        (spec,) = [spec for spec in specs if spec.stage is Stage.INGESTION and spec.source == "invoices"]
        execute(spec, lambda *_: None, environment)
        found = self._found()
        again = execute(spec, lambda *_: None, environment)
        assert not again.changed and self._found() == found, "a second run finds nothing to do"
        assert not execute(replace(spec, probe=True), lambda *_: None, environment).changed
        return found

    def _found(self) -> list[str]:
        return [invoice for (invoice,) in self.project.rows(
            "select invoice_id from raw.order_to_cash__invoices join platform.raw_batch on batch_id = _batch_id "
            "where is_current order by 1")]


@pytest.fixture
def counter(new_project: Callable[..., Project]) -> Counter:
    project = new_project()
    return Counter(project, Books(project.folder("acme")))


def test_a_copy_of_a_file_counts_once(counter: Counter) -> None:
    counter.say("", "A", "B")
    assert counter.counted() == ["A", "B"]
    counter.say("_copy", "A", "B")
    assert counter.counted() == ["A", "B"]
    kinds = counter.project.rows("select kind, subject from platform.evidence where kind like 'batch.%' order by seq")
    assert kinds == [("batch.landed", "order_to_cash.invoices/invoices_2026-01-05.csv"),
                     ("batch.redelivered", "order_to_cash.invoices/invoices_2026-01-05_copy.csv")]


@pytest.mark.parametrize("corrected", ["", "_copy"])
def test_of_two_copies_one_can_be_corrected_and_the_other_still_counts(counter: Counter, corrected: str) -> None:
    (other,) = {"", "_copy"} - {corrected}
    counter.say(corrected, "A", "B")
    counter.say(other, "A", "B")
    assert counter.counted() == ["A", "B"]
    counter.say(corrected, "C")
    assert counter.counted() == ["A", "B", "C"]
    counter.say(other, "D")
    assert counter.counted() == ["C", "D"]
    counter.say(corrected, "A", "B")
    assert counter.counted() == ["A", "B", "D"]


def test_a_file_that_comes_to_say_what_another_says_takes_back_what_it_said(counter: Counter) -> None:
    counter.say("", "A")
    counter.say("_more", "B")
    assert counter.counted() == ["A", "B"]
    counter.say("_more", "A")
    assert counter.counted() == ["A"]


def test_a_file_can_go_back_and_forth_any_number_of_times(counter: Counter) -> None:
    for _ in range(3):
        for invoice in ("A", "B"):
            counter.say("", invoice)
            assert counter.counted() == [invoice]
    assert counter.project.value("select count(*) from platform.raw_batch") == 2
    with counter.project.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").intact
