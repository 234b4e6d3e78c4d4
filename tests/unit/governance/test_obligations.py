"""Obligations are judged by the lineage of columns, by tags and by business days, and say what they saw."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from resources.governance import column_lineage, declarations, lineage_lock
from resources.governance.column_lineage import AssetLineage, Dependency, ProjectLineage, Unresolved
from resources.governance.declarations import Declarations
from resources.governance.obligation_judge import Facts, Outcome, judge
from resources.governance.obligations import Obligation

PROJECT = Path(__file__).resolve().parents[3]
FRIDAY = dt.date(2026, 3, 6)


@pytest.fixture(scope="module")
def declared() -> Declarations:
    return declarations.load(PROJECT)


@pytest.fixture(scope="module")
def lineage(declared: Declarations) -> ProjectLineage:
    found = lineage_lock.read(PROJECT / lineage_lock.PLACE, column_lineage.fingerprint(declared))
    assert found is not None, "models or contracts changed: run `barecount lineage compile` and commit its file"
    return found


def obligation(check: dict[str, Any], on_failure: str = "block", **scope: Any) -> Obligation:
    return Obligation.model_validate_json(_json({
        "apiVersion": "barecount/v1", "kind": "Obligation",
        "metadata": {"name": "of_test", "title": "Title", "description": "Words", "version": "1.0.0",
                     "owners": [{"name": "O", "email": "o@finance.example", "role": "owner"}]},
        "spec": {"check": check, "scope": scope, "on_failure": on_failure},
    }))


def _json(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document)


def judged(check: dict[str, Any], facts: Facts, on_failure: str = "block") -> Outcome:
    (outcome,) = judge([obligation(check, on_failure)], facts)
    return outcome


def with_columns(lineage: ProjectLineage, asset: str, **columns: tuple[Dependency, ...]) -> ProjectLineage:
    """The lineage with some columns of an asset coming from elsewhere."""
    known = lineage.assets.get(asset) or AssetLineage(asset, "", {})
    changed = dataclasses.replace(known, columns={**known.columns, **columns})
    return dataclasses.replace(lineage, assets={**lineage.assets, asset: changed})


INSIDE = {"type": "forbid_flow", "from": {"classifications": ["confidential", "restricted"]},
          "to": {"layers": ["published", "export"]}}


@pytest.mark.parametrize("pipeline", ["order_to_cash", "online_retail"])
def test_what_is_shipped_keeps_every_obligation_that_does_not_need_a_run(
    declared: Declarations, lineage: ProjectLineage, pipeline: str
) -> None:
    outcomes = judge(declared.obligations.values(), Facts(declared, pipeline, lineage))
    assert {outcome.status for outcome in outcomes if outcome.obligation.spec.check.type != "freshness_sla"} == {"pass"}
    assert {outcome.status for outcome in outcomes if outcome.obligation.spec.check.type == "freshness_sla"} <= {"skip"}


def test_a_confidential_column_that_reaches_a_published_one_is_found_with_its_way(
    declared: Declarations, lineage: ProjectLineage
) -> None:
    leaking = with_columns(lineage, "kpi.revenue", business_unit=(
        Dependency("gdp.customer", "name", "DIRECT", "AGGREGATION"),))
    outcome = judged(INSIDE, Facts(declared, "order_to_cash", leaking))
    assert outcome.status == "fail" and outcome.blocks
    (violation,) = outcome.violations
    assert (violation.asset, violation.column) == ("published.revenue", "business_unit")
    assert violation.path == ("gdp.customer.name", "kpi.revenue.business_unit", "published.revenue.business_unit")
    assert "gdp.customer.name is confidential" in outcome.summary
    assert judged(INSIDE, Facts(declared, "order_to_cash", leaking), "warn").status == "warn"


def test_a_count_of_a_confidential_column_may_leave_unless_masked_flows_are_forbidden(
    declared: Declarations, lineage: ProjectLineage
) -> None:
    facts = Facts(declared, "online_retail", lineage)
    assert judged(INSIDE, facts).status == "pass"
    strict = judged({**INSIDE, "masked": "forbidden"}, facts)
    assert {v.asset for v in strict.violations} == {"published.active_customers"}


def test_what_only_decides_about_a_value_counts_when_indirect_flows_are_forbidden(
    declared: Declarations, lineage: ProjectLineage
) -> None:
    deciding = with_columns(lineage, "kpi.revenue", value=(
        Dependency("gdp.customer", "credit_limit", "INDIRECT", "CONDITIONAL"),))
    facts = Facts(declared, "order_to_cash", deciding)
    assert judged(INSIDE, facts).status == "pass"
    assert "published.revenue" in {v.asset for v in judged({**INSIDE, "indirect": "forbidden"}, facts).violations}


def test_exports_that_a_run_has_seen_are_judged_too(declared: Declarations, lineage: ProjectLineage) -> None:
    exported = with_columns(lineage, "export.ledger", **{
        "who": (Dependency("gdp.customer", "name"),), "*": (Dependency("gdp.customer", "*", "INDIRECT", "ROWS"),)})
    outcome = judged(INSIDE, Facts(declared, "order_to_cash", exported))
    assert [v.path for v in outcome.violations] == [("gdp.customer.name", "export.ledger.who")]
    assert judged(INSIDE, Facts(declared, "online_retail", exported)).status == "pass"


def test_a_public_runner_may_not_work_on_confidential_columns(
    declared: Declarations, lineage: ProjectLineage
) -> None:
    check = {"type": "forbid_flow", "from": {"columns": ["raw.order_to_cash.customers.name"]},
             "to": {"network_profiles": ["public_vpc_egress", "private_vpc"]}}
    outcome = judged(check, Facts(declared, "order_to_cash", lineage))
    assert outcome.status == "fail"
    assert "private_vpc and works on raw.order_to_cash.customers.name" in outcome.summary
    check["to"]["network_profiles"].pop()
    assert judged(check, Facts(declared, "order_to_cash", lineage)).status == "pass"


def test_columns_with_a_tag_are_guarded_like_classified_ones(
    declared: Declarations, lineage: ProjectLineage
) -> None:
    contract = declared.contract("order_to_cash.invoice_settlement", "gold")
    tagged = dataclasses.replace(contract, columns=tuple(
        dataclasses.replace(c, tags=("pii",)) if c.name == "business_unit" else c for c in contract.columns))
    contracts = {**declared.contracts, ("order_to_cash.invoice_settlement", "gold"): tagged}
    facts = Facts(dataclasses.replace(declared, contracts=contracts), "order_to_cash", lineage)
    outcome = judged({**INSIDE, "from": {"tags": ["pii"]}}, facts)
    assert "gdp.invoice_settlement.business_unit has the tag pii" in outcome.summary


def test_a_required_tag_is_missed_by_name_and_by_value(declared: Declarations, lineage: ProjectLineage) -> None:
    facts = Facts(declared, "order_to_cash", lineage)
    assert judged({"type": "required_tag", "tag": "domain", "layers": ["published"]}, facts).status == "pass"
    missing = judged({"type": "required_tag", "tag": "cost_centre", "layers": ["published"]}, facts)
    assert {v.asset for v in missing.violations} == {"published.revenue", "published.dso", "published.overdue_ratio"}
    wrong = judged({"type": "required_tag", "tag": "domain", "values": ["sales"], "layers": ["gdp"]}, facts)
    assert "has the tag domain 'finance', allowed: sales" in wrong.summary


@pytest.mark.parametrize(("columns", "unresolved", "message"), [
    ({"value": ()}, (), "comes from nothing that is known"),
    ({"value": (Dependency("public.spreadsheet", "amount"),)}, (), "which nothing declared makes"),
    ({}, (Unresolved("gdp.invoice_settlement", "net_amount", "it is random"),), "it is random"),
    ({}, (Unresolved("gdp.invoice_settlement", "*", "dbt does not compile the model"),), "does not compile"),
])
def test_a_column_without_provenance_is_found(
    declared: Declarations, lineage: ProjectLineage, columns: dict[str, Any], unresolved: tuple[Unresolved, ...],
    message: str,
) -> None:
    broken = dataclasses.replace(with_columns(lineage, "kpi.revenue", **columns), unresolved=unresolved)
    outcome = judged({"type": "require_provenance", "layers": ["published"]}, Facts(declared, "order_to_cash", broken))
    assert outcome.status == "fail"
    assert any(v.asset == "published.revenue" and v.column == "value" and message in v.message
               for v in outcome.violations), outcome.violations


@pytest.mark.parametrize(("today", "status"), [
    (FRIDAY, "pass"), (FRIDAY + dt.timedelta(days=2), "pass"),  # a weekend makes nothing older
    (FRIDAY + dt.timedelta(days=3), "pass"), (FRIDAY + dt.timedelta(days=4), "fail"),
])
def test_freshness_counts_business_days_of_the_tenant(
    declared: Declarations, lineage: ProjectLineage, today: dt.date, status: str
) -> None:
    facts = Facts(declared, "order_to_cash", lineage, "acme", today, {"invoices": FRIDAY})
    assert judged({"type": "freshness_sla", "max_business_days": 1}, facts).status == status


def test_freshness_without_any_day_is_skipped_and_a_source_without_one_is_late(
    declared: Declarations, lineage: ProjectLineage
) -> None:
    check = {"type": "freshness_sla", "max_business_days": 1}
    nothing = Facts(declared, "order_to_cash", lineage, "acme", FRIDAY, {"invoices": None})
    assert judged(check, nothing).status == "skip"
    some = Facts(declared, "order_to_cash", lineage, "acme", FRIDAY, {"invoices": FRIDAY, "payments": None})
    assert judged(check, some).violations[0].message == "no day of source payments has arrived"


def test_an_obligation_is_about_its_scope_only(declared: Declarations, lineage: ProjectLineage) -> None:
    narrow = obligation(INSIDE, pipelines=["online_retail"], tenants=["retail_uk"])
    assert judge([narrow], Facts(declared, "order_to_cash", lineage)) == []
    assert judge([narrow], Facts(declared, "online_retail", lineage, "acme", FRIDAY)) == []
    assert len(judge([narrow], Facts(declared, "online_retail", lineage, "retail_uk", FRIDAY))) == 1


@pytest.mark.parametrize(("check", "message"), [
    ({"type": "forbid_flow", "from": {}, "to": {"layers": ["published"]}}, "names no column"),
    ({"type": "forbid_flow", "from": {"tags": ["pii"]}, "to": {}}, "names no place"),
    ({"type": "required_tag", "tag": "domain", "layers": ["attic"]}, "layers"),
    ({"type": "wish"}, "wish"),
])
def test_an_obligation_that_says_nothing_or_nonsense_is_refused(check: dict[str, Any], message: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=message):
        obligation(check)
