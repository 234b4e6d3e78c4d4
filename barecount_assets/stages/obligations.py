"""Obligations in a run: judged by the publish stage, before anything is published."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Sequence

import psycopg

from barecount_assets import project_lineage
from resources.governance import export_log, lineage_store, obligation_judge, obligation_store
from resources.governance.column_lineage import AssetLineage, Dependency, ProjectLineage
from resources.governance.declarations import Declarations
from resources.governance.obligation_judge import Facts, Outcome
from resources.runners.stage import StageSpec
from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings


def enforce(
    connection: psycopg.Connection, settings: Settings, declarations: Declarations, spec: StageSpec, token: str,
    now: dt.datetime,
) -> list[Outcome]:
    """Judge the obligations of a pipeline and tenant, and put the outcomes on record, before anything is published.

    Raises:
        BareCountError: obligation.failed naming every obligation that blocks.
    """
    concerned = [o for o in declarations.obligations.values() if o.concerns(spec.pipeline, spec.tenant_id)]
    if not concerned:
        return []
    facts = Facts(
        declarations, spec.pipeline, _with_recorded(connection, spec.tenant_id, project_lineage.of_project(
            settings, declarations)),
        spec.tenant_id, _today(declarations, spec.tenant_id, now), _newest_days(connection, declarations, spec),
        export_log.approved(connection, spec.tenant_id),
    )
    outcomes = obligation_judge.judge(concerned, facts)
    with connection.transaction():
        for outcome in outcomes:
            obligation_store.record(connection, spec.tenant_id, spec.pipeline, token, outcome)
    failed = [outcome for outcome in outcomes if outcome.blocks]
    if failed:
        named = " | ".join(f"{outcome.obligation.name}: {outcome.summary}" for outcome in failed)
        raise BareCountError(
            ErrorCode.OBLIGATION_FAILED,
            f"{spec.pipeline} of tenant {spec.tenant_id} is not published: {named}",
            hint="the previous publication stays in place; `barecount lineage upstream` shows the way of a column, "
            "`barecount lineage obligations` what was seen",
            details={"obligations": {outcome.obligation.name: outcome.details for outcome in failed}},
        )
    return outcomes


def identities(declarations: Declarations, spec: StageSpec) -> dict[str, str]:
    """The obligations a publication is judged by: part of the identity of its work."""
    return {name: obligation.hash for name, obligation in declarations.obligations.items()
            if obligation.concerns(spec.pipeline, spec.tenant_id)}


def _with_recorded(connection: psycopg.Connection, tenant_id: str, project: ProjectLineage) -> ProjectLineage:
    """With what runs have put on record beyond the project: exports, and whatever else reads what it makes."""
    beyond: dict[str, dict[str, list[Dependency]]] = {}
    for edge in lineage_store.edges(connection, tenant_id):
        if edge.asset not in project.assets:
            beyond.setdefault(edge.asset, {}).setdefault(edge.column, []).append(edge.on)
    more = {
        asset: AssetLineage(asset, "", {column: tuple(found) for column, found in columns.items()})
        for asset, columns in beyond.items()
    }
    return ProjectLineage(project.fingerprint, {**project.assets, **more}, project.unresolved)


def _today(declarations: Declarations, tenant_id: str, now: dt.datetime) -> dt.date:
    return now.astimezone(zoneinfo.ZoneInfo(declarations.tenant(tenant_id).spec.timezone)).date()


def _newest_days(
    connection: psycopg.Connection, declarations: Declarations, spec: StageSpec
) -> dict[str, dt.date | None]:
    """The newest day that has arrived, by dated source."""
    sources: Sequence = [source for source in declarations.pipeline(spec.pipeline).spec.sources if source.dated]
    days = dict(fetch(connection, _NEWEST, (spec.tenant_id, [source.dataset for source in sources])))
    return {source.name: days.get(source.dataset) for source in sources}


_NEWEST = """
select dataset, max(partition_date) from platform.raw_batch
where tenant_id = $1 and dataset = any($2) and is_current
group by dataset
"""
