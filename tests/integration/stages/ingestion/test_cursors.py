"""What a cursor reads, landing after landing, against plain models of the source: nothing is lost, nothing comes twice.

Every source is real (PostgreSQL, SQLite, an HTTP server), and so is the database that remembers what was read; landing
is what the stage does with it: read all batches, then store cursor and fingerprints in one transaction.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections import Counter
from contextlib import contextmanager
from decimal import Decimal

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from barecount_assets.stages.ingestion import cursors
from barecount_assets.stages.ingestion.connectors.references import Lookup
from barecount_assets.stages.ingestion.connectors.rest import RestConnector
from barecount_assets.stages.ingestion.connectors.sql import SqlConnector
from barecount_assets.stages.ingestion.records import Cursor, ExtractorSchema, Field, Window
from resources.governance.sources import RestSource, SqlSource
from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from tests.integration.stages.ingestion.test_rest_connector import Answer, api

WINDOW = Window(dt.date(2026, 1, 1), dt.date(2026, 1, 1))
SCHEMA = ExtractorSchema((Field("name", "name", pa.string()), Field("amount", "amount", pa.decimal128(18, 2))))
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


class Reader:
    """Reads a source again and again, as the ingestion stage does."""

    def __init__(self, database, connector, source="orders"):
        self.database, self.connector = database, connector
        self.key = cursors.CursorKey("acme", "shop", source)
        self.landed: list[tuple] = []
        self.units: list[str] = []
        self.facts: dict = {}
        with database.transaction() as connection:
            fetch(connection, "select platform.register_tenant($1, $2, $3)", ("acme", "Acme", "0" * 64))
            fetch(connection, "delete from platform.source_cursor")
            fetch(connection, "delete from platform.cursor_mark")

    @property
    def cursor(self):
        with self.database.connect(autocommit=True) as connection:
            return cursors.load(connection, self.key)

    def read(self, schema=SCHEMA, *, crash=False):
        """The records that land now: (name, amount), refused ones as (reason, row number)."""
        with self.database.connect(autocommit=True) as connection:
            cursor = cursors.load(connection, self.key)
            units = self.connector.discover(WINDOW, cursor)
            with cursors.NewRecords(self.connector, self.database, self.key, cursor) as incremental:
                now = []
                for unit in incremental.begin(units, schema):
                    for batch in incremental.read(unit, schema):
                        assert batch.received == batch.rows.num_rows + batch.rejects.num_rows
                        now += zip(*(batch.rows.column(n).to_pylist() for n in ("name", "amount")), strict=True)
                        now += [(reject["reason"], reject["row_number"]) for reject in batch.rejects.to_pylist()]
                    assert unit.source_id not in self.units
                    if crash:
                        return now
                    self.units.append(unit.source_id)
                    with connection.transaction():
                        incremental.landed(connection, {"source_id": unit.source_id, "evidence_seq": 1})
                incremental.finish(connection)
                self.facts = incremental.facts
        self.landed += now
        return now

    def names(self, **options):
        return sorted(name for name, _ in self.read(**options))


def sql_connector(dsn, **fields):
    declared = {"name": "orders", "dataset": "shop.orders", "connector": "sql", "dsn": "${env:DSN}", "table": "orders",
                "cursor_column": "at", **fields}
    return SqlConnector(SqlSource.model_validate(declared), lookup=Lookup({"DSN": dsn}))


class Source:
    """A table `orders (name, amount, at)` of a database, without a key."""

    def __init__(self, kind, dsn, connection, at):
        self.kind, self.dsn, self.connection = kind, dsn, connection
        self.run("drop table if exists orders")
        self.run(f"create table orders (name text, amount numeric(10,2), at {at})")

    def run(self, statement, *values):
        marker = "%s" if self.kind == "postgresql" else "?"
        return self.connection.execute(statement.replace("?", marker), values or None or ())

    def insert(self, name, amount, at):
        self.run("insert into orders values (?, ?, ?)", name, amount, at)

    def reader(self, database, **fields):
        return Reader(database, sql_connector(self.dsn, **fields))


@pytest.fixture
def own_database(new_database):
    """A PostgreSQL source beside the platform's database, on the same server."""
    return new_database()


@pytest.fixture(params=["postgresql", "sqlite"])
def make_source(request, tmp_path, own_database):
    """Makes the table with a type of its cursor column."""
    if request.param == "sqlite":
        with sqlite3.connect(tmp_path / "shop.db", isolation_level=None) as connection:
            yield lambda at: Source("sqlite", f"sqlite:///{tmp_path}/shop.db", connection, at)
    else:
        url = own_database.admin_url
        with psycopg.connect(url, autocommit=True) as connection:
            yield lambda at: Source("postgresql", url, connection, at)


