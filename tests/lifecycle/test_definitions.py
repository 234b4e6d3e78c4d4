"""No number changes its definition without a version, and every number shows the one that computed it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from barecount_assets import lifecycle
from barecount_assets.lifecycle import RunOutcome
from resources.governance import definitions
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import code_version
from tests.lifecycle.conftest import Project, unchanged_environment
from tests.lifecycle.shop import DAY, KPI, KPI_SQL, NAME, TENANT, Models, Shop, upgrade

DOUBLED = "sum(amount) * 2"
EQUAL = "sum(amount) + 0"
PLAIN = Models(measure="sum(amount)")


on_every_engine = pytest.mark.parametrize("engine", ["postgres", "duckdb"])


@pytest.fixture
def engine() -> str:
    return "postgres"


@pytest.fixture
def shop(engine: str, tmp_path: Path, new_project: Callable[..., Project]) -> Shop:
    shop = Shop.make(tmp_path, new_project, engine)
    shop.edit(PLAIN)
    assert shop.run().error is None
    assert shop.month() == Decimal("39.75")
    return shop


def run(shop: Shop, reason: str | None = None, tenant: str = TENANT) -> RunOutcome:
    with unchanged_environment():
        return lifecycle.run(
            shop.project.environment,
            lifecycle.RunRequest(NAME, tenant, DAY, DAY, requested_by="ann", accept_definition=reason), lambda *_: None)


def refusal(shop: Shop, reason: str | None = None, tenant: str = TENANT) -> BareCountError:
    """Why a run is refused before it computes anything."""
    tables = ("raw", "gdp", "kpi", "published")
    before = shop.project.state(*tables)
    with pytest.raises(BareCountError) as raised:
        run(shop, reason, tenant)
    assert shop.project.state(*tables) == before
    return raised.value


def explained(shop: Shop, *words: str) -> dict:
    words = ("--tenant", TENANT, "--period", "2026-11", "--json", *words)
    result = shop.project.command("explain", f"{NAME}.{KPI}", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@on_every_engine
def test_a_formula_edited_under_its_version_is_refused_by_check_and_run(shop: Shop) -> None:
    shop.edit(replace(PLAIN, measure=DOUBLED))
    checked = shop.project.command("check")
    assert checked.exit_code == 1
    (line,) = [line for line in checked.output.splitlines() if line.startswith(KPI_SQL)]
    assert f"metadata.version in contracts/kpis/{NAME}/{KPI}.yaml, now 1.0.0" in line
    error = refusal(shop)
    assert error.code is ErrorCode.DEFINITION_CHANGED and f"KPI {KPI}" in error.message
    assert "metadata.version" in (error.hint or "") and "--accept-definition" in (error.hint or "")
    assert shop.month() == Decimal("39.75")


@on_every_engine
def test_under_a_new_version_all_is_computed_again_and_both_are_shown(shop: Shop) -> None:
    shop.edit(replace(PLAIN, measure=DOUBLED, kpi="1.1.0"))
    assert shop.project.command("check").exit_code == 0
    assert run(shop).error is None
    assert shop.month() == Decimal("79.50")
    now, before = explained(shop), explained(shop, "--version", "1")
    assert (now["kpi_version"], now["formula"]) == ("1.1.0", DOUBLED)
    assert (before["kpi_version"], before["formula"]) == ("1.0.0", "sum(amount)")
    assert ["* 2 as measured" in proof["definitions"][0]["sql"] for proof in (before, now)] == [False, True]
    assert [float(proof["values"][-1]["value"]) for proof in (before, now)] == [39.75, 79.5]
    assert shop.project.rows(
        f"select version, kpi_version, count(*) from published.{KPI}__versions group by 1, 2 order by 1"
    ) == [(1, "1.0.0", 4), (2, "1.1.0", 4)]


def test_white_space_comments_and_case_make_no_other_definition(shop: Shop) -> None:
    path = shop.home / KPI_SQL
    text = path.read_text().replace("select business_date", "-- as agreed\nSELECT /* by day */\n  business_date")
    path.write_text(text)
    code_version.cache_clear()
    assert shop.project.command("check").exit_code == 0
    assert run(shop).error is None


@on_every_engine
def test_an_equal_formula_is_accepted_with_a_reason_and_on_record(shop: Shop) -> None:
    shop.edit(replace(PLAIN, measure=EQUAL))
    outcome = run(shop, "simpler to read")
    assert outcome.error is None and shop.month() == Decimal("39.75")
    accepted = shop.project.dicts(
        "select name, version, reason, decided_by, point from platform.definition_version "
        "join platform.policy_decision using (decision_id) where cause = 'accepted'")
    assert accepted == [{"name": KPI, "version": "1.0.0", "reason": "simpler to read", "decided_by": "ann",
                         "point": "definition_change"}]
    assert shop.project.value("select count(*) from platform.evidence where kind = 'definition.accepted'") == 1
    assert shop.project.command("evidence", "verify").exit_code == 0
    assert shop.project.command("check").exit_code == 0
    shop.edit(PLAIN)  # and back: the version stands for both
    assert run(shop).error is None


def test_an_accepted_definition_that_computes_other_values_is_refused(shop: Shop) -> None:
    shop.edit(replace(PLAIN, measure=DOUBLED))
    error = refusal(shop, "no change at all")
    assert error.code is ErrorCode.DEFINITION_CHANGED
    assert "of the same raw data it computes 4 other values" in error.message
    assert "value 12.500000 -> 25.000000" in error.message
    assert shop.project.value("select count(*) from platform.evidence where kind = 'definition.refused'") == 1
    assert refusal(shop).code is ErrorCode.DEFINITION_CHANGED, "and stays refused"


def test_a_gdp_edited_under_the_version_of_its_contract_is_refused(shop: Shop) -> None:
    shop.edit(PLAIN.column("amount", sql="amount * 3"))
    assert "GDP shop_order" in refusal(shop).message
    shop.edit(replace(PLAIN.column("amount", sql="amount * 3"), gold="1.0.1"))
    assert run(shop).error is None and shop.month() == Decimal("119.25")


def test_a_macro_edited_by_hand_is_refused_and_by_new_software_compared(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    macro = shop.home / "dbt_project" / "macros" / "series.sql"
    before = macro.read_text()
    measure = "cast({{ numerator }} as {{ type_measure() }}) as numerator"
    assert measure in before
    macro.write_text(before.replace(measure, measure.replace("{{ numerator }}", "({{ numerator }}) * 1")))
    code_version.cache_clear()
    assert refusal(shop).code is ErrorCode.DEFINITION_CHANGED
    upgrade(monkeypatch, "a later release")
    assert run(shop).error is None and shop.month() == Decimal("39.75")
    assert shop.project.rows("select distinct cause from platform.definition_version order by 1") == [
        ("registered",), ("upgraded",)]
    macro.write_text(before.replace(measure, measure.replace("{{ numerator }}", "({{ numerator }}) * 2")))
    code_version.cache_clear()
    upgrade(monkeypatch, "the release after it")
    assert "value 12.500000 -> 25.000000" in refusal(shop).message


def test_a_tenant_is_bound_by_what_was_published_for_others(shop: Shop) -> None:
    shop.serve("neighbour")
    shop.edit(replace(PLAIN, measure=DOUBLED))
    assert refusal(shop, tenant="neighbour").code is ErrorCode.DEFINITION_CHANGED
    shop.edit(PLAIN)
    assert run(shop, tenant="neighbour").error is None


def test_before_the_first_publication_models_are_edited_freely(
    tmp_path: Path, new_project: Callable[..., Project]
) -> None:
    shop = Shop.make(tmp_path, new_project)
    for measure in ("sum(amount)", DOUBLED):
        shop.edit(replace(PLAIN, measure=measure))
        assert shop.project.command("check").exit_code == 0
    assert run(shop).error is None and shop.month() == Decimal("79.50")


def test_acceptance_goes_through_policy_and_approval(shop: Shop) -> None:
    policy = shop.home / "contracts" / "policies" / "definition_changes.yaml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text("""
