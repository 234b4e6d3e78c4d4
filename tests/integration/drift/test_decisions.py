"""Decisions on drift: once, by one person, on record; and what waits is taken up where it was left."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import yaml

from barecount_assets import drift_decisions
from resources.governance import declarations, drift_register
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger
from tests.conftest import barecount
from tests.integration.drift.conftest import (
    DRIFTED,
    FIRST,
    HEADER,
    NOW,
    RECORDS,
    SECOND,
    THIRD,
    Site,
    invoices,
    schema_check,
)


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    """A site where acme's ERP has added a field."""
    made = new_site()
    made.deliver("acme", "invoices", SECOND, invoices(SECOND, discount=True))
    made.ingest_all("acme", SECOND)
    return made


def test_two_stewards_at_once_leave_one_decision(site: Site) -> None:
    (drift,) = site.drifts("acme")
    refused: list[BareCountError] = []
    first, second = site.database.connect(), site.database.connect()
    decided = drift_register.decide(first, drift.drift_id, "rejected", by="ann", reason="no", now=NOW)

    def disagree() -> None:
        try:
            drift_register.decide(second, drift.drift_id, "accepted", by="bob", reason="yes", now=NOW)
        except BareCountError as error:
            refused.append(error)

    other = threading.Thread(target=disagree)
    other.start()
    waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with psycopg.connect(site.database.admin_url, autocommit=True) as watcher:  # sees what every session waits for
        while not watcher.execute(waiting).fetchone():
            assert other.is_alive(), "the second must wait for the first"
    first.commit()
    other.join()
    assert [error.code for error in refused] == [ErrorCode.DRIFT_DECIDED]
    assert "rejected already by ann: no" in refused[0].message
    assert decided.status == "rejected"
    assert site.rows("select verdict, decided_by, reason from platform.drift_decision") == [("rejected", "ann", "no")]
    assert site.rows("select kind from platform.evidence where kind in ('drift.accepted', 'drift.rejected')") == [
        ("drift.rejected",)]
    first.close()
    second.close()


def test_a_day_that_waits_is_told_of_also_when_its_file_is_gone(site: Site) -> None:
    site.deliver("acme", "invoices", SECOND, invoices(SECOND, discount=True)).unlink()
    site.deliver("acme", "invoices", THIRD, invoices(THIRD))
    both, other = (site.ingest("acme", "invoices", *days) for days in ((SECOND, THIRD), (THIRD,)))
    check = schema_check(both)
    assert (check.passed, check.blocking, check.details["partitions"]) == (False, False, [SECOND])
    assert f"invoices_{SECOND}.csv: " in check.summary
    assert schema_check(other).passed  # a run of another day is about that day
    site.reject(site.drifts("acme")[0])
    assert schema_check(site.ingest("acme", "invoices", SECOND, THIRD)).passed


def test_a_decision_is_on_record_with_who_why_and_when_and_the_ledger_verifies(site: Site) -> None:
    site.reject(site.drifts("acme")[0])
    site.ingest("acme", "invoices", SECOND)
    (drift,) = site.drifts("acme")
    assert (drift.verdict, drift.decided_by, drift.reason, drift.decided_at) == (
        "rejected", "marco.bianchi", "nobody asked for it", NOW)
    kinds = [kind for (kind,) in site.rows(
        "select kind from platform.evidence where kind like 'drift.%' or kind like '%.released' order by seq")]
    assert kinds == ["drift.detected", "drift.rejected", "batch.released"]
    types = [type_ for (type_,) in site.rows(
        "select type from platform.event where type like '%drift%' or type like '%released' order by position")]
    assert types == ["barecount.drift.detected", "barecount.drift.rejected", "barecount.batch.released"]
    with site.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").intact
        with pytest.raises(Exception, match="append-only|permission denied"):
            connection.execute("update platform.drift_decision set reason = 'another'")


