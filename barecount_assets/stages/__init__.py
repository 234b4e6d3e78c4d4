"""The stages of the lifecycle: plain Python, no Dagster.

`execute` is the payload's entry point on every backend: a specification in, a receipt out. Stages are imported when
they are run, because each brings its own heavy libraries.
"""

from __future__ import annotations

from importlib import import_module

from barecount_assets.stages import lineage
from barecount_assets.stages.environment import StageEnvironment
from resources.runners.facade import Progress
from resources.runners.stage import Stage, StageReceipt, StageSpec

_MODULES = {
    Stage.INGESTION: "barecount_assets.stages.ingestion.stage",
    Stage.CALENDAR: "barecount_assets.stages.calendar",
    Stage.NORMALIZATION: "barecount_assets.stages.normalization",
    Stage.KPI_BUILD: "barecount_assets.stages.kpi_build",
    Stage.PUBLISH: "barecount_assets.stages.publish",
}


def execute(spec: StageSpec, progress: Progress, environment: StageEnvironment | None = None) -> StageReceipt:
    """Run the stage a specification names.

    Raises:
        BareCountError: what went wrong, whether a retry can help, and what to do.
    """
    environment = environment or StageEnvironment.open()
    if not spec.probe:
        environment.admit_contracts(spec.tenant_id, spec.pipeline)
    with lineage.watched():
        return import_module(_MODULES[spec.stage]).run(spec, environment, progress)
