"""`barecount events`: the outbox, and relays that send it elsewhere."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment
    from resources.action.relays import Target

app = typer.Typer(no_args_is_help=True, help="What happened: CloudEvents in the outbox, and relays that send them.")

Types = Annotated[list[str] | None, typer.Option("--type", help="Only this type, e.g. kpi.changed; repeatable.")]
To = Annotated[str, typer.Option("--to", help="none, https://..., sns:ARN, sqs:QUEUE_URL or eventbridge:BUS.")]


@command(app, "list")
def listed(
    tenant: Tenant = None, type_: Types = None,
    since: Annotated[str | None, typer.Option("--since", help="ISO 8601.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Newest to show.")] = 20,
    as_json: Json = False,
) -> None:
    """The newest events."""
    from resources.runtime.database import fetch_dicts

    types = [f"barecount.{name}" for name in type_] if type_ else None
    with environment().database.connect(autocommit=True) as connection:
        rows = fetch_dicts(connection, _LIST, (tenant, types, since and _moment(since), limit))
    if as_json:
        output.print_json([{"position": row["position"], **row["envelope"]} for row in rows])
        return
    output.console().print(output.table(
        None, ("position", "at", "tenant", "type", "subject", "id"),
        [(r["position"], f"{r['occurred_at']:%Y-%m-%d %H:%M:%S}", r["tenant_id"], r["type"].removeprefix("barecount."),
          r["subject"], r["event_id"][:12]) for r in rows], right=(0,)))


@command(app)
def relay(
    to: To, name: Annotated[str | None, typer.Option("--name", help="Its memory; by default, the target.")] = None,
    tenant: Tenant = None, type_: Types = None,
    watch: Annotated[bool, typer.Option("--watch/--once", help="Go on until interrupted.")] = False,
    as_json: Json = False,
) -> None:
    """Send what was not sent yet, at least once, under stable ids."""
    import signal
    import threading

    from resources.action import relays
    from resources.runtime.errors import BareCountError

    opened = environment()
    target, stop, sent = _target(opened, to), threading.Event(), 0
    for number in (signal.SIGINT, signal.SIGTERM) if watch else ():
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        try:
            sent += relays.relay(opened.database, target, name or to, tenant_id=tenant, types=type_)
        except BareCountError as error:
            if not watch or not error.retryable:
                raise
            typer.echo(str(error), err=True)
        if not watch:
            break
        stop.wait(1.0)
    _said(sent, target, as_json)


@command(app)
def replay(
    to: To,
    since: Annotated[str | None, typer.Option("--since", help="From this time on, ISO 8601.")] = None,
    position: Annotated[int | None, typer.Option("--position", min=1, help="From this position on.")] = None,
    tenant: Tenant = None, type_: Types = None, as_json: Json = False,
) -> None:
    """Send events again from a time or a position on, under the same ids; no relay's memory moves."""
    from resources.action import relays
    from resources.runtime import events

    if (since is None) == (position is None):
        raise typer.BadParameter("say from where: either --since TIME or --position NUMBER")
    start: Callable[[Any], Any]
    wanted: Callable[[Any], bool]
    if since is not None:
        moment = _moment(since)
        start, wanted = lambda connection: events.at_time(connection, moment), lambda event: event.occurred_at >= moment
    else:
        number = int(position or 0)
        start, wanted = (lambda connection: events.at_position(connection, number),
                         lambda event: event.position >= number)
    opened = environment()
    target = _target(opened, to)
    _said(relays.replay(opened.database, target, start, wanted, tenant_id=tenant, types=type_), target, as_json)


def _target(opened: StageEnvironment, text: str) -> Target:
    from resources.action import relays
    from resources.security.egress import EgressPolicy

    policies = {name: tenant.egress_policy for name, tenant in opened.declarations.tenants.items()}
    return relays.target_of(text, lambda tenant_id: policies.get(tenant_id, EgressPolicy()))


def _said(sent: int, target: Target, as_json: bool) -> None:
    if as_json:
        output.print_json({"sent": sent, "to": target.name})
    else:
        typer.echo(f"{sent} events sent to {target.name}")


def _moment(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time, allowed: 2026-03-01 or 2026-03-01T06:00+00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


_LIST = """
select position, tenant_id, event_id, type, subject, occurred_at, envelope
from platform.event
where ($1::text is null or tenant_id = $1) and ($2::text[] is null or type = any($2))
    and ($3::timestamptz is null or occurred_at >= $3)
order by position desc limit $4::bigint
"""
