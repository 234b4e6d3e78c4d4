"""Every kind of source, read three times within a moment: a state, another one, and the first one again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.trust import ledger
from tests.integration.stages.ingestion.customers import TENANT, Answering, Customers, files, record, rest, sql

Say = Callable[..., None]


@pytest.fixture(scope="module")
def api() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SQLITE, POSTGRES = "sqlite:///{folder}/shop.db", "{postgres}"
KINDS: dict[str, tuple[dict[str, Any], Callable[[Customers, list[dict[str, Any]]], None]]] = {
    "csv": (files("csv"), Customers.write_csv),
    "jsonl": (files("jsonl"), Customers.write_jsonl),
    "parquet": (files("parquet"), Customers.write_parquet),
    "sqlite table": (sql(SQLITE, table="customers"), Customers.write_sqlite),
    "sqlite query": (sql(SQLITE, query="select * from customers"), Customers.write_sqlite),
    "postgres table": (sql(POSTGRES, table="customers"), Customers.write_postgres),
    "postgres query": (sql(POSTGRES, query="select * from customers"), Customers.write_postgres),
    "rest": (rest(), Customers.write_api),
    "rest of a day": (rest(params={"day": "{date}"}), Customers.write_api),
    "sqlite cursor": (sql(SQLITE, table="customers", cursor_column="payment_terms_days"), Customers.write_sqlite),
    "postgres cursor": (sql(POSTGRES, table="customers", cursor_column="payment_terms_days"), Customers.write_postgres),
    "rest cursor": (rest(params={"since": "{cursor}"}, incremental={
        "start": "2026-01-01T00:00:00.000000Z", "lag_seconds": 0, "format": "%Y-%m-%dT%H:%M:%S.%fZ"}),
        Customers.write_api),
}
STREAMS = [kind for kind in KINDS if KINDS[kind][0]["connector"] != "files" and "cursor" not in kind]


@pytest.fixture
def customers(
    kind: str, database: Database, settings: Settings, tmp_path: Path, api: ThreadingHTTPServer
) -> Customers:
    """The shipped project, whose customers come from a source of the kind."""
    return Customers.make(tmp_path, settings, database, KINDS[kind][0], api)


@pytest.fixture
def say(customers: Customers, kind: str) -> Say:
    """Let the source say some records from now on."""
    return lambda *records: KINDS[kind][1](customers, list(records))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_returns_within_a_moment_is_the_newest_again(customers: Customers, say: Say, kind: str) -> None:
    seen = []
    for days, limit in enumerate((100, 75, 100, 75), 9):  # the cursor passes from one digit to two
        say(record(limit, days if "cursor" in kind else 14))
        receipt = customers.read()
        assert receipt.changed, receipt
        seen.append(customers.newest())
    assert seen == [100, 75, 100, 75]
    with customers.environment.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, TENANT).findings == ()
        orders = fetch(connection, "select body::jsonb -> 'payload' ->> 'delivery_order' from platform.evidence "
                                   "where kind like 'batch.%' order by seq")
    assert len(set(orders)) == len(orders) == 4 and sorted(orders) == orders, "each landing says where it stands"


@pytest.mark.parametrize("kind", STREAMS)
def test_reading_a_state_again_lands_nothing_and_leaves_no_object(customers: Customers, say: Say) -> None:
    say(record(100))
    customers.read()
    objects = sorted(path for path in customers.environment.settings.data_dir.rglob("*.parquet*"))
    again = customers.read()
    assert (again.changed, again.counts["landed"]) == (False, 0)
    assert sorted(customers.environment.settings.data_dir.rglob("*.parquet*")) == objects


@pytest.mark.parametrize("kind", ["sqlite table", "rest", "rest of a day"])
def test_a_change_of_a_refused_record_alone_is_a_change(customers: Customers, say: Say) -> None:
    payloads = []
    for quality in ("bad", "worse", "bad"):
        say(record(100), record(50, quality=quality))
        assert customers.read().counts["quarantined"] == 1
        payloads += customers.rows(
            "select convert_from(q.payload, 'UTF8')::jsonb ->> 'quality_score' from platform.quarantine q "
            "join platform.raw_batch b using (batch_id) where b.is_current")
    assert payloads == [("bad",), ("worse",), ("bad",)]


@pytest.mark.parametrize("kind", ["csv", "sqlite table", "postgres table", "rest", "rest of a day"])
def test_a_source_that_drifts_is_read_on_while_it_waits(customers: Customers, say: Say) -> None:
    limits = []
    for limit in (100, 75, 100):
        say(record(limit) | {"surprise": 1})
        assert customers.read().changed
        limits.append(customers.newest())
    assert limits == [100, 75, 100]
    say(record(60))
    assert customers.read().changed and customers.newest() == 60
