"""Every class of drift under every decision, for two tenants: nothing goes on before it, and then what was decided."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.drift.conftest import CLASSES, DRIFTED, RECORDS, SECOND, TENANTS, Site, schema_check

ALL = {"invoices", "payments", "customers"}


def drifted(site: Site, kind: str) -> str:
    """Both tenants ingest a day of which one source drifted; returns the source."""
    source, content = DRIFTED[kind]
    for tenant in TENANTS:
        assert site.held(tenant) == [], "another tenant's drift holds nobody"
        site.deliver(tenant, source, SECOND, content(SECOND))
        site.ingest_all(tenant, SECOND)
        check = schema_check(site.ingest(tenant, source, SECOND))
        assert not check.passed and check.blocking, "nothing behind it runs"
        (drift,) = site.drifts(tenant)
        assert [change.kind for change in drift.blocking] == [kind]
        assert drift.status == "open" and str(drift.blocking[0]) in check.summary
        assert f"barecount drift show {drift.drift_id}" in check.summary
        landed = site.rows("select received, accepted + quarantined from platform.raw_batch where tenant_id = $1 "
                           "and dataset = $2 and partition_date = $3::text::date", tenant, drift.dataset, SECOND)
        assert landed == [(RECORDS, RECORDS)], "the data lands always"
        assert site.held(tenant) == [SECOND]
        assert site.counted(tenant, SECOND) == set(), "also the sound sources of that day wait"
        assert site.counted(tenant, "2026-01-05") == ALL, "other days do not"
    assert site.rows("select 1 from platform.stage_run where stage <> 'ingestion'") == []
    kinds = site.rows("select kind, count(*) from platform.evidence where kind like 'drift.%' group by 1")
    assert kinds == [("drift.detected", 2)]
    assert site.rows("select type, count(*) from platform.event where type like '%drift%' group by 1") == [
        ("barecount.drift.detected", 2)]
    return source


def batch(site: Site, tenant: str, source: str) -> dict:
    (found,) = site.dicts(
        "select * from platform.raw_batch where tenant_id = $1 and dataset = $2 and partition_date = $3::text::date "
        "and is_current", tenant, f"order_to_cash.{source}", SECOND)
    return found


@pytest.mark.parametrize("kind", CLASSES)
def test_an_accepted_drift_becomes_the_contract_and_the_batch_is_read_again(
    new_site: Callable[..., Site], kind: str
) -> None:
    site = new_site()
    source = drifted(site, kind)
    (drift,) = site.drifts("acme")
    before = batch(site, "acme", source)
    stored = site.environment.raw_store.sha256(before["object_key"])
    done = site.accept(drift)
    assert {path.name for path in done.files} == {"raw.yaml"} if kind == "enum_grown" else {
        "raw.yaml", "extraction.yaml"} >= {path.name for path in done.files}
    assert site.held("acme") == [SECOND], "a decision moves nothing by itself"

    for tenant in TENANTS:  # the other's open drift is settled by the contract that both of them have
        receipt = site.ingest(tenant, source, SECOND)
        assert receipt.changed and schema_check(receipt).passed, schema_check(receipt).summary
        assert site.held(tenant) == [] and site.counted(tenant, SECOND) == ALL
        again = batch(site, tenant, source)
        assert again["supersedes"] is not None and (again["accepted"], again["quarantined"]) == (RECORDS, 0)
        assert not site.ingest(tenant, source, SECOND).changed
    after = batch(site, "acme", source)
    assert after["supersedes"] == before["batch_id"] and after["content_sha256"] == before["content_sha256"]
    assert after["contract_version"] != before["contract_version"]
    assert site.environment.raw_store.sha256(before["object_key"]) == stored, "the raw object is untouched"
    assert [d.status for tenant in TENANTS for d in site.drifts(tenant)] == ["accepted", "settled"]
    if kind == "field_added":
        values = site.rows("select discount_pct::text, _extra from raw.order_to_cash__invoices where _batch_id = $1 "
                           "order by _row_number", after["batch_id"])
        assert values == [(None, None), *((f"{number}.50", None) for number in range(1, RECORDS))]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_rejected_part_is_in_quarantine_and_the_rest_goes_on(new_site: Callable[..., Site], kind: str) -> None:
    site = new_site("quarantine_part")
    source = drifted(site, kind)
    for tenant, other in zip(TENANTS, ([SECOND], []), strict=True):
        before = batch(site, tenant, source)
        (drift,) = site.drifts(tenant)
        assert site.reject(drift).status == "rejected"
        receipt = site.ingest(tenant, source, SECOND)
        assert receipt.changed and schema_check(receipt).passed
        assert "conforming by decision" in schema_check(receipt).summary
        assert batch(site, tenant, source)["batch_id"] == before["batch_id"]
        assert site.held(tenant) == [] and site.counted(tenant, SECOND) == ALL
        assert site.held("globex") == other, "the other tenant's decision is the other tenant's"
        refused = site.rows("select stage, count(*) from platform.quarantine where batch_id = $1 group by 1",
                            before["batch_id"])
        expected = {"field_added": [("drift", RECORDS - 1)], "enum_grown": [("ingestion", 1)], "semantic_hint": []}
        assert refused == expected.get(kind, [("ingestion", RECORDS)])
        assert all(check.passed for check in receipt.checks if check.name == "nothing_lost")


@pytest.mark.parametrize("kind", CLASSES)
def test_a_held_batch_stays_out_and_the_rest_of_its_day_goes_on(new_site: Callable[..., Site], kind: str) -> None:
    site = new_site("hold_batch")
    source = drifted(site, kind)
    for tenant in TENANTS:
        (drift,) = site.drifts(tenant)
        assert site.reject(drift).status == "held"
        receipt = site.ingest(tenant, source, SECOND)
        assert receipt.changed and "kept out by decision" in schema_check(receipt).summary
        assert site.held(tenant) == []
        assert site.counted(tenant, SECOND) == ALL - {source}
        assert not site.ingest(tenant, source, SECOND).changed
