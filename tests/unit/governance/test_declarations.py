"""Everything declared, held against itself: one broken project per row, each error at its file, line and field."""

from __future__ import annotations

import pytest

from resources.data_utilities.calendar import CalendarSettings
from resources.runtime.errors import BareCountError, ErrorCode

# The files of the small project, by the names conftest.py gives them.
TENANT = "contracts/tenants/acme.yaml"
PIPELINE = "contracts/pipelines/sales.yaml"
KPI = "contracts/kpis/sales/turnover.yaml"
EXTRACTION = "contracts/datasets/sales/orders/extraction.yaml"
RAW = "contracts/datasets/sales/orders/raw.yaml"
GOLD = "contracts/datasets/sales/order/gold.yaml"
ACTIVATION = "contracts/datasets/sales/turnover/activation.yaml"
DBT_PROJECT = "dbt_project/dbt_project.yml"
DBT_GDP = "dbt_project/models/gdp/sales/order.yml"
DBT_KPI = "dbt_project/models/kpi/turnover.yml"
SQL_GDP = "dbt_project/models/gdp/sales/order.sql"
SQL_KPI = "dbt_project/models/kpi/turnover.sql"

COLUMNS = "schema[0].properties"


def test_a_project_without_errors_has_no_findings(project):
    assert project.check() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        # --- within a file
        (TENANT, "status: active", "status: actve", [(TENANT, 5, "spec.status", "not one of the choices")]),
        (TENANT, "kind: Tenant", "kind: Tenant\nkind: Tenant", [(TENANT, 3, "kind", "first one is on line 2")]),
        (TENANT, "  region: eu-west-2\n", "", [(TENANT, 4, "spec.region", "required")]),
        (TENANT, "timezone: Europe/London", "timezone: Europe/Lundon", [(TENANT, 8, "spec.timezone", "unknown time")]),
        (TENANT, "country: GB", "country: XX", [(TENANT, 10, "spec.calendar.country", "'XX'")]),
        (TENANT, "subdivision: ENG", "subdivision: XYZ", [(TENANT, 11, "spec.calendar.subdivision", "ENG, NIR, SCT")]),
        (TENANT, "30 6 * * *", "30 25 * * *", [(TENANT, 19, "spec.overrides.sales.schedule.cron", "hour '25'")]),
        (TENANT, "schedule: {cron", "runner: {cron", [(TENANT, 19, "spec.overrides.sales.runner", "unknown key")]),
        (PIPELINE, "delimiter", "delimeter", [(PIPELINE, 20, "spec.sources[0].format.delimeter", "mean 'delimiter'?")]),
        (PIPELINE, "{tenant}", "{tenat}", [(PIPELINE, 18, "spec.sources[0].path", "did you mean 'tenant'?")]),
        (PIPELINE, "timezone: UTC", "timezone: UTX", [(PIPELINE, 30, "spec.schedule.timezone", "unknown time zone")]),
        (PIPELINE, "spec:\n", "specs:\n", [(PIPELINE, 1, "spec", "required"), (PIPELINE, 11, "specs", "mean 'spec'?")]),
        (PIPELINE, "spec:\n", "\tspec:\n", [(PIPELINE, 11, "", "not valid YAML")]),
        (KPI, "max: 100", "max: -1", [(KPI, 20, "spec.thresholds.value.max", "below min")]),
        (KPI, "grain: month", "grain: day", [(KPI, 23, "spec.reconciliation.grain", "no such grain")]),
        (KPI, '"{date}"', '"{period}"', [(KPI, 24, "spec.reconciliation.key.format", "{date} once")]),
        (RAW, "role: owner", "role: boss", [(RAW, 33, "team", "one owner")]),
        # --- names and places
        (
            TENANT, "id: acme", "id: acne",
            [(TENANT, 3, "metadata.id", "not the name of the file"), (TENANT, 18, "spec.overrides.sales", "not serve")],
        ),
        (PIPELINE, "name: sales", "name: sale", [(PIPELINE, 4, "metadata.name", "not the name of the file")]),
        (
            KPI, "pipeline: sales", "pipeline: sale",
            [(KPI, 5, "metadata.pipeline", "folder of another"), (KPI, 5, "metadata.pipeline", "unknown pipeline")],
        ),
        (RAW, "value: sales.orders", "value: sales.order", [(RAW, 40, "customProperties[0].value", "is not that")]),
        (RAW, "id: sales.orders.raw", "id: sales.orders.extraction", [(RAW, 3, "id", f"the id of {EXTRACTION}")]),
        # --- tenants and pipelines
        (TENANT, "    sales:", "    saels:", [(TENANT, 18, "spec.overrides.saels", "did you mean 'sales'?")]),
        (
            PIPELINE, "tenants: [acme]", "tenants: [acne]",
            [(PIPELINE, 12, "spec.tenants[0]", "mean 'acme'?"), (TENANT, 18, "spec.overrides.sales", "does not serve")],
        ),
        (
            PIPELINE, '  schedule: {cron: "0 5 * * *", timezone: UTC}\n', "",
            [(TENANT, 19, "spec.overrides.sales.schedule", "no schedule that could be overridden")],
        ),
        # --- manifests, contracts and models
        (
            PIPELINE, "connector: files", "connector: files\n      deleted: {column: regoin, values: [gone]}",
            [(PIPELINE, 18, "spec.sources[0].deleted.column", "did you mean 'region'?")],
        ),
        (
            PIPELINE, "connector: files", "connector: files\n      deleted: {column: region, values: [true]}",
            [(PIPELINE, 18, "spec.sources[0].deleted.values[0]", "text, in quotes")],
        ),
        (
            PIPELINE, "connector: files", "connector: files\n      deleted: {column: region}",
            [(PIPELINE, 18, "spec.sources[0].deleted.column", "wrong type")],
        ),
        (
            PIPELINE, "connector: files",
            "connector: files\n      operations: {column: regio, insert: [c], delete: [d], sequence: order_no}",
            [
                (PIPELINE, 18, "spec.sources[0].operations.column", "did you mean 'region'?"),
                (PIPELINE, 18, "spec.sources[0].operations.sequence", "wrong type"),
            ],
        ),
        (
            PIPELINE, "dataset: sales.orders", "dataset: sales.returns",
            [
                (KPI, 22, "spec.reconciliation.system_of_record", "no source of pipeline sales"),
                (PIPELINE, 16, "spec.sources[0].dataset", "no extraction contract"),
                (PIPELINE, 16, "spec.sources[0].dataset", "no raw contract"),
            ],
        ),
        (
            PIPELINE, "gdp: [order]", "gdp: [order, refund]",
            [
                (PIPELINE, 24, "spec.transforms.gdp[1]", "no dbt model builds it"),
                (PIPELINE, 24, "spec.transforms.gdp[1]", "no gold contract"),
            ],
        ),
        (
            PIPELINE, "kpis: [turnover]", "kpis: [turnove]",
            [(KPI, 4, "metadata.name", "not in spec.kpis"), (PIPELINE, 25, "spec.kpis[0]", "did you mean 'turnover'?")],
        ),
        (PIPELINE, "calendar: true", "calendar: false", [(KPI, 18, "spec.calendar", "needs the calendar")]),
        # --- KPIs
        (KPI, "gdp: order", "gdp: ordr", [(KPI, 17, "spec.depends_on[0].gdp", "did you mean 'order'?")]),
        (
            KPI, "date_column: ordered_on", "date_column: order_on",
            [(KPI, 17, "spec.depends_on[0].date_column", "did you mean 'ordered_on'?")],
        ),
        (
            KPI, "date_column: ordered_on", "date_column: region",
            [(KPI, 17, "spec.depends_on[0].date_column", "has the wrong type")],
        ),
        (
            KPI, "dimensions: [region]", "dimensions: []",
            [
                (ACTIVATION, 43, f"{COLUMNS}[6].name", "column is not in the KPI table"),
                (DBT_KPI, 5, "models[0].config.meta.grains", "computes other grains"),
            ],
        ),
        (
            KPI, "source: order_no", "source: orderno",
            [(KPI, 24, "spec.reconciliation.key.source", "did you mean 'order_no'?")],
        ),
        (KPI, "value: amount", "value: region", [(KPI, 25, "spec.reconciliation.value", "has the wrong type")]),
        # --- columns against columns
        (
            RAW, "name: region", "name: area",
            [(RAW, 12, COLUMNS, "column region"), (RAW, 23, f"{COLUMNS}[2].name", "not in the extraction contract")],
        ),
        (
            RAW, "physicalType: numeric(18,2)", "physicalType: numeric(18,3)",
            [(RAW, 30, f"{COLUMNS}[3].physicalType", 'found "numeric(18,3)", allowed numeric(18,2)')],
        ),
        (
            RAW, "name: region\n", "name: region\n        physicalName: Region\n",
            [(RAW, 24, f"{COLUMNS}[2].physicalName", "another name in the extraction contract")],
        ),
        (
            DBT_GDP, "{name: amount, data_type: 'numeric(18,2)'}", "{name: amount, data_type: 'numeric(18,3)'}",
            [(DBT_GDP, 7, "models[0].columns[3].data_type", "another type in the gold contract")],
        ),
        (
            DBT_GDP, "{name: amount, data_type: 'numeric(18,2)'}", "{name: amount}",
            [(DBT_GDP, 7, "models[0].columns[3].data_type", "found no type")],
        ),
        (
            DBT_GDP, "name: order_no, data_type: 'text'", "name: orderno, data_type: 'text'",
            [
                (DBT_GDP, 3, "models[0].columns", "column order_no of the gold contract of sales.order is missing"),
                (DBT_GDP, 4, "models[0].columns[0].name", "did you mean 'order_no'?"),
            ],
        ),
        (
            DBT_GDP,
            "{name: ordered_on, data_type: 'date'}\n      - {name: region, data_type: 'text'}",
            "{name: region, data_type: 'text'}\n      - {name: ordered_on, data_type: 'date'}",
            [(DBT_GDP, 5, "models[0].columns[1].name", "another order")],
        ),
        (
            DBT_GDP, "      - {name: row_hash, data_type: 'bytea'}\n", "",
            [(DBT_GDP, 3, "models[0].columns", "column row_hash, which the platform needs, is missing")],
        ),
        (
            DBT_GDP, "row_hash, data_type: 'bytea'", "row_hash, data_type: 'text'",
            [(DBT_GDP, 9, "models[0].columns[5].data_type", "another type than the platform's")],
        ),
        (
            DBT_GDP, "- name: order\n", "- name: order\n    config: {contract: {enforced: false}}\n",
            [(DBT_GDP, 3, "models[0].config.contract.enforced", "does not enforce")],
        ),
        (
            DBT_PROJECT, "true", "false",
            [
                (DBT_GDP, 2, "models[0].config.contract.enforced", "does not enforce"),
                (DBT_KPI, 3, "models[0].config.contract.enforced", "does not enforce"),
            ],
        ),
        (DBT_GDP, "- name: order\n", "- name: ordr\n", [(PIPELINE, 24, "spec.transforms.gdp[0]", "no YAML contract")]),
    ],
)  # fmt: skip
def test_each_error_is_found_at_its_file_line_and_field(project, file, old, new, expected):
    project.replace(file, old, new)
    findings = project.check()
    assert [(f.file, f.line, f.field) for f in findings] == [(file, line, field) for file, line, field, _ in expected]
    for finding, (*_, words) in zip(findings, expected, strict=True):
        assert words in str(finding)


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        (TENANT, [(PIPELINE, 12, "spec.tenants[0]")]),
        (PIPELINE, [(KPI, 5, "metadata.pipeline"), (TENANT, 18, "spec.overrides.sales")]),
        (KPI, [(PIPELINE, 25, "spec.kpis[0]")]),
        (EXTRACTION, [(PIPELINE, 16, "spec.sources[0].dataset")]),
        (RAW, [(PIPELINE, 16, "spec.sources[0].dataset")]),
        (GOLD, [(PIPELINE, 24, "spec.transforms.gdp[0]")]),
        (ACTIVATION, [(PIPELINE, 25, "spec.kpis[0]")]),
        (SQL_GDP, [(KPI, 17, "spec.depends_on[0].gdp"), (PIPELINE, 24, "spec.transforms.gdp[0]")]),
        (SQL_KPI, [(PIPELINE, 25, "spec.kpis[0]")]),
        (DBT_GDP, [(PIPELINE, 24, "spec.transforms.gdp[0]")]),
    ],
)
def test_a_missing_file_is_reported_where_it_is_asked_for(project, removed, expected):
    project.remove(removed)
    assert [(f.file, f.line, f.field) for f in project.check()] == expected


