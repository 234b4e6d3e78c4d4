"""SQL connector against a real PostgreSQL (ADBC) and a real SQLite file (SQLAlchemy)."""

import datetime as dt
import json
import shutil
import sqlite3
import tempfile
from decimal import Decimal
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from barecount_assets.stages.ingestion.connectors.references import Lookup
from barecount_assets.stages.ingestion.connectors.sql import SqlConnector
from barecount_assets.stages.ingestion.records import Cursor, ExtractorSchema, Field, Window
from resources.governance.sources import SqlSource
from resources.runtime import embedded
from resources.runtime.errors import BareCountError, ErrorCode

WINDOW = Window(dt.date(2026, 1, 1), dt.date(2026, 1, 31))
SCHEMA = ExtractorSchema(
    (
        Field("order_id", "Id", pa.int64(), required=True),
        Field("amount", "amount", pa.decimal128(10, 2)),
        Field("ordered_on", "ordered_on", pa.date32()),
        Field("changed_at", "changed_at", pa.timestamp("us")),
        Field("note", "note", pa.string()),
    )
)
ORDERS = [
    (3, "30.30", "2026-01-03", "2026-01-05 10:00:00.000001", "späť"),
    (1, "10.10", "2026-01-01", "2026-01-05 10:00:00", 'it\'s "quoted"'),
    (2, "20.20", None, "2026-01-04 09:00:00", None),
]


@pytest.fixture(scope="module")
def postgres():
    """DSN of a running PostgreSQL; its folder must be reachable by the user the server runs as."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield embedded.start(folder)
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def erp(postgres):
    """A connection to a PostgreSQL with an empty schema `erp`."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("drop schema if exists erp cascade")
        connection.execute("create schema erp")
        yield connection


@pytest.fixture
def shop(tmp_path):
    """A connection to an empty SQLite file; its path is `shop.db`."""
    connection = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture(params=["postgresql", "sqlite"])
def orders(request):
    """The same orders on both databases: their DSN, the table's name and a way to run statements."""
    if request.param == "postgresql":
        connection, table = request.getfixturevalue("erp"), 'erp."Orders"'
        dsn = request.getfixturevalue("postgres")
        types = "bigint primary key", "numeric(10,2)", "date", "timestamp", "text"
    else:
        connection, table = request.getfixturevalue("shop"), '"Orders"'
        dsn = f"sqlite:///{request.getfixturevalue('tmp_path')}/shop.db"
        types = "integer primary key", "text", "text", "text", "text"
    columns = ", ".join(f'"{f.source_name}" {t}' for f, t in zip(SCHEMA.fields, types, strict=True))
    connection.execute(f"create table {table} ({columns})")
    for order in ORDERS:
        insert(connection, table, *order)
    return dsn, table.replace('"', ""), connection


def insert(connection, table, *values):
    connection.execute(f"insert into {table} values ({', '.join(map(literal, values))})")


def literal(value):
    if value is None or isinstance(value, int | float):
        return "null" if value is None else str(value)
    return "'" + value.replace("'", "''") + "'"


def connector(dsn, **fields):
    declared = {"name": "orders", "dataset": "shop.orders", "connector": "sql", "dsn": "${env:DSN}", **fields}
    return SqlConnector(SqlSource.model_validate(declared), lookup=Lookup({"DSN": dsn}))


def read(source, cursor=None, schema=SCHEMA):
    (unit,) = source.discover(WINDOW, cursor)
    batches = list(source.read(unit, schema))
    rows = pa.Table.from_batches([batch.rows for batch in batches], schema.arrow)
    assert all(batch.received == batch.rows.num_rows + batch.rejects.num_rows for batch in batches)
    return rows


def rows_of(source, unit, schema, column):
    return [value for batch in source.read(unit, schema) for value in batch.rows.column(column).to_pylist()]


def rows_after(source, cursor, schema):
    units = source.discover(WINDOW, cursor)
    return [row for unit in units for batch in source.read(unit, schema) for row in batch.rows.to_pylist()]


def rejects(source, schema=SCHEMA):
    (unit,) = source.discover(WINDOW, None)
    return [reject for batch in source.read(unit, schema) for reject in batch.rejects.to_pylist()]


