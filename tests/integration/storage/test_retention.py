"""Raw partitions go when everything declared lets them, whole, with evidence; a legal hold keeps them."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from barecount_assets import retention
from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.runners.stage import Placement, Stage, StageSpec, iso_window
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.storage import retention as storage
from resources.storage.raw_store import RawStore
from resources.trust import ledger
from tests.conftest import barecount

HEADER = ("InvoiceID;CustomerID;CustomerName;BusinessUnit;InvoiceDate;DueDate;Currency;NetAmount;TaxAmount;GrossAmount;"
          "LastModified")
DAYS = ("2026-01-05", "2026-01-06")
KEPT = dt.timedelta(days=3650)


@dataclass(frozen=True)
class Raw:
    """Two days of the ERP's invoices, one record of each refused."""

    environment: StageEnvironment

    def rows(self, statement: str) -> list[tuple]:
        with self.environment.database.connect(autocommit=True) as connection:
            return fetch(connection, statement)

    def expire(self, days_from_now: int, *, dry_run: bool = False) -> list[retention.Expired]:
        now = dt.datetime.now(dt.UTC) + dt.timedelta(days=days_from_now)
        return retention.expire(self.environment, now, "marco", "acme", "order_to_cash.invoices", dry_run=dry_run)

    def ingest(self) -> int:
        """Ingest both days; how many units landed."""
        folder = str(self.environment.settings.data_dir / "erp")
        return execute(StageSpec(
            Stage.INGESTION, "acme", "order_to_cash", Placement("container", "medium", "private_vpc"), "invoices",
            iso_window(*map(dt.date.fromisoformat, DAYS)), {"invoices": folder}), lambda *_: None, self.environment,
        ).counts["landed"]

    def objects(self) -> list[Path]:
        return sorted(Path(self.environment.settings.raw_store).rglob("*.parquet"))


@pytest.fixture
def raw(database: Database, settings: Settings) -> Raw:
    environment = StageEnvironment.using(settings, database)
    folder = settings.data_dir / "erp"
    folder.mkdir(parents=True)
    for day in DAYS:
        line = f"I-{day};C1;Firm;NORTH;{day};2026-02-19;GBP;100.00;20.00;120.00;{day} 12:00:00"
        (folder / f"invoices_{day}.csv").write_text("\n".join([HEADER, line, line.replace("NORTH", "NORD"), ""]))
    made = Raw(environment)
    assert made.ingest() == 2
    return made


def test_nothing_is_due_before_every_declaration_lets_it_go(raw: Raw) -> None:
    assert raw.expire(3650) == []
    due = raw.expire(3651, dry_run=True)
    assert [(str(item.partition.day), item.days, item.evidence_seq) for item in due] == [
        (day, 3650, None) for day in DAYS]
    assert len(raw.objects()) == 4 and raw.rows("select count(*) from raw.order_to_cash__invoices") == [(2,)]


def test_whole_partitions_go_and_evidence_names_what_went(raw: Raw) -> None:
    objects = {(row[0], row[1]) for row in raw.rows("select object_sha256, quarantine_sha256 from platform.raw_batch")}
    assert [item.evidence_seq is not None for item in raw.expire(3651)] == [True, True]
    assert raw.objects() == []
    assert raw.rows("select count(*) from raw.order_to_cash__invoices") == [(0,)]
    assert raw.rows("select distinct payload, message, state from platform.quarantine_record") == [
        (None, "deleted under retention", "expired")]
    entries = [json.loads(body)["payload"] for (body,) in raw.rows(
        "select body from platform.evidence where kind = 'raw.expired' order by seq")]
    assert {(b["object_sha256"], b["quarantine_sha256"]) for entry in entries for b in entry["batches"]} == objects
    assert [(entry["day"], entry["rows"], entry["by"]) for entry in entries] == [(day, 1, "marco") for day in DAYS]
    assert raw.expire(3651) == []
    with raw.environment.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").findings == ()


def test_objects_that_a_crash_left_go_with_the_next_expiry(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(raw.environment.raw_store), "delete", lambda store, key: (_ for _ in ()).throw(OSError(key)))
        with pytest.raises(OSError):
            raw.expire(3651)
    assert len(raw.objects()) == 4
    assert raw.expire(3651) == [] and raw.objects() == []


def test_expired_batches_count_until_somebody_forgets_them_on_record(raw: Raw) -> None:
    raw.expire(3651)
    with raw.environment.database.connect(autocommit=True) as connection:
        assert storage.expired_that_count(connection, "acme", ["order_to_cash.invoices"]) == (2, DAYS[1])
    with pytest.raises(BareCountError) as refused:
        retention.forget(raw.environment, "order_to_cash", "acme", "marco", "")
    assert refused.value.code is ErrorCode.USAGE
    assert retention.forget(raw.environment, "order_to_cash", "acme", "marco", "the year is closed") == 2
    with raw.environment.database.connect(autocommit=True) as connection:
        assert storage.expired_that_count(connection, "acme", ["order_to_cash.invoices"])[0] == 0
        assert ledger.verify(connection, "acme").findings == ()
    ((body,),) = raw.rows("select body from platform.evidence where kind = 'raw.forgotten'")
    entry = json.loads(body)["payload"]
    assert (entry["by"], entry["reason"], len(entry["batches"])) == ("marco", "the year is closed", 2)
    assert raw.rows("select distinct forgotten from platform.raw_expiry") == [(True,)]
    assert retention.forget(raw.environment, "order_to_cash", "acme", "marco", "the year is closed") == 0


