"""Calendar: the date table of a tenant, from its declared calendar, replaced whole when that changes."""

from __future__ import annotations

import psycopg
import pyarrow as pa
from psycopg import sql

from barecount_assets.stages import history, lineage
from barecount_assets.stages.environment import StageEnvironment
from resources.data_utilities.calendar import date_table
from resources.runners.facade import Progress
from resources.runners.stage import Output, Stage, StageReceipt, StageSpec
from resources.runtime.database import fetch
from resources.storage import content

_TABLE = sql.Identifier("gdp", "calendar")


def run(spec: StageSpec, environment: StageEnvironment, progress: Progress) -> StageReceipt:
    """Build the tenant's calendar table unless it is the declared one already."""
    tenant = environment.declarations.tenant(spec.tenant_id)
    manifest = environment.declarations.effective(spec.pipeline, spec.tenant_id)
    with environment.exclusive(spec.tenant_id, "calendar") as connection:
        last = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.CALENDAR)
        identity = {
            "stage": Stage.CALENDAR, "tenant": spec.tenant_id, "pipeline": spec.pipeline,
            "calendar": tenant.spec.calendar.model_dump(mode="json"), "code": environment.code_version,
        }
        token = history.token_for(connection, identity, last, spec.tenant_id, spec.pipeline, Stage.CALENDAR)
        if last is not None and last.run_token == token:
            return history.unchanged(last)
        if spec.probe:
            return StageReceipt(Stage.CALENDAR, spec.tenant_id, spec.pipeline, token, changed=True)
        environment.register_tenant(connection, spec.tenant_id)
        lineage.begin(environment, connection, spec, token)
        progress("calendar", 0, 1)
        table = date_table(spec.tenant_id, environment.declarations.calendar(spec.tenant_id))
        run_id = history.run_number(
            connection, spec.tenant_id, spec.pipeline, Stage.CALENDAR, token, manifest.hash, environment.code_version
        )
        with connection.transaction():
            fetch(connection, "delete from gdp.calendar where tenant_id = $1", (spec.tenant_id,))
            digest, rows = fill(connection, _TABLE, spec.tenant_id, table)
            receipt = StageReceipt(
                stage=Stage.CALENDAR, tenant_id=spec.tenant_id, pipeline=spec.pipeline, run_token=token, changed=True,
                counts={"rows": rows}, outputs=(Output("calendar", digest, rows),), facts={"run_id": run_id},
            )
            history.finish(
                connection, receipt, run_id, identity,
                evidence={"content_sha256": digest, "rows": rows, "calendar": identity["calendar"],
                          "code_version": environment.code_version},
            )
        progress("calendar", 1, 1)
        return receipt


def fill(connection: psycopg.Connection, target: sql.Identifier, tenant_id: str, table: pa.Table) -> tuple[str, int]:
    """Copy a tenant's date table into a table of the same columns; returns (content hash, rows)."""
    with connection.cursor() as cursor:
        columns = sql.SQL(", ").join(map(sql.Identifier, table.column_names))
        statement = sql.SQL("copy {} ({}) from stdin").format(target, columns)
        with cursor.copy(statement.as_string(connection)) as copy:
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                copy.write_row(row)
    return content.hash_of(connection, target, sql.SQL("tenant_id = $1"), (tenant_id,), table.column_names)
