"""Lineage of whole runs: OpenLineage events by the published schemas, and a graph that leads to the sources."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from barecount_assets.definitions import build_defs
from resources.governance import lineage_store, openlineage
from tests.lifecycle.conftest import PROJECT, Sales

SCHEMAS = Path(os.environ.get("BARECOUNT_SHARED_SCHEMAS", PROJECT.parent / "shared" / "schemas")) / "openlineage"


@pytest.fixture(scope="module")
def published_schemas() -> Registry:
    if not SCHEMAS.is_dir():
        pytest.skip(f"the published schemas are not at {SCHEMAS}; set BARECOUNT_SHARED_SCHEMAS")
    documents = [json.loads(path.read_text()) for path in SCHEMAS.rglob("*.json")]
    return Registry().with_resources((document["$id"], Resource.from_contents(document)) for document in documents)


def events_of(sales: Sales, tenant: str) -> list[dict[str, Any]]:
    rows = sales.project.rows(
        "select body, occurred_at from platform.lineage_event where tenant_id = $1 order by position", tenant)
    return [openlineage.at(body, occurred_at) for body, occurred_at in rows]


def facets_of(event: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    places = [event["run"]["facets"], event["job"]["facets"]]
    for dataset in (*event["inputs"], *event["outputs"]):
        places += [dataset.get(name, {}) for name in ("facets", "inputFacets", "outputFacets")]
    return [item for place in places for item in place.items()]


def test_every_event_and_facet_keeps_the_published_schemas(sales: Sales, published_schemas: Registry) -> None:
    event_schema = Draft202012Validator({"$ref": openlineage.SCHEMA}, registry=published_schemas,
                                        format_checker=Draft202012Validator.FORMAT_CHECKER)
    seen: Counter[str] = Counter()
    for event in events_of(sales, "acme") + events_of(sales, "globex"):
        event_schema.validate(event)
        for name, facet in facets_of(event):
            Draft202012Validator({"$ref": facet["_schemaURL"]}, registry=published_schemas).validate(facet)
            seen[name] += 1
    assert set(seen) >= {"schema", "columnLineage", "dataQualityAssertions", "version", "ownership", "tags",
                         "inputStatistics", "outputStatistics", "jobType", "nominalTime", "barecount_run"}


def test_every_stage_run_tells_its_start_and_its_end_once(sales: Sales) -> None:
    by_job: dict[str, list[str]] = {}
    for event in events_of(sales, "acme"):
        by_job.setdefault(event["job"]["name"], []).append(event["eventType"])
    stages = [f"ingestion.{source}" for source in ("invoices", "payments", "customers")]
    assert by_job == {f"order_to_cash.{stage}": ["START", "COMPLETE"]
                      for stage in (*stages, "calendar", "normalization", "kpi_build", "publish")}


def test_events_count_what_was_read_and_written_and_refer_to_the_evidence(sales: Sales) -> None:
    (ingested,) = [event for event in events_of(sales, "acme")
                   if event["job"]["name"] == "order_to_cash.ingestion.invoices" and event["eventType"] == "COMPLETE"]
    received, accepted = sales.project.rows(
        "select sum(received)::int, sum(accepted)::int from platform.raw_batch "
        "where tenant_id = 'acme' and dataset = 'order_to_cash.invoices'")[0]
    assert ingested["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] == received
    assert ingested["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == accepted
    run = ingested["run"]["facets"]["barecount_run"]
    assert sales.project.value(
        "select run_token from platform.evidence where tenant_id = 'acme' and seq = $1", run["evidence"]
    ) == run["runToken"]
    assert all("globex" not in json.dumps(event) for event in events_of(sales, "acme"))


def test_the_graph_of_a_tenant_leads_from_a_published_value_to_the_fields_of_the_sources(sales: Sales) -> None:
    with sales.project.database.connect(autocommit=True) as connection:
        edges = lineage_store.edges(connection, "acme")
    on: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for edge in edges:
        on.setdefault((edge.asset, edge.column), set()).add((edge.on.asset, edge.on.column))
    reached, waiting = set(), [("published.dso", "value")]
    while waiting:
        for source in on.get(waiting.pop(), ()):
            if source not in reached:
                reached.add(source)
                waiting.append(source)
    assert {("source.order_to_cash.payments", "amount"), ("source.order_to_cash.invoices", "GrossAmount"),
            ("gdp.calendar", "month_end"), ("gdp.invoice_payment", "amount")} <= reached


def test_the_sensor_sends_every_event_once(sales: Sales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = tmp_path / "events.jsonl"
    for name, value in {**sales.project.variables, "BARECOUNT_LINEAGE": f"file:{sent}"}.items():
        monkeypatch.setenv(name, value)
    sensor = build_defs().get_repository_def().get_sensor_def("lineage_relay")
    for _ in range(2):
        sensor.evaluate_tick(dg.build_sensor_context())
    assert len(sent.read_text().splitlines()) == len(events_of(sales, "acme")) + len(events_of(sales, "globex"))
    monkeypatch.setenv("BARECOUNT_LINEAGE", "none")
    assert "names no transport" in (sensor.evaluate_tick(dg.build_sensor_context()).skip_message or "")


def test_dagster_shows_what_the_columns_of_an_asset_are_computed_from() -> None:
    key = dg.AssetKey(["kpi", "order_to_cash", "revenue"])
    lineage = build_defs(PROJECT).resolve_asset_graph().get(key).metadata["dagster/column_lineage"]
    assert [(dep.asset_key.path, dep.column_name) for dep in lineage.deps_by_column["value"]] == [
        (["gdp", "order_to_cash", "invoice_settlement"], "net_amount")]


def test_obligations_were_judged_before_the_publication(sales: Sales) -> None:
    judged = dict(sales.project.rows(
        "select obligation, status from platform.obligation_result where tenant_id = 'acme' order by evidence_seq"))
    assert judged == {
        "assets_have_a_domain": "pass", "confidential_off_public_runners": "pass", "confidential_stays_inside": "pass",
        "published_provenance": "pass", "order_to_cash_is_fresh": "warn",
    }
    first_publication = sales.project.value(
        "select min(evidence_seq) from platform.publication where tenant_id = 'acme'")
    assert sales.project.value(
        "select max(evidence_seq) from platform.obligation_result where tenant_id = 'acme'") < first_publication
