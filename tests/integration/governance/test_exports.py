"""What leaves as a file: approved by somebody else, on record with its columns, and judged by later runs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from barecount_assets import exports
from barecount_assets.stages import execute, obligations
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import approvals, lineage_store
from resources.governance.obligations import Obligation
from resources.runners.stage import Placement, Stage, StageSpec, iso_window
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.storage.quarantine_store import Selection
from resources.trust import ledger
from tests.conftest import barecount

HEADER = ("InvoiceID;CustomerID;CustomerName;BusinessUnit;InvoiceDate;DueDate;Currency;NetAmount;TaxAmount;GrossAmount;"
          "LastModified")
DATASET, DAY = "order_to_cash.invoices", dt.date(2026, 1, 5)
PLACEMENT = Placement("container", "medium", "private_vpc")
NOW = dt.datetime(2026, 3, 6, 12, tzinfo=dt.UTC)


def command(monkeypatch: pytest.MonkeyPatch, environment: StageEnvironment, *arguments: str) -> str:
    settings = environment.settings
    for name, value in (("PROJECT_DIR", settings.project_dir), ("DATA_DIR", settings.data_dir),
                        ("DATABASE_URL", environment.database.admin_url)):
        monkeypatch.setenv(f"BARECOUNT_{name}", str(value))
    result = barecount(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


class Desk:
    """One refused invoice, and somebody who wants it as a file."""

    def __init__(self, environment: StageEnvironment, folder: Path) -> None:
        self.environment, self.file = environment, folder / "refused.csv"

    def export(self, environment: StageEnvironment | None = None) -> int:
        return exports.export_records(
            environment or self.environment, Selection(dataset=DATASET, state="open"), self.file, requested_by="ann",
            now=NOW)

    def approve(self) -> int:
        with pytest.raises(BareCountError) as waits:
            self.export()
        assert waits.value.code is ErrorCode.APPROVAL_REQUIRED
        (number,) = waits.value.details["approvals"]
        with self.environment.database.transaction() as connection:
            approvals.answer(connection, number, approve=True, by="bob", reason="for the ERP's team", now=NOW)
        return number

    def enforce(self, environment: StageEnvironment) -> dict[str, str]:
        """Outcomes of the obligations about exports, as the publish stage judges them."""
        spec = StageSpec(Stage.PUBLISH, "acme", "order_to_cash", PLACEMENT)
        with environment.database.connect(autocommit=True) as connection:
            outcomes = obligations.enforce(
                connection, environment.settings, environment.declarations, spec, "a" * 64, NOW)
        return {outcome.obligation.name: outcome.status for outcome in outcomes}

    def forbidding(self) -> StageEnvironment:
        """Where no approval lets confidential columns leave."""
        declared = self.environment.declarations
        model = declared.obligations["confidential_stays_inside"]
        check = model.spec.check.model_copy(update={"approved": "forbidden"})
        changed: Obligation = model.model_copy(
            update={"spec": model.spec.model_copy(update={"check": check})}).with_hash("hash of another")
        return dataclasses.replace(
            self.environment, declarations=dataclasses.replace(declared, obligations={model.name: changed}))

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self.environment.database.connect(autocommit=True) as connection:
            return fetch(connection, statement)


@pytest.fixture
def desk(database: Database, settings: Settings, tmp_path: Path) -> Desk:
    environment = StageEnvironment.using(settings, database)
    folder = settings.data_dir / "erp"
    folder.mkdir(parents=True)
    line = f"I1;C1;Firm;NORD;{DAY};2026-02-19;GBP;100.00;20.00;120.00;{DAY} 12:00:00"
    (folder / f"invoices_{DAY}.csv").write_text(f"{HEADER}\n{line}\n")
    execute(StageSpec(Stage.INGESTION, "acme", "order_to_cash", PLACEMENT, "invoices", iso_window(DAY, DAY),
                      {"invoices": str(folder)}), lambda *_: None, environment)
    return Desk(environment, tmp_path)


def test_personal_data_leaves_with_somebody_elses_approval_only_and_who_took_which_columns_is_on_record(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = desk.approve()
    assert not desk.file.exists() and desk.rows("select 1 from platform.export") == []
    assert desk.export() == 1
    assert "NORD" in desk.file.read_text()
    (row,) = json.loads(command(monkeypatch, desk.environment, "lineage", "exports", "--json"))
    assert (row["asset"], row["exported_by"], row["approval_id"], row["records"]) == (
        f"export.{DATASET}", "ann", number, 1)
    assert "CustomerName" in row["columns"] and row["file_name"] == "refused.csv"
    shown = command(
        monkeypatch, desk.environment, "lineage", "downstream", f"source.{DATASET}.CustomerName", "--tenant", "acme")
    assert f"export.{DATASET}.CustomerName" in shown
    with desk.environment.database.connect(autocommit=True) as connection:
        (edge,) = [e for e in lineage_store.edges(connection, "acme")
                   if (e.asset, e.column) == (f"export.{DATASET}", "CustomerName")]
        assert (edge.on.asset, edge.on.column, edge.on.masked) == (f"source.{DATASET}", "CustomerName", False)
        assert ledger.verify(connection, "acme").findings == ()
    assert desk.rows("select count(*) from platform.event where type = 'barecount.export.finished'") == [(1,)]
    assert desk.rows("select type from platform.lineage_event e join platform.lineage_run r using (tenant_id, run) "
                     "where job = 'order_to_cash.export.order_to_cash.invoices' order by position") == [
        ("START",), ("COMPLETE",)]


def test_a_bundle_of_evidence_is_an_export_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    written = json.loads(command(monkeypatch, desk.environment, "evidence", "export", "--tenant", "acme", "--as", "ann",
                                 "--out", str(desk.file.with_suffix(".zip")), "--json"))
    assert desk.rows("select asset, kind, file_sha256, records::int, exported_by from platform.export") == [
        ("export.evidence", "evidence", written["sha256"], written["entries"], "ann")]
    command(monkeypatch, desk.environment, "evidence", "verify")


def test_an_obligation_that_no_approval_softens_refuses_the_export_on_record(desk: Desk) -> None:
    desk.approve()
    with pytest.raises(BareCountError) as refused:
        desk.export(desk.forbidding())
    assert refused.value.code is ErrorCode.OBLIGATION_FAILED
    assert f"reaches export.{DATASET}.CustomerName" in str(refused.value.details)
    assert not desk.file.exists() and desk.rows("select 1 from platform.export") == []
    by = "select body::jsonb -> 'payload' ->> 'by' from platform.evidence where kind = 'export.refused'"
    assert desk.rows(by) == [("ann",)]


def test_what_really_left_is_judged_by_the_next_run(desk: Desk) -> None:
    assert desk.enforce(desk.environment)["confidential_stays_inside"] == "pass"
    desk.approve()
    desk.export()
    assert desk.enforce(desk.environment)["confidential_stays_inside"] == "pass", "somebody approved it"
    with pytest.raises(BareCountError) as refused:
        desk.enforce(desk.forbidding())
    assert refused.value.code is ErrorCode.OBLIGATION_FAILED and "is not published" in refused.value.message
    assert f"export.{DATASET}.CustomerName" in str(refused.value.details)


def test_a_record_that_cannot_be_written_leaves_no_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.approve()
    monkeypatch.setattr(exports.export_log, "record", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError):
        desk.export()
    assert not desk.file.exists() and list(desk.file.parent.glob(".refused*")) == []
