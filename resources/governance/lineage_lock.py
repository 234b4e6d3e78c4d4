"""`contracts/lineage.json`: the column lineage of what is declared, kept beside it.

Compiling every model takes seconds; reading the file takes milliseconds, so `barecount check` judges flows at once and
a review of a changed model shows which columns now come from where. The file counts only while its fingerprint is that
of the dbt project, the contracts and the manifests; else lineage is compiled again, and kept in the data folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from resources.governance.column_lineage import ProjectLineage

PLACE = "contracts/lineage.json"


def read(path: Path, fingerprint: str) -> ProjectLineage | None:
    """What the file holds, None when it is not there, not readable, or of something else than is declared now."""
    try:
        lineage = ProjectLineage.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return lineage if lineage.fingerprint == fingerprint else None


def changed_columns(path: Path, lineage: ProjectLineage) -> list[str]:
    """Columns that come from elsewhere than the file says, those it does not know among them; `<asset>.<column>`."""
    try:
        known = ProjectLineage.from_json(json.loads(path.read_text(encoding="utf-8"))).assets
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    before = {(name, column): found for name, asset in known.items() for column, found in asset.columns.items()}
    now = {(name, column): found for name, asset in lineage.assets.items() for column, found in asset.columns.items()}
    return [".".join(key) for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def write(path: Path, lineage: ProjectLineage) -> None:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(lineage.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
