"""Endpoints in the database: registered from their declarations, verified, healthy or not, and which secrets they use.

States: `unverified` (nothing is sent but the challenge), `active`, `disabled`. Health is the circuit breaker:
`healthy`, `degraded` (failures in a row: one delivery at a time), `blocked` (the circuit is open: nothing is sent until
`paused_until`, then one delivery tries it out).

A change of where an endpoint leads to, or of how it is signed, makes it unverified again. Every change is on record.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets as random_source
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from resources.governance.endpoints import Endpoint, EndpointSpec
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger

ROTATION = dt.timedelta(hours=24)
"""How long a secret stays valid after another took its place."""

CHALLENGE_LIFETIME = dt.timedelta(hours=24)
DEGRADED_AFTER = 3
BLOCKED_AFTER = 10


@dataclass(frozen=True)
class SecretUse:
    """One version of a secret that an endpoint uses, without its value."""

    purpose: str
    reference: str
    version: str
    valid_from: dt.datetime
    valid_until: dt.datetime | None


@dataclass(frozen=True)
class EndpointRow:
    """An endpoint as registered, and how it does."""

    tenant_id: str
    name: str
    adapter: str
    spec: Mapping[str, Any]
    declaration_hash: str
    state: str
    state_reason: str | None
    verified_at: dt.datetime | None
    challenge_sha256: str | None
    challenged_at: dt.datetime | None
    health: str
    consecutive_failures: int
    paused_until: dt.datetime | None
    is_fifo: bool
    rate_per_second: float
    burst: float
    registered_at: dt.datetime
    changed_at: dt.datetime

    @property
    def declared(self) -> EndpointSpec:
        """The specification as a model."""
        return EndpointSpec.model_validate_json(as_json(self.spec))


def register(
    connection: psycopg.Connection, endpoint: Endpoint, version_of: Callable[[str], str], *, now: dt.datetime
) -> bool:
    """Register a declared endpoint, or what changed of it, in the caller's transaction; False when nothing changed.

    The tenant must be registered. A declaration that comes back does not enable an endpoint that was disabled.

    Args:
        version_of: current version of the secret behind a reference; may raise secret.unknown.
    """
    spec = endpoint.spec.model_dump(mode="json", by_alias=True)
    before = _find(connection, endpoint.tenant_id, endpoint.name, lock=True)
    if before is not None and before.declaration_hash == endpoint.hash:
        return False
    leads_elsewhere = before is None or before.spec["target"] != spec["target"]
    seq = record(connection, endpoint.tenant_id, endpoint.name, "registered", now, {
        "adapter": endpoint.spec.target.adapter, "declaration_hash": endpoint.hash, "must_verify": leads_elsewhere})
    fetch(connection, _REGISTER, (
        endpoint.tenant_id, endpoint.name, endpoint.spec.target.adapter, as_json(spec), endpoint.hash,
        endpoint.is_fifo, endpoint.spec.rate.per_second, float(endpoint.spec.rate.burst), now, seq, leads_elsewhere))
    declared, in_use = dict(endpoint.secrets), set()
    for use in secret_uses(connection, endpoint.tenant_id, endpoint.name, now):
        if declared.get(use.purpose) == use.reference:
            in_use.add(use.purpose)
        elif use.valid_until is None:
            _retire(connection, endpoint.tenant_id, endpoint.name, use, now)
    for purpose in declared.keys() - in_use:
        reference = declared[purpose]
        _use(connection, endpoint.tenant_id, endpoint.name, purpose, reference, version_of(reference), now, seq)
    return True


def withdraw(connection: psycopg.Connection, declared: Iterable[tuple[str, str]], *, now: dt.datetime) -> list[str]:
    """Disable every registered endpoint that is declared no more; returns them as `tenant/name`."""
    known = set(declared)
    fetch(connection, _LIST + " for no key update", (None, None))
    gone = [row for row in listed(connection) if (row.tenant_id, row.name) not in known and row.state != "disabled"]
    for row in gone:
        disable(connection, row.tenant_id, row.name, "it is not declared any more", now=now)
    return [f"{row.tenant_id}/{row.name}" for row in gone]


def listed(connection: psycopg.Connection, tenant_id: str | None = None) -> list[EndpointRow]:
    """Registered endpoints, by tenant and name."""
    return [EndpointRow(**row) for row in fetch_dicts(connection, _LIST, (tenant_id, None))]


def get(connection: psycopg.Connection, tenant_id: str, name: str, *, lock: bool = False) -> EndpointRow:
    """One endpoint; with `lock` nobody else changes it until the transaction ends.

    Raises BareCountError declaration.unknown for an endpoint that the tenant has not registered.
    """
    found = _find(connection, tenant_id, name, lock=lock)
    if found is None:
        names = ", ".join(row.name for row in listed(connection, tenant_id)) or "none"
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN, f"tenant {tenant_id} has no endpoint {name!r}; registered are {names}",
            hint="declare it in contracts/actions/endpoints/<tenant>/<name>.yaml, then "
                 "`barecount actions endpoints sync`")
    return found


def disable(
    connection: psycopg.Connection, tenant_id: str, name: str, reason: str, *, now: dt.datetime, tells: bool = True
) -> None:
    """Send nothing more; what is in the queue waits."""
    get(connection, tenant_id, name, lock=True)
    record(connection, tenant_id, name, "disabled", now, {"reason": reason}, tells=tells)
    fetch(connection, _DISABLE, (tenant_id, name, reason, now))


def enable(connection: psycopg.Connection, tenant_id: str, name: str, *, now: dt.datetime) -> str:
    """Send again, and forget earlier failures; returns the new state: `unverified` for one that never was verified."""
    row = get(connection, tenant_id, name, lock=True)
    state = "active" if row.verified_at else "unverified"
    record(connection, tenant_id, name, "enabled", now, {"state": state})
    fetch(connection, _ENABLE, (tenant_id, name, state, now))
    return state


def new_challenge(connection: psycopg.Connection, tenant_id: str, name: str, *, now: dt.datetime) -> str:
    """A code that the receiver must give back; only its hash is kept. It is valid for a day."""
    get(connection, tenant_id, name, lock=True)
    code = random_source.token_hex(8)
    record(connection, tenant_id, name, "challenged", now, {})
    fetch(connection, _CHALLENGE, (tenant_id, name, hashlib.sha256(code.encode()).hexdigest(), now))
    return code


def verified(
    connection: psycopg.Connection, tenant_id: str, name: str, *, now: dt.datetime, code: str | None, how: str
) -> None:
    """The receiver answered: the endpoint is active from now on.

    Args:
        code: what it gave back; None where the adapter's own check stands for it.
        how: what was checked, for the record.

    Raises:
        BareCountError: delivery.unverified for a code that is wrong or too old.
    """
    row = get(connection, tenant_id, name, lock=True)
    if code is not None:
        digest = hashlib.sha256(code.strip().encode()).hexdigest()
        again = f"`barecount actions endpoints verify {name} --tenant {tenant_id}` sends a new one"
        if row.challenge_sha256 is None or not hmac.compare_digest(digest, row.challenge_sha256):
            raise BareCountError(
                ErrorCode.DELIVERY_UNVERIFIED, f"the code is not the one sent to {tenant_id}/{name}", hint=again)
        assert row.challenged_at is not None
        if now - row.challenged_at > CHALLENGE_LIFETIME:
            raise BareCountError(
                ErrorCode.DELIVERY_UNVERIFIED, f"the code sent to {tenant_id}/{name} is over a day old", hint=again)
    record(connection, tenant_id, name, "verified", now, {"how": how})
    fetch(connection, _VERIFIED, (tenant_id, name, now))


def rotated(
    connection: psycopg.Connection, tenant_id: str, secret: str, version: str, *, now: dt.datetime
) -> list[str]:
    """A secret has a new version: every endpoint of the tenant that refers to it uses it; returns their names.

    The version before stays valid for a day beside it.
    """
    # Rows of endpoints are locked before the head of the evidence, here and in the worker: no deadlock.
    fetch(connection, _LIST + " for no key update", (tenant_id, None))
    found = fetch(connection, _USERS, (tenant_id, f"secret://{secret}", f"secret://{secret}#"))
    for name, purpose, reference in found:
        seq = record(connection, tenant_id, name, "secret_rotated", now, {
            "purpose": purpose, "reference": reference, "version": version})
        for use in secret_uses(connection, tenant_id, name, now):
            if use.purpose == purpose and use.valid_until is None and use.version != version:
                _retire(connection, tenant_id, name, use, now + ROTATION)
        _use(connection, tenant_id, name, purpose, reference, version, now, seq)
    return [name for name, _, _ in found]


def secret_uses(connection: psycopg.Connection, tenant_id: str, name: str, now: dt.datetime) -> list[SecretUse]:
    """Versions of secrets that are valid now, the newest of each purpose first."""
    return [SecretUse(**row) for row in fetch_dicts(connection, _USES, (tenant_id, name, now))]


def limit_tenant(
    connection: psycopg.Connection, tenant_id: str, per_second: float | None, burst: float | None, *, now: dt.datetime
) -> None:
    """Limit what a tenant sends over all its endpoints; None lifts the limit."""
    ledger.append(connection, ledger.Entry(tenant_id, "delivery_limit.changed", tenant_id, random_source.token_hex(8), {
        "per_second": None if per_second is None else str(per_second), "burst": None if burst is None else str(burst)}))
    if per_second is None:
        fetch(connection, "delete from platform.delivery_limit where tenant_id = $1", (tenant_id,))
    else:
        fetch(connection, _LIMIT, (tenant_id, per_second, burst or max(per_second, 1.0), now))


def _find(connection: psycopg.Connection, tenant_id: str, name: str, *, lock: bool = False) -> EndpointRow | None:
    rows = fetch_dicts(connection, _LIST + (" for no key update" if lock else ""), (tenant_id, name))
    return EndpointRow(**rows[0]) if rows else None


def record(
    connection: psycopg.Connection, tenant_id: str, name: str, verb: str, now: dt.datetime, facts: Mapping[str, Any],
    *, tells: bool = True,
) -> int:
    """Evidence and event of a change; no event when only quiet deliveries made it (`Delivery.is_quiet`)."""
    token = f"{now.isoformat(timespec='microseconds')}-{random_source.token_hex(4)}"
    seq = ledger.append(connection, ledger.Entry(tenant_id, f"endpoint.{verb}", name, token, facts))
    if tells:
        events.append(connection, events.Event(
            tenant_id, f"endpoint.{verb}", name, token, {"endpoint": name, **facts}, evidence_seq=seq))
    return seq


def _use(
    connection: psycopg.Connection, tenant_id: str, name: str, purpose: str, reference: str, version: str,
    now: dt.datetime, seq: int,
) -> None:
    fetch(connection, _USE, (tenant_id, name, purpose, reference, version, now, seq))


def _retire(
    connection: psycopg.Connection, tenant_id: str, name: str, use: SecretUse, until: dt.datetime
) -> None:
    fetch(connection, _RETIRE, (tenant_id, name, use.purpose, use.reference, use.version, until))


@dataclass(frozen=True)
class Health:
    """How an endpoint does: the circuit breaker.

    Attributes:
        failures: in a row.
        openings: how often in a row the circuit opened: the more, the longer it stays open.
        paused_until: nothing is sent before.
    """

    state: str = "healthy"
    failures: int = 0
    openings: int = 0
    paused_until: dt.datetime | None = None

    def after(self, succeeded: Sequence[bool], now: dt.datetime, pause: dt.timedelta = dt.timedelta()) -> Health:
        """Health after some attempts, in order. `pause` is what the receiver asked for.

        Three failures in a row degrade an endpoint, ten open its circuit for a minute, twice that each time the
        delivery that tries it out fails, an hour at most; a success closes it.
        """
        was_open = self.paused_until is not None and self.paused_until > now
        health = self
        for success in succeeded:
            health = Health() if success else replace(health, failures=health.failures + 1)
        if health.failures >= BLOCKED_AFTER and not (health.state == "blocked" and was_open):
            openings = health.openings + 1
            stays = min(dt.timedelta(minutes=1) * 2 ** min(openings - 1, 10), dt.timedelta(hours=1))
            health = replace(health, state="blocked", openings=openings, paused_until=now + stays)
        elif health.failures >= DEGRADED_AFTER and health.state != "blocked":
            health = replace(health, state="degraded")
        if pause:
            health = replace(health, paused_until=max(now + pause, health.paused_until or now))
        return health


_COLUMNS = """
select tenant_id, name, adapter, spec, declaration_hash, state, state_reason, verified_at, challenge_sha256,
    challenged_at, health, consecutive_failures, paused_until, is_fifo, rate_per_second, burst, registered_at,
    changed_at
