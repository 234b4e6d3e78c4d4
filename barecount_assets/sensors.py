"""Sensors: a new file, an approval or a decision on drift starts the pipeline; a missed promise is put on record.

What is done is known in the database and nowhere else. The file sensor's cursor only saves work: whether a file's
content has landed is decided by the ingestion stage, so a lost cursor or a second daemon does nothing twice. The
approval sensor starts runs whose approval counts and let nothing through yet.

https://docs.dagster.io/guides/automate/sensors
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from barecount_assets import keys, partitions
from barecount_assets.action_job import SINCE_TAG, action_job
from barecount_assets.approved_work import approved_work
from resources.governance import approvals as granted_approvals
from resources.governance import drift_register
from resources.governance.approvals import Approval, RunRequested
from resources.governance.declarations import Declarations
from resources.governance.manifests import FileSource, Pipeline
from resources.runners.stage import Placement, Stage, StageSpec
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError
from resources.runtime.settings import Settings

_INTERVAL_SECONDS = 30
_SLO_INTERVAL_SECONDS = 60


def file_drop(manifest: Pipeline, job: dg.JobDefinition) -> dg.SensorDefinition | None:
    """Watches the local folders of a pipeline's dated file sources; None when it has none with a declared path."""
    watched = [s for s in manifest.spec.sources if isinstance(s, FileSource) and s.dated and s.path is not None]
    if not watched:
        return None
    return dg.SensorDefinition(
        name=f"{manifest.name}__file_drop",
        job=job,
        evaluation_fn=_watch(manifest, watched),
        minimum_interval_seconds=_INTERVAL_SECONDS,
        description=f"New or changed files of {', '.join(s.name for s in watched)} start the pipeline for their day.",
    )


def kpi_events(declarations: Declarations) -> dg.SensorDefinition | None:
    """Turns new events that a rule looks at into one run of the action job; None without rules.

    The cursor says which events a run was started for. Which events were decided about is in the database: a lost
    cursor starts a run that finds nothing to do.
    """
    if not declarations.action_rules:
        return None

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from resources.action import jobs
        from resources.runtime import events

        database = _database()
        book = jobs.rulebook(declarations)
        after = events.Watermark(*json.loads(context.cursor)) if context.cursor else events.Watermark()
        with database.connect(autocommit=True) as connection:
            found, upto = events.count(connection, after, book.event_types)
            due = jobs.waiting(connection, book, dt.datetime.now(dt.UTC))
            since = events.first_time(connection, after, book.event_types) if found else None
        cursor = json.dumps([upto.from_xid, upto.upto_xid, 0])
        if not found and not due:
            return dg.SensorResult(skip_reason=dg.SkipReason("no new events, nothing is due"), cursor=cursor)
        key = f"{after.upto_xid}-{upto.upto_xid}" if found else f"due-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}"
        tags = {SINCE_TAG: since.isoformat()} if since else {}
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=key, tags=tags)], cursor=cursor)

    return dg.SensorDefinition(
        name="kpi_event_sensor", job=action_job, evaluation_fn=evaluate, minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="New events that a rule looks at start the action job.",
    )


@lru_cache(maxsize=1)
def _database() -> Database:
    """Opened once per process: a sensor that looks every five seconds does not ask for migrations each time."""
    return Database.open(Settings.from_environment())


def lineage_relay() -> dg.SensorDefinition:
    """Sends OpenLineage events to the transport that is named; sends nothing while none is."""

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from resources.governance import lineage_relay
        from resources.runtime.database import Database

        settings = Settings.from_environment()
        transport = lineage_relay.transport_of(settings)
        if transport is None:
            return dg.SkipReason(f"{lineage_relay.VARIABLE} names no transport: events wait in the outbox")
        done = lineage_relay.relay(Database.open(settings), transport)
        return dg.SkipReason(f"{done.sent} events sent to {transport.name}, {done.refused} refused")

    return dg.SensorDefinition(
        name="lineage_relay", evaluation_fn=evaluate, minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING, description="Sends the OpenLineage events of runs.",
    )


def drift_decided(manifest: Pipeline, job: dg.JobDefinition) -> dg.SensorDefinition:
    """Starts the pipeline for days that waited for a decision on drift, once it is made.

    Whether a batch still waits is in the database; the run key only keeps a run from being asked for twice.
    """
    return dg.SensorDefinition(
        name=f"{manifest.name}__drift_decided",
        job=job,
        evaluation_fn=_take_up(manifest),
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,  # whoever decided has asked for it
        description="Days that waited for a decision on drift start again once it is made.",
    )


