"""`barecount demo`: the whole lifecycle on sample data, for two tenants, ending in a KPI and its proof."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from barecount_assets import lifecycle, proof, sample
from barecount_assets.cli import explain, output, runs
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.stages.environment import StageEnvironment
from resources.runners.stage import Stage
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.settings import Settings

PIPELINE = "order_to_cash"
_EXPLAINED = ("dso", "2026-03")
_CHART_WIDTH = 36


def run(settings: Settings, *, as_json: bool) -> bool:
    """Generate the sample, run the pipeline for its tenants, show what came out; True when all of it is published."""
    started = time.perf_counter()
    console = output.console()
    if not as_json:
        console.print("[bold]BareCount demo[/]  source -> raw -> GDP -> KPI -> published, for two tenants\n")
    environment = StageEnvironment.open(settings)
    tenants = environment.declarations.pipeline(PIPELINE).spec.tenants
    outcomes = []
    for tenant in tenants:
        facts = sample.write_sample(settings.data_dir / "sample" / tenant, tenant)
        request = RunRequest(PIPELINE, tenant, facts.start, facts.end)
        if not as_json:
            console.print(f"[bold]{tenant}[/]  sources in {_shown(settings.data_dir / 'sample' / tenant)}")
        with runs.StageDisplay(quiet=as_json) as display:
            outcomes.append(lifecycle.run(environment, request, display.progress, display.receipt))
        if not as_json:
            runs.show_outcome(outcomes[-1], dry_run=False)
    if as_json:
        output.print_json([runs.to_json(outcome) for outcome in outcomes])
    elif all(outcome.error is None for outcome in outcomes):
        _summary(environment, outcomes)
        console.print(f"\n[dim]{time.perf_counter() - started:.1f} s in all[/]")
    return all(outcome.error is None for outcome in outcomes)


def _summary(environment: StageEnvironment, outcomes: list[RunOutcome]) -> None:
    console = output.console()
    if all(not outcome.changed for outcome in outcomes):
        console.print("\nEverything was done already: the sources have not changed, so nothing was computed and "
                      "nothing was published.")
    console.print(output.table("\nRecords", ("tenant", "source", "files", "received", "accepted", "quarantined"),
                               _sources(outcomes), right=(2, 3, 4, 5)))
    tenant = outcomes[0].request.tenant_id
    for outcome in outcomes:
        _kpis(environment, outcome.request.tenant_id)
    kpi, period = _EXPLAINED
    console.print(f"\n[bold]Where does {PIPELINE}.{kpi} of {tenant} for {period} come from?[/]")
    explain.show(proof.explain(environment, kpi, tenant, period), as_json=False)
    command = _command()
    console.print(f"""
[bold]Next[/]
  {command} dev
      the same in the Dagster UI
  {command} sql --tenant {tenant} "select * from revenue limit 5"
      as that tenant's analyst
  {command} evidence verify
      check every entry of evidence""")


def _command() -> str:
    """The command as it was called, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    return _shown(called) if called.name == "barecount" and called.is_absolute() else str(called)


def _sources(outcomes: list[RunOutcome]) -> list[tuple[Any, ...]]:
    rows = []
    for outcome in outcomes:
        for receipt in outcome.receipts:
            if receipt.stage is Stage.INGESTION:
                counts = receipt.counts
                rows.append((receipt.tenant_id, receipt.facts["source"], f"{counts['units']:,}",
                             *(f"{counts[name]:,}" for name in ("received", "accepted", "quarantined"))))
    return rows


def _kpis(environment: StageEnvironment, tenant: str) -> None:
    """Totals per month as a table, with days sales outstanding as a chart."""
    console = output.console()
    currency = environment.declarations.tenant(tenant).spec.currency
    with environment.database.connect(autocommit=True) as connection:
        rows = {(r["name"], r["period"]): r["value"] for r in fetch_dicts(connection, _TOTALS, (tenant,))}
        versions = fetch(
            connection, "select max(version) from published.current_version where tenant_id = $1", (tenant,)
        )
    periods = sorted({period for _, period in rows})
    dso = {period: float(rows[("dso", period)] or 0) for period in periods if ("dso", period) in rows}
    greatest = max(dso.values(), default=0.0)
    console.print(output.table(
        f"\n{tenant}: published KPIs (version {versions[0][0]}), all business units",
        ("month", f"revenue {currency}", "overdue", "DSO days", ""),
        [(period, _money(rows.get(("revenue", period))), _percent(rows.get(("overdue_ratio", period))),
          f"{dso.get(period, 0):.1f}", output.bar(dso.get(period, 0), greatest, _CHART_WIDTH)) for period in periods],
        right=(1, 2, 3)))


def _money(value: Any) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _percent(value: Any) -> str:
    return "-" if value is None else f"{float(value):.1%}"


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


_TOTALS = """
select 'revenue' as name, period, value from published.revenue where tenant_id = $1 and grain = 'month_total'
union all
select 'overdue_ratio', period, value from published.overdue_ratio where tenant_id = $1 and grain = 'month_total'
union all
select 'dso', period, value from published.dso where tenant_id = $1 and grain = 'month_total'
"""
