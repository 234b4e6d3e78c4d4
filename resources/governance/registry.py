"""The contract registry: which version of every contract is current, and how it came to be.

`contracts/` is the source. A version is immutable once it is registered, and exactly one version of each dataset and
layer is current; the tables say so (migration 0005), this module only obeys. Versions only grow: the way back to an
older contract is its document under a new number.

What is new and compatible registers itself when a run begins (`admit`); what breaks the contract's mode waits for
somebody who says why (`sync`). A version accepted elsewhere, as the decision on a drift (`register`), is current before
its file is merged: `overlay` lets it win over the older file.

Every registration is evidence and an event of each tenant whose pipelines use the dataset. Writers hold one lock for
the registry and take the tenants' evidence heads after it: a caller of `register` appends its own evidence afterwards.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import psycopg

from resources.governance.compatibility import Change, Comparison, Verdict, compare, judge, next_version, version_key
from resources.governance.contracts import Contract, read_contract
from resources.governance.decision_points import ContractChange, highest_classification
from resources.governance.declarations import Declarations
from resources.governance.modes import Layer, Mode
from resources.governance.policies import Question, decide_all, require
from resources.governance.policy_evaluation import PolicySet
from resources.governance.subscriptions import (
    REGISTRY_LOCK,
    BrokenSubscriber,
    broken_by,
    datasets_of,
    lock_registry,
    tenants_of,
    users_of,
)
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.declared import canonical_hash, listed
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.yaml_source import YamlSource
from resources.trust import ledger


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a contract on record.

    Attributes:
        previous: the version it replaced, None for the first.
        compatibility: how it relates to that one: full, backward, forward, none; None for the first.
        registered_by, cause, reason: who, by what (`run`, `sync`, `drift`), and why.
        is_current: whether it is the current one.
        replaced_at: when a newer one replaced it, None while it is current.
        contract: the contract as read from the document on record.
    """

    dataset: str
    layer: Layer
    version: str
    document_hash: str
    previous: str | None
    compatibility: str | None
    registered_at: dt.datetime
    registered_by: str
    cause: str
    reason: str
    is_current: bool
    replaced_at: dt.datetime | None
    contract: Contract = field(repr=False)

    @property
    def readable_until(self) -> dt.datetime | None:
        """End of the deprecation window its own contract declares; None while it is current."""
        return self.replaced_at and self.replaced_at + dt.timedelta(days=self.contract.deprecation_days)


class Action(enum.StrEnum):
    """What becomes of one declared contract."""

    REGISTER = "register"  # the first version of a dataset at a layer
    UPDATE = "update"  # a new version, compatible
    BREAK = "break"  # a new version that breaks the mode
    KEEP = "keep"  # registered and current
    SUPERSEDED = "superseded"  # registered, but the registry has a newer one
    REFUSE = "refuse"  # a registered number with another document, or a number that goes back


@dataclass(frozen=True)
class Step:
    """One declared contract and what is to become of it.

    Attributes:
        version: the declared one; `current`: the registered current one, None for a first.
        comparison: with the current version; None where there is nothing to compare.
        verdict: in the current version's mode, over all versions when that is transitive.
        broken: the subscribers it would break.
        problem: why it is refused.
        suggested: the version number it should have instead, where it is refused.
    """

    action: Action
    contract: Contract = field(repr=False)
    current: str | None = None
    comparison: Comparison | None = field(default=None, repr=False)
    verdict: Verdict | None = field(default=None, repr=False)
    broken: tuple[BrokenSubscriber, ...] = ()
    problem: str = ""
    suggested: str | None = None

    @property
    def dataset(self) -> str:
        return self.contract.dataset

    @property
    def layer(self) -> Layer:
        return self.contract.layer

    @property
    def version(self) -> str:
        return self.contract.version

    @property
    def file(self) -> str:
        """The declared file."""
        return f"contracts/datasets/{self.dataset.replace('.', '/')}/{self.layer}.yaml"

    @property
    def changes(self) -> tuple[Change, ...]:
        return self.comparison.changes if self.comparison else ()


@dataclass(frozen=True)
class Plan:
    """What a synchronisation would do, in order of dataset and layer."""

    steps: tuple[Step, ...]

    def of(self, *actions: Action) -> tuple[Step, ...]:
        """The steps with one of these actions."""
        return tuple(step for step in self.steps if step.action in actions)

    @property
    def pending(self) -> tuple[Step, ...]:
        """What would be registered."""
        return self.of(Action.REGISTER, Action.UPDATE, Action.BREAK)


