"""KPI build: GDPs become KPI series, and gates decide whether they may be published.

Only the periods that changed GDP rows touch are computed again. Then every KPI's acceptance suite and its
reconciliation with a system of record are decided over the whole series, and recorded with evidence in one
transaction; a failed gate leaves the series in the KPI store and the previous publication in place.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from barecount_assets import definition_changes
from barecount_assets.stages import business_days, dbt, engines, gates, history, lineage, verification
from barecount_assets.stages import calendar as calendar_stage
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.gates import GateResult
from barecount_assets.stages.normalization import test_outcomes
from resources.data_utilities.calendar import FIRST_DAY, LAST_DAY
from resources.governance import definition_register
from resources.governance.definitions import Definition
from resources.governance.kpis import Kpi
from resources.governance.manifests import Pipeline
from resources.runners.facade import Progress
from resources.runners.stage import CheckOutcome, Output, Stage, StageReceipt, StageSpec
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import gdp_store, kpi_store, model_tables


def run(spec: StageSpec, environment: StageEnvironment, progress: Progress) -> StageReceipt:
    """Bring the KPIs of one pipeline and tenant up to its newest committed GDPs, and decide their gates."""
    manifest = environment.declarations.effective(spec.pipeline, spec.tenant_id)
    kpis = [environment.declarations.kpi(name) for name in manifest.spec.kpis]
    with environment.exclusive(spec.tenant_id, spec.pipeline) as connection:
        gdp = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.NORMALIZATION)
        if gdp is None or gdp.run_id is None:
            raise BareCountError(
                ErrorCode.EVIDENCE_MISSING,
                f"{spec.pipeline} has no committed GDPs for tenant {spec.tenant_id}",
                hint="materialize its GDPs first",
            )
        _require_columns_of_now(connection, environment, spec, gdp)
        calendar = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.CALENDAR)
        last = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.KPI_BUILD)
        tenant = environment.declarations.tenant(spec.tenant_id)
        definition = {
            "manifest": manifest.hash,
            "kpis": {kpi.name: kpi.hash for kpi in kpis},
            "contracts": [environment.declarations.contract(f"{spec.pipeline}.{kpi.name}", "activation").hash
                          for kpi in kpis],
            "calendar": calendar.receipt.outputs[0].content_sha256 if calendar else None,
            "code": environment.code_version, **business_days.definition(environment.declarations, manifest, tenant),
        }
        reconciled_days = gates.reconciled_days(connection, spec.tenant_id, spec.pipeline, manifest, kpis)
        identity = {"stage": Stage.KPI_BUILD, "tenant": spec.tenant_id, "pipeline": spec.pipeline,
                    "gdp": gdp.run_token, "days": reconciled_days, **definition}
        token = history.token_for(connection, identity, last, spec.tenant_id, spec.pipeline, Stage.KPI_BUILD)
        if last is not None and last.run_token == token:
            return history.unchanged(last)
        if spec.probe:
            return StageReceipt(Stage.KPI_BUILD, spec.tenant_id, spec.pipeline, token, changed=True)
        definitions = [d for d in definition_changes.admit(environment, spec.pipeline, spec.tenant_id, progress)
                       if d.kind == "kpi"]
        if manifest.spec.transforms.calendar:
            # What an equal definition has computed lies in the calendar already.
            since = last.run_id if last is not None and _is_basis(last, definition) else 0
            calendar_stage.cover(spec, environment, progress, _days(connection, kpis, spec.tenant_id, since or 0))
            calendar = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.CALENDAR)
            definition["calendar"] = calendar.receipt.outputs[0].content_sha256 if calendar else None
            token = history.token_for(connection, {**identity, **definition}, last, spec.tenant_id, spec.pipeline,
                                      Stage.KPI_BUILD)
            identity = {**identity, **definition}
        lineage.begin(environment, connection, spec, token, [
            *lineage.inputs_of("gdp", gdp.receipt.outputs),
            *lineage.inputs_of("gdp", calendar.receipt.outputs if calendar else ()),
        ])
        incremental = last is not None and _is_basis(last, definition)
        periods = {
            kpi.name: _affected_periods(connection, kpi, spec.tenant_id, last.run_id or 0) for kpi in kpis
        } if incremental and last is not None else "all"
        variables = {
            "tenant": spec.tenant_id, "run_id": gdp.run_id, "scope": "changed" if incremental else "all",
            "kpi_periods": periods, "kpi_versions": {kpi.name: kpi.metadata.version for kpi in kpis},
            "currency": tenant.spec.currency, **business_days.run_variables(environment.declarations, manifest, tenant),
        }
        with environment.building(connection, spec.pipeline):
            for kpi in kpis:
                activation = environment.declarations.contract(f"{spec.pipeline}.{kpi.name}", "activation")
                model_tables.conform(connection, kpi_store.SCHEMA, kpi.name, activation.column_types, (),
                                     activation.required_columns)
            results = engines.build(environment, manifest.spec.transforms.engine, spec.tenant_id, spec.pipeline,
                                    [kpi.name for kpi in kpis], variables, progress)
        progress("gates", 0, len(kpis))
        decided = gates.decide(connection, environment, spec, manifest, kpis, progress)
        with connection.transaction():
            return _commit(connection, spec, environment, manifest, kpis, gdp, token, identity, definition, results,
                           decided, periods, calendar, definitions)


def _is_basis(last: history.FinishedStage, definition: Mapping[str, Any]) -> bool:
    """Whether the last build was made by the same definition."""
    return all(last.basis.get(name) == value for name, value in definition.items())


def _days(
    connection: psycopg.Connection, kpis: Sequence[Kpi], tenant_id: str, since_run: int
) -> calendar_stage.Days | None:
    """The days from the least to the greatest date of what KPIs with fiscal periods read, as far as they are days."""
    columns = {(dependency.gdp, dependency.date_column)
               for kpi in kpis if kpi.spec.calendar for dependency in kpi.spec.depends_on}
    ranges = [gdp_store.date_range(connection, gdp, tenant_id, column, since_run, (FIRST_DAY, LAST_DAY))
              for gdp, column in sorted(columns)]
    found = [days for days in ranges if days is not None]
    return (min(first for first, _ in found), max(last for _, last in found)) if found else None


def _require_columns_of_now(
    connection: psycopg.Connection, environment: StageEnvironment, spec: StageSpec, gdp: history.FinishedStage
) -> None:
    """A KPI reads the columns that its GDPs have now: rows of a tenant from before have nothing in new ones.

    Raises:
        BareCountError: evidence.missing for GDPs that were made under a contract with other columns.
    """
    versions = verification.evidence(connection, spec.tenant_id, gdp.evidence_seq)["contracts"]
    for model in environment.declarations.pipeline(spec.pipeline).spec.transforms.gdp:
        dataset = f"{spec.pipeline}.{model}"
        declared = environment.declarations.contract(dataset, "gold")
        before = verification.contract_of_then(
            connection, environment.declarations, dataset, "gold", versions.get(model))
        if before is None or before.column_types != declared.column_types:
            raise BareCountError(
                ErrorCode.EVIDENCE_MISSING,
                f"the GDP {model} of tenant {spec.tenant_id} was made under version {versions.get(model, 'none')} of "
                f"its contract, which has other columns than version {declared.version}",
                hint="materialize its GDPs first")


def _commit(
    connection: psycopg.Connection, spec: StageSpec, environment: StageEnvironment, manifest: Pipeline,
    kpis: Sequence[Kpi], gdp: history.FinishedStage, token: str, identity: dict[str, Any], definition: dict[str, Any],
    results: Sequence[dbt.NodeResult], decided: Sequence[GateResult], periods: Any,
    calendar: history.FinishedStage | None, definitions: Sequence[Definition],
) -> StageReceipt:
    outputs = []
    for kpi in kpis:
        columns = environment.declarations.contract(f"{spec.pipeline}.{kpi.name}", "activation").column_names
        content, rows = kpi_store.series_hash(
            connection, kpi.name, spec.tenant_id, columns, with_values=kpi.withholds)
        outputs.append(Output(kpi.name, content, rows, {"version": kpi.metadata.version}))
    for gate in decided:
        gates.record(connection, spec, token, gate)
    checks = (
        *test_outcomes(results),
        *(CheckOutcome(gate.gate, gate.kpi, gate.passed, True, gate.summary, gate.details) for gate in decided),
    )
    engine = engines.identity(manifest.spec.transforms.engine, connection)
    receipt = StageReceipt(
        stage=Stage.KPI_BUILD, tenant_id=spec.tenant_id, pipeline=spec.pipeline, run_token=token, changed=True,
        counts={"rows": sum(o.rows for o in outputs), "gates": len(decided),
                "gates_failed": sum(not gate.passed for gate in decided)},
        outputs=tuple(outputs), checks=checks,
        facts={"run_id": gdp.run_id, "periods": "all" if periods == "all" else "changed", "engine": engine["name"]},
    )
    assert gdp.run_id is not None
    definition_register.store(connection, definitions)
    history.finish(
        connection, receipt, gdp.run_id, identity,
        basis={**definition, "gdp_token": gdp.run_token, "definitions": [vars(d.bound) for d in definitions]},
        evidence={
            "gdp": {"run_token": gdp.run_token, "evidence": gdp.evidence_seq,
                    "outputs": {o.name: o.content_sha256 for o in gdp.receipt.outputs}},
            "outputs": {o.name: {"content_sha256": o.content_sha256, "rows": o.rows} for o in outputs},
            "definitions": {d.name: d.sha256 for d in definitions},
            "kpis": {kpi.name: {"version": kpi.metadata.version, "hash": kpi.hash} for kpi in kpis},
            "calendar": definition["calendar"], **_extended(calendar), "manifest_hash": manifest.hash,
            "code_version": environment.code_version, "engine": engine,
        },
        artefact=environment.artefact,
    )
    return receipt


def _extended(calendar: history.FinishedStage | None) -> dict[str, list[str]]:
    """What the calendar was extended for, as evidence has it: with it the table can be made again."""
    covers = None if calendar is None else calendar_stage.covered_by(calendar.receipt)
    return {} if covers is None else {"calendar_covers": [day.isoformat() for day in covers]}


def _affected_periods(
    connection: psycopg.Connection, kpi: Kpi, tenant_id: str, since_run: int
) -> Mapping[str, list[str]]:
    """Periods to compute again, by kind: those of changed rows, and every later one where the effect is onward."""
    days: set[dt.date] = set()
    for dependency in kpi.spec.depends_on:
        changed = gdp_store.changed_dates(connection, dependency.gdp, tenant_id, dependency.date_column, since_run)
        days.update(changed)
        if changed and dependency.effect == "onward":
            last = max(
                gdp_store.last_date(connection, other.gdp, tenant_id, other.date_column) or changed[-1]
                for other in kpi.spec.depends_on
            )
            span = (max(last, changed[-1]) - changed[0]).days
            days.update(changed[0] + dt.timedelta(days=offset) for offset in range(span + 1))
    return {
        kind: sorted({day.isoformat()[: _PERIOD_LENGTH[kind]] for day in days})
        for kind in sorted({grain.period for grain in kpi.spec.grains})
    }


_PERIOD_LENGTH = {"day": len("2026-03-05"), "month": len("2026-03")}
