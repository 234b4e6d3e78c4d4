"""`barecount quarantine`: records that were refused, kept whole."""

from __future__ import annotations

from typing import Annotated

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment

app = typer.Typer(no_args_is_help=True, help="Records that were refused, kept whole.")


@command(app, "list")
def listed(
    pipeline: Annotated[str | None, typer.Option("--pipeline")] = None,
    tenant: Tenant = None,
    reason: Annotated[str | None, typer.Option("--reason")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Refused records: where they came from, what was wrong, and the record itself."""
    from resources.runtime.database import fetch_dicts

    with environment().database.connect(autocommit=True) as connection:
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
