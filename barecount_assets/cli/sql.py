"""`barecount sql`: published tables, as the analyst of one tenant."""

from __future__ import annotations

import psycopg

from barecount_assets.cli import output
from barecount_assets.stages.environment import StageEnvironment
from resources.runtime.database import unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode

_SHOWN = 1_000
_WIDEST = 10_000  # columns; a result is never folded


def run(environment: StageEnvironment, tenant_id: str, query: str | None, *, as_json: bool) -> bool:
    """Run one query, or a prompt until end of input; False when the query failed."""
    environment.declarations.tenant(tenant_id)
    url = environment.database.analyst_url(tenant_id)
    with unavailable_as_error(), psycopg.connect(
        url, autocommit=True, options="-c search_path=published -c default_transaction_read_only=on "
        "-c statement_timeout=300s",
    ) as connection:
        if query is not None:
            return _execute(connection, query, as_json=as_json)
        return _prompt(connection, tenant_id, as_json=as_json)


def _prompt(connection: psycopg.Connection, tenant_id: str, *, as_json: bool) -> bool:
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
            return True
        except KeyboardInterrupt:
            print()
            lines = []
            continue
        if not lines and line.strip() in {"\\q", "exit", "quit"}:
            return True
        if not lines and line.strip() == "\\d":
            line = _TABLES
        lines.append(line)
        if line.rstrip().endswith(";"):
            try:
                _execute(connection, "\n".join(lines), as_json=as_json)
            except BareCountError as error:
                output.print_error(error, as_json=as_json)
            lines = []


def _execute(connection: psycopg.Connection, query: str, *, as_json: bool) -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)  # type: ignore[arg-type]  the analyst's own text, with the analyst's own rights
            names = [column.name for column in cursor.description or ()]
            rows = cursor.fetchmany(_SHOWN) if names else []
            more = cursor.rowcount - len(rows)
    except psycopg.errors.InsufficientPrivilege as error:
        raise BareCountError(ErrorCode.ACCESS_DENIED, str(error).strip().splitlines()[0],
                             hint="analysts read the tables of schema published; \\d lists them") from error
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise BareCountError(ErrorCode.USAGE, str(error).strip(), hint="correct the statement") from error
    if as_json:
        output.print_json([dict(zip(names, row, strict=True)) for row in rows])
        return True
    numeric = [i for i, column in enumerate(names) if rows and all(_is_number(row[i]) for row in rows)]
    shown = output.table(
        None, names, [["" if value is None else value for value in row] for row in rows], right=numeric, wrap=False)
    output.console().print(shown, width=_WIDEST, soft_wrap=True, crop=False)
    count = len(rows) + max(more, 0)
    print(f"({count} row{'s' if count != 1 else ''}{f', first {_SHOWN} shown' if more > 0 else ''})")
    return True


def _is_number(value: object) -> bool:
    from decimal import Decimal

    return value is None or isinstance(value, int | float | Decimal) and not isinstance(value, bool)


_TABLES = """
select table_name as name from information_schema.views
where table_schema = 'published' order by 1;
"""
