"""Schedules: one per pipeline and tenant, from the manifest and the tenant's override.

A tick runs the pipeline for the day before, in the schedule's own time zone.

https://docs.dagster.io/guides/automate/schedules
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from zoneinfo import ZoneInfo

import dagster as dg

from barecount_assets import keys, partitions
from resources.governance.declarations import Declarations
from resources.governance.manifests import Pipeline


def build(declarations: Declarations, manifest: Pipeline, job: dg.JobDefinition) -> list[dg.ScheduleDefinition]:
    """The schedules of a pipeline; a tenant without one has none."""
    schedules = []
    for tenant in manifest.spec.tenants:
        declared = declarations.effective(manifest.name, tenant).spec.schedule
        if declared is None:
            continue
        schedules.append(
            dg.ScheduleDefinition(
                name=f"{manifest.name}__{tenant}",
                job=job,
                cron_schedule=declared.cron,
                execution_timezone=declared.timezone,
                execution_fn=_day_before(manifest, tenant, ZoneInfo(declared.timezone)),
                description=f"{manifest.metadata.title} of {tenant}, for the day before.",
            )
        )
    return schedules


def _day_before(
    manifest: Pipeline, tenant: str, zone: ZoneInfo
) -> Callable[[dg.ScheduleEvaluationContext], dg.RunRequest | dg.SkipReason]:
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = context.scheduled_execution_time.astimezone(zone).date() - dt.timedelta(days=1)
        declared = manifest.spec.partitions
        if day < declared.start or (declared.end is not None and day > declared.end):
            return dg.SkipReason(f"{day} is outside the pipeline's partitions, {declared.start} to {declared.end}")
        key = dg.MultiPartitionKey({partitions.DATE: day.isoformat(), partitions.TENANT: tenant})
        return dg.RunRequest(
            run_key=f"{tenant}:{day}", partition_key=key, tags={keys.TENANT_TAG: tenant}
        )

    return tick
