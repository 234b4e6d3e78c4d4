"""The contenders, each run by `measuring.measure` in a process of its own: a task as JSON in, a result as JSON out.

A contender is a generator of three steps: what comes before its first `yield` (imports, connecting, reading
declarations) is not measured, what comes between the first and the second is, and the third yields the number of rows
that are in the table.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

from tests.benchmarks.measuring import Measured, machine_cpu_seconds, server_cpu_seconds

Contender = Generator[int | None, None, None]
BATCH_ROWS = 131_072


def ingestion(task: dict[str, Any]) -> Contender:
    """lineitem through the whole ingestion stage."""
    return _stage(task, "tpch", "bench", "lineitem", task["inputs"]["lineitem"], ("1992-01-01", "1998-12-31"))


def one_csv(task: dict[str, Any]) -> Contender:
    """Invoice lines in one file through the whole ingestion stage."""
    return _invoices(task, task["inputs"]["one_csv"])


def many_csv(task: dict[str, Any]) -> Contender:
    """Invoice lines in one file per day through the whole ingestion stage."""
    return _invoices(task, task["inputs"]["many_csv"])


def _invoices(task: dict[str, Any], path: str) -> Contender:
    return _stage(task, "online_retail", "retail_uk", "invoices", path, ("2010-12-01", "2011-12-31"))


def _stage(
    task: dict[str, Any], pipeline: str, tenant: str, source: str, path: str, window: tuple[str, str]
) -> Contender:
    import barecount_assets.stages.ingestion.stage  # noqa: F401  imported ahead of the clock
    from barecount_assets.stages import execute
    from barecount_assets.stages.environment import StageEnvironment
    from resources.governance.declarations import load
    from resources.runners.stage import Placement, Stage, StageSpec
    from resources.runtime.database import Database
    from resources.runtime.settings import Settings

    work, project = Path(task["work"]), Path(task["inputs"]["project"])
    settings = Settings(project, work, str(work / "raw"), task["url"])
    environment = StageEnvironment(settings, Database(task["url"], is_embedded=True), load(project))
    placement = Placement("serverless", "medium", "public_vpc_egress")
    spec = StageSpec(Stage.INGESTION, tenant, pipeline, placement, source, window, {source: path})
    yield None
    receipt = execute(spec, lambda *_: None, environment)
    yield None
    assert receipt.counts["accepted"] == receipt.counts["received"], receipt.counts
    yield receipt.counts["accepted"]


def dlt(task: dict[str, Any], file_format: str | None = None) -> Contender:
    """lineitem through dlt, as Arrow batches; `file_format` is that of its load packages, None leaves it to dlt."""
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    if file_format:  # several files, so that its load workers have something to share
        os.environ["DATA_WRITER__FILE_MAX_ITEMS"] = "500000"
        os.environ["LOAD__WORKERS"] = str(os.cpu_count())
    import dlt as library
    from dlt.destinations.impl.postgres.configuration import PostgresCredentials

    rows = library.resource(lambda: _lineitem(task), name="lineitem")
    credentials = PostgresCredentials(task["url"].replace("postgres@/", "postgres:none@localhost:5432/"))
    pipeline = library.pipeline(
        "benchmark", destination=library.destinations.postgres(credentials), dataset_name="dlt",
        pipelines_dir=str(Path(task["work"]) / "dlt"),
    )
    yield None
    pipeline.run(rows, loader_file_format=file_format)
    yield None
    with pipeline.sql_client() as client:
        yield client.execute_sql("select count(*) from lineitem")[0][0]


def dlt_parquet(task: dict[str, Any]) -> Contender:
    """lineitem through dlt by its fast way into PostgreSQL: Parquet load packages, ADBC."""
    return dlt(task, "parquet")


def adbc(task: dict[str, Any]) -> Contender:
    """lineitem's columns by ADBC into a table that is there, nothing checked and nothing kept."""
    import adbc_driver_postgresql.dbapi as driver

    _create(task)
    with driver.connect(task["url"]) as connection, connection.cursor() as cursor:
        yield None
        batches = _lineitem(task)
        cursor.adbc_ingest("lineitem", pa.RecordBatchReader.from_batches(_schema(task), batches), mode="append")
        connection.commit()
        yield None
    yield _count(task)


def copy(task: dict[str, Any]) -> Contender:
    """The server loads a file of its own: binary COPY into a logged table."""
    for _ in adbc(task):
        pass
    with psycopg.connect(task["url"], autocommit=True) as connection:
        folder = connection.execute("show data_directory").fetchone()
        assert folder is not None
        file = sql.Literal(f"{folder[0]}/benchmark.copy")
        try:
            connection.execute(sql.SQL("copy lineitem to {} (format binary)").format(file))
            connection.execute("truncate lineitem")
            connection.execute("checkpoint")
            yield None
            connection.execute(sql.SQL("copy lineitem from {} (format binary)").format(file))
            yield None
            yield _count(task)
        finally:
            Path(folder[0], "benchmark.copy").unlink()


CONTENDERS: dict[str, Callable[[dict[str, Any]], Contender]] = {
    "ingestion": ingestion, "dlt": dlt, "dlt, parquet": dlt_parquet, "adbc": adbc, "copy": copy,
    "csv, one file": one_csv, "csv, many files": many_csv,
}


def _file(task: dict[str, Any]) -> pq.ParquetFile:
    return pq.ParquetFile(Path(task["inputs"]["lineitem"], "lineitem.parquet"))


def _schema(task: dict[str, Any]) -> pa.Schema:
    """The file's columns; dlt and ADBC know no string views."""
    return pa.schema(
        [pa.field(f.name, pa.string() if pa.types.is_string_view(f.type) else f.type) for f in _file(task).schema_arrow]
    )


def _lineitem(task: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    schema = _schema(task)
    for batch in _file(task).iter_batches(BATCH_ROWS):
        yield batch.cast(schema)


_TYPES = {pa.int64(): "bigint", pa.int32(): "integer", pa.string(): "text", pa.date32(): "date"}


def _create(task: dict[str, Any]) -> None:
    columns = ", ".join(
        f"{f.name} {_TYPES.get(f.type) or f'numeric({f.type.precision},{f.type.scale})'}" for f in _schema(task)
    )
    with psycopg.connect(task["url"]) as connection:
        connection.execute(f"create table lineitem ({columns})")


def _count(task: dict[str, Any]) -> int:
    with psycopg.connect(task["url"]) as connection:
        row = connection.execute("select count(*) from lineitem").fetchone()
        assert row is not None
        return row[0]


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Run the task in the first argument and print its result."""
    task = json.loads(sys.argv[1])
    contender = CONTENDERS[task["contender"]](task)
    server = psutil.Process(task["postmaster"])

    def spent() -> tuple[float, float, float, float]:
        return time.perf_counter(), _cpu_seconds(), server_cpu_seconds(server), machine_cpu_seconds()

    next(contender)
    before = spent()
    next(contender)
    seconds, own, servers, machine = (now - then for now, then in zip(spent(), before, strict=True))
    rows = next(contender)
    contender.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    taken = max(machine - own - servers, 0) / seconds
    print(json.dumps(asdict(Measured(rows or 0, seconds, peak, own, servers, taken))))


if __name__ == "__main__":
    main()
