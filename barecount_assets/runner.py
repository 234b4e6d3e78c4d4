"""The runner as a Dagster resource, and how a receipt becomes metadata and check results."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import dagster as dg

from barecount_assets import admission, keys, partitions
from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.governance.approvals import RunRequested
from resources.governance.decision_points import highest_classification
from resources.host import runner_catalog
from resources.runners.bounds import Bounds
from resources.runners.facade import Progress, RunnerFacade
from resources.runners.stage import CheckOutcome, Stage, StageReceipt, StageSpec
from resources.runtime import events, logs
from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode, unexpected

_LOG_EVERY_SECONDS = 5.0
_DAGSTER_BACKFILL = "dagster/backfill"  # Dagster's own tag on runs of its back-fills


class Runner:
    """The `runner` resource: hands stage specifications to the runner facade.

    Nothing is opened before the first stage runs, so definitions load without a database.

    A run of a whole pipeline holds a lock of its own and gives `check_lock`: no stage starts once that raises, and a
    stage that lost the database, and the lock with it, is not tried again.

    Unless it was `admitted` already, by the decisions of these numbers, a run asks the policies once per tenant, before
    its first stage that has something to do; what they refuse fails at once and is not tried again.
    """

    def __init__(
        self,
        environment: StageEnvironment | None = None,
        progress: Progress | None = None,
        on_receipt: Callable[[StageReceipt], None] | None = None,
        check_lock: Callable[[], None] | None = None,
        *,
        admitted: Sequence[int] | None = None,
    ) -> None:
        self._environment, self._progress, self._on_receipt = environment, progress, on_receipt
        self._check_lock = check_lock
        self._admitted = admitted
        self._answers: dict[tuple[str, str], BareCountError | tuple[int, ...]] = {}
        self.first_error: BareCountError | None = None

    @cached_property
    def _opened(self) -> StageEnvironment:
        return self._environment or StageEnvironment.open()

    @cached_property
    def _facade(self) -> RunnerFacade:
        environment = self._opened
        settings = environment.settings
        return RunnerFacade(
            runner_catalog.read_environment(settings.project_dir, settings.environment),
            runner_catalog.read_sizes(settings.project_dir),
            self._execute,
            {"BARECOUNT_PROJECT_DIR": str(settings.project_dir), "BARECOUNT_DATA_DIR": str(settings.data_dir),
             "BARECOUNT_RAW_STORE": settings.raw_store, "BARECOUNT_DATABASE_URL": environment.database.admin_url,
             "BARECOUNT_ENVIRONMENT": settings.environment},
            self._bounds,
        )

    def _bounds(self, spec: StageSpec) -> Bounds:
        declarations = self._opened.declarations
        return Bounds(declarations.tenant(spec.tenant_id).spec.runners,
                      highest_classification(declarations.contracts_of(spec.pipeline)))

    def _execute(self, spec: StageSpec, progress: Progress) -> StageReceipt:
        """A stage in this process, which is where the models and gates of its run will be, too.

        What takes seconds to get ready for them is begun as soon as it is known that they come and that there is work.
        """
        if spec.stage is not Stage.NORMALIZATION and self._check_lock is None:
            return execute(spec, progress, self._opened)
        from barecount_assets.stages import dbt, expectations

        def told(message: str, done: int, total: int) -> None:
            dbt.import_ahead()
            expectations.start_ahead()
            progress(message, done, total)

        return execute(spec, told, self._opened)

    def run(self, context: dg.AssetExecutionContext, spec: StageSpec) -> StageReceipt:
        """Run a stage; its progress and its error envelope go into the run's log.

        Raises:
            dg.Failure: with the envelope as metadata; a retry is allowed only where it can help.
        """
        try:
            if self._check_lock is not None:
                self._check_lock()
            receipt = self._nothing_to_do(context, spec)
            if receipt is None:
                receipt = self._facade.run(
                    spec, self._progress or _log_progress(context), context, occasion=context.run_id,
                    decisions=self._decisions(context, spec))
        except Exception as cause:
            error = cause if isinstance(cause, BareCountError) else unexpected(cause)
            self.first_error = self.first_error or error
            self._tell_of_failure(spec, error)
            raise dg.Failure(
                description=str(error),
                metadata={"error": dg.MetadataValue.json(error.envelope()["error"])},
                allow_retries=error.retryable and not (
                    self._check_lock is not None and error.code is ErrorCode.DATABASE_UNAVAILABLE),
            ) from cause
        what = "done" if receipt.changed else "nothing to do"
        context.log.info(
            f"{spec.stage} {spec.source or ''} for {spec.tenant_id}: {what}, {dict(receipt.counts)}, "
            f"{receipt.seconds:.2f} s, run token {receipt.run_token}"
        )
        if self._on_receipt is not None:
            self._on_receipt(receipt)
        return receipt

    def _nothing_to_do(self, context: dg.AssetExecutionContext, spec: StageSpec) -> StageReceipt | None:
        """The receipt of a stage whose work is done already; None when it may run.

        Raises:
            BareCountError: policy.denied, approval.required.
        """
        if self._admitted is not None:
            return None
        key = (context.run_id, spec.tenant_id)
        if key not in self._answers:
            found = execute(replace(spec, probe=True), _silent, self._opened)
            if not found.changed:
                return found
            self._answers[key] = _answer(self._opened, context, spec)
        if isinstance(refused := self._answers[key], BareCountError):
            raise BareCountError(  # each stage it stops is an occurrence of its own
                refused.code, refused.message, hint=refused.hint, details=refused.details)
        return None

    def _decisions(self, context: dg.AssetExecutionContext, spec: StageSpec) -> Sequence[int]:
        """Numbers of the decisions that let the run start for the stage's tenant."""
        if self._admitted is not None:
            return self._admitted
        answer = self._answers[context.run_id, spec.tenant_id]
        return () if isinstance(answer, BareCountError) else answer

    def _tell_of_failure(self, spec: StageSpec, error: BareCountError) -> None:
        """Put the failure among the events, where the database can still be reached; the log has it in any case."""
        event = events.Event(
            spec.tenant_id, "stage.failed", spec.pipeline, error.correlation_id,
            {"pipeline": spec.pipeline, "stage": spec.stage.value, "source": spec.source,
             "error": {"code": error.code.value, "message": error.message, "correlation_id": error.correlation_id,
                       "retryable": error.retryable}},
            spec.pipeline,
        )
        try:
            with self._opened.database.transaction() as connection:
                if fetch(connection, "select 1 from platform.tenant where tenant_id = $1", (spec.tenant_id,)):
                    events.append(connection, event)
        except BareCountError as unreachable:
            logs.get_logger("runner").warning("a failure could not be told: %s", unreachable.message)


