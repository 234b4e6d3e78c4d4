"""GDP, calendar, KPI and published assets: one step per stage and pipeline, one asset per model or KPI.

The step works for the tenants of the run; the platform itself knows which keys and periods changed.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence

import dagster as dg

from barecount_assets import keys, partitions
from barecount_assets.assets import describe
from barecount_assets.runner import Runner, check_result, metadata_of
from resources.governance.column_lineage import ProjectLineage
from resources.governance.declarations import Declarations
from resources.governance.manifests import Pipeline
from resources.runners.stage import CheckOutcome, Stage, StageReceipt, StageSpec

DATA_TESTS = "data_tests"
GATES = {
    "acceptance": "The KPI's acceptance suite, derived from its specification.",
    "reconciliation": "Full-key comparison with the system of record.",
}


def build(
    declarations: Declarations, manifest: Pipeline, lineage: ProjectLineage | None = None
) -> list[dg.AssetsDefinition]:
    """Everything below raw; with the lineage of its columns where that is known."""
    return [
        *([_calendar(manifest)] if manifest.spec.transforms.calendar else []),
        _gdps(declarations, manifest, lineage),
        _kpis(declarations, manifest, lineage),
        _published(declarations, manifest, lineage),
    ]


def _calendar(manifest: Pipeline) -> dg.AssetsDefinition:
    spec = dg.AssetSpec(
        keys.calendar(manifest.name), group_name=keys.GDP, kinds={"postgres"}, owners=describe.owners(manifest),
        tags=describe.tags(manifest),
        description="Date dimension per tenant: weekends, holidays, business days, fiscal periods.",
    )
    return _step(manifest, Stage.CALENDAR, [spec], [])


def _gdps(
    declarations: Declarations, manifest: Pipeline, lineage: ProjectLineage | None
) -> dg.AssetsDefinition:
    raws = [keys.raw(manifest.name, source.name) for source in manifest.spec.sources]
    specs, checks = [], []
    for model in manifest.spec.transforms.gdp:
        contract = declarations.contract(f"{manifest.name}.{model}", "gold")
        key = keys.gdp(manifest.name, model)
        specs.append(dg.AssetSpec(
            key, deps=raws, group_name=keys.GDP, kinds={"dbt", "postgres", manifest.spec.transforms.engine},
            owners=describe.owners(manifest),
            tags=describe.tags(manifest), description=contract.title,
            metadata={**describe.contract_metadata(contract),
                      **describe.column_lineage(lineage, manifest, f"gdp.{model}")},
        ))
        checks.append(dg.AssetCheckSpec(DATA_TESTS, asset=key, description="dbt data tests of the model."))
    return _step(manifest, Stage.NORMALIZATION, specs, checks)


def _kpis(
    declarations: Declarations, manifest: Pipeline, lineage: ProjectLineage | None
) -> dg.AssetsDefinition:
    specs, checks = [], []
    for name in manifest.spec.kpis:
        kpi = declarations.kpi(name)
        contract = declarations.contract(f"{manifest.name}.{name}", "activation")
        key = keys.kpi(manifest.name, name)
        deps = [keys.gdp(manifest.name, dependency.gdp) for dependency in kpi.spec.depends_on]
        if kpi.spec.calendar:
            deps.append(keys.calendar(manifest.name))
        specs.append(dg.AssetSpec(
            key, deps=deps, group_name=keys.KPI, kinds={"dbt", "postgres", manifest.spec.transforms.engine},
            owners=[person.email for person in kpi.metadata.owners], tags=describe.tags(manifest),
            description=f"{kpi.metadata.description}\n\nFormula: {kpi.spec.formula}",
            metadata={**describe.contract_metadata(contract),
                      **describe.column_lineage(lineage, manifest, f"kpi.{name}"), "kpi_version": kpi.metadata.version,
                      "unit": kpi.spec.unit},
            code_version=kpi.metadata.version,
        ))
        checks.append(dg.AssetCheckSpec(DATA_TESTS, asset=key, description="dbt data tests of the model."))
        checks.append(dg.AssetCheckSpec("acceptance", asset=key, blocking=True, description=GATES["acceptance"]))
        if kpi.spec.reconciliation:
            checks.append(
                dg.AssetCheckSpec("reconciliation", asset=key, blocking=True, description=GATES["reconciliation"]))
    return _step(manifest, Stage.KPI_BUILD, specs, checks)


def _published(
    declarations: Declarations, manifest: Pipeline, lineage: ProjectLineage | None
) -> dg.AssetsDefinition:
    freshness = manifest.spec.slos.freshness
    policy = dg.FreshnessPolicy.time_window(
        fail_window=dt.timedelta(hours=freshness.max_lag_hours)) if freshness else None
    specs = []
    for name in manifest.spec.kpis:
        kpi = declarations.kpi(name)
        contract = declarations.contract(f"{manifest.name}.{name}", "activation")
        specs.append(dg.AssetSpec(
            keys.published(manifest.name, name), deps=[keys.kpi(manifest.name, other) for other in manifest.spec.kpis],
            group_name=keys.PUBLISHED, kinds={"postgres"}, owners=describe.owners(manifest),
            tags=describe.tags(manifest), description=f"{kpi.metadata.title}, as consumers see it.",
            metadata={**describe.contract_metadata(contract),
                      **describe.column_lineage(lineage, manifest, f"published.{name}")},
            freshness_policy=policy,
        ))
    return _step(manifest, Stage.PUBLISH, specs, [])


def _step(
    manifest: Pipeline, stage: Stage, specs: Sequence[dg.AssetSpec], checks: Sequence[dg.AssetCheckSpec]
) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=f"{manifest.name}__{stage}", specs=list(specs), check_specs=list(checks),
        retry_policy=dg.RetryPolicy(max_retries=2, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL),
        op_tags={"barecount/stage": stage.value},
        pool=describe.placement(manifest).runner_class,
    )
    def step(context: dg.AssetExecutionContext, runner: dg.ResourceParam[Runner]) -> Iterator[dg.MaterializeResult]:
        tenants = partitions.tenants_of(context, manifest)
        receipts = _for_each(
            context, tenants,
            lambda tenant: runner.run(
                context, StageSpec(stage, tenant, manifest.name, describe.placement(manifest))),
        )
        for spec in specs:
            name = spec.key.path[-1]
            yield dg.MaterializeResult(
                asset_key=spec.key,
                metadata=metadata_of(receipts, name),
                check_results=[
                    check_result(spec.key, check.name, _outcomes(receipts, name, check.name), isolate_tenants=True)
                    for check in checks if check.asset_key == spec.key
                ],
            )

    return step


def _for_each(
    context: dg.AssetExecutionContext, tenants: Sequence[str], run: Callable[[str], StageReceipt]
) -> list[StageReceipt]:
    """Run for every tenant; one tenant's failure fails the step only after the others had their turn."""
    receipts: list[StageReceipt] = []
    failures: list[dg.Failure] = []
    for tenant in tenants:
        try:
            receipts.append(run(tenant))
        except dg.Failure as failure:
            context.log.error(f"{tenant}: {failure.description}")
            failures.append(failure)
    if failures:
        raise failures[0]
    return receipts


def _outcomes(receipts: Sequence[StageReceipt], asset: str, check: str) -> dict[str, CheckOutcome]:
    outcomes = {}
    for receipt in receipts:
        if check == DATA_TESTS:
            tests = [c for c in receipt.checks if c.asset == asset and c.name not in GATES]
            failed = [c for c in tests if not c.passed]
            outcomes[receipt.tenant_id] = CheckOutcome(
                DATA_TESTS, asset, not failed, False,
                f"{len(tests) - len(failed)} of {len(tests)} dbt tests pass", {c.name: c.summary for c in failed})
            continue
        found = next((c for c in receipt.checks if c.asset == asset and c.name == check), None)
        if found is not None:
            outcomes[receipt.tenant_id] = found
    return outcomes
