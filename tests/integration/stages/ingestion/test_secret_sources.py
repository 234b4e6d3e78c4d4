"""Secrets of sources: references in the manifest, values only in the process that reads, each reading on record."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import yaml

from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import declarations
from resources.runners.stage import Placement, Stage, StageReceipt, StageSpec
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.trust import ledger
from resources.trust.secrets import Secrets
from tests.conftest import PROJECT

PASSWORD = "hunter2/with:signs@"
CUSTOMERS = """
create table customers (customer_id text, name text, segment text, country text, credit_limit numeric(18, 2),
    payment_terms_days integer, quality_score double precision, updated_at timestamp);
insert into customers values ('C1', 'Firm', 'small', 'GB', 1000, 14, 0.9, '2026-01-05')
"""


@pytest.fixture
def environment(database: Database, settings: Settings, tmp_path: Path) -> StageEnvironment:
    """A project whose customers come from a database, the password of which is a secret."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(CUSTOMERS)
    project = tmp_path / "project"
    for part in ("contracts", "dbt_project"):
        shutil.copytree(PROJECT / part, project / part, ignore=shutil.ignore_patterns("target", "logs"))
    manifest = project / "contracts" / "pipelines" / "order_to_cash.yaml"
    document = yaml.safe_load(manifest.read_text())
    (source,) = [source for source in document["spec"]["sources"] if source["name"] == "customers"]
    source.clear()
    source |= {"name": "customers", "dataset": "order_to_cash.customers", "connector": "sql", "table": "customers",
               "dsn": database.admin_url.replace("postgres@", "postgres:${secret://crm#password}@")}
    manifest.write_text(yaml.safe_dump(document, sort_keys=False))
    assert "secret://crm#password" in manifest.read_text() and declarations.check(project) == []
    return StageEnvironment.using(replace(settings, project_dir=project), database)


def ingest(environment: StageEnvironment, tenant: str) -> StageReceipt:
    return execute(StageSpec(Stage.INGESTION, tenant, "order_to_cash", Placement("container", "medium", "private_vpc"),
                             "customers", ("2026-01-05", "2026-01-05")), lambda *_: None, environment)


def test_a_source_is_read_with_the_tenants_secret_and_the_reading_is_on_record(environment: StageEnvironment) -> None:
    database = environment.database
    with database.transaction() as connection:
        environment.register_tenant(connection, "acme")
    Secrets.of(environment.settings.data_dir, database).keep("acme", "crm", {"password": PASSWORD})
    assert ingest(environment, "acme").counts["accepted"] == 1
    with database.connect(autocommit=True) as connection:
        read = [json.loads(body) for (body,) in fetch(
            connection, "select body from platform.evidence where kind = 'secret.read' order by seq")]
        assert [(entry["subject"], entry["payload"]["purpose"]) for entry in read] == [
            ("secret://crm#password", "source customers of order_to_cash")], "once, however often it connects"
        written = fetch(
            connection, "select count(*) from platform.evidence where position($1 in body) > 0", (PASSWORD,))
        assert written == [(0,)]
        assert ledger.verify(connection, "acme").findings == ()
    files = [path for path in environment.settings.data_dir.rglob("*") if path.is_file()]
    assert files and not any(PASSWORD.encode() in path.read_bytes() for path in files)


def test_another_tenants_secret_is_none_and_nothing_lands(environment: StageEnvironment) -> None:
    database = environment.database
    with database.transaction() as connection:
        for tenant in ("acme", "globex"):
            environment.register_tenant(connection, tenant)
    Secrets.of(environment.settings.data_dir, database).keep("acme", "crm", {"password": PASSWORD})
    with pytest.raises(BareCountError) as refused:
        ingest(environment, "globex")
    assert refused.value.code is ErrorCode.SECRET_UNKNOWN and "globex" in refused.value.message
    with database.connect(autocommit=True) as connection:
        assert fetch(connection, "select count(*) from platform.raw_batch") == [(0,)]