# --- reading ----------------------------------------------------------------------------------------------


def current(connection: Any, dataset: str, layer: str) -> RegisteredVersion | None:
    """The current version, or None when nothing is registered."""
    return next((version for version in history(connection, dataset, layer) if version.is_current), None)


def version(connection: Any, dataset: str, layer: str, number: str) -> RegisteredVersion:
    """One version. Raises BareCountError declaration.unknown when it is not registered."""
    versions = {found.version: found for found in history(connection, dataset, layer)}
    if number not in versions:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"{dataset} {layer} has no version {number}; registered are {listed(versions)}",
            hint="see `barecount contracts history`; a declared version is registered by `barecount contracts sync`",
        )
    return versions[number]


def history(connection: Any, dataset: str, layer: str) -> list[RegisteredVersion]:
    """All registered versions of a dataset at a layer, oldest first; empty when nothing is registered.

    Raises BareCountError evidence.broken for a document that is not the one that was registered.
    """
    rows = fetch(connection, _HISTORY, (dataset, layer))
    return [
        RegisteredVersion(dataset, layer, *row[:8], is_current=row[8], replaced_at=row[9],  # type: ignore[arg-type]
                          contract=_read(row[10], dataset, layer, row[0], row[1]))
        for row in sorted(rows, key=lambda row: version_key(row[0]))
    ]


def overlay(connection: Any, declarations: Declarations) -> Declarations:
    """The declarations, with registered versions in place of the older ones of their files.

    One query when nothing is newer than the files.
    """
    newer = [
        (dataset, layer) for (dataset, layer), (number, _) in _current_numbers(connection).items()
        if (declared := declarations.contracts.get((dataset, layer)))
        and version_key(number) > version_key(declared.version)
    ]
    if not newer:
        return declarations
    contracts = dict(declarations.contracts)
    for dataset, layer in newer:
        number, digest, document = fetch(connection, _CURRENT_DOCUMENT, (dataset, layer))[0]
        contracts[dataset, layer] = _read(document, dataset, layer, number, digest)
    return replace(declarations, contracts=MappingProxyType(contracts))


def _current_numbers(connection: Any) -> dict[tuple[str, Layer], tuple[str, str]]:
    """(version, document hash) of every current version, by dataset and layer."""
    return {(row[0], row[1]): (row[2], row[3]) for row in fetch(connection, _CURRENT)}


def _read(document: Any, dataset: str, layer: Layer, number: str, digest: str) -> Contract:
    contract, findings = read_contract(YamlSource(f"registry/{dataset}/{layer}/{number}", document, {}), dataset, layer)
    if contract is None or contract.hash != digest:
        problem = str(findings[0]) if findings else f"its hash is {contract.hash if contract else ''}, not {digest}"
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN,
            f"version {number} of {dataset} {layer} in the registry is not the document that was registered: {problem}",
            hint="the row in platform.contract_version was changed outside the platform; restore it from a backup",
        )
    return contract


# --- planning ---------------------------------------------------------------------------------------------


def plan(connection: Any, declarations: Declarations, datasets: Iterable[str] | None = None) -> Plan:
    """What `sync` would do with the declared contracts, or with those of some datasets."""
    numbers = _current_numbers(connection)
    wanted = None if datasets is None else set(datasets)
    return Plan(tuple(
        _step(connection, declarations, contract, numbers.get(key))
        for key, contract in declarations.contracts.items() if wanted is None or key[0] in wanted
    ))


def candidate_step(
    connection: Any, declarations: Declarations, contract: Contract, mode: Mode | None = None
) -> Step:
    """What would become of a contract that is not (yet) declared; `mode`: instead of the current version's."""
    known = _current_numbers(connection).get((contract.dataset, contract.layer))
    return _step(connection, declarations, contract, known, mode)


