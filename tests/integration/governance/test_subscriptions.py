"""Subscriptions: who relies on a contract, and whom a change would break."""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import replace
from types import MappingProxyType

import psycopg
import pytest

from resources.governance import declarations as declared
from resources.governance import registry
from resources.governance.contracts import read_contract
from resources.governance.declarations import Declarations
from resources.governance.modes import Mode
from resources.governance.registry import Action
from resources.governance.subscriptions import Subscription, subscribe, subscriptions, unsubscribe
from resources.runtime import events
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.yaml_source import YamlSource
from resources.trust import ledger
from tests.conftest import PROJECT

INVOICES = "order_to_cash.invoices"
NOW = dt.datetime(2026, 4, 1, 12, tzinfo=dt.UTC)
AUDIT = Subscription("acme", INVOICES, "raw", "audit", Mode.FORWARD, "1.0.0")


@pytest.fixture(scope="module")
def shipped() -> Declarations:
    return declared.load(PROJECT)


@pytest.fixture
def connection(database: Database, shipped: Declarations):
    with database.connect(autocommit=True) as opened:
        registry.admit(opened, shipped, "order_to_cash", "acme", NOW)
        yield opened


def without(declarations: Declarations, version: str, *names: str) -> Declarations:
    """The declarations after somebody removed fields from the raw invoices."""
    document = copy.deepcopy(dict(declarations.contract(INVOICES, "raw").document))
    document["version"] = version
    table = document["schema"][0]
    table["properties"] = [each for each in table["properties"] if each["name"] not in names]
    contract, findings = read_contract(YamlSource("edited", document, {}), INVOICES, "raw")
    assert contract is not None, findings
    return replace(declarations, contracts=MappingProxyType({**declarations.contracts, (INVOICES, "raw"): contract}))


def test_a_subscription_is_on_record_with_its_evidence_and_event(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    assert subscribe(connection, shipped, AUDIT, who="ann", now=NOW)
    assert not subscribe(connection, shipped, AUDIT, who="bob", now=NOW)
    assert subscriptions(connection, shipped, INVOICES, "raw") == [AUDIT]
    stricter = replace(AUDIT, mode=Mode.FULL)
    assert subscribe(connection, shipped, stricter, who="ann", now=NOW)
    assert subscriptions(connection, shipped, INVOICES, "raw") == [stricter]
    assert unsubscribe(connection, stricter, who="ann", now=NOW)
    assert not unsubscribe(connection, stricter, who="ann", now=NOW)
    assert subscriptions(connection, shipped, INVOICES, "raw") == []
    assert subscribe(connection, shipped, AUDIT, who="ann", now=NOW)  # once more, after the end
    happened, _ = events.read(connection, events.Watermark(), types=["contract.subscribed", "contract.unsubscribed"])
    assert [event.type.rpartition(".")[2] for event in happened] == [
        "subscribed", "subscribed", "unsubscribed", "subscribed"]
    assert ledger.verify(connection, "acme").intact


def test_what_a_subscriber_needs_makes_a_compatible_change_breaking(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    edited = without(shipped, "1.1.0", "currency")  # required: the raw mode, backward, does not mind
    assert [step.action for step in registry.plan(connection, edited, [INVOICES]).pending] == [Action.UPDATE]
    subscribe(connection, shipped, AUDIT, who="ann", now=NOW)
    with pytest.raises(BareCountError, match="Subscribers it breaks: audit") as refused:
        registry.admit(connection, edited, "order_to_cash", "acme", NOW)
    assert refused.value.code is ErrorCode.CONTRACT_BREAKING
    plan = registry.sync(connection, edited, who="ann", reason="agreed with audit", now=NOW)
    ((subscriber,),) = [step.broken for step in plan.of(Action.BREAK)]
    assert (subscriber.tenant_id, subscriber.consumer) == ("acme", "audit")
    assert [change.field for change in subscriber.changes] == ["currency"]
    named = {
        tenant: [event.envelope["data"]["subscribers"] for event in events.read(
            connection, events.Watermark(), tenant_id=tenant, types=["contract.broken"])[0]]
        for tenant in ("acme", "globex")
    }
    assert [each["consumer"] for each in named["acme"][0]] == ["audit"]
    assert named["globex"] == [[]]  # another tenant's consumers are none of its business


def test_a_transitive_subscription_speaks_of_versions_since_its_oldest(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    edited = without(shipped, "1.1.0", "currency")
    registry.admit(connection, edited, "order_to_cash", "acme", NOW)
    for consumer, oldest in (("old", "1.0.0"), ("new", "1.1.0"), ("next", "2.0.0")):
        wanted = Subscription("acme", INVOICES, "raw", consumer, Mode.FORWARD_TRANSITIVE, oldest)
        subscribe(connection, edited, wanted, who="ann", now=NOW)
    (step,) = registry.plan(connection, without(shipped, "1.2.0", "currency", "customer_name"), [INVOICES]).of(
        Action.BREAK)
    assert [subscriber.consumer for subscriber in step.broken] == ["old"]


def test_consumers_of_a_manifest_count_until_they_subscribe_themselves(
    connection: psycopg.Connection, shipped: Declarations
) -> None:
    (name, *_) = shipped.pipeline("order_to_cash").spec.publication.consumers
    found = subscriptions(connection, shipped, "order_to_cash.revenue", "activation", "acme")
    (named,) = [subscription for subscription in found if subscription.consumer == name]
    assert named.declared and named.mode is Mode.FORWARD
    subscribe(connection, shipped, replace(named, mode=Mode.NONE, declared=False), who="ann", now=NOW)
    found = subscriptions(connection, shipped, "order_to_cash.revenue", "activation", "acme")
    assert [(s.mode, s.declared) for s in found if s.consumer == name] == [(Mode.NONE, False)]


@pytest.mark.parametrize(("wanted", "message"), [
    (replace(AUDIT, dataset="order_to_cash.invoice"), "unknown dataset"),
    (replace(AUDIT, layer="gold"), "unknown layer"),
    (replace(AUDIT, tenant_id="retail_uk"), "no pipeline uses .* for tenant retail_uk"),
    (Subscription("retail_uk", "online_retail.invoices", "raw", "audit", Mode.FULL, "1.0.0"), "not registered yet"),
])  # fmt: skip
def test_nobody_subscribes_to_what_is_not_there(
    connection: psycopg.Connection, shipped: Declarations, wanted: Subscription, message: str
) -> None:
    with pytest.raises(BareCountError, match=message) as refused:
        subscribe(connection, shipped, wanted, who="ann", now=NOW)
    assert refused.value.code is ErrorCode.DECLARATION_UNKNOWN
