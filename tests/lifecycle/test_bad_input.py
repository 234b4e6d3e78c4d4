"""Bad input through the real command: one clear error each, and nothing is lost.

Every refusal has a code of the taxonomy, a hint and a correlation id, ends with exit code 1 (2 for wrong usage) and
without a trace; what was published stays, and putting the input right brings the run to its end.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from barecount_assets import lifecycle
from barecount_assets.lifecycle import RunRequest
from barecount_assets.stages import execute
from resources.runners.stage import Stage
from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import PROJECT, Books, Project, three_months

RANGE = ("--from", "2026-01-02", "--to", "2026-03-31")
BAD_DAY = "2026-03-25"
LAST_DAYS = ("--from", "2026-03-10", "--to", BAD_DAY)


@dataclass(frozen=True)
class Shop:
    """A project with three published months, and the folders its sources come from."""

    project: Project
    erp: Path
    bank: Path
    crm: Path

    def run(self, *days: str) -> Result:
        return self.project.command("run", "order_to_cash", "--tenant", "acme", *days)

    def kept(self) -> dict[str, Any]:
        """What a refusal must not change: everything published, and the GDPs and records it was made from."""
        return {
            "publications": self.project.state("published"),
            "gdps": self.project.gdp_hashes("order_to_cash", "acme"),
            "batches": self.project.rows("select source_id, content_sha256 from platform.raw_batch "
                                         "where is_current and accepted > 0 order by 1"),
        }


@pytest.fixture(scope="module")
def shop(new_project: Callable[..., Project]) -> Shop:
    project = new_project()
    folder = project.folder("acme")
    three_months(Books(folder))
    found = Shop(project, folder / "erp", folder / "bank", folder / "crm")
    result = found.run(*RANGE)
    assert result.exit_code == 0, result.output
    return found


@pytest.fixture
def nothing_lost(shop: Shop) -> Iterator[None]:
    before = shop.kept()
    yield
    assert shop.kept() == before


def refused(result: Result, code: ErrorCode, *says: str, exit_code: int = 1) -> str:
    """The error text of a refusal: one error, as all of them are."""
    assert result.exit_code == exit_code, result.output
    text = result.stderr
    assert text.count("error ") >= 1 and text.count("correlation id") == 1, text
    assert text.startswith(f"error {code.value}  "), text
    assert "\nhint   " in text, "a refusal says what to do next"
    for words in says:
        assert words in text, text
    return text


def misused(result: Result, *says: str) -> None:
    """Wrong usage of the command line itself."""
    assert result.exit_code == 2, result.output
    text = " ".join(result.stderr.replace("│", " ").split())
    assert text.count("Error") == 1
    for words in says:
        assert words in text, text


# Asked for what is not there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "order_to_bash"], ErrorCode.DECLARATION_UNKNOWN, ["'order_to_bash'", "order_to_cash"]),
        (["run", "order_to_cash", "--tenant", "initech"], ErrorCode.DECLARATION_UNKNOWN, ["'initech'", "acme"]),
        (["run", "order_to_cash", "--tenant", "retail_uk"], ErrorCode.DECLARATION_UNKNOWN, ["acme, globex"]),
        (["run", "order_to_cash", "--source", "orders=/tmp"], ErrorCode.DECLARATION_UNKNOWN,
         ["'orders'", "invoices, payments, customers"]),
        (["run", "online_retail", "--source", "invoices=/nowhere/at/all"], ErrorCode.SOURCE_NOT_FOUND,
         ["/nowhere/at/all"]),
        (["run", "online_retail"], ErrorCode.SOURCE_NOT_FOUND, ["--source invoices=PATH"]),
        (["raw", "rebuild", "no.such_dataset"], ErrorCode.DECLARATION_UNKNOWN, ["no.such_dataset"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_is_not_declared_or_not_there_is_named(
    shop: Shop, nothing_lost: None, arguments: list[str], code: ErrorCode, says: list[str]
) -> None:
    refused(shop.project.command(*arguments), code, *says)


def test_the_envelope_is_the_same_for_machines(shop: Shop) -> None:
    result = shop.project.command("run", "order_to_bash", "--json")
    (kind, error), = json.loads(result.stdout).items()
    assert result.exit_code == 1 and kind == "error"
    assert set(error) == {"code", "message", "correlation_id", "retryable", "hint", "details"}
    assert error["code"] == "declaration.unknown" and error["retryable"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--date", "2026-13-01"], "'2026-13-01' is not a date, allowed: YYYY-MM-DD"),
        (["--date", "2026-02-30"], "'2026-02-30' is not a date"),
        (["--from", "yesterday"], "'yesterday' is not a date"),
        (["--to", "01/02/2026"], "'01/02/2026' is not a date"),
        (["--date", "2026-01-05", "--to", "2026-01-06"], "--date stands alone"),
        (["--source", "invoices"], "'invoices' is not NAME=PATH"),
        (["--source", "=x"], "'=x' is not NAME=PATH"),
        (["--source", "invoices=/tmp/a\0b"], "has a NUL character"),
        (["--form", "2026-01-05"], "No such option: --form"),
    ],
    ids=lambda value: " ".join(value).replace("\0", "NUL") if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_and_ends_with_2(shop: Shop, nothing_lost: None, arguments: list[str], says: str) -> None:
    misused(shop.project.command("run", "order_to_cash", *arguments), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "2026-03-01", "--to", "2026-02-01"], "ends (2026-02-01) before it begins (2026-03-01)"),
        (["--date", "2025-12-31"], "outside the partitions of order_to_cash: 2026-01-02 to "),
        (["--date", "9999-12-31"], "outside the partitions"),
    ],
)
def test_a_range_that_cannot_be_is_wrong_usage(
    shop: Shop, nothing_lost: None, arguments: list[str], says: str
) -> None:
    refused(shop.project.command("run", "order_to_cash", *arguments), ErrorCode.USAGE, says, exit_code=2)


# Files that are none ------------------------------------------------------------------------------------------


def make_unreadable(path: Path) -> None:
    """A file whose bytes cannot be read, by root either."""
    if os.geteuid() != 0:
        path.write_text("secret")
        path.chmod(0)
    elif Path("/proc/self/mem").exists():
        path.symlink_to("/proc/self/mem")  # its first page is not mapped: reading is an I/O error
    else:
        pytest.skip("root reads every file of this system")


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unreadable": (make_unreadable, "cannot be read"),
    "a link without a target": (lambda path: path.symlink_to("/nowhere/at/all"), "a link without a target"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "a link without a target"),
    "a folder": (lambda path: path.mkdir(), "a folder"),
    "a pipe": (os.mkfifo, "neither a file nor a folder"),
}


@pytest.mark.parametrize(("make", "says"), NO_FILES.values(), ids=NO_FILES.keys())
def test_a_days_file_that_cannot_be_read_is_not_taken_for_a_day_without_one(
    shop: Shop, nothing_lost: None, make: Callable[[Path], Any], says: str
) -> None:
    path = shop.erp / f"invoices_{BAD_DAY}.csv"
    make(path)
    try:
        refused(shop.run(*LAST_DAYS), ErrorCode.SOURCE_UNREADABLE, str(path), says)
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert "up to date" in shop.run(*LAST_DAYS).stdout


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        (b"invoices_2026-02-31.csv", ErrorCode.SOURCE_MALFORMED, "2026-02-31"),
        (b"invoices_2026-03-25_\xff.csv", ErrorCode.SOURCE_UNREADABLE, "invoices_2026-03-25_\\xff.csv"),
    ],
    ids=["a day no calendar has", "not UTF-8"],
)
def test_a_name_that_cannot_be_is_refused(
    shop: Shop, nothing_lost: None, name: bytes, code: ErrorCode, says: str
) -> None:
    path = os.fsencode(shop.erp) + b"/" + name
    try:
        Path(os.fsdecode(path)).write_bytes(b"")
    except OSError:
        pytest.skip("this file system does not take the name")
    try:
        refused(shop.run(*LAST_DAYS), code, says)
    finally:
        os.unlink(path)


# Files with something else in them ------------------------------------------------------------------------------


def truncated_parquet(shop: Shop) -> bytes:
    return (shop.crm / "customers_2026-01-05.parquet").read_bytes()[:-20]


def wrong_delimiter(shop: Shop) -> bytes:
    return (shop.erp / "invoices_2026-03-03.csv").read_bytes().replace(b";", b",")


def garbage(shop: Shop) -> bytes:
    return random.Random(1).randbytes(20_000)


MALFORMED: dict[str, tuple[str, Callable[[Shop], bytes], str]] = {
    "truncated Parquet": ("crm/customers_{}.parquet", truncated_parquet, "not a complete Parquet file"),
    "wrong delimiter": ("erp/invoices_{}.csv", wrong_delimiter, "Check delimiter"),
    "garbage as CSV": ("erp/invoices_{}.csv", garbage, "the header cannot be read"),
}


@pytest.mark.parametrize(("name", "content", "says"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_file_in_which_no_record_can_be_told_apart_does_not_land(
    shop: Shop, nothing_lost: None, name: str, content: Callable[[Shop], bytes], says: str
) -> None:
    path = shop.erp.parent / name.format(BAD_DAY)
    path.write_bytes(content(shop))
    try:
        refused(shop.run(*LAST_DAYS), ErrorCode.SOURCE_MALFORMED, str(path), says)
    finally:
        path.unlink()
    assert shop.project.rows("select 1 from platform.raw_batch where source_id = $1", path.name) == []
    assert "up to date" in shop.run(*LAST_DAYS).stdout


def test_unknown_keys_hold_what_follows_and_empty_files_and_garbage_among_records_do_not(
    shop: Shop, nothing_lost: None
) -> None:
    drifted = shop.bank / f"payments_{BAD_DAY}_drift.jsonl"
    drifted.write_text('{"paymentId":"P9","invoiceId":"I6","amount":1.00,"currency":"GBP",'
                       f'"bookedAt":"{BAD_DAY}T00:00:00","payer":"x","reference":"y","tip":5}}\n')
    refused(shop.run(*LAST_DAYS), ErrorCode.SCHEMA_DRIFT, drifted.name, "field tip was added", "order_to_cash.payments")
    ((extra,),) = shop.project.rows("select _extra from raw.order_to_cash__payments where payment_id = 'P9'")
    assert json.loads(extra) == {"tip": 5}, "it has landed"

    header = (shop.erp / "invoices_2026-03-03.csv").read_bytes().splitlines(keepends=True)[0]
    empty = {
        drifted: b"",
        shop.erp / "invoices_2026-03-10.csv": b"",
        shop.erp / "invoices_2026-03-11.csv": header,
        shop.bank / "payments_2026-03-11.jsonl": b"\n \n\n",
    }
    for path, content in empty.items():
        path.write_bytes(content)
    junk = shop.bank / f"payments_{BAD_DAY}_junk.jsonl"
    junk.write_bytes(garbage(shop))
    result = shop.run(*LAST_DAYS)
    assert result.exit_code == 0, result.output
    counts = dict(shop.project.rows(
        "select source_id, array[received, accepted, quarantined] from platform.raw_batch where is_current"))
    assert [counts[path.name] for path in empty] == [[0, 0, 0]] * len(empty)
    records = [line for line in junk_lines(garbage(shop)) if line.strip(b" \t\r\n")]
    assert counts[junk.name] == [len(records), 0, len(records)]
    payloads = [bytes(payload) for (payload,) in shop.project.rows(
        "select payload from platform.quarantine where source_id = $1 order by row_number", junk.name)]
    assert payloads == records, "the records are kept as they came"


def junk_lines(content: bytes) -> list[bytes]:
    return [line.removesuffix(b"\r") for line in content.split(b"\n")]


# The machine ----------------------------------------------------------------------------------------------------


def test_a_manifest_with_an_unknown_key_is_refused_with_file_and_line(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    for folder in ("contracts", "dbt_project"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    manifest = tmp_path / "contracts" / "pipelines" / "order_to_cash.yaml"
    text = manifest.read_text()
    line = text.splitlines().index("  transforms:") + 1
    manifest.write_text(text.replace("  transforms:", "  colour: blue\n  transforms:"))
    project = new_project(tmp_path)
    before = project.state()
    for arguments in (["run", "order_to_cash"], ["status"], ["dev", "--port", "1"]):
        refused(project.command(*arguments), ErrorCode.DECLARATION_INVALID,
                f"contracts/pipelines/order_to_cash.yaml:{line}", "colour")
    checked = project.command("check")
    assert checked.exit_code == 1 and f"order_to_cash.yaml:{line}" in checked.stdout and "1 errors" in checked.stdout
    assert project.state() == before


def test_a_port_in_use_is_named_before_anything_starts(shop: Shop, nothing_lost: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused(shop.project.command("dev", "--port", str(port)), ErrorCode.PORT_IN_USE, str(port))


def test_a_database_that_does_not_answer_is_a_clear_error_and_worth_a_retry(shop: Shop) -> None:
    gone = replace(shop.project, database=replace(shop.project.database, admin_url="postgresql://localhost:1/none"))
    assert "a retry may help" in refused(gone.command("status"), ErrorCode.DATABASE_UNAVAILABLE)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 kB, which takes a mount."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_files(folder: Path) -> Iterator[None]:
    """A limit of 64 kB on what this process may write into a file, which takes no rights."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def empty_project(new_project: Callable[..., Project]) -> Project:
    return new_project()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the limits of Linux")
