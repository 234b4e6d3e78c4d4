"""Subscriptions: what consumers need of a contract, and whom a change would break.

A consumer of a tenant's data subscribes to a dataset at a layer: a required compatibility and the oldest version it
can live with. Consumers that a manifest names (`spec.publication.consumers`) need no subscription: they read what its
pipeline publishes and rely on forward compatibility, until they subscribe with something else.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.governance.compatibility import Change, judge, version_key
from resources.governance.contracts import Contract
from resources.governance.declarations import Declarations
from resources.governance.modes import Layer, Mode
from resources.runtime import events
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.declared import canonical_hash, listed
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger

REGISTRY_LOCK = 0x0BC3
"""Advisory lock of whoever writes to the registry."""


@dataclass(frozen=True)
class Subscription:
    """What one consumer needs of one contract.

    Attributes:
        mode: how new versions must relate to those the consumer reads by.
        min_version: the oldest version the consumer reads by.
        declared: it comes from the manifest of a pipeline, not from a subscription.
    """

    tenant_id: str
    dataset: str
    layer: Layer
    consumer: str
    mode: Mode
    min_version: str
    declared: bool = False


@dataclass(frozen=True)
class BrokenSubscriber:
    """A subscriber that a candidate would break, and by which changes."""

    tenant_id: str
    consumer: str
    mode: Mode
    min_version: str
    changes: tuple[Change, ...]

    def facts(self) -> dict[str, Any]:
        """For machines: JSON-serialisable."""
        return {
            "tenant": self.tenant_id, "consumer": self.consumer, "compatibility": self.mode.value,
            "min_version": self.min_version, "changes": [change.message for change in self.changes],
        }


def lock_registry(connection: Any) -> None:
    """Held until the transaction ends: one writer of the registry at a time."""
    fetch(connection, "select pg_advisory_xact_lock($1::bigint)", (REGISTRY_LOCK,))


def subscribe(
    connection: psycopg.Connection, declarations: Declarations, wanted: Subscription, *, who: str, now: dt.datetime
) -> bool:
    """Put a subscription on record, in place of the consumer's older one; False when it is on record already.

    Raises:
        BareCountError: declaration.unknown for a dataset, layer or tenant that is not declared, a tenant that no
            pipeline gives the dataset to, or a dataset that is not registered yet.
    """
    declarations.contract(wanted.dataset, wanted.layer)
    declarations.tenant(wanted.tenant_id)
    tenants = tenants_of(declarations, wanted.dataset)
    if wanted.tenant_id not in tenants:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"no pipeline uses {wanted.dataset} for tenant {wanted.tenant_id}; its tenants are {listed(tenants)}",
            hint="name one of them with --tenant",
        )
    if not fetch(connection, "select 1 from platform.dataset where dataset = $1", (wanted.dataset,)):
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN, f"{wanted.dataset} is declared, but not registered yet",
            hint="register it with `barecount contracts sync`, or run its pipeline",
        )
    return _record(connection, wanted, who, now, active=True)


def unsubscribe(connection: psycopg.Connection, known: Subscription, *, who: str, now: dt.datetime) -> bool:
    """End a subscription; False when there is none."""
    return _record(connection, known, who, now, active=False)


def subscriptions(
    connection: Any, declarations: Declarations, dataset: str | None = None, layer: str | None = None,
    tenant_id: str | None = None,
) -> list[Subscription]:
    """Who relies on a dataset at a layer: subscriptions on record, and the consumers that manifests name."""
    recorded = [
        Subscription(mode=Mode(row.pop("compatibility")), **row)
        for row in fetch_dicts(connection, _SUBSCRIPTIONS, (dataset, layer, tenant_id))
    ]
    known = {(s.tenant_id, s.dataset, s.layer, s.consumer) for s in recorded}
    named = [
        subscription for subscription in _named_consumers(declarations)
        if dataset in (None, subscription.dataset) and layer in (None, subscription.layer)
        and tenant_id in (None, subscription.tenant_id)
        and (subscription.tenant_id, subscription.dataset, subscription.layer, subscription.consumer) not in known
    ]
    return sorted([*recorded, *named], key=lambda s: (s.dataset, s.layer, s.tenant_id, s.consumer))


def broken_by(
    connection: Any, declarations: Declarations, candidate: Contract, versions: Sequence[Contract]
) -> tuple[BrokenSubscriber, ...]:
    """The subscribers that a candidate would break; `versions` are those on record, oldest first."""
    broken = []
    for subscription in subscriptions(connection, declarations, candidate.dataset, candidate.layer):
        read_by = [v for v in versions if version_key(v.version) >= version_key(subscription.min_version)]
        breaking = judge(candidate, read_by, subscription.mode).breaking
        if breaking:
            changes = tuple(dict.fromkeys(change for _, change in breaking))
            broken.append(BrokenSubscriber(subscription.tenant_id, subscription.consumer, subscription.mode,
                                           subscription.min_version, changes))
    return tuple(broken)


def datasets_of(declarations: Declarations, pipeline: str) -> list[str]:
    """The datasets a pipeline reads, builds and publishes."""
    spec = declarations.pipeline(pipeline).spec
    made = (f"{pipeline}.{name}" for name in (*spec.transforms.gdp, *spec.kpis))
    return [*(source.dataset for source in spec.sources), *made]


def users_of(declarations: Declarations, dataset: str) -> list[tuple[str, str]]:
    """(pipeline, tenant) of the pipelines that use a dataset, in order."""
    return sorted(
        (name, tenant) for name, pipeline in declarations.pipelines.items()
        if dataset in datasets_of(declarations, name) for tenant in pipeline.spec.tenants
    )


def tenants_of(declarations: Declarations, dataset: str) -> list[str]:
    """Tenants of the pipelines that use a dataset, in order of name."""
    return sorted({tenant for _, tenant in users_of(declarations, dataset)})


def _named_consumers(declarations: Declarations) -> Iterator[Subscription]:
    for name, pipeline in declarations.pipelines.items():
        for kpi in pipeline.spec.kpis:
            for tenant in pipeline.spec.tenants:
                for consumer in dict.fromkeys(pipeline.spec.publication.consumers):
                    yield Subscription(tenant, f"{name}.{kpi}", "activation", consumer, Mode.FORWARD, "0.0.0", True)


def _record(
    connection: psycopg.Connection, wanted: Subscription, who: str, now: dt.datetime, *, active: bool
) -> bool:
    identity = (wanted.tenant_id, wanted.dataset, wanted.layer, wanted.consumer)
    state = (wanted.mode.value, wanted.min_version)
    with connection.transaction():
        lock_registry(connection)
        newest = fetch(connection, _NEWEST, identity)
        before = newest[0][1:] if newest else (None, None, False)
        if before == (*state, True) if active else not before[2]:
            return False
        # The number of the row before makes the same wish, uttered again later, another one.
        token = canonical_hash([*identity, *state, active, newest[0][0] if newest else 0])
        kind = "contract.subscribed" if active else "contract.unsubscribed"
        subject = f"{wanted.dataset}/{wanted.layer}/{wanted.consumer}"
        facts = {"dataset": wanted.dataset, "layer": wanted.layer, "consumer": wanted.consumer, "who": who,
                 "compatibility": wanted.mode.value, "min_version": wanted.min_version}
        seq = ledger.append(connection, ledger.Entry(wanted.tenant_id, kind, subject, token, facts))
        events.append(connection, events.Event(wanted.tenant_id, kind, subject, token, facts, evidence_seq=seq))
        fetch(connection, _INSERT, (*identity, *state, active, now, who, token, seq))
    return True


_NEWEST = """
select subscription_id, compatibility, min_version, active from platform.contract_subscription
where tenant_id = $1 and dataset = $2 and layer = $3 and consumer = $4
order by subscription_id desc limit 1
"""
_INSERT = """
insert into platform.contract_subscription
    (tenant_id, dataset, layer, consumer, compatibility, min_version, active, recorded_at, recorded_by, run_token,
     evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7::boolean, $8, $9, $10, $11::bigint)
"""
_SUBSCRIPTIONS = """
select tenant_id, dataset, layer, consumer, compatibility, min_version
from (
    select distinct on (tenant_id, dataset, layer, consumer) *
    from platform.contract_subscription
    where ($1::text is null or dataset = $1) and ($2::text is null or layer = $2)
        and ($3::text is null or tenant_id = $3)
    order by tenant_id, dataset, layer, consumer, subscription_id desc
) newest
where active
"""
