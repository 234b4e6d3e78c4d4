"""Partitions: where people back-fill, and no finer.

Raw assets of dated sources are partitioned by day and tenant. GDPs, KPIs and publications are not partitioned: the
platform itself knows which keys and periods changed, and one event per asset and day would cost a year's back-fill a
minute. Their tenant is that of the run (see `tenants_of`).

https://docs.dagster.io/guides/build/partitions-and-backfills/partitioning-assets
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from zoneinfo import ZoneInfo

import dagster as dg

from barecount_assets import keys
from resources.governance.declarations import Declarations
from resources.governance.manifests import Pipeline

DATE, TENANT = "date", "tenant"
_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"


def days_and_tenants(declarations: Declarations, manifest: Pipeline) -> dg.MultiPartitionsDefinition:
    """Daily partitions from the manifest's start (to its end, or today included), for each of its tenants.

    Today is that of the tenant whose day begins first: no tenant's day is missing.
    """
    partitions = manifest.spec.partitions
    now = dt.datetime.now(dt.UTC)
    zones = {declarations.tenant(tenant).spec.timezone for tenant in manifest.spec.tenants}
    first = max(sorted(zones), key=lambda zone: now.astimezone(ZoneInfo(zone)).utcoffset() or dt.timedelta(0))
    end = partitions.end + dt.timedelta(days=1) if partitions.end else None
    return dg.MultiPartitionsDefinition(
        {
            DATE: dg.DailyPartitionsDefinition(
                partitions.start.isoformat(), end_date=end.isoformat() if end else None, end_offset=0 if end else 1,
                timezone=first,
            ),
            TENANT: dg.StaticPartitionsDefinition(list(manifest.spec.tenants)),
        }
    )


def windows(context: dg.AssetExecutionContext) -> Iterator[tuple[str, dt.date, dt.date]]:
    """(tenant, first day, last day) of a raw asset's run, one per tenant."""
    days: dict[str, list[str]] = {}
    for key in context.partition_keys:
        dimensions = dg.MultiPartitionKey.from_str(key) if hasattr(dg.MultiPartitionKey, "from_str") else key
        by_name = getattr(dimensions, "keys_by_dimension", None)
        day, tenant = (by_name[DATE], by_name[TENANT]) if by_name else key.split("|")
        days.setdefault(tenant, []).append(day)
    for tenant, listed in sorted(days.items()):
        yield tenant, dt.date.fromisoformat(min(listed)), dt.date.fromisoformat(max(listed))


def tenants_of(context: dg.AssetExecutionContext, manifest: Pipeline) -> tuple[str, ...]:
    """Tenants an unpartitioned asset works for: the run's own, else every tenant of the manifest."""
    tags = context.run.tags
    tenant = tags.get(keys.TENANT_TAG) or tags.get(f"dagster/partition/{TENANT}")
    if tenant is None and _RANGE_START in tags:
        start, end = (tags[name].split("|")[-1] for name in (_RANGE_START, _RANGE_END))
        tenant = start if start == end else None
    return (tenant,) if tenant in manifest.spec.tenants else manifest.spec.tenants


def day_of(context: dg.AssetExecutionContext) -> tuple[dt.date, dt.date] | None:
    """First and last day of the run, from its tags; None for a run without partitions."""
    tags = context.run.tags
    if _RANGE_START in tags:
        start, end = (tags[name].split("|")[0] for name in (_RANGE_START, _RANGE_END))
        return dt.date.fromisoformat(start), dt.date.fromisoformat(end)
    day = tags.get(f"dagster/partition/{DATE}")
    return (dt.date.fromisoformat(day), dt.date.fromisoformat(day)) if day else None


def range_tags(tenant: str, start: dt.date, end: dt.date) -> Mapping[str, str]:
    """Tags of a run over a range of days for one tenant: a single-run back-fill."""
    return {
        _RANGE_START: f"{start.isoformat()}|{tenant}",
        _RANGE_END: f"{end.isoformat()}|{tenant}",
        keys.TENANT_TAG: tenant,
    }


def source_paths(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Source paths given with the run (`--source NAME=PATH`)."""
    return json.loads(context.run.tags.get(keys.SOURCES_TAG, "{}"))
