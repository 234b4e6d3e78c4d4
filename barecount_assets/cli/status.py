"""`barecount status`: what is published and how fresh, what waits, what failed, in pipelines and in actions."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from barecount_assets.cli import output
from barecount_assets.stages import completeness
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import approvals, drift_register, obligation_store, slos
from resources.governance.approvals import Approval
from resources.runtime.database import fetch_dicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resources.action.people import Attention
    from resources.governance.manifests import Pipeline


def show(environment: StageEnvironment, *, as_json: bool) -> None:
    """Print one line per pipeline and tenant."""
    rows = [_state(environment, pipeline, tenant)
            for pipeline, manifest in sorted(environment.declarations.pipelines.items())
            for tenant in manifest.spec.tenants]
    actions = _actions(environment)
    if as_json:
        by_tenant = {one.tenant_id: asdict(one) for one in actions}
        output.print_json([{**row, "actions": by_tenant.get(row["tenant"])} for row in rows])
        return
    console = output.console()
    console.print(output.table(
        None, ("pipeline", "tenant", "batches", "quarantined", "GDPs of run", "gates", "published", "age", "freshness",
               "waiting"),
        [(r["pipeline"], r["tenant"], r["batches"], r["quarantined"], r["run_id"] or "-", r["gates"],
          r["published"] or "-", _age(r["published_at"]), r["freshness"],
          f"{len(r['held'])} days" if r["held"] else "-") for r in rows], right=(2, 3, 4)))
    for item in _approvals(environment):
        what = f"{item.point.replace('_', ' ')} of {item.subject} for {item.tenant_id}"
        console.print(f"[yellow]approve[/] {what}, asked by {item.requested_by}: `barecount "
                      f"approvals approve {item.approval_id} --reason ...`",
                      soft_wrap=True)
    for row in rows:
        for drift in row["drifts"]:
            console.print(f"[yellow]decide[/] {row['pipeline']} {row['tenant']}: {drift}", soft_wrap=True)
        for kind in ("gate", "obligation"):
            for failed in row[f"failed_{kind}s"]:
                console.print(f"[red]failed {kind}[/] {row['pipeline']} {row['tenant']}: {failed}", soft_wrap=True)
    for one in actions:
        for mark, what in _action_lines(one):
            console.print(f"{mark} {one.tenant_id}: {what}", soft_wrap=True)


def _actions(environment: StageEnvironment) -> list[Attention]:
    from resources.action import people

    with environment.database.connect(autocommit=True) as connection:
        return people.attention(connection)


def _action_lines(one: Attention) -> list[tuple[str, str]]:
    """What of a tenant's actions waits for somebody, and the command that shows it."""
    tenant = f"--tenant {one.tenant_id}"
    lines = [
        (one.to_approve, "[yellow]approve[/]", f"{one.to_approve} actions: `barecount actions jobs {tenant} --state "
                                               "'pending approval'`"),
        (one.failed, "[red]failed actions[/]", f"{one.failed}: `barecount actions jobs {tenant} --state failed`"),
        (one.given_up, "[red]actions given up[/]", f"{one.given_up}: `barecount actions dlq list {tenant}`"),
        (one.unwell, "[red]endpoints that take nothing[/]", f"{', '.join(one.unwell)}: `barecount actions endpoints "
                                                            f"list {tenant}`"),
    ]
    return [(mark, what) for found, mark, what in lines if found]


def _approvals(environment: StageEnvironment) -> list[Approval]:
    with environment.database.connect(autocommit=True) as connection:
        return approvals.listed(connection, dt.datetime.now(dt.UTC))


