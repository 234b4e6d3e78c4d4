"""`barecount sources`: how far incremental sources were read, and reading them again."""

from __future__ import annotations

from typing import Annotated

import typer

from barecount_assets.cli import output
from barecount_assets.cli.quarantine import By
from barecount_assets.cli.verbs import Json, command, environment, person

app = typer.Typer(no_args_is_help=True, help="Incremental sources: where their cursors stand.")


@command(app)
def cursor(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    source: Annotated[str, typer.Argument(help="Name of the source in its manifest.")],
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant id.")],
    value: Annotated[str | None, typer.Option("--set", help="Read on from this value.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Read from the beginning again.")] = False,
    forget: Annotated[bool, typer.Option(
        "--forget", help="With --reset: let everything land again, what landed before too.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why it moves; goes on record.")] = "",
    by: By = None, as_json: Json = False,
) -> None:
    """Show where a cursor stands, or move it. What was read before and is unchanged does not land again."""
    from barecount_assets import cursor_moves

    if value is not None and reset or forget and not reset:
        raise typer.BadParameter("--set goes without --reset, and --forget with it")
    opened, moved = environment(), value is not None or reset
    if moved:
        found = cursor_moves.move(opened, pipeline, source, tenant, value, person(by), reason, forget=forget)
    else:
        found = cursor_moves.show(opened, pipeline, source, tenant)
    if as_json:
        output.print_json(found.to_json())
        return
    stands = "at the beginning" if found.cursor is None or found.cursor.value is None else f"at {found.cursor.value}"
    evidence = f", evidence {found.evidence_seq}" if found.evidence_seq else ""
    typer.echo(f"{pipeline} {source} of {tenant}: the cursor stands {stands}{evidence}")
    if moved:
        typer.echo(f"`barecount run {pipeline} --tenant {tenant}` reads on from there")
