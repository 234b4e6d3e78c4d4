"""The registry: immutable versions, exactly one current, evidence and events of every tenant concerned."""

from __future__ import annotations

import copy
import datetime as dt
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import psycopg
import pytest

from resources.governance import declarations as declared
from resources.governance import registry
from resources.governance.contracts import read_contract
from resources.governance.declarations import Declarations
from resources.governance.modes import Layer
from resources.governance.policy_files import Policy
from resources.governance.registry import Action
from resources.runtime import events
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.yaml_source import YamlSource
from resources.trust import ledger
from tests.conftest import PROJECT

INVOICES, REVENUE = "order_to_cash.invoices", "order_to_cash.revenue"
NOW = dt.datetime(2026, 4, 1, 12, tzinfo=dt.UTC)
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def shipped() -> Declarations:
    return declared.load(PROJECT)


@pytest.fixture
def connection(database: Database):
    with database.connect(autocommit=True) as opened:
        yield opened


def changed(declarations: Declarations, dataset: str, layer: Layer, version: str, change: Change) -> Declarations:
    """The declarations as they are after somebody edited one contract."""
    document = copy.deepcopy(dict(declarations.contract(dataset, layer).document))
    document["version"] = version
    change(document)
    contract, findings = read_contract(YamlSource("edited", document, {}), dataset, layer)
    assert contract is not None, findings
    return replace(declarations, contracts=MappingProxyType({**declarations.contracts, (dataset, layer): contract}))