def test_an_acceptance_that_a_policy_denies_changes_nothing_and_stays_on_record(site: Site) -> None:
    shipped = site.environment.declarations
    quotas = shipped.policies["quotas"]
    deny = quotas.model_copy(update={
        "metadata": quotas.metadata.model_copy(update={"name": "frozen_contracts"}),
        "spec": quotas.spec.model_copy(update={
            "point": "contract_change",
            "rules": (quotas.spec.rules[0].model_copy(update={
                "id": "freeze", "condition": "origin == 'drift'", "effect": "deny",
                "message": "contracts are frozen"}),),
        }),
    })
    frozen = replace(site.environment, declarations=replace(
        shipped, policies={**shipped.policies, deny.name: deny}))
    (drift,) = site.drifts("acme")
    with pytest.raises(BareCountError) as refused:
        drift_decisions.accept(frozen, drift.drift_id, by="ann", reason="declared", now=NOW)
    assert refused.value.code is ErrorCode.POLICY_DENIED and "contracts are frozen" in refused.value.message
    assert [d.status for d in site.drifts("acme")] == ["open"]
    assert site.rows("select count(*) from platform.evidence where kind = 'policy.decided' and body like '%freeze%'") \
        != [(0,)]


def test_the_same_drift_in_a_later_batch_joins_and_is_decided_with_it(site: Site) -> None:
    site.deliver("acme", "invoices", THIRD, invoices(THIRD, discount=True))
    check = schema_check(site.ingest("acme", "invoices", SECOND, THIRD))
    (drift,) = site.drifts("acme")
    assert (drift.batches, drift.waiting) == (2, 2) and [str(day) for day in drift.partitions] == [SECOND, THIRD]
    assert check.details["drifts"] == [drift.drift_id]
    site.reject(drift)
    fourth = "2026-01-08"
    site.deliver("acme", "invoices", fourth, invoices(fourth, discount=True))
    assert schema_check(site.ingest("acme", "invoices", SECOND, fourth)).passed, "what was decided is not asked again"
    assert site.held("acme") == [] and len(site.drifts("acme")) == 1


def test_other_days_of_the_run_go_on_and_the_check_only_warns(site: Site) -> None:
    check = schema_check(site.ingest("acme", "invoices", FIRST, SECOND))
    assert not check.passed and not check.blocking and "other days go on" in check.summary


def test_a_held_day_that_was_normalized_before_stays_as_it_was(new_site: Callable[..., Site]) -> None:
    site = new_site()
    site.ingest_all("acme", SECOND)
    (before,) = site.rows("select batch_id from platform.raw_batch where tenant_id = 'acme' and "
                          "partition_date = $1::text::date and dataset = 'order_to_cash.invoices'", SECOND)
    with site.database.connect(autocommit=True) as connection:  # what normalization leaves
        connection.execute(
            "insert into platform.run (tenant_id, pipeline, stage, run_token, manifest_hash, code_version) "
            "values ('acme', 'order_to_cash', 'normalization', 't', '', '')")
        connection.execute(
            "insert into platform.normalized_batch (tenant_id, pipeline, batch_id, run_id, delivery_order) "
            "select tenant_id, pipeline, batch_id, (select max(run_id) from platform.run), delivery_order "
            "from platform.raw_batch where tenant_id = 'acme'")
    site.deliver("acme", "invoices", SECOND, invoices(SECOND, discount=True))
    site.ingest("acme", "invoices", SECOND)
    counted = site.rows("select batch_id from platform.counted_batch where tenant_id = 'acme' and is_current "
                        "and partition_date = $1::text::date and dataset = 'order_to_cash.invoices'", SECOND)
    assert counted == [before], "the file before counts until the new one is decided on"
    site.deliver("acme", "invoices", SECOND, invoices(SECOND))
    site.ingest("acme", "invoices", SECOND)
    assert site.held("acme") == [], "the source took it back: nothing waits"
    assert site.drifts("acme")[0].waiting == 0


