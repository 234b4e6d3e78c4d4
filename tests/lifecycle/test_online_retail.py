"""The pipeline online_retail on real data: every figure is computed again here, in plain Python over the CSV files."""

from __future__ import annotations

import csv
import datetime as dt
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from barecount_assets.lifecycle import RunOutcome
from resources.runners.stage import Stage
from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import SHARED_DATA, Project, published, receipt

TENANT = "retail_uk"
FIRST, LAST = dt.date(2010, 12, 1), dt.date(2011, 12, 9)
FEES = {"POST", "DOT", "M", "m", "C2", "D", "S", "BANK CHARGES", "AMAZONFEE", "CRUK", "PADS", "B"}
KPIS = ("invoiced_amount", "net_sales", "cancellation_rate", "average_order_value", "active_customers")

Series = dict[tuple[str, str, str | None], Decimal]  # by grain, period and country


# The truth, without any code of the platform -----------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of a file, as text but for its numbers."""

    invoice: str
    stock_code: str
    description: str
    quantity: int
    moment: str
    price: Decimal
    customer: str
    country: str

    @property
    def day(self) -> str:
        return self.moment[:10]

    @property
    def amount(self) -> Decimal:
        return self.quantity * self.price

    @property
    def is_merchandise(self) -> bool:
        return self.invoice[0] not in "AC" and self.stock_code not in FEES and self.price != 0

    @property
    def is_net_sale(self) -> bool:
        return self.is_merchandise or (self.invoice[0] == "C" and self.stock_code not in FEES)


def read(files: Iterable[Path]) -> list[Line]:
    lines = []
    for path in sorted(files):
        with path.open(encoding="utf-8", newline="") as file:
            lines += [
                Line(r["InvoiceNo"], r["StockCode"], r["Description"], int(r["Quantity"]), r["InvoiceDate"],
                     Decimal(r["UnitPrice"]), r["CustomerID"], r["Country"])
                for r in csv.DictReader(file)
            ]
    return lines


def add_up(lines: Iterable[Line], measure: Callable[[Line], Any]) -> dict[tuple[str, str, str | None], list[Any]]:
    """What `measure` says of each line, by day and country, and by month."""
    groups: dict[tuple[str, str, str | None], list[Any]] = defaultdict(list)
    for line in lines:
        groups["day_country", line.day, line.country].append(measure(line))
        groups["month", line.day[:7], None].append(measure(line))
    return groups


def ratio(numerator: Decimal | int, denominator: int) -> Decimal:
    return (Decimal(numerator) / denominator).quantize(Decimal("0.000001"), ROUND_HALF_UP)


def expected_series(lines: list[Line]) -> dict[str, Series]:
    """All five KPIs from the lines, by the words of their formulas."""
    merchandise = [line for line in lines if line.is_merchandise]
    invoices: dict[str, Line] = {}
    for line in lines:
        invoices.setdefault(line.invoice, line)  # its first line says when and where
    counted = [line for line in invoices.values() if line.invoice[0] != "A"]
    return {
        "invoiced_amount": {k: sum(v) for k, v in add_up(lines, lambda x: x.amount).items()},
        "net_sales": {
            k: sum(v) for k, v in add_up(filter(lambda x: x.is_net_sale, lines), lambda x: x.amount).items()},
        "cancellation_rate": {
            k: ratio(sum(v), len(v)) for k, v in add_up(counted, lambda x: x.invoice[0] == "C").items()},
        "average_order_value": {
            k: ratio(sum(amount for _, amount in v), len({invoice for invoice, _ in v}))
            for k, v in add_up(merchandise, lambda x: (x.invoice, x.amount)).items()},
        "active_customers": {
            k: Decimal(len(set(v) - {""})) for k, v in add_up(merchandise, lambda x: x.customer).items()},
    }


# All of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retail:
    """The whole data set in a project, the run that brought it there, and the truth."""

    project: Project
    outcome: RunOutcome
    lines: list[Line]
    expected: dict[str, Series]


