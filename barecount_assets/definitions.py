"""Everything Dagster sees, made from manifests. No network and no database at import.

https://docs.dagster.io/guides/build/projects-and-components/organizing-dagster-projects
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from barecount_assets import jobs, project_lineage, schedules, sensors
from barecount_assets.action_job import Actions, action_job
from barecount_assets.approved_work import approved_work
from barecount_assets.assets import raw, transforms
from barecount_assets.runner import Runner
from resources.governance import declarations as declared
from resources.runtime.settings import Settings

warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


def build_defs(
    project_dir: Path | None = None, resources: Mapping[str, Any] | None = None,
    declarations: declared.Declarations | None = None,
) -> dg.Definitions:
    """Fresh definitions of every declared pipeline.

    Args:
        project_dir: where `contracts/` is; the current project by default.
        resources: replacements for resources by name (`runner`), so that tests and commands swap parts.
        declarations: what is declared there, where it was read already.

    Raises:
        BareCountError: declaration.invalid, naming every wrong declaration.
    """
    settings = Settings.from_environment()
    declarations = declarations or declared.load(project_dir or settings.project_dir)
    # What is known already is shown; nothing is compiled for it.
    lineage = project_lineage.kept(replace(settings, project_dir=declarations.project_dir), declarations)
    assets: list[dg.AssetsDefinition] = []
    all_jobs, all_schedules, all_sensors = [], [], [sensors.freshness(declarations)]
    for manifest in declarations.pipelines.values():
        own = [*raw.build(declarations, manifest), *transforms.build(declarations, manifest, lineage)]
        job = jobs.pipeline_job(declarations, manifest, own)
        assets += own
        all_jobs.append(job)
        all_schedules += schedules.build(declarations, manifest, job)
        sensor = sensors.file_drop(manifest, job)
        all_sensors += [*([sensor] if sensor else []), sensors.drift_decided(manifest, job)]
    all_sensors.append(sensors.approvals(dict(zip(declarations.pipelines, all_jobs, strict=True))))
    kpi_events = sensors.kpi_events(declarations)
    return dg.Definitions(
        assets=assets,
        jobs=[*all_jobs, action_job, approved_work],
        schedules=all_schedules,
        sensors=[*all_sensors, sensors.lineage_relay(), *([kpi_events] if kpi_events else [])],
        resources={"runner": Runner(), "actions": Actions(), **(resources or {})},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs()
