"""Dagster's event log: what a run plans is written at once, and reads as if it had been written one by one."""

from __future__ import annotations

from collections import Counter

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent
from dagster._core.events.log import EventLogEntry
from dagster_postgres.event_log import PostgresEventLogStorage

from barecount_assets.event_log import BatchedEventLogStorage
from barecount_assets.instance import open_instance
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from tests.lifecycle.conftest import unchanged_environment

DAYS = [f"2026-01-{day:02}" for day in range(1, 32)]
PAYMENTS = dg.AssetKey("payments")


def planned(asset: dg.AssetKey, day: str) -> EventLogEntry:
    data = AssetMaterializationPlannedData(asset, partition=day)
    event = DagsterEvent.build_asset_materialization_planned_event("job", "step", data)
    return EventLogEntry(None, 10, "", "run", 1_700_000_000.0, "step", "job", event)


def test_plans_of_a_batch_read_like_plans_stored_one_by_one(settings: Settings, database: Database) -> None:
    with unchanged_environment(), open_instance(settings, database) as instance:
        log = instance.event_log_storage
        assert isinstance(log, BatchedEventLogStorage)
        plans = [planned(dg.AssetKey("invoices"), day) for day in DAYS]
        log.store_event_batch(plans)
        for day in DAYS:
            PostgresEventLogStorage.store_event(log, planned(PAYMENTS, day))
        batched, single = (
            [(entry.dagster_event.partition, entry.timestamp) for entry in log.get_logs_for_run("run")
             if entry.dagster_event.asset_key == asset] for asset in (dg.AssetKey("invoices"), PAYMENTS))
        assert batched == single and [day for day, _ in batched] == DAYS
        assert set(log.all_asset_keys()) == {dg.AssetKey("invoices"), PAYMENTS}
    with database.connect(autocommit=True) as connection:
        stored = fetch(connection, "select asset_key, last_run_id from dagster.asset_keys order by 1")
    assert Counter(run for _, run in stored) == {"run": 2}
