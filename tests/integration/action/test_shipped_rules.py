"""The shipped rules on real data fire on exactly the days that plain Python over the files names."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from resources.action import jobs, people
from resources.governance import declarations
from resources.runtime import events
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.storage import published_store
from tests.integration.action.engine_world import NOW

TENANT, COUNTRY = "retail_uk", "United Kingdom"


def rates(folder: Path) -> list[tuple[str, Fraction]]:
    """Share of cancellations among the sale and cancellation invoices of each day of the home market."""
    first: dict[str, tuple[str, str]] = {}
    for path in sorted((folder / "by-day").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                first.setdefault(row["InvoiceNo"], (row["InvoiceDate"][:10], row["Country"]))
    days: dict[str, list[bool]] = defaultdict(list)
    for invoice, (day, country) in first.items():
        if country == COUNTRY and invoice[0] != "A":
            days[day].append(invoice[0] == "C")
    return [(day, Fraction(sum(cancelled), len(cancelled))) for day, cancelled in sorted(days.items())]


def unusual(series: list[tuple[str, Fraction]]) -> list[str]:
    """Above a fifth, and more than three robust deviations above the median of the 28 trading days before."""
    found = []
    for number, (day, value) in enumerate(series):
        before = [other for _, other in series[max(0, number - 28) : number]]
        if len(before) < 14 or value <= Fraction(1, 5):
            continue
        expected = statistics.median(before)
        spread = statistics.median(abs(other - expected) for other in before)
        if spread and (value - expected) / (Fraction("1.4826") * spread) > 3:
            found.append(day)
    return found


def test_unusual_cancellations_are_told_of_on_exactly_the_days_that_had_them(
    settings: Settings, database: Database, real_data: Path
) -> None:
    declared = declarations.load(settings.project_dir)
    series = rates(real_data)
    values = {day: str(round(Decimal(rate.numerator) / rate.denominator, 6)) for day, rate in series}
    contract = declared.contract("online_retail.cancellation_rate", "activation")
    with database.transaction() as connection:
        fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (TENANT,))
        published_store.ensure(connection, "cancellation_rate", contract.column_types)
        for day, value in values.items():
            fetch(connection, "insert into published.snapshot__cancellation_rate (version, tenant_id, grain, period, "
                              "period_start, country, value) values (1, $1, 'day_country', $2, $2::text::date, $3, "
                              "$4::text::numeric)", (TENANT, day, COUNTRY, value))
        events.append(connection, *(
            events.Event(TENANT, "kpi.changed", "cancellation_rate", day, {
                "kpi": "cancellation_rate", "pipeline": "online_retail", "grain": "day_country", "period": day,
                "period_start": day, "dimensions": {"country": COUNTRY}, "value": value, "previous": None,
                "unit": "ratio", "threshold_state": "ok", "publication_version": 1}) for day, value in values.items()))
    done = jobs.evaluate(database, declared, jobs.rulebook(declared), lambda: NOW)
    assert done.events == len(series)
    with database.connect(autocommit=True) as connection:
        found = [job for job in people.listed(connection, limit=1_000) if job.kind == "alert"][::-1]
    expected = unusual(series)
    assert [job.period for job in found] == expected and len(expected) == 5
    assert {job.rule for job in found} == {"cancellations_unusual"}
    first = found[0].draft["occurrences"][0]["facts"]
    assert float(first["score"]) > 3 and float(first["expected"]) == pytest.approx(0.130190, abs=1e-6)
