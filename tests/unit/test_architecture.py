"""The house rules that a reader relies on: who may import whom, and what no file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FAMILIES = (
    "runtime", "trust", "security", "access", "host", "data_utilities", "storage", "governance", "runners", "action",
    "consumption",
)  # fmt: skip
"""Bottom to top: a family imports only itself and those before it."""


def modules(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", modules("resources"), ids=lambda p: str(p.relative_to(PROJECT)))
def test_nothing_flows_back_up(path: Path) -> None:
    family = path.relative_to(PROJECT / "resources").parts[0]
    if family == "__init__.py":
        return
    allowed = FAMILIES[: FAMILIES.index(family) + 1]
    for name in imports(path):
        assert name.split(".")[0] != "barecount_assets", f"{path.name} imports {name}"
        if name.startswith("resources."):
            assert name.split(".")[1] in allowed, f"{family} may import {allowed}, not {name}"
        if family != "runners":
            assert name.split(".")[0] != "dagster"


@pytest.mark.parametrize("path", modules("barecount_assets/stages"), ids=lambda p: str(p.relative_to(PROJECT)))
def test_stages_know_nothing_of_dagster(path: Path) -> None:
    for name in imports(path):
        assert not name.startswith(("dagster", "barecount_assets.assets", "barecount_assets.cli")), name


def test_every_module_says_what_it_is_for() -> None:
    empty = {path for path in (*modules("resources"), *modules("barecount_assets")) if not path.read_text().strip()}
    silent = [str(path.relative_to(PROJECT)) for path in (*modules("resources"), *modules("barecount_assets"))
              if path not in empty and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


def test_the_command_starts_without_heavy_libraries() -> None:
    heavy = ("dagster", "dbt", "great_expectations", "polars", "pyarrow", "pandas", "pandera", "alembic", "boto3")
    script = ("import sys; import barecount_assets.cli.main; import barecount_assets.stages.environment; "
              f"print([name for name in {heavy!r} if name in sys.modules])")
    found = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=False)
    paths = [PROJECT / name for name in listed.stdout.decode().split("\0") if name] or [
        path for path in PROJECT.rglob("*") if path.is_file() and not {".venv", ".git", ".barecount"} & set(path.parts)]
    patterns = re.compile(r"files\.pythonhosted\.|pypi\.(org|python)|/simple/|(?<![\w.])/(work|home|Users|root)/\w")
    offenders = [str(path.relative_to(PROJECT)) for path in paths
                 if path.is_file() and path != Path(__file__) and patterns.search(path.read_text("utf-8", "replace"))]
    assert offenders == []
