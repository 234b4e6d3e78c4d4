"""Asking the policies before a run, a publication and an export of evidence; see also `permission`.

Facts are gathered here, from what is declared and what the database has counted; deciding and recording is
`resources/governance/policies.py`. Decisions are committed before a refusal is raised, so that it is on record.

A run is asked about once: it is known by pipeline, range of days, placement and the publication it follows. A run that
was interrupted and is done again is the same run; a stage that is tried again is no new one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import psycopg

from barecount_assets.stages.environment import StageEnvironment
from resources.governance import decision_points as points
from resources.governance.approvals import RecordsRequested, ReplayRequested, RunRequested
from resources.governance.contracts import CLASSIFICATIONS, Contract
from resources.governance.declarations import Declarations
from resources.governance.manifests import Pipeline
from resources.governance.policies import Decision, Question, current_user, decide_all, require
from resources.governance.policy_evaluation import PolicySet
from resources.host.tenants import Tenant
from resources.runtime import logs
from resources.runtime.database import fetch
from resources.runtime.declared import canonical_hash
from resources.storage import quarantine_store

if TYPE_CHECKING:
    from barecount_assets.lifecycle import RunRequest
    from barecount_assets.stages.ingestion.replay import ReplayRequest
    from resources.storage.quarantine_store import Group, Selection

_NUMBERS_SHOWN = 5


def admit_run(
    environment: StageEnvironment, run: RunRequested, *, trigger: str, requested_by: str = "",
    part_of_backfill: bool = False, now: dt.datetime | None = None,
) -> list[Decision]:
    """Ask whether a run may start: tenant life, manifest registration, run start, and back-fill where it is one.

    Args:
        trigger: `command` or `dagster`.
        requested_by: who asks; the operating system's user by default.
        part_of_backfill: Dagster calls it a back-fill; here it is one when days of it have been published before.

    Raises:
        BareCountError: policy.denied, approval.required.
    """
    at, who = now or dt.datetime.now(dt.UTC), requested_by or current_user()
    policies = PolicySet.of(environment.declarations.policies)
    with environment.database.transaction() as connection:
        environment.register_tenant(connection, run.tenant_id)
        questions = [
            _tenant_life(connection, environment.declarations, policies, run.tenant_id, who),
            _manifest(environment.declarations, policies, run, who),
            _run_start(connection, environment.declarations, policies, run, trigger, who, at),
        ]
        if run.backfill or part_of_backfill:
            question, published_days = _backfill(connection, environment.declarations, policies, run, who)
            questions += [question] if run.backfill or published_days else []
        decisions = decide_all(connection, policies, questions, at)
    return _required(decisions)


def admit_export(
    environment: StageEnvironment, facts: points.Export, subject: str, *, requested_by: str, now: dt.datetime
) -> list[Decision]:
    """Ask whether a file may leave the platform.

    Raises:
        BareCountError: policy.denied, approval.required.
    """
    return _admit(environment, Question(facts, subject, requested_by), now)


def admit_backfill(
    environment: StageEnvironment, run: RunRequest, granularity: str, *, requested_by: str, now: dt.datetime
) -> None:
    """Ask about a range, as one, before its partitions run. Once it is approved, the same command goes on.

    Raises:
        BareCountError: policy.denied, approval.required.
    """
    sources = environment.declarations.pipeline(run.pipeline).spec.sources
    with environment.database.connect(autocommit=True) as connection:
        facts = _backfill_facts(connection, run, tuple(sorted(source.dataset for source in sources)))
    work = RunRequested(run.pipeline, run.tenant_id, run.start, run.end, dict(run.source_paths), True, granularity)
    _admit(environment, Question(facts, _subject(run), requested_by, run_request=work), now)


def admit_replay(environment: StageEnvironment, work: ReplayRequested, *, requested_by: str, now: dt.datetime) -> None:
    """Ask about computing a past run again. Raises as `admit_backfill`."""
    facts = points.Replay(tenant=work.tenant_id, pipeline=work.pipeline, kind="run", publishes=work.publishes)
    _admit(environment, Question(facts, f"run {work.replay_of[:16]}", requested_by, run_request=work), now)


def admit_replay_of_records(
    environment: StageEnvironment, groups: Sequence[Group], request: ReplayRequest, *, now: dt.datetime
) -> None:
    """Ask about sending refused records through ingestion again, once per tenant and pipeline. Raises the same."""
    from barecount_assets.stages.ingestion import edited_records

    selection, edits = request.selection, request.edits
    changes = [*(f"{name}={value}" for name, value in sorted(request.values.items())),
               *([f"as edited in {edits.name} ({edited_records.sha256_of(edits)[:16]})"] if edits else [])]
    for (tenant_id, pipeline), (records, datasets) in _owners(groups).items():
        facts = points.Replay(
            tenant=tenant_id, pipeline=pipeline, datasets=datasets, kind="quarantine", records=records)
        work = RecordsRequested(
            pipeline, tenant_id, selection.narrowed, tuple(selection.ids or ()), dict(request.values),
            str(edits.absolute()) if edits else None, request.reason)
        subject = _records_subject(f"refused records of {pipeline}", selection, changes)
        _admit(environment, Question(facts, subject, request.decided_by, run_request=work), now)


def admit_export_of_records(
    environment: StageEnvironment, selection: Selection, groups: Sequence[Group], *, requested_by: str,
    now: dt.datetime
) -> dict[tuple[str, str], Decision]:
    """Ask about refused records leaving as a file: the decision by tenant and pipeline. Raises the same.

    Records of a dataset that has no contract any more count as restricted: nothing says that they may be seen.
    """
    decisions = {}
    for (tenant_id, pipeline), (records, datasets) in _owners(groups).items():
        contracts = [contract for (dataset, layer), contract in environment.declarations.contracts.items()
                     if layer == "raw" and dataset in datasets]
        facts = points.Export(
            tenant=tenant_id, pipeline=pipeline, datasets=datasets, kind="quarantine", records=records,
            classification=points.highest_classification(contracts)
            if {contract.dataset for contract in contracts} == set(datasets) else CLASSIFICATIONS[-1],
        )
        (decisions[tenant_id, pipeline],) = admit_export(
            environment, facts, _records_subject(f"refused records of {', '.join(datasets)}", selection),
            requested_by=requested_by, now=now)
    return decisions


def admit_definitions(
    environment: StageEnvironment, pipeline: str, tenant_id: str, definitions: tuple[str, ...],
    digests: Sequence[str], reason: str, *, requested_by: str, now: dt.datetime,
) -> list[Decision]:
    """Ask whether changed definitions may keep their versions, provided that they compute the same. Raises the same."""
    datasets = _datasets(environment.declarations.contracts_of(pipeline))
    facts = points.DefinitionChange(
        tenant=tenant_id, pipeline=pipeline, datasets=datasets, definitions=definitions, reason=reason)
    policies = PolicySet.of(environment.declarations.policies)
    occurrence = canonical_hash([list(digests), policies.fingerprint(facts.point)])
    return _admit(environment, Question(facts, ", ".join(definitions), requested_by, occurrence), now)


def admit_publication(
    environment: StageEnvironment, connection: psycopg.Connection, manifest: Pipeline, tenant_id: str, token: str,
    gates: int,
) -> list[Decision]:
    """Ask whether the KPIs of a pipeline may become current, on a connection in autocommit.

    The run that resumes it after an approval is that of the newest day that was ingested.

    Raises:
        BareCountError: policy.denied, approval.required.
    """
    declarations = environment.declarations
    policies = PolicySet.of(declarations.policies)
    contracts = [declarations.contract(f"{manifest.name}.{name}", "activation") for name in manifest.spec.kpis]
    facts = points.PublicationDecision(
        tenant=tenant_id, pipeline=manifest.name, datasets=tuple(sorted(c.dataset for c in contracts)),
        kpis=manifest.spec.kpis, consumers=manifest.spec.publication.consumers,
        classification=points.highest_classification(contracts), gates=gates,
    )
    newest = fetch(connection, _NEWEST_DAY, (tenant_id, manifest.name))[0][0]
    run = RunRequested(manifest.name, tenant_id, newest, newest) if newest else None
    occurrence = canonical_hash([token, facts.values(), policies.fingerprint(facts.point)])
    question = Question(facts, manifest.name, current_user(), occurrence, run)
    with connection.transaction():
        decisions = decide_all(connection, policies, [question], dt.datetime.now(dt.UTC))
    return _required(decisions)


def _admit(environment: StageEnvironment, question: Question, now: dt.datetime) -> list[Decision]:
    policies = PolicySet.of(environment.declarations.policies)
    tenant_id = question.facts.tenant
    with environment.database.transaction() as connection:
        if tenant_id in environment.declarations.tenants:  # another one has left; what it left is still asked about
            environment.register_tenant(connection, tenant_id)
        decisions = decide_all(connection, policies, [question], now)
    return _required(decisions)


def _required(decisions: Sequence[Decision]) -> list[Decision]:
    for decision in decisions:
        for warning in decision.warnings:
            logs.get_logger("policies").warning("%s: %s", decision.question.subject, warning)
    require(*decisions)
    return list(decisions)


# --- what each point is told -----------------------------------------------------------------------------


def _tenant_life(
    connection: psycopg.Connection, declarations: Declarations, policies: PolicySet, tenant_id: str, who: str
) -> Question:
    tenant = declarations.tenant(tenant_id)
    occurrence = canonical_hash([tenant.hash, policies.fingerprint(points.TenantLife.point)])
    previous = fetch(connection, _LAST_STATUS, (tenant_id, occurrence))
    facts = points.TenantLife(
        tenant=tenant_id, status=tenant.spec.status, previous_status=previous[0][0] if previous else "",
        region=tenant.spec.region,
    )
    return Question(facts, tenant_id, who, occurrence)


def _manifest(declarations: Declarations, policies: PolicySet, run: RunRequested, who: str) -> Question:
    facts = declarations.manifest_facts(run.pipeline, run.tenant_id)
    kpis = [declarations.kpi(name).hash for name in facts.kpis]
    contracts = [contract.hash for contract in declarations.contracts_of(run.pipeline)]
    occurrence = canonical_hash([
        declarations.pipeline(run.pipeline).hash, kpis, contracts, facts.values(), policies.fingerprint(facts.point)])
    return Question(facts, run.pipeline, who, occurrence, run)


def _run_start(
    connection: psycopg.Connection, declarations: Declarations, policies: PolicySet, run: RunRequested, trigger: str,
    who: str, now: dt.datetime,
) -> Question:
    manifest, tenant = declarations.effective(run.pipeline, run.tenant_id), declarations.tenant(run.tenant_id)
    runner, contracts = manifest.spec.runner, declarations.contracts_of(run.pipeline)
    after = fetch(connection, _NEWEST_PUBLICATION, (run.tenant_id, run.pipeline))[0][0]
    facts = points.RunStart(
        tenant=run.tenant_id, pipeline=run.pipeline, datasets=_datasets(contracts), tenant_status=tenant.spec.status,
        runner_class=runner.runner_class, runner_size=runner.size, network_profile=runner.network_profile,
        cost_class=points.cost_class(runner.runner_class, runner.size),
        classification=points.highest_classification(contracts), days=_days(run),
    )
    occurrence = canonical_hash([
        run.to_json(), manifest.hash, facts.values(), after, policies.fingerprint(facts.point)])
    runs, rows = fetch(connection, _USED, (run.tenant_id, _beginning_of_day(tenant, now), occurrence))[0]
    counted = replace(  # what grows with every run, and who starts it, make no other run of this one
        facts, runs_today=runs, rows_today=rows, quota_runs_per_day=tenant.spec.quotas.runs_per_day or 0,
        quota_rows_per_day=tenant.spec.quotas.rows_per_day or 0, trigger=trigger,
    )
    return Question(counted, _subject(run), who, occurrence, run)


def _backfill(
    connection: psycopg.Connection, declarations: Declarations, policies: PolicySet, run: RunRequested, who: str
) -> tuple[Question, int]:
    """The question, and how many days of the range have been published."""
    run = replace(run, backfill=True)
    after = fetch(connection, _NEWEST_PUBLICATION, (run.tenant_id, run.pipeline))[0][0]
    facts = _backfill_facts(connection, run, _datasets(declarations.contracts_of(run.pipeline)))
    occurrence = canonical_hash([run.to_json(), after, policies.fingerprint(facts.point)])
    return Question(facts, _subject(run), who, occurrence, run), facts.published_days


def _backfill_facts(
    connection: psycopg.Connection, run: RunRequested | RunRequest, datasets: tuple[str, ...]
) -> points.Backfill:
    published = fetch(connection, _PUBLISHED_DAYS, (run.tenant_id, run.pipeline, run.start, run.end))[0][0]
    return points.Backfill(
        tenant=run.tenant_id, pipeline=run.pipeline, datasets=datasets, days=_days(run), published_days=published,
        first_day=run.start.isoformat(), last_day=run.end.isoformat(),
    )


def _owners(groups: Sequence[Group]) -> dict[tuple[str, str], tuple[int, tuple[str, ...]]]:
    """Records and datasets by tenant and pipeline."""
    return {owner: (sum(group.records for group in found), tuple(sorted({group.dataset for group in found})))
            for owner, found in quarantine_store.by_owner(groups).items()}


def _records_subject(what: str, selection: Selection, changes: Sequence[str] = ()) -> str:
    """What an approval is for: other records, or another change of them, are something else."""
    ids = sorted(selection.ids or ())
    numbers = ", ".join(map(str, ids)) if len(ids) <= _NUMBERS_SHOWN else f"{len(ids)} ({canonical_hash(ids)[:16]})"
    return ", ".join([what, *(f"{name} {value}" for name, value in selection.narrowed.items()),
                      *([f"numbers {numbers}"] if ids else []), *changes])


def _datasets(contracts: Sequence[Contract]) -> tuple[str, ...]:
    return tuple(sorted({contract.dataset for contract in contracts}))


def _days(run: RunRequested | RunRequest) -> int:
    return (run.end - run.start).days + 1


def _subject(run: RunRequested | RunRequest) -> str:
    return f"{run.pipeline} {run.start} to {run.end}"


def _beginning_of_day(tenant: Tenant, now: dt.datetime) -> dt.datetime:
    local = now.astimezone(ZoneInfo(tenant.spec.timezone))
    return local.replace(hour=0, minute=0, second=0, microsecond=0)


_LAST_STATUS = """
select facts ->> 'status' from platform.policy_decision
where tenant_id = $1 and point = 'tenant_life' and asked <> $2
    and (effect in ('allow', 'warn') or exists (
        select from platform.approval_use u where u.decision_id = policy_decision.decision_id))
order by decision_id desc
limit 1
"""
_NEWEST_PUBLICATION = """
select coalesce(max(evidence_seq), 0) from platform.stage_run
where tenant_id = $1 and pipeline = $2 and stage = 'publish'
"""
_NEWEST_DAY = "select max(day) from platform.ingested_day where tenant_id = $1 and pipeline = $2"
_PUBLISHED_DAYS = """
select count(distinct day) from platform.ingested_day
where tenant_id = $1 and pipeline = $2 and day between $3 and $4
    and exists (select from platform.publication where tenant_id = $1 and pipeline = $2)
"""
_USED = """
select
    (select count(*) from platform.policy_decision d
     where tenant_id = $1 and point = 'run_start' and decided_at >= $2
        and asked <> $3
        and (effect in ('allow', 'warn') or exists (
            select from platform.approval_use u where u.decision_id = d.decision_id))),
    (select coalesce(sum(received), 0)::bigint from platform.raw_batch where tenant_id = $1 and landed_at >= $2)
"""