from platform.endpoint
"""
_LIST = _COLUMNS + "where ($1::text is null or tenant_id = $1) and ($2::text is null or name = $2) order by 1, 2"
_REGISTER = """
insert into platform.endpoint as e (tenant_id, name, adapter, spec, declaration_hash, is_fifo, rate_per_second, burst,
    tokens, refilled_at, registered_at, changed_at, evidence_seq)
values ($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $8, $9, $9, $9, $10)
on conflict (tenant_id, name) do update
set adapter = excluded.adapter, spec = excluded.spec, declaration_hash = excluded.declaration_hash,
    is_fifo = excluded.is_fifo, rate_per_second = excluded.rate_per_second, burst = excluded.burst,
    tokens = least(e.tokens, excluded.burst), changed_at = excluded.changed_at, evidence_seq = excluded.evidence_seq,
    verified_at = case when $11 then null else e.verified_at end,
    state = case when $11 and e.state = 'active' then 'unverified' else e.state end
"""
_DISABLE = """
update platform.endpoint set state = 'disabled', state_reason = $3, changed_at = $4 where tenant_id = $1 and name = $2
"""
_ENABLE = """
update platform.endpoint
set state = $3, state_reason = null, health = 'healthy', consecutive_failures = 0, openings = 0, paused_until = null,
    changed_at = $4
