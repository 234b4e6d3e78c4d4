"""The `barecount` command: its verbs; those of one family each have a module of their own, added as a group.

Exit codes: 0 done, 1 refused or failed (and said why), 2 wrong usage.
"""

from __future__ import annotations

import atexit
import datetime as dt
import gc
from pathlib import Path
from typing import Annotated

import typer

from barecount_assets.cli import (
    action_jobs,
    action_templates,
    agent,
    approvals,
    contracts,
    definitions,
    drift,
    events,
    evidence,
    lineage,
    output,
    policies,
    quarantine,
    raw,
    replay,
    runners,
    secrets,
    serve,
    sources,
)
from barecount_assets.cli.verbs import Json, Tenant, Who, command, day, environment, person, settings
from resources.runtime.settings import SOFTWARE_VERSION, Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="BareCount: source -> raw -> GDP -> KPI -> published, every number with its proof.")
app.add_typer(raw.app, name="raw")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(drift.app, name="drift")
app.add_typer(evidence.app, name="evidence")
app.add_typer(contracts.app, name="contracts")
app.add_typer(definitions.app, name="definitions")
app.add_typer(events.app, name="events")
app.add_typer(policies.app, name="policies")
app.add_typer(approvals.app, name="approvals")
app.add_typer(action_jobs.app, name="actions")
action_jobs.app.add_typer(action_templates.app, name="templates")
app.add_typer(secrets.app, name="secrets")
app.add_typer(lineage.app, name="lineage")
app.add_typer(runners.app, name="runners")
app.add_typer(serve.app, name="serve")
app.add_typer(sources.app, name="sources")
command(app)(replay.replay)
command(app)(agent.agent)

@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(SOFTWARE_VERSION)
        raise typer.Exit()


@command(app)
def check(as_json: Json = False) -> None:
    """Validate everything declared, offline, and report every error at once."""
    from barecount_assets import foresight
    from resources.governance import declarations

    found = Settings.from_environment()
    declared, findings = declarations.read(found.project_dir)
    warnings: list[str] = []
    if not findings:
        foreseen = foresight.foresee(found, declared)
        findings, warnings = foreseen.findings, foreseen.warnings
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        from dataclasses import asdict

        output.print_json({"valid": not findings, "findings": [asdict(finding) for finding in findings],
                           "warnings": warnings})
    elif findings:
        for finding in findings:
            typer.echo(str(finding))
        typer.echo(f"{len(findings)} errors")
    else:
        typer.echo(f"everything declared is valid: {len(declared.tenants)} tenants, {len(declared.pipelines)} "
                   f"pipelines, {len(declared.kpis)} KPIs, {len(declared.contracts)} contracts, "
                   f"{len(declared.policies)} policies")
    if findings:
        raise typer.Exit(1)


@command(app)
def schema(
    directory: Annotated[Path | None, typer.Option("--write", help="Write the schemas into this folder.")] = None,
) -> None:
    """JSON Schemas of the declared files, for editors."""
    from resources.governance import declarations

    if directory is None:
        output.print_json(declarations.json_schemas())
    else:
        for path in declarations.write_json_schemas(directory):
            typer.echo(path)


def _sources(pairs: list[str]) -> dict[str, str]:
    paths = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not separator or not name or not path:
            raise typer.BadParameter(f"{pair!r} is not NAME=PATH")
        if "\0" in path:
            raise typer.BadParameter(f"{pair!r} has a NUL character, which no path may have")
        paths[name] = path if "://" in path else str(Path(path).expanduser().resolve())
    return paths


