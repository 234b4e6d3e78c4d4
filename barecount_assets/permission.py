"""Asking the policies before something is done again or leaves: back-fills, replays, exports of refused records.

The decision is committed before a refusal is raised, so that it is on record. Where approval is needed, the request is
named; given again once it is approved, the same command goes on.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence

from barecount_assets.lifecycle import RunRequest
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import decision_points as points
from resources.governance.contracts import CLASSIFICATIONS
from resources.governance.policies import decide, require
from resources.runtime.database import fetch
from resources.storage.quarantine_store import Group


def for_backfill(environment: StageEnvironment, run: RunRequest, by: str, now: dt.datetime) -> None:
    """Ask about a range, as one, before its partitions run.

    Raises:
        BareCountError: policy.denied, approval.required.
    """
    with environment.database.connect(autocommit=True) as connection:
        published = fetch(connection, _PUBLISHED_DAYS, (run.tenant_id, run.pipeline, run.start, run.end))[0][0]
    sources = environment.declarations.pipeline(run.pipeline).spec.sources
    _ask(environment, points.Backfill(
        tenant=run.tenant_id, pipeline=run.pipeline, datasets=tuple(sorted(source.dataset for source in sources)),
        days=(run.end - run.start).days + 1, published_days=published, first_day=run.start.isoformat(),
        last_day=run.end.isoformat(),
    ), f"{run.pipeline} {run.start} to {run.end}", by, now)


def for_replay_of_run(
    environment: StageEnvironment, tenant_id: str, pipeline: str, run_token: str, by: str, now: dt.datetime, *,
    publishes: bool,
) -> None:
    """Ask about computing a run again. Raises as `for_backfill`."""
    _ask(environment, points.Replay(tenant=tenant_id, pipeline=pipeline, kind="run", publishes=publishes),
         f"run {run_token[:16]}", by, now)


def for_replay_of_records(
    environment: StageEnvironment, groups: Sequence[Group], by: str, now: dt.datetime
) -> None:
    """Ask about sending refused records through ingestion again, once per tenant and pipeline. Raises the same."""
    for (tenant_id, pipeline), (records, datasets) in _owners(groups).items():
        _ask(environment, points.Replay(
            tenant=tenant_id, pipeline=pipeline, datasets=datasets, kind="quarantine", records=records,
        ), f"refused records of {pipeline}", by, now)


def for_export(environment: StageEnvironment, groups: Sequence[Group], by: str, now: dt.datetime) -> None:
    """Ask about refused records leaving as a file, once per tenant and pipeline. Raises the same.

    Records of a dataset that has no contract any more count as restricted: nothing says that they may be seen.
    """
    for (tenant_id, pipeline), (records, datasets) in _owners(groups).items():
        contracts = [contract for (dataset, layer), contract in environment.declarations.contracts.items()
                     if layer == "raw" and dataset in datasets]
        _ask(environment, points.Export(
            tenant=tenant_id, pipeline=pipeline, datasets=datasets, kind="quarantine", records=records,
            classification=points.highest_classification(contracts)
            if {contract.dataset for contract in contracts} == set(datasets) else CLASSIFICATIONS[-1],
        ), f"refused records of {pipeline}", by, now)


def _owners(groups: Sequence[Group]) -> dict[tuple[str, str], tuple[int, tuple[str, ...]]]:
    """Records and datasets by tenant and pipeline."""
    records: Counter[tuple[str, str]] = Counter()
    datasets: dict[tuple[str, str], set[str]] = {}
    for group in groups:
        owner = (group.tenant_id, group.pipeline)
        records[owner] += group.records
        datasets.setdefault(owner, set()).add(group.dataset)
    return {owner: (records[owner], tuple(sorted(datasets[owner]))) for owner in datasets}


def _ask(environment: StageEnvironment, facts: points.Facts, subject: str, by: str, now: dt.datetime) -> None:
    with environment.database.transaction() as connection:
        environment.register_tenant(connection, facts.tenant)
        decision = decide(connection, environment.declarations.policies, facts, subject=subject, requested_by=by,
                          now=now)
    require(decision)


_PUBLISHED_DAYS = """
select count(distinct day) from platform.ingested_day
where tenant_id = $1 and pipeline = $2 and day between $3 and $4
    and exists (select from platform.publication p where p.tenant_id = $1 and p.pipeline = $2)
"""
