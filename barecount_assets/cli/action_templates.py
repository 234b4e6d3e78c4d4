"""`barecount actions templates`: what may be sent, tried on sample events, approved and signed."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment, person

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment
    from resources.action.templates import DryRun
    from resources.trust.signing import KeyStore

app = typer.Typer(no_args_is_help=True, help="What may be sent: tried on sample events, approved, signed.")

Name = Annotated[str, typer.Argument(help="Name of the template.")]
OneTenant = Annotated[str, typer.Option("--tenant", help="Tenant id.")]
By = Annotated[str | None, typer.Option("--as", help="Who says so (default: the user of this machine).")]


@command(app, "list")
def listed(tenant: Tenant = None, as_json: Json = False) -> None:
    """Declared templates, and the state of their content for each tenant."""
    from resources.action import templates

    opened = environment()
    with opened.database.connect(autocommit=True) as connection:
        known = templates.versions(connection, tenant)
    tenants = [tenant] if tenant else list(opened.declarations.tenants)
    rows = []
    for template in opened.declarations.action_templates.values():
        for owner in tenants:
            own = [version for version in known if (version.tenant_id, version.name) == (owner, template.name)]
            published = next((version.version for version in own if version.state == "published"), None)
            rows.append({
                "template": template.name, "tenant": owner, "kind": template.spec.kind, "digest": template.hash,
                "declared": template.metadata.version, "state": templates.state_of(template, own),
                "published": published})
    if as_json:
        output.print_json(rows)
        return
    output.console().print(output.table(
        None, ("template", "tenant", "kind", "declared", "state", "published"),
        [(r["template"], r["tenant"], r["kind"], r["declared"], r["state"], r["published"] or "-") for r in rows]))


@command(app)
def show(name: Name, tenant: Tenant = None, as_json: Json = False) -> None:
    """A template: its texts, its parameters, and its versions on record."""
    from resources.action import templates

    opened = environment()
    template = opened.declarations.action_template(name)
    with opened.database.connect(autocommit=True) as connection:
        known = templates.versions(connection, tenant, name)
    history = [{"tenant": v.tenant_id, "version": v.version, "state": v.state, "digest": v.digest,
                "submitted_by": v.submitted_by, "published_at": v.published_at} for v in known]
    if as_json:
        output.print_json({**template.model_dump(mode="json", by_alias=True), "digest": template.hash,
                           "versions": history})
        return
    console = output.console()
    console.print(f"[bold]{name}[/] {template.metadata.version}  {template.spec.kind}, {template.hash[:12]}")
    console.print(template.metadata.description + "\n")
    for title, body in (("body", template.spec.body), ("recovery", template.spec.recovery)):
        if body is not None:
            console.print(f"[bold]{title}[/]\n{json.dumps(body, indent=2, ensure_ascii=False)}", markup=True)
    console.print(output.table("\nVersions", ("tenant", "version", "state", "digest", "by", "published"), [
        (v["tenant"], v["version"], v["state"], v["digest"][:12], v["submitted_by"], v["published_at"] or "-")
        for v in history]))


@command(app, "dry-run")
def dry_run(
    name: Name,
    event: Annotated[
        list[Path] | None, typer.Option("--event", help="A CloudEvents file instead of the sample events.")
    ] = None,
    parameters: Annotated[str | None, typer.Option("--parameters", help="JSON, as a rule would give them.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Fill a template in with its sample events, and send nothing; a passed one is put on record for a tenant."""
    from resources.action import templates
    from resources.governance.actions import read_sample

    opened = environment()
    template = opened.declarations.action_template(name)
    given = _parameters(parameters) if parameters is not None else templates.example_parameters(template)
    if event:
        try:
            found: dict[str, Any] = {str(file): read_sample(file) for file in event}
        except ValueError as error:
            raise typer.BadParameter(f"--event: {error}") from None
    else:
        found = dict(templates.samples(opened.settings.project_dir, name))
    run = templates.dry_run(template, found, given)
    recorded = run.passed and not event
    if recorded:
        for owner in [tenant] if tenant else _tenants_of(opened, name):
            with opened.database.transaction() as connection:
                opened.register_tenant(connection, owner)
                templates.record_dry_run(connection, owner, run, _now())
    _show(run, as_json=as_json)
    if not run.passed:
        raise typer.Exit(1)


@command(app)
def publish(name: Name, tenant: OneTenant, by: By = None, as_json: Json = False) -> None:
    """Submit the declared content and publish it, once the policies allow it: say it again when it is approved."""
    from resources.action import templates

    opened = environment()
    with opened.database.transaction() as connection:
        opened.register_tenant(connection, tenant)
    version = templates.request_publication(
        opened.database, _keys(opened), opened.declarations, tenant, name, person(by), _now())
    if as_json:
        output.print_json({"template": name, "tenant": tenant, "version": version.version, "digest": version.digest,
                           "state": version.state, "note": version.note})
    else:
        typer.echo(f"{name} {version.version} ({version.digest[:12]}) is {version.state} for {tenant}")


@command(app)
def deprecate(name: Name, tenant: OneTenant, by: By = None, as_json: Json = False) -> None:
    """Withdraw the published version: jobs of its rules fail until another is published."""
    from resources.action import templates

    with environment().database.transaction() as connection:
        templates.deprecate(connection, tenant, name, person(by), _now())
    if as_json:
        output.print_json({"template": name, "tenant": tenant, "state": "deprecated"})
    else:
        typer.echo(f"{name} is deprecated for {tenant}")


def _keys(opened: StageEnvironment) -> KeyStore:
    from resources.trust.signing import KeyStore

    return KeyStore.of(opened.settings.data_dir, opened.database)


def _tenants_of(opened: StageEnvironment, name: str) -> list[str]:
    """Tenants with a rule that uses the template."""
    rules = opened.declarations.action_rules.values()
    return sorted({tenant for rule in rules if rule.spec.template == name for tenant in rule.spec.tenants})


def _parameters(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--parameters is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter('--parameters is not an object, e.g. {"limit": 60}')
    return found


def _show(run: DryRun, *, as_json: bool) -> None:
    if as_json:
        output.print_json({
            "template": run.template, "digest": run.digest, "passed": run.passed,
            "results": [{"sample": r.sample, "body": r.body, "problem": r.problem or None,
                         "rendered": r.rendered and dict(r.rendered.data)} for r in run.results]})
        return
    for result in run.results:
        typer.echo(f"--- {result.sample}, {result.body}")
        typer.echo(f"{result.rendered.title}\n{result.rendered.text}\n" if result.rendered else f"! {result.problem}\n")
    if not run.results:
        typer.echo(f"there is no sample event: put one into contracts/actions/templates/{run.template}.events/")
    typer.echo(f"{run.template} {run.digest[:12]}: {'passed' if run.passed else 'FAILED'}")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