@pytest.mark.parametrize("broken", [TENANT, PIPELINE, KPI, EXTRACTION, RAW, GOLD, ACTIVATION])
def test_a_file_broken_in_itself_is_not_reported_again_by_those_that_refer_to_it(project, broken):
    project.write(broken, "a: [")
    assert {finding.file for finding in project.check()} == {broken}


def test_errors_of_several_files_come_at_once_in_order_of_file_and_line(project):
    project.replace(TENANT, "status: active", "status: actve")
    project.replace(KPI, "gdp: order", "gdp: ordr")
    project.replace(RAW, "status: active", "status: live")
    project.write("contracts/pipelines/other.yaml", b"\xff")
    found = [(finding.file, finding.line) for finding in project.check()]
    assert found == [(RAW, 6), (KPI, 17), ("contracts/pipelines/other.yaml", 1), (TENANT, 5)]


@pytest.mark.parametrize(
    "misplaced",
    ["contracts/tenants/acme.yml", "contracts/kpis/turnover.yaml", "contracts/datasets/sales/orders.yaml"],
)
def test_a_file_that_lies_where_nobody_reads_it_is_reported(project, misplaced):
    project.write(misplaced, "a: 1\n")
    findings = project.check()
    assert [finding.file for finding in findings] == [misplaced]
    assert "not read" in findings[0].message