def _step(
    connection: Any, declarations: Declarations, contract: Contract, known: tuple[str, str] | None,
    mode: Mode | None = None,
) -> Step:
    if known is None:
        return Step(Action.REGISTER, contract)
    number, digest = known
    if digest == contract.hash:
        return Step(Action.KEEP, contract, number)
    versions = [found.contract for found in history(connection, contract.dataset, contract.layer)]
    latest = versions[-1]
    comparison = compare(latest, contract)
    suggested = next_version(number, comparison, latest.mode)
    registered = {known.version: known.hash for known in versions}
    if registered.get(contract.version) == contract.hash:
        return Step(Action.SUPERSEDED, contract, number, comparison)
    if contract.version in registered:
        problem = f"version {contract.version} is registered with another document, and versions never change"
        return Step(Action.REFUSE, contract, number, comparison, problem=problem, suggested=suggested)
    if version_key(contract.version) < version_key(number):
        problem = f"version {contract.version} is older than the current one, {number}, and versions only grow"
        return Step(Action.REFUSE, contract, number, comparison, problem=problem, suggested=suggested)
    verdict = judge(contract, versions, mode or latest.mode)
    broken = broken_by(connection, declarations, contract, versions)
    action = Action.UPDATE if verdict.compatible and not broken else Action.BREAK
    return Step(action, contract, number, comparison, verdict, broken)


# --- writing ----------------------------------------------------------------------------------------------


def sync(
    connection: psycopg.Connection, declarations: Declarations, *, who: str, reason: str, now: dt.datetime,
    dry_run: bool = False,
) -> Plan:
    """Register what changed in `contracts/`, in one transaction, and return what was (or would be) done.

    Args:
        connection: an autocommit one: refusals and decisions of policies stay on record.
        declarations: as `declarations.load` reads them, without `overlay`.
        reason: why; without one, nothing that breaks is registered.

    Raises:
        BareCountError: contract.immutable; contract.breaking when there is no reason; policy.denied,
            approval.required. Then nothing is registered.
    """
    if dry_run:
        return plan(connection, declarations)
    with _exclusively(connection):
        found = plan(connection, declarations)
        _require_immutable(found)
        if not reason.strip():
            _require_compatible(connection, declarations, found)
        require_allowed(connection, declarations, found.pending, who, now)
        with connection.transaction():
            _write(connection, declarations, found.pending, who, "sync", reason or "declared in contracts/", now)
    return found


def admit(
    connection: psycopg.Connection, declarations: Declarations, pipeline: str, tenant_id: str, now: dt.datetime
) -> Plan:
    """Make sure, at the beginning of a run, that its contracts are registered and in the tenant's evidence.

    Registers what is new or compatible, on an autocommit connection. One query when there is nothing to do.

    Raises:
        BareCountError: contract.immutable, contract.breaking, policy.denied, approval.required.
    """
    datasets = datasets_of(declarations, pipeline)
    if not _pending(connection, declarations, datasets, tenant_id):
        return Plan(())
    who, reason = f"pipeline {pipeline}", "declared in contracts/, new or compatible"
    with _exclusively(connection):
        found = plan(connection, declarations, datasets)
        _require_immutable(found)
        _require_compatible(connection, declarations, found)
        require_allowed(connection, declarations, found.pending, who, now, once=True)
        with connection.transaction():
            _write(connection, declarations, found.pending, who, "run", reason, now)
            _inform(connection, declarations, tenant_id, datasets)
    return found


def register(
    connection: psycopg.Connection, declarations: Declarations, dataset: str, layer: Layer,
    document: Mapping[str, Any], *, who: str, reason: str, cause: str, now: dt.datetime,
) -> RegisteredVersion:
    """Make a document the current version, in the caller's transaction. Somebody decided: nothing is too breaking.

    The same document again changes nothing. Call it before appending evidence of your own in the transaction, and ask
    the policies first (`questions`): a decision that is rolled back with the transaction would not be on record.

    Raises:
        BareCountError: declaration.invalid for a document that is no contract of the dataset and layer;
            contract.immutable for a registered number with another document, or one that does not grow.
    """
    contract, findings = read_contract(YamlSource(f"{dataset}/{layer}", document, {}), dataset, layer)
    if contract is None:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            "\n".join([f"not a contract of {dataset} at layer {layer}", *map(str, findings)]),
            hint="correct the document", details={"findings": [vars(finding) for finding in findings]},
        )
    with connection.transaction():
        lock_registry(connection)
        step = candidate_step(connection, declarations, contract)
        _require_immutable(Plan((step,)))
        _write(connection, declarations, Plan((step,)).pending, who, cause, reason, now)
    return version(connection, dataset, layer, contract.version)