def test_what_expired_lands_again_only_when_the_source_says_something_else_or_says_it_elsewhere(raw: Raw) -> None:
    raw.expire(3651)
    assert raw.ingest() == 0
    retention.forget(raw.environment, "order_to_cash", "acme", "marco", "the year is closed")
    assert raw.ingest() == 0, "the files lie there still"
    first, second = sorted((raw.environment.settings.data_dir / "erp").iterdir())
    first.write_text(first.read_text().replace("100.00", "101.00"))
    second.rename(second.with_stem(f"{second.stem}_again"))
    assert raw.ingest() == 2
    assert raw.rows("select net_amount::text from raw.order_to_cash__invoices order by 1") == [("100.00",), ("101.00",)]
    assert raw.rows("select source_id from platform.raw_batch where is_current order by 1") == [
        (first.name,), (f"{second.stem}_again.csv",)]
    with raw.environment.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").findings == ()


def test_objects_move_to_the_class_that_is_declared_now_with_evidence(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert retention.tier(raw.environment, "marco") == [], "a folder has one class"
    asked: list[tuple[str, str]] = []

    def reclassify(store: RawStore, key: str, raw_class: str, *, dry_run: bool = False) -> bool:
        asked.append((key, raw_class))
        return len(asked) > 4  # the second look, as if something had lain elsewhere

    monkeypatch.setattr(RawStore, "reclassify", reclassify)
    assert retention.tier(raw.environment, "marco", "acme") == []
    assert len(asked) == 4 and {raw_class for _, raw_class in asked} == {"standard"}
    (moved,) = retention.tier(raw.environment, "marco", "acme")
    assert (moved.dataset, len(moved.keys)) == ("order_to_cash.invoices", 4)
    assert raw.rows("select seq from platform.evidence where kind = 'raw.tiered'") == [(moved.evidence_seq,)]


def test_every_verb_says_what_it_does(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = raw.environment.settings
    for name, value in (("PROJECT_DIR", settings.project_dir), ("DATA_DIR", settings.data_dir),
                        ("RAW_STORE", settings.raw_store), ("DATABASE_URL", raw.environment.database.admin_url)):
        monkeypatch.setenv(f"BARECOUNT_{name}", str(value))

    def command(*arguments: str, exit_code: int = 0) -> str:
        result = barecount("raw", *arguments)
        assert result.exit_code == exit_code, result.output
        return result.output

    assert "2 rows of 2 batches loaded again" in command("rebuild", "order_to_cash.invoices")
    assert "every object lies in its class" in command("tier", "--dry-run")
    assert command("expire") == "no raw partition is due\n"
    assert "goes with --dry-run" in command("expire", "--on", "2099-01-01", exit_code=2)
    assert command("hold", "add", "--tenant", "acme", "--reason", "case 17", "--from", DAYS[1]) == (
        "hold 1 is in force\n")
    (held,) = json.loads(command("hold", "list", "--json"))
    assert (held["reason"], held["first_day"], held["released_at"]) == ("case 17", DAYS[1], None)
    due = command("expire", "--dry-run", "--on", "2099-01-01").splitlines()
    assert due[0].endswith("would be deleted") and due[1].endswith("kept by hold 1")
    assert "case 17" in command("hold", "list")
    assert command("hold", "release", "1", "--reason", "closed") == "hold 1 is released\n"
    assert "no hold 1 in force" in command("hold", "release", "1", "--reason", "closed", exit_code=1)
    assert command("forget", "order_to_cash", "--tenant", "acme", "--reason", "none expired") == (
        "0 expired batches count no longer\n")
    assert len(json.loads(command("expire", "--dry-run", "--on", "2099-01-01", "--json"))) == 2


def test_a_legal_hold_keeps_what_it_covers_until_it_is_released(raw: Raw) -> None:
    with pytest.raises(BareCountError) as refused:
        retention.add_hold(raw.environment, "acme", None, None, None, " ", "ada")
    assert refused.value.code is ErrorCode.USAGE
    day = dt.date.fromisoformat(DAYS[1])
    number = retention.add_hold(raw.environment, "acme", "order_to_cash.invoices", day, None, "case 17", "ada")
    other = retention.add_hold(raw.environment, "globex", None, None, None, "case 18", "ada")
    found = raw.expire(3651)
    assert [(str(item.partition.day), item.partition.hold, item.evidence_seq is None) for item in found] == [
        (DAYS[0], None, False), (DAYS[1], number, True)]
    assert raw.rows("select invoice_id from raw.order_to_cash__invoices") == [(f"I-{DAYS[1]}",)]

    retention.release_hold(raw.environment, number, "case closed", "ada")
    with pytest.raises(BareCountError, match="no hold"):
        retention.release_hold(raw.environment, number, "again", "ada")
    assert [str(item.partition.day) for item in raw.expire(3651)] == [DAYS[1]]
    assert raw.objects() == [] and other != number
    with raw.environment.database.connect(autocommit=True) as connection:
        assert all(ledger.verify(connection, tenant).findings == () for tenant in ("acme", "globex"))
