"""`barecount actions`: the worker, deliveries and receipts, endpoints, dead letters.

Rules, templates and jobs have modules of their own.
"""

from __future__ import annotations

import datetime as dt
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment
    from resources.action.delivery.worker import Report, Sender, Worker
    from resources.security.egress import EgressPolicy

app = typer.Typer(no_args_is_help=True, help="What is done about a number: rules, jobs, deliveries, receipts.")
endpoints_app = typer.Typer(no_args_is_help=True, help="Where actions are delivered to.")
dlq_app = typer.Typer(no_args_is_help=True, help="Deliveries that were given up.")
app.add_typer(endpoints_app, name="endpoints")
app.add_typer(dlq_app, name="dlq")

OneTenant = Annotated[str, typer.Option("--tenant", help="Tenant id.")]
EndpointName = Annotated[str, typer.Argument(help="Name of the endpoint.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Most to show.")]
DlqEndpoint = Annotated[str | None, typer.Option("--endpoint", help="Only of this endpoint.")]
Since = Annotated[str | None, typer.Option("--since", help="Given up at or after, ISO 8601 (UTC without an offset).")]
Until = Annotated[str | None, typer.Option("--until", help="Given up before.")]
After = Annotated[int | None, typer.Option("--after", help="Only positions behind this watermark.")]


@command(endpoints_app)
def sync(as_json: Json = False) -> None:
    """Register every declared endpoint, and disable those that are declared no more."""
    changed = sync_declared(environment(), _now())
    if as_json:
        output.print_json(asdict(changed))
    else:
        for line in changed.lines():
            typer.echo(line)
        if not changed.lines():
            typer.echo("every endpoint is registered as declared")
    if changed.refused:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Synced:
    """What changed: endpoints as `tenant/name`, refused ones with why."""

    registered: tuple[str, ...]
    disabled: tuple[str, ...]
    refused: dict[str, str]

    def lines(self) -> list[str]:
        return [*(f"registered {name}" for name in self.registered), *(f"disabled {name}" for name in self.disabled),
                *(f"not registered {name}: {why}" for name, why in self.refused.items())]


def sync_declared(opened: StageEnvironment, now: dt.datetime) -> Synced:
    """Bring the registered endpoints in line with the declared ones; one that cannot be does not hold up others."""
    from resources.action.delivery import endpoints
    from resources.trust.secrets import Reference, Secrets

    provider = Secrets.of(opened.settings.data_dir, opened.database).provider
    registered, refused = [], {}
    for (tenant_id, name), declared in opened.declarations.endpoints.items():
        def version_of(reference: str, tenant_id: str = tenant_id) -> str:
            return provider.current_version(tenant_id, Reference.parse(reference).name)

        try:
            with opened.database.transaction() as connection:
                opened.register_tenant(connection, tenant_id)
                if endpoints.register(connection, declared, version_of, now=now):
                    registered.append(f"{tenant_id}/{name}")
        except BareCountError as error:
            if error.code not in (ErrorCode.SECRET_UNKNOWN, ErrorCode.SECRET_UNAVAILABLE):
                raise
            refused[f"{tenant_id}/{name}"] = f"{error.message} ({error.hint})"
    with opened.database.transaction() as connection:
        withdrawn = endpoints.withdraw(connection, opened.declarations.endpoints, now=now)
    return Synced(tuple(registered), tuple(withdrawn), refused)


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


@command(endpoints_app)
def add(
    name: EndpointName,
    tenant: OneTenant,
    adapter: Annotated[str, typer.Option(
        "--adapter", help="webhook, slack, email, jira, servicenow or apprise.")] = "webhook",
    set_: Annotated[list[str] | None, typer.Option(
        "--set", help="KEY=VALUE of the target, e.g. url=https://hooks.acme.example/in; again for a list.")] = None,
    description: Annotated[str, typer.Option("--description", help="Who or what is behind it.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the file it would write.")] = False,
    as_json: Json = False,
) -> None:
    """Declare an endpoint: writes its file, after checking it, and registers it.

    A webhook without `signing` gets a fresh signing secret.
    """
    from barecount_assets.cli import endpoint_files

    opened = environment()
    file = endpoint_files.plan(opened, tenant, name, adapter, set_ or [], description)
    refused = {}
    if not dry_run:
        endpoint_files.write(opened, tenant, file)
        refused = sync_declared(environment(), _now()).refused
    next_step = refused.get(f"{tenant}/{name}") or f"next: barecount actions endpoints verify {name} --tenant {tenant}"
    _said({"file": str(file.path), "written": not dry_run, "text": file.text, "refused": refused},
          f"{'would write' if dry_run else 'wrote'} {file.path}\n{file.text}" + ("" if dry_run else f"\n{next_step}"),
          as_json)


