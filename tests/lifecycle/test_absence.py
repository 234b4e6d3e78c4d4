"""What a source says no more: snapshots, tables read whole, tombstones, change data capture, on the engines."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import yaml

from barecount_assets import scaffold
from barecount_assets.lifecycle import RunOutcome
from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import PROJECT, Project

TENANT = "absence_shop"
FIRST, LAST = dt.date(2026, 5, 1), dt.date(2026, 5, 31)
HEADER = "id,day,amount,mark"


on_both_engines = pytest.mark.parametrize("engine", ["postgres", "duckdb"])


@pytest.fixture
def engine() -> str:
    return "postgres"


@dataclass
class Shop:
    """A pipeline scaffolded from one file: rows of id, day, amount and a mark, summed up per month."""

    name: str
    project: Project
    folder: Path

    def deliver(self, file: str, *rows: str) -> Path:
        path = self.folder / file
        path.write_text("\n".join([HEADER, *rows]) + "\n")
        return path

    def declare(self, **source: Any) -> None:
        """Change what the manifest says of the source; None takes a key away."""
        path = self.project.settings.project_dir / "contracts" / "pipelines" / f"{self.name}.yaml"
        manifest = yaml.safe_load(path.read_text())
        declared = manifest["spec"]["sources"][0] | source
        manifest["spec"]["sources"][0] = {key: value for key, value in declared.items() if value is not None}
        path.write_text(yaml.safe_dump(manifest, sort_keys=False))

    def run(self, start: dt.date = FIRST, end: dt.date = LAST) -> RunOutcome:
        return self.project.run(self.name, TENANT, start, end)

    def total(self, start: dt.date = FIRST, end: dt.date = LAST) -> Decimal:
        """What is published for May after a run that must do."""
        outcome = self.run(start, end)
        assert outcome.error is None, outcome.error
        return self.published()

    def published(self) -> Decimal:
        return self.project.value(
            f"select value from published.{self.name}_amount where tenant_id = $1 and grain = 'month' "
            "and period = '2026-05'", TENANT)

    def history(self, key: str) -> list[tuple[int, Decimal, bool]]:
        """(row version, amount, whether it is the head) of every version of a key."""
        return self.project.rows(
            f"select row_version, amount, valid_to_run is null from gdp.{self.name}_record where id = $1 order by 1",
            key)


@pytest.fixture
def new_shop(
    new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory, engine: str
) -> Callable[..., Shop]:
    def make(name: str, first: Mapping[str, list[str]], **source: Any) -> Shop:
        project_dir = tmp_path_factory.mktemp(name)
        for part in ("contracts", "dbt_project", "deploy"):
            shutil.copytree(PROJECT / part, project_dir / part, ignore=shutil.ignore_patterns("target", "logs"))
        folder = tmp_path_factory.mktemp(f"{name}_in")
        shop = Shop(name, new_project(project_dir), folder)
        for file, rows in first.items():
            shop.deliver(file, *rows)
        scaffold.write(project_dir, scaffold.plan(project_dir, scaffold.Request(
            name, folder, "record", "id", "day", "amount", None, TENANT, "owner@company.example")))
        _make_optional(project_dir / "contracts" / "datasets" / name / "records", "mark")
        manifest = project_dir / "contracts" / "pipelines" / f"{name}.yaml"
        text = manifest.read_text().replace("engine: postgres", f"engine: {engine}")
        text = text.replace("start: 2026-05-04", f"start: {FIRST}").replace("start: 2020-01-01", f"start: {FIRST}")
        manifest.write_text(text)
        shop.declare(**source)
        return shop

    return make


def _make_optional(folder: Path, column: str) -> None:
    """The mark is text, whatever the first file has in it."""
    for layer in ("extraction", "raw"):
        document = yaml.safe_load((folder / f"{layer}.yaml").read_text())
        for declared in document["schema"][0]["properties"]:
            if declared["name"] == column:
                declared |= {"logicalType": "string", "physicalType": "text"}
        (folder / f"{layer}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


MAY_4 = "2026-05-04"
OPEN = {"open-2026-05-04.csv": [f"A,{MAY_4},100.00,x", f"B,{MAY_4},50.00,x"]}


@on_both_engines
def test_a_row_gone_from_the_newest_snapshot_leaves_the_kpi_and_its_history_goes_on(
    new_shop: Callable[..., Shop],
) -> None:
    shop = new_shop("snap", OPEN, file_name="open-{date}.csv", delivers="snapshot")
    assert shop.total() == 150
    shop.deliver("open-2026-05-05.csv", f"A,{MAY_4},100.00,x")
    assert shop.total() == 100
    assert shop.history("B") == [(1, 50, False)], "closed, and not forgotten"
    shop.deliver("open-2026-05-03.csv", f"A,{MAY_4},1.00,x", f"Z,{MAY_4},9.00,x")
    assert shop.total() == 100, "an older snapshot that arrives late replaces nothing"
    shop.deliver("open-2026-05-06.csv", f"A,{MAY_4},100.00,x", f"B,{MAY_4},55.00,x")
    assert shop.total() == 155
    assert shop.history("B") == [(1, 50, False), (2, 55, True)], "a key that comes back continues its history"
    shop.deliver("open-2026-05-06.csv", f"B,{MAY_4},56.00,x")
    assert shop.total() == 56, "a corrected snapshot is the whole of its day"
    (shop.folder / "open-2026-05-06.csv").unlink()
    assert shop.total() == 56, "a day without a snapshot keeps the last one"


def test_a_partition_replaces_what_there_was_of_its_date_and_no_other(new_shop: Callable[..., Shop]) -> None:
    first = {
        "sales-2026-05-04.csv": ["A,2026-05-04,100.00,x", "B,2026-05-04,50.00,x"],
        "sales-2026-05-05.csv": ["C,2026-05-05,7.00,x", "B,2026-05-04,51.00,x"],
    }
    shop = new_shop("part", first, file_name="sales-{date}*.csv", delivers="partition")
    assert shop.total() == 158
    shop.deliver("sales-2026-05-05.csv", "C,2026-05-05,8.00,x")
    assert shop.total() == 158, "B is gone from the 5th, and is what the 4th says again"
    shop.deliver("sales-2026-05-04-2.csv", "D,2026-05-04,9.00,x")
    outcome = shop.run()
    assert outcome.error is not None and outcome.error.code is ErrorCode.DECLARATION_INVALID
    assert "found 2 of 2026-05-04" in outcome.error.message and "`parts: newest`" in (outcome.error.hint or "")
    assert shop.published() == 158, "nobody has said whether the second file is a part or a correction"
    shop.declare(parts="together")
    assert shop.total() == 167
    shop.declare(parts="newest")
    assert shop.total() == 17, "the file that landed last is its day, whatever its name"


def test_all_there_is_are_the_files_of_the_newest_reading(new_shop: Callable[..., Shop]) -> None:
    first = {"north.csv": [f"A,{MAY_4},100.00,x"], "south.csv": [f"B,{MAY_4},50.00,x"]}
    shop = new_shop("allof", first, delivers="full", parts="together")
    assert shop.total() == 150
    (shop.folder / "south.csv").unlink()
    assert shop.total() == 100
    shop.deliver("south.csv", f"B,{MAY_4},50.00,x")
    assert shop.total() == 150
    assert shop.history("B") == [(1, 50, False), (2, 50, True)]
    for file in shop.folder.iterdir():
        file.unlink()
    outcome = shop.run()
    assert outcome.error is not None and outcome.error.code is ErrorCode.SOURCE_NOT_FOUND
    assert shop.published() == 150, "an empty folder is no delivery"


@on_both_engines
def test_an_entity_whose_newest_record_is_a_tombstone_is_gone_until_a_later_record(
    new_shop: Callable[..., Shop],
) -> None:
    shop = new_shop("tomb", OPEN, file_name="open-{date}.csv", deleted={"column": "mark", "values": ["gone"]})
    assert shop.total() == 150
    shop.deliver("open-2026-05-05.csv", "B,,,gone")
    assert shop.total() == 100, "a tombstone may say no more than its key"
    shop.deliver("open-2026-05-06.csv", "C,2026-05-06,1.00,gone", f"A,{MAY_4},101.00,x")
    assert shop.total() == 101
    shop.deliver("open-2026-05-07.csv", f"B,{MAY_4},52.00,x")
    assert shop.total() == 153
    assert shop.history("B") == [(1, 50, False), (2, 52, True)]
    assert shop.project.value("select count(*) from platform.quarantine") == 0


def test_change_data_capture_counts_the_newest_state_and_no_image_of_before(new_shop: Callable[..., Shop]) -> None:
    first = {"log-2026-05-04.csv": [f"A,{MAY_4},100.00,r", f"B,{MAY_4},50.00,c", f"B,{MAY_4},50.00,ub",
                                    f"B,{MAY_4},60.00,u", f"C,{MAY_4},5.00,c", "C,,,d"]}
    shop = new_shop("cdc", first, file_name="log-{date}.csv", operations={
        "column": "mark", "insert": ["c", "r"], "update": ["u"], "delete": ["d"], "before": ["ub"]})
    assert shop.total() == 160
    shop.deliver("log-2026-05-05.csv", f"A,{MAY_4},100.00,d", f"C,{MAY_4},6.00,c", f"B,{MAY_4},60.00,ub")
    assert shop.total() == 66, "an image of before is no state, also where nothing follows it"
    assert shop.history("C") == [(1, 6, True)]
    shop.deliver("log-2026-05-06.csv", f"D,{MAY_4},1000.00,X", f"E,{MAY_4},1000.00,")
    shop.run()
    refused = shop.project.rows("select field, message from platform.quarantine order by row_number")
    assert [field for field, _ in refused] == ["mark", "mark"] and "one of c, r, u, d, ub" in refused[0][1]
    assert shop.published() == 66, "an operation that nobody declared is refused, and counts for nothing"


@on_both_engines
def test_any_log_of_changes_ends_at_what_a_plain_model_says(new_shop: Callable[..., Shop]) -> None:
    chance = random.Random(20_260_504)
    state: dict[str, int] = {}
    first = {"log-2026-05-04.csv": [f"K0,{MAY_4},1.00,c"]}
    shop = new_shop("logs", first, file_name="log-{date}.csv", operations={
        "column": "mark", "insert": ["c"], "update": ["u"], "delete": ["d"], "before": ["b"]})
    for day in range(4, 7):
        rows = [f"K0,{MAY_4},1.00,c"] if day == 4 else []
        state |= {"K0": 1} if day == 4 else {}
        for _ in range(80):
            key, amount, operation = f"K{chance.randrange(12)}", chance.randrange(1, 90), chance.choice("cuuddb")
            rows.append(f"{key},{MAY_4},{amount}.00,{operation}" if operation != "d" else f"{key},,,d")
            if operation == "d":
                state.pop(key, None)
            elif operation != "b":
                state[key] = amount
        shop.deliver(f"log-2026-05-0{day}.csv", *rows)
        assert shop.total() == sum(state.values())
        head = shop.project.rows(f"select id, amount from gdp.{shop.name}_record where valid_to_run is null")
        assert {key: int(amount) for key, amount in head} == state


def test_a_delivery_that_shrank_too_much_waits_and_is_decided_once(new_shop: Callable[..., Shop]) -> None:
    rows = [f"K{number},{MAY_4},10.00,x" for number in range(10)]
    shop = new_shop("shrink", {"open-2026-05-04.csv": rows}, file_name="open-{date}.csv", delivers="snapshot",
                    max_shrink=0.3)
    assert shop.total() == 100
    shop.deliver("open-2026-05-05.csv", *rows[:8])
    assert shop.total() == 80, "a fifth less is within what is declared"
    before = shop.project.state("gdp", "kpi", "published")
    shop.deliver("open-2026-05-06.csv", *rows[:5])
    outcome = shop.run()
    assert outcome.error is not None and outcome.error.code is ErrorCode.SCHEMA_DRIFT
    assert "open-2026-05-06.csv delivers 5 records; declared are at least 0.7 of 8 before" in outcome.error.message
    assert shop.project.state("gdp", "kpi", "published") == before
    again = shop.run()
    assert again.error is not None and again.error.code is ErrorCode.SCHEMA_DRIFT and not again.changed
    shown = shop.project.command("drift", "show", "1")
    assert "keep its batches out" in shown.stdout, shown.output

    assert shop.project.command("drift", "reject", "1", "--reason", "half an export").exit_code == 0
    assert shop.total() == 80, "what it would replace stays in force"
    shop.deliver("open-2026-05-07.csv")
    assert shop.run().error is not None and shop.published() == 80, "nothing at all is less, too"
    shop.deliver("open-2026-05-07.csv", *rows[:4])
    assert shop.run().error is not None and shop.published() == 80
    (number,) = shop.project.rows(
        "select drift_id from platform.drift where status = 'open' order by 1 desc limit 1")[0]
    accepted = shop.project.command("drift", "accept", str(number), "--reason", "a branch was sold")
    assert accepted.exit_code == 0 and "counts as it is" in accepted.stdout
    assert shop.total() == 40
    assert not shop.run().changed


@on_both_engines
def test_a_row_deleted_from_a_table_that_is_read_whole_is_gone(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop("delcur", {"table.csv": ["a,2026-05-04,10.00,x", "b,2026-05-04,20.00,x"]})
    with psycopg.connect(shop.project.database.admin_url, autocommit=True) as connection:
        connection.execute("create schema shop; create table shop.t (id text primary key, day date, "
                           "amount numeric(18,2), mark text)")
        connection.execute("insert into shop.t values ('a', '2026-05-04', 10, 'x'), ('b', '2026-05-04', 20, 'x')")
        shop.declare(connector="sql", dsn="${env:SHOP_DSN}", table="shop.t", path=None, format=None, cursor_column="id")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHOP_DSN", shop.project.database.admin_url)
            assert shop.total() == 30
            connection.execute("delete from shop.t where id = 'b'; update shop.t set amount = 11 where id = 'a'")
            assert shop.total() == 31, "a cursor cannot see that b is gone"
            shop.declare(cursor_column=None, delivers="full")
            assert shop.total() == 11, "what slices had brought is replaced by the whole"
            connection.execute("insert into shop.t values ('b', '2026-05-04', 21, 'x')")
            assert shop.total() == 32
    assert shop.history("b") == [(1, 20, False), (2, 21, True)]


@contextmanager
def pages(answer: Callable[[int, int], dict[str, Any]]) -> Iterator[str]:
    """URL of an API whose answer follows from the number of the request, from 1, and the offset it asks for."""
    requests = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            offset = int(parse_qs(urlsplit(self.path).query).get("offset", ["0"])[0])
            body = json.dumps(answer(next(requests), offset)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/orders"
        finally:
            server.shutdown()
            thread.join()


def test_pages_that_shift_while_they_are_read_are_read_again_and_never_merged(new_shop: Callable[..., Shop]) -> None:
    kept = [{"id": name, "day": MAY_4, "amount": 10, "mark": "x"} for name in "ABCD"]
    shop = new_shop("pages", {"first.csv": [f"A,{MAY_4},10.00,x"]}, max_shrink=None)

    def restless(request: int, offset: int) -> dict[str, Any]:
        rows = kept if request % 2 else kept[1:]  # a record goes after every answer, and comes back
        return {"total": len(rows), "items": rows[offset: offset + 2]}

    def settled(request: int, offset: int) -> dict[str, Any]:
        rows = kept if request < 3 else kept[1:]  # A goes in mid-read: B would be read twice, or C never
        return {"total": len(rows), "items": rows[offset: offset + 2]}

    rest = {"connector": "rest", "path": None, "format": None, "records": "items", "file_name": None,
            "pagination": {"type": "offset", "limit": 2, "total": "total"}}
    with pages(restless) as url:
        shop.declare(**rest, url=url)
        outcome = shop.run()
        assert outcome.error is not None and outcome.error.code is ErrorCode.SOURCE_UNAVAILABLE
        assert outcome.error.retryable and "changed while it was read" in outcome.error.message
        assert shop.project.value("select count(*) from platform.raw_batch") == 0
    with pages(settled) as url:
        shop.declare(url=url)
        assert shop.total() == 30
