"""Running a pipeline from the command line: one Dagster run per tenant, over a range of days.

Before Dagster is imported at all, the stages are asked whether there is anything to do; a run of which nothing changed
does no work.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from barecount_assets import admission, definition_changes
from barecount_assets.instance import open_instance
from barecount_assets.stages import completeness, dbt, execute
from barecount_assets.stages.completeness import SourceShares
from barecount_assets.stages.environment import StageEnvironment
from resources.governance.approvals import RunRequested
from resources.governance.manifests import Pipeline
from resources.governance.policies import current_user
from resources.runners.facade import Progress
from resources.runners.stage import CheckOutcome, Placement, Stage, StageReceipt, StageSpec, iso_window
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

    from resources.host.tenants import Tenant

SCHEMA_CHECK = "schema_matches_contract"
_STAGES_AFTER_INGESTION = (Stage.CALENDAR, Stage.NORMALIZATION, Stage.KPI_BUILD, Stage.PUBLISH)


@dataclass(frozen=True)
class RunRequest:
    """What was asked for, and by whom (the operating system's user where it is left out).

    Attributes:
        accept_definition: why definitions that changed under their version are said to compute the same.
    """

    pipeline: str
    tenant_id: str
    start: dt.date
    end: dt.date
    source_paths: Mapping[str, str] = field(default_factory=dict)
    requested_by: str = ""
    accept_definition: str | None = None


@dataclass
class RunOutcome:
    """What became of it.

    Attributes:
        changed: False when everything was done already.
        receipts: those of the stages that ran (or were asked), in order.
        error: why the run stopped, None when it did not.
        dagster_run_id: the run in the Dagster UI, None when none was needed.
        warnings: what policies warned of, and what is odd about the way a source was read.
        shares: what is refused of every source now, that has refused records.
    """

    request: RunRequest
    changed: bool
    receipts: list[StageReceipt]
    error: BareCountError | None = None
    dagster_run_id: str | None = None
    warnings: tuple[str, ...] = ()
    shares: tuple[SourceShares, ...] = ()


def today_of(tenant: Tenant, now: dt.datetime | None = None) -> dt.date:
    """The day it is where a tenant is."""
    return (now or dt.datetime.now(dt.UTC)).astimezone(ZoneInfo(tenant.spec.timezone)).date()


def window_of(
    manifest: Pipeline, start: dt.date | None, end: dt.date | None, today: dt.date
) -> tuple[dt.date, dt.date]:
    """The asked range, or all declared partitions up to today, which is the tenant's (see `today_of`).

    Raises:
        BareCountError: usage when the range is empty or outside the pipeline's partitions.
    """
    declared = manifest.spec.partitions
    first = start or declared.start
    last = end or declared.end or today
    limit = declared.end or today
    if first > last:
        raise BareCountError(ErrorCode.USAGE, f"the range ends ({last}) before it begins ({first})",
                             hint="give --from the earlier day")
    if first < declared.start or last > limit:
        raise BareCountError(
            ErrorCode.USAGE,
            f"{first} to {last} is outside the partitions of {manifest.name}: {declared.start} to {limit}",
            hint="change the range, or partitions.start in the manifest",
        )
    return first, last


def specs(manifest: Pipeline, request: RunRequest, *, probe: bool = False) -> list[StageSpec]:
    """The stages of a run, in order."""
    runner = manifest.spec.runner
    placement = Placement(runner.runner_class, runner.size, runner.network_profile)
    window = iso_window(request.start, request.end)
    ingestion = [
        StageSpec(Stage.INGESTION, request.tenant_id, request.pipeline, placement, source.name, window,
                  dict(request.source_paths), probe)
        for source in manifest.spec.sources
    ]
    stages = [s for s in _STAGES_AFTER_INGESTION if s is not Stage.CALENDAR or manifest.spec.transforms.calendar]
    return [*ingestion, *(StageSpec(s, request.tenant_id, request.pipeline, placement, probe=probe) for s in stages)]


def probe(environment: StageEnvironment, manifest: Pipeline, request: RunRequest) -> list[StageReceipt] | None:
    """The receipts of everything, when all of it is done already; None as soon as something is to do.

    Raises:
        BareCountError: what a run would raise: a missing source, a failed gate of an unchanged build.
    """
    receipts = []
    for spec in specs(manifest, request, probe=True):
        receipt = execute(spec, _silent, environment)
        if receipt.changed:
            return None
        receipts.append(receipt)
    return receipts


def import_ahead() -> None:
    """Import what a run needs that finds something to do: for who has to wait for something else."""
    import dagster_postgres  # noqa: F401

    import barecount_assets.definitions
    import barecount_assets.stages.ingestion.stage  # noqa: F401


def run(
    environment: StageEnvironment, request: RunRequest, progress: Progress,
    on_receipt: Callable[[StageReceipt], None] | None = None,
) -> RunOutcome:
    """Bring one tenant's numbers up to date for a range of days.

    Raises:
        BareCountError: declaration.unknown, run.in_progress, source.not_found, contract.breaking, contract.immutable,
            definition.changed, policy.denied, approval.required before anything starts. What stops the run later is in
            the outcome.
    """
    manifest = environment.declarations.effective(request.pipeline, request.tenant_id)
    with environment.run_lock(request.tenant_id, request.pipeline) as check_lock:
        done = probe(environment, manifest, request)
        environment.admit_contracts(request.tenant_id, request.pipeline)
        if done is not None:
            return RunOutcome(request, False, done, _held_error(done), warnings=_notes(done),
                              shares=_refused(environment, manifest, request))
        asked = RunRequested(
            request.pipeline, request.tenant_id, request.start, request.end, dict(request.source_paths))
        decisions = admission.admit_run(environment, asked, trigger="command", requested_by=request.requested_by)
        numbers = [decision.decision_id for decision in decisions]
        dbt.parse_ahead(environment.settings)
        acceptance = None if request.accept_definition is None else definition_changes.Acceptance(
            request.accept_definition, request.requested_by or current_user())
        definition_changes.admit(environment, request.pipeline, request.tenant_id, progress, acceptance)
        outcome = _run_in_dagster(environment, request, numbers, check_lock, progress, on_receipt)
        definition_changes.keep_bound(environment)
        outcome.warnings = (
            *(warning for decision in decisions for warning in decision.warnings), *_notes(outcome.receipts))
        outcome.shares = _refused(environment, manifest, request)
        return outcome


def _notes(receipts: Sequence[StageReceipt]) -> tuple[str, ...]:
    """What ingestion noted of cursors: a source that went back, another server."""
    return tuple(
        f"source {receipt.facts['source']}: {note}" for receipt in receipts if receipt.stage is Stage.INGESTION
        for note in receipt.facts.get("cursor", {}).get("notes", ()))


def _refused(environment: StageEnvironment, manifest: Pipeline, request: RunRequest) -> tuple[SourceShares, ...]:
    """What is refused of each source, of which anything is: a run that is done has not thereby taken everything."""
    try:
        with environment.database.connect(autocommit=True) as connection:
            measured = completeness.measure(connection, manifest, request.tenant_id)
    except BareCountError:
        return ()  # the run has stopped for the same reason, and says it
    return tuple(shares for shares in measured if shares.whole.refused)


def _run_in_dagster(
    environment: StageEnvironment, request: RunRequest, decisions: Sequence[int], check_lock: Callable[[], None],
    progress: Progress, on_receipt: Callable[[StageReceipt], None] | None,
) -> RunOutcome:
    instance = open_instance(environment.settings, environment.database)
    from barecount_assets import keys, partitions
    from barecount_assets.definitions import build_defs
    from barecount_assets.runner import Runner

    receipts: list[StageReceipt] = []

    def collect(receipt: StageReceipt) -> None:
        receipts.append(receipt)
        if on_receipt is not None:
            on_receipt(receipt)

    runner = Runner(environment, progress, collect, check_lock, admitted=decisions)
    definitions = build_defs(environment.settings.project_dir, {"runner": runner}, environment.declarations)
    job = definitions.resolve_job_def(request.pipeline)
    try:
        with instance, logs.stderr_in_log("dagster"):
            for abandoned in _unfinished(instance, request.pipeline, {keys.TENANT_TAG: request.tenant_id}):
                _close(instance, abandoned)  # the run lock is ours, so none of them can be alive
            result = job.execute_in_process(
                instance=instance,
                tags={
                    **partitions.range_tags(request.tenant_id, request.start, request.end),
                    keys.COMMAND_TAG: "run",
                    keys.SOURCES_TAG: json.dumps(dict(request.source_paths)),
                },
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )
    except Exception as cause:
        # Dagster's storage is the same PostgreSQL: without it Dagster cannot even note why a run ended, and raises.
        error = runner.first_error or _lost_lock(check_lock)
        if error is None or error.code is not ErrorCode.DATABASE_UNAVAILABLE:
            raise
        raise error from cause
    error = _held_error(receipts) if result.success else runner.first_error or _gate_error(receipts)
    return RunOutcome(request, True, receipts, error, result.run_id)


def _lost_lock(check_lock: Callable[[], None]) -> BareCountError | None:
    """Why the run lock is gone, None while it is held."""
    try:
        check_lock()
    except BareCountError as error:
        return error
    return None


def close_abandoned(environment: StageEnvironment) -> None:
    """Mark runs as failed whose command was killed: nobody else will.

    Dagster takes them for running ones, and its queue starts nothing for a tenant of whom something runs.
    """
    from barecount_assets import keys

    with open_instance(environment.settings, environment.database) as instance:
        for run in _unfinished(instance, None, {}):
            try:
                with environment.run_lock(run.tags[keys.TENANT_TAG], run.job_name):
                    _close(instance, run)
            except BareCountError as error:
                if error.code is not ErrorCode.RUN_IN_PROGRESS:
                    raise


def _unfinished(instance: DagsterInstance, pipeline: str | None, tags: Mapping[str, str]) -> Sequence[DagsterRun]:
    """Runs of commands that Dagster knows no end of."""
    import dagster as dg

    from barecount_assets import keys

    statuses = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    return instance.get_runs(
        filters=dg.RunsFilter(job_name=pipeline, statuses=statuses, tags={keys.COMMAND_TAG: "run", **tags})
    )


def _close(instance: DagsterInstance, run: DagsterRun) -> None:
    instance.report_run_failed(run, "the command that ran this was killed; run it again: what is done stays done")


def _held_error(receipts: Sequence[StageReceipt]) -> BareCountError | None:
    """What waits for a decision although the run is done: silence would look like success."""
    failed = [(r, c) for r in receipts if r.stage is Stage.INGESTION for c in r.checks
              if c.name == SCHEMA_CHECK and not c.passed]
    return _drift_error(failed) if failed else None


def _drift_error(failed: Sequence[tuple[StageReceipt, CheckOutcome]]) -> BareCountError:
    return BareCountError(
        ErrorCode.SCHEMA_DRIFT,
        " | ".join(f"{c.asset}: {c.summary}" for _, c in failed),
        hint="decide with `barecount drift accept` or `barecount drift reject`, then run again",
        details={"checks": [{"asset": c.asset, "check": c.name, **dict(c.details)} for _, c in failed]},
    )


def _gate_error(receipts: Sequence[StageReceipt]) -> BareCountError:
    """The blocking check that stopped a run in which no stage raised."""
    failed = [(r, c) for r in receipts for c in r.checks if c.blocking and not c.passed]
    if not failed:
        return BareCountError(ErrorCode.INTERNAL, "the run failed outside of its stages",
                              hint="see the run in `barecount dev`")
    if all(c.name == SCHEMA_CHECK for _, c in failed):
        return _drift_error(failed)
    gates = {c.name for _, c in failed} & {"acceptance", "reconciliation"}
    return BareCountError(
        ErrorCode.GATE_FAILED if gates else ErrorCode.SCHEMA_DRIFT,
        " | ".join(f"{c.asset} {c.name}: {c.summary}" for _, c in failed),
        hint="nothing was published and the previous publication stays in place; correct the data or the "
        "declaration and run again",
        details={"checks": [{"asset": c.asset, "check": c.name, **dict(c.details)} for _, c in failed]},
    )


def _silent(message: str, done: int, total: int) -> None:
    return None
