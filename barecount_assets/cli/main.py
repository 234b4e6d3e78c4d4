"""The `barecount` command: its verbs, and what all of them share.

Exit codes: 0 done, 1 refused or failed (and said why), 2 wrong usage.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from barecount_assets.cli import evidence, output
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode, unexpected
from resources.runtime.settings import SOFTWARE_VERSION, Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="BareCount: source -> raw -> GDP -> KPI -> published, every number with its proof.")
evidence_app = typer.Typer(no_args_is_help=True, help="The ledger of what happened.")
raw_app = typer.Typer(no_args_is_help=True, help="The raw store and the tables loaded from it.")
quarantine_app = typer.Typer(no_args_is_help=True, help="Records that were refused, kept whole.")
app.add_typer(evidence_app, name="evidence")
app.add_typer(raw_app, name="raw")
app.add_typer(quarantine_app, name="quarantine")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Tenant id.")]


def command(group: typer.Typer, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a verb whose errors become an envelope and exit code 1, the trace of unforeseen ones in the log."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except BareCountError as error:
                output.print_error(error, as_json=bool(kwargs.get("as_json")))
                raise typer.Exit(2 if error.code is ErrorCode.USAGE else 1) from error
            except BrokenPipeError:
                sys.stderr.close()  # the reader of our output left; there is nobody to tell
            except (typer.Exit, typer.Abort, typer.TyperException):
                raise
            except Exception as cause:
                unforeseen = unexpected(cause)
                logs.get_logger("cli").error("command failed", exc_info=cause, extra={
                    "fields": {"correlation_id": unforeseen.correlation_id}})
                output.print_error(unforeseen, as_json=bool(kwargs.get("as_json")))
                raise typer.Exit(1) from cause

        return group.command(name)(guarded)

    return register


def _settings() -> Settings:
    settings = Settings.from_environment()
    logs.configure(settings.data_dir)
    return settings


def _environment():
    from barecount_assets.stages.environment import StageEnvironment

    return StageEnvironment.open(_settings())


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(SOFTWARE_VERSION)
        raise typer.Exit()


@command(app)
def check(as_json: Json = False) -> None:
    """Validate everything declared, offline, and report every error at once."""
    from resources.governance import declarations

    settings = Settings.from_environment()
    findings = declarations.check(settings.project_dir)
    if as_json:
        from dataclasses import asdict

        output.print_json({"valid": not findings, "findings": [asdict(finding) for finding in findings]})
    elif findings:
        for finding in findings:
            typer.echo(str(finding))
        typer.echo(f"{len(findings)} errors")
    else:
        declared = declarations.load(settings.project_dir)
        typer.echo(f"everything declared is valid: {len(declared.tenants)} tenants, {len(declared.pipelines)} "
                   f"pipelines, {len(declared.kpis)} KPIs, {len(declared.contracts)} contracts")
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


def _day(value: str | None) -> dt.date | None:
    if value is None:
        return None
    try:
        return dt.date.fromisoformat(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a date, allowed: YYYY-MM-DD") from None


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
    as_json: Json = False,
) -> None:
    """Run a pipeline and show progress. What is done already is not done again."""
    from barecount_assets.cli import runs

    if date is not None and (from_ is not None or to is not None):
        raise typer.BadParameter("--date stands alone, without --from and --to")
    start, end = (_day(date), _day(date)) if date else (_day(from_), _day(to))
    ok = runs.run(
        _environment(), pipeline, tenant, start, end, _sources(source or []), dry_run=dry_run, as_json=as_json
    )
    if not ok:
        raise typer.Exit(1)


@command(app)
def new(
    pipeline: Annotated[str, typer.Argument(help="Name of the new pipeline.")],
    source: Annotated[Path, typer.Option("--source", help="Folder of CSV files, or one file.")],
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files it would write.")] = False,
) -> None:
    """Write the first version of a pipeline from a sample of its source: contracts, models, KPI, manifest."""
    from barecount_assets import scaffold
    from resources.governance import declarations

    project = Settings.from_environment().project_dir
    contents = scaffold.plan(project, scaffold.Request(
        pipeline, source, entity, key, date, measure, dimension, tenant, owner, delimiter))
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
    from barecount_assets.cli import demo as demo_module

    if not demo_module.run(_settings(), as_json=as_json):
        raise typer.Exit(1)


@command(app)
def dev(
    port: Annotated[int, typer.Option("--port", help="Port of the Dagster UI on localhost.")] = 3000,
) -> None:
    """The Dagster UI and daemon on the project's database, until interrupted."""
    from barecount_assets.cli import dev as dev_module

    raise typer.Exit(dev_module.serve(_settings(), port))


