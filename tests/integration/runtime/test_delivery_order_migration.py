"""A database of before deliveries had an order: what landed is put in order by what evidence tells of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config

from resources.runtime import migrations
from resources.runtime.database import Database, fetch

DATASET = "shop.orders"


def test_what_landed_before_is_ordered_by_landing_then_natural_names(new_database: Callable[..., Database]) -> None:
    url = new_database("template1").admin_url
    at(url, "0012")
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        connection.execute("select platform.register_tenant('acme', 'Acme', 'x')")
        connection.execute("insert into platform.run (tenant_id, pipeline, stage, run_token, manifest_hash, "
                           "code_version) values ('acme', 'shop', 'normalization', 't', '', '')")
        landed = {name: land(connection, name) for name in ("export-10.csv", "export-9.csv")}  # as text: one run
        tell(connection, "ingestion.finished", "shop", "first")
        landed["a.csv"] = land(connection, "a.csv")
        replayed = land(connection, "quarantine/export-9.csv#1", replay_of=landed["export-9.csv"])
        tell(connection, "batch.redelivered", f"{DATASET}/export-11.csv", "copy")  # says what export-9 says, later
        connection.execute("insert into platform.source_unit values ('acme', $1, 'export-11.csv', $2)",
                           (DATASET, landed["export-9.csv"]))
        tell(connection, "ingestion.finished", "shop", "second")
        connection.execute("insert into platform.normalized_batch select 'acme', 'shop', batch_id, 1 "
                           "from platform.raw_batch")
    assert migrations.upgrade(url)
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        orders = dict(fetch(connection, "select batch_id, delivery_order from platform.raw_batch"))
        assert sorted(orders, key=orders.__getitem__) == [
            landed["export-10.csv"], landed["a.csv"], landed["export-9.csv"], replayed]
        assert orders[replayed].startswith(orders[landed["export-9.csv"]] + "/")
        assert fetch(connection, "select count(*) from platform.normalized_batch n join platform.raw_batch b "
                                 "using (batch_id, delivery_order)") == [(4,)]
        (last,) = fetch(connection, "select landings from platform.delivery_counter")
        newest = fetch(connection, "select max(landing) from platform.source_unit")
        assert [last] == newest, "what lands next is newer than all of it"
        connection.execute("delete from platform.source_unit where source_id = 'export-11.csv'")
        connection.execute("update platform.source_unit set landing = landing where source_id = 'export-9.csv'")
        back = dict(fetch(connection, "select batch_id, delivery_order from platform.raw_batch"))
        assert back[landed["export-9.csv"]] < back[landed["export-10.csv"]], "its own place in its own landing"
        assert back[replayed].startswith(back[landed["export-9.csv"]] + "/"), "the replay goes with it"


def at(url: str, version: str) -> None:
    """Bring an empty database to an earlier version."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["url"] = url
    command.upgrade(config, version)


def tell(connection: psycopg.Connection, kind: str, subject: str, token: str) -> int:
    return fetch(connection, "select platform.append_evidence('acme', $1, $2, $3, now(), '{}')",
                 (kind, subject, token))[0][0]


def land(connection: psycopg.Connection, name: str, replay_of: int | None = None) -> int:
    """A batch and its unit, as version 0012 kept them."""
    seq = tell(connection, "batch.landed", f"{DATASET}/{name}", name)
    document = {
        "tenant_id": "acme", "pipeline": "shop", "dataset": DATASET, "source_id": name, "load_date": "2026-11-20",
        "is_current": True, "content_sha256": name, "received": 1, "accepted": 1, "quarantined": 0, "object_key": name,
        "object_sha256": name, "object_bytes": 1, "schema_hash": "", "extraction_version": "1.0.0",
        "contract_version": "1.0.0", "contract_hash": "", "software_version": "", "run_token": name,
        "replay_of": replay_of, "evidence_seq": seq,
    }
    columns = ", ".join(document)
    number = fetch(connection, f"insert into platform.raw_batch ({columns}) select {columns} "
                               "from jsonb_populate_record(null::platform.raw_batch, $1::text::jsonb) "
                               "returning batch_id", (json.dumps(document),))[0][0]
    fetch(connection, "insert into platform.source_unit values ('acme', $1, $2, $3)", (DATASET, name, number))
    return number
