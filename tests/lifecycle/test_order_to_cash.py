"""The pipeline order_to_cash on the generated sample: the KPIs are those the generator added up while inventing it."""

from __future__ import annotations

import calendar
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest

from barecount_assets.sample import BUSINESS_UNITS, SampleFacts
from resources.runners.stage import Stage
from tests.lifecycle.conftest import Project, Sales, published, receipt

TENANTS = ("acme", "globex")
SOURCES = ("invoices", "payments", "customers")
by_tenant = pytest.mark.parametrize("tenant", TENANTS)


def measured(project: Project, kpi: str, tenant: str, column: str) -> dict[tuple[str, str], Decimal]:
    """A column of a published KPI by month and business unit."""
    rows = project.rows(
        f"select period, business_unit, {column} from published.{kpi} where tenant_id = $1 and grain = 'month'", tenant)
    return {(period, unit): value for period, unit, value in rows}


def totals(project: Project, kpi: str, tenant: str, column: str) -> dict[str, Decimal]:
    """A column of a published KPI by month, over all business units."""
    return dict(project.rows(
        f"select period, {column} from published.{kpi} where tenant_id = $1 and grain = 'month_total' "
        "and business_unit is null", tenant))


def summed(amounts: Any) -> dict[str, Decimal]:
    months: dict[str, Decimal] = {}
    for (month, _), amount in amounts.items():
        months[month] = months.get(month, Decimal(0)) + amount
    return months


def days_of(month: str) -> int:
    year, number = map(int, month.split("-"))
    return calendar.monthrange(year, number)[1]


def ratio(numerator: Decimal, denominator: Decimal) -> Decimal | None:
    return (numerator / denominator).quantize(Decimal("0.000001"), ROUND_HALF_UP) if denominator else None


@by_tenant
def test_revenue_is_what_was_invoiced_net(sales: Sales, tenant: str) -> None:
    facts = sales.facts[tenant]
    assert len(facts.revenue) >= 3 * len(BUSINESS_UNITS)
    assert measured(sales.project, "revenue", tenant, "value") == facts.revenue
    assert totals(sales.project, "revenue", tenant, "value") == summed(facts.revenue)


@by_tenant
def test_the_gross_amount_invoiced_is_what_dso_divides_by(sales: Sales, tenant: str) -> None:
    facts = sales.facts[tenant]
    assert measured(sales.project, "dso", tenant, "denominator") == facts.gross_invoiced
    assert totals(sales.project, "dso", tenant, "denominator") == summed(facts.gross_invoiced)


@by_tenant
def test_dso_is_open_over_gross_times_the_days_of_the_month(sales: Sales, tenant: str) -> None:
    facts = sales.facts[tenant]
    assert measured(sales.project, "dso", tenant, "value") == {
        key: ratio(facts.open_amount[key] * days_of(key[0]), gross) for key, gross in facts.gross_invoiced.items()}
    opened, gross = summed(facts.open_amount), summed(facts.gross_invoiced)
    assert totals(sales.project, "dso", tenant, "value") == {
        month: ratio(opened[month] * days_of(month), gross[month]) for month in gross}


@by_tenant
def test_overdue_ratio_is_overdue_over_open(sales: Sales, tenant: str) -> None:
    facts = sales.facts[tenant]
    assert measured(sales.project, "overdue_ratio", tenant, "numerator") == facts.overdue_amount
    assert measured(sales.project, "overdue_ratio", tenant, "denominator") == facts.open_amount
    assert measured(sales.project, "overdue_ratio", tenant, "value") == {
        key: ratio(facts.overdue_amount[key], opened) for key, opened in facts.open_amount.items()}


def test_tenants_with_the_same_ids_have_numbers_of_their_own(sales: Sales) -> None:
    acme, globex = (measured(sales.project, "revenue", tenant, "value") for tenant in TENANTS)
    assert acme.keys() == globex.keys() and all(acme[key] != globex[key] for key in acme)


@by_tenant
@pytest.mark.parametrize("source", SOURCES)
def test_received_accepted_and_quarantined_are_what_was_written(sales: Sales, tenant: str, source: str) -> None:
    truth = sales.facts[tenant].sources[source]
    assert sales.project.rows(
        "select sum(received), sum(accepted), sum(quarantined) from platform.raw_batch "
        "where tenant_id = $1 and dataset = $2", tenant, f"order_to_cash.{source}"
    ) == [(truth.received, truth.accepted, truth.quarantined)]
    reasons = dict(sales.project.rows(
        "select case reason when 'rule_broken' then 'rule' else 'parsing' end, count(*) from platform.quarantine "
        "where tenant_id = $1 and dataset = $2 and stage = 'ingestion' group by 1", tenant, f"order_to_cash.{source}"))
    assert (reasons.get("parsing", 0), reasons.get("rule", 0)) == (truth.unparsable, truth.rule_violations)
    assert sales.project.value(
        f"select count(*) from raw.order_to_cash__{source} where _tenant_id = $1", tenant) == truth.accepted


