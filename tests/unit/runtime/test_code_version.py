"""The version of the code covers every source, whatever a pipeline is called, and nothing that tools leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from resources.runtime.settings import code_version
from resources.storage import artefacts


def version(project: Path) -> tuple[str, str]:
    code_version.cache_clear()
    return code_version(project), artefacts.pack(project, []).sha256


@pytest.mark.parametrize("name", ["target", "logs", "dbt_packages", "schemas", "orders"])
def test_an_edited_model_changes_it_whatever_its_pipeline_is_called(tmp_path: Path, name: str) -> None:
    model = tmp_path / "dbt_project" / "models" / "gdp" / name / "record.sql"
    model.parent.mkdir(parents=True)
    model.write_text("select 1 as id")
    before = version(tmp_path)
    model.write_text("select 2 as id")
    after = version(tmp_path)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("folder", ["target", "logs", "dbt_packages"])
def test_what_dbt_leaves_does_not_change_it(tmp_path: Path, folder: str) -> None:
    before = version(tmp_path)
    left = tmp_path / "dbt_project" / folder / "compiled.sql"
    left.parent.mkdir(parents=True)
    left.write_text("select 1")
    assert version(tmp_path) == before
