"""Gates: what must hold of a KPI before it may be published.

`acceptance` is a Great Expectations suite derived from the KPI's specification; `reconciliation` a full-key comparison
with a system of record, in SQL, over everything we have and the days that have been ingested, every difference kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql

from barecount_assets.stages import expectations
from barecount_assets.stages.environment import StageEnvironment
from resources.governance.kpis import Kpi
from resources.governance.manifests import Pipeline
from resources.runners.facade import Progress
from resources.runners.stage import StageSpec
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.storage import kpi_store, raw_tables
from resources.trust import ledger

_NAMED = 10
_FAILURES = 3


@dataclass(frozen=True)
class Difference:
    """One key on which the KPI and the system of record disagree; None where a side lacks the key."""

    key: str
    ours: str | None
    theirs: str | None
    difference: str | None


@dataclass(frozen=True)
class GateResult:
    """Decision of one gate on one KPI."""

    kpi: str
    gate: str
    passed: bool
    summary: str
    details: dict[str, Any]
    differences: tuple[Difference, ...] = field(default=())


def decide(
    connection: psycopg.Connection, environment: StageEnvironment, spec: StageSpec, manifest: Pipeline,
    kpis: Sequence[Kpi], progress: Progress,
) -> list[GateResult]:
    """Decide every gate of the KPIs, in declared order."""
    results = []
    for number, kpi in enumerate(kpis, start=1):
        columns = environment.declarations.contract(f"{spec.pipeline}.{kpi.name}", "activation").column_names
        results.append(_acceptance(connection, kpi, spec.tenant_id, columns))
        if kpi.spec.reconciliation is not None:
            results.append(_reconciliation(connection, kpi, spec, manifest))
        progress(f"gates {kpi.name}", number, len(kpis))
    return results


def reconciled_days(
    connection: psycopg.Connection, tenant_id: str, pipeline: str, manifest: Pipeline, kpis: Sequence[Kpi]
) -> list[str]:
    """Days that reconciliation covers; they are part of the work's identity. Empty when nothing is reconciled."""
    if not any(kpi.spec.reconciliation for kpi in kpis):
        return []
    rows = fetch(connection, _DAYS, (tenant_id, pipeline, _reconciled_sources(manifest, kpis)))
    return [str(day) for (day,) in rows]


def _acceptance(connection: psycopg.Connection, kpi: Kpi, tenant_id: str, columns: Sequence[str]) -> GateResult:
    """Validate the tenant's whole series against the suite of the KPI's specification."""
    statement = sql.SQL("select {} from {} where tenant_id = $1 order by grain, period_start").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), kpi_store.table(kpi.name)
    )
    rows = fetch_dicts(connection, statement.as_string(connection), (tenant_id,))
    withheld = [row for row in rows if row["value"] is None] if kpi.withholds else []
    if withheld:
        rows = [row for row in rows if row["value"] is not None]
    verdict = expectations.judge(kpi, rows, columns)
    total = verdict.expectations
    if verdict.passed:
        summary = f"{total} expectations hold over {len(rows)} rows"
    else:
        summary = (f"{len(verdict.failures)} of {total} expectations fail over {len(rows)} rows: "
                   + "; ".join(_failure(kpi, failure) for failure in verdict.failures[:_FAILURES]))
    details: dict[str, Any] = {"expectations": total, "rows": len(rows), "failures": verdict.failures}
    if withheld:
        named = [expectations.named(row, kpi) for row in withheld[:_NAMED]]
        more = f"; and {len(withheld) - _NAMED} more" if len(withheld) > _NAMED else ""
        details |= {"withheld": len(withheld), "withheld_rows": named}
        summary += f"; withheld {len(withheld)}: " + "; ".join(_row(kpi, row) for row in named) + more
    return GateResult(kpi.name, "acceptance", verdict.passed, summary, details)


def _failure(kpi: Kpi, failure: Mapping[str, Any]) -> str:
    """What does not hold, with the keys, periods and values at fault: a few, and how many more there are."""
    arguments = {name: value for name, value in failure["arguments"].items() if value is not None}
    rule = f"{failure['expectation'].removeprefix('expect_')} {arguments}"
    if not failure["rows"]:
        return f"{rule}, found {', '.join(failure['examples']) or failure['observed']}"
    rows = "; ".join(_row(kpi, row) for row in failure["rows"])
    more = (failure["unexpected"] or 0) - len(failure["rows"])
    return f"{rule}, found {rows}" + (f"; and {more} more" if more > 0 else "")


def _row(kpi: Kpi, row: Mapping[str, Any]) -> str:
    key = " ".join([row["grain"], row["period"], *(f"{name}={row[name]}" for name in kpi.dimensions
                                                   if row.get(name) is not None)])
    if row["value"] is not None:
        return f"{key}: {row['value']}"
    parts = f" ({row['numerator']}/{row['denominator']})" if row.get("denominator") is not None else ""
    return f"{key}: no value{parts}"


