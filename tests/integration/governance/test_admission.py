"""Each shipped policy at its decision point: shipped declarations, one thing changed, on a real database."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from barecount_assets import admission
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import approvals, declarations
from resources.governance.approvals import RunRequested
from resources.governance.decision_points import Export
from resources.governance.policies import Decision
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

NOW = dt.datetime(2026, 3, 31, 22, 30, tzinfo=dt.UTC)  # half past eleven at night in London
MARCH = RunRequested("order_to_cash", "acme", dt.date(2026, 3, 1), dt.date(2026, 3, 31))


class Office:
    """Admits runs of the shipped project, with parts of its declarations changed."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.declared = declarations.load(settings.project_dir)

    def change_runner(self, **parts: str) -> None:
        manifest = self.declared.pipeline("order_to_cash")
        runner = manifest.spec.runner.model_copy(update=parts)
        self._replace("pipelines", manifest.model_copy(update={"spec": manifest.spec.model_copy(
            update={"runner": runner})}))

    def change_tenant(self, **parts: Any) -> None:
        tenant = self.declared.tenant("acme")
        changed = tenant.model_copy(update={"spec": tenant.spec.model_copy(update=parts)})
        self.declared = replace(self.declared, tenants={**self.declared.tenants, "acme": changed})

    def change_kpi(self, name: str, **parts: Any) -> None:
        kpi = self.declared.kpi(name)
        self._replace("kpis", kpi.model_copy(update={"spec": kpi.spec.model_copy(update=parts)}))

    def _replace(self, kind: str, changed: Any) -> None:
        self.declared = replace(self.declared, **{kind: {**getattr(self.declared, kind), changed.name: changed}})

    @property
    def environment(self) -> StageEnvironment:
        return StageEnvironment(self.settings, self.database, self.declared)

    def admit(self, run: RunRequested = MARCH, now: dt.datetime = NOW) -> dict[str, Decision]:
        decisions = admission.admit_run(self.environment, run, trigger="command", requested_by="ann", now=now)
        return {decision.question.facts.point: decision for decision in decisions}

    def refused(self, run: RunRequested = MARCH, now: dt.datetime = NOW) -> BareCountError:
        with pytest.raises(BareCountError) as refused:
            self.admit(run, now)
        return refused.value

    def approve(self, error: BareCountError) -> None:
        with self.database.transaction() as connection:
            for number in error.details["approvals"]:
                approvals.answer(connection, number, approve=True, by="bob", reason="agreed", now=NOW)

    def rows(self, statement: str) -> list[tuple]:
        with self.database.connect(autocommit=True) as connection:
            return fetch(connection, statement)


@pytest.fixture
def office(settings: Settings, database: Database) -> Office:
    return Office(settings, database)


def test_what_is_shipped_may_run_and_its_facts_are_on_record(office: Office) -> None:
    decisions = office.admit()
    assert {point: decision.effect for point, decision in decisions.items()} == dict.fromkeys(
        ("tenant_life", "manifest_registration", "run_start"), "allow")
    facts = decisions["run_start"].question.facts.values()
    assert facts["classification"] == "confidential" and facts["network_profile"] == "private_vpc"
    assert (facts["days"], facts["runs_today"], facts["cost_class"]) == (31, 0, "low")


def test_a_run_is_asked_about_once_and_a_changed_policy_or_publication_asks_again(office: Office) -> None:
    first = office.admit()["run_start"].decision_id
    assert office.admit()["run_start"].decision_id == first
    office.declared = replace(office.declared, policies={
        name: policy for name, policy in office.declared.policies.items() if name != "quotas"})
    assert office.admit()["run_start"].decision_id != first
    assert office.rows("select count(*) from platform.policy_decision where point = 'tenant_life'") == [(1,)]


def test_an_xlarge_runner_needs_approval(office: Office) -> None:
    office.change_runner(size="xlarge")
    waits = office.refused()
    assert waits.code is ErrorCode.APPROVAL_REQUIRED and "xlarge" in waits.message
    office.approve(waits)
    assert office.admit()["run_start"].allowed


def test_the_highest_cost_class_warns(office: Office) -> None:
    office.change_runner(runner_class="dedicated_compute", size="large")
    assert office.admit()["run_start"].warnings == ("the runner's class and size belong to the highest cost class",)


def test_classified_data_may_not_be_on_a_runner_with_public_egress(office: Office) -> None:
    office.change_runner(network_profile="public_vpc_egress")
    assert office.refused().code is ErrorCode.POLICY_DENIED
    assert "network_egress" in office.refused().message


