"""What holds for the text of every dbt model, whatever the data: the properties no data test can see."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3] / "dbt_project"
VERSION_COLUMNS = ["tenant_id", "row_hash", "row_version", "valid_from_run", "valid_to_run"]
SERIES_HEAD = ["tenant_id", "grain", "period", "period_start", "fiscal_year", "fiscal_period"]
SERIES_TAIL = ["value", "numerator", "denominator", "source_rows", "kpi_version"]
NONDETERMINISTIC = re.compile(
    r"\b(now|random|gen_random_uuid|clock_timestamp|statement_timestamp)\s*\(|\bcurrent_(date|time|timestamp)\b|\blimit\b",
    re.IGNORECASE,
)


@cache
def _declared() -> dict[str, dict[str, Any]]:
    documents = [yaml.safe_load(path.read_text()) for path in sorted((PROJECT / "models").rglob("*.yml"))]
    return {
        "models": {m["name"]: m for document in documents for m in document.get("models", [])},
        "unit_tests": {t["name"]: t for document in documents for t in document.get("unit_tests", [])},
    }


def _code(path: Path) -> str:
    """SQL and Jinja of a file without comments."""
    return re.sub(r"\{#.*?#\}|--[^\n]*", "", path.read_text(), flags=re.DOTALL)


def _models(layer: str) -> list[Path]:
    return sorted((PROJECT / "models" / layer).rglob("*.sql"))


def _versioned_models() -> list[Path]:
    return [path for path in _models("gdp") if not path.stem.endswith("__rejected")]


def _inputs(scope: dict[str, Any]) -> list[dict[str, str]]:
    return [part for given in scope["from"] for part in (given, given.get("through")) if part]


every_model = pytest.mark.parametrize("path", [*_models("gdp"), *_models("kpi")], ids=lambda path: path.stem)
every_gdp = pytest.mark.parametrize("path", _models("gdp"), ids=lambda path: path.stem)
every_versioned_gdp = pytest.mark.parametrize("path", _versioned_models(), ids=lambda path: path.stem)
every_kpi = pytest.mark.parametrize("path", _models("kpi"), ids=lambda path: path.stem)
every_sql_file = pytest.mark.parametrize(
    "path", sorted(PROJECT.glob("m*/**/*.sql")), ids=lambda path: str(path.relative_to(PROJECT))
)


@every_model
def test_a_model_and_all_its_columns_are_declared_and_described(path: Path) -> None:
    model = _declared()["models"][path.stem]
    assert model["description"].strip()
    assert [column["name"] for column in model["columns"] if not column.get("description", "").strip()] == []
    assert [column["name"] for column in model["columns"] if not column.get("data_type")] == []


@every_model
def test_the_logic_of_a_model_has_a_unit_test(path: Path) -> None:
    assert path.stem in {test["model"] for test in _declared()["unit_tests"].values()}


def test_the_name_of_a_unit_test_fits_a_postgres_identifier() -> None:
    assert [name for name in _declared()["unit_tests"] if len(name) > 63] == []


def test_a_unit_test_runs_with_the_declaration_of_the_model_it_tests() -> None:
    for name, test in _declared()["unit_tests"].items():
        assert test["overrides"]["macros"]["declared_model"]["name"] == test["model"], name


@every_versioned_gdp
def test_a_gdp_ends_in_the_version_columns_and_has_its_key_among_its_columns(path: Path) -> None:
    model = _declared()["models"][path.stem]
    columns = [column["name"] for column in model["columns"]]
    key = model["config"]["unique_key"]
    assert columns[-len(VERSION_COLUMNS) :] == VERSION_COLUMNS
    assert set([key] if isinstance(key, str) else key) < set(columns)
    assert model["config"]["meta"]["scope"]["key"] in columns


@every_gdp
def test_a_gdp_reads_everything_its_scope_names(path: Path) -> None:
    """dbt learns of a dependency from the model's SQL; the strategy may refer to nothing else."""
    for given in _inputs(_declared()["models"][path.stem]["config"]["meta"]["scope"]):
        assert f"'{given.get('raw') or given['gdp']}'" in _code(path)


@every_kpi
def test_a_kpi_has_the_series_columns_around_its_dimensions(path: Path) -> None:
    model = _declared()["models"][path.stem]
    dimensions = {d for grain in model["config"]["meta"]["grains"] for d in grain["dimensions"]}
    columns = [column["name"] for column in model["columns"]]
    assert columns[: len(SERIES_HEAD)] == SERIES_HEAD
    assert columns[-len(SERIES_TAIL) :] == SERIES_TAIL
    assert set(columns) - set(SERIES_HEAD) - set(SERIES_TAIL) == dimensions


@every_sql_file
def test_no_sql_depends_on_the_clock_on_chance_or_on_row_order(path: Path) -> None:
    assert NONDETERMINISTIC.search(_code(path)) is None


@every_sql_file
def test_text_is_ordered_by_code_point_whatever_the_collation(path: Path) -> None:
    """Sources are told apart by their names: ordered by them means `binary_text`."""
    for ordering in re.findall(r"order by([^)]*)", _code(path)):
        assert not re.search(r"(?<!')\bsource_id\b(?!')", ordering)


def test_variables_of_a_run_are_read_in_one_file_and_in_no_config() -> None:
    reads = re.compile(r"(?<!env_)\bvar\(")
    assert [str(p.relative_to(PROJECT)) for p in PROJECT.rglob("*.sql") if reads.search(_code(p))] == [
        "macros/run_variables.sql"
    ]
    assert [str(p.relative_to(PROJECT)) for p in PROJECT.rglob("*.yml") if reads.search(p.read_text())] == []