def test_an_acceptance_is_written_for_review_or_into_the_contracts(site: Site, tmp_path: Path) -> None:
    proposed = site.accept(site.drifts("acme")[0])
    for path, candidate in zip(proposed.files, proposed.candidates, strict=True):
        assert path.is_relative_to(site.settings.data_dir / "contracts" / "review")
        assert yaml.safe_load(path.read_text()) == candidate.document
        assert (candidate.current_version, candidate.version) == ("1.0.0", "1.1.0")
    current = site.environment.declarations.contract("order_to_cash.invoices", "raw")
    assert current.version == "1.1.0" and current.column("discount_pct").physical_type == "numeric(18,2)"
    assert declarations.load(site.settings.project_dir).contract("order_to_cash.invoices", "raw").version == "1.0.0"


def test_a_drift_of_undecided_kind_cannot_be_decided_without_a_reason(site: Site) -> None:
    from barecount_assets import drift_decisions

    (drift,) = site.drifts("acme")
    for decide in (drift_decisions.accept, drift_decisions.reject):
        with pytest.raises(BareCountError, match="a person and a reason"):
            decide(site.environment, drift.drift_id, by="ann", reason=" ", now=NOW)
    with pytest.raises(BareCountError, match="there is no drift 99"):
        drift_decisions.reject(site.environment, 99, by="ann", reason="no", now=NOW)
    assert [d.status for d in site.drifts("acme")] == ["open"]


def test_refused_records_and_their_numbers_survive_reading_again(new_site: Callable[..., Site]) -> None:
    site = new_site()
    lines = invoices(SECOND, discount=True).splitlines(keepends=True)
    lines[3] = lines[3].replace(b"10.00", b"ten")
    lines[5] = lines[5].replace(b"NORTH", b"")
    site.deliver("acme", "invoices", SECOND, b"".join(lines))
    site.ingest("acme", "invoices", SECOND)
    query = ("select row_number, field, reason, payload from platform.quarantine q join platform.raw_batch b "
             "using (batch_id) where b.is_current order by row_number")
    before = site.rows(query)
    assert [row[:2] for row in before] == [(3, "net_amount"), (5, "business_unit")]
    site.accept(site.drifts("acme")[0])
    site.ingest("acme", "invoices", SECOND)
    assert site.rows(query) == before
    numbers = site.rows("select array_agg(_row_number order by _row_number) from raw.order_to_cash__invoices r "
                        "join platform.raw_batch b on b.batch_id = r._batch_id where b.is_current and "
                        "b.partition_date = $1::text::date", SECOND)
    assert numbers == [([1, 2, 4, *range(6, RECORDS + 1)],)]


def test_another_order_of_columns_is_noted_and_holds_nothing(new_site: Callable[..., Site]) -> None:
    site = new_site()
    site.deliver("acme", "invoices", SECOND, invoices(SECOND, order=[*HEADER[1:], HEADER[0]]))
    check = schema_check(site.ingest("acme", "invoices", SECOND))
    assert check.passed and "noted: fields come in another order" in check.summary
    assert site.held("acme") == [] and site.drifts("acme") == []


