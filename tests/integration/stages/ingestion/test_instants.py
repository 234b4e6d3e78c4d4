"""Instants in every connector: the same instants, written as each kind of source writes them, and read as declared.

Four things may be declared of a column: `timestamptz`, alone or with a `defaultTimezone`; `timestamp`; `date`. The
tenant's zone is London's, whose clocks went back on 2026-10-25 at 01:00 UTC and forward on 2026-03-29 at 01:00 UTC.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.connectors.jsonl import JsonlFormat
from barecount_assets.stages.ingestion.connectors.parquet import ParquetFormat
from barecount_assets.stages.ingestion.connectors.references import Lookup
from barecount_assets.stages.ingestion.connectors.sql import SqlConnector
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field, ParsedBatch, Window
from resources.governance.sources import SqlSource
from resources.runtime import embedded

LONDON = "Europe/London"
INSTANT, WALL, DATE = pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.date32()
Rows = Sequence[ParsedBatch]
Reader = Callable[[Sequence[Any], ExtractorSchema], Rows]


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)


MOMENTS = [utc(2026, 5, 31, 12), utc(2026, 5, 31, 23, 30), utc(2026, 5, 31, 23, 30, 0, 123000),
           utc(2026, 10, 25, 0, 30), utc(2026, 10, 25, 1, 30), utc(1969, 12, 31, 23, 59, 59, 999999)]
LONDON_WALLS = [dt.datetime(2026, 5, 31, 13), dt.datetime(2026, 6, 1, 0, 30), dt.datetime(2026, 6, 1, 0, 30, 0, 123000),
                dt.datetime(2026, 10, 25, 1, 30), dt.datetime(2026, 10, 25, 1, 30),
                dt.datetime(1970, 1, 1, 0, 59, 59, 999999)]  # the United Kingdom kept summer time all through 1970
FOLD, GAP = dt.datetime(2026, 10, 25, 1, 30), dt.datetime(2026, 3, 29, 1, 30)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """DSN of a PostgreSQL whose sessions live in Tokyo."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    dsn = embedded.start(folder)
    with psycopg.connect(dsn, autocommit=True) as connection:
        database = connection.info.dbname
        connection.execute(f"alter database {database} set timezone = 'Asia/Tokyo'")
    yield dsn
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


