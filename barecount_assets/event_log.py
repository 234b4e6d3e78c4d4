"""Dagster's event log on PostgreSQL, in which the planned materializations of a run are written at once.

A run over a range of days plans every day of every raw asset. Dagster's own storage writes materializations in batches
but plans one by one, three statements each: for a year, longer than the work itself. Named by `deploy/dagster.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from dagster import DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import AssetKeyTable, SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config


class BatchedEventLogStorage(PostgresEventLogStorage):
    """Dagster's storage, with one statement for the plans of a batch.

    It does not look for a table or a column again that it has found: Dagster's own does, at every event.
    """

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> BatchedEventLogStorage:
        return cls(pg_url_from_config(config_value), inst_data=inst_data,
                   token_provider=get_token_provider_from_config(config_value))

    @cached_property
    def _found(self) -> set[str]:
        return set()

    def has_table(self, table_name: str) -> bool:
        if table_name not in self._found and super().has_table(table_name):
            self._found.add(table_name)
        return table_name in self._found

    def has_asset_key_col(self, column_name: str) -> bool:
        column = f"{AssetKeyTable.name}.{column_name}"
        if column not in self._found and super().has_asset_key_col(column_name):
            self._found.add(column)
        return column in self._found

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        plans = [event for event in events if _is_plan(event)]
        if plans:
            self._store_plans(plans)
        if others := [event for event in events if not _is_plan(event)]:
            super().store_event_batch(others)

    def _store_plans(self, plans: Sequence[EventLogEntry]) -> None:
        insert = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
        with self._connect() as connection:
            numbers = [row.id for row in connection.execute(insert, [self._event_to_row(plan) for plan in plans])]
        newest = {plan.get_dagster_event().asset_key: (plan, number)
                  for plan, number in zip(plans, numbers, strict=True)}
        with self.index_transaction() as connection:
            for plan, number in newest.values():
                self._store_asset_event(connection, plan, number)


def _is_plan(event: EventLogEntry) -> bool:
    return event.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION_PLANNED