@pytest.fixture(scope="module")
def real_folder() -> Path:
    folder = SHARED_DATA / "online-retail"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}; set BARECOUNT_SHARED_DATA")
    return folder


@pytest.fixture(scope="module")
def retail(new_project: Callable[..., Project], real_folder: Path) -> Retail:
    project = new_project()
    outcome = project.run("online_retail", TENANT, FIRST, LAST, invoices=real_folder / "by-day")
    assert outcome.error is None, outcome.error
    lines = read((real_folder / "by-day").glob("*.csv"))
    return Retail(project, outcome, lines, expected_series(lines))


def test_every_line_is_received_and_none_quarantined(retail: Retail) -> None:
    counts = receipt(retail.outcome, Stage.INGESTION, "invoices").counts
    assert len(retail.lines) == 541_909
    assert (counts["units"], counts["received"]) == (305, 541_909)
    assert (counts["accepted"], counts["quarantined"]) == (541_909, 0)
    assert retail.project.value("select count(*) from raw.online_retail__invoices") == 541_909
    assert retail.project.value("select count(*) from platform.quarantine") == 0


def test_the_raw_table_holds_what_the_files_hold(retail: Retail) -> None:
    ((total, anonymous, nameless, free, negative),) = retail.project.rows(
        "select sum(quantity * unit_price), count(*) filter (where customer_id is null), "
        "count(*) filter (where description is null), count(*) filter (where unit_price = 0), "
        "count(*) filter (where unit_price < 0) from raw.online_retail__invoices")
    assert total == sum(line.amount for line in retail.lines) == Decimal("9747747.934")
    assert anonymous == sum(line.customer == "" for line in retail.lines) == 135_080
    assert nameless == sum(line.description == "" for line in retail.lines) == 1_454
    assert free == sum(line.price == 0 for line in retail.lines) == 2_515
    assert negative == sum(line.price < 0 for line in retail.lines) == 2


def test_lines_and_invoices_are_of_the_kinds_the_data_has(retail: Retail) -> None:
    invoices = dict(retail.project.rows(
        "select invoice_kind, count(*) from gdp.sales_invoice where valid_to_run is null group by 1"))
    lines = dict(retail.project.rows(
        "select line_kind, count(*) from gdp.sales_invoice_line where valid_to_run is null group by 1"))
    sales = [line for line in retail.lines if line.invoice[0] not in "AC"]
    assert sum(invoices.values()) == len({line.invoice for line in retail.lines}) == 25_900
    assert lines == {
        "cancellation": 9_288,
        "adjustment": 3,
        "fee": sum(line.stock_code in FEES for line in sales),
        "write_off": sum(line.stock_code not in FEES and line.price == 0 for line in sales),
        "merchandise": sum(line.is_merchandise for line in sales),
    }


def test_duplicate_lines_keep_a_position_of_their_own(retail: Retail) -> None:
    assert len(retail.lines) - len(set(retail.lines)) == 5_268
    assert retail.project.rows(
        "select count(*), count(distinct (invoice_no, line_position)) from gdp.sales_invoice_line "
        "where valid_to_run is null") == [(541_909, 541_909)]


@pytest.mark.parametrize("kpi", KPIS)
def test_a_kpi_is_what_plain_python_computes_for_every_day_country_and_month(retail: Retail, kpi: str) -> None:
    found = retail.project.series(kpi, TENANT, "grain", "period", "country")
    assert found == retail.expected[kpi]


def test_the_invoiced_amount_comes_to_the_figure_of_the_issue(retail: Retail) -> None:
    by_period = retail.project.series("invoiced_amount", TENANT, "grain", "period", "country")
    for grain in ("day_country", "month"):
        total = sum(value for key, value in by_period.items() if key[0] == grain)
        assert total == Decimal("9747747.934")
        assert total.quantize(Decimal("0.01")) == Decimal("9747747.93")