def text_of(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else value.isoformat()


def from_csv(values: Sequence[Any], schema: ExtractorSchema) -> Rows:
    lines = "".join(f"{number},{text_of(value) or ''}\n" for number, value in enumerate(values))
    return list(CsvFormat().read(io.BytesIO(f"number,at\n{lines}".encode()), schema, "test.csv"))


def from_jsonl(values: Sequence[Any], schema: ExtractorSchema) -> Rows:
    lines = "".join(json.dumps({"number": number, "at": text_of(value)}) + "\n" for number, value in enumerate(values))
    return list(JsonlFormat().read(io.BytesIO(lines.encode()), schema, "test.jsonl"))


def from_parquet(unit: str, zone: str | None) -> Reader:
    def reader(values: Sequence[Any], schema: ExtractorSchema) -> Rows:
        exact = pa.array(values, pa.timestamp("us", zone))
        table = pa.table({"number": range(len(values)), "at": exact.cast(pa.timestamp(unit, zone), safe=False)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, version="2.6")
        return list(ParquetFormat().read(pa.BufferReader(buffer.getvalue()), schema, "test.parquet"))

    return reader


def from_sqlite(values: Sequence[Any], schema: ExtractorSchema) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        with sqlite3.connect(f"{folder}/shop.db") as connection:
            connection.execute("create table orders (number integer primary key, at text)")
            connection.executemany("insert into orders values (?, ?)", enumerate(map(text_of, values)))
        connection.close()
        return _sql(f"sqlite:///{folder}/shop.db", schema)


def from_postgres(dsn: str, type_: str) -> Reader:
    def reader(values: Sequence[Any], schema: ExtractorSchema) -> Rows:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("drop table if exists orders")
            connection.execute(f"create table orders (number int primary key, at {type_})")
            for row in enumerate(values):
                connection.execute("insert into orders values (%s, %s)", row)
        return _sql(dsn, schema)

    return reader


def _sql(dsn: str, schema: ExtractorSchema) -> Rows:
    declared = {"name": "orders", "dataset": "shop.orders", "connector": "sql", "dsn": "${env:DSN}", "table": "orders"}
    source = SqlConnector(SqlSource.model_validate(declared), lookup=Lookup({"DSN": dsn}))
    (unit,) = source.discover(Window(dt.date(2026, 1, 1), dt.date(2026, 1, 31)), None)
    return list(source.read(unit, schema))


READERS: dict[str, Callable[[str], Reader]] = {
    "csv": lambda dsn: from_csv, "jsonl": lambda dsn: from_jsonl, "sqlite": lambda dsn: from_sqlite,
    "parquet ns": lambda dsn: from_parquet("ns", LONDON), "parquet us": lambda dsn: from_parquet("us", "Asia/Tokyo"),
    "postgres": lambda dsn: from_postgres(dsn, "timestamptz"),
}


def declared(type_: pa.DataType, time_zone: str | None) -> ExtractorSchema:
    return ExtractorSchema((Field("number", "number", pa.int64()), Field("at", "at", type_, time_zone=time_zone)))


def values_of(batches: Rows) -> list[Any]:
    return [value for batch in batches for value in batch.rows.column("at").to_pylist()]


def refused(batches: Rows) -> list[str]:
    return [message for batch in batches for message in batch.rejects.column("message").to_pylist()]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(("type_", "time_zone", "expected"), [
    (INSTANT, None, MOMENTS), (INSTANT, LONDON, MOMENTS), (WALL, LONDON, LONDON_WALLS),
], ids=["timestamptz", "timestamptz with a zone", "timestamp"])
def test_an_instant_arrives_as_what_is_declared(
    kind: str, type_: pa.DataType, time_zone: str | None, expected: list[dt.datetime], postgres: str
) -> None:
    batches = READERS[kind](postgres)([*MOMENTS, None], declared(type_, time_zone))
    assert (values_of(batches), refused(batches)) == ([*expected, None], [])


@pytest.mark.parametrize("kind", ["parquet ns", "parquet us", "postgres"])
def test_an_instant_is_a_date_at_midnight_of_its_zone_only(kind: str, postgres: str) -> None:
    batches = READERS[kind](postgres)([utc(2026, 5, 31, 23), utc(2026, 1, 31), utc(2026, 6, 1)], declared(DATE, LONDON))
    assert values_of(batches) == [dt.date(2026, 6, 1), dt.date(2026, 1, 31)]
    assert len(refused(batches)) == 1 and "allowed date" in refused(batches)[0]


WALL_READERS: dict[str, Callable[[str], Reader]] = {
    "csv": lambda dsn: from_csv, "jsonl": lambda dsn: from_jsonl, "sqlite": lambda dsn: from_sqlite,
    "parquet": lambda dsn: from_parquet("us", None), "postgres": lambda dsn: from_postgres(dsn, "timestamp"),
}


@pytest.mark.parametrize("kind", WALL_READERS)
def test_a_time_without_an_offset_is_no_instant(kind: str, postgres: str) -> None:
    batches = WALL_READERS[kind](postgres)([dt.datetime(2026, 6, 1, 0, 30)], declared(INSTANT, None))
    (message,) = refused(batches)
    assert values_of(batches) == [] and "allowed timestamptz as YYYY-MM-DD HH:MM:SS with Z or an offset" in message


@pytest.mark.parametrize("kind", WALL_READERS)
def test_a_declared_zone_makes_instants_of_times_it_has_once(kind: str, postgres: str) -> None:
    walls = [dt.datetime(2026, 6, 1, 0, 30), FOLD, GAP, dt.datetime(2026, 12, 1, 0, 30)]
    batches = WALL_READERS[kind](postgres)(walls, declared(INSTANT, LONDON))
    assert values_of(batches) == [utc(2026, 5, 31, 23, 30), utc(2026, 12, 1, 0, 30)]
    assert len(refused(batches)) == 2 and all("that Europe/London has once" in text for text in refused(batches))


@pytest.mark.parametrize(("text", "instant"), [
    ("2026-05-31T23:30:00Z", utc(2026, 5, 31, 23, 30)), ("2026-06-01 00:30:00+01:00", utc(2026, 5, 31, 23, 30)),
    ("2026-06-01T00:30:00+0100", utc(2026, 5, 31, 23, 30)), ("2026-06-01T00:30:00+01", utc(2026, 5, 31, 23, 30)),
    ("2026-05-31T23:30Z", utc(2026, 5, 31, 23, 30)), ("2026-05-31 23:30:00 UTC", utc(2026, 5, 31, 23, 30)),
    ("2026-06-01 05:00:00 +0530", utc(2026, 5, 31, 23, 30)), ("2026-05-31T19:30:00-04:00", utc(2026, 5, 31, 23, 30)),
    ("2026-05-31T23:30:00.5Z", utc(2026, 5, 31, 23, 30, 0, 500000)),
    ("2026-05-31T23:30:00.123456000Z", utc(2026, 5, 31, 23, 30, 0, 123456)),
    ("2026-05-31T23:30:00.1234567Z", None), ("2026-05-31T23:30:00.1234560000Z", None), ("2026-05-31T23:30000Z", None),
    ("2026-05-31T24:00:00Z", None), ("2026-02-30T00:00:00Z", None), ("2026-05-31Z", None),
    ("0000-01-01T00:00:00Z", None), ("0001-01-01T00:00:00+01:00", None), ("9999-12-31T23:59:59-01:00", None),
    ("2026-05-31T23:30:00+24:00", None), ("2026-05-31T23:30:00 London", None),
    ("2026-05-31T23:30:00ZZ", None), ("1780270200", None),
])  # fmt: skip
@pytest.mark.parametrize("reader", [from_csv, from_jsonl, from_sqlite])
def test_what_of_iso_8601_is_read(reader: Reader, text: str, instant: dt.datetime | None) -> None:
    assert values_of(reader([text], declared(INSTANT, None))) == ([instant] if instant else [])


@pytest.mark.parametrize(("text", "format", "time_zone", "instant"), [
    ("31.05.2026 23:30:00 Z", "%d.%m.%Y %H:%M:%S %z", None, utc(2026, 5, 31, 23, 30)),
    ("01.06.2026 00:30:00 +01", "%d.%m.%Y %H:%M:%S %z", None, utc(2026, 5, 31, 23, 30)),
    ("20260601003000", "%Y%m%d%H%M%S", LONDON, utc(2026, 5, 31, 23, 30)),
    ("20261025013000", "%Y%m%d%H%M%S", LONDON, None),
])
def test_a_declared_format_gives_instants(
    text: str, format: str, time_zone: str | None, instant: dt.datetime | None
) -> None:
    schema = ExtractorSchema((Field("number", "number", pa.int64()),
                              Field("at", "at", INSTANT, format=format, time_zone=time_zone)))
    assert values_of(from_csv([text], schema)) == ([instant] if instant else [])
