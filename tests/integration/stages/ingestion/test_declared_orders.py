"""Orders of deliveries as a source declares them, dates in names, and what a folder has besides."""

from __future__ import annotations

import datetime as dt
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from barecount_assets import withdrawal
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.trust import ledger
from tests.integration.stages.ingestion.customers import DATASET, TENANT, Customers, files, record


def folder(**declared: Any) -> dict[str, Any]:
    return files("csv") | declared


@pytest.fixture
def customers(database: Database, settings: Settings, tmp_path: Path) -> Customers:
    return Customers.make(tmp_path, settings, database, folder())


def deliver(customers: Customers, name: str, limit: int, at: dt.datetime | None = None) -> None:
    customers.write_csv([record(limit)], name)
    if at is not None:
        os.utime(customers.folder / name, (at.timestamp(), at.timestamp()))


def refusal(customers: Customers) -> BareCountError:
    with pytest.raises(BareCountError) as refused:
        customers.read()
    return refused.value


# --- declared orders ------------------------------------------------------------------------------------------------

ORDERS: dict[str, tuple[Any, list[str]]] = {  # how it is declared, and names from the oldest to the newest
    "a date": ({"date": "%d.%m.%Y"}, ["x 30.11.2025.csv", "x 01.02.2026.csv", "a 02.02.2026.csv"]),
    "a month": ({"date": "%b %Y"}, ["Dec 2025.csv", "Jan 2026.csv", "May 2026.csv"]),
    "a time": ({"date": "%Y%m%dT%H%M%S"}, ["b_20260504T095900.csv", "a_20260504T100000.csv"]),
    "the last date": ({"date": "%Y-%m-%d", "which": -1}, ["2026-05-02_2026-05-03.csv", "2026-05-01_2026-05-04.csv"]),
    "a number": ({"number": 1}, ["z9.csv", "b10.csv", "a100.csv"]),
    "the second number": ({"number": 2}, ["shop9-export-1.csv", "shop1-export-2.csv", "shop2-export-10.csv"]),
    "the last number": ({"number": -1}, ["10_9.csv", "2_10.csv", "1_011.csv"]),
    "natural": ("natural", ["a.csv", "export-9.csv", "export-10.csv", "export-10a.csv"]),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_the_newest_is_what_the_declared_order_says(customers: Customers, kind: str) -> None:
    declared, names = ORDERS[kind]
    customers.declare(folder(order=declared))
    for number in (len(names) - 1, *range(len(names) - 1)):  # the newest lands first
        deliver(customers, names[number], 100 + number)
        customers.read()
        assert customers.newest() == 100 + len(names) - 1
    deliver(customers, names[0], 5)  # corrected, and older than the others still
    customers.read()
    assert customers.newest() == 100 + len(names) - 1


def test_by_time_of_modification_a_file_that_is_written_again_is_the_newest(customers: Customers) -> None:
    customers.declare(folder(order="modified"))
    noon = dt.datetime(2026, 5, 4, 12, tzinfo=dt.UTC)
    deliver(customers, "a.csv", 100, noon)
    deliver(customers, "b.csv", 75, noon - dt.timedelta(microseconds=1000))
    customers.read()
    assert customers.newest() == 100
    deliver(customers, "b.csv", 75, noon + dt.timedelta(hours=1))
    receipt = customers.read()
    assert (customers.newest(), receipt.counts["landed"], receipt.changed) == (75, 0, True)
    assert not customers.read().changed


@pytest.mark.parametrize(("declared", "name", "said"), [
    ({"number": 1}, "totals.csv", "its name has no number"),
    ({"number": 3}, "totals_1_2.csv", "2 of the number number 3 is asked of"),
    ({"date": "%Y%m%d"}, "totals_04052026.csv", "which is no day of the calendar"),
    ({"date": "%Y%m%d"}, "totals.csv", "no date as %Y%m%d"),
    ({"date": "%Y%m%d"}, "20260504_20260505.csv", "2 dates as %Y%m%d"),
])
def test_a_name_without_its_place_is_refused_and_nothing_of_it_lands(
    customers: Customers, declared: Any, name: str, said: str
) -> None:
    customers.declare(folder(order=declared))
    deliver(customers, name, 1)
    error = refusal(customers)
    assert error.code is ErrorCode.SOURCE_MALFORMED and name in error.message and said in error.message
    assert customers.rows("select count(*) from platform.raw_batch") == [(0,)]


def test_another_declared_order_puts_what_has_landed_in_it(customers: Customers) -> None:
    for limit, name in enumerate(["9.csv", "10.csv", "1.csv"], 100):
        deliver(customers, name, limit)
        customers.read()
    assert customers.newest() == 102
    seen = []
    for order in ({"number": 1}, "natural", "landing", {"number": -1}):
        customers.declare(folder(order=order))
        assert customers.read().changed and not customers.read().changed
        seen.append(customers.newest())
    assert seen == [101, 101, 102, 101]
    with customers.environment.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, TENANT).findings == ()
        assert fetch(connection, "select count(*) from platform.evidence where kind = 'source.reordered'") == [(4,)]