def _state(environment: StageEnvironment, pipeline: str, tenant: str) -> dict[str, Any]:
    manifest = environment.declarations.effective(pipeline, tenant)
    with environment.database.connect(autocommit=True) as connection:
        row = fetch_dicts(connection, _STATE, (tenant, pipeline))[0]
        failed = fetch_dicts(connection, _FAILED, (tenant, pipeline))
        incomplete = [gate for shares in completeness.measure(connection, manifest, tenant)
                      if not (gate := completeness.decide(manifest, shares)).passed]
        drifts = [d for d in drift_register.listed(connection, pipeline=pipeline, tenant_id=tenant, status="open")
                  if d.waiting]
        held = drift_register.held_days(connection, tenant, pipeline)
        old = slos.late_data(connection, manifest, tenant, dt.datetime.now(dt.UTC))
        obligations = obligation_store.newest(connection, tenant, pipeline)
        waiting = [item for item in approvals.listed(connection, dt.datetime.now(dt.UTC), tenant_id=tenant)
                   if item.pipeline == pipeline]
    not_passed = len(failed) + len(incomplete)
    holds = bool(failed) or bool(incomplete) and manifest.spec.slos.completeness.on_breach == "hold"
    return {
        "pipeline": pipeline, "tenant": tenant, **row,
        "freshness": _freshness(manifest, row["published_at"], old, holds),
        "gates": f"{not_passed} failed" if not_passed else ("passed" if row["decided"] else "-"),
        "drifts": [f"{drift_register.message(d)}; `barecount drift show {d.drift_id}`" for d in drifts],
        "approvals": [item.approval_id for item in waiting],
        "held": [str(day or "undated") for day in held],
        "failed_gates": [*(f"{gate['kpi']} {gate['gate']}: {gate['summary']}" for gate in failed),
                         *(f"{gate.kpi} {gate.gate}: {gate.summary}" for gate in incomplete)],
        "failed_obligations": [f"{o['obligation']}: {o['summary']}" for o in obligations
                               if o["status"] == "fail" and o["obligation"] in environment.declarations.obligations],
    }


def _freshness(
    manifest: Pipeline, published_at: dt.datetime | None, late_data: Sequence[slos.LateData], holds: bool
) -> str:
    """What an owner has to look at first: a gate that holds, a publication too old, a source that is quiet."""
    declared = manifest.spec.slos.freshness
    if published_at is None:
        return "never published"
    if holds:
        return "held by a failed gate"
    if declared is None:
        return "no SLO"
    if dt.datetime.now(dt.UTC) - published_at > dt.timedelta(hours=declared.max_lag_hours):
        return f"late (SLO {declared.max_lag_hours:g} h)"
    if late_data:
        return "late data: " + ", ".join(f"{one.what} to {one.newest}" for one in late_data)
    return "within SLO"


def _age(at: dt.datetime | None) -> str:
    if at is None:
        return "-"
    seconds = int((dt.datetime.now(dt.UTC) - at).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


_STATE = """
select
    (select count(*) from platform.raw_batch where tenant_id = $1 and pipeline = $2 and is_current) as batches,
    (select count(*) from platform.quarantine_record
     where tenant_id = $1 and pipeline = $2 and state = 'open') as quarantined,
    (select max(run_id) from platform.stage_run
     where tenant_id = $1 and pipeline = $2 and stage = 'normalization') as run_id,
    (select count(*) from platform.gate_result where tenant_id = $1 and pipeline = $2) as decided,
    (select string_agg(c.name || ' v' || c.version, ', ' order by c.name)
     from published.current_version c join platform.publication p using (tenant_id, name, version)
     where c.tenant_id = $1 and p.pipeline = $2) as published,
    (select max(finished_at) from platform.stage_run
     where tenant_id = $1 and pipeline = $2 and stage = 'publish') as published_at
"""
_FAILED = """
select kpi, gate, summary from platform.gate_result
where tenant_id = $1 and pipeline = $2 and not passed and run_token = (
    select run_token from platform.stage_run where tenant_id = $1 and pipeline = $2 and stage = 'kpi_build'
    order by evidence_seq desc limit 1)
order by kpi, gate
"""
