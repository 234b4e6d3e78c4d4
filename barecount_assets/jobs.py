"""Jobs: one per pipeline, from raw to published.

https://docs.dagster.io/guides/build/jobs/asset-jobs
"""

from __future__ import annotations

import dagster as dg

from barecount_assets import partitions
from resources.governance.declarations import Declarations
from resources.governance.manifests import Pipeline


def pipeline_job(
    declarations: Declarations, manifest: Pipeline, assets: list[dg.AssetsDefinition]
) -> dg.JobDefinition | dg.UnresolvedAssetJobDefinition:
    """The job that brings a pipeline's numbers up to date for the partitions of its run."""
    return dg.define_asset_job(
        manifest.name,
        selection=dg.AssetSelection.assets(*assets),
        partitions_def=partitions.days_and_tenants(declarations, manifest),
        description=manifest.metadata.description,
        tags={"barecount/pipeline": manifest.name},
        executor_def=dg.in_process_executor,
    )
