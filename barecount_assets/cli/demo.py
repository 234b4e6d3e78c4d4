"""`barecount demo`: the lifecycle on sample data, for two tenants, ending in a number, its proof and what it set off.

On the way a source drifts and is held until a steward accepts, and a refused record is corrected and replayed.
"""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

from barecount_assets import drift_decisions, lifecycle, proof, sample
from barecount_assets.cli import demo_actions, explain, output, runs
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.stages import dbt
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import drift_register
from resources.governance.drift_register import Drift
from resources.runners.stage import Stage
from resources.runtime import embedded
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.settings import Settings

PIPELINE = "order_to_cash"
_EXPLAINED = ("dso", "2026-03")
_CHART_WIDTH = 36
_NICENESS = 5  # of what nobody waits for yet
_UPGRADED_TENANT = "acme"
_STEWARD = "marco.bianchi@finance.example"
_TAX, _GROSS = 8, 9  # places in a line of the ERP's file


def run(settings: Settings, *, as_json: bool) -> bool:
    """Generate the sample, run the pipeline for its tenants, show what came out; True when all of it is published."""
    started = time.perf_counter()
    console = output.console()
    if not as_json:
        console.print("[bold]BareCount demo[/]  source -> raw -> GDP -> KPI -> published, for two tenants\n")
    first, *others = sample.TENANTS
    dbt.parse_ahead(settings)
    if not sample.folder_of(settings.data_dir, first).exists():
        _import_while_the_server_starts(settings)
    environment = StageEnvironment.open(settings)
    tenants = environment.declarations.pipeline(PIPELINE).spec.tenants
    outcomes = []
    for tenant in tenants:
        folder = sample.folder_of(settings.data_dir, tenant)
        facts = sample.write_sample(folder, tenant)
        for other in others:
            sample.write_ahead(settings.data_dir, other, niceness=_NICENESS)
        upgraded = tenant == _UPGRADED_TENANT
        end = sample.write_upgraded_day(folder, facts) if upgraded else facts.end
        request = RunRequest(PIPELINE, tenant, facts.start, end)
        if not as_json:
            console.print(f"[bold]{tenant}[/]  sources in {_shown(folder)}")
        outcome = _run(environment, request, quiet=as_json)
        if upgraded and (held := _held(environment, tenant, end)):
            environment = _decide(environment, settings, held, end, quiet=as_json)
            outcome = _run(environment, request, quiet=as_json)
        outcomes.append(outcome)
    done = all(outcome.error is None for outcome in outcomes)
    if done and not as_json:
        _summary(environment, outcomes)
    acted = done and demo_actions.story(environment, quiet=as_json)
    proven = done and _bundle(environment, outcomes[0].request.tenant_id, quiet=as_json)
    if as_json:
        output.print_json([runs.to_json(outcome) for outcome in outcomes])
    elif done:
        _next(outcomes[0].request.tenant_id)
        console.print(f"\n[dim]{time.perf_counter() - started:.1f} s in all[/]")
    return acted and proven


def _import_while_the_server_starts(settings: Settings) -> None:
    with ThreadPoolExecutor(1) as starting:
        if settings.database_url is None:
            starting.submit(embedded.start, settings.data_dir)  # who opens it starts it after all, and tells of errors
        lifecycle.import_ahead()


def _run(environment: StageEnvironment, request: RunRequest, *, quiet: bool) -> RunOutcome:
    with runs.StageDisplay(quiet=quiet) as display:
        outcome = lifecycle.run(environment, request, display.progress, display.receipt)
    if not quiet:
        runs.show_outcome(outcome, dry_run=False)
    return outcome


def _held(environment: StageEnvironment, tenant: str, day: dt.date) -> list[Drift]:
    """Drifts of a day that wait for a steward; none when the demo came this far before."""
    with environment.database.connect(autocommit=True) as connection:
        return [drift for drift in drift_register.listed(connection, pipeline=PIPELINE, tenant_id=tenant, status="open")
                if day in drift.partitions]