@command(endpoints_app)
def verify(
    name: EndpointName, tenant: OneTenant,
    code: Annotated[str | None, typer.Option("--code", help="The code that the receiver was sent.")] = None,
    as_json: Json = False,
) -> None:
    """Send a challenge, or give back the code of one; before that, nothing is delivered."""
    from resources.action.delivery import verification

    opened, now = environment(), _now()
    if code is not None:
        verification.confirm(opened.database, tenant, name, code, now=now)
        _said({"verified": True}, f"{tenant}/{name} is verified", as_json)
        return
    with _sender(opened) as sender:
        answered = verification.challenge(opened.database, sender, tenant, name, now=now)
    again = f"\nthen: barecount actions endpoints verify {name} --tenant {tenant} --code CODE"
    _said({"verified": answered.confirmed, "how": answered.how},
          f"{tenant}/{name}: {answered.how}" + ("; it is verified" if answered.confirmed else again), as_json)


@command(endpoints_app)
def rotate(name: EndpointName, tenant: OneTenant, as_json: Json = False) -> None:
    """A fresh signing secret for a webhook; for a day, deliveries are signed with the old one as well.

    Other secrets: `barecount secrets rotate`.
    """
    from resources.action.delivery import endpoints, verification
    from resources.action.delivery.adapters import webhook
    from resources.trust.secrets import Reference, Secrets

    opened, now = environment(), _now()
    with opened.database.connect(autocommit=True) as connection:
        endpoints.get(connection, tenant, name)
        uses = [use for use in endpoints.secret_uses(connection, tenant, name, now) if use.purpose == "signing"]
    if not uses:
        raise BareCountError(ErrorCode.USAGE, f"{tenant}/{name} signs nothing: only webhooks do",
                             hint="rotate another secret with `barecount secrets rotate NAME`")
    reference = Reference.parse(uses[0].reference)
    secrets = Secrets.of(opened.settings.data_dir, opened.database)
    before = secrets.read(tenant, str(reference), purpose="rotation", version=uses[0].version)
    fresh = webhook.new_secret(asymmetric=before.value.startswith("whsk_"))
    version, used_by = verification.rotate(
        opened.database, secrets, tenant, reference.name, {reference.field: fresh}, now=now)
    shown = {"endpoint": name, "reference": str(reference), "version": version, "used_by": used_by}
    text = f"{reference} has version {version}, used by {', '.join(used_by)}; both are valid for 24 hours"
    if fresh.startswith("whsk_"):
        shown["public_key"] = webhook.public_key(fresh)
        text += f"\npublic key for receivers: {shown['public_key']}"
    else:
        text += (f"\nfor the receiver: barecount secrets show {reference.name} --field {reference.field} "
                 f"--tenant {tenant}")
    _said(shown, text, as_json)


@command(app)
def limit(
    tenant: OneTenant,
    per_second: Annotated[float | None, typer.Option("--per-second", min=0.001, help="Without it, no limit.")] = None,
    burst: Annotated[float | None, typer.Option("--burst", min=1, help="How many at once.")] = None,
    as_json: Json = False,
) -> None:
    """Limit what a tenant sends over all its endpoints."""
    from resources.action.delivery import endpoints

    opened = environment()
    with opened.database.transaction() as connection:
        opened.register_tenant(connection, tenant)
        endpoints.limit_tenant(connection, tenant, per_second, burst, now=_now())
    _said({"tenant": tenant, "per_second": per_second, "burst": burst},
          f"{tenant}: " + ("no limit" if per_second is None else f"{per_second:g} a second"), as_json)


