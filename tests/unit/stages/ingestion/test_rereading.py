"""What was landed under one contract and is read again under another is what the source gives under the other."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from barecount_assets.stages.ingestion import relanding
from barecount_assets.stages.ingestion.connectors import parquet
from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.connectors.jsonl import JsonlFormat
from barecount_assets.stages.ingestion.connectors.parquet import ParquetFormat
from barecount_assets.stages.ingestion.connectors.sql import SqlConnector
from barecount_assets.stages.ingestion.json_texts import canonical
from barecount_assets.stages.ingestion.records import (
    REJECT_SCHEMA,
    ExtractorSchema,
    Field,
    ObservedSchema,
    ParsedBatch,
    Unit,
)
from barecount_assets.stages.ingestion.sources import arrow_type
from resources.governance.sources import FileSource, SqlSource

KEY = "id"
TYPES = ("text", "bigint", "integer", "numeric(18,2)", "numeric(38,9)", "double precision", "boolean", "date",
         "timestamp", "timestamptz", "json")
Read = Callable[[ExtractorSchema], Iterator[ParsedBatch]]


@dataclass(frozen=True)
class Delivered:
    """A unit, how it is read, and the manifest's source that it is of."""

    source: Any
    observed: ObservedSchema
    read: Read


class Store:
    """The objects of one landed batch, as a raw store has them: written as Parquet, read back."""

    def __init__(self, batches: list[ParsedBatch], schema: ExtractorSchema) -> None:
        self._objects = {
            "rows": self._written([batch.rows for batch in batches], schema.arrow),
            "refused": self._written([batch.rejects for batch in batches], REJECT_SCHEMA),
        }

    @staticmethod
    def _written(batches: list[pa.RecordBatch], schema: pa.Schema) -> bytes:
        target = io.BytesIO()
        with pq.ParquetWriter(target, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return target.getvalue()

    def read(self, key: str) -> Iterator[pa.RecordBatch]:
        return pq.ParquetFile(io.BytesIO(self._objects[key])).iter_batches()


def field(name: str, kind: str) -> Field:
    zone = "Europe/London" if kind in ("date", "timestamp") else None
    return Field(name, name.upper() if name != KEY else name, arrow_type(kind), time_zone=zone, json=kind == "json")


def schema_of(types: dict[str, str]) -> ExtractorSchema:
    return ExtractorSchema((Field(KEY, KEY, pa.int64(), required=True), *(field(n, k) for n, k in types.items())))


def outcome(batches: Iterator[ParsedBatch] | list[ParsedBatch]) -> dict[int, Any]:
    """By number of the record: its values, or the field and reason it was refused for."""
    result: dict[int, Any] = {}
    for batch in batches:
        assert batch.received == batch.rows.num_rows + batch.rejects.num_rows
        for row in batch.rows.to_pylist():
            extra = row.pop("_extra")
            result[row.pop("_row_number")] = {**{name: repr(value) for name, value in row.items()}, "_": extra}
        for row in batch.rejects.to_pylist():
            result[row["row_number"]] = (row["field"], row["reason"])
    return result


def again(delivered: Delivered, before: ExtractorSchema, after: ExtractorSchema) -> dict[int, Any]:
    landed = list(delivered.read(before))
    batch = {"object_key": "rows", "quarantine_key": "refused", "source_id": "unit", "observed_types": None}
    store: Any = Store(landed, before)
    return outcome(relanding.read(store, batch, delivered.source, delivered.observed, after))


def source(kind: str) -> FileSource:
    return FileSource.model_validate({
        "name": "records", "dataset": "some.records", "connector": "files", "path": "/", "format": {"type": kind}})


# --- the same cells in every format --------------------------------------------------------------------------

TEXTS = st.sampled_from(["", "a", "007", "12", "-3.50", "1e3", "true", "2026-01-05", "2026-01-05 10:00:00",
                         "2026-01-05T10:00:00Z", '{"b": 1.10, "a": [1, null]}', "null", "é", 'q"uote'])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10**12, 10**12) | TEXTS
    | st.decimals(-1000, 1000, places=3).map(float),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)


