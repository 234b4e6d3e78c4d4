"""`barecount definitions`: what models compute, and which versions stand for it."""

from __future__ import annotations

from typing import Annotated

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, command, environment, settings
from resources.runtime.errors import BareCountError, ErrorCode

app = typer.Typer(no_args_is_help=True, help="Definitions: what GDPs and KPIs compute, by version.")


@command(app, "list")
def listed(
    pipeline: Annotated[str | None, typer.Argument(help="Only this pipeline.")] = None, as_json: Json = False
) -> None:
    """Which definition every published version stands for, and for whom."""
    from resources.governance import definition_register

    opened = environment()
    if pipeline is not None:
        opened.declarations.pipeline(pipeline)
    with opened.database.connect(autocommit=True) as connection:
        bound = definition_register.bound(connection, pipeline)
    if as_json:
        output.print_json([vars(item) for item in bound])
    elif not bound:
        typer.echo("no version of a GDP or KPI is published")
    else:
        output.console().print(output.table(
            None, ("pipeline", "kind", "name", "version", "definition", "tenant"),
            [(b.pipeline, b.kind, b.name, b.version, b.sha256[:16], b.tenant_id) for b in bound]))


@command(app)
def show(
    which: Annotated[str, typer.Argument(metavar="NAME|SHA256", help="A GDP's or KPI's name, or a digest.")],
    version: Annotated[str | None, typer.Option("--version", help="Of this version (default: the last bound).")] = None,
    as_json: Json = False,
) -> None:
    """The SQL, columns and key of a definition, from the register."""
    from resources.governance import definition_register

    with environment().database.connect(autocommit=True) as connection:
        bound = [b for b in definition_register.bound(connection)
                 if (b.name == which or b.sha256.startswith(which)) and version in (None, b.version)]
        document = definition_register.document(connection, bound[-1].sha256) if bound else None
    if document is None:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"no published definition has the name or digest {which}" + (f" and version {version}" if version else ""),
            hint="`barecount definitions list` shows all")
    if as_json:
        output.print_json({**vars(bound[-1]), **document})
        return
    typer.echo(f"-- {bound[-1].kind} {bound[-1].name} {bound[-1].version}, sha256 {bound[-1].sha256}")
    typer.echo(f"-- columns: {', '.join(' '.join(column) for column in document['columns'])}")
    typer.echo("\n".join(filter(str.strip, document["sql"].splitlines())))


@command(app)
def lock(
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why a definition may change under its version: the values stay."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write contracts/definitions.json: for reviews, and for checks and runs that need not compile."""
    from barecount_assets import project_definitions
    from resources.governance import declarations, definitions
    from resources.runtime.settings import stage_code_version

    opened = settings()
    declared = declarations.load(opened.project_dir)
    before = definitions.read(opened.project_dir / definitions.PLACE)
    now = list(project_definitions.of_project(opened, declared).values())
    changes = [] if before is None else [
        change for pipeline in declared.pipelines for change in definitions.changed(
            declared, [d for d in now if d.pipeline == pipeline],
            [b for b in before.bound if b.pipeline == pipeline], stage_code_version())]
    edited = [change for change in changes if change.cause is None]
    if edited and not reason:
        raise BareCountError(
            ErrorCode.DEFINITION_CHANGED, "; ".join(change.message for change in edited),
            hint=f"{'; '.join(change.remedy for change in edited)}. Or, when all values stay the same, say "
            "--reason WHY: the next run compares them")
    path = project_definitions.lock(opened, declared)
    if as_json:
        output.print_json({"file": str(path), "definitions": len(now),
                           "changed": [change.definition.name for change in changes]})
    else:
        typer.echo(f"{definitions.PLACE} written: {len(now)} definitions, {len(changes)} changed under their version")
