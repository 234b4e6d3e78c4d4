"""Service level objectives: what a pipeline promises its consumers, and the record of each promise missed.

A breach is put on record once (evidence and event `slo.breached`), with the owners it concerns: a completeness breach
by the ingestion that saw it, a freshness breach by whoever looks first (`check_freshness`) after the time has run out.
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
    if declared is None or received == 0 or counts["accepted"] / received >= declared.min_accepted_ratio:
        return None
    breach = Breach(
        tenant_id, manifest.name, f"completeness/{source}", run_token,
        f"{declared.min_accepted_ratio:.2%} of records accepted",
        f"{counts['accepted']} of {received} ({counts['accepted'] / received:.2%})",
    )
    return breach if _record(connection, manifest, breach) else None


def check_freshness(
    connection: psycopg.Connection, manifest: Pipeline, tenant_id: str, now: dt.datetime
) -> Breach | None:
    """Record a breach when the newest publication is older than promised; once per publication that grew too old."""
    declared = manifest.spec.slos.freshness
    if declared is None:
        return None
    rows = fetch(connection, _LAST_PUBLISHED, (tenant_id, manifest.name))
    if not rows or now - rows[0][0] <= dt.timedelta(hours=declared.max_lag_hours):
        return None
    published_at = rows[0][0].astimezone(dt.UTC).isoformat(timespec="seconds")
    age = (now - rows[0][0]).total_seconds() / 3600
    breach = Breach(tenant_id, manifest.name, "freshness", published_at,
                    f"published every {declared.max_lag_hours:g} h", f"last at {published_at}, {age:.1f} h ago")
    with connection.transaction():
        return breach if _record(connection, manifest, breach) else None


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
select finished_at from platform.stage_run
where tenant_id = $1 and pipeline = $2 and stage = 'publish'
order by evidence_seq desc
limit 1
"""