def _reconciliation(
    connection: psycopg.Connection, kpi: Kpi, spec: StageSpec, manifest: Pipeline
) -> GateResult:
    """Compare per period with the system of record, over every key of ours and its keys of ingested days.

    A line dated on a day that was never ingested is in the series all the same, so it must be in the other side too.
    """
    rule = kpi.spec.reconciliation
    assert rule is not None
    before, _, after = rule.key.format.partition("{date}")
    statement = sql.SQL(_COMPARE).format(
        kpi=kpi_store.table(kpi.name),
        raw=sql.Identifier(raw_tables.SCHEMA, raw_tables.table_name(rule.system_of_record)),
        key=sql.Identifier(rule.key.source), value=sql.Identifier(rule.value),
    )
    rows = fetch_dicts(
        connection, statement.as_string(connection),
        (spec.tenant_id, rule.grain, rule.system_of_record, spec.pipeline, before, after,
         str(rule.tolerance), _reconciled_sources(manifest, [kpi])),
    )
    compared = len(rows)
    differences = tuple(
        Difference(row["key"], *(None if row[name] is None else format(row[name], "f")
                                 for name in ("ours", "theirs", "difference")))
        for row in rows if row["differs"]
    )
    details = {
        "system_of_record": rule.system_of_record, "compared": compared, "differences": len(differences),
        "tolerance": str(rule.tolerance), "named": [difference.__dict__ for difference in differences[:_NAMED]],
        "ours": format(sum((row["ours"] or Decimal(0) for row in rows), Decimal(0)), "f"),
        "theirs": format(sum((row["theirs"] or Decimal(0) for row in rows), Decimal(0)), "f"),
    }
    if compared == 0:
        return GateResult(kpi.name, "reconciliation", False,
                          f"nothing to compare with {rule.system_of_record}: it has no key on an ingested day", details)
    if not differences:
        return GateResult(kpi.name, "reconciliation", True,
                          f"{compared} periods agree with {rule.system_of_record} to {rule.tolerance}", details)
    named = "; ".join(_wording(difference) for difference in differences[:_NAMED])
    return GateResult(kpi.name, "reconciliation", False,
                      f"{len(differences)} of {compared} periods differ from {rule.system_of_record} by more than "
                      f"{rule.tolerance}: {named}", details, differences)


def record(connection: psycopg.Connection, spec: StageSpec, token: str, gate: GateResult) -> int:
    """Put a decision on record in the caller's transaction; returns the number of its evidence."""
    seq = ledger.append(
        connection,
        ledger.Entry(
            spec.tenant_id, "gate.passed" if gate.passed else "gate.failed", f"{gate.kpi}/{gate.gate}", token,
            {"summary": gate.summary, "details": gate.details},
        ),
    )
    fetch(connection, _GATE, (spec.tenant_id, spec.pipeline, gate.kpi, gate.gate, token, gate.passed, gate.summary,
                              as_json(gate.details), seq))
    events.append(connection, events.Event(
        spec.tenant_id, "gate.passed" if gate.passed else "gate.failed", f"{gate.kpi}/{gate.gate}", token,
        {"kpi": gate.kpi, "gate": gate.gate, "pipeline": spec.pipeline, "summary": gate.summary}, spec.pipeline, seq,
        token,
    ))
    if gate.differences:
        fetch(connection, _DIFFERENCES, (spec.tenant_id, spec.pipeline, gate.kpi, token,
                                         as_json([difference.__dict__ for difference in gate.differences])))
    return seq


def _wording(difference: Difference) -> str:
    if difference.theirs is None:
        return f"{difference.key}: {difference.ours} here, no entry in the system of record"
    if difference.ours is None:
        return f"{difference.key}: nothing here, {difference.theirs} in the system of record"
    return f"{difference.key}: {difference.ours} here, {difference.theirs} there, difference {difference.difference}"


def _reconciled_sources(manifest: Pipeline, kpis: Sequence[Kpi]) -> list[str]:
    """Dated sources of the pipeline: their ingested days bound what can be compared."""
    return [source.name for source in manifest.spec.sources if source.dated]


_DAYS = """
select distinct day from platform.ingested_day d
where tenant_id = $1 and pipeline = $2 and source = any($3) and not exists (
    select from platform.held_partition h
    where h.tenant_id = d.tenant_id and h.pipeline = d.pipeline and h.partition_date = d.day)
order by day
"""
_COMPARE = """
with days as (
    select distinct to_char(day, 'YYYY-MM-DD') as key, to_char(day, 'YYYY-MM') as month
    from platform.ingested_day d where tenant_id = $1 and pipeline = $4 and source = any($8) and not exists (
        select from platform.held_partition h
        where h.tenant_id = d.tenant_id and h.pipeline = d.pipeline and h.partition_date = d.day)
),
ours as (
    select period as key, sum(value) as amount from {kpi} where tenant_id = $1 and grain = $2 group by period
),
theirs as (
    select substr(r.{key}, length($5::text) + 1, length(r.{key}) - length($5::text) - length($6::text)) as key,
        sum(r.{value}) as amount
    from {raw} r
    join platform.counted_batch b on b.batch_id = r._batch_id and b.is_current
    where r._tenant_id = $1 and b.tenant_id = $1 and b.dataset = $3
        and starts_with(r.{key}, $5::text) and right(r.{key}, length($6::text)) = $6::text
    group by 1
)
select coalesce(ours.key, theirs.key) as key, ours.amount as ours, theirs.amount as theirs,
    ours.amount - theirs.amount as difference,
    coalesce(abs(ours.amount - theirs.amount) > $7::text::numeric, true) as differs
from ours
full join theirs on theirs.key = ours.key
where ours.key is not null or theirs.key in (select key from days union select month from days)
order by 1
"""
_GATE = """
insert into platform.gate_result (
    tenant_id, pipeline, kpi, gate, run_token, passed, summary, details, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9)
"""
_DIFFERENCES = """
insert into platform.reconciliation_difference (
    tenant_id, pipeline, kpi, run_token, key, ours, theirs, difference)
select $1, $2, $3, $4, d.key, d.ours, d.theirs, d.difference
from jsonb_to_recordset($5::text::jsonb) as d(key text, ours numeric, theirs numeric, difference numeric)
"""
