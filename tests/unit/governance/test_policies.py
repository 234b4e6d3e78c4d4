"""The strictest effect wins, what cannot be decided is denied, scopes narrow, and wrong declarations are found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.governance import declarations
from resources.governance.decision_points import POINTS, RunStart, cost_class
from resources.governance.policy_evaluation import PolicySet, evaluate
from resources.governance.policy_files import EFFECTS, Policy
from tests.unit.governance.conftest import PIPELINE, Project

FILE = "contracts/policies/sizes.yaml"
TEXT = """\
apiVersion: barecount/v1
kind: Policy
metadata:
  name: sizes
  title: Sizes
  description: What runners may be.
  version: 1.0.0
  owners:
    - {name: Ann, email: ann@example.com, role: owner}
spec:
  status: active
  point: run_start
  scope: {tenants: [acme], workflows: [sales], schemas: [sales]}
  rules:
    - id: big
      condition: runner_size == 'xlarge'
      effect: deny
      message: too big
"""


def policy(*rules: tuple[str, str], name: str = "sizes", **spec: Any) -> Policy:
    """A policy with (condition, effect) rules."""
    import rfc8785

    return Policy.model_validate_json(rfc8785.dumps({
        "apiVersion": "barecount/v1", "kind": "Policy",
        "metadata": {"name": name, "title": "T", "description": "D", "version": "1.0.0",
                     "owners": [{"name": "Ann", "email": "ann@example.com", "role": "owner"}]},
        "spec": {"status": "active", "point": "run_start",
                 "rules": [{"id": f"r{number}", "condition": condition, "effect": effect, "message": "m"}
                           for number, (condition, effect) in enumerate(rules)], **spec},
    }))


def verdict(*policies: Policy, missing: tuple[str, ...] = (), **facts: Any):
    return evaluate(PolicySet.of(policies), RunStart(tenant="acme", pipeline="sales", **facts), missing)


# --- effects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "effect"),
    [
        ([("false", "deny")], "allow"),
        ([("true", "allow")], "allow"),
        ([("true", "allow"), ("true", "warn")], "warn"),
        ([("true", "require_approval"), ("true", "warn")], "require_approval"),
        ([("true", "require_approval"), ("true", "deny"), ("true", "allow")], "deny"),
        ([("days > 31", "require_approval"), ("runner_size == 'xlarge'", "deny")], "require_approval"),
        ([("1 / runs_today > 0", "warn")], "deny"),
        ([("datasets[3] == 'x'", "allow")], "deny"),
    ],
)
def test_the_strictest_effect_of_the_rules_that_hold_wins(rules: list[tuple[str, str]], effect: str) -> None:
    assert verdict(policy(*rules), days=32).effect == effect


_RULES = st.lists(st.tuples(st.sampled_from(["true", "false", "1 / runs_today > 0", "days > 3", "days < 3"]),
                            st.sampled_from(EFFECTS)), min_size=1, max_size=5)


@given(st.lists(_RULES, min_size=1, max_size=3), st.integers(0, 6))
def test_whatever_the_rules_the_strictest_wins_and_an_error_denies(rules: list[Any], days: int) -> None:
    policies = [policy(*found, name=f"policy_{number}") for number, found in enumerate(rules)]
    holds = {"true": True, "false": False, "days > 3": days > 3, "days < 3": days < 3}
    flat = [rule for found in rules for rule in found]
    expected = max((EFFECTS.index(effect) for condition, effect in flat if holds.get(condition)), default=0)
    if any(condition not in holds for condition, _ in flat):
        expected = EFFECTS.index("deny")
    found = verdict(*policies, days=days)
    assert found.effect == EFFECTS[expected]
    assert len(found.problems) == sum(condition not in holds for condition, _ in flat)
    assert verdict(*reversed(policies), days=days) == found


@given(st.integers(min_value=2**63) | st.integers(max_value=-(2**63) - 1))
def test_a_value_that_a_condition_cannot_carry_denies(days: int) -> None:
    found = verdict(policy(("days == 0", "warn")), days=days)
    assert found.effect == "deny" and "cannot be given to a condition" in found.problems[0].message


def test_a_condition_that_cannot_be_compiled_denies() -> None:
    assert verdict(policy(("days ==", "warn"))).effect == "deny"


def test_a_missing_mandatory_policy_denies_and_is_named() -> None:
    found = verdict(missing=("gone",))
    assert found.effect == "deny" and found.problems[0].message == "mandatory policy gone is missing or not active"


@pytest.mark.parametrize("status", ["draft", "archived"])
def test_a_policy_that_is_not_active_is_not_asked_and_denies_if_it_is_mandatory(status: str) -> None:
    assert verdict(policy(("true", "deny"), status=status)).effect == "allow"
    found = verdict(policy(("true", "warn"), status=status, mandatory=True))
    assert (found.effect, found.missing) == ("deny", ("sizes",))
    elsewhere = policy(("true", "warn"), status=status, mandatory=True, scope={"tenants": ["globex"]})
    assert verdict(elsewhere).effect == "allow"


@pytest.mark.parametrize(
    ("scope", "asked"),
    [
        ({}, True), ({"tenants": ["acme"]}, True), ({"tenants": ["globex"]}, False), ({"workflows": ["sales"]}, True),
        ({"workflows": ["other"], "tenants": ["acme"]}, False), ({"schemas": ["sales.orders"]}, True),
        ({"schemas": ["sales"]}, True), ({"schemas": ["sales.order"]}, False), ({"schemas": ["hr"]}, False),
    ],
)
def test_a_scope_narrows_by_tenant_workflow_and_schema(scope: dict[str, Any], asked: bool) -> None:
    found = verdict(policy(("true", "deny"), scope=scope), datasets=("sales.orders", "sales.customers"))
    assert found.effect == ("deny" if asked else "allow")


def test_every_point_documents_its_facts_and_gives_them_the_types_conditions_have() -> None:
    for point, kind in POINTS.items():
        assert kind.about.endswith((".", "asked before it runs."))
        for field in kind.fields():
            assert field.meaning and field.type in ("bool", "int", "string", "list(string)"), (point, field)
        facts = kind(**{field.name: {"bool": True, "int": 1, "string": "x"}.get(field.type, ("x",))
                        for field in kind.fields()})
        assert kind.from_values(facts.values()) == facts


def test_cost_grows_with_class_and_size() -> None:
    assert cost_class("serverless", "medium") == "low" and cost_class("managed_etl", "small") == "medium"
    assert cost_class("container", "xlarge") == cost_class("dedicated_compute", "large") == "high"


# --- declaring -------------------------------------------------------------------------------------------


def test_a_policy_in_its_place_is_read(project: Project) -> None:
    project.write(FILE, TEXT)
    assert project.check() == []
    assert project.load().policy("sizes").spec.rules[0].effect == "deny"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("runner_size ==", "runner_sise ==", 16, "spec.rules[0].condition", "did you mean 'runner_size'?"),
        ("== 'xlarge'", "> 3", 16, "spec.rules[0].condition", "different types"),
        ("== 'xlarge'", "==", 16, "spec.rules[0].condition", "a value is missing"),
        ("point: run_start", "point: run_stop", 12, "spec.point", "did you mean 'run_start'?"),
        ("effect: deny", "effect: refuse", 17, "spec.rules[0].effect", "not one of the choices"),
        ("name: sizes", "name: others", 4, "metadata.name", "not the name of the file"),
        ("tenants: [acme]", "tenants: [acmee]", 13, "spec.scope.tenants[0]", "did you mean 'acme'?"),
        ("workflows: [sales]", "workflows: [buys]", 13, "spec.scope.workflows[0]", "unknown workflow"),
        ("schemas: [sales]", "schemas: [sale]", 13, "spec.scope.schemas[0]", "unknown schema"),
        ("version: 1.0.0", "version: one", 7, "metadata.version", "match"),
        ("status: active", "status: draft\n  mandatory: true", 11, "spec.status", "must be active"),
        ("message: too big", "message: ' '", 18, "spec.rules[0].message", ""),
    ],
)
def test_a_wrong_policy_is_found_with_file_line_and_field(
    project: Project, old: str, new: str, line: int, field: str, says: str
) -> None:
    assert TEXT.count(old) == 1
    project.write(FILE, TEXT.replace(old, new))
    (finding,) = project.check()
    assert (finding.file, finding.line, finding.field) == (FILE, line, field)
    assert says in finding.message or says in finding.allowed


def test_a_manifest_that_policies_deny_is_found_before_it_runs(project: Project) -> None:
    project.write(FILE, TEXT.replace("run_start", "manifest_registration").replace(
        "runner_size == 'xlarge'", "size(kpis_without_fiscal_period) == 0"))
    (finding,) = project.check()
    assert (finding.file, finding.field) == (PIPELINE, "spec.tenants[0]")
    assert finding.message == "denied: too big (policy sizes, rule big)"


def test_what_only_needs_approval_is_no_finding(project: Project) -> None:
    project.write(FILE, TEXT.replace("run_start", "manifest_registration").replace(
        "runner_size == 'xlarge'", "pipeline == 'sales'").replace("effect: deny", "effect: require_approval"))
    assert declarations.check(project.root) == []
