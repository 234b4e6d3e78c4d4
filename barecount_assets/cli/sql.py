"""`barecount sql`: published tables, as the analyst of one tenant."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psycopg

from barecount_assets.cli import output
from barecount_assets.operations import queries
from barecount_assets.stages.environment import StageEnvironment
from resources.runtime.database import unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode

_SHOWN = 1_000
_WIDEST = 10_000  # columns; a result is never folded


@dataclass(frozen=True)
class Shown:
    """How an answer is shown: as a table of its first rows (None), or whole in a format; to a file, if one is named."""

    kind: queries.Format | None = None
    output: Path | None = None


def run(environment: StageEnvironment, tenant_id: str, query: str | None, shown: Shown) -> None:
    """Run one query, or a prompt until end of input.

    Raises:
        BareCountError: declaration.unknown (tenant), access.denied, usage.
    """
    environment.declarations.tenant(tenant_id)
    url = environment.database.analyst_url(tenant_id)
    with (
        unavailable_as_error(),
        psycopg.connect(
            url,
            autocommit=True,
            options="-c search_path=published -c default_transaction_read_only=on -c statement_timeout=300s",
        ) as connection,
    ):
        if query is not None:
            _execute(connection, query, shown)
        else:
            _prompt(connection, tenant_id, shown)


def format_of(name: str | None, output: Path | None, as_json: bool) -> queries.Format | None:
    """The format that options ask for: by name, as JSON, or by the ending of the file.

    Raises:
        BareCountError: usage for a name that is none, two that differ, or a file whose ending says nothing.
    """
    endings = {
        "json": "json",
        "jsonl": "ndjson",
        "ndjson": "ndjson",
        "csv": "csv",
        "parquet": "parquet",
        "arrow": "arrow",
        "arrows": "arrow",
    }
    allowed = f"allowed: table, {', '.join(queries.FORMATS)}"
    if name is not None and as_json and name != "json":
        raise BareCountError(
            ErrorCode.USAGE, f"--json and --format {name} ask for two formats", hint="give one of them"
        )
    if name is None and as_json:
        name = "json"
    if name is None and output is not None:
        name = endings.get(output.suffix.lstrip(".").lower())
        if name is None:
            raise BareCountError(
                ErrorCode.USAGE,
                f"the ending of {output.name} names no format, {allowed}",
                hint="say which with --format",
            )
    if name is None or name == "table":
        return None
    if name not in queries.FORMATS:
        raise BareCountError(ErrorCode.USAGE, f"found the format {name!r}, {allowed}")
    return cast(queries.Format, name)


def _prompt(connection: psycopg.Connection, tenant_id: str, shown: Shown) -> None:
    try:
        import readline  # noqa: F401  line editing and history for input()
    except ImportError:
        pass  # a Python without readline still has a prompt
    print(f"Published tables of {tenant_id}. End a statement with ';', leave with Ctrl-D or \\q; \\d lists tables.")
    lines: list[str] = []
    while True:
        try:
            line = input("... " if lines else f"{tenant_id}=> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            lines = []
            continue
        if not lines and line.strip() in {"\\q", "exit", "quit"}:
            return
        if not lines and line.strip() == "\\d":
            line = _TABLES
        lines.append(line)
        if line.rstrip().endswith(";"):
            try:
                _execute(connection, "\n".join(lines), shown)
            except BareCountError as error:
                output.print_error(error, as_json=shown.kind == "json")
            lines = []


def _execute(connection: psycopg.Connection, query: str, shown: Shown) -> None:
    with queries.answer(connection, query) as found:
        if shown.kind is None:
            _show(found)
        elif shown.output is not None:
            queries.save(found, shown.kind, shown.output)
            print(f"{found.total} row{'s' if found.total != 1 else ''} in {shown.output}", file=sys.stderr)
        elif not queries.is_binary(shown.kind):
            queries.write(found, shown.kind, sys.stdout)
        elif sys.stdout.isatty():
            raise BareCountError(
                ErrorCode.USAGE,
                f"{shown.kind} is not for a terminal",
                hint="name a file with --output, or redirect the output into one",
            )
        else:
            queries.write(found, shown.kind, sys.stdout.buffer)


def _show(found: queries.Answer) -> None:
    """The first rows as a table, and how many there are."""
    rows = list(itertools.islice(itertools.chain.from_iterable(found.batches()), _SHOWN))
    numeric = [i for i in range(len(found.names)) if rows and all(_is_number(row[i]) for row in rows)]
    table = output.table(
        None,
        found.names,
        [["" if value is None else value for value in row] for row in rows],
        right=numeric,
        wrap=False,
    )
    output.console().print(table, width=_WIDEST, soft_wrap=True, crop=False)
    more = f", first {_SHOWN} shown; all with --format csv --output FILE" if found.total > len(rows) else ""
    print(f"({found.total} row{'s' if found.total != 1 else ''}{more})")


def _is_number(value: object) -> bool:
    from decimal import Decimal

    return value is None or isinstance(value, int | float | Decimal) and not isinstance(value, bool)


_TABLES = """
select table_name as name from information_schema.views
where table_schema = 'published' order by 1;
"""
