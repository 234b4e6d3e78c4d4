"""Refused records are fixed, replayed and accounted for, one by one."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from barecount_assets import keys
from barecount_assets.approved_work import approved_work
from barecount_assets.stages import execute, quarantine_life
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.ingestion import edited_records
from barecount_assets.stages.ingestion.replay import BatchReplay, ReplayRequest, replay
from resources.governance import approvals
from resources.governance.approvals import Approval
from resources.runners.stage import Placement, Stage, StageSpec, iso_window
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.storage import quarantine_store
from resources.storage.quarantine_store import Selection
from resources.trust import ledger
from tests.conftest import PROJECT, barecount

TENANT, DATASET = "acme", "order_to_cash.invoices"
HEADER = ("InvoiceDate;InvoiceID;CustomerID;CustomerName;BusinessUnit;DueDate;Currency;NetAmount;TaxAmount;GrossAmount;"
          "LastModified")
GOOD = "2026-01-05;A1;C1;Firm;NORTH;2026-01-19;GBP;100.00;20.00;120.00;2026-01-05 12:00:00"
WRONG_UNIT = '2026-01-05;A2;C1;"Caf\u00e9; Ltd";NORD;2026-01-19;GBP;100.00;20.00;120.00;2026-01-05 12:00:00'
WRONG_AMOUNT = "2026-01-05;A3;C1;Firm;SOUTH;2026-01-19;GBP;1,00;0.20;1.20;2026-01-05 12:00:00"
CUT = "2026-01-05;A4;C1;Firm"


@dataclass(frozen=True)
class Erp:
    """A project into which files of the ERP are ingested."""

    environment: StageEnvironment

    def ingest(self, name: str, *lines: str) -> None:
        folder = self.environment.settings.data_dir / "erp"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes("\n".join([HEADER, *lines, ""]).encode("windows-1252"))
        day = dt.date(2026, 1, 5)
        execute(StageSpec(
            Stage.INGESTION, TENANT, "order_to_cash", Placement("container", "medium", "private_vpc"), "invoices",
            iso_window(day, day), {"invoices": str(folder)}), lambda *_: None, self.environment)

    def replay(self, selection: Selection = Selection(state="open"), **how: object) -> list[BatchReplay]:  # noqa: B008
        return replay(self.environment, ReplayRequest(selection, "marco", **how), lambda *_: None)

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let commands work on this project."""
        settings = self.environment.settings
        for name, value in (("PROJECT_DIR", settings.project_dir), ("DATA_DIR", settings.data_dir),
                            ("RAW_STORE", settings.raw_store), ("DATABASE_URL", self.environment.database.admin_url)):
            patch.setenv(f"BARECOUNT_{name}", str(value))

    def approve(self) -> Approval:
        """Somebody says yes to the one thing that waits."""
        with self.environment.database.transaction() as connection:
            (request,) = approvals.listed(connection, dt.datetime.now(dt.UTC))
            return approvals.answer(connection, request.approval_id, approve=True, by="nadia",
                                    reason="for the ERP's team", now=dt.datetime.now(dt.UTC))

    def rows(self, statement: str, *parameters: object) -> list[tuple]:
        with self.environment.database.connect(autocommit=True) as connection:
            return fetch(connection, statement, parameters)

    def states(self) -> dict[str, int]:
        return dict(self.rows("select state, count(*) from platform.quarantine_record group by 1"))

    def current(self) -> list[str]:
        """Invoices that count."""
        return [row[0] for row in self.rows(
            "select invoice_id from raw.order_to_cash__invoices r "
            "join platform.raw_batch b on b.batch_id = r._batch_id "
            "where b.is_current order by 1")]

    def require_accounts(self) -> None:
        """Every record refused by a batch has one end, and every batch's numbers are those of its stores."""
        assert self.rows(
            "select b.batch_id from platform.raw_batch b where b.received <> b.accepted + b.quarantined "
            "or b.quarantined <> (select count(*) from platform.quarantine q where q.batch_id = b.batch_id) "
            "or b.accepted <> (select count(*) from raw.order_to_cash__invoices r where r._batch_id = b.batch_id) "
            "or (b.replay_of is not null and b.received <> "
            "    (select count(*) from platform.quarantine_outcome o where o.batch_id = b.batch_id))") == []
        with self.environment.database.connect(autocommit=True) as connection:
            assert ledger.verify(connection, TENANT).findings == ()


