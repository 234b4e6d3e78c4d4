"""`barecount replay`: a run computed again from raw, and whether it comes out the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from barecount_assets.cli import output
from barecount_assets.cli.quarantine import By, progress_shown
from barecount_assets.cli.verbs import Json, Tenant, environment, person

if TYPE_CHECKING:
    from barecount_assets.recompute import Compared, Recomputation


def replay(
    token: Annotated[str, typer.Argument(metavar="RUN_TOKEN", help="Run token, its beginning, or number of a run.")],
    current: Annotated[
        bool, typer.Option("--current/--at-versions", help="With what is declared now, or (default) as it was then."),
    ] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Publish what comes out, linked to the run.")] = False,
    tenant: Tenant = None, by: By = None, as_json: Json = False,
) -> None:
    """Compute a run again from raw, beside what it left, and say whether it is identical or which keys differ."""
    from barecount_assets import recompute

    with progress_shown(quiet=as_json) as progress:
        found = recompute.recompute(environment(), token, tenant, "current" if current else "recorded", person(by),
                                    progress, publish=publish)
    output.print_json(found.to_json()) if as_json else _show(found)
    if not found.identical and not current:
        raise typer.Exit(1)


def _show(found: Recomputation) -> None:
    console = output.console()
    versions = "as of then" if found.versions == "recorded" else "as declared now"
    console.print(f"[bold]{found.pipeline}[/] {found.tenant_id}, run {found.replay_of[:16]}…, computed again from raw, "
                  f"{versions}")
    for item in found.outputs:
        verdict = "[green]identical[/]" if item.identical else "[red]differs[/]"
        console.print(f"  {item.kind:<9}{item.name:<24}{item.rows:>10,} rows  sha256 {item.found[:16]}…  {verdict}",
                      soft_wrap=True)
        if not item.identical:
            _show_differences(console, item)
    for note in found.notes:
        console.print(f"  [dim]{note}[/]", soft_wrap=True)
    for name, state in (found.published or {}).items():
        console.print(f"  published {name} v{state['version']}: {state['state']}")
    verdict = "[green]identical[/]" if found.identical else "[red]not identical[/]"
    console.print(f"{verdict}, evidence {found.evidence_seq}")


def _show_differences(console, item: Compared) -> None:  # noqa: ANN001  rich is imported when needed
    from rich.markup import escape

    console.print(f"    then    sha256 {item.expected[:16]}…  {item.note}", soft_wrap=True)
    if item.differences is None:
        return
    console.print(f"    {item.differences:,} keys differ")
    for difference in item.named:
        changes = "; ".join(f"{column} {a} -> {b}" for column, (a, b) in difference.columns.items())
        console.print(f"      {escape(difference.key)}: {difference.change} {escape(changes)}", soft_wrap=True)
    if item.differences > len(item.named):
        console.print(f"      and {item.differences - len(item.named):,} more", style="dim")