STEP = st.tuples(st.sampled_from(["deliver", "deliver", "withdraw", "restore"]), st.integers(8, 11), st.integers(1, 2))


@pytest.mark.parametrize("order", ["landing", {"number": 1}])
@hypothesis_settings(max_examples=6, phases=[Phase.generate], deadline=None,
                     suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=6, max_size=12))
def test_any_history_of_deliveries_ends_as_a_plain_model_says(
    customers: Customers, order: Any, steps: list[tuple[str, int, int]]
) -> None:
    """Files come, change, return to what they said, are withdrawn and restored, in any order."""
    prefix = f"h{next(_HISTORIES)}"
    customers.declare(folder(order=order, file_name=f"{prefix}/*.csv"))
    customers.read()
    counting: dict[int, tuple[int, int]] = {}  # number in the name -> what it says, when it said so
    withdrawn: dict[int, tuple[int, int]] = {}
    now = 0
    for action, number, limit in steps:
        name = f"{prefix}/x-{number}.csv"
        if action == "deliver":
            known = counting.get(number) or withdrawn.get(number)
            deliver(customers, name, limit)
            customers.read()
            if known is None or known[0] != limit:
                now += 1
                counting[number] = (limit, now)
                withdrawn.pop(number, None)
        elif action == "withdraw" and number in counting:
            change(customers, name)
            withdrawn[number] = counting.pop(number)
            assert not customers.read().changed, "the file lies there still, and does not land again"
        elif action == "restore" and number in withdrawn:
            change(customers, name, undo=True)
            counting[number] = withdrawn.pop(number)
        expected = max(counting.items(), default=None,
                       key=lambda unit: unit[1][1] if order == "landing" else unit[0])
        assert newest_of(customers, prefix) == (expected and expected[1][0])


_HISTORIES = itertools.count(1)


def change(customers: Customers, name: str, *, undo: bool = False, dry_run: bool = False) -> withdrawal.Withdrawal:
    return withdrawal.withdraw(customers.environment, "order_to_cash", "customers", name, TENANT, "ann", "wrong file",
                               undo=undo, dry_run=dry_run)


def newest_of(customers: Customers, prefix: str) -> int | None:
    """The limit in the newest record that counts of a history's files."""
    rows = customers.rows(
        "select r.credit_limit::int from raw.order_to_cash__customers r "
        "join platform.counted_batch b on b.batch_id = r._batch_id and b.is_current "
        "where exists (select from platform.source_unit u where u.batch_id = b.batch_id "
        "   and starts_with(u.source_id, $1) and u.withdrawn_seq is null) "
        "order by (select max(u.delivery_order) from platform.source_unit u where u.batch_id = b.batch_id "
        "   and starts_with(u.source_id, $1) and u.withdrawn_seq is null) desc limit 1", f"{prefix}/")
    return rows[0][0] if rows else None


# --- withdrawing ----------------------------------------------------------------------------------------------------


def test_a_withdrawn_unit_counts_again_when_it_is_delivered_with_other_content(customers: Customers) -> None:
    deliver(customers, "a.csv", 100)
    deliver(customers, "b.csv", 75)
    customers.read()
    told = change(customers, "b.csv", dry_run=True)
    assert (told.rows, told.evidence_seq, customers.newest()) == (1, None, 75)
    done = change(customers, "b.csv")
    again = customers.read()
    assert (again.changed, again.counts["units"], again.facts["withdrawn"]) == (False, 1, ["b.csv"])
    assert customers.newest() == 100
    deliver(customers, "b.csv", 60)
    assert customers.read().changed and customers.newest() == 60
    with customers.environment.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, TENANT).findings == ()
        entry = fetch(connection, "select kind, subject, body::jsonb -> 'payload' ->> 'reason' from platform.evidence "
                                  "where seq = $1", (done.evidence_seq,))
    assert entry == [("batch.withdrawn", f"{DATASET}/b.csv", "wrong file")]


def test_of_two_copies_one_is_withdrawn_and_the_other_counts_in_its_place(customers: Customers) -> None:
    for limit, name in ((100, "a.csv"), (75, "b.csv"), (100, "c.csv")):
        deliver(customers, name, limit)
    customers.read()
    assert customers.newest() == 100
    done = change(customers, "c.csv")
    assert (done.rows, done.same_content) == (0, ("a.csv",))
    assert customers.newest() == 75, "a.csv says it too, but was delivered before b.csv"