def test_a_kpi_without_a_fiscal_period_is_refused(office: Office) -> None:
    office.change_kpi("dso", calendar=False)
    refused = office.refused()
    assert refused.code is ErrorCode.POLICY_DENIED and "fiscal_period" in refused.message
    assert office.rows("select facts -> 'kpis_without_fiscal_period' from platform.policy_decision "
                       "where point = 'manifest_registration'") == [(["dso"],)]


@pytest.mark.parametrize("status", ["draft", "suspended", "offboarded"])
def test_only_active_tenants_run_and_the_change_of_status_is_on_record(office: Office, status: str) -> None:
    office.admit()
    office.change_tenant(status=status)
    assert "the tenant is not active" in office.refused().message


def test_quotas_count_runs_on_the_tenants_own_day(office: Office) -> None:
    quotas = office.declared.tenant("acme").spec.quotas
    office.change_tenant(quotas=quotas.model_copy(update={"runs_per_day": 2}))
    days = [RunRequested("order_to_cash", "acme", day, day) for day in (dt.date(2026, 3, 2), dt.date(2026, 3, 3))]
    for run in days:
        office.admit(run)
    assert "quota of runs" in office.refused().message
    assert office.admit(days[0])["run_start"].allowed  # admitted already
    still_today = NOW + dt.timedelta(minutes=20)
    assert office.refused(now=still_today).code is ErrorCode.POLICY_DENIED
    tomorrow_in_london = NOW + dt.timedelta(minutes=40)
    assert office.admit(now=tomorrow_in_london)["run_start"].allowed


def test_quotas_count_rows_received(office: Office) -> None:
    office.admit(RunRequested("order_to_cash", "acme", dt.date(2026, 3, 2), dt.date(2026, 3, 2)))
    with office.database.transaction() as connection:
        fetch(connection, """
            insert into platform.raw_batch (tenant_id, pipeline, dataset, source_id, load_date, is_current,
                content_sha256, received, accepted, quarantined, object_key, object_sha256, object_bytes, schema_hash,
                extraction_version, contract_version, contract_hash, software_version, run_token, landed_at,
                delivery_order, evidence_seq)
            values ('acme', 'order_to_cash', 'order_to_cash.invoices', 'a.csv', '2026-03-31', true, 'c', 100, 100, 0,
                'k', 'o', 1, 's', '1', '1', 'h', '1', 't', $1, '1', 1)""", (NOW,))
    quotas = office.declared.tenant("acme").spec.quotas
    office.change_tenant(quotas=quotas.model_copy(update={"rows_per_day": 101}))
    assert office.admit()["run_start"].allowed
    office.change_tenant(quotas=quotas.model_copy(update={"rows_per_day": 100}))
    assert "quota of rows" in office.refused(replace(MARCH, start=dt.date(2026, 3, 9))).message


def test_a_backfill_of_more_than_31_days_needs_approval(office: Office) -> None:
    assert office.admit(replace(MARCH, backfill=True))["backfill"].effect == "allow"
    longer = replace(MARCH, start=dt.date(2026, 2, 28), backfill=True)
    waits = office.refused(longer)
    assert waits.code is ErrorCode.APPROVAL_REQUIRED and "more than 31 days" in waits.message
    office.approve(waits)
    assert office.admit(longer)["backfill"].allowed


def test_a_first_ingestion_of_history_is_no_backfill(office: Office) -> None:
    history = replace(MARCH, start=dt.date(2026, 1, 2))
    assert "backfill" not in office.admit(history)
    decisions = admission.admit_run(office.environment, history, trigger="dagster", requested_by="dagster",
                                    part_of_backfill=True, now=NOW)
    assert "backfill" not in {decision.question.facts.point for decision in decisions}


def test_an_export_of_data_about_persons_needs_approval_and_other_exports_do_not(office: Office) -> None:
    def export(classification: str) -> list[Decision]:
        facts = Export(tenant="acme", kind="quarantine", classification=classification)
        return admission.admit_export(office.environment, facts, "refused.csv", requested_by="ann", now=NOW)

    assert export("internal")[0].allowed
    with pytest.raises(BareCountError) as waits:
        export("confidential")
    assert waits.value.code is ErrorCode.APPROVAL_REQUIRED
    office.approve(waits.value)
    assert export("confidential")[0].allowed