@pytest.fixture
def erp(database: Database, settings: Settings) -> Erp:
    return Erp(StageEnvironment.using(settings, database))


def test_a_field_is_fixed_and_the_record_replayed_once(erp: Erp) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT, CUT)
    fixed = {"selection": Selection(reason="rule_broken", state="open"), "values": {"BusinessUnit": "NORTH"}}
    (dry,) = erp.replay(**fixed, dry_run=True)
    assert (dry.replayed, dry.into, erp.states()) == (1, None, {"open": 2})

    (done,) = erp.replay(**fixed, reason="the ERP's German names")
    assert (done.replayed, done.refused_again, done.unchanged) == (1, 0, 0)
    assert erp.current() == ["A1", "A2"]
    assert erp.rows("select customer_name from raw.order_to_cash__invoices where invoice_id = 'A2'") == [
        ("Caf\u00e9; Ltd",)]
    assert erp.rows(
        "select r.state, r.into_row, r.decided_by, r.decision_reason, b.source_id from platform.quarantine_record r "
        "join platform.raw_batch b on b.batch_id = r.into_batch") == [
        ("replayed", 1, "marco", "the ERP's German names", done.into)]
    assert done.into.startswith("quarantine/invoices_2026-01-05.csv#")
    assert erp.replay(**fixed) == []
    assert erp.states() == {"open": 1, "replayed": 1}
    assert erp.rows("select type, evidence is not null from (select type, envelope -> 'evidence' as evidence "
                    "from platform.event where type like '%.quarantine.%') e") == [
        ("barecount.quarantine.replayed", True)]
    erp.require_accounts()


def test_what_would_be_refused_as_before_stays_open_and_nothing_is_written(erp: Erp) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT, WRONG_AMOUNT, CUT)
    (result,) = erp.replay()
    assert (result.replayed, result.refused_again, result.unchanged, result.into) == (0, 0, 3, None)
    assert erp.rows("select count(*) from platform.raw_batch") == [(1,)]
    assert erp.states() == {"open": 3}


@pytest.mark.parametrize("ending", edited_records.FORMATS)
def test_an_edited_export_is_replayed_and_refusals_have_a_life_of_their_own(
    erp: Erp, tmp_path: Path, ending: str
) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT, WRONG_AMOUNT, CUT)
    path = tmp_path / f"refused.{ending}"
    exported(erp, path)
    edit(path, {WRONG_AMOUNT: WRONG_AMOUNT.replace("1,00", "1.00"), CUT: CUT + ";NORTH", WRONG_UNIT: None})
    (result,) = erp.replay(edits=path)
    assert (result.replayed, result.refused_again, result.unchanged) == (1, 1, 0)
    assert erp.current() == ["A1", "A3"]
    assert erp.states() == {"open": 2, "replayed": 1, "refused_again": 1}
    assert erp.replay(edits=path) == []
    erp.require_accounts()

    ((again, payload),) = erp.rows(
        "select again_id, q.payload from platform.quarantine_outcome o join platform.quarantine q "
        "on q.quarantine_id = o.again_id")
    assert bytes(payload).decode() == CUT + ";NORTH"
    exported(erp, path, Selection(ids=[again]))
    edit(path, {CUT + ";NORTH": GOOD.replace("A1", "A4")})
    (result,) = erp.replay(edits=path)
    assert (result.replayed, erp.current()) == (1, ["A1", "A3", "A4"])
    erp.require_accounts()


