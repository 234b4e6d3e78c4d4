"""`barecount approvals`: what waits for somebody's word, and giving it."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, Who, command, environment, person

if TYPE_CHECKING:
    from resources.governance.approvals import Approval

app = typer.Typer(no_args_is_help=True, help="Approvals: somebody else than who asked says yes or no.")

Number = Annotated[int, typer.Argument(metavar="ID", min=1, help="Number of the approval.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in words that an auditor understands.")]


@command(app, "list")
def listed(
    tenant: Tenant = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that do not wait any more.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 100,
    as_json: Json = False,
) -> None:
    """What waits for approval, oldest first."""
    from resources.governance import approvals

    with environment().database.connect(autocommit=True) as connection:
        found = approvals.listed(connection, dt.datetime.now(dt.UTC), tenant_id=tenant, everything=everything,
                                 limit=limit)
    if as_json:
        output.print_json([_to_json(item) for item in found])
    elif not found:
        typer.echo("nothing waits for approval")
    else:
        output.console().print(output.table(
            None, ("id", "tenant", "what", "why", "asked by", "state", "until (UTC)"),
            [(a.approval_id, a.tenant_id, f"{a.point.replace('_', ' ')} of {a.subject}", "; ".join(a.reasons),
              a.requested_by, a.state + (f" by {a.decided_by}" if a.decided_by else ""),
              f"{a.valid_until or a.expires_at:%Y-%m-%d %H:%M}") for a in found], right=(0,)))


@command(app)
def approve(number: Number, reason: Reason, who: Who = None, as_json: Json = False) -> None:
    """Let it happen. Whoever asked cannot."""
    _answer(number, reason, person(who), approve=True, as_json=as_json)


@command(app)
def reject(number: Number, reason: Reason, who: Who = None, as_json: Json = False) -> None:
    """Refuse it, until the request would have expired."""
    _answer(number, reason, person(who), approve=False, as_json=as_json)


def _answer(number: int, reason: str, by: str, *, approve: bool, as_json: bool) -> None:
    from resources.governance import approvals

    with environment().database.transaction() as connection:
        found = approvals.answer(connection, number, approve=approve, by=by, reason=reason, now=dt.datetime.now(dt.UTC))
    if as_json:
        output.print_json(_to_json(found))
        return
    typer.echo(f"approval {number} {found.state} by {by}: {found.point.replace('_', ' ')} of {found.subject} for "
               f"{found.tenant_id}")
    if approve:
        typer.echo(f"it counts until {found.valid_until:%Y-%m-%d %H:%M} UTC; "
                   + ("its run starts by itself where the Dagster daemon runs, or when it is asked for again"
                      if found.run_request else "give the command that needed it again"))


def _to_json(approval: Approval) -> dict[str, Any]:
    return {**asdict(approval), "run_request": approval.run_request.to_json() if approval.run_request else None}
