"""The declared set as shipped: free of errors, quick to check, and true to what the pipelines are for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resources.governance.declarations import Declarations, check, json_schemas, load, write_json_schemas


@pytest.fixture(scope="module")
def declarations(shipped: Path) -> Declarations:
    return load(shipped)


def test_the_shipped_set_has_no_errors(shipped: Path):
    assert [str(finding) for finding in check(shipped)] == []


def test_reading_declarations_imports_nothing_heavy(shipped: Path):
    statement = (
        "import json, sys, pathlib; from resources.governance.declarations import load; load(pathlib.Path());"
        "print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", statement], cwd=shipped))
    assert not {"dagster", "dbt", "polars", "pyarrow", "pandas", "pandera", "great_expectations"}.intersection(loaded)


def test_every_tenant_pipeline_and_kpi_is_there(declarations: Declarations):
    assert list(declarations.tenants) == ["acme", "globex", "retail_uk"]
    assert list(declarations.pipelines) == ["online_retail", "order_to_cash"]
    assert set(declarations.kpis) == {
        "invoiced_amount", "net_sales", "cancellation_rate", "average_order_value", "active_customers",
        "revenue", "dso", "overdue_ratio",
    }  # fmt: skip


def test_every_column_of_every_contract_is_described_and_names_of_persons_are_confidential(declarations: Declarations):
    for contract in declarations.contracts.values():
        assert contract.owner and contract.steward and contract.retention_days
        for column in contract.columns:
            assert len(column.description) > 4, (contract.dataset, column.name)
            if column.name in ("customer_name", "payer"):
                assert column.classification == "confidential"


def test_the_gold_contracts_are_those_the_kpis_were_designed_on(declarations: Declarations):
    line = declarations.contract("online_retail.sales_invoice_line", "gold")
    assert [(column.name, column.physical_type) for column in line.columns] == [
        ("invoice_no", "text"), ("line_position", "integer"), ("stock_code", "text"), ("description", "text"),
        ("line_kind", "text"), ("is_fee", "boolean"), ("quantity", "integer"), ("unit_price", "numeric(18,3)"),
        ("amount", "numeric(18,3)"), ("invoiced_at", "timestamp"), ("invoice_date", "date"),
        ("customer_id", "text"), ("country", "text"),
    ]  # fmt: skip
    assert line.primary_key == ("invoice_no", "line_position")
    assert line.columns[4].valid_values == ("merchandise", "fee", "cancellation", "adjustment", "write_off")


def test_the_retail_contract_refuses_an_empty_invoice_number_or_stock_code_and_no_price(declarations: Declarations):
    raw = declarations.contract("online_retail.invoices", "raw")
    rules = {column.name: (column.required, dict(column.options)) for column in raw.columns}
    assert rules["invoice_no"] == rules["stock_code"] == (True, {"minLength": 1})
    assert rules["unit_price"] == rules["quantity"] == (True, {})
    assert rules["description"] == rules["customer_id"] == (False, {})


def test_the_invoice_amount_is_reconciled_with_the_control_totals_per_day(declarations: Declarations):
    kpi = declarations.kpi("invoiced_amount")
    reconciliation = kpi.spec.reconciliation
    assert reconciliation is not None
    assert reconciliation.system_of_record == "online_retail.control_totals"
    assert (reconciliation.key.source, reconciliation.key.format) == ("file", "{date}.csv")
    grain = next(grain for grain in kpi.spec.grains if grain.name == reconciliation.grain)
    assert grain.period == "day"
    assert str(reconciliation.tolerance) == "0.01"


def test_receivables_are_rebuilt_from_a_changed_period_onward(declarations: Declarations):
    for name in ("dso", "overdue_ratio"):
        assert {d.effect for d in declarations.kpi(name).spec.depends_on} == {"onward"}


def test_the_two_tenants_of_order_to_cash_count_by_different_years_and_currencies(declarations: Declarations):
    acme, globex = (declarations.tenant(name).spec for name in declarations.pipeline("order_to_cash").spec.tenants)
    assert (acme.currency, globex.currency) == ("GBP", "EUR")
    assert (acme.calendar.fiscal.pattern, globex.calendar.fiscal.pattern) == ("standard", "445")


def test_the_json_schemas_for_editors_are_those_of_the_models(shipped: Path, tmp_path: Path):
    for written in write_json_schemas(tmp_path):
        committed = shipped / "contracts" / "schemas" / written.name
        assert committed.read_bytes() == written.read_bytes(), "write them again: write_json_schemas(contracts/schemas)"


def test_editors_find_the_schema_each_file_names(shipped: Path):
    named = 0
    for file in sorted((shipped / "contracts").rglob("*.yaml")):
        match = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text(encoding="utf-8"))
        if match:
            named += 1
            schema = json.loads((file.parent / match[1]).read_text(encoding="utf-8"))
            assert schema["title"] in json_schemas()
    documents = [file for file in (shipped / "contracts").rglob("*.yaml") if "datasets" not in file.parts]
    assert named == len(documents) >= 13


def test_the_json_schemas_accept_what_is_shipped_and_refuse_an_unknown_key(shipped: Path):
    import yaml
    from jsonschema import Draft202012Validator

    schemas = json_schemas()
    for folder in ("tenants", "pipelines", "kpis"):
        for file in (shipped / "contracts" / folder).rglob("*.yaml"):
            document = json.loads(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8")), default=str))
            validator = Draft202012Validator(schemas[document["kind"]])
            assert list(validator.iter_errors(document)) == []
            document["spec"]["sorces"] = []
            assert not validator.is_valid(document)
