"""What the lifecycle tells of itself: one event per change of state, and one per value that a publication changed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from resources.governance import slos
from tests.lifecycle.conftest import FIRST_DAY, LAST_DAY, Books, Project, Sales, three_months


def told(project: Project, type_: str, tenant: str = "acme") -> list[dict[str, Any]]:
    rows = project.rows("select envelope from platform.event where type = $1 and tenant_id = $2 order by position",
                        f"barecount.{type_}", tenant)
    return [envelope for (envelope,) in rows]


def test_every_kind_of_change_is_told_with_its_evidence(sales: Sales) -> None:
    project = sales.project
    for type_, kind in (("kpi.published",) * 2, ("gate.passed",) * 2, ("publish.finished",) * 2,
                        ("normalization.finished",) * 2, ("ingestion.finished",) * 2,
                        ("records.quarantined", "batch.landed")):
        found = told(project, type_)
        assert found, type_
        for envelope in found:
            ((recorded, token),) = project.rows(
                "select kind, run_token from platform.evidence where tenant_id = 'acme' and seq = $1",
                envelope["evidence"])
            assert (recorded, token) == (kind, envelope["runtoken"])


def test_a_first_publication_tells_every_value(sales: Sales) -> None:
    for tenant in ("acme", "globex"):
        for kpi in ("revenue", "dso", "overdue_ratio"):
            told_values = {
                (e["data"]["grain"], e["data"]["period"], e["data"]["dimensions"].get("business_unit")):
                    Decimal(e["data"]["value"])
                for e in told(sales.project, "kpi.changed", tenant) if e["subject"] == kpi}
            assert told_values == sales.project.series(kpi, tenant, "grain", "period", "business_unit")


def test_ids_are_those_the_software_would_give(sales: Sales) -> None:
    from resources.runtime.events import Event

    for envelope in told(sales.project, "kpi.published"):
        event = Event("acme", "kpi.published", envelope["subject"], envelope["runtoken"])
        assert envelope["id"] == event.id


@pytest.fixture(scope="module")
def books_project(new_project: Callable[..., Project]) -> Project:
    project = new_project()
    three_months(Books(project.folder("acme")))
    assert project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY).error is None
    return project


def test_a_later_publication_tells_only_what_it_changed(books_project: Project) -> None:
    project = books_project
    before = len(told(project, "kpi.changed"))
    Books(project.folder("acme")).invoices("2026-03-30", ("I7", "C1", "NORTH", "2026-03-30", 1000))
    assert project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY).error is None
    changed = [e["data"] for e in told(project, "kpi.changed")[before:] if e["subject"] == "revenue"]
    assert [(d["grain"], d["period"], d["dimensions"], Decimal(d["previous"]), Decimal(d["value"])) for d in changed] \
        == [("month", "2026-03", {"business_unit": "NORTH"}, 500, 1500), ("month_total", "2026-03", {}, 1100, 2100)]
    assert {d["publication_version"] for d in changed} == {2}
    assert all(d["period_complete"] for d in changed), "the sources have been read up to the last of March"


def test_a_value_is_in_the_state_its_thresholds_give(books_project: Project) -> None:
    for envelope in told(books_project, "kpi.changed"):
        data = envelope["data"]
        if data["kpi"] == "dso":
            value = Decimal(data["value"])
            assert data["threshold_state"] == ("critical" if value > 60 else "warning" if value > 45 else "ok")


def test_a_publication_that_grew_too_old_is_told_once(books_project: Project) -> None:
    project = books_project
    manifest = project.environment.declarations.pipeline("order_to_cash")
    now = dt.datetime.now(dt.UTC)
    with project.database.connect(autocommit=True) as connection:
        for hours, expected in ((1, False), (31, True), (32, False)):
            found = slos.check_freshness(connection, manifest, "acme", now + dt.timedelta(hours=hours))
            assert ("freshness" in [breach.objective for breach in found]) is expected, hours
    (envelope,) = [one for one in told(project, "slo.breached") if one["subject"] == "order_to_cash/freshness"]
    assert envelope["data"]["owners"] == ["ingrid.solheim@finance.example", "marco.bianchi@finance.example"]
    assert project.command("evidence", "verify").exit_code == 0


def test_a_source_that_delivers_nothing_is_late_however_often_is_published(books_project: Project) -> None:
    project = books_project
    manifest = project.environment.declarations.pipeline("order_to_cash")
    newest = project.value("select max(partition_date) from platform.raw_batch where tenant_id = 'acme' and is_current "
                           "and dataset = 'order_to_cash.payments'")
    due = dt.datetime.combine(newest, dt.time(), dt.UTC) + dt.timedelta(days=2, hours=30)
    with project.database.connect(autocommit=True) as connection:
        for minutes, expected in ((0, False), (1, True)):
            late = slos.late_data(connection, manifest, "acme", due + dt.timedelta(minutes=minutes))
            assert ("payments" in [one.what for one in late]) is expected
        slos.check_freshness(connection, manifest, "acme", due + dt.timedelta(minutes=1))
        assert slos.check_freshness(connection, manifest, "acme", due + dt.timedelta(minutes=2)) == []
    subjects = [one["subject"] for one in told(project, "slo.breached")]
    assert subjects.count("order_to_cash/freshness/payments") == 1


def test_too_many_refused_records_are_told_as_a_missed_promise(new_project: Callable[..., Project]) -> None:
    project = new_project()
    books = Books(project.folder("acme"))
    three_months(books)
    file = books.invoices("2026-01-06", ("I8", "C1", "NORTH", "2026-01-06", 100))
    file.write_text(file.read_text(encoding="windows-1252").replace("2026-01-06;2026-01-20", "sixth;2026-01-20"),
                    encoding="windows-1252")
    project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
    (envelope,) = told(project, "slo.breached")
    assert envelope["subject"] == "order_to_cash/completeness/invoices"
    assert envelope["data"]["found"] == "6 of 7 (85.71%)"


def test_a_failed_stage_is_told_with_its_error(books_project: Project) -> None:
    project = books_project
    truncated = project.folder("acme") / "crm" / "customers_2026-03-30.parquet"
    truncated.write_bytes((project.folder("acme") / "crm" / "customers_2026-01-05.parquet").read_bytes()[:100])
    outcome = project.run("order_to_cash", "acme", FIRST_DAY, LAST_DAY)
    truncated.unlink()
    assert outcome.error is not None
    (envelope,) = told(project, "stage.failed")
    assert envelope["data"]["error"]["correlation_id"] == outcome.error.correlation_id
    assert envelope["data"]["error"]["code"] == outcome.error.code
