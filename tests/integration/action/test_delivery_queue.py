"""The queue: a delivery is put in once, with the decision that made it, and only for an endpoint of its own tenant."""

from __future__ import annotations

import datetime as dt

import psycopg
import pytest

from resources.action.delivery import endpoints, queue
from resources.action.delivery.model import Delivery, Message
from resources.governance.endpoints import Endpoint
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError

NOW = dt.datetime(2026, 3, 2, 9, 0, tzinfo=dt.UTC)


@pytest.fixture
def ready(database: Database) -> Database:
    """Two tenants, each with an endpoint `ops`."""
    with database.transaction() as connection:
        for tenant in ("acme", "globex"):
            fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (tenant,))
            endpoints.register(connection, webhook(tenant), lambda reference: "1", now=NOW)
    return database


def webhook(tenant: str, name: str = "ops", url: str = "https://hooks.acme.example/in") -> Endpoint:
    return Endpoint.model_validate({
        "apiVersion": "barecount/v1", "kind": "Endpoint",
        "metadata": {"name": name, "tenant": tenant, "description": "the operations desk"},
        "spec": {"target": {"adapter": "webhook", "url": url, "signing": "secret://ops#signing"}}})


def delivery(key: str = "k1", tenant: str = "acme", endpoint: str = "ops", title: str = "DSO is 61 days") -> Delivery:
    return Delivery(tenant, key, endpoint, Message(title, "text", {"value": "61"}))


def test_putting_the_same_delivery_in_again_changes_nothing(ready: Database) -> None:
    with ready.transaction() as connection:
        first = queue.enqueue(connection, delivery(), delivery("k2"), now=NOW)
        again = queue.enqueue(connection, delivery("k2"), delivery(), now=NOW + dt.timedelta(hours=1))
    assert again == first[::-1]
    with ready.connect(autocommit=True) as connection:
        assert [(row.delivery_key, row.state, row.attempts) for row in queue.deliveries(connection)] == [
            ("k2", "queued", 0), ("k1", "queued", 0)]


def test_a_key_names_one_effect(ready: Database) -> None:
    with ready.transaction() as connection:
        queue.enqueue(connection, delivery(), now=NOW)
    with pytest.raises(BareCountError, match="another message"), ready.transaction() as connection:
        queue.enqueue(connection, delivery(title="DSO is 62 days"), now=NOW)


def test_two_tenants_may_use_the_same_key(ready: Database) -> None:
    with ready.transaction() as connection:
        first, second = queue.enqueue(connection, delivery(), delivery(tenant="globex"), now=NOW)
    assert first != second


def test_a_decision_that_is_rolled_back_delivers_nothing(ready: Database) -> None:
    with pytest.raises(RuntimeError), ready.transaction() as connection:
        queue.enqueue(connection, delivery(), now=NOW)
        raise RuntimeError
    with ready.connect(autocommit=True) as connection:
        assert queue.deliveries(connection) == []


def test_an_endpoint_of_another_tenant_is_unknown(ready: Database) -> None:
    with ready.transaction() as connection:
        endpoints.register(connection, webhook("globex", "billing"), lambda reference: "1", now=NOW)
    with pytest.raises(BareCountError, match="billing of acme"), ready.transaction() as connection:
        queue.enqueue(connection, delivery(endpoint="billing"), now=NOW)


def test_receipts_cannot_be_changed(ready: Database) -> None:
    for table in ("receipt", "dead_letter", "dead_letter_replay"):
        for statement in (f"delete from platform.{table}", f"truncate platform.{table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), ready.transaction() as connection:
                connection.execute(statement)