@pytest.mark.parametrize(("room", "day"), [(small_disk, "2026-03-24"), (small_files, "2026-03-25")])
def test_a_full_raw_store_lands_nothing_of_the_unit_and_room_is_all_it_takes(
    empty_project: Project, room: Callable[[Path], Any], day: str
) -> None:
    project, numbers = empty_project, random.Random(2)
    books, store = Books(project.folder("acme")), Path(project.settings.raw_store)
    path = books.invoices(day, *((f"F{n}", f"C{numbers.getrandbits(40)}", "NORTH", day, numbers.randrange(10**7) / 100)
                                 for n in range(8_000)))
    for other in ("bank", "crm"):
        (books.folder / other).mkdir(exist_ok=True)
    present = set(store.rglob("*"))
    with room(store):
        told = refused(project.command("run", "order_to_cash", "--tenant", "acme", "--date", day),
                       ErrorCode.STORE_FULL, "nothing of the current unit landed")
        left = [found for found in store.rglob("*") if found.is_file() and found not in present]
    assert "a retry may help" in told
    assert left == [], "what was begun is removed"
    assert project.rows("select 1 from platform.raw_batch where source_id = $1", path.name) == []
    assert project.rows("select 1 from raw.order_to_cash__invoices where invoice_date = $1::date", day) == []

    environment, asked = project.environment, dt.date.fromisoformat(day)
    manifest = environment.declarations.effective("order_to_cash", "acme")
    (spec,) = [spec for spec in lifecycle.specs(manifest, RunRequest("order_to_cash", "acme", asked, asked))
               if spec.stage is Stage.INGESTION and spec.source == "invoices"]
    receipt = execute(spec, lambda *_: None, environment)
    assert (receipt.counts["landed"], receipt.counts["accepted"]) == (1, 8_000)