def questions(
    declarations: Declarations, steps: Sequence[Step], *, who: str, origin: str, once: bool = False
) -> list[Question]:
    """What the policies are asked before versions become current, for each tenant that uses them.

    `origin`: `declared` or `drift`. With `once` the same version under the same policies is the same question, so that
    a run that is killed and done again finds its answer on record.
    """
    found = [
        Question(
            ContractChange(
                tenant=tenant_id, pipeline=pipeline, datasets=(step.dataset,), dataset=step.dataset, layer=step.layer,
                from_version=step.current or "", to_version=step.version, breaking=step.action is Action.BREAK,
                broken_subscribers=tuple(sorted({s.consumer for s in step.broken if s.tenant_id == tenant_id})),
                classification=highest_classification([step.contract]), origin=origin,
            ),
            subject=f"{step.dataset} {step.layer} {step.version}", requested_by=who,
        )
        for step in steps for pipeline, tenant_id in users_of(declarations, step.dataset)
    ]
    if not once:
        return found
    policies = PolicySet.of(declarations.policies).fingerprint(ContractChange.point)
    hashes = {(step.dataset, step.layer): step.contract.hash for step in steps}
    return [
        replace(question, occurrence=canonical_hash(
            [hashes[question.facts.dataset, question.facts.layer], question.facts.values(), policies]))
        for question in found
    ]


@contextmanager
def _exclusively(connection: psycopg.Connection) -> Iterator[None]:
    """The lock of the registry, held over several transactions; a connection that dies sets it free."""
    fetch(connection, "select pg_advisory_lock($1::bigint)", (REGISTRY_LOCK,))
    try:
        yield
    finally:
        if not connection.closed:
            fetch(connection, "select pg_advisory_unlock($1::bigint)", (REGISTRY_LOCK,))


def require_allowed(
    connection: psycopg.Connection, declarations: Declarations, steps: Sequence[Step], who: str, now: dt.datetime, *,
    origin: str = "declared", once: bool = False,
) -> None:
    """Pass when the policies of all tenants concerned let the versions become current; on an autocommit connection.

    Raises:
        BareCountError: policy.denied, approval.required. The decisions stay on record.
    """
    asked = questions(declarations, steps, who=who, origin=origin, once=once)
    if asked:
        with connection.transaction():
            _register_tenants(connection, declarations, {question.facts.tenant for question in asked})
            decisions = decide_all(connection, declarations.policies, asked, now)
        require(*decisions)


def _pending(connection: Any, declarations: Declarations, datasets: Sequence[str], tenant_id: str) -> bool:
    """Whether a declared contract of these datasets is not current, or not in the tenant's evidence."""
    on_record = {(row[0], row[1]): row[2] for row in fetch(connection, _ON_RECORD, (tenant_id, list(datasets)))}
    declared = {key: contract for key, contract in declarations.contracts.items() if key[0] in set(datasets)}
    return any(on_record.get(key) != contract.hash for key, contract in declared.items())


def _require_immutable(found: Plan) -> None:
    refused = found.of(Action.REFUSE)
    if refused:
        raise BareCountError(
            ErrorCode.CONTRACT_IMMUTABLE,
            " | ".join(f"{step.file}: {step.problem}" for step in refused),
            hint="give the changed contract a version of its own: "
            + ", ".join(f"{step.suggested} in {step.file}" for step in refused),
            details={"contracts": [step_facts(step) for step in refused]},
        )


def _require_compatible(connection: psycopg.Connection, declarations: Declarations, found: Plan) -> None:
    breaking = found.of(Action.BREAK)
    if breaking:
        with connection.transaction():
            _tell(connection, declarations, [
                _Notice("contract.refused", tenant_id, step.contract, _breaking_facts(step, tenant_id))
                for step in breaking for tenant_id in tenants_of(declarations, step.dataset)
            ])
        raise BareCountError(
            ErrorCode.CONTRACT_BREAKING,
            " | ".join(_broken_text(step) for step in breaking),
            hint="see whom it breaks with `barecount contracts sync --dry-run`, then decide with "
            "`barecount contracts sync --reason WHY`, or declare a compatible change",
            details={"contracts": [step_facts(step) for step in breaking]},
        )


def _broken_text(step: Step) -> str:
    changes = [change.message for _, change in step.verdict.breaking] if step.verdict else []
    named = listed(dict.fromkeys(subscriber.consumer for subscriber in step.broken))
    mode = step.verdict.mode if step.verdict else ""
    what = "; ".join(dict.fromkeys(changes)) or "; ".join(c.message for s in step.broken for c in s.changes)
    return (f"{step.dataset} {step.layer} {step.version} breaks {step.current} (mode {mode}): {what}. "
            f"Subscribers it breaks: {named}")