class TestBothDatabases:
    def test_a_table_is_read_whole_in_the_order_of_its_key(self, orders):
        dsn, table, _ = orders
        rows = read(connector(dsn, table=table))
        assert rows.drop_columns(["_extra"]).to_pylist() == [
            {
                "order_id": 1,
                "amount": Decimal("10.10"),
                "ordered_on": dt.date(2026, 1, 1),
                "changed_at": dt.datetime(2026, 1, 5, 10),
                "note": 'it\'s "quoted"',
                "_row_number": 1,
            },
            {
                "order_id": 2,
                "amount": Decimal("20.20"),
                "ordered_on": None,
                "changed_at": dt.datetime(2026, 1, 4, 9),
                "note": None,
                "_row_number": 2,
            },
            {
                "order_id": 3,
                "amount": Decimal("30.30"),
                "ordered_on": dt.date(2026, 1, 3),
                "changed_at": dt.datetime(2026, 1, 5, 10, 0, 0, 1),
                "note": "späť",
                "_row_number": 3,
            },
        ]

    def test_a_query_is_read_and_its_order_can_be_declared(self, orders):
        dsn, table, _ = orders
        name = ".".join(f'"{part}"' for part in table.split("."))
        query = f"""select "Id", note, '10:30 :x {{y}} %s' as extra from {name} where "Id" <> 2 -- not 2;"""
        rows = read(connector(dsn, query=query, order_by=("note",)))
        assert rows.column("order_id").to_pylist() == [1, 3]
        assert json.loads(rows.column("_extra")[0].as_py()) == {"extra": "10:30 :x {y} %s"}

    @pytest.mark.parametrize("column", ["Id", "changed_at"])
    def test_a_slice_is_what_is_newer_than_the_cursor_and_stays_what_it_was(self, orders, column):
        dsn, table, connection = orders
        source = connector(dsn, table=table, cursor_column=column)
        (first,) = source.discover(WINDOW, None)
        insert(
            connection,
            ".".join(f'"{part}"' for part in table.split(".")),
            7,
            "7",
            None,
            "2026-02-01 00:00:00",
            "new",
        )
        before = [
            row for batch in source.read(first, SCHEMA) for row in batch.rows.column("order_id").to_pylist()
        ]
        assert sorted(before) == [1, 2, 3]
        (second,) = source.discover(WINDOW, Cursor(first.cursor))
        assert second.source_id != first.source_id
        for _ in range(2):
            assert [b.rows.column("note").to_pylist() for b in source.read(second, SCHEMA)] == [["new"]]
        assert rows_after(source, Cursor(second.cursor), SCHEMA) == []

    def test_the_last_value_is_read_again_with_all_that_was_read_as_fingerprints(self, orders):
        dsn, table, connection = orders
        source = connector(dsn, table=table, cursor_column="Id")
        (first,) = source.discover(WINDOW, None)
        before = {mark for b in source.read(first, SCHEMA) for mark in b.fingerprints.digests.tolist()}
        insert(connection, ".".join(f'"{part}"' for part in table.split(".")), 7, "7", None, "2026-02-01 00:00:00", "x")
        (second,) = source.discover(WINDOW, first.slice.cursor)
        (batch,) = source.read(second, SCHEMA)
        assert batch.rows.column("order_id").to_pylist() == [3, 7]
        assert [mark in before for mark in batch.fingerprints.digests.tolist()] == [True, False]

    def test_rows_of_a_slice_come_in_the_order_of_the_cursor(self, orders):
        dsn, table, _ = orders
        rows = read(connector(dsn, table=table, cursor_column="changed_at"))
        assert rows.column("order_id").to_pylist() == [2, 1, 3]

    def test_an_empty_table_is_one_empty_unit_or_no_slice(self, orders):
        dsn, table, connection = orders
        connection.execute("delete from " + ".".join(f'"{part}"' for part in table.split(".")))
        assert read(connector(dsn, table=table)).num_rows == 0
        assert connector(dsn, table=table, cursor_column="Id").discover(WINDOW, None) == []

    def test_the_observed_schema_names_the_columns_and_types(self, orders):
        dsn, table, _ = orders
        source = connector(dsn, table=table)
        observed = source.observed_schema(source.discover(WINDOW, None)[0])
        assert observed.names == ("Id", "amount", "ordered_on", "changed_at", "note")
        assert len(observed.types) == len(observed.nullable) == 5

    def test_rows_without_a_cursor_value_are_read_every_time(self, orders):
        dsn, table, _ = orders
        source = connector(dsn, table=table, cursor_column="ordered_on")
        (first,) = source.discover(WINDOW, None)
        assert sorted(rows_of(source, first, SCHEMA, "order_id")) == [1, 2, 3]
        (second,) = source.discover(WINDOW, first.slice.cursor)
        assert sorted(rows_of(source, second, SCHEMA, "order_id")) == [2, 3]

    def test_an_unknown_table_is_refused_with_the_tables_there(self, orders):
        dsn, table, _ = orders
        with pytest.raises(
            BareCountError, match=f"no table {table[:-1]}; tables there: .*{table}"
        ) as refused:
            connector(dsn, table=table[:-1]).discover(WINDOW, None)
        assert refused.value.code is ErrorCode.SOURCE_NOT_FOUND

    def test_an_unknown_table_in_a_query_is_refused_with_the_tables_there(self, orders):
        dsn, table, _ = orders
        with pytest.raises(BareCountError, match=f"nowhere.*tables there: .*{table}") as refused:
            connector(dsn, query="select * from nowhere").discover(WINDOW, None)
        assert refused.value.code is ErrorCode.SOURCE_NOT_FOUND

    def test_an_unknown_cursor_column_is_refused_with_the_columns_there(self, orders):
        dsn, table, _ = orders
        with pytest.raises(BareCountError, match="no column id; it has Id, amount") as refused:
            connector(dsn, table=table, cursor_column="id").discover(WINDOW, None)
        assert refused.value.code is ErrorCode.SOURCE_NOT_FOUND

    @pytest.mark.parametrize(
        "query",
        ["selec 1", 'delete from "Orders" returning *', "select 1 as a; select 2"],
    )
    def test_a_query_that_is_no_sound_select_is_refused(self, orders, query):
        dsn, _, _ = orders
        with pytest.raises(BareCountError) as refused:
            connector(dsn, query=query).discover(WINDOW, None)
        assert refused.value.code is ErrorCode.DECLARATION_INVALID

    def test_names_with_quotes_stay_names(self, orders):
        dsn, table, connection = orders
        odd = '"a"";drop"'
        schema = "erp." if "." in table else ""
        connection.execute(f'create table {schema}{odd} ("b""%s:c{{}}" bigint)')
        connection.execute(f"insert into {schema}{odd} values (5)")
        fields = ExtractorSchema((Field("b", 'b"%s:c{}', pa.int64()),))
        source = connector(dsn, table=f'{schema}a";drop', cursor_column='b"%s:c{}')
        assert read(source, Cursor("4"), fields).column("b").to_pylist() == [5]