def csv_unit(columns: dict[str, list[str]]) -> Delivered:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([KEY, *columns])
    writer.writerows(zip(range(1, 10**6), *columns.values(), strict=False))
    content, format_ = text.getvalue().encode(), CsvFormat()
    return Delivered(source("csv"), format_.observe(io.BytesIO(content), "f"),
                     lambda schema: format_.read(io.BytesIO(content), schema, "f"))


def jsonl_unit(columns: dict[str, list[Any]]) -> Delivered:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    content = "".join(json.dumps({KEY: n, **row}) + "\n" for n, row in enumerate(rows, 1)).encode()
    format_ = JsonlFormat()
    return Delivered(source("jsonl"), format_.observe(io.BytesIO(content), "f"),
                     lambda schema: format_.read(io.BytesIO(content), schema, "f"))


def parquet_unit(columns: dict[str, pa.Array]) -> Delivered:
    target = io.BytesIO()
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({KEY: pa.array(range(1, rows + 1), pa.int64()), **columns}), target, version="2.6")
    content, format_ = target.getvalue(), ParquetFormat()
    return Delivered(source("parquet"), format_.observe(pa.BufferReader(content), "f"),
                     lambda schema: format_.read(pa.BufferReader(content), schema, "f"))


INSTANTS = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1)).map(lambda v: v.replace(microsecond=0))
ARROW: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): TEXTS,
    pa.dictionary(pa.int8(), pa.string()): TEXTS,
    pa.int64(): st.integers(-2**63, 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(width=64) | st.sampled_from([0.0, 2.0, 1e21, 0.1]),
    pa.float32(): st.floats(width=32),
    pa.bool_(): st.booleans(),
    pa.decimal128(20, 4): st.decimals(-10**10, 10**10, places=4),
    pa.decimal256(50, 4): st.decimals(-10**10, 10**10, places=4),
    pa.date32(): st.dates(dt.date(1900, 1, 1)),
    pa.timestamp("ns"): INSTANTS,
    pa.timestamp("ms"): INSTANTS | st.dates(dt.date(1970, 1, 1)).map(
        lambda day: dt.datetime(day.year, day.month, day.day)),
    pa.timestamp("us", "America/New_York"): INSTANTS,
    pa.time64("us"): st.times(),
    pa.duration("s"): st.integers(0, 10**6),
    pa.binary(): st.binary(max_size=4) | TEXTS.map(str.encode),
    pa.binary(4): st.binary(min_size=4, max_size=4),
    pa.null(): st.none(),
    pa.list_(pa.float64()): st.lists(st.none() | st.floats(), max_size=3),
    pa.struct([("b", pa.decimal128(10, 2)), ("a", pa.list_(pa.timestamp("us")))]): st.fixed_dictionaries({
        "b": st.none() | st.decimals(-10**6, 10**6, places=2), "a": st.lists(INSTANTS, max_size=2)}),
    pa.map_(pa.string(), pa.int64()): st.dictionaries(TEXTS, st.integers(-5, 5), max_size=2).map(
        lambda entries: list(entries.items())),
}


@st.composite
def parquet_columns(draw: st.DrawFn) -> dict[str, pa.Array]:
    rows = draw(st.integers(1, 5))
    columns = {}
    for name in ("A", "B", "C")[: draw(st.integers(1, 3))]:
        type_ = draw(st.sampled_from(list(ARROW)))
        values = draw(st.lists(st.none() | ARROW[type_], min_size=rows, max_size=rows))
        columns[name] = pa.array(values, type_)
    return columns


@st.composite
def table(draw: st.DrawFn, cells: st.SearchStrategy[Any]) -> dict[str, list[Any]]:
    rows = draw(st.integers(1, 5))
    names = ("A", "B", "C")[: draw(st.integers(1, 3))]
    return {name: draw(st.lists(cells, min_size=rows, max_size=rows)) for name in names}


def take_effect(delivered: Delivered, names: list[str], data: st.DataObject) -> None:
    """Land under any contract; add fields, and change the types that refused a value; read again and directly."""
    known = data.draw(st.lists(st.sampled_from(names), unique=True))
    before = {name.lower(): data.draw(st.sampled_from(TYPES)) for name in known}
    refused = {name for batch in delivered.read(schema_of(before)) for name, _, _ in batch.refused}
    accepted = [batch.rows for batch in delivered.read(schema_of(before))]
    after = {}
    for name in map(str.lower, names):
        nothing_typed = name not in before or all(rows.column(name).null_count == rows.num_rows for rows in accepted)
        changes = name not in before or name in refused and nothing_typed and before[name] != "json"
        after[name] = data.draw(st.sampled_from(TYPES)) if changes else before[name]
    expected = outcome(delivered.read(schema_of(after)))
    assert again(delivered, schema_of(before), schema_of(after)) == expected


ANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@ANY
@given(table(TEXTS), st.data())
def test_csv_read_again_is_the_file_under_the_new_contract(columns: dict[str, list[str]], data: st.DataObject) -> None:
    take_effect(csv_unit(columns), list(columns), data)


@ANY
@given(table(JSON_VALUES), st.data())
def test_json_read_again_is_the_file_under_the_new_contract(columns: dict[str, list[Any]], data: st.DataObject) -> None:
    take_effect(jsonl_unit(columns), list(columns), data)


@ANY
@given(parquet_columns(), st.data())
def test_parquet_read_again_is_the_file_under_the_new_contract(
    columns: dict[str, pa.Array], data: st.DataObject
) -> None:
    take_effect(parquet_unit(columns), list(columns), data)


SQL_VALUES = st.none() | st.integers(-2**40, 2**40) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS | (
    st.binary(max_size=3))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(columns=table(SQL_VALUES), data=st.data())
def test_a_table_read_again_is_the_table_under_the_new_contract(
    columns: dict[str, list[Any]], data: st.DataObject, tmp_path: Path
) -> None:
    file = tmp_path / f"{uuid.uuid4()}.db"
    with sqlite3.connect(file) as database:
        database.execute(f"create table t ({KEY} integer primary key, {', '.join(columns)})")  # no types: any value
        marks = ", ".join("?" * (len(columns) + 1))
        database.executemany(
            f"insert into t values ({marks})", list(zip(range(1, 99), *columns.values(), strict=False)))
    declared = SqlSource.model_validate({
        "name": "records", "dataset": "some.records", "connector": "sql", "dsn": f"sqlite:///{file}", "table": "t"})
    connector = SqlConnector(declared)
    unit = Unit("t", "t")
    take_effect(Delivered(declared, connector.observed_schema(unit), lambda schema: connector.read(unit, schema)),
                list(columns), data)


# --- spelling ------------------------------------------------------------------------------------------------


@given(JSON_VALUES)
def test_json_has_one_spelling_that_is_its_own(value: Any) -> None:
    text = canonical(json.dumps(value, indent=1))
    assert text is not None and canonical(text) == text
    assert json.loads(text) == json.loads(json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"a":1,"a":2}', '"\\ud800"', "[" * 101 + "]" * 101, "abc"])
def test_what_is_no_strict_json_has_no_spelling(text: str) -> None:
    assert canonical(text) is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nested_parquet_values_are_json_of_what_they_are(data: st.DataObject) -> None:
    type_ = data.draw(st.sampled_from([t for t in ARROW if pa.types.is_nested(t)]))
    values = pa.array(data.draw(st.lists(st.none() | ARROW[type_], max_size=4)), type_)
    start = data.draw(st.integers(0, len(values)))
    texts = parquet.json_values(values.slice(start)).to_pylist()

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            return dict(value)
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        if isinstance(value, dt.datetime):
            return f"{value:%Y-%m-%d %H:%M:%S.%f}"
        if isinstance(value, float) and (value != value or abs(value) == float("inf")):
            return str(value)
        return Decimal(repr(value)) if isinstance(value, float) else value

    found = [json.loads(text, parse_float=Decimal) for text in texts]
    expected = [{} if pa.types.is_map(type_) and value == [] else plain(value) for value in values.to_pylist()[start:]]
    assert found == expected


def test_a_field_goes_by_the_name_that_a_unit_has() -> None:
    fee = replace(field("fee", "bigint"), names=("fee", "Fee"))
    schema = ExtractorSchema((fee,))
    assert [schema.named_as(names).fields[0].source_name for names in (["Fee"], ["fee", "Fee"], [])] == [
        "Fee", "fee", "fee"]
    assert schema.named_as(["Fee"]).named_as(["fee"]).fields[0].source_name == "fee"
