"""How the command speaks: for people with rich, for scripts as JSON, errors as one envelope."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from resources.runtime.errors import BareCountError

_PIPED_WIDTH = 200


def console():
    """Rich console on standard output, made when first needed."""
    from rich.console import Console

    found = Console(highlight=False)
    # Piped output has no width of its own; folding it at 80 columns would help nobody.
    return found if found.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    json.dump(document, sys.stdout, ensure_ascii=False, indent=2, default=str)
    sys.stdout.write("\n")


def print_error(error: BareCountError, *, as_json: bool) -> None:
    """The error envelope: JSON on standard output, or a short text for people on standard error."""
    if as_json:
        print_json(error.envelope())
        return
    from rich.console import Console
    from rich.markup import escape

    err = Console(stderr=True, highlight=False, soft_wrap=True)
    err.print(f"[bold red]error[/] [dim]{error.code.value}[/]  {escape(error.message)}", soft_wrap=True)
    if error.hint:
        err.print(f"[bold]hint[/]   {escape(error.hint)}", soft_wrap=True)
    retry = "a retry may help" if error.retryable else "a retry alone will not help"
    err.print(f"[dim]{retry}; correlation id {error.correlation_id}[/]")


def table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = (), *,
    wrap: bool = True,
):
    """A plain table; `right` lists the numbers of right-aligned columns; without `wrap` columns keep their width."""
    from rich import box
    from rich.table import Table

    result = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(column, justify="right" if number in right else "left", overflow="fold", no_wrap=not wrap)
    for row in rows:
        result.add_row(*(str(cell) for cell in row))
    return result


def bar(value: float, greatest: float, width: int) -> str:
    """A horizontal bar with eighths of a character."""
    eighths = round(max(value, 0.0) / greatest * width * 8) if greatest > 0 else 0
    full, rest = divmod(eighths, 8)
    return "█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")
