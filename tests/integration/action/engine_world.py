"""A database with tenants, endpoints and a published template, and rules of a test's own: what the engine works in."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from barecount_assets.stages.environment import StageEnvironment
from resources.action import jobs, people, templates
from resources.action.delivery import endpoints
from resources.action.engine import Rulebook
from resources.governance import declarations
from resources.governance.actions import ActionRule
from resources.governance.declarations import Declarations
from resources.governance.endpoints import Endpoint
from resources.host.tenants import EgressOpening
from resources.runtime import events
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.trust.secrets import Secrets
from resources.trust.signing import KeyStore

NOW = dt.datetime(2026, 4, 1, 12, tzinfo=dt.UTC)
TENANTS = ("acme", "globex")


def rule(name: str = "too_high", **spec: Any) -> ActionRule:
    """A rule on dso above 60 of both tenants, sent to the endpoint `ops`, with what a test wants otherwise."""
    return ActionRule.model_validate_json(json.dumps({
        "apiVersion": "barecount/v1", "kind": "ActionRule",
        "metadata": {"name": name, "title": "Too high", "description": "x", "version": "1.0.0",
                     "owners": [{"name": "Ann", "email": "ann@example.com", "role": "owner"}]},
        "spec": {
            "tenants": list(TENANTS), "subject": {"kpi": "dso"}, "condition": "value > 60.0",
            "template": "kpi_alert", "parameters": {"limit": 60, "advice": "Act."}, "route": ["ops"], **spec},
    }))


def endpoint(tenant: str, name: str = "ops", url: str = "https://hooks.acme.example/in") -> Endpoint:
    return Endpoint.model_validate({
        "apiVersion": "barecount/v1", "kind": "Endpoint",
        "metadata": {"name": name, "tenant": tenant, "description": "the operations desk"},
        "spec": {"target": {"adapter": "webhook", "url": url, "signing": "secret://ops#signing"}}})


@dataclass
class World:
    """What the engine works in. `now` is the time that is passed to it."""

    settings: Settings
    database: Database
    declarations: Declarations
    now: dt.datetime = NOW

    @classmethod
    def make(cls, settings: Settings, database: Database, *rules: ActionRule) -> World:
        declared = declarations.load(settings.project_dir)
        world = cls(settings, database, replace(declared, action_rules={r.name: r for r in rules or [rule()]}))
        with database.transaction() as connection:
            for tenant in TENANTS:
                fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (tenant,))
                endpoints.register(connection, endpoint(tenant), lambda reference: "1", now=NOW)
        return world

    @property
    def keys(self) -> KeyStore:
        return KeyStore.of(self.settings.data_dir, self.database)

    @property
    def book(self) -> Rulebook:
        return jobs.rulebook(self.declarations)

    def receive_at(self, url: str) -> World:
        """Let both tenants' endpoint `ops` lead to a receiver on this machine."""
        secrets = Secrets.of(self.settings.data_dir, self.database)
        opening = (EgressOpening(target="127.0.0.1", plaintext=True, reason="the test's receiver"),)
        tenants = {
            name: tenant.model_copy(update={"spec": tenant.spec.model_copy(update={"egress": opening})})
            for name, tenant in self.declarations.tenants.items()}
        self.declarations = replace(self.declarations, tenants=tenants)
        for tenant in TENANTS:
            signing = "whsec_" + "c2VjcmV0LW9mLXRoZS10ZXN0cy1ub3QtcmVhbC0xMjM0"
            version = secrets.keep(tenant, "ops", {"signing": signing})
            declared = endpoint(tenant, url=f"{url}/{tenant}")
            with self.database.transaction() as connection:
                endpoints.register(connection, declared, lambda reference, found=version: found, now=NOW)
                endpoints.verified(connection, tenant, "ops", now=NOW, code=None, how="by the test")
        return self

    @property
    def environment(self) -> StageEnvironment:
        return StageEnvironment(self.settings, self.database, self.declarations)

    def publish(self, name: str = "kpi_alert", tenants: Sequence[str] = TENANTS) -> World:
        """Dry run, submit and publish a shipped template."""
        template = self.declarations.action_template(name)
        samples = templates.samples(Path(self.settings.project_dir), name)
        run = templates.dry_run(template, samples, templates.example_parameters(template))
        assert run.passed, run
        for tenant in tenants:
            templates.ensure_key(self.database, self.keys, tenant)
            with self.database.transaction() as connection:
                templates.record_dry_run(connection, tenant, run, NOW)
                version = templates.submit(connection, tenant, template, run.samples_sha256, "ann", NOW)
                templates.publish(connection, self.keys, version, "bob", NOW)
        return self

    def happen(self, *values: float | str, tenant: str = "acme", unit: str = "north", **data: Any) -> None:
        """KPI events of dso, one per value and month from 2026-01 on, in a transaction."""
        found = [
            events.Event(tenant, "kpi.changed", "dso", f"{unit}-{month}-{value}-{data}", {
                "kpi": "dso", "pipeline": "order_to_cash", "kpi_version": "1.0.0", "unit": "days", "grain": "month",
                "period": f"2026-{month:02d}", "period_start": f"2026-{month:02d}-01",
                "dimensions": {"business_unit": unit}, "value": str(value), "previous": None, "threshold_state": "ok",
                "publication_version": 1, **data}, "order_to_cash")
            for month, value in enumerate(values, 1)
        ]
        with self.database.transaction() as connection:
            events.append(connection, *found)

    def advance(self, minutes: float = 0) -> jobs.Advance:
        """What the job does, after some minutes."""
        self.now += dt.timedelta(minutes=minutes)
        return jobs.advance(self.database, self.declarations, self.book, lambda: self.now)

    def settle(self) -> int:
        with self.database.transaction() as connection:
            return jobs.settle(connection, self.now)

    def jobs(self, **filters: Any) -> list[people.JobRow]:
        """Jobs, oldest first."""
        with self.database.connect(autocommit=True) as connection:
            return people.listed(connection, **filters)[::-1]

    def rows(self, statement: str, *parameters: Any) -> list[tuple]:
        with self.database.connect(autocommit=True) as connection:
            return fetch(connection, statement, parameters)

    def finish_deliveries(self, state: str = "completed") -> None:
        """What a worker would leave, without a receiver: the worker has tests of its own."""
        with self.database.transaction() as connection:
            fetch(connection, "update platform.delivery set state = $1 where state <> 'completed'", (state,))
