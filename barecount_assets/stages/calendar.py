"""Calendar: the date table of a tenant, from its declared calendar, replaced whole when that changes.

The declared range is what the table holds at least. Where GDPs have dates beyond it, the KPI build has it extended by
whole fiscal years before it computes: no period loses its fiscal year in silence. What the table was extended for is on
record with the stage, counts for every pipeline of the tenant, and is never taken back.
"""

from __future__ import annotations

import datetime as dt

import psycopg
import pyarrow as pa
from psycopg import sql

from barecount_assets.stages import history, lineage
from barecount_assets.stages.environment import StageEnvironment
from resources.data_utilities.calendar import CalendarSettings, covering, date_table
from resources.runners.facade import Progress
from resources.runners.stage import Output, Stage, StageReceipt, StageSpec
from resources.runtime.database import fetch
from resources.storage import content

_TABLE = sql.Identifier("gdp", "calendar")

Days = tuple[dt.date, dt.date]
"""A first and a last day, both included."""


def run(spec: StageSpec, environment: StageEnvironment, progress: Progress) -> StageReceipt:
    """Build the tenant's calendar table unless it is the declared one already, with what it was extended for."""
    with environment.exclusive(spec.tenant_id, "calendar") as connection:
        return _bring_up(connection, spec, environment, progress, _covered(connection, spec.tenant_id))


def cover(spec: StageSpec, environment: StageEnvironment, progress: Progress, days: Days | None) -> None:
    """Extend the tenant's calendar table where it lacks some of the days."""
    if days is None:
        return
    with environment.exclusive(spec.tenant_id, "calendar") as connection:
        covered = _covered(connection, spec.tenant_id)
        declared = environment.declarations.calendar(spec.tenant_id)
        now = settings_with(declared, covered)
        if covering(now, *days) == now:
            return
        wanted = days if covered is None else (min(days[0], covered[0]), max(days[1], covered[1]))
        _bring_up(connection, spec, environment, progress, wanted)


def settings_with(declared: CalendarSettings, covered: Days | None) -> CalendarSettings:
    """A declared calendar with the days it was extended for."""
    return declared if covered is None else covering(declared, *covered)


def covered_by(receipt: StageReceipt) -> Days | None:
    """The days that the table of a calendar stage was extended for; None when it was not."""
    days = receipt.facts.get("covers")
    return None if days is None else days_of(days)


def days_of(texts: list[str]) -> Days:
    """Days as receipts and evidence write them."""
    first, last = map(dt.date.fromisoformat, texts)
    return first, last


def _covered(connection: psycopg.Connection, tenant_id: str) -> Days | None:
    """What the newest calendar of any pipeline of the tenant was extended for."""
    rows = fetch(connection, _COVERED, (tenant_id,))
    return days_of(rows[0][0]) if rows and rows[0][0] else None


def _bring_up(
    connection: psycopg.Connection, spec: StageSpec, environment: StageEnvironment, progress: Progress,
    covers: Days | None,
) -> StageReceipt:
    tenant = environment.declarations.tenant(spec.tenant_id)
    manifest = environment.declarations.effective(spec.pipeline, spec.tenant_id)
    last = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.CALENDAR)
    extended = {} if covers is None else {"covers": [day.isoformat() for day in covers]}
    identity = {
        "stage": Stage.CALENDAR, "tenant": spec.tenant_id, "pipeline": spec.pipeline,
        "calendar": tenant.spec.calendar.model_dump(mode="json"), "code": environment.code_version, **extended,
    }
    token = history.token_for(connection, identity, last, spec.tenant_id, spec.pipeline, Stage.CALENDAR)
    if last is not None and last.run_token == token:
        return history.unchanged(last)
    if spec.probe:
        return StageReceipt(Stage.CALENDAR, spec.tenant_id, spec.pipeline, token, changed=True)
    environment.register_tenant(connection, spec.tenant_id)
    lineage.begin(environment, connection, spec, token)
    progress("calendar", 0, 1)
    table = date_table(
        spec.tenant_id, settings_with(environment.declarations.calendar(spec.tenant_id), covers))
    run_id = history.run_number(
        connection, spec.tenant_id, spec.pipeline, Stage.CALENDAR, token, manifest.hash, environment.code_version
    )
    with connection.transaction():
        fetch(connection, "delete from gdp.calendar where tenant_id = $1", (spec.tenant_id,))
        digest, rows = fill(connection, _TABLE, spec.tenant_id, table)
        receipt = StageReceipt(
            stage=Stage.CALENDAR, tenant_id=spec.tenant_id, pipeline=spec.pipeline, run_token=token, changed=True,
            counts={"rows": rows}, outputs=(Output("calendar", digest, rows),), facts={"run_id": run_id, **extended},
        )
        history.finish(
            connection, receipt, run_id, identity,
            evidence={"content_sha256": digest, "rows": rows, "calendar": identity["calendar"],
                      "code_version": environment.code_version, **extended},
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


_COVERED = """
select receipt -> 'receipt' -> 'facts' -> 'covers'
from platform.stage_run
where tenant_id = $1 and stage = 'calendar'
order by evidence_seq desc
limit 1
"""