def test_a_contract_of_an_unknown_layer_is_reported(project):
    project.write("contracts/datasets/sales/orders/rew.yaml", "a: 1\n")
    assert ["did you mean 'raw'?" in str(finding) for finding in project.check()] == [True]


def test_two_kpis_of_one_name_are_reported_although_their_pipelines_differ(project):
    project.write("contracts/kpis/other/turnover.yaml", (project.root / KPI).read_bytes())
    findings = project.check()
    assert ("contracts/kpis/sales/turnover.yaml", 4, "metadata.name") in [(f.file, f.line, f.field) for f in findings]


def test_two_pipelines_may_not_fill_one_dataset_nor_build_one_model(project):
    manifest = (project.root / PIPELINE).read_text().replace("name: sales", "name: second", 1)
    project.write("contracts/pipelines/second.yaml", manifest)
    findings = [f for f in project.check() if f.file == "contracts/pipelines/second.yaml"]
    words = [finding.message for finding in findings]
    assert f"the dataset is ingested by {PIPELINE}" in words
    assert f"the model belongs to {PIPELINE}" in words


def test_a_project_without_contracts_says_so(tmp_path, project):
    for folder in ("contracts", "dbt_project"):
        (project.root / folder).rename(project.root / f"{folder}.gone")
    assert ["nothing is declared" in str(finding) for finding in project.check()] == [True]