apiVersion: barecount/v1
kind: Policy
metadata:
  name: definition_changes
  title: Changed definitions are approved
  description: Somebody else looks at a definition that changes under its version.
  version: 1.0.0
  owners: [{name: Olive, email: owner@shop.example, role: owner}, {name: Sam, email: s@shop.example, role: steward}]
spec:
  status: active
  point: definition_change
  rules:
    - {id: four_eyes, condition: "reason != ''", effect: require_approval, message: a second person looks at it}
""")
    shop.edit(replace(PLAIN, measure=EQUAL))
    error = refusal(shop, "simpler to read")
    assert error.code is ErrorCode.APPROVAL_REQUIRED
    (number,) = shop.project.rows("select approval_id from platform.approval_request")[0]
    granted = shop.project.command("approvals", "approve", str(number), "--reason", "read it", "--who", "eve")
    assert granted.exit_code == 0, granted.output
    assert run(shop, "simpler to read").error is None


@pytest.mark.parametrize(("one", "other", "same"), [
    ("select a from t", "SELECT\n  a -- the first\nFROM t", True),
    ("select a /* why */ from t", "select a from t", True),
    ("select 'A' from t", "select 'a' from t", False),
    ("select '-- a' from t", "select '-- b' from t", False),
    ('select "A" from t', 'select "a" from t', False),
    ("select a<=b", "select a <= b", True),
    ("select sum(a)", "select sum (a)", True),
    ("select count(x)", "select count(x) * 2", False),
    ("select 'it''s'", "select 'it''s '", False),
    ("select $$ -- a $$", "select $$ -- b $$", False),
    ("select ab", "select a b", False),
])
def test_definitions_differ_where_their_words_do(one: str, other: str, same: bool) -> None:
    assert (list(definitions.tokens(one)) == list(definitions.tokens(other))) is same
