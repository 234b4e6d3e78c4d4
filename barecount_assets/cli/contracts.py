"""`barecount contracts`: what is registered, what would change, whom it would break."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, Who, command, person, settings
from resources.governance.modes import LAYERS, Layer, Mode
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    import psycopg

    from resources.governance.compatibility import Change
    from resources.governance.contracts import Contract
    from resources.governance.declarations import Declarations
    from resources.governance.registry import Plan, RegisteredVersion, Step

app = typer.Typer(no_args_is_help=True, help="Contracts: versions, compatibility, subscriptions.")

Dataset = Annotated[str, typer.Argument(help="namespace.name")]
AtLayer = Annotated[Layer, typer.Argument(help="extraction, raw, gold or activation.")]
_COLOURS = {"register": "green", "update": "green", "break": "red", "refuse": "red"}


@command(app, "list")
def listed(
    namespace: Annotated[str | None, typer.Argument(help="Only datasets whose name begins so.")] = None,
    as_json: Json = False,
) -> None:
    """Every contract: its current version, who owns it, who relies on it."""
    from resources.governance import registry, subscriptions
    from resources.runtime.database import fetch_dicts

    with _opened() as (declarations, connection):
        rows = fetch_dicts(connection, registry.LISTING)
        relying = subscriptions.subscriptions(connection, declarations)
    known = {(row["dataset"], row["layer"]) for row in rows}
    for (dataset, layer), contract in declarations.contracts.items():
        if (dataset, layer) not in known:
            rows.append({"dataset": dataset, "layer": layer, "version": None, "status": "not registered",
                         "owner": contract.owner, "steward": contract.steward, "versions": 0, "since": None})
    rows = sorted((row for row in rows if row["dataset"].startswith(namespace or "")),
                  key=lambda row: (row["dataset"], row["layer"]))
    for row in rows:
        declared = declarations.contracts.get((row["dataset"], row["layer"]))
        row["declared"] = declared.version if declared else None
        row["subscribers"] = sum((s.dataset, s.layer) == (row["dataset"], row["layer"]) for s in relying)
    if as_json:
        output.print_json(rows)
        return
    output.console().print(output.table(
        None, ("dataset", "layer", "current", "declared", "status", "versions", "subscribers", "owner"),
        [(row["dataset"], row["layer"], row["version"] or "-", row["declared"] or "-", row["status"], row["versions"],
          row["subscribers"], row["owner"]) for row in rows], right=(5, 6)))


@command(app)
def show(
    dataset: Dataset, layer: AtLayer,
    version: Annotated[str | None, typer.Option("--version", help="Default: the current one.")] = None,
    as_json: Json = False,
) -> None:
    """One version of a contract: its fields and rules, and who relies on it."""
    from resources.governance import subscriptions

    with _opened() as (declarations, connection):
        found = _version(connection, declarations, dataset, layer, version)
        relying = subscriptions.subscriptions(connection, declarations, dataset, layer)
    contract = found.contract
    if as_json:
        output.print_json({**_version_facts(found), "document": contract.document,
                           "subscribers": [asdict(subscription) for subscription in relying]})
        return
    console = output.console()
    console.print(f"[bold]{dataset}[/] {layer} {found.version}{' (current)' if found.is_current else ''}  "
                  f"{contract.title}: {contract.description}", soft_wrap=True)
    console.print(f"owner {contract.owner}, steward {contract.steward or '-'}, status {contract.status}, "
                  f"mode {contract.mode}, readable {contract.deprecation_days} days after it is replaced")
    console.print(f"registered {_at(found.registered_at)} by {found.registered_by} ({found.cause}): {found.reason}",
                  soft_wrap=True)
    console.print(output.table(
        None, ("field", "type", "", "classification", "rules", "description"),
        [(("* " if column.primary_key else "") + column.name, column.physical_type,
          "required" if column.required else "", column.classification, _rules_of(column), column.description)
         for column in contract.columns]))
    for rule in contract.rules:
        console.print(f"rule: {rule.description or rule.metric}", soft_wrap=True)
    for subscription in relying:
        since = " (named in the manifest)" if subscription.declared else f" from {subscription.min_version}"
        console.print(f"relied on by {subscription.consumer} of {subscription.tenant_id}: {subscription.mode}{since}")


@command(app)
def history(dataset: Dataset, layer: AtLayer, as_json: Json = False) -> None:
    """All versions of a contract: who registered each, why, and until when data of it stays readable."""
    from resources.governance import registry
    from resources.runtime.database import fetch_dicts

    with _opened() as (declarations, connection):
        versions = _history(connection, declarations, dataset, layer)
        published = fetch_dicts(connection, registry.PUBLISHED_UNDER, (dataset,)) if layer == "activation" else []
    under = {version.version: [row for row in published if row["contract_version"] == version.version]
             for version in versions}
    if as_json:
        output.print_json([{**_version_facts(version), "publications": under[version.version]}
                           for version in versions])
        return
    output.console().print(output.table(
        None, ("version", "compatible", "registered", "by", "cause", "readable until", "published as", "reason"),
        [(version.version + (" *" if version.is_current else ""), version.compatibility or "first",
          _at(version.registered_at), version.registered_by, version.cause,
          _at(version.readable_until) if version.readable_until else "current",
          ", ".join(f"{row['tenant_id']} v{row['first']}-{row['last']}" for row in under[version.version]) or "-",
          version.reason) for version in versions]))


@command(app)
def diff(
    dataset: Dataset, layer: AtLayer,
    old: Annotated[str | None, typer.Option("--from", help="Default: the one before --to.")] = None,
    new: Annotated[str | None, typer.Option("--to", help="Default: the declared one.")] = None,
    as_json: Json = False,
) -> None:
    """What differs between two versions, and whom each difference breaks."""
    from resources.governance.compatibility import compare

    with _opened() as (declarations, connection):
        contracts = [version.contract for version in _history(connection, declarations, dataset, layer)]
        if new:
            after = _version(connection, declarations, dataset, layer, new).contract
            contracts = contracts[: contracts.index(after)]
        else:
            after = declarations.contract(dataset, layer)
            contracts = [contract for contract in contracts if contract.hash != after.hash]
        if old:
            before = _version(connection, declarations, dataset, layer, old).contract
        else:
            before = contracts[-1] if contracts else after
    comparison = compare(before, after)
    if as_json:
        output.print_json({"from": before.version, "to": after.version, "compatibility": comparison.level.value,
                           "changes": [_change_facts(change) for change in comparison.changes]})
        return
    output.console().print(f"[bold]{dataset}[/] {layer} {before.version} -> {after.version}: "
                           + (f"compatibility {comparison.level}" if comparison.changes else "no difference"))
    _print_changes(comparison.changes)


@command(app)
def check(
    candidate: Annotated[Path | None, typer.Argument(
        help="A contract that may lie anywhere; left out, with --impact: every declared raw contract.",
        exists=True, dir_okay=False)] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="Default: that of the current version.")] = None,
    impact: Annotated[bool, typer.Option(
        "--impact", help="How many landed records its rules would move into quarantine or out of it.")] = False,
    as_json: Json = False,
) -> None:
    """Would this contract do? Its differences from the current version, and the subscribers it would break."""
    from resources.governance import registry

    if impact:
        _print_impact(None if candidate is None else _read_candidate(candidate), as_json=as_json)
        return
    if candidate is None:
        raise typer.BadParameter("name the file of a contract, or ask for --impact")
    with _opened() as (declarations, connection):
        step = registry.candidate_step(connection, declarations, _read_candidate(candidate), mode)
    if as_json:
        output.print_json(registry.step_facts(step))
    else:
        _print_step(step)
        if step.action is registry.Action.REGISTER:
            typer.echo("the first version of this contract: nothing to be compatible with")
    if step.action in (registry.Action.BREAK, registry.Action.REFUSE):
        raise typer.Exit(1)


def _print_impact(candidate: Contract | None, *, as_json: bool) -> None:
    from barecount_assets.cli.verbs import environment
    from barecount_assets.stages.ingestion import rejudging, sources

    if candidate is not None and candidate.layer != "raw":
        raise BareCountError(
            ErrorCode.USAGE, f"found a contract of layer {candidate.layer}, allowed is raw: its rules decide what is "
            "accepted", hint="give the raw contract of the dataset")
    opened = environment()
    found = []
    with opened.database.connect(autocommit=True) as connection:
        for name, manifest in sorted(opened.declarations.pipelines.items()):
            for source in manifest.spec.sources:
                if candidate is not None and source.dataset != candidate.dataset:
                    continue
                raw = candidate or opened.declarations.contract(source.dataset, "raw")
                extraction = opened.declarations.contract(source.dataset, "extraction")
                required = sources.required_of_states(extraction, source)
                for tenant in manifest.spec.tenants:
                    schema = sources.extractor_schema(
                        extraction, opened.declarations.tenant(tenant).spec.timezone, source)
                    judged = rejudging.impact(connection, opened.raw_store, source, schema, tenant, raw, required)
                    found.append({"pipeline": name, "tenant": tenant, **asdict(judged)})
    if as_json:
        output.print_json(found)
        return
    output.console().print(output.table(
        "A run would judge again what has landed; nothing has changed yet",
        ("dataset", "version", "tenant", "batches", "to quarantine", "to accepted", "expired, not judged"),
        [(row["dataset"], row["version"], row["tenant"], row["batches"], row["to_quarantine"], row["to_accepted"],
          row["expired"]) for row in found], right=(3, 4, 5, 6)))


@command(app)
def subscribe(
    dataset: Dataset, layer: AtLayer,
    consumer: Annotated[str, typer.Option("--consumer", help="Team or service that relies on the data.")],
    mode: Annotated[Mode, typer.Option("--compatibility", help="What every new version must be.")] = Mode.FORWARD,
    min_version: Annotated[str | None, typer.Option(
        "--min-version", help="The oldest version the consumer reads by (default: the current one).")] = None,
    tenant: Tenant = None, who: Who = None, as_json: Json = False,
) -> None:
    """Rely on a contract: whoever changes it is told whom the change would break."""
    from resources.governance import subscriptions

    with _opened() as (declarations, connection):
        current = _version(connection, declarations, dataset, layer, None)
        tenants = [tenant] if tenant else subscriptions.tenants_of(declarations, dataset)
        wanted = [subscriptions.Subscription(name, dataset, layer, consumer, mode,
                                             _number(min_version or current.version)) for name in tenants]
        now = dt.datetime.now(dt.UTC)
        done = [subscriptions.subscribe(connection, declarations, one, who=person(who), now=now) for one in wanted]
    if as_json:
        output.print_json([{**asdict(one), "changed": new} for one, new in zip(wanted, done, strict=True)])
        return
    for one, new in zip(wanted, done, strict=True):
        typer.echo(f"{consumer} of {one.tenant_id} relies on {dataset} {layer}: {mode} from {one.min_version}"
                   + ("" if new else " (on record already)"))


@command(app)
def unsubscribe(
    dataset: Dataset, layer: AtLayer, consumer: Annotated[str, typer.Option("--consumer")],
    tenant: Tenant = None, who: Who = None, as_json: Json = False,
) -> None:
    """End a subscription."""
    from resources.governance import subscriptions

    with _opened() as (declarations, connection):
        known = [s for s in subscriptions.subscriptions(connection, declarations, dataset, layer, tenant)
                 if s.consumer == consumer and not s.declared]
        now = dt.datetime.now(dt.UTC)
        for subscription in known:
            subscriptions.unsubscribe(connection, subscription, who=person(who), now=now)
    if not known:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN, f"{consumer} has no subscription to {dataset} {layer}",
            hint="`barecount contracts show` lists who relies on a contract; consumers that a manifest names are "
            "removed there",
        )
    if as_json:
        output.print_json([asdict(subscription) for subscription in known])
        return
    for subscription in known:
        typer.echo(f"{consumer} of {subscription.tenant_id} no longer relies on {dataset} {layer}")


@command(app)
def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; needed for what breaks somebody.")] = "",
    who: Who = None,
    as_json: Json = False,
) -> None:
    """Register what changed in contracts/: prints the plan, then applies it."""
    from resources.governance import registry

    with _opened(overlaid=False) as (declarations, connection):
        plan = registry.plan(connection, declarations)
        if not as_json:
            _print_plan(plan)
        if not dry_run:
            plan = registry.sync(connection, declarations, who=person(who), reason=reason, now=dt.datetime.now(dt.UTC))
    if as_json:
        output.print_json({"applied": not dry_run, "steps": [registry.step_facts(step) for step in plan.steps]})
    elif not dry_run:
        typer.echo(f"registered {len(plan.pending)} versions" if plan.pending else "nothing to register")
    refused = plan.of(registry.Action.REFUSE)
    if dry_run and (refused or plan.of(registry.Action.BREAK) and not reason.strip()):
        raise typer.Exit(1)


@contextmanager
def _opened(*, overlaid: bool = True) -> Iterator[tuple[Declarations, psycopg.Connection]]:
    """What is declared (with the newer versions of the registry, unless asked otherwise) and a connection."""
    from resources.governance import declarations, registry
    from resources.runtime.database import Database

    found = settings()
    declared = declarations.load(found.project_dir)
    with Database.open(found).connect(autocommit=True) as connection:
        yield registry.overlay(connection, declared) if overlaid else declared, connection


def _history(
    connection: psycopg.Connection, declarations: Declarations, dataset: str, layer: Layer
) -> list[RegisteredVersion]:
    from resources.governance import registry

    versions = registry.history(connection, dataset, layer)
    if not versions:
        declarations.contract(dataset, layer)
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN, f"{dataset} {layer} is declared, but not registered yet",
            hint="register it with `barecount contracts sync`, or run its pipeline",
        )
    return versions


def _version(
    connection: psycopg.Connection, declarations: Declarations, dataset: str, layer: Layer, number: str | None
) -> RegisteredVersion:
    from resources.governance import registry

    versions = _history(connection, declarations, dataset, layer)
    if number is not None:
        return registry.version(connection, dataset, layer, number)
    return next(version for version in versions if version.is_current)


def _read_candidate(path: Path) -> Contract:
    """The contract in a file; the file itself says of which dataset and layer.

    Raises:
        BareCountError: declaration.invalid.
    """
    from resources.governance.contracts import read_contract
    from resources.runtime.yaml_source import read_yaml

    source, findings = read_yaml(path, str(path))
    contract = None
    if source is not None:
        dataset, said = (_custom_property(source.document, name) for name in ("dataset", "layer"))
        layer = next((known for known in LAYERS if known == said), None)
        if not isinstance(dataset, str) or layer is None:
            place, allowed = ("customProperties",), f"dataset: namespace.name, and layer: one of {', '.join(LAYERS)}"
            findings = [source.finding(place, "does not say whose contract it is", allowed=allowed)]
        else:
            contract, findings = read_contract(source, dataset, layer)
    if contract is None:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID, "\n".join([f"{path} is no contract", *map(str, findings)]),
            hint="correct the file", details={"findings": [asdict(finding) for finding in findings]},
        )
    return contract


def _custom_property(document: Any, name: str) -> Any:
    """The value of a custom property in a document that may be anything; None where there is none."""
    listing = document.get("customProperties") if isinstance(document, dict) else None
    items = [item for item in listing if isinstance(item, dict)] if isinstance(listing, list) else []
    return next((item.get("value") for item in items if item.get("property") == name), None)


def _number(text: str) -> str:
    from resources.governance.compatibility import version_key

    try:
        version_key(text)
    except ValueError:
        raise BareCountError(ErrorCode.USAGE, f"{text!r} is not a version", hint="give it as 1.0.0") from None
    return text


def _print_plan(plan: Plan) -> None:
    from resources.governance.registry import Action

    for step in plan.of(Action.REGISTER, Action.UPDATE, Action.BREAK, Action.SUPERSEDED, Action.REFUSE):
        _print_step(step)
    kept = len(plan.of(Action.KEEP))
    typer.echo(f"plan: {len(plan.of(Action.REGISTER))} new, {len(plan.of(Action.UPDATE))} compatible, "
               f"{len(plan.of(Action.BREAK))} breaking, {len(plan.of(Action.REFUSE))} refused, {kept} unchanged")


def _print_step(step: Step) -> None:
    from rich.markup import escape

    console = output.console()
    colour = _COLOURS.get(step.action, "dim")
    what = f"{step.current} -> {step.version}" if step.current else step.version
    level = f", compatibility {step.comparison.level}" if step.comparison and step.changes else ""
    mode = f" (mode {step.verdict.mode})" if step.verdict else ""
    console.print(f"[{colour}]{step.action}[/] {step.dataset} {step.layer} {what}{level}{mode}", soft_wrap=True)
    if step.problem:
        console.print(f"  {escape(step.problem)}; {step.suggested} would do", soft_wrap=True)
    if step.action == "superseded":
        console.print(f"  the registry's {step.current} is newer than the file; merge it into {step.file}",
                      soft_wrap=True)
    _print_changes(step.changes)
    for subscriber in step.broken:
        console.print(f"  would break {escape(subscriber.consumer)} of {subscriber.tenant_id} "
                      f"({subscriber.mode} from {subscriber.min_version})", soft_wrap=True)


def _print_changes(changes: Sequence[Change]) -> None:
    from rich.markup import escape

    for change in changes:
        mark = f"  [red]breaks {change.breaks}[/]: " if change.breaks else "  "
        output.console().print(mark + escape(change.message), soft_wrap=True)


def _change_facts(change: Change) -> dict[str, Any]:
    return {**asdict(change), "breaks": change.breaks}


def _version_facts(version: RegisteredVersion) -> dict[str, Any]:
    facts = {key: value for key, value in vars(version).items() if key != "contract"}
    return {**facts, "readable_until": version.readable_until}


def _rules_of(column: Any) -> str:
    values = f"one of {', '.join(map(str, column.valid_values))}" if column.valid_values is not None else ""
    options = (f"{name} {value}" for name, value in column.options.items())
    return ", ".join(filter(None, ("unique" if column.unique else "", values, *options)))


def _at(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M")