@command(app)
def status(as_json: Json = False) -> None:
    """Pipelines, what is published and how fresh it is, failed gates, quarantine."""
    from barecount_assets.cli import status as status_module

    status_module.show(_environment(), as_json=as_json)


@command(app)
def explain(
    kpi: Annotated[str, typer.Argument(help="pipeline.kpi, or the KPI's name.")],
    period: Annotated[str, typer.Option("--period", help="YYYY-MM or YYYY-MM-DD.")],
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """The proof chain of a number, verified while it is shown."""
    from barecount_assets import proof
    from barecount_assets.cli import explain as explain_module

    found = proof.explain(_environment(), kpi, tenant, period)
    explain_module.show(found, as_json=as_json)
    if not found.holds:
        raise typer.Exit(1)


@command(app)
def sql(
    query: Annotated[str | None, typer.Argument(help="One query; without it, a prompt.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Query published tables as the analyst of a tenant."""
    from barecount_assets.cli import sql as sql_module

    if tenant is None:
        raise typer.BadParameter("an analyst belongs to one tenant: name it with --tenant")
    if not sql_module.run(_environment(), tenant, query, as_json=as_json):
        raise typer.Exit(1)


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

    Database.open(_settings(), migrate=True)
    typer.echo("the platform schema is up to date")


@command(raw_app, "rebuild")
def raw_rebuild(
    dataset: Annotated[str, typer.Argument(help="namespace.name")], tenant: Tenant = None, as_json: Json = False
) -> None:
    """Load a raw table again from the raw store, after checking every object's checksum."""
    from barecount_assets.stages.ingestion import rebuild

    result = rebuild.rebuild(_environment(), dataset, tenant)
    if as_json:
        output.print_json(result)
    else:
        typer.echo(f"{dataset}: {result['rows']} rows of {result['batches']} batches loaded again from the raw store")


@command(quarantine_app, "list")
def quarantine_list(
    pipeline: Annotated[str | None, typer.Option("--pipeline")] = None,
    tenant: Tenant = None,
    reason: Annotated[str | None, typer.Option("--reason")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Refused records: where they came from, what was wrong, and the record itself."""
    from resources.runtime.database import fetch_dicts

    environment = _environment()
    with environment.database.connect(autocommit=True) as connection:
        rows = fetch_dicts(
            connection,
            "select quarantine_id, tenant_id, pipeline, dataset, stage, source_id, row_number, field, reason, message, "
            "encode(payload, 'escape') as payload from platform.quarantine "
            "where ($1::text is null or pipeline = $1) and ($2::text is null or tenant_id = $2) "
            "and ($3::text is null or reason = $3) order by quarantine_id desc limit $4::bigint",
            (pipeline, tenant, reason, limit),
        )
    if as_json:
        output.print_json(rows)
        return
    output.console().print(
        output.table(
            None,
            ("id", "tenant", "source", "row", "reason", "message"),
            [
                (r["quarantine_id"], r["tenant_id"], r["source_id"], r["row_number"], r["reason"], r["message"])
                for r in rows
            ],
            right=(0, 3),
        )
    )


evidence.register(evidence_app, command)


def main() -> None:
    """Console script."""
    app()


if __name__ == "__main__":
    main()
