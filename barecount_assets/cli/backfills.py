"""`barecount run --backfill`: a range run partition by partition, with progress, resumed where it stopped."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from barecount_assets import admission, backfill, lifecycle
from barecount_assets.backfill import BackfillOutcome, BackfillRequest, Granularity, Range
from barecount_assets.cli import output
from barecount_assets.cli.runs import StageDisplay
from barecount_assets.cli.verbs import person
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.stages.environment import StageEnvironment


def run(
    environment: StageEnvironment, pipeline: str, tenants: tuple[str, ...], start: dt.date | None, end: dt.date | None,
    source_paths: Mapping[str, str], granularity: Granularity, *, dry_run: bool, as_json: bool,
    requested_by: str | None = None,
) -> bool:
    """Back-fill for one tenant after the other; True when all of them are done."""
    manifest = environment.declarations.pipeline(pipeline)
    outcomes = []
    for tenant_id in tenants:
        today = lifecycle.today_of(environment.declarations.tenant(tenant_id))
        first, last = lifecycle.window_of(manifest, start, end, today)
        who = person(requested_by)
        request = BackfillRequest(RunRequest(pipeline, tenant_id, first, last, source_paths, who), granularity, who)
        if dry_run:
            _show_plan(environment, request, as_json=as_json)
            continue
        admission.admit_backfill(environment, request.run, granularity, requested_by=who, now=dt.datetime.now(dt.UTC))
        with StageDisplay(quiet=as_json) as display:
            outcomes.append(backfill.backfill(
                environment, request, display.progress, _quiet if as_json else _show_partition, display.receipt))
        if not as_json:
            _show(outcomes[-1])
    if as_json and not dry_run:
        output.print_json([outcome.to_json() for outcome in outcomes])
    return all(outcome.error is None for outcome in outcomes)


def _show_plan(environment: StageEnvironment, request: BackfillRequest, *, as_json: bool) -> None:
    parts = backfill.partitions_of(environment, request)
    if as_json:
        output.print_json([{"tenant": request.run.tenant_id, "from": part.first, "to": part.last} for part in parts])
        return
    for part in parts:
        output.console().print(f"{request.run.pipeline} {request.run.tenant_id} {part.first} to {part.last}")


def _show_partition(part: Range, number: int, total: int, outcome: RunOutcome) -> None:
    state = "stopped" if outcome.error else "done" if outcome.changed else "nothing to do"
    output.console().print(f"[bold]{number} of {total}[/] {part.first} to {part.last}: {state}")


def _quiet(part: Range, number: int, total: int, outcome: RunOutcome) -> None:
    return None


def _show(outcome: BackfillOutcome) -> None:
    run = outcome.request.run
    resumed = f", {outcome.resumed} of them before" if outcome.resumed else ""
    output.console().print(
        f"[bold]{run.pipeline}[/] {run.tenant_id} {run.start} to {run.end}: {outcome.done} of "
        f"{len(outcome.partitions)} partitions done{resumed}, evidence {outcome.evidence_seq}", soft_wrap=True)
    if outcome.error is not None:
        output.print_error(outcome.error, as_json=False)
        output.console().print("[dim]the same command resumes it[/]")
