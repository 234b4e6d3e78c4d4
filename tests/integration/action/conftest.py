"""What delivery tests share: a database with two tenants, their secrets, and a worker whose time the test decides."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from resources.action.delivery import endpoints, queue
from resources.action.delivery.adapters.base import Network
from resources.action.delivery.model import Delivery, Message
from resources.action.delivery.queue import DeliveryRow, ReceiptRow
from resources.action.delivery.worker import Report, Worker
from resources.governance.endpoints import Endpoint
from resources.runtime.database import Database, fetch
from resources.security.egress import EgressPolicy, Opening
from resources.trust.secrets import LocalSecrets, Reference, Secrets

START = dt.datetime(2026, 3, 2, 9, 0, tzinfo=dt.UTC)
LOCAL = EgressPolicy((Opening("127.0.0.1", plaintext=True),))
SIGNING = "whsec_" + "c2VjcmV0LW9mLXRoZS10ZXN0cy1ub3QtcmVhbC0xMjM0"


@dataclass
class Desk:
    """Everything around a worker. `now` moves only when a test moves it."""

    database: Database
    secrets: Secrets
    policies: dict[str, EgressPolicy] = field(default_factory=dict)
    network: Network = field(default_factory=lambda: Network.open(timeout=5.0))
    now: dt.datetime = START

    def endpoint(self, target: dict[str, Any], *, tenant: str = "acme", name: str = "ops", verified: bool = True,
                 **spec: Any) -> Endpoint:
        """Register an endpoint; its rate does not hold a test back unless it says so."""
        declared = Endpoint.model_validate({
            "apiVersion": "barecount/v1", "kind": "Endpoint",
            "metadata": {"name": name, "tenant": tenant, "description": "the operations desk"},
            "spec": {"target": target, "rate": {"per_second": 10_000.0, "burst": 100_000}, **spec}}, strict=False)

        def version_of(reference: str) -> str:
            return self.secrets.provider.current_version(tenant, Reference.parse(reference).name)

        with self.database.transaction() as connection:
            endpoints.register(connection, declared, version_of, now=self.now)
            if verified:
                endpoints.verified(connection, tenant, name, now=self.now, code=None, how="by the test")
        return declared

    def webhook(self, url: str, **options: Any) -> Endpoint:
        """Register a webhook endpoint at a URL."""
        return self.endpoint({"adapter": "webhook", "url": url, "signing": "secret://ops#signing"}, **options)

    def queue(self, *keys: str, tenant: str = "acme", endpoint: str = "ops", **message: Any) -> list[int]:
        """Put a delivery into the queue for each key."""
        content = Message(**{"title": "DSO is 61 days", "text": "above 45", "data": {"kpi": "dso"}, **message})
        with self.database.transaction() as connection:
            return queue.enqueue(
                connection, *(Delivery(tenant, key, endpoint, content) for key in keys), now=self.now)

    def work(self, **options: Any) -> Report:
        """One round of a worker, now."""
        with self.worker(**options) as worker:
            return worker.run_once(self.now)

    def worker(self, **options: Any) -> Worker:
        return Worker(self.database, self.secrets, lambda tenant: self.policies.get(tenant, LOCAL),
                      network=self.network, threads=options.pop("threads", 8), **options)

    def later(self, **interval: float) -> None:
        self.now += dt.timedelta(**interval)

    def delivery(self, key: str, tenant: str = "acme") -> DeliveryRow:
        with self.database.connect(autocommit=True) as connection:
            return next(row for row in queue.deliveries(connection, tenant_id=tenant, limit=1_000)
                        if row.delivery_key == key)

    def receipts(self, key: str | None = None, tenant: str = "acme") -> list[ReceiptRow]:
        """Receipts of a delivery, the first attempt first."""
        with self.database.connect(autocommit=True) as connection:
            rows = queue.receipts(connection, tenant_id=tenant, delivery=key, limit=10_000)
        return sorted(rows, key=lambda row: (row.delivery_id, row.attempt))

    def state(self, name: str = "ops", tenant: str = "acme") -> endpoints.EndpointRow:
        with self.database.connect(autocommit=True) as connection:
            return endpoints.get(connection, tenant, name)


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Iterator[Desk]:
    with database.transaction() as connection:
        for tenant in ("acme", "globex"):
            fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (tenant,))
    secrets = Secrets(LocalSecrets.of(tmp_path / "data"), database)
    for tenant in ("acme", "globex"):
        secrets.keep(tenant, "ops", {"signing": SIGNING if tenant == "acme" else "whsec_" + "Z2xvYmV4" * 4})
    desk = Desk(database, secrets)
    yield desk
    desk.network.close()