class TestPostgres:
    def test_nullability_and_hints_in_comments_are_observed(self, postgres, erp):
        erp.execute("create table erp.priced (id bigint not null, amount numeric(10,2))")
        erp.execute("comment on column erp.priced.amount is 'net of tax; unit: EUR; format: plain'")
        source = connector(postgres, table="erp.priced")
        observed = source.observed_schema(source.discover(WINDOW, None)[0])
        assert observed.nullable == (False, True)
        assert observed.hints == ((), (("format", "plain"), ("unit", "EUR")))

    def test_a_value_that_does_not_fit_is_rejected_with_its_row(self, postgres, erp):
        erp.execute(
            """create table erp.bad as select * from (values
               (1, '1.10', date '2026-01-01', timestamp '2026-01-01', 'good'),
               (2, '1.105', date '2026-01-01', timestamp '2026-01-01', 'too fine'),
               (3, 'ten', date '2026-01-01', timestamp '2026-01-01', 'no number'),
               (4, '1.10', 'infinity', timestamp '2026-01-01', 'no day'),
               (5, '1.10', date '2026-01-01', '-infinity', 'no instant'),
               (null, '1.10', date '2026-01-01', timestamp '2026-01-01', 'no id'))
               as v("Id", amount, ordered_on, changed_at, note)"""
        )
        source = connector(postgres, table="erp.bad", order_by=("Id",))
        assert read(source).column("note").to_pylist() == ["good"]
        found = rejects(source)
        assert [(r["row_number"], r["field"], r["reason"]) for r in found] == [
            (2, "amount", "wrong_type"),
            (3, "amount", "wrong_type"),
            (4, "ordered_on", "wrong_type"),
            (5, "changed_at", "wrong_type"),
            (6, "order_id", "missing_field"),
        ]
        assert json.loads(found[1]["payload"])["amount"] == "ten"
        assert json.loads(found[2]["payload"]) == {
            "Id": 4,
            "amount": "1.10",
            "ordered_on": "infinity",
            "changed_at": "2026-01-01 00:00:00",
            "note": "no day",
        }

    @pytest.mark.parametrize(
        ("expression", "type_", "value"),
        [
            ("12345678901234.5678::numeric", pa.decimal128(18, 4), Decimal("12345678901234.5678")),
            ("7::smallint", pa.int32(), 7),
            ("'€'::varchar(3)", pa.string(), "€"),
            ("timestamptz '2026-03-29 01:30:00+02'", pa.string(), "2026-03-28 23:30:00+00"),
            ("timestamptz '2026-03-29 01:30:00+02'", pa.timestamp("us"), dt.datetime(2026, 3, 28, 23, 30)),
            ("timestamp '2026-03-29 00:00'", pa.date32(), dt.date(2026, 3, 29)),
            ("date '2026-03-29'", pa.timestamp("us"), dt.datetime(2026, 3, 29)),
            ("1.1::real", pa.float64(), 1.1),
            ("1.5::double precision", pa.decimal128(4, 2), Decimal("1.50")),
            ("12.3000::numeric(10,4)", pa.decimal128(10, 2), Decimal("12.30")),
            ("12.30::numeric", pa.string(), "12.30"),
            ("12.00::numeric", pa.int64(), 12),
            ("7::bigint", pa.int32(), 7),
            ("true", pa.bool_(), True),
            ("''::text", pa.int64(), None),
            (
                "'4f2b9a52-4c8c-4c5e-9c55-6d1c7e1f7a11'::uuid",
                pa.string(),
                "4f2b9a52-4c8c-4c5e-9c55-6d1c7e1f7a11",
            ),
            ("""'{"a": 1.10}'::jsonb""", pa.string(), '{"a": 1.10}'),
            ("array[1, 2]", pa.string(), "{1,2}"),
            ("'10.0.0.1'::inet", pa.string(), "10.0.0.1/32"),
            ("interval '1 day 2 hours'", pa.string(), "P1DT2H"),
            (r"'\x00ff'::bytea", pa.string(), r"\x00ff"),
            ("'1234.50'::money", pa.decimal128(18, 2), Decimal("1234.50")),
            ("4294967295::oid", pa.int64(), 4294967295),
            ("time '10:30'", pa.string(), "10:30:00"),
        ],
    )
    def test_every_type_arrives_as_it_is_written(self, postgres, erp, expression, type_, value):
        schema = ExtractorSchema((Field("v", "v", type_),))
        rows = read(connector(postgres, query=f"select {expression} as v"), schema=schema)
        assert rows.column("v").to_pylist() == [value]

    @pytest.mark.parametrize(
        ("type_", "values"),
        [
            ("timestamptz", ["2026-01-01 00:00+00", "2026-01-01 00:00:00.000001+00", "2026-07-01 12:00+02"]),
            ("numeric", ["9", "10", "10.000000000000000001"]),
            ("text", ["a", "a'b", "b"]),
            ("uuid", ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-00000000000a"]),
            ("double precision", ["0.1", "0.30000000000000004"]),
            ("date", ["2025-12-31", "2026-01-01"]),
        ],
    )
    def test_a_cursor_of_any_type_is_exact(self, postgres, erp, type_, values):
        erp.execute(f"create table erp.steps (c {type_} not null, n int)")
        source = connector(postgres, table="erp.steps", cursor_column="c")
        schema = ExtractorSchema((Field("n", "n", pa.int64()),))
        cursor = None  # then one that an earlier release stored: the value alone
        for number, value in enumerate(values):
            erp.execute(f"insert into erp.steps values (%s::{type_}, %s)", (value, number))
            (unit,) = source.discover(WINDOW, cursor)
            assert [b.rows.column("n").to_pylist() for b in source.read(unit, schema)] == [[number]]
            cursor = Cursor(unit.cursor)
        assert rows_after(source, cursor, schema) == []

    def test_a_query_with_twin_columns_is_refused(self, postgres, erp):
        with pytest.raises(BareCountError, match="more than one column named a") as refused:
            connector(postgres, query="select 1 as a, 2 as a").discover(WINDOW, None)
        assert refused.value.code is ErrorCode.DECLARATION_INVALID

    def test_undeclared_columns_are_kept_with_their_digits(self, postgres, erp):
        values = """1.10 as price, '{"a": [1.20]}'::jsonb as doc, null::int as gap, array[1] as list"""
        rows = read(connector(postgres, query=f'select 1 as "Id", {values}'))
        kept = '{"doc":{"a": [1.20]},"gap":null,"list":[1],"price":1.10}'
        assert rows.column("_extra").to_pylist() == [kept]

    def test_a_table_of_other_columns_is_refused(self, postgres, erp):
        with pytest.raises(BareCountError, match="none of the expected") as refused:
            read(connector(postgres, query="select 1 as other"))
        assert refused.value.code is ErrorCode.SOURCE_MALFORMED

    def test_an_infinite_cursor_is_refused_because_nothing_is_newer(self, postgres, erp):
        erp.execute("create table erp.steps as select 'infinity'::timestamp as c")
        with pytest.raises(BareCountError, match="holds infinity"):
            connector(postgres, table="erp.steps", cursor_column="c").discover(WINDOW, None)

    def test_rows_without_a_key_come_in_one_order_however_they_lie(self, postgres, erp):
        query = (
            "select * from (values (2, 'b'), (1, 'a'), (null, 'c'), (1, 'A')) as v(\"Id\", note) order by {}"
        )
        first = rejects_and_rows(connector(postgres, query=query.format("1")))
        second = rejects_and_rows(connector(postgres, query=query.format("2 desc")))
        assert first == second

    @pytest.mark.parametrize("options", [{}, {"cursor_column": "n"}, {"order_by": ("n",)}])
    def test_rows_are_ordered_by_values_and_not_by_their_text(self, postgres, erp, options):
        erp.execute("create table erp.numbers as select n::numeric from generate_series(98, 102) as n")
        erp.execute("alter table erp.numbers add primary key (n)")
        schema = ExtractorSchema((Field("n", "n", pa.int64()),))
        assert read(connector(postgres, table="erp.numbers", **options), schema=schema)["n"].to_pylist() == [
            98, 99, 100, 101, 102,
        ]  # fmt: skip

    def test_a_large_result_streams(self, postgres, erp):
        query = "select i as \"Id\", repeat('x', 200) as note from generate_series(1, 300000) as i"
        source = connector(postgres, query=query, order_by=("Id",))
        stream = source.read(source.discover(WINDOW, None)[0], SCHEMA)
        first = next(stream)
        assert first.rows.num_rows < 200_000
        assert first.rows.num_rows + sum(batch.rows.num_rows for batch in stream) == 300_000

    def test_a_slice_streams_too(self, postgres, erp):
        query = "select i as \"Id\", repeat('x', 200) as note from generate_series(1, 300000) as i"
        source = connector(postgres, query=query, cursor_column="Id")
        stream = source.read(source.discover(WINDOW, Cursor("1000"))[0], SCHEMA)
        first = next(stream)
        assert first.rows.num_rows < 200_000
        assert first.rows.num_rows + sum(batch.rows.num_rows for batch in stream) == 299_000

    def test_nothing_can_be_written(self, postgres, erp):
        erp.execute("create sequence erp.counter")
        with pytest.raises(BareCountError, match="read-only transaction"):
            read(connector(postgres, query="select nextval('erp.counter') as \"Id\""))

    def test_a_row_that_cannot_be_computed_is_the_sources_fault(self, postgres, erp):
        query = 'select 1 / (i - 150000) as "Id" from generate_series(1, 200000) as i'
        with pytest.raises(BareCountError, match="division by zero") as refused:
            read(connector(postgres, query=query))
        assert (refused.value.code, refused.value.retryable) == (ErrorCode.SOURCE_MALFORMED, False)

    def test_a_connection_lost_half_way_can_be_tried_again(self, postgres, erp):
        query = "select i as \"Id\", repeat('x', 200) as note from generate_series(1, 1000000) as i"
        source = connector(postgres, query=query, order_by=("Id",))
        stream = source.read(source.discover(WINDOW, None)[0], SCHEMA)
        next(stream)
        erp.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where query like '%generate_series%' and pid <> pg_backend_pid()"
        )
        with pytest.raises(BareCountError, match="broke off") as refused:
            list(stream)
        assert (refused.value.code, refused.value.retryable) == (ErrorCode.SOURCE_UNAVAILABLE, True)

    def test_a_missing_grant_is_unreadable(self, postgres, erp):
        erp.execute("create table erp.hidden (a int)")
        erp.execute("drop role if exists guest")
        erp.execute("create role guest login")
        with pytest.raises(BareCountError, match="permission denied") as refused:
            connector(postgres.replace("postgres@", "guest@"), table="erp.hidden").discover(WINDOW, None)
        assert refused.value.code is ErrorCode.SOURCE_UNREADABLE

    @pytest.mark.parametrize(
        ("change", "code", "retryable"),
        [
            (("postgres@", "nobody:hunter2@"), ErrorCode.SOURCE_UNREADABLE, False),
            (("/barecount?", "/nowhere?"), ErrorCode.SOURCE_NOT_FOUND, False),
            (("postgres@/", "postgres:hunter2@127.0.0.1:1/"), ErrorCode.SOURCE_UNAVAILABLE, True),
            (("postgres@/", "postgres:hunter2@no.such.host.invalid/"), ErrorCode.SOURCE_UNAVAILABLE, True),
            (("port=5432", "port=x"), ErrorCode.DECLARATION_INVALID, False),
        ],
    )
    def test_a_failed_connection_says_why_and_never_the_password(self, postgres, change, code, retryable):
        dsn = postgres.replace(*change)
        if "127.0.0.1" in dsn or "invalid/" in dsn:
            dsn = dsn.partition("?")[0]
        with pytest.raises(BareCountError) as refused:
            connector(dsn, table="t").discover(WINDOW, None)
        assert (refused.value.code, refused.value.retryable) == (code, retryable)
        assert "hunter2" not in str(refused.value)
        assert refused.value.__cause__ is None