where tenant_id = $1 and name = $2
"""
_CHALLENGE = """
update platform.endpoint set challenge_sha256 = $3, challenged_at = $4 where tenant_id = $1 and name = $2
"""
_VERIFIED = """
update platform.endpoint
set state = case when state = 'unverified' then 'active' else state end, verified_at = $3, challenge_sha256 = null,
    changed_at = $3
where tenant_id = $1 and name = $2
"""
_USERS = """
select distinct endpoint, purpose, reference from platform.endpoint_secret
where tenant_id = $1 and valid_until is null and (reference = $2 or starts_with(reference, $3)) order by 1, 2
"""
_USES = """
select purpose, reference, version, valid_from, valid_until from platform.endpoint_secret
where tenant_id = $1 and endpoint = $2 and valid_from <= $3::timestamptz
    and (valid_until is null or valid_until > $3::timestamptz)
order by purpose, valid_until desc nulls first, valid_from desc
"""
_USE = """
insert into platform.endpoint_secret (tenant_id, endpoint, purpose, reference, version, valid_from, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (tenant_id, endpoint, purpose, reference, version) do update
set valid_until = null, evidence_seq = excluded.evidence_seq
where endpoint_secret.valid_until is not null
"""
_RETIRE = """
update platform.endpoint_secret set valid_until = $6
where tenant_id = $1 and endpoint = $2 and purpose = $3 and reference = $4 and version = $5
"""
_LIMIT = """
insert into platform.delivery_limit (tenant_id, rate_per_second, burst, tokens, refilled_at)
values ($1, $2, $3, $3, $4)
on conflict (tenant_id) do update
set rate_per_second = excluded.rate_per_second, burst = excluded.burst,
    tokens = least(delivery_limit.tokens, excluded.burst)
"""