def step_facts(step: Step) -> dict[str, Any]:
    """A step for machines, JSON-serialisable."""
    return {
        "dataset": step.dataset, "layer": step.layer, "version": step.version, "current": step.current,
        "action": step.action.value, "problem": step.problem, "suggested": step.suggested,
        "changes": [{**vars(change), "breaks": change.breaks} for change in step.changes],
        "breaking": [change.message for _, change in step.verdict.breaking] if step.verdict else [],
        "subscribers": [subscriber.facts() for subscriber in step.broken],
    }


def _write(
    connection: Any, declarations: Declarations, steps: Sequence[Step], who: str, cause: str, reason: str,
    now: dt.datetime,
) -> None:
    """Put versions on record, make them current, and tell every tenant concerned."""
    notices: list[_Notice] = []
    for step in steps:
        contract = step.contract
        fetch(connection, _UPSERT_DATASET, (contract.dataset, contract.owner, contract.steward or "", now))
        level = None if step.comparison is None else step.comparison.level.value
        fetch(connection, _INSERT_VERSION, (
            contract.dataset, contract.layer, contract.version, as_json(contract.document), contract.hash,
            step.current, level, now, who, cause, reason))
        fetch(connection, _MAKE_CURRENT, (contract.dataset, contract.layer, contract.version, now))
        fetch(connection, _SET_STATUS, (contract.dataset,))
        facts = {
            "dataset": contract.dataset, "layer": contract.layer, "version": contract.version,
            "document_sha256": contract.hash, "previous": step.current, "compatibility": level, "who": who,
            "cause": cause, "reason": reason,
        }
        for tenant_id in tenants_of(declarations, contract.dataset):
            notices.append(_Notice("contract.registered", tenant_id, contract, facts))
            if step.action is Action.BREAK:
                broken = {**facts, **_breaking_facts(step, tenant_id)}
                notices.append(_Notice("contract.broken", tenant_id, contract, broken))
    _tell(connection, declarations, notices)


@dataclass(frozen=True)
class _Notice:
    """What one tenant is told about one version: an entry of its ledger and an event."""

    kind: str
    tenant_id: str
    contract: Contract
    facts: Mapping[str, Any]

    @property
    def entry(self) -> ledger.Entry:
        subject = f"{self.contract.dataset}/{self.contract.layer}"
        return ledger.Entry(self.tenant_id, self.kind, subject, self.contract.hash, self.facts)


def _breaking_facts(step: Step, tenant_id: str) -> dict[str, Any]:
    """What one tenant may know of a breaking change: another tenant's consumers are none of its business."""
    return {
        "version": step.version, "previous": step.current,
        "changes": [change.message for change in step.changes if change.breaks],
        "subscribers": [subscriber.facts() for subscriber in step.broken if subscriber.tenant_id == tenant_id],
    }


def _tell(connection: Any, declarations: Declarations, notices: Sequence[_Notice]) -> None:
    """Evidence and events of every notice that is not on record; heads of evidence are locked in order of tenant."""
    _register_tenants(connection, declarations, {notice.tenant_id for notice in notices})
    entries = [notice.entry for notice in notices]
    told = {tuple(row) for row in fetch(connection, _TOLD, tuple(
        [getattr(entry, name) for entry in entries] for name in ("tenant_id", "subject", "run_token")))}
    news = [notice for notice in notices if (notice.tenant_id, notice.kind, notice.contract.hash) not in told]
    entries = [notice.entry for notice in news]
    numbers = ledger.append_many(connection, entries)
    for notice, number in zip(news, numbers, strict=True):
        if notice.kind == "contract.registered":
            fetch(connection, _INSERT_EVIDENCE, (notice.tenant_id, notice.contract.dataset, notice.contract.layer,
                                                 notice.contract.version, number))
    events.append(connection, *(
        events.Event(entry.tenant_id, entry.kind, entry.subject, entry.run_token, entry.payload, evidence_seq=number)
        for entry, number in zip(entries, numbers, strict=True)
    ))


def _register_tenants(connection: Any, declarations: Declarations, tenants: Iterable[str]) -> None:
    for tenant_id in sorted(tenants):
        tenant = declarations.tenant(tenant_id)
        fetch(connection, "select platform.register_tenant($1, $2, $3)", (tenant_id, tenant.metadata.name, tenant.hash))