def _take_up(
    manifest: Pipeline,
) -> Callable[[dg.SensorEvaluationContext], dg.SensorResult | dg.SkipReason]:
    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        settings = Settings.from_environment()
        with Database.open(settings).connect(autocommit=True) as connection:
            drifts = [d for d in drift_register.listed(connection, pipeline=manifest.name) if d.waiting]
        days = {
            (d.tenant_id, day or manifest.spec.partitions.start): d
            for d in sorted(drifts, key=lambda d: d.drift_id) if d.status != "open" for day in d.partitions
        }
        if not days:
            waiting = f"{len(drifts)} drifts wait for a decision" if drifts else "nothing waits for a decision on drift"
            return dg.SkipReason(waiting)
        return dg.SensorResult(run_requests=[
            dg.RunRequest(
                run_key=f"drift:{drift.drift_id}:{drift.decision_seq}:{tenant}:{day}",
                partition_key=dg.MultiPartitionKey({partitions.DATE: day.isoformat(), partitions.TENANT: tenant}),
                tags={keys.TENANT_TAG: tenant, keys.DRIFT_TAG: str(drift.drift_id)},
            )
            for (tenant, day), drift in sorted(days.items(), key=lambda item: item[0])
        ])

    return evaluate


def approvals(jobs: Mapping[str, Any]) -> dg.SensorDefinition:
    """Starts what waited for an approval, once it is granted: a run, a back-fill, a replay. `jobs`: by pipeline."""

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        with Database.open(Settings.from_environment()).connect(autocommit=True) as connection:
            waiting = granted_approvals.to_start(connection, dt.datetime.now(dt.UTC))
        return dg.SensorResult(run_requests=[
            _approved_run(item) for item in waiting if item.run_request and item.run_request.pipeline in jobs
        ])

    return dg.SensorDefinition(
        name="approval_sensor",
        jobs=[*jobs.values(), approved_work],
        evaluation_fn=evaluate,
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="What waited for an approval is started when it is granted.",
    )


def _approved_run(approval: Approval) -> dg.RunRequest:
    work = approval.run_request
    assert work is not None
    run_key = f"approval-{approval.approval_id}"
    tags = {keys.REQUESTED_BY_TAG: approval.requested_by, keys.APPROVAL_TAG: str(approval.approval_id)}
    if not isinstance(work, RunRequested) or work.granularity:
        return dg.RunRequest(
            run_key=run_key, job_name=approved_work.name, tags={**tags, keys.TENANT_TAG: work.tenant_id})
    return dg.RunRequest(
        run_key=run_key,
        job_name=work.pipeline,
        tags={
            **tags,
            **partitions.range_tags(work.tenant_id, work.start, work.end),
            keys.SOURCES_TAG: json.dumps(dict(work.source_paths)),
            **({keys.BACKFILL_TAG: "true"} if work.backfill else {}),
        },
    )


def _watch(
    manifest: Pipeline, watched: list[FileSource]
) -> Callable[[dg.SensorEvaluationContext], dg.SensorResult]:
    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from barecount_assets.stages.ingestion import sources
        from barecount_assets.stages.ingestion.connectors.files import partition_date_of

        settings = Settings.from_environment()
        known: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        seen: dict[str, str] = {}
        changed: dict[tuple[str, str], list[str]] = defaultdict(list)
        for tenant in manifest.spec.tenants:
            spec = StageSpec(Stage.INGESTION, tenant, manifest.name, Placement("", "", ""))
            for source in watched:
                try:
                    folder = Path(sources.resolve_path(manifest, source, spec, settings))
                except BareCountError as error:
                    context.log.warning(error.message)
                    continue
                for name, stamp in _files(folder):
                    day = partition_date_of(name, source.file_name or "")
                    if day is None:
                        continue
                    identity = f"{tenant}/{source.name}/{name}"
                    seen[identity] = stamp
                    if known.get(identity) != stamp:
                        changed[(tenant, day.isoformat())].append(f"{name}:{stamp}")
        requests = [
            dg.RunRequest(
                run_key=f"{tenant}:{day}:{'|'.join(sorted(files))}",
                partition_key=dg.MultiPartitionKey({partitions.DATE: day, partitions.TENANT: tenant}),
                tags={keys.TENANT_TAG: tenant},
            )
            for (tenant, day), files in sorted(changed.items())
        ]
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(seen, sort_keys=True))

    return evaluate


def _files(folder: Path) -> list[tuple[str, str]]:
    """(name, size and modification time) of the folder's files; a missing folder has none yet."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [(e.name, f"{e.stat().st_size}-{e.stat().st_mtime_ns}") for e in entries if e.is_file()]


def freshness(declarations: Declarations) -> dg.SensorDefinition:
    """Looks whether publications are as fresh as promised, and records what is not (event `slo.breached`)."""

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from resources.governance import slos
        from resources.runtime.database import Database

        now = dt.datetime.now(dt.UTC)
        found = []
        with Database.open(Settings.from_environment()).connect(autocommit=True) as connection:
            for manifest in declarations.pipelines.values():
                for tenant in manifest.spec.tenants:
                    for breach in slos.check_freshness(connection, manifest, tenant, now):
                        context.log.warning(f"{tenant} {manifest.name}: promised {breach.promised}, {breach.found}")
                        found.append(breach)
        return dg.SkipReason(f"{len(found)} new breaches of freshness")

    return dg.SensorDefinition(
        name="freshness_slo", evaluation_fn=evaluate, minimum_interval_seconds=_SLO_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Publications older than their freshness SLO become an event with an owner.",
    )
