"""`barecount drift`: what sources have that contracts do not declare, and what stewards decide about it."""

from __future__ import annotations

import datetime as dt
import difflib
import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment

if TYPE_CHECKING:
    from barecount_assets.drift_proposals import Candidate
    from barecount_assets.stages.environment import StageEnvironment
    from resources.governance.drift_register import Drift
    from resources.runtime.errors import BareCountError

app = typer.Typer(no_args_is_help=True, help="Sources that differ from their contracts: see, accept, reject.")

Number = Annotated[int, typer.Argument(help="Number of the drift, as `barecount drift list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; goes into evidence.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides (default: the user of this machine).")]


@command(app, "list")
def listed(
    pipeline: Annotated[str | None, typer.Option("--pipeline")] = None,
    tenant: Tenant = None,
    everything: Annotated[bool, typer.Option("--all", help="Decided ones too.")] = False,
    as_json: Json = False,
) -> None:
    """Drifts that wait for a decision, and what waits for them; decided ones too while the next run is to come."""
    from resources.governance import drift_register

    with environment().database.connect(autocommit=True) as connection:
        drifts = [
            drift for drift in drift_register.listed(connection, pipeline=pipeline, tenant_id=tenant)
            if everything or drift.status == "open" or drift.waiting
        ]
    if as_json:
        output.print_json([drift.to_json() for drift in drifts])
        return
    if not drifts:
        typer.echo("no drift" if everything else "no drift waits for a decision (--all lists decided ones)")
        return
    output.console().print(output.table(
        None, ("drift", "tenant", "dataset", "status", "batches", "waiting days", "what changed"),
        [(d.drift_id, d.tenant_id, d.dataset, d.status, d.batches, _days(d), "; ".join(map(str, d.blocking)))
         for d in drifts], right=(0, 4)))


@command(app)
def show(drift_id: Number, as_json: Json = False) -> None:
    """One drift: what changed, what waits, what was decided, and what accepting it would make of the contracts."""
    from barecount_assets import drift_decisions
    from resources.governance import drift_register

    opened = environment()
    with opened.database.connect(autocommit=True) as connection:
        drift = drift_register.find(connection, drift_id)
    proposed, refusal = _proposal(opened, drift)
    if as_json:
        output.print_json({**drift.to_json(), "candidates": [_candidate_json(item) for item in proposed],
                           "not_acceptable": refusal and refusal.message})
        return
    console = output.console()
    console.print(f"[bold]drift {drift.drift_id}[/]  {drift.dataset} of {drift.tenant_id}, {drift.status}")
    for change in drift.changes:
        mark = "[red]blocks[/]" if change.blocking else "[dim]noted[/] "
        console.print(f"  {mark}  {change.kind.value:<14} ", str(change), soft_wrap=True)
    console.print(f"found      {drift.detected_at:%Y-%m-%d %H:%M:%S} UTC against extraction {drift.extraction_version} "
                  f"and raw {drift.raw_version}, evidence {drift.evidence_seq}")
    console.print(f"waiting    {drift.waiting} of {drift.batches} batches: {_days(drift)}")
    if drift.decided_at is not None:
        console.print(f"decided    {drift.verdict} by {drift.decided_by} at {drift.decided_at:%Y-%m-%d %H:%M:%S} UTC: "
                      f"{drift.reason}, evidence {drift.decision_seq}", soft_wrap=True)
    if refusal is not None:
        console.print(f"accept     would be refused: {refusal.message}; {refusal.hint}", soft_wrap=True)
    if drift.status == "open" and drift.of_delivery:
        console.print("accept     would let the delivery count as it is")
    if drift.status == "open":
        policy = opened.declarations.effective(drift.pipeline, drift.tenant_id).spec.on_drift
        held = drift_decisions.verdict_of(drift, policy) == "held"
        console.print("reject     would " + ("keep its batches out" if held else
                                             "put the drifted part into quarantine and let the rest go on"))
    if proposed:
        console.print("accept     would change the contracts:")
        _show_candidates(proposed)