@command(app)
def deliver(
    watch: Annotated[bool, typer.Option("--watch/--once", help="Go on until interrupted, or end when nothing is due "
                                                               "(default).")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most attempts of --once.")] = 10_000,
    as_json: Json = False,
) -> None:
    """The worker: sends what is due and records receipts. Run as many as you like."""
    opened = environment()
    for line in sync_declared(opened, _now()).lines():
        typer.echo(line, err=True)
    with _worker(opened) as worker:
        if not watch:
            report = worker.run_once(_now(), limit)
        else:
            report = worker.run(_now, _stopped_by_signal(), None if as_json else lambda done: typer.echo(_done(done)))
    if as_json:
        output.print_json(asdict(report))
    else:
        typer.echo(_done(report))


@command(dlq_app, "list")
def dlq_list(
    tenant: Tenant = None, endpoint: DlqEndpoint = None, since: Since = None, until: Until = None, after: After = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were replayed.")] = False, limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Deliveries that were given up and wait, with why."""
    from resources.action.delivery import dead_letters

    selection = dead_letters.Selection(endpoint, (), _moment(since), _moment(until), after)
    with environment().database.connect(autocommit=True) as connection:
        rows = dead_letters.listed(connection, tenant, selection, waiting_only=not all_, limit=limit)
    if as_json:
        output.print_json([asdict(row) for row in rows])
        return
    output.console().print(output.table(
        None, ("position", "tenant", "endpoint", "delivery key", "attempts", "given up", "reason"),
        [(row.position, row.tenant_id, row.endpoint, row.delivery_key, row.attempt, _time(row.died_at), row.reason)
         for row in rows], right=(0, 4)))


@command(dlq_app)
def replay(
    tenant: OneTenant,
    delivery: Annotated[list[str] | None, typer.Argument(help="Numbers or keys of deliveries.")] = None,
    endpoint: DlqEndpoint = None, since: Since = None, until: Until = None, after: After = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything of the tenant that waits.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be replayed.")] = False,
    as_json: Json = False,
) -> None:
    """Put deliveries that were given up back into the queue, with the same delivery keys."""
    from getpass import getuser

    from resources.action.delivery import dead_letters

    selection = dead_letters.Selection(endpoint, tuple(delivery or ()), _moment(since), _moment(until), after)
    if selection.is_everything and not all_:
        raise typer.BadParameter("say which: deliveries, --endpoint, --since, --until, --after, or --all")
    with environment().database.transaction() as connection:
        if dry_run:
            letters = dead_letters.listed(connection, tenant, selection)
        else:
            letters = dead_letters.replay(connection, tenant, selection, requested_by=getuser(), now=_now())
    if as_json:
        output.print_json([asdict(letter) for letter in letters])
        return
    for letter in letters:
        typer.echo(f"{'would replay' if dry_run else 'replayed'} {letter.delivery_key} to {letter.endpoint}, "
                   f"position {letter.position}")
    typer.echo(f"{len(letters)} deliveries")


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


@contextmanager
def _worker(opened: StageEnvironment) -> Iterator[Worker]:
    from resources.action.delivery.worker import Worker
    from resources.trust.secrets import Secrets

    secrets = Secrets.of(opened.settings.data_dir, opened.database)
    with Worker(opened.database, secrets, policy_of(opened)) as worker:
        yield worker


@contextmanager
def _sender(opened: StageEnvironment) -> Iterator[Sender]:
    from resources.action.delivery.adapters.base import Network
    from resources.action.delivery.worker import Sender
    from resources.trust.secrets import Secrets

    network = Network.open()
    try:
        yield Sender(opened.database, Secrets.of(opened.settings.data_dir, opened.database), policy_of(opened), network)
    finally:
        network.close()


def policy_of(opened: StageEnvironment) -> Callable[[str], EgressPolicy]:
    """Egress policies of the declared tenants; a tenant that is declared no more gets the strictest."""
    from resources.security.egress import EgressPolicy

    policies = {name: tenant.egress_policy for name, tenant in opened.declarations.tenants.items()}
    return lambda tenant_id: policies.get(tenant_id, EgressPolicy())


def _stopped_by_signal() -> threading.Event:
    """Set by SIGINT or SIGTERM: what is under way is recorded before the command ends."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _done(report: Report) -> str:
    return (f"{report.attempts} attempts: {report.completed} delivered, {report.failed} to be tried again, "
            f"{report.dlq} given up")


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time, allowed: YYYY-MM-DD or YYYY-MM-DDTHH:MM") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _time(moment: dt.datetime | None) -> str:
    return "-" if moment is None else moment.astimezone(dt.UTC).isoformat(sep=" ", timespec="seconds")[:19]
