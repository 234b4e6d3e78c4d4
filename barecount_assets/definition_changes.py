"""Definitions that changed under their version: refused, or shown to compute the same.

A number does not change its meaning without a version. What may keep its version is compared before anything is
computed: the run that was published last is computed again in the schema `scratch`, from the same raw batches, with the
definitions of now, and must come out as its evidence says. That happens without being asked for where the change only
follows another: a GDP that a KPI reads has a new contract version, or new software compiles an untouched model
otherwise. For anything else somebody gives a reason (`barecount run --accept-definition --reason WHY`) and the policies
are asked.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace

from barecount_assets import admission, project_definitions
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import definition_register, definitions
from resources.governance.definition_register import Binding
from resources.governance.definitions import ChangedDefinition, Definition
from resources.runners.facade import Progress
from resources.runners.stage import run_token
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import stage_code_version
from resources.trust import ledger


@dataclass(frozen=True)
class Acceptance:
    """Somebody says that changed definitions compute what those before computed, and why."""

    reason: str
    by: str


def admit(
    environment: StageEnvironment, pipeline: str, tenant_id: str, progress: Progress,
    acceptance: Acceptance | None = None,
) -> list[Definition]:
    """The definitions of a pipeline, each one that its version stands for.

    Raises:
        BareCountError: definition.changed for one that is another, and is not accepted or computes other values;
            policy.denied, approval.required; transform.failed when dbt cannot read the project.
    """
    declared = project_definitions.of_pipeline(environment.settings, environment.declarations, pipeline)
    with environment.database.connect(autocommit=True) as connection:
        bound = definition_register.bound_for(definition_register.bound(connection, pipeline), tenant_id)
    changes = definitions.changed(environment.declarations, declared, bound, stage_code_version())
    edited = [change for change in changes if change.cause is None]
    if edited and acceptance is None:
        raise _refused(edited, pipeline)
    if changes:
        decision_id = _decision(environment, pipeline, tenant_id, edited, acceptance) if acceptance and edited else None
        _require_equal(environment, pipeline, tenant_id, changes, progress)
        _bind(environment, pipeline, tenant_id, changes, acceptance, decision_id)
    return declared


def keep_bound(environment: StageEnvironment) -> None:
    """Write what versions stand for into the data folder, where `barecount check` looks without a database."""
    with environment.database.connect(autocommit=True) as connection:
        bound = definition_register.bound(connection)
    definitions.replace_file(project_definitions.bound_place(environment.settings), [vars(item) for item in bound])


def _decision(
    environment: StageEnvironment, pipeline: str, tenant_id: str, edited: Sequence[ChangedDefinition],
    acceptance: Acceptance,
) -> int:
    named = tuple(f"{c.definition.kind}.{c.definition.name} {c.definition.version}" for c in edited)
    digests = sorted(c.definition.sha256 for c in edited)
    (decision, *_) = admission.admit_definitions(
        environment, pipeline, tenant_id, named, digests, acceptance.reason, requested_by=acceptance.by,
        now=dt.datetime.now(dt.UTC))
    return decision.decision_id


def _require_equal(
    environment: StageEnvironment, pipeline: str, tenant_id: str, changes: Sequence[ChangedDefinition],
    progress: Progress,
) -> None:
    from barecount_assets import recompute

    progress("compare changed definitions", 0, 1)
    names = {change.definition.name for change in changes}
    differing = [output for output in recompute.last_run_as_of_now(environment, pipeline, tenant_id, progress)
                 if output.name in names and not output.identical]
    if not differing:
        return
    first = differing[0]
    how = ("" if not first.named else
           f", the first is {first.named[0].key} ({first.named[0].change}"
           + "".join(f"; {column} {before} -> {after}" for column, (before, after) in first.named[0].columns.items())
           + ")")
    count = "other rows" if first.differences is None else f"{first.differences} other values"
    change = next(c for c in changes if c.definition.name == first.name)
    named = {f"{c.definition.kind}.{c.definition.name}": {
        "version": c.definition.version, "sha256": c.definition.sha256} for c in changes}
    with environment.database.transaction() as connection:
        ledger.append(connection, ledger.Entry(
            tenant_id, "definition.refused", pipeline, run_token(refused=named),
            {"definitions": named, "differing": {o.name: o.differences for o in differing}}))
    raise BareCountError(
        ErrorCode.DEFINITION_CHANGED,
        f"{change.message}, and of the same raw data it computes {count}{how}",
        hint=change.remedy, details={"differing": {o.name: o.differences for o in differing}})


def _bind(
    environment: StageEnvironment, pipeline: str, tenant_id: str, changes: Sequence[ChangedDefinition],
    acceptance: Acceptance | None, decision_id: int | None,
) -> None:
    token = run_token(definitions=sorted(c.definition.sha256 for c in changes), tenant=tenant_id)
    with environment.database.transaction() as connection:
        definition_register.store(connection, [c.definition for c in changes])
        for cause in ("accepted", "followed", "upgraded"):
            own = [c.definition for c in changes if (c.cause or "accepted") == cause]
            binding = Binding(tenant_id, pipeline, cause, token)
            if cause == "accepted" and acceptance is not None:
                binding = replace(
                    binding, reason=acceptance.reason, decided_by=acceptance.by, decision_id=decision_id)
            definition_register.bind(connection, binding, [definition.bound for definition in own])


def _refused(edited: Sequence[ChangedDefinition], pipeline: str) -> BareCountError:
    return BareCountError(
        ErrorCode.DEFINITION_CHANGED, "; ".join(change.message for change in edited),
        hint=f"{'; '.join(change.remedy for change in edited)}. Or, when all values stay the same: barecount run "
        f"{pipeline} --accept-definition --reason WHY",
        details={"definitions": [
            {"kind": c.definition.kind, "name": c.definition.name, "version": c.definition.version,
             "published": c.before.sha256, "declared": c.definition.sha256} for c in edited]})
