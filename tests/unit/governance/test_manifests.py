"""Manifests: sources, secrets and overrides."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from resources.governance.manifests import Pipeline
from resources.governance.sources import Encoding, FileSource, RestSource, SqlSource
from resources.host.tenants import PipelineOverride
from resources.runtime.declared import read_model
from resources.runtime.yaml_source import Finding, parse_yaml

MANIFEST = """\
apiVersion: barecount/v1
kind: Pipeline
metadata:
  name: sales
  title: Sales
  description: Orders to turnover.
  version: 1.0.0
  owners: [{name: Ann, email: ann@example.com, role: owner}]
spec:
  tenants: [acme]
  partitions: {start: 2024-01-01}
  sources:
    - name: orders
      dataset: sales.orders
      connector: files
      path: "{data_dir}/{tenant}"
      file_name: "orders_{date}*.csv"
      format: {type: csv, delimiter: ";", quote: '"', encoding: windows-1252}
    - name: totals
      dataset: sales.totals
      connector: files
      path: "{sources.orders}/../totals.parquet"
      format: {type: parquet}
    - name: rates
      dataset: sales.rates
      connector: rest
      url: https://rates.example.com/v1/{date}
      params: {base: EUR}
      headers: {X-Client: "${env:CLIENT}"}
      auth: {type: bearer, token: "${secret://rates#token}"}
      records: data.rates
      pagination: {type: page, size_param: limit, size: 100}
    - name: ledger
      dataset: sales.ledger
      connector: sql
      dsn: postgresql://reader:${env:LEDGER_PASSWORD}@ledger.example.com/books
      table: public.entries
      cursor_column: entry_id
  transforms: {engine: postgres, calendar: false, gdp: [order]}
  kpis: [turnover]
  publication: {consumers: [finance], description: Turnover.}
  runner: {class: serverless, size: small, network_profile: vpn}
  schedule: {cron: "0 5 * * *", timezone: UTC}
  retention: {raw_class: standard, raw_days: 30}
  alerts: {route: [ann@example.com]}
