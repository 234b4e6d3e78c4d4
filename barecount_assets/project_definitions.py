"""Definitions of the project: from the file beside the contracts, the data folder, or compiled anew.

Light to import, because `barecount check` begins here: dbt is, when there is something to compile.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from resources.governance import column_lineage, definitions
from resources.governance.declarations import Declarations
from resources.governance.definitions import CompiledModel, Definition
from resources.runtime.settings import Settings, stage_code_version

_known: dict[tuple[Path, str], Mapping[str, CompiledModel]] = {}
_one = threading.Lock()


def compiled(settings: Settings, declarations: Declarations) -> Mapping[str, CompiledModel]:
    """Every model, compiled for PostgreSQL, by name; compiled at most once per state of the project and data folder.

    Raises:
        BareCountError: transform.failed when dbt cannot read the project.
    """
    fingerprint = column_lineage.fingerprint(declarations)
    key = (settings.data_dir, fingerprint)
    with _one:
        if key not in _known:
            on_file = _on_file(settings, fingerprint)
            _known[key] = on_file if on_file is not None else _compile(settings, declarations, fingerprint)
        return _known[key]


def of_project(settings: Settings, declarations: Declarations) -> dict[tuple[str, str], Definition]:
    """Definitions of everything declared, by pipeline and name. Raises as `compiled`."""
    return definitions.of_declarations(declarations, compiled(settings, declarations))


def of_pipeline(settings: Settings, declarations: Declarations, pipeline: str) -> list[Definition]:
    """Definitions of a pipeline's models. Raises as `compiled`."""
    return [d for (owner, _), d in of_project(settings, declarations).items() if owner == pipeline]


def is_locked(settings: Settings, declarations: Declarations) -> bool:
    """Whether `contracts/definitions.json` is that of the project as it is."""
    on_file = definitions.read(settings.project_dir / definitions.PLACE)
    return on_file is not None and on_file.fingerprint == column_lineage.fingerprint(declarations)


def lock(settings: Settings, declarations: Declarations) -> Path:
    """Write `contracts/definitions.json`."""
    path = settings.project_dir / definitions.PLACE
    definitions.write(path, column_lineage.fingerprint(declarations), stage_code_version(),
                      list(of_project(settings, declarations).values()))
    return path


def bound_place(settings: Settings) -> Path:
    """Where the data folder keeps what versions stand for in the database."""
    return settings.data_dir / "definitions" / "bound.json"


def _on_file(settings: Settings, fingerprint: str) -> Mapping[str, CompiledModel] | None:
    for path in (settings.project_dir / definitions.PLACE, _cache(settings)):
        on_file = definitions.read(path)
        if on_file is not None and on_file.fingerprint == fingerprint:
            return on_file.compiled
    return None


def _compile(settings: Settings, declarations: Declarations, fingerprint: str) -> Mapping[str, CompiledModel]:
    from barecount_assets.stages import dbt

    marked = {dataset: known for manifest in declarations.pipelines.values()
            for dataset, known in manifest.sources_for_models.items()}
    models = dbt.compiled(settings, column_lineage.run_variables(declarations.kpis, marked))
    definitions.write(_cache(settings), fingerprint, stage_code_version(),
                      list(definitions.of_declarations(declarations, models).values()))
    return models


def _cache(settings: Settings) -> Path:
    return settings.data_dir / "definitions" / "compiled.json"
