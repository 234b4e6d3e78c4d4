"""Names of things in Dagster: `{layer}/{pipeline}/{name}`, layers being the words of the lifecycle."""

from __future__ import annotations

import dagster as dg

RAW, GDP, KPI, PUBLISHED = "raw", "gdp", "kpi", "published"
TENANT_TAG = "barecount/tenant"
SOURCES_TAG = "barecount/sources"
DRIFT_TAG = "barecount/drift"  # on runs that take up what waited for a decision
REQUESTED_BY_TAG = "barecount/requested_by"
BACKFILL_TAG = "barecount/backfill"
APPROVAL_TAG = "barecount/approval"  # on runs that were started because they were approved
COMMAND_TAG = "barecount/command"  # on runs that live in the process of a command


def raw(pipeline: str, source: str) -> dg.AssetKey:
    return dg.AssetKey([RAW, pipeline, source])


def calendar(pipeline: str) -> dg.AssetKey:
    return dg.AssetKey([GDP, pipeline, "calendar"])


def gdp(pipeline: str, model: str) -> dg.AssetKey:
    return dg.AssetKey([GDP, pipeline, model])


def kpi(pipeline: str, name: str) -> dg.AssetKey:
    return dg.AssetKey([KPI, pipeline, name])


def published(pipeline: str, name: str) -> dg.AssetKey:
    return dg.AssetKey([PUBLISHED, pipeline, name])