def test_a_changed_rule_lets_records_through_as_they_are(erp: Erp) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT, WRONG_AMOUNT)
    declared = erp.environment.declarations
    raw = declared.contract(DATASET, "raw")
    wider = tuple(replace(c, valid_values=(*c.valid_values, "NORD")) if c.name == "business_unit" else c
                  for c in raw.columns)
    contracts = {**declared.contracts, (DATASET, "raw"): replace(raw, columns=wider, version="1.1.0", hash="wider")}
    later = Erp(replace(erp.environment, declarations=replace(declared, contracts=contracts)))
    (result,) = later.replay()
    assert (result.replayed, result.unchanged) == (1, 1)
    assert later.rows("select contract_version, accepted from platform.raw_batch where replay_of is not null") == [
        ("1.1.0", 1)]


def test_replayed_records_count_as_long_as_the_file_that_had_them(erp: Erp) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT)
    erp.replay(values={"BusinessUnit": "NORTH"})
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT.replace("NORD", "SOUTH"))
    assert erp.current() == ["A1", "A2"], "the corrected file has the record itself"
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT)
    assert erp.current() == ["A1", "A2"], "the earlier file is back, and the replay with it"
    erp.ingest("invoices_2026-01-05.csv", GOOD, CUT)
    erp.ingest("invoices_2026-01-05.csv", GOOD)
    assert erp.states() == {"replayed": 1, "superseded": 1}
    assert erp.replay() == []


def test_discarded_records_stay_on_record_and_are_not_replayed(erp: Erp) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT, CUT)
    with pytest.raises(BareCountError) as refused:
        quarantine_life.discard(erp.environment, Selection(state="open"), "marco", " ")
    assert refused.value.code is ErrorCode.USAGE
    selection = Selection(reason="too_few_fields", state="open")
    (group,) = quarantine_life.discard(erp.environment, selection, "marco", "a test record")
    assert group.records == 1
    assert quarantine_life.discard(erp.environment, selection, "marco", "a test record") == []
    assert erp.states() == {"open": 1, "discarded": 1}
    (result,) = erp.replay()
    assert result.unchanged == 1
    erp.require_accounts()


@pytest.mark.parametrize(
    ("how", "said"),
    [({"values": {"Colour": "red"}}, "has no field 'Colour'"),
     ({"values": {"BusinessUnit": "NORTH"}}, "does not have the 11 fields"),
     ({"edits": "two"}, "allowed is one record"), ({"edits": "unknown"}, "not in quarantine"),
     ({"edits": "garbage"}, "allowed is an export")],
)
def test_a_fix_that_does_not_fit_is_refused_and_changes_nothing(
    erp: Erp, tmp_path: Path, how: dict[str, object], said: str
) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, CUT)
    if "edits" in how:
        path = tmp_path / "edits.jsonl"
        exported(erp, path)
        path.write_text({
            "two": path.read_text().replace("Firm", "Firm\\nA5"), "unknown": path.read_text().replace(": 1,", ": 77,"),
            "garbage": "{}\n"}[str(how["edits"])])
        how = {"edits": path}
    with pytest.raises(BareCountError, match=said):
        erp.replay(**how)
    assert erp.states() == {"open": 1}


def exported(erp: Erp, path: Path, selection: Selection = Selection(state="open")) -> None:  # noqa: B008
    with erp.environment.database.connect(autocommit=True) as connection:
        edited_records.export(quarantine_store.stream(connection, selection), path, lambda record: "windows-1252")


def edit(path: Path, changes: dict[str, str | None]) -> None:
    """Replace payloads in an export, or take records out, with the tools people use."""
    import pandas as pd

    read: dict[str, Callable] = {"csv": pd.read_csv, "parquet": pd.read_parquet,
                                 "jsonl": lambda p: pd.DataFrame(map(json.loads, p.read_text().splitlines()))}
    frame = read[path.suffix[1:]](path)
    frame = frame[[changes.get(payload, payload) is not None for payload in frame["payload"]]]
    frame = frame.assign(payload=[changes.get(payload, payload) for payload in frame["payload"]])
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.astype(object).to_dict("records")))


def asks_for_approval(*arguments: str) -> bool:
    """Whether a verb ends with that, and nothing else."""
    refused = barecount("quarantine", *arguments, "--json")
    return refused.exit_code == 1 and json.loads(refused.output)["error"]["code"] == "approval.required"


