"""Spark: distributed. Where it runs is Spark's own configuration (`spark-defaults.conf`): a master, memory, partitions.

Rows go to and from Spark as Parquet in the run's folder, which every executor must be able to reach: on one machine it
is, on several the data folder and the raw store lie on a file system that they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from barecount_assets.stages.dbt import PlannedModel, Relation
from barecount_assets.stages.engines.inputs import Inputs, raw_types
from resources.storage import raw_tables

_BATCH_ROWS = 16_384
_CORRECTNESS = {
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
    "spark.sql.ansi.enabled": "true",  # what does not fit is an error, not a null
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_TYPES = {
    "text": "string", "bytea": "binary", "double precision": "double", "timestamp without time zone": "timestamp",
    "timestamptz": "timestamp_ltz", "timestamp with time zone": "timestamp_ltz",
}


@contextmanager
def opened(inputs: Inputs) -> Iterator[Spark]:
    """A session of the run's own, ended with it."""
    builder = SparkSession.builder.appName(f"barecount {inputs.tenant_id}").config(
        "spark.sql.warehouse.dir", str(inputs.folder / "warehouse"))
    for name, value in {**_CORRECTNESS, "spark.sql.session.timeZone": inputs.time_zone}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:
        yield Spark(session, inputs.folder)
    finally:
        session.stop()


class Spark:
    """An `Engine`."""

    def __init__(self, session: SparkSession, folder: Path) -> None:
        self._session, self._folder = session, folder

    def provide(self, relation: Relation, inputs: Inputs) -> None:
        self._session.sql(f"create database if not exists {_quoted(relation.schema)}")
        folder = self._folder / relation.schema / relation.name
        folder.mkdir(parents=True)
        if relation.schema == raw_tables.SCHEMA:
            columns = self._raw(relation, inputs, folder)
        else:
            columns = self._rows(relation, inputs, folder)
        self._session.sql(
            f"create view {_name(relation)} as select {', '.join(columns)} from parquet.{_quoted(str(folder))}")

    def compute(self, model: PlannedModel) -> pa.RecordBatchReader:
        columns = ", ".join(_quoted(name) if kind == "numeric" else _cast(_quoted(name), kind, name)
                            for name, kind in model.columns)
        rows = self._session.sql(f"select {columns} from ({model.sql}\n) as computed")
        folder = self._folder / "computed" / model.name
        rows.write.parquet(folder.as_uri())
        files = [str(path) for path in sorted(folder.glob("*.parquet"))]
        return ds.dataset(files, format="parquet").scanner(batch_size=_BATCH_ROWS).to_reader()

    def _raw(self, relation: Relation, inputs: Inputs, folder: Path) -> list[str]:
        """Links to the objects, by batch: the number of a batch is a partition column."""
        types = raw_types(inputs.raw_contract(relation))
        files = inputs.raw_files(relation)
        for file in files:
            link = folder / f"batch={file.batch_id}" / "rows.parquet"
            link.parent.mkdir()
            link.symlink_to(file.path)
        if not files:
            empty = folder / "batch=0" / "rows.parquet"
            empty.parent.mkdir()
            pq.write_table(inputs.no_raw_rows(relation), empty)
        stamps = {"_tenant_id": _literal(inputs.tenant_id), "_batch_id": "batch"}
        return [_cast(stamps.get(name, _quoted(name)), kind, name) for name, kind in types]

    def _rows(self, relation: Relation, inputs: Inputs, folder: Path) -> list[str]:
        types = inputs.types(relation)
        with (inputs.rows(relation, [name for name, _ in types]) as reader,
              pq.ParquetWriter(folder / "rows.parquet", _storage(reader.schema)) as writer):
            for batch in reader:
                writer.write_batch(_stored(batch))
        return [_cast(_quoted(name), kind, name) for name, kind in types]


def _storage(schema: pa.Schema) -> pa.Schema:
    """The schema without the driver's wrapping of types it does not know: numerics are text."""
    return pa.schema([(field.name, getattr(field.type, "storage_type", field.type)) for field in schema])


def _stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [getattr(column, "storage", column) for column in batch.columns]
    return pa.record_batch(columns, schema=_storage(batch.schema))


def _cast(expression: str, kind: str, name: str) -> str:
    return f"cast({expression} as {_TYPES.get(kind, kind)}) as {_quoted(name)}"


def _name(relation: Relation) -> str:
    return f"{_quoted(relation.schema)}.{_quoted(relation.name)}"


def _quoted(name: Any) -> str:
    return "`" + name.replace("`", "``") + "`"


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