def _answer(
    environment: StageEnvironment, context: dg.AssetExecutionContext, spec: StageSpec
) -> BareCountError | tuple[int, ...]:
    """Why the policies do not let the run go on for the stage's tenant; the numbers of their decisions when they do."""
    tags = context.run.tags
    start, end = partitions.day_of(context) or _window(spec)
    run = RunRequested(spec.pipeline, spec.tenant_id, start, end, partitions.source_paths(context),
                       backfill=keys.BACKFILL_TAG in tags)
    try:
        decisions = admission.admit_run(
            environment, run, trigger="dagster", requested_by=tags.get(keys.REQUESTED_BY_TAG, "dagster"),
            part_of_backfill=_DAGSTER_BACKFILL in tags)
    except BareCountError as error:
        if error.code in (ErrorCode.POLICY_DENIED, ErrorCode.APPROVAL_REQUIRED):
            return error
        raise
    for warning in (warning for decision in decisions for warning in decision.warnings):
        context.log.warning(warning)
    return tuple(decision.decision_id for decision in decisions)


def _window(spec: StageSpec) -> tuple[dt.date, dt.date]:
    """Days of a run that has no partition: those of its stage, else today."""
    if spec.window is not None:
        return dt.date.fromisoformat(spec.window[0]), dt.date.fromisoformat(spec.window[1])
    today = dt.datetime.now(dt.UTC).date()
    return today, today


def metadata_of(receipts: Sequence[StageReceipt], output: str) -> dict[str, Any]:
    """Metadata of one asset from the receipts of the tenants it was made for."""
    metadata: dict[str, Any] = {}
    rows = 0
    for receipt in receipts:
        for item in receipt.outputs:
            if item.name != output:
                continue
            rows += item.rows
            prefix = f"{receipt.tenant_id}/" if len(receipts) > 1 else ""
            metadata[f"{prefix}content_sha256"] = item.content_sha256
            metadata[f"{prefix}run_token"] = receipt.run_token
            metadata[f"{prefix}changed"] = receipt.changed
            for name, value in {**receipt.counts, **item.facts}.items():
                metadata[f"{prefix}{name}"] = value
    return {"dagster/row_count": rows, **metadata}


def check_result(
    asset_key: dg.AssetKey, name: str, outcomes: Mapping[str, CheckOutcome], *, isolate_tenants: bool
) -> dg.AssetCheckResult:
    """One Dagster check result from the outcomes by tenant.

    In a run for several tenants a failure of some must not hold the others: it warns, and the publish stage, which
    asks the database, refuses those tenants alone. So does one that holds some days of several.
    """
    failed = {tenant: outcome for tenant, outcome in outcomes.items() if not outcome.passed}
    partial = isolate_tenants and 0 < len(failed) < len(outcomes)
    partial = partial or bool(failed) and not any(outcome.blocking for outcome in failed.values())
    return dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=name,
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN if partial else dg.AssetCheckSeverity.ERROR,
        description=" | ".join(
            f"{tenant}: {outcome.summary}" for tenant, outcome in (failed or outcomes).items()),
        metadata={tenant: dg.MetadataValue.json(dict(outcome.details)) for tenant, outcome in outcomes.items()},
    )


def _log_progress(context: dg.AssetExecutionContext) -> Progress:
    last = 0.0

    def log(message: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LOG_EVERY_SECONDS:
            last = now
            context.log.info(f"{message} ({done} of {total})")

    return log


def _silent(message: str, done: int, total: int) -> None:
    return None