def _decide(
    environment: StageEnvironment, settings: Settings, held: list[Drift], day: dt.date, *, quiet: bool
) -> StageEnvironment:
    """A steward accepts what the upgraded ERP sends, and corrects a refused record; returns the contracts of then."""
    console = output.console()
    for drift in held:
        with environment.database.connect(autocommit=True) as connection:
            counted = fetch(connection, _COUNTED, (drift.tenant_id, PIPELINE, day))[0][0]
        if not quiet:
            console.print(f"\n[bold]{drift.tenant_id}, {day}[/]  the ERP was upgraded: a column no contract declares")
            console.print(f"[yellow]held[/]     {drift_register.message(drift)}; its rows have landed, {counted} "
                          "batches of the day count downstream, the other days went on", soft_wrap=True)
        done = drift_decisions.accept(
            environment, drift.drift_id, by=_STEWARD, reason="the discount is part of the upgrade, see change 4711",
            now=dt.datetime.now(dt.UTC))
        if not quiet:
            versions = ", ".join(f"{c.layer} {c.current_version} -> {c.version}" for c in done.candidates if c.changed)
            console.print(f"[green]accepted[/] by {_STEWARD}: {drift.dataset} {versions}, evidence "
                          f"{done.drift.decision_seq}", soft_wrap=True)
    opened = StageEnvironment.open(settings)  # what was accepted is the contract of every tenant
    for drift in held:
        _repair(opened, drift.tenant_id, quiet=quiet)
    return opened


def _repair(environment: StageEnvironment, tenant: str, *, quiet: bool) -> None:
    """Correct one invoice that was refused, from what else it says, and replay it: its net amount is gross less tax."""
    from barecount_assets.stages.ingestion import replay
    from resources.storage.quarantine_store import Selection

    with environment.database.connect(autocommit=True) as connection:
        found = fetch(connection, _UNREADABLE, (tenant, PIPELINE))
    if not found:
        return
    number, source, row, message, payload = found[0]
    fields = bytes(payload).decode("windows-1252").split(";")
    net = str(Decimal(fields[_GROSS]) - Decimal(fields[_TAX]))
    request = replay.ReplayRequest(Selection(tenant, PIPELINE, ids=[number], state="open"), _STEWARD,
                                   "gross less tax, as the ERP's own total has it", {"net_amount": net})
    (result,) = replay.replay(environment, request, lambda *_: None)
    if not quiet:
        console = output.console()
        console.print(f"[yellow]refused[/]  {source} row {row}: {message}", soft_wrap=True)
        console.print(f"[green]replayed[/] by {_STEWARD}: net amount {net}, {result.replayed} record as {result.into}",
                      soft_wrap=True)


def _bundle(environment: StageEnvironment, tenant: str, *, quiet: bool) -> bool:
    """Export the evidence, and let the bundle's own script verify it in a process that knows nothing of us."""
    from resources.trust import bundle
    from resources.trust.signing import KeyStore

    store = KeyStore.of(environment.settings.data_dir, environment.database)
    path = environment.settings.data_dir / "exports" / f"evidence-{tenant}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    written = bundle.export(environment.database, store, tenant, path, bundle.Selection(None, None, ()), [])
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extract("verify.py", folder)
        verified = subprocess.run(
            [sys.executable, "-I", str(Path(folder) / "verify.py"), str(path), "--key", written.key],
            capture_output=True, text=True, cwd=folder)
    if not quiet:
        console = output.console()
        console.print(f"\n[bold]Evidence for an outsider[/]  {_shown(path)}: {written.entries} entries; its own "
                      "verify.py, with no database and no network, says:", soft_wrap=True)
        for line in (verified.stdout + verified.stderr).strip().splitlines()[-3:]:
            console.print(f"  {line}", soft_wrap=True, markup=False)
    return verified.returncode == 0


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


def _next(tenant: str) -> None:
    command = _command()
    output.console().print(f"""
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
            if receipt.stage is Stage.INGESTION and receipt.counts["units"]:
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


_COUNTED = """
select count(*) from platform.counted_batch
where tenant_id = $1 and pipeline = $2 and partition_date = $3 and is_current
"""
_TOTALS = """
select 'revenue' as name, period, value from published.revenue where tenant_id = $1 and grain = 'month_total'
union all
select 'overdue_ratio', period, value from published.overdue_ratio where tenant_id = $1 and grain = 'month_total'
union all
select 'dso', period, value from published.dso where tenant_id = $1 and grain = 'month_total'
"""
_UNREADABLE = """
select quarantine_id, source_id, row_number, message, payload
from platform.quarantine_record
where tenant_id = $1 and pipeline = $2 and reason = 'wrong_type' and field = 'net_amount' and state = 'open'
order by source_id, row_number
limit 1
"""