def properties(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["schema"][0]["properties"]


def with_channel(document: dict[str, Any]) -> None:
    properties(document).append({
        "name": "channel", "physicalName": "Channel", "logicalType": "string", "physicalType": "text",
        "classification": "internal", "description": "Where it was sold."})


def without_customer_name(document: dict[str, Any]) -> None:
    document["schema"][0]["properties"] = [p for p in properties(document) if p["name"] != "customer_name"]


def without_value(document: dict[str, Any]) -> None:
    document["schema"][0]["properties"] = [p for p in properties(document) if p["name"] != "value"]


def with_required_channel(document: dict[str, Any]) -> None:
    with_channel(document)
    properties(document)[-1]["required"] = True


def as_it_is(document: dict[str, Any]) -> None:
    return None


def evidence(connection: psycopg.Connection, tenant: str, kind: str) -> list[str]:
    return [row[0] for row in fetch(
        connection, "select subject from platform.evidence where tenant_id = $1 and kind = $2 order by seq",
        (tenant, kind))]


def test_the_first_run_registers_its_contracts_for_all_tenants_of_the_pipeline(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    found = registry.current(connection, INVOICES, "raw")
    assert found is not None and (found.version, found.previous, found.cause) == ("1.0.0", None, "run")
    assert found.contract == shipped.contract(INVOICES, "raw")
    subjects = evidence(connection, "acme", "contract.registered")
    assert f"{INVOICES}/raw" in subjects and f"{REVENUE}/activation" in subjects
    assert evidence(connection, "globex", "contract.registered") == subjects
    happened, _ = events.read(connection, events.Watermark(), types=["contract.registered"])
    assert len(happened) == 2 * len(subjects) and all(event.envelope["evidence"] for event in happened)
    assert all(ledger.verify(connection, tenant).intact for tenant in ("acme", "globex"))
    assert fetch(connection, "select owner, status from platform.dataset where dataset = $1", (INVOICES,)) == [
        ("ingrid.solheim@finance.example", "active")]


def test_the_second_run_writes_nothing(connection: psycopg.Connection, shipped: Declarations) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    before = fetch(connection, "select pg_current_xact_id_if_assigned(), (select count(*) from platform.evidence)")
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    registry.admit(connection, shipped, "order_to_cash", "globex", NOW)
    assert fetch(connection, "select pg_current_xact_id_if_assigned(), count(*) from platform.evidence") == before


def test_a_tenant_that_comes_later_has_the_evidence_too(connection: psycopg.Connection, shipped: Declarations) -> None:
    pipeline = shipped.pipeline("order_to_cash")
    alone = pipeline.model_copy(update={"spec": pipeline.spec.model_copy(update={"tenants": ("acme",)})})
    before = replace(shipped, pipelines=MappingProxyType({**shipped.pipelines, "order_to_cash": alone}))
    registry.admit(connection, before, "order_to_cash", "acme", NOW)
    assert evidence(connection, "globex", "contract.registered") == []
    registry.admit(connection, shipped, "order_to_cash", "globex", NOW)
    assert (evidence(connection, "globex", "contract.registered")
            == evidence(connection, "acme", "contract.registered"))
    assert ledger.verify(connection, "globex").intact


def test_a_compatible_version_registers_itself(connection: psycopg.Connection, shipped: Declarations) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    edited = changed(shipped, INVOICES, "raw", "1.1.0", with_channel)
    plan = registry.admit(connection, edited, "order_to_cash", "acme", NOW + dt.timedelta(days=1))
    assert [(step.dataset, step.layer, step.current) for step in plan.pending] == [(INVOICES, "raw", "1.0.0")]
    first, second = registry.history(connection, INVOICES, "raw")
    assert (second.version, second.previous, second.compatibility, second.is_current) == (
        "1.1.0", "1.0.0", "full", True)
    assert not first.is_current and first.readable_until == NOW + dt.timedelta(days=1 + 90)


def test_a_breaking_version_waits_for_somebody_who_says_why(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    edited = changed(shipped, INVOICES, "raw", "2.0.0", with_required_channel)
    with pytest.raises(BareCountError, match="required channel .* was added") as refused:
        registry.admit(connection, edited, "order_to_cash", "acme", NOW)
    assert refused.value.code is ErrorCode.CONTRACT_BREAKING and "barecount contracts sync" in refused.value.hint
    with pytest.raises(BareCountError):
        registry.sync(connection, edited, who="ann", reason=" ", now=NOW)
    assert [v.version for v in registry.history(connection, INVOICES, "raw")] == ["1.0.0"]
    for tenant in ("acme", "globex"):  # refused three times, on record once
        assert evidence(connection, tenant, "contract.refused") == [f"{INVOICES}/raw"]
    (event, *_), _ = events.read(connection, events.Watermark(), types=["contract.refused"])
    assert event.envelope["data"]["changes"] == ["required channel (text) was added"]
    registry.sync(connection, edited, who="ann", reason="agreed with the ERP team", now=NOW)
    found = registry.current(connection, INVOICES, "raw")
    assert found is not None and (found.version, found.registered_by, found.compatibility, found.reason) == (
        "2.0.0", "ann", "forward", "agreed with the ERP team")
    registry.admit(connection, edited, "order_to_cash", "acme", NOW)


def test_a_breaking_version_is_an_event_that_names_whom_it_breaks(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    edited = changed(shipped, REVENUE, "activation", "2.0.0", without_value)
    consumers = set(shipped.pipeline("order_to_cash").spec.publication.consumers)
    plan = registry.sync(connection, edited, who="ann", reason="replaced", now=NOW)
    (step,) = plan.of(Action.BREAK)
    assert {(s.tenant_id, s.consumer) for s in step.broken} == {(t, c) for t in ("acme", "globex") for c in consumers}
    for tenant in ("acme", "globex"):
        (event,), _ = events.read(connection, events.Watermark(), tenant_id=tenant, types=["contract.broken"])
        named = event.envelope["data"]["subscribers"]
        assert {(n["tenant"], n["consumer"]) for n in named} == {(tenant, consumer) for consumer in consumers}


def test_a_policy_may_deny_a_version_and_its_decision_stays_on_record(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    policy = Policy.model_validate_json(json.dumps({
        "apiVersion": "barecount/v1", "kind": "Policy",
        "metadata": {"name": "no_breaks", "title": "No breaks", "description": "Nothing breaks.", "version": "1.0.0",
                     "owners": [{"name": "Ann", "email": "ann@example.com", "role": "owner"}]},
        "spec": {"status": "active", "point": "contract_change", "rules": [
            {"id": "broken", "condition": "breaking", "effect": "deny", "message": "ask the stewards"}]},
    }))
    strict = replace(shipped, policies=MappingProxyType({**shipped.policies, "no_breaks": policy}))
    edited = changed(strict, INVOICES, "raw", "2.0.0", with_required_channel)
    with pytest.raises(BareCountError, match="ask the stewards") as denied:
        registry.sync(connection, edited, who="ann", reason="I want it", now=NOW)
    assert denied.value.code is ErrorCode.POLICY_DENIED
    assert [v.version for v in registry.history(connection, INVOICES, "raw")] == ["1.0.0"]
    assert f"{INVOICES} raw 2.0.0" in " ".join(evidence(connection, "acme", "policy.decided"))
    compatible = changed(strict, INVOICES, "raw", "1.1.0", with_channel)
    registry.admit(connection, compatible, "order_to_cash", "acme", NOW)
    assert ledger.verify(connection, "acme").intact


def test_a_registered_number_never_gets_another_document(connection: psycopg.Connection, shipped: Declarations) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    edited = changed(shipped, INVOICES, "raw", "1.0.0", with_channel)
    for attempt in (
        lambda: registry.admit(connection, edited, "order_to_cash", "acme", NOW),
        lambda: registry.sync(connection, edited, who="ann", reason="why not", now=NOW),
    ):
        with pytest.raises(BareCountError, match="versions never change") as refused:
            attempt()
        assert refused.value.code is ErrorCode.CONTRACT_IMMUTABLE
        assert f"1.1.0 in contracts/datasets/{INVOICES.replace('.', '/')}/raw.yaml" in refused.value.hint


def test_a_number_never_goes_back(connection: psycopg.Connection, shipped: Declarations) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    edited = changed(shipped, INVOICES, "raw", "0.9.0", with_channel)
    with pytest.raises(BareCountError, match="versions only grow"):
        registry.sync(connection, edited, who="ann", reason="why not", now=NOW)


def test_a_dry_run_plans_and_writes_nothing(connection: psycopg.Connection, shipped: Declarations) -> None:
    plan = registry.sync(connection, shipped, who="ann", reason="", now=NOW, dry_run=True)
    assert {step.action for step in plan.steps} == {Action.REGISTER} and len(plan.steps) == len(shipped.contracts)
    assert fetch(connection, "select count(*) from platform.dataset") == [(0,)]


def test_a_version_accepted_elsewhere_wins_over_the_older_file(
    database: Database, connection: psycopg.Connection, shipped: Declarations
) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    accepted = changed(shipped, INVOICES, "raw", "1.1.0", with_channel).contract(INVOICES, "raw")
    with database.transaction() as writing:
        registered = registry.register(writing, shipped, INVOICES, "raw", accepted.document, who="marco",
                                       reason="the ERP added it", cause="drift", now=NOW)
    assert (registered.version, registered.cause, registered.is_current) == ("1.1.0", "drift", True)
    current = registry.overlay(connection, shipped)
    assert current.contract(INVOICES, "raw") == accepted and shipped.contract(INVOICES, "raw").version == "1.0.0"
    assert registry.plan(connection, shipped).of(Action.SUPERSEDED)[0].current == "1.1.0"
    registry.admit(connection, current, "order_to_cash", "acme", NOW)
    merged = changed(shipped, INVOICES, "raw", "1.1.0", with_channel)
    assert not registry.plan(connection, merged, [INVOICES]).pending
    newer = changed(merged, INVOICES, "raw", "1.1.1", lambda d: d["description"].update(purpose="Said better."))
    assert registry.overlay(connection, newer) is newer


def test_registering_the_same_document_again_changes_nothing(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    document = shipped.contract(INVOICES, "raw").document
    for _ in range(2):
        found = registry.register(connection, shipped, INVOICES, "raw", document, who="ann", reason="first",
                                  cause="drift", now=NOW)
        assert found.version == "1.0.0"
    assert len(evidence(connection, "acme", "contract.registered")) == 1


def test_a_document_that_is_no_contract_is_refused(connection: psycopg.Connection, shipped: Declarations) -> None:
    document = {**shipped.contract(INVOICES, "raw").document, "version": "two"}
    with pytest.raises(BareCountError, match="not a semantic version") as refused:
        registry.register(connection, shipped, INVOICES, "raw", document, who="ann", reason="", cause="drift", now=NOW)
    assert refused.value.code is ErrorCode.DECLARATION_INVALID


def test_two_who_register_at_once_leave_one_version(database: Database, shipped: Declarations) -> None:
    with database.connect(autocommit=True) as connection:
        registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    edited = changed(shipped, INVOICES, "raw", "2.0.0", with_required_channel)
    start, failures = threading.Barrier(2), []

    def sync(who: str) -> None:
        with database.connect(autocommit=True) as connection:
            start.wait()
            try:
                registry.sync(connection, edited, who=who, reason="at once", now=NOW)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=sync, args=(who,)) for who in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.connect(autocommit=True) as connection:
        assert [v.version for v in registry.history(connection, INVOICES, "raw")] == ["1.0.0", "2.0.0"]
        assert len(evidence(connection, "acme", "contract.broken")) == 1


@pytest.mark.parametrize("statement", [
    "update platform.contract_version set document = '{}'",
    "delete from platform.contract_version",
    "truncate platform.contract_version cascade",
    "delete from platform.contract_current",
    "insert into platform.contract_current values ('order_to_cash.invoices', 'raw', '1.0.0', now())",
    "update platform.contract_current set version = '9.9.9'",
    """insert into platform.contract_version
       select dataset, layer, '3.0.0', document, document_hash, '1.0.0', 'none', now(), '', '', ''
       from platform.contract_version v where layer = 'raw' and dataset = 'order_to_cash.invoices' and exists (
           select from platform.contract_version s where s.previous = v.version)""",
])  # fmt: skip
def test_the_database_refuses_what_would_break_the_registry(
    database: Database, connection: psycopg.Connection, shipped: Declarations, statement: str
) -> None:
    registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
    registry.admit(connection, changed(shipped, INVOICES, "raw", "1.1.0", with_channel), "order_to_cash", "acme", NOW)
    for url in (database.url, database.admin_url):
        with psycopg.connect(url) as other:
            if url == database.admin_url and statement == "delete from platform.contract_current":
                other.execute("set constraints all immediate")
            with pytest.raises(psycopg.Error):
                other.execute(statement)
                other.execute("set constraints all immediate")
            other.rollback()
    assert [v.version for v in registry.history(connection, INVOICES, "raw")] == ["1.0.0", "1.1.0"]


def test_a_version_without_a_current_one_cannot_commit(database: Database, shipped: Declarations) -> None:
    with database.connect(autocommit=True) as connection:
        registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            fetch(connection, "insert into platform.contract_version select 'order_to_cash.dso', 'gold', version, "
                  "document, document_hash, null, null, now(), '', '', '' from platform.contract_version limit 1")


def test_a_document_changed_behind_the_platforms_back_is_found(database: Database, shipped: Declarations) -> None:
    with database.connect(autocommit=True) as connection:
        registry.admit(connection, shipped, "order_to_cash", "acme", NOW)
        with psycopg.connect(database.admin_url, autocommit=True) as owner:
            owner.execute("set session_replication_role = replica")
            owner.execute("update platform.contract_version set document = jsonb_set(document, '{name}', '\"x\"')")
        with pytest.raises(BareCountError) as found:
            registry.history(connection, INVOICES, "raw")
        assert found.value.code is ErrorCode.EVIDENCE_BROKEN
