"""A rule applies to what it says: whatever landed is as if it had landed under the rules in force."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from barecount_assets.stages import execute, quarantine_life
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.ingestion.replay import ReplayRequest, replay
from resources.governance import registry
from resources.runners.stage import Placement, Stage, StageReceipt, StageSpec
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.storage.quarantine_store import Selection
from resources.trust import ledger
from tests.conftest import PROJECT, barecount

TENANT, DATASET = "acme", "order_to_cash.invoices"
HEADER = ("InvoiceID;CustomerID;CustomerName;BusinessUnit;InvoiceDate;DueDate;Currency;NetAmount;TaxAmount;GrossAmount;"
          "LastModified")
DAYS = ("2026-01-05", "2026-01-06", "2026-01-07")


@dataclass(frozen=True)
class Rules:
    """The rules that the tests change; `applies` as the contract says it."""

    units: tuple[str, ...] = ("NORTH", "SOUTH")
    least: str | None = None
    below: str | None = None
    name_required: bool = False
    longest_name: int | None = None
    applies: str = "all"

    def accept(self, record: Record) -> bool:
        amount = Decimal(record.amount) if record.amount.replace(".", "").isdigit() else None
        return (
            amount is not None and record.unit in self.units
            and (self.least is None or amount >= Decimal(self.least))
            and (self.below is None or amount < Decimal(self.below))
            and not (self.name_required and not record.name)
            and (self.longest_name is None or len(record.name) <= self.longest_name)
        )

    def cover(self, day: str) -> bool:
        return self.applies == "all" or day >= self.applies.removeprefix("from ")


@dataclass(frozen=True)
class Record:
    unit: str = "NORTH"
    amount: str = "100.00"
    name: str = "Firm"


@dataclass
class Erp:
    """A project of its own whose raw contract changes."""

    environment_of: Settings
    database: Database
    version: int = 0
    declared: Rules = field(default_factory=Rules)

    @property
    def folder(self) -> Path:
        return self.environment_of.data_dir / "erp"

    @property
    def contract(self) -> Path:
        return self.environment_of.project_dir / "contracts/datasets/order_to_cash/invoices/raw.yaml"

    def declare(self, rules: Rules) -> None:
        """The next version of the raw contract, registered."""
        self.version, self.declared = self.version + 1, rules
        document = yaml.safe_load(self.contract.read_text())
        document["version"] = f"{self.version}.0.0"
        properties = {one["name"]: one for one in document["schema"][0]["properties"]}
        properties["business_unit"]["quality"] = [
            {"type": "library", "metric": "invalidValues", "mustBe": 0,
             "arguments": {"validValues": list(rules.units)}}]
        amounts = properties["net_amount"].setdefault("logicalTypeOptions", {})
        amounts.clear()
        amounts |= {} if rules.least is None else {"minimum": float(rules.least)}
        amounts |= {} if rules.below is None else {"exclusiveMaximum": float(rules.below)}
        name = properties["customer_name"]
        name["required"] = rules.name_required
        name["logicalTypeOptions"] = {} if rules.longest_name is None else {"maxLength": rules.longest_name}
        document["customProperties"] = [one for one in document["customProperties"] if one["property"] != "applies"]
        document["customProperties"].append({"property": "applies", "value": rules.applies})
        self.contract.write_text(yaml.safe_dump(document, sort_keys=False))
        environment = self.environment
        with environment.database.connect(autocommit=True) as connection:
            registry.sync(connection, environment.declarations, who="marco", reason="the rules changed",
                          now=dt.datetime.now(dt.UTC))

    @property
    def environment(self) -> StageEnvironment:
        return StageEnvironment.using(self.environment_of, self.database)

    def deliver(self, day: str, records: list[Record]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"I{day[-2:]}{number};C1;{record.name};{record.unit};{day};{day};GBP;{record.amount};0.00;0.00;"
                 f"{day} 12:00:00" for number, record in enumerate(records)]
        (self.folder / f"invoices_{day}.csv").write_text("\n".join([HEADER, *lines, ""]))

    def ingest(self) -> StageReceipt:
        return execute(StageSpec(
            Stage.INGESTION, TENANT, "order_to_cash", Placement("container", "medium", "private_vpc"), "invoices",
            (DAYS[0], DAYS[-1]), {"invoices": str(self.folder)}), lambda *_: None, self.environment)

    def rows(self, statement: str, *parameters: Any) -> list[tuple]:
        with self.database.connect(autocommit=True) as connection:
            return fetch(connection, statement, parameters)

    def accepted(self) -> set[str]:
        """Invoices that count."""
        return {row[0] for row in self.rows(
            "select invoice_id from raw.order_to_cash__invoices r join platform.raw_batch b "
            "on b.batch_id = r._batch_id where b.is_current")}

    def refused(self, *states: str) -> set[tuple[str, int]]:
        """Day and record number of what is refused of the batches that count."""
        return {(str(day), number) for day, number in self.rows(
            "select r.partition_date, r.row_number from platform.quarantine_record r "
            "join platform.raw_batch b using (batch_id) where b.is_current and r.state = any($1)", list(states))}

    def require_accounts(self) -> None:
        assert self.rows(
            "select b.batch_id from platform.raw_batch b where b.received <> b.accepted + b.quarantined "
            "or b.quarantined <> (select count(*) from platform.quarantine q where q.batch_id = b.batch_id) "
            "or b.accepted <> (select count(*) from raw.order_to_cash__invoices r where r._batch_id = b.batch_id)"
        ) == []
        with self.database.connect(autocommit=True) as connection:
            assert ledger.verify(connection, TENANT).findings == ()


@pytest.fixture
def new_erp(new_database: Callable[[], Database], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Erp]:
    def make() -> Erp:
        folder = tmp_path_factory.mktemp("erp")
        shutil.copytree(PROJECT / "contracts", folder / "contracts")
        (folder / "dbt_project").symlink_to(PROJECT / "dbt_project")
        erp = Erp(Settings(folder, folder / "data", str(folder / "data/raw"), None), new_database())
        erp.declare(Rules())
        return erp

    return make


@pytest.fixture
def erp(new_erp: Callable[[], Erp]) -> Erp:
    return new_erp()


def test_a_tightened_rule_moves_landed_rows_to_quarantine_and_says_how_many(erp: Erp) -> None:
    erp.deliver(DAYS[0], [Record(), Record(amount="5.00"), Record(amount="7.00")])
    erp.deliver(DAYS[1], [Record()])
    erp.ingest()
    erp.declare(Rules(least="10.00"))
    done = erp.ingest()
    assert erp.accepted() == {"I050", "I060"}
    assert erp.refused("open") == {(DAYS[0], 2), (DAYS[0], 3)}
    assert {name: done.counts[name] for name in ("judged_again", "to_quarantine", "to_accepted")} == {
        "judged_again": 2, "to_quarantine": 2, "to_accepted": 0}
    assert erp.rows("select outcome, count(*) from platform.batch_judgement group by 1") == [("unchanged", 1)]
    ((payload,),) = erp.rows("select envelope -> 'data' from platform.event where type = 'barecount.batches.judged'")
    assert '"to_quarantine": 2' in str(payload) or payload["to_quarantine"] == 2
    assert erp.ingest().changed is False
    erp.require_accounts()


def test_the_impact_of_a_contract_is_shown_before_and_changes_nothing(
    erp: Erp, monkeypatch: pytest.MonkeyPatch
) -> None:
    erp.deliver(DAYS[0], [Record(), Record(amount="5.00"), Record(amount="7.00")])
    erp.ingest()
    erp.declare(Rules(least="10.00"))
    for name, value in (("PROJECT_DIR", erp.environment_of.project_dir), ("DATA_DIR", erp.environment_of.data_dir),
                        ("RAW_STORE", erp.environment_of.raw_store), ("DATABASE_URL", erp.database.admin_url)):
        monkeypatch.setenv(f"BARECOUNT_{name}", str(value))
    for words in ([str(erp.contract)], []):
        shown = barecount("contracts", "check", *words, "--impact", "--json")
        assert shown.exit_code == 0, shown.output
        (own,) = [one for one in json.loads(shown.stdout) if (one["dataset"], one["tenant"]) == (DATASET, TENANT)]
        assert (own["batches"], own["to_quarantine"], own["to_accepted"]) == (1, 2, 0)
    assert barecount("contracts", "check").exit_code == 2
    assert erp.accepted() == {"I050", "I051", "I052"}


def test_going_back_to_the_earlier_rule_gives_the_earlier_split(erp: Erp) -> None:
    erp.deliver(DAYS[0], [Record(), Record(amount="5.00"), Record(unit="WEST"), Record(amount="x")])
    erp.ingest()
    before = erp.accepted(), erp.refused("open")
    rows = "select * from raw.order_to_cash__invoices where _batch_id = (select max(_batch_id) from " \
           "raw.order_to_cash__invoices) order by _row_number"
    values = [row[1:] for row in erp.rows(rows)]
    erp.declare(Rules(least="10.00", units=("NORTH", "WEST")))
    erp.ingest()
    assert (erp.accepted(), erp.refused("open")) == ({"I050", "I052"}, {(DAYS[0], 2), (DAYS[0], 4)})
    erp.declare(Rules())
    done = erp.ingest()
    assert (erp.accepted(), erp.refused("open")) == before
    assert [row[1:] for row in erp.rows(rows)] == values
    assert (done.counts["to_quarantine"], done.counts["to_accepted"]) == (1, 1)
    erp.require_accounts()


def test_a_rule_that_applies_from_a_day_leaves_earlier_days_alone(erp: Erp) -> None:
    for day in DAYS:
        erp.deliver(day, [Record(), Record(amount="5.00")])
    erp.ingest()
    erp.declare(Rules(least="10.00", applies=f"from {DAYS[1]}"))
    erp.ingest()
    assert erp.accepted() == {"I050", "I051", "I060", "I070"}
    erp.declare(Rules(least="10.00"))
    erp.ingest()
    assert erp.accepted() == {"I050", "I060", "I070"}


def test_what_was_decided_about_a_record_is_not_lost_by_judging_it_again(erp: Erp) -> None:
    erp.deliver(DAYS[0], [Record(), Record(unit="WEST"), Record(unit="NORD"), Record(amount="5.00")])
    erp.ingest()
    numbers = dict(erp.rows("select row_number, quarantine_id from platform.quarantine"))
    quarantine_life.discard(erp.environment, Selection(ids=[numbers[2]], state="open"), "marco", "a test record")
    replay(erp.environment, ReplayRequest(Selection(ids=[numbers[3]], state="open"), "marco",
                                          values={"BusinessUnit": "NORTH"}), lambda *_: None)
    assert erp.accepted() == {"I050", "I052", "I053"}
    erp.declare(Rules(least="10.00", units=("NORTH", "WEST", "NORD")))
    erp.ingest()
    assert erp.accepted() == {"I050", "I052"}, "the replayed record counts on, the discarded one stays out"
    assert erp.refused("discarded") == {(DAYS[0], 2)} and erp.refused("replayed") == {(DAYS[0], 3)}
    assert erp.refused("open") == {(DAYS[0], 4)}
    erp.declare(Rules(least="200.00", units=("NORTH",)))
    erp.ingest()
    assert erp.accepted() == set(), "a replayed record is judged like any other"
    erp.declare(Rules())
    erp.ingest()
    assert erp.accepted() == {"I050", "I052", "I053"}
    erp.require_accounts()


def test_a_row_refused_by_a_later_rule_can_be_fixed_and_replayed(erp: Erp) -> None:
    erp.deliver(DAYS[0], [Record(amount="x"), Record(amount="5.00")])
    erp.ingest()
    erp.declare(Rules(least="10.00"))
    erp.ingest()
    (done,) = replay(erp.environment, ReplayRequest(Selection(state="open"), "marco", values={"NetAmount": "12.00"}),
                     lambda *_: None)
    assert (done.replayed, erp.accepted()) == (2, {"I050", "I051"})


@pytest.mark.parametrize(("rules", "stays"), [
    (Rules(units=("SOUTH",)), {"I052"}),
    (Rules(name_required=True), {"I050", "I052"}),
    (Rules(longest_name=4), {"I050", "I051"}),
    (Rules(below="100.00"), {"I052"}),
    (Rules(units=("NORTH", "SOUTH", "EAST"), longest_name=40), {"I050", "I051", "I052"}),
])
def test_every_kind_of_rule_is_for_what_landed_before_it(erp: Erp, rules: Rules, stays: set[str]) -> None:
    erp.deliver(DAYS[0], [Record(), Record(name=""), Record("SOUTH", "99.00", "Sons & Co")])
    erp.ingest()
    erp.declare(rules)
    erp.ingest()
    assert erp.accepted() == stays
    erp.declare(Rules())
    erp.ingest()
    assert erp.accepted() == {"I050", "I051", "I052"}


def test_batches_whose_rows_expired_are_named_not_skipped(erp: Erp) -> None:
    erp.deliver(DAYS[0], [Record(amount="5.00")])
    erp.ingest()
    with erp.database.connect(autocommit=True) as connection:
        fetch(connection, "insert into platform.raw_expiry (batch_id, tenant_id, subject, run_token, evidence_seq) "
                          "select batch_id, tenant_id, 'x', 'x', evidence_seq from platform.raw_batch", ())
    erp.declare(Rules(least="10.00"))
    done = erp.ingest()
    assert done.counts["expired_unjudged"] == 1 and done.facts["judged_again"]["expired_days"] == (DAYS[0],)
    assert erp.rows("select outcome from platform.batch_judgement") == [("expired",)]


# What no contract declares is drift, which waits for somebody; bounds and lengths are nobody's drift.
RECORDS = st.builds(Record, st.just("NORTH"), st.sampled_from(["5.00", "10.00", "90.00", "x"]),
                    st.sampled_from(["", "Firm", "Firm and Sons"]))
RULES = st.builds(
    Rules, st.just(("NORTH", "SOUTH")), st.sampled_from([None, "10.00", "50.00"]), st.sampled_from([None, "90.00"]),
    st.just(False), st.sampled_from([None, 6]), st.sampled_from(["all", "all", *(f"from {day}" for day in DAYS)]))
STEPS = st.lists(st.one_of(
    st.tuples(st.sampled_from(DAYS), st.lists(RECORDS, min_size=1, max_size=5)), RULES), min_size=2, max_size=7)


@contextmanager
def _deleted(erp: Erp) -> Iterator[Erp]:
    yield erp
    shutil.rmtree(erp.environment_of.project_dir)


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_edits_over_any_batches_split_records_as_the_rules_in_force_do(
    new_erp: Callable[[], Erp], steps: list[Any]
) -> None:
    with _deleted(new_erp()) as erp:
        erp.folder.mkdir(parents=True)
        days: dict[str, list[Record]] = {}
        versions = [erp.declared]
        for step in steps:
            if isinstance(step, Rules):
                erp.declare(step)
                versions.append(step)
            else:
                erp.deliver(*step)
                days[step[0]] = step[1]
            erp.ingest()
            under = {day: next(rules for rules in reversed(versions) if rules.cover(day)) for day in days}
            wanted = {f"I{day[-2:]}{number}" for day, records in days.items()
                      for number, record in enumerate(records) if under[day].accept(record)}
            assert erp.accepted() == wanted
            assert erp.refused("open") == {
                (day, number) for day, records in days.items()
                for number, record in enumerate(records, start=1) if not under[day].accept(record)}
        erp.require_accounts()
