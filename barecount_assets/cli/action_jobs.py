"""`barecount actions`: what rules would do, and the jobs they made."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import actions, output
from barecount_assets.cli.verbs import Json, Tenant, command, environment, person

if TYPE_CHECKING:
    import psycopg

    from barecount_assets.stages.environment import StageEnvironment
    from resources.action.engine import Rulebook
    from resources.action.model import Decision, Signal

app = actions.app  # one group of verbs, in several modules

Number = Annotated[int, typer.Argument(help="Number of the job.")]
By = Annotated[str | None, typer.Option("--as", help="Who says so (default: the user of this machine).")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the record.")]


@command(app)
def rules(as_json: Json = False) -> None:
    """Declared rules: what they look at, when they fire, and where that goes."""
    found = list(environment().declarations.action_rules.values())
    if as_json:
        output.print_json([{**rule.model_dump(mode="json", by_alias=True), "version": rule.version} for rule in found])
        return
    output.console().print(output.table(
        None, ("rule", "version", "subject", "condition", "severity", "template", "route"),
        [(rule.name, rule.version, rule.spec.subject.kpi or rule.spec.subject.event, rule.spec.condition,
          rule.spec.severity, rule.spec.template, ", ".join(rule.spec.route)) for rule in found]))


@command(app)
def evaluate(
    rule: Annotated[str, typer.Argument(help="Name of the rule.")],
    event: Annotated[list[Path] | None, typer.Option("--event", help="A CloudEvents file.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Events on record since then, ISO 8601.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """What a rule would do about events, and why; nothing is stored or sent.

    It begins as if nothing had fired before; rules that inhibit this one are decided with it.
    """
    from resources.action import engine
    from resources.action.model import State

    if (event is None) == (since is None):
        raise typer.BadParameter("say what to look at: either --event FILE or --since TIME")
    opened = environment()
    book = _book_of(opened, rule)
    with opened.database.connect(autocommit=True) as connection:
        signals = _from_files(event) if event else _on_record(connection, book, str(since), tenant)
        signals = _with_history(opened, connection, book, signals)
    decision = engine.decide(book, signals, State(), _now(), explain=True)
    _show_decision(rule, signals, decision, as_json=as_json)


@command(app)
def jobs(
    tenant: Tenant = None,
    state: Annotated[str | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    rule: Annotated[str | None, typer.Option("--rule", help="Only jobs of this rule.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Newest to show.")] = 20,
    as_json: Json = False,
) -> None:
    """Jobs: what was decided on, and what became of it."""
    from resources.action import people
    from resources.action.model import JobState

    if state is not None and state not in list(JobState):
        raise typer.BadParameter(f"{state!r} is no state; there are {', '.join(JobState)}")
    with environment().database.connect(autocommit=True) as connection:
        found = people.listed(connection, tenant_id=tenant, state=state, rule=rule, limit=limit)
    if as_json:
        output.print_json([{k: v for k, v in asdict(job).items() if k not in ("draft", "message")} for job in found])
        return
    output.console().print(output.table(
        None, ("job", "tenant", "rule", "kind", "subject", "period", "state", "reason"),
        [(job.job_id, job.tenant_id, job.rule, job.kind, _about(job.subject, job.dimensions), job.period, job.state,
          job.reason) for job in found], right=(0,)))


@command(app)
def show(job: Number, tenant: Tenant = None, as_json: Json = False) -> None:
    """A job: what was observed and expected, what was sent, and the receipts."""
    from resources.action import people
    from resources.action.delivery import queue

    with environment().database.connect(autocommit=True) as connection:
        found = people.get(connection, job, tenant)
        receipts = queue.receipts(connection, tenant_id=found.tenant_id, origin=f"action_job:{job}")
    if as_json:
        output.print_json({**asdict(found), "receipts": [asdict(receipt) for receipt in receipts]})
        return
    console = output.console()
    newest = found.draft["occurrences"][-1]
    console.print(f"[bold]job {job}[/] of {found.tenant_id}: {found.rule} {found.rule_version}, {found.kind}")
    console.print(f"{_about(found.subject, found.dimensions)} {found.period}: [bold]{found.state}[/] {found.reason}")
    facts = {name: value for name, value in newest["facts"].items() if value is not None}
    console.print("  ".join(f"{name} {value}" for name, value in facts.items()))
    console.print(f"events {', '.join(o['event_id'][:12] for o in found.draft['occurrences'])}; "
                  f"evidence {found.evidence_seq}, of the event {newest['envelope'].get('evidence', '-')}\n")
    if found.message:
        console.print(found.message["title"], markup=False, style="bold")
        console.print(found.message["text"], markup=False)
    console.print(output.table(
        "\nReceipts", ("endpoint", "attempt", "at", "outcome", "status", "ms", "reason"),
        [(r.endpoint, r.attempt, r.attempted_at, r.outcome, r.status or "-", round(r.latency_ms or 0), r.reason)
         for r in receipts], right=(1, 4, 5)))


@command(app)
def approve(
    job: Number, reason: Reason, tenant: Tenant = None,
    refuse: Annotated[bool, typer.Option("--refuse", help="Do not let it be sent.")] = False,
    by: By = None, as_json: Json = False,
) -> None:
    """Let a job that waits for an approval be sent, or refuse it."""
    from resources.action import people

    with environment().database.transaction() as connection:
        people.approve(
            connection, job, by=person(by), approve=not refuse, reason=reason, now=_now(), tenant_id=tenant)
    _done(job, "refused" if refuse else "approved", as_json)


@command(app)
def retry(job: Number, tenant: Tenant = None, by: By = None, as_json: Json = False) -> None:
    """Send a failed or suppressed job after all, rendered again from the template that is published now."""
    from resources.action import people

    opened = environment()
    with opened.database.transaction() as connection:
        state = people.retry(
            connection, opened.declarations, job, by=person(by), now=_now(), tenant_id=tenant)
        reason = people.get(connection, job).reason
    _done(job, state if state != "failed" else f"failed again: {reason}", as_json)
    if state == "failed":
        raise typer.Exit(1)


@command(app)
def ack(job: Number, tenant: Tenant = None, by: By = None, as_json: Json = False) -> None:
    """Say that somebody takes care of it: it is not escalated any more."""
    from resources.action import people

    with environment().database.transaction() as connection:
        people.acknowledge(connection, job, by=person(by), now=_now(), tenant_id=tenant)
    _done(job, "acknowledged", as_json)


@command(app)
def silence(
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant id.")],
    reason: Reason,
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="How long.")] = 2.0,
    rule: Annotated[str | None, typer.Option("--rule", help="Only of this rule.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE, e.g. business_unit=north.")] = None,
    by: By = None, as_json: Json = False,
) -> None:
    """Suppress jobs of a tenant for a while: all, or those of a rule, or with these labels."""
    from resources.action import people

    opened = environment()
    opened.declarations.tenant(tenant)
    if rule is not None:
        opened.declarations.action_rule(rule)
    pairs = [text.partition("=") for text in label or ()]
    if any(not name or not separator for name, separator, _ in pairs):
        raise typer.BadParameter("--label takes NAME=VALUE")
    now = _now()
    with opened.database.transaction() as connection:
        opened.register_tenant(connection, tenant)
        number = people.silence(
            connection, tenant, rule=rule, labels={name: value for name, _, value in pairs}, starts_at=now,
            ends_at=now + dt.timedelta(hours=hours), reason=reason, by=person(by))
    if as_json:
        output.print_json({"silence": number})
    else:
        typer.echo(f"silence {number} of {tenant} for {hours:g} h; end it with `barecount actions unsilence {number}`")


@command(app)
def silences(tenant: Tenant = None, as_json: Json = False) -> None:
    """Silences that count now or will."""
    from resources.action import people

    with environment().database.connect(autocommit=True) as connection:
        found = people.silences(connection, _now(), tenant)
    if as_json:
        output.print_json([asdict(one) for one in found])
        return
    output.console().print(output.table(
        None, ("silence", "tenant", "rule", "labels", "until", "by", "reason"),
        [(s.silence_id, s.tenant_id, s.rule or "any", _about("", s.labels), s.ends_at, s.created_by, s.reason)
         for s in found], right=(0,)))


@command(app)
def unsilence(
    number: Annotated[int, typer.Argument(help="Number of the silence.")], tenant: Tenant = None, by: By = None,
    as_json: Json = False,
) -> None:
    """End a silence now."""
    from resources.action import people

    with environment().database.transaction() as connection:
        people.unsilence(connection, number, by=person(by), now=_now(), tenant_id=tenant)
    if as_json:
        output.print_json({"silence": number, "state": "ended"})
    else:
        typer.echo(f"silence {number} ended")


@command(app)
def work() -> None:
    """Decide, send and follow up as soon as there is something to do, until interrupted. Run as many as you like."""
    import signal
    import threading

    from barecount_assets.action_work import ActionWork
    from barecount_assets.cli.actions import sync_declared

    opened = environment()
    for line in sync_declared(opened, _now()).lines():
        typer.echo(line, err=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    ActionWork.of(opened).run(stop)


def _book_of(opened: StageEnvironment, name: str) -> Rulebook:
    """The rule, and those that inhibit it."""
    from resources.action import jobs as store
    from resources.action.engine import Rulebook

    declared = opened.declarations.action_rules
    opened.declarations.action_rule(name)
    wanted, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current not in wanted:
            wanted.add(current)
            waiting += [inhibition.rule for inhibition in declared[current].spec.inhibited_by]
    return Rulebook([declared[one] for one in sorted(wanted)], store.rulebook(opened.declarations).clocks)


def _from_files(files: Sequence[Path]) -> list[Signal]:
    from resources.action.model import Signal
    from resources.governance.actions import read_sample

    signals = []
    for position, file in enumerate(files, 1):
        try:
            envelope = read_sample(file)
            at = dt.datetime.fromisoformat(envelope["time"])
        except ValueError as error:
            raise typer.BadParameter(f"{file} {error}") from None
        signals.append(Signal(position, envelope["id"], envelope["tenant"], envelope["type"], envelope["subject"], at,
                              envelope))
    return signals


def _on_record(connection: psycopg.Connection, book: Rulebook, since: str, tenant: str | None) -> list[Signal]:
    from resources.action import history
    from resources.runtime import events

    try:
        start = dt.datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter(f"--since {since!r} is no time, allowed: 2026-03-01T06:00+00:00") from None
    start = start if start.tzinfo else start.replace(tzinfo=dt.UTC)
    mark, found = events.at_time(connection, start), []
    while True:
        page, mark = events.read(connection, mark, 5_000, tenant_id=tenant, types=book.event_types)
        found += [event for event in page if event.occurred_at >= start]
        if not page:
            return history.signals_of(found)


def _with_history(
    opened: StageEnvironment, connection: psycopg.Connection, book: Rulebook, signals: Sequence[Signal]
) -> list[Signal]:
    from resources.action import history

    return history.with_history(connection, book, opened.declarations.kpis, signals)


def _show_decision(rule: str, signals: Sequence[Signal], decision: Decision, *, as_json: bool) -> None:
    by_id = {signal.event_id: signal for signal in signals}
    lines: list[dict[str, Any]] = []
    for found in decision.explanations:
        signal = by_id.get(found.event_id)
        if found.rule == rule and signal is not None:
            lines.append({
                "event": found.event_id, "tenant": signal.tenant_id, "subject": signal.subject, "period": signal.period,
                "dimensions": dict(signal.dimensions), "value": signal.data.get("value"), "outcome": found.outcome,
                "reason": found.reason})
    made = [job for job in decision.jobs if job.rule == rule]
    if as_json:
        output.print_json({"rule": rule, "events": lines, "jobs": [job.to_json() for job in made]})
        return
    if not lines:
        typer.echo("no event is the subject of the rule")
        return
    output.console().print(output.table(
        None, ("tenant", "subject", "period", "value", "outcome", "why"),
        [(one["tenant"], _about(one["subject"], one["dimensions"]), one["period"], one["value"], one["outcome"],
          one["reason"]) for one in lines], right=(3,)))
    typer.echo(f"{len(made)} jobs would be made; nothing was stored or sent")


def _about(subject: str, labels: Any) -> str:
    return " ".join(filter(None, (subject, ", ".join(f"{name} {value}" for name, value in dict(labels).items()))))


def _done(job: int, state: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"job": job, "state": state}))
    else:
        typer.echo(f"job {job}: {state}")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
