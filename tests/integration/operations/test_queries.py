"""An analyst's answer is whole in every format: every row, every digit, however long it is."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from barecount_assets.cli.sql import format_of
from barecount_assets.operations import queries
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode

ROWS = 25_003
SERIES = f"""
select n, (n * 1.10)::numeric(18,2) as amount, 'name ' || n as name from generate_series(1, {ROWS}) as n order by n
"""
EVERY_TYPE = """
select true as flag, 1::smallint as small, 2::int as whole, 3::bigint as large, 1.5::float8 as share,
    'a "b", ü' as text, date '2026-05-31' as day, timestamp '2026-05-31 23:59:59.123456' as at,
    timestamptz '2026-05-31 23:59:59+02' as instant, 12345678901234567890.123456::numeric as exact,
    '\\x00ff'::bytea as bytes,
    array[1, 2] as list, '{"a": 1}'::jsonb as document, null::text as nothing
union all select null, null, null, null, null, '', null, null, null, 0.1, null, null, null, null
"""


@pytest.fixture
def connection(new_database: Callable[[], Database]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(new_database().admin_url, autocommit=True) as connection:
        yield connection


def written(connection: psycopg.Connection, query: str, kind: queries.Format) -> bytes:
    with queries.answer(connection, query) as found:
        if queries.is_binary(kind):
            target = io.BytesIO()
            queries.write(found, kind, target)
            return target.getvalue()
        text = io.StringIO(newline="")
        queries.write(found, kind, text)
        return text.getvalue().encode()


def rows_of(kind: queries.Format, content: bytes) -> list[tuple[int, Decimal, str]]:
    if kind == "json":
        read = json.loads(content)
    elif kind == "ndjson":
        read = [json.loads(line) for line in content.splitlines()]
    elif kind == "csv":
        read = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    elif kind == "parquet":
        read = pq.read_table(pa.BufferReader(content)).to_pylist()
    else:
        read = pa.ipc.open_stream(content).read_all().to_pylist()
    return [(int(row["n"]), Decimal(row["amount"]), row["name"]) for row in read]


@pytest.mark.parametrize("kind", queries.FORMATS)
def test_every_format_has_every_row(connection: psycopg.Connection, kind: queries.Format) -> None:
    rows = rows_of(kind, written(connection, SERIES, kind))
    assert rows == [(n, Decimal(n) * Decimal("1.10"), f"name {n}") for n in range(1, ROWS + 1)]


def test_values_of_every_type_arrive_as_they_are(connection: psycopg.Connection) -> None:
    parquet = pq.read_table(pa.BufferReader(written(connection, EVERY_TYPE, "parquet"))).to_pylist()
    assert parquet[0] == {
        "flag": True,
        "small": 1,
        "whole": 2,
        "large": 3,
        "share": 1.5,
        "text": 'a "b", ü',
        "day": dt.date(2026, 5, 31),
        "at": dt.datetime(2026, 5, 31, 23, 59, 59, 123456),
        "instant": dt.datetime(2026, 5, 31, 21, 59, 59, tzinfo=dt.UTC),
        "exact": Decimal("12345678901234567890.123456"),
        "bytes": b"\x00\xff",
        "list": "[1, 2]",
        "document": '{"a": 1}',
        "nothing": None,
    }
    assert parquet[1] == dict.fromkeys(parquet[0]) | {"text": "", "exact": Decimal("0.100000")}
    read = json.loads(written(connection, EVERY_TYPE, "json"))
    assert read[0] | {"instant": None} == {
        "flag": True,
        "small": 1,
        "whole": 2,
        "large": 3,
        "share": 1.5,
        "text": 'a "b", ü',
        "day": "2026-05-31",
        "at": "2026-05-31T23:59:59.123456",
        "instant": None,
        "exact": "12345678901234567890.123456",
        "bytes": "00ff",
        "list": [1, 2],
        "document": {"a": 1},
        "nothing": None,
    }
    assert dt.datetime.fromisoformat(read[0]["instant"]) == parquet[0]["instant"]


@pytest.mark.parametrize("kind", queries.FORMATS)
def test_an_answer_without_rows_has_its_columns(connection: psycopg.Connection, kind: queries.Format) -> None:
    content = written(connection, SERIES.replace(f"1, {ROWS}", "1, 0"), kind)
    assert rows_of(kind, content) == []
    if kind == "csv":
        assert content == b"n,amount,name\r\n"
    if kind == "parquet":
        assert pq.read_schema(pa.BufferReader(content)).names == ["n", "amount", "name"]


def test_its_number_of_rows_is_known_before_they_are_read(connection: psycopg.Connection) -> None:
    with queries.answer(connection, SERIES) as found:
        assert (found.total, found.names) == (ROWS, ["n", "amount", "name"])
    with queries.answer(connection, "show server_version") as found:
        assert found.total == 1


def test_a_file_is_whole_or_not_there(connection: psycopg.Connection, tmp_path: Path) -> None:
    path = tmp_path / "answer.csv"
    with (
        pytest.raises(BareCountError),
        queries.answer(connection, "select 1 / (3 - n) from generate_series(1, 9) n") as found,
    ):
        queries.save(found, "csv", path)
    assert list(tmp_path.iterdir()) == []
    with queries.answer(connection, SERIES) as found:
        queries.save(found, "csv", path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer.csv"]
    assert path.read_bytes() == written(connection, SERIES, "csv")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("selec 1", "syntax error"),
        ("select * from nowhere", "nowhere"),
        ("create temp table t (a int)", "answers nothing"),
    ],
)
def test_a_wrong_statement_is_refused(connection: psycopg.Connection, query: str, said: str) -> None:
    with pytest.raises(BareCountError, match=said) as refused, queries.answer(connection, query):
        pass
    assert refused.value.code is ErrorCode.USAGE


def test_a_number_too_long_for_a_decimal_is_refused(connection: psycopg.Connection) -> None:
    with (
        queries.answer(connection, "select 10::numeric ^ -50 as tiny") as found,
        pytest.raises(BareCountError) as refused,
    ):
        found.arrow_schema()
    assert "tiny" in refused.value.message and "38 digits" in refused.value.message


@pytest.mark.parametrize(
    ("name", "output", "as_json", "expected"),
    [
        (None, None, False, None),
        ("table", None, False, None),
        (None, None, True, "json"),
        ("csv", None, False, "csv"),
        (None, "a.parquet", False, "parquet"),
        (None, "a.JSONL", False, "ndjson"),
        ("csv", "a.txt", False, "csv"),
    ],
)
def test_the_format_is_named_or_told_by_the_ending(
    name: str | None, output: str | None, as_json: bool, expected: str | None
) -> None:
    assert format_of(name, output and Path(output), as_json) == expected


@pytest.mark.parametrize(
    ("name", "output", "as_json"), [("xls", None, False), (None, "a.txt", False), ("csv", None, True)]
)
def test_an_unknown_format_is_refused(name: str | None, output: str | None, as_json: bool) -> None:
    with pytest.raises(BareCountError) as refused:
        format_of(name, output and Path(output), as_json)
    assert refused.value.code is ErrorCode.USAGE