@pytest.mark.parametrize("how", ["values", "edits"])
def test_a_replay_that_waited_is_done_by_the_job_once_approved_for_its_records_and_its_fix_alone(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "contracts", project / "contracts")
    (project / "dbt_project").symlink_to(PROJECT / "dbt_project")
    policies = project / "contracts" / "policies"
    long_backfills = (policies / "long_backfills.yaml").read_text()
    (policies / "replays.yaml").write_text(long_backfills.replace("name: long_backfills", "name: replays").replace(
        "point: backfill", "point: replay").replace("days > 31", "kind == 'quarantine'"))
    erp = Erp(StageEnvironment.using(replace(settings, project_dir=project), database))
    erp.use(monkeypatch)
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT, CUT)
    edited = tmp_path / "refused.jsonl"
    with database.connect(autocommit=True) as connection:
        records = list(quarantine_store.stream(connection, Selection(state="open")))
    edited_records.export(iter(records), edited, lambda record: "windows-1252")
    edit(edited, {WRONG_UNIT: WRONG_UNIT.replace("NORD", "NORTH"), CUT: None})
    fix = {"values": ("--fix", "BusinessUnit=NORTH"), "edits": ("--from", str(edited))}[how]
    wanted = ("replay", "--reason", "rule_broken", *fix, "--by", "ann", "--why", "the ERP's German names")

    assert asks_for_approval(*wanted)
    assert erp.states() == {"open": 2}
    approval = erp.approve()
    with database.connect(autocommit=True) as connection:
        assert [item.approval_id for item in approvals.to_start(connection, dt.datetime.now(dt.UTC))] == [
            approval.approval_id]
    if how == "values":
        assert asks_for_approval("replay", "--reason", "rule_broken", "--fix", "BusinessUnit=SOUTH", "--by", "ann")
    else:
        whole = edited.read_bytes()
        edited.write_bytes(whole.replace(b"NORTH", b"SOUTH"))
        assert asks_for_approval(*wanted)
        edited.write_bytes(whole)
    assert asks_for_approval("replay", *fix, "--by", "ann")
    assert erp.states() == {"open": 2}

    done = approved_work.execute_in_process(tags={keys.APPROVAL_TAG: str(approval.approval_id)})
    assert done.success
    assert erp.states() == {"open": 1, "replayed": 1}
    assert erp.rows("select decided_by, reason from platform.quarantine_decision") == [
        ("ann", "the ERP's German names")]
    with database.connect(autocommit=True) as connection:
        assert approvals.to_start(connection, dt.datetime.now(dt.UTC)) == []
    erp.require_accounts()


def test_the_verbs_tell_one_story(erp: Erp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    erp.ingest("invoices_2026-01-05.csv", GOOD, WRONG_UNIT, CUT)
    erp.use(monkeypatch)

    def command(*arguments: str) -> str:
        result = barecount("quarantine", *arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.output

    assert "rule_broken" in command("list") and "too_few_fields" not in command("list", "--reason", "rule_broken")
    shown = json.loads(command("show", "2", "--json"))
    assert (shown["state"], shown["payload"]) == ("open", WRONG_UNIT.replace("\u00e9", "\\351"))
    assert "NORD" in command("show", "2")
    export = ("export", str(tmp_path / "refused.csv"), "--dataset", DATASET)
    assert asks_for_approval(*export)  # the dataset is confidential
    erp.approve()
    assert "2 records" in command(*export)
    assert asks_for_approval(*export, "--id", "2"), "another selection is another export"
    assert "would be discarded" in command("discard", "--id", "1", "--why", "a test record", "--dry-run")
    assert erp.states() == {"open": 2}
    assert "1 records discarded" in command("discard", "--id", "1", "--why", "a test record")
    assert "1 would be replayed" in command("replay", "--fix", "BusinessUnit=NORTH", "--dry-run")
    assert "barecount run order_to_cash --tenant acme" in command("replay", "--fix", "BusinessUnit=NORTH")
    assert "no open record" in command("replay", "--fix", "BusinessUnit=NORTH")
    assert erp.states() == {"replayed": 1, "discarded": 1}
