"""`barecount run`: progress per stage while it works, a summary per tenant when it is done."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping
from typing import Any

from barecount_assets import lifecycle
from barecount_assets.cli import output
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.stages.environment import StageEnvironment
from resources.runners.facade import Progress
from resources.runners.stage import Stage, StageReceipt
from resources.runtime.errors import BareCountError, ErrorCode


def run(
    environment: StageEnvironment, pipeline: str, tenant: str | None, start: dt.date | None, end: dt.date | None,
    source_paths: Mapping[str, str], *, dry_run: bool, as_json: bool, requested_by: str = "",
    accept_definition: str | None = None,
) -> bool:
    """Run for one tenant or all; True when every run is done."""
    manifest = environment.declarations.pipeline(pipeline)
    tenants = tenants_of(environment, pipeline, tenant)
    require_known_sources(environment, pipeline, source_paths)
    outcomes = []
    for tenant_id in tenants:
        today = lifecycle.today_of(environment.declarations.tenant(tenant_id))
        first, last = lifecycle.window_of(manifest, start, end, today)
        request = RunRequest(pipeline, tenant_id, first, last, source_paths, requested_by, accept_definition)
        if dry_run:
            outcomes.append(_probe(environment, request))
        else:
            with StageDisplay(quiet=as_json) as display:
                outcomes.append(_attempt(environment, request, display))
        if not as_json:
            show_outcome(outcomes[-1], dry_run=dry_run)
    if as_json:
        output.print_json([to_json(outcome) for outcome in outcomes])
    return all(outcome.error is None for outcome in outcomes)


def _attempt(environment: StageEnvironment, request: RunRequest, display: StageDisplay) -> RunOutcome:
    """One tenant's failure must not keep the next tenant from its numbers."""
    try:
        return lifecycle.run(environment, request, display.progress, display.receipt)
    except BareCountError as error:
        return RunOutcome(request, False, [], error)


def _probe(environment: StageEnvironment, request: RunRequest) -> RunOutcome:
    manifest = environment.declarations.effective(request.pipeline, request.tenant_id)
    receipts = lifecycle.probe(environment, manifest, request)
    return RunOutcome(request, receipts is None, receipts or [])


def tenants_of(environment: StageEnvironment, pipeline: str, tenant: str | None) -> tuple[str, ...]:
    """The tenant asked for, or all of the pipeline. Raises BareCountError declaration.unknown."""
    declared = environment.declarations.pipeline(pipeline).spec.tenants
    if tenant is None:
        return declared
    environment.declarations.tenant(tenant)
    if tenant not in declared:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN, f"pipeline {pipeline} is not declared for tenant {tenant!r}, "
            f"allowed: {', '.join(declared)}", hint="add the tenant to spec.tenants of the manifest",
        )
    return (tenant,)


def require_known_sources(environment: StageEnvironment, pipeline: str, given: Mapping[str, str]) -> None:
    """Raises BareCountError declaration.unknown for a path of a source that the pipeline does not have."""
    known = [source.name for source in environment.declarations.pipeline(pipeline).spec.sources]
    for name in given:
        if name not in known:
            raise BareCountError(
                ErrorCode.DECLARATION_UNKNOWN,
                f"pipeline {pipeline} has no source {name!r}, allowed: {', '.join(known)}",
                hint="give --source NAME=PATH with one of them",
            )


class StageDisplay:
    """Live progress on a terminal, one line per finished stage elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._started = time.perf_counter()
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> StageDisplay:
        if not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

            console = output.console()
            if console.is_terminal:
                self._live = Progress(
                    SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                    console=console, transient=True,
                )
                self._live.start()
                self._task = self._live.add_task("starting", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def progress(self) -> Progress:
        return self._update

    def _update(self, message: str, done: int, total: int) -> None:
        if self._live is not None:
            self._live.update(self._task, description=message[:60], completed=done, total=total or None)

    def receipt(self, receipt: StageReceipt) -> None:
        """A stage is done: one line that stays."""
        if self._quiet:
            return
        what = receipt.facts.get("source") or ""
        line = f"  {receipt.tenant_id:<10} {receipt.stage:<14}{what:<16}{receipt.seconds:6.1f} s  {_counts(receipt)}"
        (self._live.console if self._live is not None else output.console()).print(line.rstrip(), soft_wrap=True)


def _counts(receipt: StageReceipt) -> str:
    if not receipt.changed:
        return "nothing to do"
    return ", ".join(f"{name} {value:,}" for name, value in receipt.counts.items())


def show_outcome(outcome: RunOutcome, *, dry_run: bool) -> None:
    """The end of one tenant's run, for people."""
    from rich.markup import escape

    console = output.console()
    request = outcome.request
    title = f"[bold]{request.pipeline}[/] {request.tenant_id} {request.start} to {request.end}"
    if outcome.error is not None:
        console.print(f"{title}: [red]stopped[/]")
        output.print_error(outcome.error, as_json=False)
    elif dry_run:
        console.print(f"{title}: " + ("there is something to do" if outcome.changed else "up to date"))
    elif not outcome.changed:
        console.print(f"{title}: up to date, nothing to do")
    else:
        published = next((r for r in outcome.receipts if r.stage is Stage.PUBLISH), None)
        versions = ", ".join(f"{o.name} v{o.facts['version']}" for o in (published.outputs if published else ()))
        console.print(f"{title}: [green]published[/] {versions}")
    for check in (check for receipt in outcome.receipts for check in receipt.checks if check.details.get("withheld")):
        console.print(f"[yellow]withheld[/] {check.asset}: {check.summary}", soft_wrap=True)
    for shares in outcome.shares:
        whole = shares.whole
        share = f"{whole.refused / max(whole.received, 1):.2%}"
        console.print(f"[yellow]quarantined[/] {shares.source}: received {whole.received:,}, accepted "
                      f"{shares.accepted:,}, quarantined {whole.refused:,} ({share})", soft_wrap=True)
    for warning in outcome.warnings:
        console.print(f"[yellow]warning[/] {warning}", soft_wrap=True)
    for receipt in outcome.receipts:
        for notice in receipt.facts.get("notices", ()):
            console.print(f"[yellow]notice[/] {escape(notice)}", soft_wrap=True)


def to_json(outcome: RunOutcome) -> dict[str, Any]:
    """The outcome for scripts."""
    return {
        "pipeline": outcome.request.pipeline,
        "tenant": outcome.request.tenant_id,
        "from": outcome.request.start.isoformat(),
        "to": outcome.request.end.isoformat(),
        "changed": outcome.changed,
        "dagster_run_id": outcome.dagster_run_id,
        "warnings": list(outcome.warnings),
        "quarantined": [shares.to_json() for shares in outcome.shares],
        "stages": [receipt.to_json() for receipt in outcome.receipts],
        **(outcome.error.envelope() if outcome.error else {}),
    }
