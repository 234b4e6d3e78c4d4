"""What Arrow holds is what PostgreSQL holds after a COPY, for every type that raw tables and engines' rows have."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.runtime.database import Database, fetch
from resources.storage import arrow_copy

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)
EXACT = decimal.Context(prec=40)
MICROSECONDS = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31))


def whole(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def numeric(precision: int, scale: int) -> st.SearchStrategy[decimal.Decimal]:
    unscaled = st.integers(-(10**precision) + 1, 10**precision - 1)
    return unscaled.map(lambda n: decimal.Decimal(n).scaleb(-scale, EXACT))


COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "text": (pa.string(), TEXT),
    "smallint": (pa.int16(), whole(16)),
    "integer": (pa.int32(), whole(32)),
    "bigint": (pa.int64(), whole(64)),
    "boolean": (pa.bool_(), st.booleans()),
    "double precision": (pa.float64(), st.floats()),
    "real": (pa.float32(), st.floats(width=32)),
    "date": (pa.date32(), st.dates()),
    "timestamp": (pa.timestamp("us"), MICROSECONDS),
    "timestamptz": (pa.timestamp("us", "UTC"), MICROSECONDS.map(lambda at: at.replace(tzinfo=dt.UTC))),
    "bytea": (pa.binary(), st.binary(max_size=40)),
    "numeric(15,2)": (pa.decimal128(15, 2), numeric(15, 2)),
    "numeric(38,0)": (pa.decimal128(38, 0), numeric(38, 0)),
    "numeric(38,38)": (pa.decimal128(38, 38), numeric(38, 38)),
    "numeric(18,9)": (pa.decimal128(18, 9), numeric(18, 9)),
}


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    with database.connect(autocommit=True) as connection:
        yield connection


@pytest.fixture
def table(connection: psycopg.Connection) -> Callable[[str], None]:
    def make(columns: str) -> None:
        fetch(connection, f"create table raw.copied ({columns})")

    return make


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_value_arrives_as_it_is(
    kind: str, connection: psycopg.Connection, table: Callable[[str], None]
) -> None:
    arrow, values = COLUMNS[kind]
    table(f"n bigint, value {kind}")
    schema = pa.schema([("n", pa.int64()), ("value", arrow)])

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.lists(st.none() | values, max_size=20), max_size=3))
    def arrives(batches: list[list[Any]]) -> None:
        fetch(connection, "truncate raw.copied")
        every = [value for batch in batches for value in batch]
        made = [pa.record_batch([pa.array(range(len(batch)), pa.int64()), pa.array(batch, arrow)], schema=schema)
                for batch in batches]
        arrow_copy.append(connection, "raw", "copied", schema, made)
        # PostgreSQL's own reading of each value, by the other driver's text, is what it is compared with.
        wrong = fetch(
            connection,
            f"select r.value::text, w.value::text from (select value, row_number() over (order by ctid) as at "
            f"from raw.copied) r full join unnest($1::{kind}[]) with ordinality w (value, at) using (at) "
            f"where r.value is distinct from w.value or r.value::text is distinct from w.value::text",
            (every,),
        )
        assert not wrong

    arrives()


def test_a_batch_of_any_size_and_offset_arrives_whole(
    connection: psycopg.Connection, table: Callable[[str], None]
) -> None:
    table("n bigint, value text")
    rows = pa.record_batch({"n": pa.array(range(50_000)), "value": ["v" * (n % 90) for n in range(50_000)]})
    huge = pa.record_batch({"n": pa.array([-1, -2]), "value": ["ä" * 5_000_000, "ends"]})
    arrow_copy.append(connection, "raw", "copied", rows.schema, [rows.slice(10), rows.slice(0, 0), huge])
    assert fetch(connection, "select count(*), sum(n), sum(length(value)) from raw.copied") == [(
        49_992, sum(range(10, 50_000)) - 3, sum(n % 90 for n in range(10, 50_000)) + 5_000_004)]


def test_columns_are_found_by_name(connection: psycopg.Connection, table: Callable[[str], None]) -> None:
    table('"a ""quoted"" name" text, n bigint, left_out text default \'kept\'')
    rows = pa.record_batch({"n": pa.array([1]), 'a "quoted" name': ["x"]})
    arrow_copy.append(connection, "raw", "copied", rows.schema, [rows])
    assert fetch(connection, "select * from raw.copied") == [("x", 1, "kept")]


def test_what_fails_while_rows_are_made_is_raised_as_it_is_and_nothing_arrives(
    connection: psycopg.Connection, table: Callable[[str], None]
) -> None:
    table("n bigint")
    rows = pa.record_batch({"n": pa.array(range(100_000))})

    def breaking() -> Iterator[pa.RecordBatch]:
        yield rows
        raise ZeroDivisionError("made no more")

    with pytest.raises(ZeroDivisionError, match="made no more"):
        arrow_copy.append(connection, "raw", "copied", rows.schema, breaking())
    assert fetch(connection, "select count(*) from raw.copied") == [(0,)]


@pytest.mark.parametrize(("value", "said"), [
    (pa.array(["a\0b"]), "invalid byte sequence"),
    (pa.array([1], pa.int64()), "value"),
])
def test_what_the_column_does_not_take_is_refused_and_nothing_arrives(
    value: pa.Array, said: str, connection: psycopg.Connection, table: Callable[[str], None]
) -> None:
    table("value text" if pa.types.is_string(value.type) else "value integer")
    rows = pa.record_batch({"value": value})
    with pytest.raises(psycopg.DatabaseError, match=said):
        arrow_copy.append(connection, "raw", "copied", rows.schema, [rows])
    assert fetch(connection, "select count(*) from raw.copied") == [(0,)]
