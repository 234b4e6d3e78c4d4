"""The unit tests of the dbt models, run as the README of the dbt project says, on tables that hold nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from resources.governance.declarations import load
from resources.runtime.database import Database
from resources.storage import raw_tables

PROJECT = Path(__file__).resolve().parents[3]
MODELS = PROJECT / "dbt_project" / "models"
VARIABLES = "{tenant: acme, run_id: 1, scope: all, currency: GBP}"


@pytest.fixture
def dbt_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database with every raw table, to which dbt connects."""
    with database.connect() as connection:
        for contract in load(PROJECT).contracts.values():
            if contract.layer == "raw":
                raw_tables.ensure(connection, contract.dataset, contract.column_types)
    parts = conninfo_to_dict(database.url)
    for name in ("host", "port", "user", "password", "dbname"):
        monkeypatch.setenv(f"DBT_{name.upper()}", str(parts.get(name, "5432" if name == "port" else "")))
    monkeypatch.setenv("PGOPTIONS", str(parts["options"]))
    return database


def test_every_unit_test_of_the_models_passes(dbt_database: Database, tmp_path: Path) -> None:
    from dbt.cli.main import dbtRunner

    where = ["--project-dir", str(MODELS.parent), "--profiles-dir", str(MODELS.parent), "--target-path", str(tmp_path),
             "--log-path", str(tmp_path), "--quiet", "--log-level", "none", "--no-send-anonymous-usage-stats",
             "--no-version-check"]
    parsed = dbtRunner().invoke(["parse", *where])
    assert parsed.success, parsed.exception
    runner = dbtRunner(manifest=parsed.result)
    built = runner.invoke(["run", *where, "--select", "path:models/gdp", "--vars", VARIABLES])
    assert built.success, [result.message for result in built.result or () if result.message] or built.exception
    tested = runner.invoke(["test", *where, "--select", "test_type:unit"])
    assert tested.success, [(r.node.name, r.message) for r in tested.result or () if r.failures] or tested.exception
    documents = [yaml.safe_load(path.read_text()) for path in MODELS.rglob("*.yml")]
    declared = [test["name"] for document in documents for test in document.get("unit_tests", ())]
    run = [result.node.name for result in tested.result if result.node.resource_type == "unit_test"]
    assert declared and sorted(run) == sorted(declared)