@command(app)
def run(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Only this tenant (default: all of the pipeline).")
    ] = None,
    date: Annotated[str | None, typer.Option("--date", help="One day, YYYY-MM-DD.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="First day.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Last day, included.")] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="NAME=PATH, where a source lies.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whether there is anything to do.")] = False,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Partition by partition, on record as one, resumed where it stopped."),
    ] = False,
    by_partition: Annotated[
        str, typer.Option("--partition", help="With --backfill: day, week, month or fiscal_period."),
    ] = "month",
    accept_definition: Annotated[
        bool, typer.Option("--accept-definition", help="Definitions that changed under their version compute the same "
                           "values: compared before anything is computed. Needs --reason."),
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="With --accept-definition: why values stay.")] = None,
    who: Who = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline and show progress. What is done already is not done again."""
    from barecount_assets.cli import runs

    if date is not None and (from_ is not None or to is not None):
        raise typer.BadParameter("--date stands alone, without --from and --to")
    if accept_definition != bool(reason) or (accept_definition and (backfill or dry_run)):
        raise typer.BadParameter("--accept-definition and --reason WHY go together, in a run")
    start, end = (day(date), day(date)) if date else (day(from_), day(to))
    if backfill:
        _backfill(pipeline, tenant, start, end, _sources(source or []), by_partition, dry_run=dry_run, as_json=as_json,
                  who=who)
        return
    ok = runs.run(
        environment(), pipeline, tenant, start, end, _sources(source or []), dry_run=dry_run, as_json=as_json,
        requested_by=person(who), accept_definition=reason,
    )
    if not ok:
        raise typer.Exit(1)


def _backfill(
    pipeline: str, tenant: str | None, start: dt.date | None, end: dt.date | None, paths: dict[str, str],
    granularity: str, *, dry_run: bool, as_json: bool, who: str | None,
) -> None:
    from barecount_assets.cli import backfills, runs

    allowed = ("day", "week", "month", "fiscal_period")
    if granularity not in allowed:
        raise typer.BadParameter(f"{granularity!r} is no partition, allowed: {', '.join(allowed)}")
    opened = environment()
    tenants = runs.tenants_of(opened, pipeline, tenant)
    runs.require_known_sources(opened, pipeline, paths)
    if not backfills.run(opened, pipeline, tenants, start, end, paths, granularity, dry_run=dry_run, as_json=as_json,
                         requested_by=who):
        raise typer.Exit(1)


@command(app)
def new(
    pipeline: Annotated[str, typer.Argument(help="Name of the new pipeline.")],
    source: Annotated[Path, typer.Option("--source", help="Folder of CSV, JSON Lines or Parquet files, or one file.")],
    key: Annotated[str, typer.Option("--key", help="Column that identifies a record.")],
    date: Annotated[str, typer.Option("--date", help="Column with the day a record belongs to.")],
    measure: Annotated[str, typer.Option("--measure", help="Column the first KPI sums up.")],
    dimension: Annotated[str | None, typer.Option("--by", help="Column to break the KPI down by.")] = None,
    entity: Annotated[str, typer.Option("--entity", help="What one record is, singular: order, invoice.")] = "record",
    tenant: Annotated[
        str, typer.Option("--tenant", help="Owner of the data; declared if it is not yet.")
    ] = "my_company",
    owner: Annotated[str, typer.Option("--owner", help="E-mail address of the owner.")] = "owner@company.example",
    delimiter: Annotated[str, typer.Option("--delimiter")] = ",",
    time_zone: Annotated[
        str | None, typer.Option("--timezone", help="Where a new tenant's days begin; Europe/London if left out.")
    ] = None,
    file_name: Annotated[str | None, typer.Option(
        "--file-name", help="Which files of the folder, and where their date stands: 'sales_{date:%d-%m-%Y}*.csv'.",
    )] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files it would write.")] = False,
) -> None:
    """Write the first version of a pipeline from a sample of its source: contracts, models, KPI, manifest."""
    from barecount_assets import scaffold
    from resources.governance import declarations

    project = Settings.from_environment().project_dir
    contents = scaffold.plan(project, scaffold.Request(
        pipeline, source, entity, key, date, measure, dimension, tenant, owner, delimiter, time_zone, file_name))
    if not dry_run:
        scaffold.write(project, contents)
    for path in contents:
        typer.echo(f"{'would write' if dry_run else 'wrote'} {path}")
    if not dry_run:
        for finding in declarations.check(project):
            typer.echo(str(finding))
        typer.echo(f"\nReview them, then: barecount check && barecount run {pipeline}")


@command(app)
def demo(as_json: Json = False) -> None:
    """The whole lifecycle on sample data, on embedded PostgreSQL, ending in a KPI and its proof."""
    from barecount_assets import sample

    sample.write_ahead(settings().data_dir, sample.TENANTS[0])  # while the rest is imported
    from barecount_assets.cli import demo as demo_module

    if not demo_module.run(settings(), as_json=as_json):
        raise typer.Exit(1)


@command(app)
def dev(
    port: Annotated[int, typer.Option("--port", help="Port of the Dagster UI on localhost.")] = 3000,
) -> None:
    """The Dagster UI and daemon on the project's database, until interrupted."""
    from barecount_assets.cli import dev as dev_module

    raise typer.Exit(dev_module.serve(settings(), port))


@command(app)
def status(as_json: Json = False) -> None:
    """Pipelines, what is published and how fresh it is, failed gates, quarantine."""
    from barecount_assets.cli import status as status_module

    status_module.show(environment(), as_json=as_json)


@command(app)
def explain(
    kpi: Annotated[str, typer.Argument(help="pipeline.kpi, or the KPI's name.")],
    period: Annotated[str, typer.Option("--period", help="YYYY-MM or YYYY-MM-DD.")],
    tenant: Tenant = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Of an earlier publication (default: the current one)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The proof chain of a number, verified while it is shown."""
    from barecount_assets import proof
    from barecount_assets.cli import explain as explain_module

    found = proof.explain(environment(), kpi, tenant, period, version)
    explain_module.show(found, as_json=as_json)
    if not found.holds:
        raise typer.Exit(1)


@command(app)
def sql(
    query: Annotated[str | None, typer.Argument(help="One query; without it, a prompt.")] = None,
    tenant: Tenant = None,
    format_: Annotated[str | None, typer.Option(
        "--format", help="table (the first rows), json, ndjson, csv, parquet or arrow (all rows).")] = None,
    output_: Annotated[Path | None, typer.Option("--output", "-o", help="File to write all rows to.")] = None,
    as_json: Json = False,
) -> None:
    """Query published tables as the analyst of a tenant. Every format but a table has all rows."""
    from barecount_assets.cli import sql as sql_module

    if tenant is None:
        raise typer.BadParameter("an analyst belongs to one tenant: name it with --tenant")
    shown = sql_module.Shown(sql_module.format_of(format_, output_, as_json), output_)
    sql_module.run(environment(), tenant, query, shown)


@command(app)
def stop() -> None:
    """Stop the embedded PostgreSQL server."""
    from resources.runtime import embedded

    stopped = embedded.stop(Settings.from_environment().data_dir)
    typer.echo("embedded PostgreSQL stopped" if stopped else "embedded PostgreSQL was not running")


@command(app)
def migrate() -> None:
    """Bring the database's platform schema to the version this software needs."""
    from resources.runtime.database import Database

    Database.open(settings(), migrate=True)
    typer.echo("the platform schema is up to date")


def main() -> None:
    """Console script."""
    # Imports make many objects that stay; to look for garbage among them is a tenth of a short command's time.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)  # nor does the interpreter look through them once more before it ends
    app()


if __name__ == "__main__":
    main()