"""


def read(text: str) -> tuple[Pipeline | None, list[Finding]]:
    source, findings = parse_yaml(text, "sales.yaml")
    assert source is not None and findings == []
    return read_model(Pipeline, source)


@pytest.fixture
def manifest() -> Pipeline:
    manifest, findings = read(MANIFEST)
    assert findings == [] and manifest is not None
    return manifest


def test_each_source_is_read_as_its_connector_needs_it(manifest: Pipeline):
    orders, totals, rates, ledger = manifest.spec.sources
    assert isinstance(orders, FileSource) and orders.dated
    assert isinstance(totals, FileSource) and not totals.dated
    assert isinstance(rates, RestSource) and rates.dated
    assert isinstance(ledger, SqlSource) and not ledger.dated
    assert manifest.source("ledger") is ledger


def test_a_declared_format_is_what_the_files_connector_takes(manifest: Pipeline):
    from barecount_assets.stages.ingestion.connectors.csv import ENCODINGS
    from barecount_assets.stages.ingestion.connectors.files import file_format

    for source in manifest.spec.sources[:2]:
        assert isinstance(source, FileSource)
        taken = dataclasses.asdict(file_format(source.format.model_dump()))
        assert source.format.model_dump(exclude={"type"}) == taken
    assert get_args(Encoding) == ENCODINGS


def test_secrets_are_not_printed_with_a_source(manifest: Pipeline):
    assert "LEDGER_PASSWORD" not in repr(manifest.source("ledger"))
    assert "CLIENT" not in repr(manifest.source("rates"))


def test_an_override_replaces_single_fields_and_keeps_the_hash(manifest: Pipeline):
    override = PipelineOverride.model_validate_json(
        '{"schedule": {"cron": "30 6 * * *"}, "alerts": {"route": ["bob@example.com"]}}'
    )
    effective = manifest.overridden(override)
    assert effective.spec.schedule is not None and manifest.spec.schedule is not None
    assert (effective.spec.schedule.cron, effective.spec.schedule.timezone) == ("30 6 * * *", "UTC")
    assert effective.spec.alerts.route == ("bob@example.com",)
    assert effective.spec.retention == manifest.spec.retention
    assert manifest.spec.schedule.cron == "0 5 * * *"
    assert effective.hash == manifest.hash
    assert manifest.overridden(None) is manifest


REST = "https://rates.example.com/v1/{date}"


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ("{data_dir}/{tenant}", "{data_dir}/{tenat}", "spec.sources[0].path", "did you mean 'tenant'?"),
        ("{data_dir}/{tenant}", "{data_dir/{tenant}", "spec.sources[0].path", "brace without its partner"),
        ("{sources.orders}", "{sources.order}", "spec.sources[1].path", "did you mean 'orders'?"),
        ("{data_dir}/{tenant}", "{sources.totals}", "spec.sources[0].path", "leads back to itself"),
        ("orders_{date}*", "orders_{day}*", "spec.sources[0].file_name", "unknown placeholder"),
        ("windows-1252", "utf-16", "spec.sources[0].format.encoding", "not one of the choices"),
        ('quote: \'"\'', 'quote: ";"', "spec.sources[0].format.quote", "quote is the delimiter"),
        ("delimiter: \";\"", "delimiter: \";;\"", "spec.sources[0].format.delimiter", "wrong form"),
        ("{type: parquet}", "{type: parquet, header: true}", "spec.sources[1].format.header", "unknown key"),
        ("{type: parquet}", "{type: orc}", "spec.sources[1].format.type", "not one of the choices"),
        ("name: totals", "name: orders", "spec.sources[1].name", "named twice"),
        ("dataset: sales.totals", "dataset: sales.orders", "spec.sources[1].dataset", "named twice"),
        ("dataset: sales.totals", "dataset: totals", "spec.sources[1].dataset", "wrong form"),
        (REST, "ftp://rates.example.com", "spec.sources[2].url", "not a web address"),
        (REST, "https://u:p@rates.example.com", "spec.sources[2].url", "holds a user or password"),
        (REST, "https://{date}.example.com/", "spec.sources[2].url", "host holds a placeholder"),
        (REST, "https://rates.example.com/{day}", "spec.sources[2].url", "unknown placeholder"),
        (REST, "https://rates.example.com/${env:KEY}", "spec.sources[2].url", "holds a reference"),
        ("{base: EUR}", "{since: '{cursor}'}", "spec.sources[2].url", "both dated and incremental"),
        (REST, "https://rates.example.com/{cursor}", "spec.sources[2].incremental", "need each other"),
        ("{base: EUR}", "{base: '{currency}'}", "spec.sources[2].params.base", "unknown placeholder"),
        ("${secret://rates#token}", "s3cr3t", "spec.sources[2].auth.token", "a secret's value"),
        ("${env:CLIENT}", "${CLIENT}", "spec.sources[2].headers.X-Client", "not a reference"),
        ("size_param: limit, ", "", "spec.sources[2].pagination.size", "without size_param"),
        ("${env:LEDGER_PASSWORD}", "s3cr3t", "spec.sources[3].dsn", "holds a password"),
        ("postgresql://reader:${env:LEDGER_PASSWORD}@", "", "spec.sources[3].dsn", "not a database URL"),
        ("table: public.entries", "table: a.b.c", "spec.sources[3].table", "wrong form"),
        ("      table: public.entries\n", "", "spec.sources[3].table", "one of table and query"),
        ("table: public.entries", "table: entries\n      query: select 1", "spec.sources[3].table", "found both"),
        ("connector: sql", "connector: sql\n      delivers: full", "spec.sources[3].delivers", "never all there is"),
        ("connector: sql", "connector: sql\n      delivers: everything", "spec.sources[3].delivers", "choices"),
        ("connector: rest", "connector: rest\n      delivers: full", "spec.sources[2].delivers", "read day by day"),
        ("name: totals", "name: totals\n      delivers: partition", "spec.sources[1].delivers", "has no {date}"),
        ("name: totals", "name: totals\n      max_shrink: 0.3", "spec.sources[1].max_shrink", "only what is complete"),
        ("name: orders", "name: orders\n      delivers: snapshot\n      max_shrink: 1.5",
         "spec.sources[0].max_shrink", "out of bounds"),
        ("name: orders", "name: orders\n      parts: newest", "spec.sources[0].parts", "is one unit"),
        ("name: totals", "name: totals\n      delivers: snapshot\n      parts: newest",
         "spec.sources[1].parts", "one unit"),
        ("name: orders", "name: orders\n      operations: {column: op, insert: [c], delete: [d], befor: [b]}",
         "spec.sources[0].operations.befor", "did you mean 'before'?"),
        ("name: orders", "name: orders\n      operations: {column: op, insert: [c, d], delete: [d]}",
         "spec.sources[0].operations.delete[0]", "a value of insert too"),
        ("name: orders", "name: orders\n      operations: {column: op, delete: [d]}",
         "spec.sources[0].operations.insert", "no value says what an entity is"),
        ("connector: sql", "connector: odbc", "spec.sources[3].connector", "not one of the choices"),
        ("start: 2024-01-01", "start: 2024-01-01, end: 2023-12-31", "spec.partitions.end", "ends before it begins"),
        ("tenants: [acme]", "tenants: [acme, acme]", "spec.tenants[1]", "named twice"),
        ("gdp: [order]", "gdp: []", "spec.transforms.gdp", "out of bounds"),
        ("engine: postgres", "engine: oracle", "spec.transforms.engine", "not one of the choices"),
        ("class: serverless", "class: lambda", "spec.runner.class", "not one of the choices"),
        ("raw_days: 30", "raw_days: 30.5", "spec.retention.raw_days", "whole number"),
        ("0 5 * * *", "0 5 * *", "spec.schedule.cron", "4 fields"),
        ("version: 1.0.0", "version: 1.0", "metadata.version", "found 1.0"),
        ("role: owner", "role: steward", "metadata.owners", "nobody is the owner"),
    ],
)  # fmt: skip
def test_what_a_manifest_may_not_say_is_refused_at_its_field(old: str, new: str, field: str, words: str):
    assert MANIFEST.count(old) == 1
    manifest, findings = read(MANIFEST.replace(old, new))
    assert manifest is None
    found = [finding for finding in findings if finding.field == field]
    assert len(found) == 1, findings
    assert words in str(found[0])
    assert "s3cr3t" not in "".join(map(str, findings))