@by_tenant
def test_a_redelivered_file_lands_once(sales: Sales, tenant: str) -> None:
    for source in SOURCES:
        truth = sales.facts[tenant].sources[source]
        counts = receipt(sales.outcomes[tenant], Stage.INGESTION, source).counts
        assert counts["units"] == truth.files + truth.redelivered_files
        assert counts["redelivered"] == truth.redelivered_files
        assert sales.project.value(
            "select count(*) from platform.raw_batch where tenant_id = $1 and dataset = $2",
            tenant, f"order_to_cash.{source}") == truth.files
    assert sum(source.redelivered_files for source in sales.facts[tenant].sources.values()) > 0


@by_tenant
def test_each_invoice_settles_once_however_often_it_was_exported(sales: Sales, tenant: str) -> None:
    facts = sales.facts[tenant]
    assert sales.project.rows(
        "select count(*), count(distinct invoice_id) from gdp.invoice_settlement "
        "where tenant_id = $1 and valid_to_run is null", tenant) == [(facts.invoices, facts.invoices)]


@by_tenant
def test_payments_of_unknown_invoices_are_quarantined_with_lineage_to_raw(sales: Sales, tenant: str) -> None:
    rows = sales.project.rows(
        "select q.field, q.message, q.source_id = b.source_id, convert_from(q.payload, 'UTF8')::jsonb ->> 'payment_id' "
        "= r.payment_id from platform.quarantine q join platform.raw_batch b using (batch_id) "
        "join raw.order_to_cash__payments r on r._batch_id = q.batch_id and r._row_number = q.row_number "
        "where q.tenant_id = $1 and q.stage = 'normalization' and q.dataset = 'order_to_cash.payments'", tenant)
    assert len(rows) == sales.facts[tenant].payments_to_unknown_invoices > 0
    assert all(lineage and whole and message for _, message, lineage, whole in rows)


@by_tenant
def test_customers_only_the_erp_knows_and_names_the_systems_dispute(sales: Sales, tenant: str) -> None:
    facts: SampleFacts = sales.facts[tenant]
    assert sales.project.value(
        "select count(distinct customer_id) from gdp.invoice_settlement "
        "where tenant_id = $1 and valid_to_run is null and not customer_known", tenant) == facts.unknown_customers > 0
    # The CRM is the system of record: where it knows the customer, its name survives.
    assert sales.project.rows(
        "select distinct is_known, name_source from gdp.customer where tenant_id = $1 and valid_to_run is null "
        "order by 1", tenant) == [(False, "erp"), (True, "crm")]
    assert sales.project.value(
        "select count(distinct c.customer_id) from gdp.customer c join raw.order_to_cash__invoices i "
        "on i._tenant_id = c.tenant_id and i.customer_id = c.customer_id "
        "where c.tenant_id = $1 and c.valid_to_run is null and c.is_known and trim(i.customer_name) <> c.name",
        tenant) == facts.conflicting_customer_names > 0


@by_tenant
def test_partial_and_over_payments_leave_what_they_leave(sales: Sales, tenant: str) -> None:
    facts = sales.facts[tenant]
    ((partial, over),) = sales.project.rows(
        "select count(*) filter (where p.amount < s.gross_amount), count(*) filter (where p.amount > s.gross_amount) "
        "from gdp.invoice_payment p join gdp.invoice_settlement s using (tenant_id, invoice_id) "
        "where p.tenant_id = $1 and p.valid_to_run is null and s.valid_to_run is null", tenant)
    assert (partial, over) == (facts.partial_payments, facts.over_payments)
    assert sales.project.value(
        "select count(*) from gdp.invoice_settlement where tenant_id = $1 and valid_to_run is null "
        "and (gross_amount - paid_amount <> open_amount - overpaid_amount or open_amount < 0 "
        "or open_amount > 0 and is_settled)", tenant) == 0


def test_tenants_count_their_fiscal_years_as_declared(sales: Sales) -> None:
    def fiscal(tenant: str) -> dict[str, tuple[int, int]]:
        return {period: (year, number) for period, year, number in sales.project.rows(
            "select distinct period, fiscal_year, fiscal_period from published.revenue where tenant_id = $1", tenant)}

    # acme's years begin in April and bear the year they end in; globex's end on the last Saturday of January.
    assert {period: number for period, (_, number) in fiscal("acme").items()} == {
        "2026-01": 10, "2026-02": 11, "2026-03": 12}
    assert sales.project.rows(
        "select fiscal_year, fiscal_period from gdp.calendar where tenant_id = 'acme' and date = '2026-04-01'"
    ) == [(fiscal("acme")["2026-03"][0] + 1, 1)]
    assert fiscal("globex")["2026-02"][1] == 1 and fiscal("globex")["2026-01"][1] == 12
    assert fiscal("globex")["2026-02"][0] == fiscal("globex")["2026-01"][0] + 1


@by_tenant
def test_everything_is_published_in_one_dagster_run(sales: Sales, tenant: str) -> None:
    outcome = sales.outcomes[tenant]
    assert published(outcome) == dict.fromkeys(("revenue", "dso", "overdue_ratio"), "published")
    assert sales.project.rows("select status from dagster.runs where run_id = $1", outcome.dagster_run_id) == [
        ("SUCCESS",)]
    assert sales.project.value("select count(*) from dagster.runs") == len(TENANTS)