@pytest.mark.parametrize(("name", "undo", "said"), [
    ("b.csv", False, "has no unit 'b.csv'"), ("a.csv", True, "is not withdrawn"), ("gone.csv", False, "already")])
def test_what_cannot_be_withdrawn_is_refused_with_the_reason(
    customers: Customers, name: str, undo: bool, said: str
) -> None:
    deliver(customers, "a.csv", 100)
    deliver(customers, "gone.csv", 75)
    customers.read()
    change(customers, "gone.csv")
    with pytest.raises(BareCountError, match=said):
        change(customers, name, undo=undo)


# --- dates in names, and what else lies there -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "glob"), [
    ("sales_20260504.csv", "sales_{date:%Y%m%d}*.csv"), ("sales_2026-05.csv", "sales_{date:%Y-%m}*.csv"),
    ("04.05.2026.csv", "{date:%d.%m.%Y}*.csv"), ("May 2026.csv", "{date:%b %Y}*.csv"),
    ("sales-2026W19.csv", "sales-{date:%GW%V}*.csv"), ("2026-05-04.csv", "{date}*.csv"),
    ("4 August 2026.csv", "{date:%-d %B %Y}*.csv"),
])
def test_a_name_that_looks_dated_is_asked_about_and_reads_as_declared(
    customers: Customers, name: str, glob: str
) -> None:
    deliver(customers, name, 100)
    error = refusal(customers)
    assert error.code is ErrorCode.DECLARATION_INVALID and name in error.message
    assert glob in (error.hint or "") and "order: landing" in (error.hint or "")
    customers.declare(folder(order="landing"))
    assert customers.read().counts["landed"] == 1, "it is no date"
    customers.declare(folder(file_name=glob))
    found = customers.environment.declarations.effective("order_to_cash", TENANT).source("customers")
    assert found.dated


@pytest.mark.parametrize("name", ["export_10.csv", "part-0003.csv", "v1.2.26.csv", "00000001.csv", "sales_2026.csv"])
def test_a_number_that_is_no_date_is_not_asked_about(customers: Customers, name: str) -> None:
    deliver(customers, name, 100)
    assert customers.read().counts["landed"] == 1


@pytest.mark.parametrize(("glob", "names"), [
    ("c_{date:%Y%m%d}.csv", ["c_20260105.csv", "c_20260106.csv"]),
    ("{date:%d-%m-%Y}_{date:%d-%m-%Y}.csv", ["05-01-2026_05-01-2026.csv", "06-01-2026_06-01-2026.csv"]),
    ("y={date:%Y}/m={date:%m}/{date:%d}.csv", ["y=2026/m=01/05.csv", "y=2026/m=01/06.csv"]),
    ("{date:%-d.%-m.%y}.csv", ["5.1.26.csv", "6.1.26.csv"]),
    ("{date:%Y-%j}.csv", ["2026-005.csv", "2026-006.csv"]),
])
def test_a_date_in_its_format_is_the_day_of_the_partition(customers: Customers, glob: str, names: list[str]) -> None:
    customers.declare(folder(file_name=glob))
    for name in names:
        deliver(customers, name, 100)
    assert customers.read().counts["units"] == 1, "the other is of another day"
    landed = customers.rows("select source_id, partition_date::text from platform.raw_batch")
    assert landed == [(names[0], "2026-01-05")]


def test_files_nobody_reads_and_units_that_are_gone_are_said_in_the_receipt(customers: Customers) -> None:
    customers.declare(folder(file_name="c_{date}.csv"))
    for name in ("c_2026-01-05.csv", "c_2026-01-05_fixed.csv", "C_2026-01-05.CSV", "c_1999-01-01.csv", ".hidden.csv"):
        deliver(customers, name, 100)
    first = customers.read().facts
    assert (first["left_out"], first["outside_partitions"], first["not_there"]) == (
        ["C_2026-01-05.CSV", "c_2026-01-05_fixed.csv"], ["c_1999-01-01.csv"], [])
    (customers.folder / "c_2026-01-05.csv").unlink()
    gone = customers.read()
    assert not gone.changed and gone.facts["not_there"] == ["c_2026-01-05.csv"]
    assert any("go on counting" in notice and "raw withdraw order_to_cash customers" in notice
               for notice in gone.facts["notices"])


def test_a_moved_path_says_what_it_leaves_behind(customers: Customers) -> None:
    deliver(customers, "old/a.csv", 100)
    customers.declare(folder(path="{folder}/old"))
    customers.read()
    deliver(customers, "new/b.csv", 75)
    customers.declare(folder(path="{folder}/new"))
    moved = customers.read()
    assert moved.facts["not_there"] == ["a.csv"] and customers.newest() == 75
    assert customers.rows("select count(*) from platform.raw_batch where is_current") == [(2,)], "nothing is dropped"