def test_reconciliation_agrees_with_the_control_totals_of_all_days(retail: Retail, real_folder: Path) -> None:
    with (real_folder / "control-totals.csv").open(encoding="utf-8", newline="") as file:
        totals = {row["file"]: Decimal(row["amount_gbp"]) for row in csv.DictReader(file)}
    ((passed, summary, details),) = retail.project.rows(
        "select passed, summary, details from platform.gate_result where gate = 'reconciliation'")
    assert (passed, details["compared"], details["differences"]) == (True, 305, 0), summary
    assert Decimal(details["theirs"]) == sum(totals.values())
    assert retail.project.value("select count(*) from platform.reconciliation_difference") == 0


def test_every_gate_of_every_kpi_was_decided_and_passed(retail: Retail) -> None:
    gates = dict(retail.project.rows("select kpi || ' ' || gate, passed from platform.gate_result"))
    assert gates == dict.fromkeys(
        [f"{kpi} acceptance" for kpi in KPIS] + ["invoiced_amount reconciliation"]
        + ["invoices completeness", "control_totals completeness"], True)


def test_a_year_is_one_dagster_run(retail: Retail) -> None:
    runs = retail.project.rows("select run_id, status from dagster.runs")
    assert runs == [(retail.outcome.dagster_run_id, "SUCCESS")]


def test_everything_is_published_once_with_evidence(retail: Retail) -> None:
    assert published(retail.outcome) == dict.fromkeys(KPIS, "published")
    assert retail.project.versions(TENANT) == dict.fromkeys(KPIS, 1)
    assert retail.project.value(
        "select count(*) from platform.publication p join platform.evidence e "
        "on e.tenant_id = p.tenant_id and e.seq = p.evidence_seq and e.kind = 'kpi.published'") == len(KPIS)


def test_a_second_run_of_the_year_does_no_work(retail: Retail, real_folder: Path) -> None:
    before = retail.project.state("platform", "published", "dagster")
    again = retail.project.run("online_retail", TENANT, FIRST, LAST, invoices=real_folder / "by-day")
    assert (again.changed, again.error, again.dagster_run_id) == (False, None, None)
    assert retail.project.state("platform", "published", "dagster") == before


# A few days, and what can be wrong with them -------------------------------------------------------------------


@dataclass(frozen=True)
class Chapter:
    """One run of the story and what was there after it."""

    exit_code: int
    result: dict[str, Any]
    versions: dict[str, int]
    content: dict[str, str]
    days: dict[str, Decimal]
    gdps: dict[str, str]
    differences: list[tuple]

    @property
    def error(self) -> dict[str, Any]:
        return self.result["error"]


CHANGED_DAY, SATURDAY, SUNDAY, CHRISTMAS = "2010-12-02", "2010-12-04", "2010-12-05", "2010-12-25"


