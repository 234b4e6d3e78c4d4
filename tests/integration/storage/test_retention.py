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
from resources.trust import ledger

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
    execute(StageSpec(
        Stage.INGESTION, "acme", "order_to_cash", Placement("container", "medium", "private_vpc"), "invoices",
        iso_window(*map(dt.date.fromisoformat, DAYS)), {"invoices": str(folder)}), lambda *_: None, environment)
    return Raw(environment)


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