class TestSqlite:
    def test_values_of_mixed_types_are_judged_one_by_one(self, tmp_path, shop):
        shop.execute('create table t ("Id", amount, ordered_on, changed_at, note)')
        for row in [
            (1, 1.5, None, None, "a"),
            ("x", 2, None, None, "b"),
            (3, "3.30", None, None, 7),
            (4, b"\1", None, None, ""),
        ]:
            shop.execute("insert into t values (?, ?, ?, ?, ?)", row)
        source = connector(f"sqlite:///{tmp_path}/shop.db", table="t", order_by=("Id",))
        rows = read(source)
        assert rows.column("amount").to_pylist() == [Decimal("1.50"), Decimal("3.30")]
        assert rows.column("note").to_pylist() == ["a", "7"]
        assert [(r["field"], r["reason"], json.loads(r["payload"])["Id"]) for r in rejects(source)] == [
            ("amount", "wrong_type", 4),
            ("order_id", "wrong_type", "x"),
        ]

    def test_batches_hold_no_more_than_the_declared_rows(self, tmp_path, shop):
        shop.execute('create table t ("Id" integer primary key)')
        shop.executemany("insert into t values (?)", [(n,) for n in range(25)])
        source = connector(f"sqlite:///{tmp_path}/shop.db", table="t", batch_rows=10)
        batches = list(source.read(source.discover(WINDOW, None)[0], SCHEMA))
        assert [batch.received for batch in batches] == [10, 10, 5]
        assert batches[2].rows.column("_row_number").to_pylist() == [21, 22, 23, 24, 25]

    def test_a_missing_file_is_refused_and_not_created(self, tmp_path):
        with pytest.raises(BareCountError, match="no SQLite file") as refused:
            connector(f"sqlite:///{tmp_path}/none.db", table="t").discover(WINDOW, None)
        assert refused.value.code is ErrorCode.SOURCE_NOT_FOUND
        assert not (tmp_path / "none.db").exists()

    def test_a_file_that_is_no_database_is_malformed(self, tmp_path):
        (tmp_path / "bad.db").write_bytes(b"not a database" * 100)
        with pytest.raises(BareCountError, match="not a database") as refused:
            connector(f"sqlite:///{tmp_path}/bad.db", table="t").discover(WINDOW, None)
        assert refused.value.code is ErrorCode.SOURCE_MALFORMED

    def test_a_dialect_without_a_driver_is_refused(self):
        with pytest.raises(BareCountError, match="no driver for nosuch") as refused:
            connector("nosuch://u:hunter2@h/d", table="t").discover(WINDOW, None)
        assert refused.value.code is ErrorCode.DECLARATION_INVALID
        assert "hunter2" not in str(refused.value)


def rejects_and_rows(source):
    return read(source).to_pylist(), rejects(source)