@pytest.fixture(scope="module")
def story(new_project: Callable[..., Project], real_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Three days are published; then things go wrong and are put right, one after the other."""
    project = new_project()
    root = tmp_path_factory.mktemp("few-days")
    folder = root / "by-day"
    folder.mkdir()
    (root / "control-totals.csv").symlink_to(real_folder / "control-totals.csv")
    for day in ("2010-12-01", CHANGED_DAY, "2010-12-03"):
        (folder / f"{day}.csv").symlink_to(real_folder / "by-day" / f"{day}.csv")

    def chapter(last: str) -> Chapter:
        ran = project.command("run", "online_retail", "--json", "--from", "2010-12-01", "--to", last,
                              "--source", f"invoices={folder}")
        (result,) = json.loads(ran.stdout)
        by_country = project.series("invoiced_amount", TENANT, "grain", "period", "country")
        days: dict[str, Decimal] = defaultdict(Decimal)
        for (grain, period, _), value in by_country.items():
            if grain == "day_country":
                days[period] += value
        return Chapter(
            ran.exit_code, result, project.versions(TENANT), project.publication_hashes(TENANT), dict(days),
            project.gdp_hashes("online_retail", TENANT),
            project.rows("select key, ours, theirs, difference from platform.reconciliation_difference "
                         "where run_token = (select run_token from platform.stage_run where stage = 'kpi_build' "
                         "order by evidence_seq desc limit 1) order by key"))

    chapters = {"published": chapter("2010-12-03")}
    changed = folder / f"{CHANGED_DAY}.csv"
    changed.unlink()
    shutil.copy(real_folder / "by-day" / changed.name, changed)
    change_first_price(changed, by=Decimal("1.00"))
    chapters["changed"] = chapter("2010-12-03")
    chapters["changed again"] = chapter("2010-12-03")
    changed.unlink()
    changed.symlink_to(real_folder / "by-day" / changed.name)
    chapters["restored"] = chapter("2010-12-03")
    # A day that the control totals know, without a file; one they do not know, with a file; and in that file a line of
    # a day that nobody asked for.
    (folder / f"{SATURDAY}.csv").write_text(
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
        f"999998,22423,REGENCY CAKESTAND 3 TIER,2,{SATURDAY} 10:00:00,12.75,17850.0,United Kingdom\n"
        f"999999,22423,REGENCY CAKESTAND 3 TIER,4,{CHRISTMAS} 10:00:00,12.75,17850.0,United Kingdom\n")
    chapters["missing and extra"] = chapter(SUNDAY)
    (folder / f"{SATURDAY}.csv").write_text(
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n")
    (folder / f"{SUNDAY}.csv").symlink_to(real_folder / "by-day" / f"{SUNDAY}.csv")
    chapters["put right"] = chapter(SUNDAY)
    return {"project": project, "folder": real_folder, **chapters}


def change_first_price(path: Path, by: Decimal) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        header, first, *rest = csv.reader(file)
    first[5] = str(Decimal(first[5]) + by)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, first, *rest])


def true_days(folder: Path, *days: str) -> dict[str, Decimal]:
    return {day: sum(line.amount for line in read([folder / "by-day" / f"{day}.csv"])) for day in days}


def test_a_few_days_agree_with_their_control_totals(story: dict) -> None:
    assert story["published"].exit_code == 0
    assert story["published"].days == true_days(story["folder"], "2010-12-01", CHANGED_DAY, "2010-12-03")


def test_one_changed_price_stops_the_publication_and_names_day_and_difference(story: dict) -> None:
    (first, *_) = read([story["folder"] / "by-day" / f"{CHANGED_DAY}.csv"])
    changed: Chapter = story["changed"]
    assert changed.exit_code == 1
    assert changed.error["code"] == ErrorCode.GATE_FAILED
    assert f"{CHANGED_DAY}: " in changed.error["message"]
    assert f"difference {first.quantity}.00" in changed.error["message"]
    assert "2010-12-01" not in changed.error["message"] and "2010-12-03" not in changed.error["message"]
    assert changed.error["hint"] and changed.error["correlation_id"] and changed.error["retryable"] is False


def test_the_difference_is_kept_by_its_key(story: dict) -> None:
    truth = true_days(story["folder"], CHANGED_DAY)[CHANGED_DAY]
    (first, *_) = read([story["folder"] / "by-day" / f"{CHANGED_DAY}.csv"])
    ((key, ours, theirs, difference),) = story["changed"].differences
    assert (key, ours, difference) == (CHANGED_DAY, truth + first.quantity, first.quantity)
    assert theirs == truth.quantize(Decimal("0.01"))


def test_the_previous_publication_stays_in_place(story: dict) -> None:
    before, changed = story["published"], story["changed"]
    assert (changed.versions, changed.content, changed.days) == (before.versions, before.content, before.days)


def test_a_failed_gate_stays_failed_without_doing_the_work_again(story: dict) -> None:
    first, second = story["changed"], story["changed again"]
    assert (second.exit_code, second.error["code"]) == (1, ErrorCode.GATE_FAILED)
    assert CHANGED_DAY in second.error["message"] and second.result["dagster_run_id"] is None
    assert (second.versions, second.gdps) == (first.versions, first.gdps)


def test_restoring_the_file_brings_the_old_numbers_back(story: dict) -> None:
    before, restored = story["published"], story["restored"]
    assert restored.exit_code == 0 and "error" not in restored.result
    assert (restored.content, restored.days, restored.gdps) == (before.content, before.days, before.gdps)
    assert story["changed"].gdps != before.gdps
    assert restored.versions == before.versions, "what is the same is not published a second time"


def test_a_missing_days_file_an_extra_day_and_a_line_of_another_day_are_found(story: dict) -> None:
    wrong: Chapter = story["missing and extra"]
    truth = true_days(story["folder"], SUNDAY)[SUNDAY]
    assert (wrong.exit_code, wrong.error["code"]) == (1, ErrorCode.GATE_FAILED)
    assert f"{SATURDAY}: 25.5" in wrong.error["message"]
    assert "no entry in the system of record" in wrong.error["message"]
    assert f"{SUNDAY}: nothing here" in wrong.error["message"]
    assert wrong.differences == [
        (SATURDAY, Decimal("25.50"), None, None),
        (SUNDAY, None, truth.quantize(Decimal("0.01")), None),
        (CHRISTMAS, Decimal("51.00"), None, None),
    ]
    assert wrong.days == story["published"].days


def test_delivering_the_missing_day_and_emptying_the_extra_one_publishes_again(story: dict) -> None:
    right: Chapter = story["put right"]
    assert right.exit_code == 0
    assert right.days == true_days(story["folder"], "2010-12-01", CHANGED_DAY, "2010-12-03", SUNDAY)
    assert right.versions["invoiced_amount"] == 2


def test_every_decision_of_a_gate_is_in_the_evidence(story: dict) -> None:
    project: Project = story["project"]
    kinds = [kind for (kind,) in project.rows(
        "select kind from platform.evidence where subject = 'invoiced_amount/reconciliation' order by seq")]
    assert kinds == ["gate.passed", "gate.failed", "gate.passed", "gate.failed", "gate.passed"]


# Acting on it ------------------------------------------------------------------------------------------------


def unusual_days(lines: list[Line]) -> dict[str, tuple[Fraction, Fraction]]:
    """Days on which the rule `cancellations_unusual` must fire, with value and median: its words in plain Python."""
    days: dict[str, list[bool]] = defaultdict(list)
    first = {line.invoice: line for line in reversed(lines)}
    for line in first.values():
        if line.country == "United Kingdom" and line.invoice[0] != "A":
            days[line.day].append(line.invoice[0] == "C")
    series = [(day, Fraction(sum(cancelled), len(cancelled))) for day, cancelled in sorted(days.items())]
    found = {}
    for number, (day, value) in enumerate(series):
        before = [other for _, other in series[max(0, number - 28) : number]]
        if len(before) < 14 or value <= Fraction(1, 5):
            continue
        expected = statistics.median(before)
        spread = statistics.median(abs(other - expected) for other in before)
        if spread and (value - expected) / (Fraction("1.4826") * spread) > 3:
            found[day] = (value, expected)
    return found


def test_the_shipped_rule_fires_on_exactly_the_days_that_are_unusual(retail: Retail) -> None:
    from barecount_assets.action_work import ActionWork

    expected = unusual_days(retail.lines)
    assert len(expected) == 5, "neither none nor every day"
    told = json.loads(retail.project.command(
        "actions", "evaluate", "cancellations_unusual", "--since", "2000-01-01", "--json").stdout)
    assert [job["period"] for job in told["jobs"] if job["kind"] == "alert"] == sorted(expected)
    assert {line["event"] for line in told["events"] if line["outcome"] == "job"} == {
        job["occurrences"][0]["event_id"] for job in told["jobs"] if job["kind"] == "alert"}
    work = ActionWork.of(retail.project.environment)
    work.evaluate()
    rows = retail.project.rows(
        "select period, draft -> 'occurrences' -> 0 -> 'facts' from platform.action_job "
        "where rule = 'cancellations_unusual' and kind = 'alert' order by job_id")
    assert [period for period, _ in rows] == sorted(expected)
    for period, facts in rows:
        assert [float(facts[name]) for name in ("value", "expected")] == pytest.approx(
            [float(number) for number in expected[period]], abs=1e-6)
    assert work.evaluate().idle