class TestTies:
    def test_rows_that_come_later_with_a_value_already_read_land(self, database, make_source):
        source = make_source("text")
        reader = source.reader(database)
        source.insert("A", 10, "2026-05-04 10:00:00")
        source.insert("B", 20, "2026-05-04 10:00:01")
        assert reader.names() == ["A", "B"]
        source.insert("C", 40, "2026-05-04 10:00:01")
        source.insert("D", 80, "2026-05-04 10:00:02")
        assert reader.names() == ["C", "D"]
        assert reader.facts["already_landed"] == 1
        assert reader.names() == []

    def test_a_copy_of_a_row_lands_once_more_and_what_was_read_does_not(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        for expected in (1, 1, 2, 0, 3):
            for _ in range(expected):
                source.insert("same", 5, 7)
            assert reader.names() == ["same"] * expected

    def test_a_row_that_changes_and_changes_back_lands_each_time(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        source.insert("A", 100, 7)
        for amount in (100, 75, 100, 75):
            source.run("update orders set amount = ?", amount)
            assert reader.read() == [("A", Decimal(amount))]
            assert reader.read() == []

    @pytest.mark.parametrize(("at", "values"), [
        ("integer", [9, 10, 11, 100]), ("numeric", ["9.5", "10", "10.25", "100"]),
        ("text", ["A", "Z", "a", "é"]), ("date", ["2026-01-09", "2026-01-10", "2026-02-01", "2027-01-01"]),
        ("timestamp", ["2026-01-09 09:00:00", "2026-01-09 10:00:00", "2026-01-09 10:00:00.5", "2026-01-10 00:00:00"]),
    ])
    def test_every_type_of_cursor_goes_up_with_ties_on_the_way(self, database, make_source, at, values):
        source = make_source(at)
        reader = source.reader(database)
        for number, value in enumerate(values):
            for tie in "abc":
                source.insert(f"{number}{tie}", 1, value)
                assert reader.names() == [f"{number}{tie}"]
        assert reader.names() == []

    def test_rows_without_a_value_land_once_and_again_when_they_change(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        source.insert("none", 1, None)
        assert reader.names() == ["none"]
        assert reader.names() == []
        source.insert("none", 1, None)
        source.insert("some", 1, 4)
        assert reader.names() == ["none", "some"]
        source.run("update orders set amount = 2 where at is null")
        assert reader.read() == [("none", Decimal(2))] * 2
        assert reader.names() == []

    def test_a_refused_row_is_refused_once(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        schema = ExtractorSchema((Field("name", "name", pa.string()), Field("amount", "amount", pa.int64())))
        source.insert("whole", 1, 7)
        source.insert("broken", "1.5", 7)
        assert sorted(map(str, reader.read(schema))) == ["('whole', 1)", "('wrong_type', 1)"]
        source.insert("late", 3, 7)
        assert reader.read(schema) == [("late", 3)]
        assert reader.facts["already_landed"] == 2

    def test_a_column_that_is_added_makes_no_row_new_until_it_holds_something(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        source.insert("A", 1, 7)
        source.insert("B", 1, 7)
        assert reader.names() == ["A", "B"]
        source.run("alter table orders add column colour text")
        assert reader.names() == []
        source.run("update orders set colour = 'red' where name = 'B'")
        assert reader.names() == ["B"]

    def test_what_was_not_committed_is_read_again(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        source.insert("A", 1, 7)
        assert reader.names(crash=True) == ["A"]
        assert reader.names() == ["A"]
        source.insert("B", 1, 7)
        assert reader.names(crash=True) == ["B"]
        assert reader.names() == ["B"]


class TestOverlap:
    @pytest.mark.parametrize(("at", "overlap", "first", "within", "before"), [
        ("integer", 100, 1000, 900, 899), ("numeric", 0.5, "10.5", "10", "9.75"),
    ])
    def test_numbers_are_read_again_from_the_overlap_on(self, database, tmp_path, at, overlap, first, within, before):
        with sqlite3.connect(tmp_path / "shop.db", isolation_level=None) as connection:
            source = Source("sqlite", f"sqlite:///{tmp_path}/shop.db", connection, at)
            reader = source.reader(database, overlap=overlap)
            source.insert("first", 1, first)
            assert reader.names() == ["first"]
            source.insert("within", 1, within)
            source.insert("before", 1, before)
            assert reader.names() == ["within"]

    @pytest.mark.parametrize(("at", "overlap", "first", "within", "before"), [
        ("integer", 100, 1000, 900, 899), ("numeric(10,2)", 0.5, "10", "9.5", "9.4"),
        ("double precision", 0.5, "10", "9.5", "9.4"), ("smallint", 40_000, -1, -32_768, None),
        ("date", "2 days", "2026-01-09", "2026-01-07", "2026-01-06"), ("date", 3600, "2026-01-09", "2026-01-08", None),
        ("timestamp", "15 minutes", "2026-01-09 10:00:00", "2026-01-09 09:45:00", "2026-01-09 09:44:59"),
        ("timestamptz", 900, "2026-01-09 10:00:00+01", "2026-01-09 08:45:00+00", "2026-01-09 08:44:59+00"),
    ])
    def test_postgres_types_overlap_too(self, database, own_database, at, overlap, first, within, before):
        url = own_database.admin_url
        with psycopg.connect(url, autocommit=True) as connection:
            source = Source("postgresql", url, connection, at)
            reader = source.reader(database, overlap=overlap, late_commits="overlap")
            source.insert("first", 1, first)
            assert reader.names() == ["first"]
            source.insert("within", 1, within)
            if before is not None:
                source.insert("before", 1, before)
            assert reader.names() == ["within"]

    @pytest.mark.parametrize(("at", "value", "overlap"), [
        ("text", "a", 5), ("text", "a", "5 minutes"), ("integer", 5, "5 minutes")])
    def test_an_overlap_that_the_type_has_not_is_refused(self, database, make_source, at, value, overlap):
        source = make_source(at)
        source.insert("A", 1, value)
        with pytest.raises(BareCountError, match="its cursor column at is") as refused:
            source.reader(database, overlap=overlap).read()
        assert refused.value.code is ErrorCode.DECLARATION_INVALID

    def test_numbers_as_text_are_refused_where_their_order_is_another(self, database, make_source):
        source = make_source("text")
        reader = source.reader(database)
        source.insert("A", 1, "9")
        assert reader.names() == ["A"]
        source.insert("B", 1, "10")
        with pytest.raises(BareCountError, match="numbers as text: '9'"):
            reader.read()

    @SHARED
    @given(data=st.data())
    def test_whatever_the_order_every_row_lands_once(self, database, tmp_path, data):
        overlap = data.draw(st.integers(0, 5))
        with sqlite3.connect(tmp_path / "shop.db", isolation_level=None) as connection:
            source = Source("sqlite", f"sqlite:///{tmp_path}/shop.db", connection, "integer")
            reader = source.reader(database, overlap=overlap, batch_rows=data.draw(st.integers(1, 4)))
            committed, highest = Counter(), 0
            for insert in data.draw(st.lists(st.one_of(st.none(), st.tuples(
                    st.integers(-5, 5), st.sampled_from("AB"), st.booleans())), max_size=25)):
                if insert is None:
                    reader.read()
                    highest = source.run("select coalesce(max(at), 0) from orders").fetchone()[0]
                    continue
                offset, name, has_value = insert
                at = highest + max(offset, -overlap) if has_value else None
                source.insert(name, 1, at)
                committed[name] += 1
            reader.read()
            assert Counter(name for name, _ in reader.landed) == committed
            assert reader.read() == []


class TestLateCommits:
    @pytest.fixture
    def source(self, own_database):
        with psycopg.connect(own_database.admin_url, autocommit=True) as connection:
            yield Source("postgresql", own_database.admin_url, connection, "bigint")

    @contextmanager
    def open_transaction(self, source):
        with psycopg.connect(source.dsn) as connection:
            yield connection

    def test_a_row_stamped_early_and_committed_late_lands(self, database, source):
        reader = source.reader(database)
        with self.open_transaction(source) as writer:
            writer.execute("insert into orders values ('late', 1, 3)")
            source.insert("early", 1, 1000)
            assert reader.names() == ["early"]
            writer.commit()
            assert reader.names() == ["late"]
        assert reader.names() == []

    def test_a_part_of_a_late_transaction_lands_too(self, database, source):
        reader = source.reader(database)
        with self.open_transaction(source) as writer:
            writer.execute("insert into orders values ('whole', 1, 3)")
            with writer.transaction():
                writer.execute("insert into orders values ('part', 1, 4)")
            source.insert("early", 1, 1000)
            assert reader.names() == ["early"]
            writer.commit()
            assert reader.names() == ["part", "whole"]

    def test_a_copy_committed_late_is_told_from_the_row_that_was_read(self, database, source):
        source.insert("same", 1, 3)
        source.insert("last", 1, 1000)
        reader = source.reader(database)
        assert reader.names() == ["last", "same"]
        source.insert("same", 1, 3)
        assert reader.names() == ["same"]
        source.run("update orders set amount = amount")  # new versions of the same rows
        assert reader.names() == []

    def test_a_table_that_is_rewritten_has_no_new_rows(self, database, source):
        for number in range(50):
            source.insert(str(number), 1, number)
        reader = source.reader(database)
        assert len(reader.read()) == 50
        source.run("alter table orders alter column amount type numeric(14, 4)")
        source.run("alter table orders alter column at type numeric")
        assert reader.read() == []
        source.run("vacuum full orders")
        assert reader.read() == []

    def test_transactions_of_long_ago_and_of_other_servers_are_read_with_all_else(self, database, source):
        source.insert("A", 1, 5)
        reader = source.reader(database)
        assert reader.names() == ["A"]
        with database.transaction() as connection:
            fetch(connection, "update platform.source_cursor set state = jsonb_set(state, '{memory,server,1}', '77')")
        source.insert("B", 1, 2)
        assert reader.names() == ["B"]
        assert "another server" in reader.facts["notes"][0]
        assert reader.names() == [] and reader.facts["notes"] == []

    def test_partitions_know_the_transaction_too(self, database, source):
        source.run("drop table orders")
        source.run("create table orders (name text, amount numeric, at bigint) partition by list (name)")
        source.run("create table orders_other partition of orders default")
        source.insert("A", 1, 9)
        reader = source.reader(database)
        assert reader.names() == ["A"]
        source.insert("B", 1, 2)
        assert reader.names() == ["B"]

    def test_a_view_has_no_transactions_and_is_read_from_the_cursor_on(self, database, source):
        source.run("create view seen as select * from orders")
        source.insert("A", 1, 9)
        reader = source.reader(database, table="seen", overlap=2)
        assert reader.names() == ["A"]
        source.insert("B", 1, 7)
        source.insert("C", 1, 6)
        assert reader.names() == ["B"]
        source.run("drop view seen")

    @SHARED
    @given(data=st.data())
    def test_transactions_in_any_order_lose_nothing(self, database, source, data):
        source.run("truncate orders")
        reader = source.reader(database)
        committed: Counter[str] = Counter()
        writers = [psycopg.connect(source.dsn) for _ in range(3)]
        pending: list[Counter[str]] = [Counter() for _ in writers]
        try:
            for step, writer, at, name in data.draw(st.lists(st.tuples(
                    st.sampled_from(["insert", "insert", "commit", "rollback", "read"]), st.integers(0, 2),
                    st.one_of(st.none(), st.integers(0, 9)), st.sampled_from("AB")), max_size=25)):
                if step == "insert":
                    writers[writer].execute("insert into orders values (%s, 1, %s)", (name, at))
                    pending[writer][name] += 1
                elif step == "read":
                    reader.read()
                else:
                    getattr(writers[writer], step)()
                    if step == "commit":
                        committed += pending[writer]
                    pending[writer].clear()
            for writer, rows in zip(writers, pending, strict=True):
                writer.commit()
                committed += rows
        finally:
            for writer in writers:
                writer.close()
        reader.read()
        assert Counter(name for name, _ in reader.landed) == committed
        assert reader.read() == []


class TestBackwards:
    def test_a_source_that_went_back_is_compared_whole_and_said(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        for at in range(1, 6):
            source.insert(str(at), 1, at)
        assert len(reader.read()) == 5
        source.run("delete from orders where at > 2")
        assert reader.read() == []
        assert "the highest at is 2, below 5" in reader.facts["notes"][0]
        source.insert("new", 1, 3)
        assert reader.names() == ["new"]
        assert reader.facts["notes"] == []

    def test_rows_that_came_before_it_was_noticed_are_not_lost(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        for at in range(1, 6):
            source.insert(str(at), 1, at)
        reader.read()
        source.run("delete from orders where at > 2")
        source.insert("new 3", 1, 3)
        source.insert("new 4", 1, 4)
        assert reader.names() == ["new 3", "new 4"]
        assert "below 5" in reader.facts["notes"][0]

    def test_a_table_that_was_emptied_starts_again(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        source.insert("A", 1, 5)
        reader.read()
        source.run("delete from orders")
        assert reader.read() == []
        assert "gone" in reader.facts["notes"][0]
        source.insert("B", 1, 1)
        assert reader.names() == ["B"]

    def test_a_cursor_of_another_type_than_before_is_refused(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database)
        source.insert("A", 1, 5)
        reader.read()
        source.run("drop table orders")
        source.run("create table orders (name text, amount numeric(10,2), at text)")
        source.insert("A", 1, "five")
        with pytest.raises(BareCountError, match="the last one read, 5, is of type int") as refused:
            reader.read()
        assert "barecount sources cursor" in refused.value.hint


class TestEarlierReleases:
    def test_a_stored_value_goes_on_and_what_it_read_stays_read(self, database, make_source):
        source = make_source("integer")
        reader = source.reader(database, overlap=5)
        for at in (8, 9, 10):
            source.insert(str(at), 1, at)
        with database.transaction() as connection:
            cursors.store(connection, reader.key, Cursor("9"), None)
        assert reader.names() == ["10"]
        source.insert("tie", 1, 10)
        source.insert("11", 1, 11)
        assert reader.names() == ["11", "tie"]
        assert reader.cursor.kind in ("int", "int4")


class TestRest:
    def reader(self, database, url, now, **incremental):
        source = RestSource.model_validate({
            "name": "orders", "dataset": "shop.orders", "connector": "rest", "url": url,
            "params": {"since": "{cursor}", "before": "{until}"},
            "incremental": {"start": "2026-01-01T00:00:00Z", "lag_seconds": 0, **incremental}})
        return Reader(database, RestConnector(source, now=lambda: now[0]))

    @contextmanager
    def service(self, records):
        """An API that answers with the records from `since` on, before `before`."""
        def respond(request, _):
            since, before = request.query["since"], request.query["before"]
            return Answer([r for r in records if since <= r["at"] < before])

        with api(respond) as (url, seen):
            yield url, seen

    def test_late_records_within_the_overlap_land_once(self, database):
        records = [record("A", "2026-03-05T11:00:00Z")]
        now = [dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC)]
        with self.service(records) as (url, seen):
            reader = self.reader(database, url, now, overlap="2 hours")
            assert reader.names() == ["A"]
            records += [record("late", "2026-03-05T10:30:00Z"), record("too late", "2026-03-05T09:59:59Z")]
            now[0] += dt.timedelta(hours=1)
            assert reader.names() == ["late"]
            assert seen[-1].query == {"since": "2026-03-05T10:00:00Z", "before": "2026-03-05T13:00:00Z"}
            records.append(record("B", "2026-03-05T13:00:00Z"))
            now[0] += dt.timedelta(hours=1)
            assert reader.names() == ["B"]
            assert reader.names() == []  # no time has passed

    def test_a_record_is_the_same_whatever_the_order_of_its_members(self, database):
        records = [record("A", "2026-03-05T11:59:00Z")]
        now = [dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC)]
        with self.service(records) as (url, _):
            reader = self.reader(database, url, now, overlap=3600)
            assert reader.names() == ["A"]
            records[0] = {**dict(reversed(records[0].items())), "colour": None}
            now[0] += dt.timedelta(minutes=1)
            assert reader.names() == []
            for amount in (75, 100, 75):
                records[0] = {**records[0], "amount": amount}
                now[0] += dt.timedelta(minutes=1)
                assert reader.read() == [("A", Decimal(amount))]

    def test_a_slice_that_is_empty_moves_the_cursor_on(self, database):
        records = [record("A", "2026-03-05T11:59:00Z")]
        now = [dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC)]
        with self.service(records) as (url, _):
            reader = self.reader(database, url, now)
            reader.read()
            now[0] += dt.timedelta(hours=1)
            assert reader.read() == []
            assert reader.cursor.value == "2026-03-05T13:00:00Z"
            assert len(reader.units) == 1

    def test_a_cursor_set_back_lands_nothing_twice(self, database):
        records = [record(str(hour), f"2026-03-05T{hour}:30:00Z") for hour in (10, 11, 12, 13)]
        now = [dt.datetime(2026, 3, 5, 11, tzinfo=dt.UTC)]
        with self.service(records) as (url, _):
            reader = self.reader(database, url, now)
            for _ in range(3):
                assert len(reader.read()) == 1
                now[0] += dt.timedelta(hours=1)
            records.append(record("missed", "2026-03-05T10:45:00Z"))
            with database.transaction() as connection:
                cursor = reader.cursor
                cursors.store(connection, reader.key, Cursor(None, cursor.kind, cursor.reading, cursor.memory), None)
            assert reader.names() == ["13", "missed"]


def record(name, at, amount=100):
    return {"name": name, "amount": amount, "at": at}
