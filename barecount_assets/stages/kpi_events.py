"""KPI events: what a publication changed, value by value, for those who act on it.

`kpi.published` tells of the new version, `kpi.changed` of each period and combination of dimensions whose value is
another than in the version before (or new, or gone: then `value` is null). Amounts and ratios are decimal strings;
`period_complete` says whether sources have been read up to the period's end. The events are made by the database from
the two snapshots, in the transaction that publishes.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from resources.governance.kpis import Kpi
from resources.runtime import events
from resources.runtime.database import fetch
from resources.storage import published_store


@dataclass(frozen=True)
class Publication:
    """A version of a KPI that became current: whose, the version before it (None: the first), and its evidence."""

    tenant_id: str
    pipeline: str
    version: int
    previous_version: int | None
    run_token: str
    evidence_seq: int


def append(connection: psycopg.Connection, kpi: Kpi, publication: Publication) -> None:
    """Append the events of a publication in the caller's transaction."""
    events.append(connection, events.Event(
        publication.tenant_id, "kpi.published", kpi.name, publication.run_token,
        {"kpi": kpi.name, "pipeline": publication.pipeline, "kpi_version": kpi.metadata.version,
         "publication_version": publication.version, "previous_version": publication.previous_version},
        publication.pipeline, publication.evidence_seq, publication.run_token,
    ))
    statement = sql.SQL(_CHANGED).format(
        snapshot=sql.Identifier(published_store.SCHEMA, f"snapshot__{kpi.name}"),
        dimensions=sql.SQL(", ").join(
            sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(name)) for name in kpi.dimensions),
    )
    warning, critical = kpi.spec.thresholds.warning, kpi.spec.thresholds.critical
    fetch(connection, statement.as_string(connection), (
        publication.tenant_id, publication.version, publication.previous_version, kpi.name, kpi.metadata.version,
        kpi.spec.unit, publication.pipeline, publication.run_token, publication.evidence_seq,
        warning.min, warning.max, critical.min, critical.max,
    ))


_CHANGED = """
with rows as (
    select version, grain, period, period_start, jsonb_strip_nulls(jsonb_build_object({dimensions})) as dimensions,
        value
    from {snapshot}
    where tenant_id = $1 and version in ($2::int, coalesce($3::int, 0))
),
changed as (
    select grain, period, dimensions, coalesce(now.period_start, before.period_start) as period_start, now.value,
        before.value as previous
    from (select * from rows where version = $2::int) as now
    full join (select * from rows where version <> $2::int) as before using (grain, period, dimensions)
    where now.version is null or before.version is null or now.value is distinct from before.value
),
dated as (
    select *, case when length(period) = 7 then (period_start + interval '1 month' - interval '1 day')::date
        else period_start end as period_end
    from changed
),
told as (
    select period_start, grain, period, dimensions,
        encode(sha256(convert_to(concat_ws(E'\n', $1::text, 'kpi.changed', $4::text,
            concat_ws('|', $2::int, grain, period, dimensions::text)), 'UTF8')), 'hex') as id,
        jsonb_build_object(
            'kpi', $4::text, 'pipeline', $7::text, 'kpi_version', $5::text, 'unit', $6::text, 'grain', grain,
            'period', period, 'period_start', period_start, 'dimensions', dimensions, 'value', value::text,
            'previous', previous::text, 'publication_version', $2::int,
            'period_complete', coalesce(period_end <= (select max(day) from platform.ingested_day
                                                       where tenant_id = $1 and pipeline = $7), false),
            'threshold_state', case
                when value < $12::numeric or value > $13::numeric then 'critical'
                when value < $10::numeric or value > $11::numeric then 'warning'
                when value is not null then 'ok' end
        ) as data
    from dated
)
select platform.append_events($1::text, jsonb_agg(
    jsonb_build_object(
        'specversion', '1.0', 'id', id, 'source', '/barecount/' || $1::text || '/' || $7::text,
        'type', 'barecount.kpi.changed', 'subject', $4::text,
        'time', to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
        'datacontenttype', 'application/json', 'tenant', $1::text, 'partitionkey', $1::text || '/' || $4::text,
        'runtoken', $8::text, 'evidence', $9::bigint, 'data', data)
    order by period_start, grain, period, dimensions::text))
from told
having count(*) > 0
"""
