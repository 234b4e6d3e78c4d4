"""Column lineage of the project: from the file beside the contracts, the data folder, or compiled anew.

Light to import, because `barecount check` begins here: dbt and sqlglot are, when there is something to compile.
"""

from __future__ import annotations

import threading
from pathlib import Path

from barecount_assets import project_definitions
from resources.governance import column_lineage, lineage_lock
from resources.governance.column_lineage import ProjectLineage
from resources.governance.declarations import Declarations
from resources.runtime.settings import Settings

_known: dict[tuple[Path, str, tuple[str, ...]], ProjectLineage] = {}
_one = threading.Lock()


def of_project(settings: Settings, declarations: Declarations, *, may_compile: bool = True) -> ProjectLineage:
    """Column lineage of everything declared; compiled at most once per state of the project and data folder.

    Without `may_compile` the columns of models may be missing; those of raw and published assets never are.

    Raises:
        BareCountError: transform.failed when dbt cannot read the project.
    """
    raw = tuple(sorted(c.hash for c in declarations.contracts.values() if c.layer == "raw"))
    key = (settings.data_dir, column_lineage.fingerprint(declarations), raw)
    with _one:
        if key not in _known:
            found = kept(settings, declarations)
            if found is None and not may_compile:
                return column_lineage.of_project(declarations, {})
            _known[key] = found or compile_anew(settings, declarations)
        return _known[key]


def kept(settings: Settings, declarations: Declarations) -> ProjectLineage | None:
    """Lineage that was worked out before, with the raw columns of now; None when what models depend on has changed."""
    fingerprint = column_lineage.fingerprint(declarations)
    for path in (settings.project_dir / lineage_lock.PLACE, _cache(settings)):
        lineage = lineage_lock.read(path, fingerprint)
        if lineage is not None and (current := column_lineage.with_raw(lineage, declarations)) is not None:
            return current
    return None


def compile_anew(settings: Settings, declarations: Declarations) -> ProjectLineage:
    """Resolve the columns of every model, compiled; the result is kept in the data folder.

    Raises:
        BareCountError: transform.failed when dbt cannot read the project.
    """
    models = project_definitions.compiled(settings, declarations)
    lineage = column_lineage.of_project(declarations, {name: model.sql for name, model in models.items()})
    lineage_lock.write(_cache(settings), lineage)
    return lineage


def _cache(settings: Settings) -> Path:
    return settings.data_dir / "lineage" / "columns.json"
