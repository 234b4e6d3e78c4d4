"""What normalization refused once is settled by the rules of a later run, record by record."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import psycopg

from barecount_assets.stages import execute, quarantine_life
from barecount_assets.stages.environment import StageEnvironment
from resources.runners.stage import Placement, Stage, StageSpec, iso_window
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.trust import ledger
from tests.integration.storage.test_retention import HEADER

DAY = dt.date(2026, 1, 5)
MODEL = "invoice_settlement"
REFUSE = """
insert into platform.quarantine (tenant_id, pipeline, dataset, stage, batch_id, source_id, row_number, field, reason,
    message, payload, run_token)
select 'acme', 'order_to_cash', 'order_to_cash.invoices', 'normalization', batch_id, source_id, $1, $2, $3, $3, '{}', $4
from platform.raw_batch
"""


def ingested(settings: Settings, database: Database, folder: Path) -> None:
    folder.mkdir()
    line = f"I1;C1;Firm;NORTH;{DAY};2026-02-19;GBP;100.00;20.00;120.00;{DAY} 12:00:00"
    (folder / f"invoices_{DAY}.csv").write_text(f"{HEADER}\n{line}\n")
    execute(StageSpec(
        Stage.INGESTION, "acme", "order_to_cash", Placement("container", "medium", "private_vpc"), "invoices",
        iso_window(DAY, DAY), {"invoices": str(folder)}), lambda *_: None, StageEnvironment.using(settings, database))


def test_a_record_is_accepted_refused_again_under_another_rule_or_still_open(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    ingested(settings, database, tmp_path / "erp")
    with psycopg.connect(database.admin_url, autocommit=True) as owner:  # what dbt leaves: who is refused now, by what
        owner.execute(f"create table gdp.{MODEL}__rejected (tenant_id text, batch_id bigint, row_number bigint, rule "
                      "text)")
        owner.execute(f"grant select on gdp.{MODEL}__rejected to barecount_platform")
        owner.execute(
            f"insert into gdp.{MODEL}__rejected select 'acme', batch_id, v.n, v.rule from platform.raw_batch, "
            "(values (2, 'amount_positive'), (3, 'due_after_invoice')) as v(n, rule)")
    with database.connect(autocommit=True) as connection:
        for row, rule, run in ((1, "amount_positive", "then"), (2, "amount_positive", "then"),
                               (3, "amount_positive", "then"), (3, "due_after_invoice", "now")):
            fetch(connection, REFUSE, (row, MODEL, rule, run))
        run_id = fetch(connection, 
                       "insert into platform.run (tenant_id, pipeline, stage, run_token, manifest_hash, code_version) "
                       "values ('acme', 'order_to_cash', 'normalization', 'now', 'm', 'c') returning run_id")[0][0]

        def settle() -> int:
            with connection.transaction():
                return quarantine_life.settle_accepted(
                    connection, "acme", "order_to_cash", [MODEL, "customer"], "now", run_id)

        assert settle() == 2
        assert fetch(connection, "select row_number, reason, state, into_run = $1, again_id is not null "
                     "from platform.quarantine_record order by quarantine_id", (run_id,)) == [
            (1, "amount_positive", "replayed", True, False), (2, "amount_positive", "open", None, False),
            (3, "amount_positive", "refused_again", True, True), (3, "due_after_invoice", "open", None, False)]
        assert fetch(connection, "select records::int, decided_by, reason from platform.quarantine_decision") == [
            (2, quarantine_life.PLATFORM, "the rules changed")]
        assert settle() == 0, "once"
        assert ledger.verify(connection, "acme").findings == ()