# --- what is loaded ---------------------------------------------------------------------------------------


def test_loading_refuses_with_every_finding(project):
    project.replace(TENANT, "status: active", "status: actve")
    project.replace(KPI, "gdp: order", "gdp: ordr")
    with pytest.raises(BareCountError) as refused:
        project.load()
    assert refused.value.code is ErrorCode.DECLARATION_INVALID
    assert refused.value.message.splitlines() == ["2 errors in what is declared", *map(str, project.check())]
    assert [finding["line"] for finding in refused.value.details["findings"]] == [17, 5]


def test_what_is_declared_is_found_by_name(project):
    declarations = project.load()
    assert declarations.tenant("acme").spec.currency == "GBP"
    assert declarations.pipeline("sales").metadata.version == "1.0.0"
    assert declarations.kpi("turnover").dimensions == ("region",)
    assert declarations.contract("sales.orders", "raw").layer == "raw"


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda d: d.tenant("acne"), "unknown tenant 'acne'; declared are acme"),
        (lambda d: d.pipeline("sale"), "unknown pipeline 'sale'; declared are sales"),
        (lambda d: d.kpi("turn"), "unknown KPI 'turn'; declared are turnover"),
        (lambda d: d.contract("sales.ordrs", "raw"), "unknown dataset 'sales.ordrs'; declared are"),
        (lambda d: d.contract("sales.orders", "gold"), "unknown layer of sales.orders 'gold'; declared are extr"),
        (lambda d: d.effective("sales", "acne"), "unknown tenant"),
    ],
)
def test_a_name_that_is_not_declared_is_refused_with_the_known_ones(project, ask, words):
    with pytest.raises(BareCountError) as refused:
        ask(project.load())
    assert refused.value.code is ErrorCode.DECLARATION_UNKNOWN
    assert words in refused.value.message


def test_the_effective_manifest_has_the_overrides_of_its_tenant(project):
    declarations = project.load()
    schedule = declarations.effective("sales", "acme").spec.schedule
    assert (schedule.cron, schedule.timezone) == ("30 6 * * *", "UTC")
    assert declarations.effective("sales", "acme").hash == declarations.pipeline("sales").hash


def test_a_tenant_the_pipeline_does_not_serve_has_no_effective_manifest(project):
    tenant = (project.root / TENANT).read_text().replace("id: acme", "id: globex").partition("  overrides:")[0]
    project.write("contracts/tenants/globex.yaml", tenant)
    with pytest.raises(BareCountError, match="does not serve tenant globex; its tenants are acme") as refused:
        project.load().effective("sales", "globex")
    assert refused.value.code is ErrorCode.DECLARATION_UNKNOWN


def test_a_tenants_calendar_is_what_the_calendar_service_takes(project):
    calendar = project.load().calendar("acme")
    assert isinstance(calendar, CalendarSettings)
    assert (calendar.country, calendar.weekend, calendar.fiscal.start_month) == ("GB", ("saturday", "sunday"), 4)
