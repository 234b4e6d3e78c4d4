"""Raw assets: one per source, partitioned by day and tenant where the source is dated."""

import datetime as dt
from collections.abc import Iterator

import dagster as dg

from barecount_assets import keys, partitions
from barecount_assets.assets import describe
from barecount_assets.runner import Runner, check_result, metadata_of
from resources.governance.declarations import Declarations
from resources.governance.manifests import AnySource, Pipeline
from resources.runners.stage import Stage, StageReceipt, StageSpec, iso_window

CHECKS = {
    "schema_matches_contract": "Every unit has the fields of the extraction contract; drift holds what follows.",
    "nothing_lost": "Records received equal rows accepted plus records quarantined, recounted in the stores.",
    "completeness": "The share of records that are refused and open keeps the declared limits; publication asks too.",
    "contract_rules": "Rules of the raw contract about all rows together: duplicates, row counts, shares.",
}


def build(declarations: Declarations, manifest: Pipeline) -> list[dg.AssetsDefinition]:
    """The raw assets of a pipeline."""
    return [_raw_asset(declarations, manifest, source) for source in manifest.spec.sources]


def _raw_asset(declarations: Declarations, manifest: Pipeline, source: AnySource) -> dg.AssetsDefinition:
    contract = declarations.contract(source.dataset, "raw")
    key = keys.raw(manifest.name, source.name)

    @dg.asset(
        key=key,
        group_name=keys.RAW,
        description=contract.title,
        owners=describe.owners(manifest),
        tags=describe.tags(manifest),
        kinds={"parquet", "postgres"},
        metadata=describe.contract_metadata(contract),
        partitions_def=partitions.days_and_tenants(declarations, manifest) if source.dated else None,
        backfill_policy=dg.BackfillPolicy.single_run() if source.dated else None,
        check_specs=[
            dg.AssetCheckSpec(name, asset=key, blocking=name != "completeness", description=text)
            for name, text in CHECKS.items()
        ],
        retry_policy=dg.RetryPolicy(max_retries=2, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL),
        op_tags={"barecount/stage": Stage.INGESTION.value},
        pool=describe.placement(manifest).runner_class,
    )
    def raw(context: dg.AssetExecutionContext, runner: dg.ResourceParam[Runner]) -> Iterator[dg.MaterializeResult]:
        receipts = [
            runner.run(
                context,
                StageSpec(
                    Stage.INGESTION, tenant, manifest.name, describe.placement(manifest), source.name,
                    iso_window(start, end), partitions.source_paths(context),
                ),
            )
            for tenant, start, end in _windows(context, manifest, source)
        ]
        yield dg.MaterializeResult(
            metadata=metadata_of(receipts, source.dataset),
            check_results=[_check(key, name, receipts) for name in CHECKS],
        )

    return raw


def _windows(
    context: dg.AssetExecutionContext, manifest: Pipeline, source: AnySource
) -> list[tuple[str, dt.date, dt.date]]:
    if source.dated:
        return list(partitions.windows(context))
    # An undated source has no days of its own: it is read whole, whatever days the run is for.
    start, end = partitions.day_of(context) or (manifest.spec.partitions.start, manifest.spec.partitions.start)
    return [(tenant, start, end) for tenant in partitions.tenants_of(context, manifest)]


def _check(key: dg.AssetKey, name: str, receipts: list[StageReceipt]) -> dg.AssetCheckResult:
    outcomes = {r.tenant_id: check for r in receipts for check in r.checks if check.name == name}
    return check_result(key, name, outcomes, isolate_tenants=True)