def test_the_sensor_takes_up_what_waits_once_it_is_decided(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg

    from barecount_assets.definitions import build_defs

    for name, value in {"PROJECT_DIR": site.settings.project_dir, "DATA_DIR": site.settings.data_dir,
                        "DATABASE_URL": site.database.admin_url}.items():
        monkeypatch.setenv(f"BARECOUNT_{name}", str(value))
    definitions = build_defs(site.settings.project_dir)
    sensor = definitions.resolve_sensor_def("order_to_cash__drift_decided")

    def requests() -> list[dg.RunRequest]:
        with dg.build_sensor_context(repository_def=definitions.get_repository_def()) as context:
            return list(sensor.evaluate_tick(context).run_requests)

    assert requests() == []
    drift = site.reject(site.drifts("acme")[0])
    (request,) = requests()
    assert request.partition_key == dg.MultiPartitionKey({"date": SECOND, "tenant": "acme"})
    assert request.run_key == f"drift:{drift.drift_id}:{drift.decision_seq}:acme:{SECOND}"
    assert [again.run_key for again in requests()] == [request.run_key], "asked again, it asks for the same run"
    site.ingest("acme", "invoices", SECOND)
    assert requests() == [], "the database knows that nothing waits any more"


def test_every_drifting_source_can_be_read_again_without_its_file(new_site: Callable[..., Site]) -> None:
    site = new_site()
    source, content = DRIFTED["type_changed"]
    path = site.deliver("acme", source, SECOND, content(SECOND))
    site.ingest("acme", source, SECOND)
    site.accept(site.drifts("acme")[0])
    path.unlink()
    site.ingest("acme", source, SECOND)
    values = site.rows("select distinct payment_terms_days from raw.order_to_cash__customers r "
                       "join platform.raw_batch b on b.batch_id = r._batch_id where b.is_current and "
                       "b.partition_date = $1::text::date and b.tenant_id = 'acme'", SECOND)
    assert values == [(f"{SECOND} net",)]
    assert json.loads(json.dumps(site.drifts("acme")[0].to_json()))["decision"]["verdict"] == "accepted"


def test_a_raw_table_is_rebuilt_from_objects_of_either_type(new_site: Callable[..., Site]) -> None:
    from barecount_assets.stages.ingestion import rebuild

    site = new_site()
    source, content = DRIFTED["type_changed"]
    site.deliver("acme", source, SECOND, content(SECOND))
    site.ingest("acme", source, SECOND)
    site.accept(site.drifts("acme")[0])
    site.ingest("acme", source, SECOND)
    query = "select payment_terms_days, r.* from raw.order_to_cash__customers r order by _batch_id, _row_number"
    before = site.rows(query)
    assert {row[0] for row in before} == {"14", f"{SECOND} net"}
    rebuild.rebuild(site.environment, "order_to_cash.customers", None)
    assert site.rows(query) == before


def test_the_command_lists_shows_and_decides(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROJECT_DIR": site.settings.project_dir, "DATA_DIR": site.settings.data_dir,
                        "DATABASE_URL": site.database.admin_url}.items():
        monkeypatch.setenv(f"BARECOUNT_{name}", str(value))

    def drift(*arguments: str, code: int = 0) -> str:
        result = barecount("drift", *arguments)
        assert result.exit_code == code, result.output
        return result.output

    (row,) = json.loads(drift("list", "--json"))
    number = str(row["drift_id"])
    assert (row["tenant"], row["status"], row["partitions"]) == ("acme", "open", [SECOND])
    assert "field DiscountPct was added" in drift("list") and "no drift waits" in drift("list", "--tenant", "globex")
    shown = drift("show", number)
    assert "physicalName: DiscountPct" in shown and "quarantine" in shown
    assert f"waiting    1 of 1 batches: {SECOND}" in shown
    assert "+version: 1.1.0" in drift("accept", number, "--reason", "new", "--dry-run")
    assert site.drifts("acme")[0].status == "open", "a dry run decides nothing"
    assert "--reason" in drift("reject", number, code=2)
    assert "barecount run order_to_cash --tenant acme" in drift("reject", number, "--reason", "no", "--by", "ann")
    assert "rejected already by ann: no" in drift("accept", number, "--reason", "yes", code=1)
    assert json.loads(drift("show", number, "--json"))["decision"]["by"] == "ann"
    assert "contract.drift_decided" in drift("accept", number, "--reason", "yes", "--json", code=1)


def test_an_acceptance_that_had_no_effect_is_asked_again_and_then_has_one(site: Site) -> None:
    (drift,) = site.drifts("acme")
    with site.database.connect() as connection:  # as it was decided before proposals were tried
        drift_register.decide(connection, drift.drift_id, "accepted", by="ann", reason="fine", now=NOW,
                              versions=("1.0.0", "1.0.0"))
        connection.commit()
    site.ingest("acme", "invoices", SECOND)
    newest, oldest = site.drifts("acme")
    assert (newest.status, newest.waiting, oldest.status, oldest.waiting) == ("open", 1, "accepted", 0)
    site.accept(newest)
    site.ingest("acme", "invoices", SECOND)
    assert site.held("acme") == [] and not any(each.waiting for each in site.drifts("acme"))
    with site.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").intact