def _inform(connection: Any, declarations: Declarations, tenant_id: str, datasets: Sequence[str]) -> None:
    """Current versions that were registered before the tenant came: into its evidence."""
    notices = []
    for row in fetch_dicts(connection, _NOT_IN_EVIDENCE, (tenant_id, list(datasets))):
        contract = _read(row["document"], row["dataset"], row["layer"], row["version"], row["document_sha256"])
        facts = {key: value for key, value in row.items() if key != "document"}
        notices.append(_Notice("contract.registered", tenant_id, contract, facts))
    _tell(connection, declarations, notices)


_CURRENT = """
select dataset, layer, version, v.document_hash
from platform.contract_current join platform.contract_version v using (dataset, layer, version)
"""
_CURRENT_DOCUMENT = """
select version, v.document_hash, v.document
from platform.contract_current join platform.contract_version v using (dataset, layer, version)
where dataset = $1 and layer = $2
"""
_ON_RECORD = """
select dataset, layer, v.document_hash
from platform.contract_current
join platform.contract_version v using (dataset, layer, version)
join platform.contract_evidence e using (dataset, layer, version)
where e.tenant_id = $1 and dataset = any($2)
"""
_NOT_IN_EVIDENCE = """
select dataset, layer, version, v.document, v.document_hash as document_sha256, v.previous, v.compatibility,
    v.registered_by as who, v.cause, v.reason
from platform.contract_current
join platform.contract_version v using (dataset, layer, version)
where dataset = any($2) and not exists (
    select from platform.contract_evidence e
    where e.tenant_id = $1 and e.dataset = v.dataset and e.layer = v.layer and e.version = v.version)
order by dataset, layer
"""
_HISTORY = """
select v.version, v.document_hash, v.previous, v.compatibility, v.registered_at, v.registered_by, v.cause, v.reason,
    c.version = v.version, successor.registered_at, v.document
from platform.contract_version v
join platform.contract_current c using (dataset, layer)
left join platform.contract_version successor
    on successor.dataset = v.dataset and successor.layer = v.layer and successor.previous = v.version
where v.dataset = $1 and v.layer = $2
"""
LISTING = """
select c.dataset, c.layer, c.version, d.status, d.owner, d.steward, c.since,
    (select count(*) from platform.contract_version v where v.dataset = c.dataset and v.layer = c.layer) as versions
from platform.contract_current c join platform.dataset d using (dataset)
"""
"""Current versions with their datasets: the rows `barecount contracts list` shows."""
PUBLISHED_UNDER = """
select p.tenant_id, p.contract_version, min(p.version) as first, max(p.version) as last
from platform.publication p
where p.pipeline || '.' || p.name = $1
group by p.tenant_id, p.contract_version
order by p.tenant_id, 3
"""
"""Publications of an activation dataset `$1`, by the contract version they were made under."""
_UPSERT_DATASET = """
insert into platform.dataset as d (dataset, owner, steward, status, registered_at, updated_at)
values ($1, $2, nullif($3, ''), 'active', $4, $4)
on conflict (dataset) do update
set owner = excluded.owner, steward = excluded.steward, updated_at = excluded.updated_at
"""
# A dataset is retired when the current contracts of all its layers are, and deprecated when all are that or retired.
_SET_STATUS = """
update platform.dataset d set status = found.status
from (
    select case
        when bool_and(v.document ->> 'status' = 'retired') then 'retired'
        when bool_and(v.document ->> 'status' in ('retired', 'deprecated')) then 'deprecated'
        else 'active' end as status
    from platform.contract_current join platform.contract_version v using (dataset, layer, version)
    where dataset = $1
) found
where d.dataset = $1 and d.status <> found.status
"""
_INSERT_VERSION = """
insert into platform.contract_version
    (dataset, layer, version, document, document_hash, previous, compatibility, registered_at, registered_by, cause,
     reason)
values ($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9, $10, $11)
"""
_MAKE_CURRENT = """
insert into platform.contract_current (dataset, layer, version, since) values ($1, $2, $3, $4)
on conflict (dataset, layer) do update set version = excluded.version, since = excluded.since
"""
_TOLD = """
select tenant_id, kind, run_token from platform.evidence
where tenant_id = any($1) and kind in ('contract.registered', 'contract.broken', 'contract.refused')
    and subject = any($2) and run_token = any($3)
"""
_INSERT_EVIDENCE = """
insert into platform.contract_evidence (tenant_id, dataset, layer, version, evidence_seq)
values ($1, $2, $3, $4, $5::bigint)
"""