@command(app)
def accept(
    drift_id: Number,
    reason: Reason,
    by: By = None,
    write: Annotated[bool, typer.Option("--write", help="Write the contracts into contracts/ itself.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the contracts it would make.")] = False,
    as_json: Json = False,
) -> None:
    """Declare what drifted: new contract versions, current at once; the next run takes up what waited."""
    from barecount_assets import drift_decisions, drift_proposals
    from resources.governance import drift_register

    opened = environment()
    if dry_run:
        with opened.database.connect(autocommit=True) as connection:
            proposed = drift_proposals.candidates(opened, drift_register.find(connection, drift_id))
        if as_json:
            output.print_json({"candidates": [_candidate_json(item) for item in proposed]})
        else:
            _show_candidates(proposed)
        return
    done = drift_decisions.accept(
        opened, drift_id, by=by or getpass.getuser(), reason=reason, now=dt.datetime.now(dt.UTC), write=write)
    if as_json:
        output.print_json({**done.drift.to_json(), "files": [str(path) for path in done.files]})
        return
    for candidate in done.candidates:
        if candidate.changed:
            typer.echo(f"{candidate.dataset} {candidate.layer}: version {candidate.version} is current "
                       f"(was {candidate.current_version})")
    if done.drift.of_delivery:
        typer.echo(f"{done.drift.dataset}: the delivery counts as it is")
    for path in done.files:
        typer.echo(f"{'written' if write else 'for review'}: {path}")
    _next(done.drift)


@command(app)
def reject(drift_id: Number, reason: Reason, by: By = None, as_json: Json = False) -> None:
    """Refuse what drifted: its part goes into quarantine, or its batches stay out, as the manifest's on_drift says."""
    from barecount_assets import drift_decisions

    drift = drift_decisions.reject(
        environment(), drift_id, by=by or getpass.getuser(), reason=reason, now=dt.datetime.now(dt.UTC))
    if as_json:
        output.print_json(drift.to_json())
        return
    part = "its drifted part goes into quarantine, the rest counts"
    typer.echo(f"drift {drift_id} of {drift.dataset}: {'its batches stay out' if drift.status == 'held' else part}")
    _next(drift)


def _next(drift: Drift) -> None:
    if drift.waiting:
        typer.echo(f"{drift.waiting} batches wait ({_days(drift)}): `barecount run {drift.pipeline} --tenant "
                   f"{drift.tenant_id}` takes them up, as does the sensor of `barecount dev`")


def _days(drift: Drift) -> str:
    days = [str(day or "undated") for day in drift.partitions]
    return ", ".join(days[:5]) + (f" and {len(days) - 5} more" if len(days) > 5 else "") or "none"


def _proposal(
    opened: StageEnvironment, drift: Drift
) -> tuple[tuple[Candidate, ...], BareCountError | None]:
    """What accepting an open drift would make, or why that would be refused."""
    from barecount_assets import drift_proposals
    from resources.runtime.errors import BareCountError

    try:
        return (drift_proposals.candidates(opened, drift) if drift.status == "open" else ()), None
    except BareCountError as refusal:
        return (), refusal


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {"layer": candidate.layer, "version": candidate.version, "current": candidate.current_version,
            "changed": candidate.changed, "words": list(candidate.words), "document": candidate.document}


def _show_candidates(proposed: tuple[Candidate, ...]) -> None:
    from barecount_assets.drift_proposals import as_yaml

    for candidate in proposed:
        if not candidate.changed:
            continue
        for sentence in candidate.words:
            typer.echo(f"  {candidate.layer}: {sentence}")
        lines = difflib.unified_diff(
            as_yaml(candidate.before).splitlines(), candidate.text.splitlines(),
            f"{candidate.layer} {candidate.current_version}", f"{candidate.layer} {candidate.version}",
            lineterm="", n=1)
        for line in lines:
            typer.echo(f"  {line}")
