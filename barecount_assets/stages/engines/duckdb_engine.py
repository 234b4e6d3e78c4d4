"""DuckDB: vectorised, in the process of the stage. Raw objects are read where they lie; nothing outlives the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from barecount_assets.stages.dbt import PlannedModel, Relation
from barecount_assets.stages.engines.inputs import Inputs, RawFile, raw_types
from resources.storage import raw_tables

_BATCH_ROWS = 16_384


@contextmanager
def opened(inputs: Inputs) -> Iterator[DuckDb]:
    """An empty database in memory; what does not fit spills into the run's folder."""
    connection = duckdb.connect(":memory:", config={
        "temp_directory": str(inputs.folder / "spill"),
        # Nothing is fetched, and nulls lie where PostgreSQL has them.
        "autoinstall_known_extensions": False, "autoload_known_extensions": False,
        "default_null_order": "nulls_last_on_asc_first_on_desc", "preserve_insertion_order": False,
    })
    try:
        connection.execute(f"set TimeZone = {_literal(inputs.time_zone)}")
        yield DuckDb(connection)
    finally:
        connection.close()


class DuckDb:
    """An `Engine`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def provide(self, relation: Relation, inputs: Inputs) -> None:
        self._connection.execute(f"create schema if not exists {_quoted(relation.schema)}")
        if relation.schema == raw_tables.SCHEMA:
            self._provide_raw(relation, inputs)
        else:
            self._provide_rows(relation, inputs)

    def compute(self, model: PlannedModel) -> pa.RecordBatchReader:
        columns = ", ".join(
            _quoted(name) if kind == "numeric" else f"cast({_quoted(name)} as {kind}) as {_quoted(name)}"
            for name, kind in model.columns)
        return self._connection.sql(
            f"select {columns} from ({model.sql}\n) as computed").to_arrow_reader(_BATCH_ROWS)

    def _provide_raw(self, relation: Relation, inputs: Inputs) -> None:
        files = inputs.raw_files(relation)
        types = raw_types(inputs.raw_contract(relation))
        if not files:
            definitions = ", ".join(f"{_quoted(name)} {kind}" for name, kind in types)
            self._connection.execute(f"create table {_name(relation)} ({definitions})")
            return
        batches = f"{relation.name}__files"
        self._keep(batches, _table_of(files))
        own = ", ".join(f"file.{_quoted(name)}" for name, _ in types if name not in ("_tenant_id", "_batch_id"))
        paths = ", ".join(_literal(str(file.path)) for file in files)
        self._connection.execute(
            f"create view {_name(relation)} as select {own}, {_literal(inputs.tenant_id)} as _tenant_id, "
            f"batch.batch_id as _batch_id from read_parquet([{paths}], filename = true) as file "
            f"join main.{_quoted(batches)} as batch on batch.path = file.filename")

    def _provide_rows(self, relation: Relation, inputs: Inputs) -> None:
        types = inputs.types(relation)
        casts = ", ".join(f"cast({_quoted(name)} as {kind}) as {_quoted(name)}" for name, kind in types)
        with inputs.rows(relation, [name for name, _ in types]) as reader:
            self._connection.register("given", reader)
            self._connection.execute(f"create table {_name(relation)} as select {casts} from given")
            self._connection.unregister("given")

    def _keep(self, name: str, table: pa.Table) -> None:
        self._connection.register("given", table)
        self._connection.execute(f"create table main.{_quoted(name)} as select * from given")
        self._connection.unregister("given")


def _table_of(files: list[RawFile]) -> pa.Table:
    return pa.table({"path": [str(file.path) for file in files],
                     "batch_id": pa.array([file.batch_id for file in files], pa.int64())})


def _name(relation: Relation) -> str:
    return f"{_quoted(relation.schema)}.{_quoted(relation.name)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
