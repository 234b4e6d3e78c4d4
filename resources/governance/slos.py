"""Service level objectives: what a pipeline promises its consumers, and the record of each promise missed.

A breach is put on record once (evidence and event `slo.breached`), with the owners it concerns: a completeness breach
by the ingestion that saw it, a freshness breach by whoever looks first (`check_freshness`) after the time has run out.
A publication is as fresh as its data: one that is made daily of a source that delivers nothing is late too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.governance.manifests import Pipeline
from resources.runtime import events
from resources.runtime.database import fetch
from resources.trust import ledger


@dataclass(frozen=True)
class Breach:
    """A promise missed: which, since when or in which work (`occurrence`), what was promised and what was found."""

    tenant_id: str
    pipeline: str
    objective: str
    occurrence: str
    promised: str
    found: str


def check_completeness(
    connection: psycopg.Connection, manifest: Pipeline, tenant_id: str, source: str, counts: Mapping[str, int],
    run_token: str,
) -> Breach | None:
    """Record a breach when too few of the records an ingestion received were accepted; in its own transaction."""
    declared = manifest.spec.slos.completeness
    received = counts["received"]
    if received == 0 or received - counts["accepted"] <= declared.limit * received:
        return None
    breach = Breach(
        tenant_id, manifest.name, f"completeness/{source}", run_token,
        f"{1 - declared.limit:.2%} of records accepted",
        f"{counts['accepted']} of {received} ({counts['accepted'] / received:.2%})",
    )
    return breach if _record(connection, manifest, breach) else None


@dataclass(frozen=True)
class LateData:
    """A source, or a KPI of undated sources, whose newest data is too old; `hours` since it should have been newer."""

    what: str
    newest: dt.date
    hours: float


def late_data(
    connection: psycopg.Connection, manifest: Pipeline, tenant_id: str, now: dt.datetime
) -> list[LateData]:
    """Dated sources whose newest delivered day is too old by the SLO, by name; none where nothing is promised.

    A day counts once it is over (UTC): its successor is due the declared hours after its own end. A source that has
    never delivered is not judged, nor is one without days, whose publication alone tells how fresh it is.
    """
    declared = manifest.spec.slos.freshness
    dated = {source.dataset: source.name for source in manifest.spec.sources if source.dated}
    if declared is None or not dated:
        return []
    allowed = dt.timedelta(hours=declared.max_data_lag_hours or declared.max_lag_hours)
    late = []
    for dataset, newest in fetch(connection, _NEWEST_DAY, (tenant_id, list(dated))):
        next_ends = dt.datetime.combine(newest + dt.timedelta(days=2), dt.time(), dt.UTC)
        if now > next_ends + allowed:
            late.append(LateData(dated[dataset], newest, (now - next_ends).total_seconds() / 3600))
    return sorted(late, key=lambda one: one.what)


def check_freshness(
    connection: psycopg.Connection, manifest: Pipeline, tenant_id: str, now: dt.datetime
) -> list[Breach]:
    """Record what is older than promised, and return what is newly on record.

    The newest publication, or the first attempt at one: once per publication that grew too old, whatever held the next
    one, a failed gate too. And the newest data of each dated source: once per day it stayed at.
    """
    declared = manifest.spec.slos.freshness
    if declared is None:
        return []
    breaches = []
    published_at, first_at = fetch(connection, _LAST_PUBLISHED, (tenant_id, manifest.name))[0]
    since = published_at or first_at
    if since is not None and now - since > dt.timedelta(hours=declared.max_lag_hours):
        at = since.astimezone(dt.UTC).isoformat(timespec="seconds")
        age = (now - since).total_seconds() / 3600
        gates = fetch(connection, _FAILED_GATES, (tenant_id, manifest.name, published_at))
        held = f", held by {', '.join(name for (name,) in gates)}" if gates else ""
        text = f"last at {at}, {age:.1f} h ago" if published_at else f"never, in {age:.1f} h since {at}"
        breaches.append(Breach(tenant_id, manifest.name, "freshness", at,
                               f"published every {declared.max_lag_hours:g} h", text + held))
    for late in late_data(connection, manifest, tenant_id, now):
        allowed = declared.max_data_lag_hours or declared.max_lag_hours
        breaches.append(Breach(
            tenant_id, manifest.name, f"freshness/{late.what}", late.newest.isoformat(),
            f"a day's data within {allowed:g} h of its end",
            f"newest day {late.newest}, the next is {late.hours:.1f} h over"))
    recorded = []
    for breach in breaches:
        with connection.transaction():
            if _record(connection, manifest, breach):
                recorded.append(breach)
    return recorded


def _record(connection: psycopg.Connection, manifest: Pipeline, breach: Breach) -> bool:
    """Evidence and event, unless this breach is on record already."""
    # Two who look at the same moment take turns: what one records, the other sees.
    fetch(connection, "select pg_advisory_xact_lock(hashtextextended($1, 0))",
          (f"slo {breach.tenant_id} {breach.pipeline}",))
    event = events.Event(
        breach.tenant_id, "slo.breached", f"{breach.pipeline}/{breach.objective}", breach.occurrence, _facts(breach)
        | {"owners": [person.email for person in manifest.metadata.owners], "route": list(manifest.spec.alerts.route)},
        breach.pipeline,
    )
    if fetch(connection, "select 1 from platform.event where event_id = $1", (event.id,)):
        return False
    seq = ledger.append(connection, ledger.Entry(
        breach.tenant_id, event.type, event.subject, breach.occurrence, _facts(breach)))
    events.append(connection, events.Event(**{**vars(event), "evidence_seq": seq}))
    return True


def _facts(breach: Breach) -> dict[str, Any]:
    return {"pipeline": breach.pipeline, "objective": breach.objective, "promised": breach.promised,
            "found": breach.found}


_LAST_PUBLISHED = """
select max(finished_at) filter (where stage = 'publish'), min(finished_at)
from platform.stage_run
where tenant_id = $1 and pipeline = $2
"""
_FAILED_GATES = """
select distinct kpi || ' ' || gate from platform.gate_result
where tenant_id = $1 and pipeline = $2 and not passed and ($3::timestamptz is null or decided_at > $3::timestamptz)
    and coalesce(details ->> 'on_breach', 'hold') = 'hold'
order by 1
"""
_NEWEST_DAY = """
select b.dataset, max(b.partition_date) from platform.raw_batch b
where b.tenant_id = $1 and b.dataset = any($2) and b.is_current and b.partition_date is not null
group by b.dataset
"""
