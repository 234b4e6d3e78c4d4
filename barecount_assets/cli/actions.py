"""`barecount actions`: endpoints, deliveries and receipts. Rules, templates and jobs have modules of their own."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment

app = typer.Typer(no_args_is_help=True, help="What is done about a number: rules, jobs, deliveries, receipts.")
endpoints_app = typer.Typer(no_args_is_help=True, help="Where actions are delivered to.")
app.add_typer(endpoints_app, name="endpoints")

OneTenant = Annotated[str, typer.Option("--tenant", help="Tenant id.")]
EndpointName = Annotated[str, typer.Argument(help="Name of the endpoint.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Newest to show.")]


@command(endpoints_app)
def sync(as_json: Json = False) -> None:
    """Register every declared endpoint, and disable those that are declared no more."""
    changed = sync_declared(environment(), _now())
    if as_json:
        output.print_json(changed)
        return
    for what, names in changed.items():
        for name in names:
            typer.echo(f"{what} {name}")
    if not any(changed.values()):
        typer.echo("every endpoint is registered as declared")


def sync_declared(opened: StageEnvironment, now: dt.datetime) -> dict[str, list[str]]:
    """Bring the registered endpoints in line with the declared ones; says what changed, by what was done."""
    from resources.action.delivery import endpoints
    from resources.trust.secrets import Reference, Secrets

    provider = Secrets.of(opened.settings.data_dir, opened.database).provider
    registered = []
    for (tenant_id, name), declared in opened.declarations.endpoints.items():
        versions = {purpose: provider.get(tenant_id, Reference.parse(reference).name).version
                    for purpose, reference in declared.secrets.items()}
        with opened.database.transaction() as connection:
            opened.register_tenant(connection, tenant_id)
            if endpoints.register(connection, declared, versions, now=now):
                registered.append(f"{tenant_id}/{name}")
    with opened.database.transaction() as connection:
        withdrawn = endpoints.withdraw(connection, opened.declarations.endpoints, now=now)
    return {"registered": registered, "disabled": withdrawn}


@command(endpoints_app, "list")
def endpoints_list(tenant: Tenant = None, as_json: Json = False) -> None:
    """Registered endpoints, and how they do."""
    from resources.action.delivery import endpoints

    with environment().database.connect(autocommit=True) as connection:
        rows = endpoints.listed(connection, tenant)
    if as_json:
        output.print_json([asdict(row) for row in rows])
        return
    output.console().print(output.table(
        None, ("tenant", "endpoint", "adapter", "state", "health", "failures in a row", "verified"),
        [(row.tenant_id, row.name, row.adapter, row.state, row.health, row.consecutive_failures,
          _time(row.verified_at)) for row in rows], right=(5,)))


@command(endpoints_app)
def show(name: EndpointName, tenant: OneTenant, as_json: Json = False) -> None:
    """One endpoint: its declaration, state, health and the versions of its secrets."""
    from resources.action.delivery import endpoints

    with environment().database.connect(autocommit=True) as connection:
        row = endpoints.get(connection, tenant, name)
        uses = endpoints.secret_uses(connection, tenant, name, _now())
    if as_json:
        output.print_json({**asdict(row), "secrets": [asdict(use) for use in uses]})
        return
    reason = f" ({row.state_reason})" if row.state_reason else ""
    typer.echo(f"{tenant}/{name}: {row.adapter}, {row.state}{reason}, {row.health}")
    typer.echo(f"verified   {_time(row.verified_at)}")
    typer.echo(f"paused     {_time(row.paused_until)}")
    typer.echo(f"rate       {row.rate_per_second:g} a second, {row.burst:g} at once"
               + (", in order" if row.is_fifo else ""))
    for key, value in row.spec["target"].items():
        if value not in (None, {}, []):
            typer.echo(f"{key:10} {value}")
    for use in uses:
        until = f", until {_time(use.valid_until)}" if use.valid_until else ""
        typer.echo(f"secret     {use.purpose}: {use.reference} version {use.version}{until}")


@command(endpoints_app)
def disable(
    name: EndpointName, tenant: OneTenant,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")], as_json: Json = False,
) -> None:
    """Send nothing more to an endpoint; what is in the queue waits."""
    from resources.action.delivery import endpoints

    with environment().database.transaction() as connection:
        endpoints.disable(connection, tenant, name, reason, now=_now())
    _said({"tenant": tenant, "endpoint": name, "state": "disabled"}, f"{tenant}/{name} is disabled", as_json)


@command(endpoints_app)
def enable(name: EndpointName, tenant: OneTenant, as_json: Json = False) -> None:
    """Send to an endpoint again, and forget its earlier failures."""
    from resources.action.delivery import endpoints

    with environment().database.transaction() as connection:
        state = endpoints.enable(connection, tenant, name, now=_now())
    _said({"tenant": tenant, "endpoint": name, "state": state}, f"{tenant}/{name} is {state}", as_json)


@command(app)
def deliveries(
    tenant: Tenant = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint")] = None,
    state: Annotated[str | None, typer.Option("--state", help="queued, running, completed, failed or dlq.")] = None,
    origin: Annotated[str | None, typer.Option("--origin", help="What asked for it, e.g. a job.")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """The newest deliveries and where they are."""
    from resources.action.delivery import queue

    with environment().database.connect(autocommit=True) as connection:
        rows = queue.deliveries(connection, tenant_id=tenant, endpoint=endpoint, state=state, origin=origin,
                                limit=limit)
    if as_json:
        output.print_json([asdict(row) for row in rows])
        return
    output.console().print(output.table(
        None, ("id", "tenant", "endpoint", "delivery key", "state", "attempts", "next attempt", "known there as"),
        [(row.delivery_id, row.tenant_id, row.endpoint, row.delivery_key, row.state, row.attempts,
          _time(row.next_attempt_at) if row.state in ("queued", "failed") else "", row.external_id or "")
         for row in rows], right=(0, 5)))


@command(app)
def receipts(
    delivery: Annotated[str | None, typer.Argument(help="Number or key of a delivery.")] = None,
    tenant: Tenant = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint")] = None,
    origin: Annotated[str | None, typer.Option("--origin", help="What asked for it, e.g. a job.")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Receipts, the newest first: one for every attempt."""
    from resources.action.delivery import queue

    with environment().database.connect(autocommit=True) as connection:
        rows = queue.receipts(connection, tenant_id=tenant, delivery=delivery, endpoint=endpoint, origin=origin,
                              limit=limit)
    if as_json:
        output.print_json([asdict(row) for row in rows])
        return
    output.console().print(output.table(
        None, ("at", "endpoint", "delivery key", "attempt", "outcome", "reason", "ms", "evidence"),
        [(_time(row.attempted_at), f"{row.tenant_id}/{row.endpoint}", row.delivery_key, row.attempt, row.outcome,
          row.reason, "" if row.latency_ms is None else round(row.latency_ms), row.evidence_seq) for row in rows],
        right=(3, 6, 7)))


def _said(document: Any, text: str, as_json: bool) -> None:
    if as_json:
        output.print_json(document)
    else:
        typer.echo(text)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _time(moment: dt.datetime | None) -> str:
    return "-" if moment is None else moment.astimezone(dt.UTC).isoformat(sep=" ", timespec="seconds")[:19]
