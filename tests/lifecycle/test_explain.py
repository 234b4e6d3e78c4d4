"""`barecount explain`: it holds on what the platform wrote, and names whatever somebody changed afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from resources.runners.stage import Stage
from tests.lifecycle.conftest import Project, Sales, receipt

MONTH = "2026-03"


def explained(project: Project) -> tuple[int, dict[str, Any]]:
    result = project.command("explain", "order_to_cash.dso", "--tenant", "acme", "--period", MONTH, "--json")
    return result.exit_code, json.loads(result.stdout)


def mismatches(document: dict[str, Any]) -> list[str]:
    return [item["name"] for item in document["verified"] if not item["ok"]]


@pytest.fixture(scope="module")
def proof(sales: Sales) -> dict[str, Any]:
    code, document = explained(sales.project)
    assert code == 0
    return document


# What it says -------------------------------------------------------------------------------------------------


def test_it_holds_on_what_the_platform_wrote(proof: dict[str, Any]) -> None:
    assert proof["holds"] is True and proof["findings"] == [] and mismatches(proof) == []


def test_it_shows_the_value_and_what_it_means(proof: dict[str, Any], sales: Sales) -> None:
    facts = sales.facts["acme"]
    assert (proof["kpi"], proof["period"], proof["unit"]) == ("order_to_cash.dso", MONTH, "days")
    assert "receivables open" in proof["formula"] and proof["kpi_version"] == "1.0.0"
    by_unit = {row["business_unit"]: row for row in proof["values"]}
    assert set(by_unit) == {"NORTH", "SOUTH", "ONLINE", None}
    assert float(by_unit["NORTH"]["numerator"]) == float(facts.open_amount[MONTH, "NORTH"] * 31)
    assert all(row["source_rows"] > 0 for row in proof["values"])


def test_it_goes_back_to_every_file_with_its_checksum_and_contract(proof: dict[str, Any], sales: Sales) -> None:
    batches = {(batch["dataset"], batch["source_id"]): batch for batch in proof["batches"]}
    assert len(batches) == sum(source.files for source in sales.facts["acme"].sources.values())
    for (dataset, name), batch in batches.items():
        system = {"invoices": "erp", "payments": "bank", "customers": "crm"}[dataset.rpartition(".")[2]]
        content = (sales.project.folder("acme") / system / name).read_bytes()
        assert batch["content_sha256"] == sha256(content).hexdigest()
        assert batch["received"] == batch["accepted"] + batch["quarantined"]
        assert batch["contract_version"] == "1.0.0" and batch["evidence_seq"] > 0


def test_every_checksum_it_names_was_computed_again(proof: dict[str, Any]) -> None:
    names = [item["name"] for item in proof["verified"]]
    assert len(names) == len(set(names))
    for wanted in ("current version of dso", "published rows of dso version 1", "number of published rows of dso"):
        assert wanted in names
    assert {name.split()[1] for name in names if name.startswith("GDP ")} == {
        "customer", "invoice_payment", "invoice_settlement"}
    assert {name for name in names if name.startswith("raw object of ")} == {
        f"raw object of {batch['dataset']}/{batch['source_id']}" for batch in proof["batches"]}
    assert all(len(item["expected"]) in (1, 2, 64) and item["expected"] == item["found"] for item in proof["verified"])


def test_it_ties_gates_gdps_code_and_evidence_together(proof: dict[str, Any], sales: Sales) -> None:
    outputs = {o.name: o for o in receipt(sales.outcomes["acme"], Stage.NORMALIZATION).outputs}
    ((gate, summary),) = [(gate["gate"], gate["summary"]) for gate in proof["gates"]]
    assert gate == "acceptance" and "expectations hold" in summary
    for gdp in proof["gdps"]:
        assert (gdp["rows"], gdp["content_sha256"]) == (outputs[gdp["name"]].rows, outputs[gdp["name"]].content_sha256)
    assert proof["code_version"] == sales.project.environment.code_version
    assert proof["manifest_hash"] == sales.project.environment.declarations.effective("order_to_cash", "acme").hash
    kinds = dict(sales.project.rows("select seq, kind from platform.evidence where tenant_id = 'acme'"))
    assert {kinds[proof["evidence"][kind]] for kind in proof["evidence"] if "." in kind} == {
        "kpi.published", "kpi_build.finished", "normalization.finished"}
    assert proof["evidence"]["entries_in_chain"] == len(kinds)


def test_people_read_the_same_chain(sales: Sales) -> None:
    result = sales.project.command("explain", "dso", "--tenant", "acme", "--period", MONTH)
    assert result.exit_code == 0
    for word in ("formula", "published", "gate", "GDP", "raw", "code", "verified", "everything matches"):
        assert word in result.stdout
    assert "NOT PROVEN" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code", "says"),
    [
        (["nothing", "--period", MONTH], "declaration.unknown", 1, "nothing"),
        (["online_retail.dso", "--tenant", "acme", "--period", MONTH], "declaration.unknown", 1, "order_to_cash.dso"),
        (["dso", "--period", MONTH], "usage", 2, "acme, globex"),
        (["dso", "--tenant", "initech", "--period", MONTH], "declaration.unknown", 1, "initech"),
        (["dso", "--tenant", "acme", "--period", "2031-01"], "evidence.missing", 1, "2026-01"),
        (["dso", "--tenant", "acme", "--period", "March"], "evidence.missing", 1, "2026-03"),
        (["invoiced_amount", "--period", "2010-12"], "evidence.missing", 1, "has not been published"),
    ],
)
def test_what_cannot_be_explained_is_one_clear_error(
    sales: Sales, arguments: list[str], code: str, exit_code: int, says: str
) -> None:
    result = sales.project.command("explain", *arguments)
    assert result.exit_code == exit_code and code in result.stderr and says in result.stderr, result.output
    assert result.stderr.count("error") == 1 and "hint" in result.stderr


# What it finds ------------------------------------------------------------------------------------------------


@contextmanager
def tampered(project: Project, table: str, change: str) -> Iterator[None]:
    """The owner, guards off, changes a table; afterwards its rows are what they were."""
    with psycopg.connect(project.database.admin_url, autocommit=True) as owner:
        owner.execute("set session_replication_role = replica")
        owner.execute(f"create temp table saved as table {table}")  # type: ignore[arg-type]
        try:
            assert owner.execute(change).rowcount > 0, "nothing was tampered with"  # type: ignore[arg-type]
            yield
        finally:
            owner.execute(f"delete from {table}")  # type: ignore[arg-type]
            owner.execute(f"insert into {table} overriding system value table saved")  # type: ignore[arg-type]


def unproven(project: Project) -> list[str]:
    """What does not match."""
    code, document = explained(project)
    assert (code, document["holds"]) == (1, False)
    return [*mismatches(document), *document["findings"]]


@pytest.fixture(scope="module", autouse=True)
def it_holds_again_afterwards(sales: Sales) -> Iterator[None]:
    yield
    assert explained(sales.project)[1]["holds"] is True


def test_people_are_told_what_does_not_match(sales: Sales) -> None:
    with tampered(sales.project, "published.snapshot__dso",
                  "update published.snapshot__dso set value = value + 1 where tenant_id = 'acme'"):
        named = unproven(sales.project)
        told = sales.project.command("explain", "dso", "--tenant", "acme", "--period", MONTH)
    assert told.exit_code == 1 and "everything matches" not in told.stdout
    assert "NOT PROVEN" in told.stdout and all(name in told.stdout for name in named)


@pytest.mark.parametrize("way", ["appended to", "one byte changed", "removed"])
def test_a_changed_raw_object_is_named(sales: Sales, way: str) -> None:
    ((key, name),) = sales.project.rows(
        "select object_key, source_id from platform.raw_batch where tenant_id = 'acme' "
        "and dataset = 'order_to_cash.invoices' order by partition_date limit 1")
    path = Path(sales.project.settings.raw_store) / key
    original, mode = path.read_bytes(), path.stat().st_mode
    assert mode & 0o222 == 0, "raw objects are not writable"
    path.chmod(0o644)
    try:
        if way == "removed":
            path.unlink()
        else:
            middle = len(original) // 2
            path.write_bytes(original + b"\0" if way == "appended to" else
                             original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1:])
        assert unproven(sales.project) == [f"raw object of order_to_cash.invoices/{name}"]
    finally:
        path.write_bytes(original)
        path.chmod(mode)


ONE_SETTLEMENT = "ctid = (select min(ctid) from gdp.invoice_settlement where tenant_id = 'acme')"
PAID_SETTLEMENT = "ctid = (select min(ctid) from gdp.invoice_settlement where tenant_id = 'acme' and is_settled)"


@pytest.mark.parametrize(
    ("model", "change", "shows"),
    [
        ("invoice_settlement", f"set open_amount = open_amount + 1 where {ONE_SETTLEMENT}", {"values"}),
        ("invoice_settlement", f"set customer_id = 'C' where {ONE_SETTLEMENT}", {"values"}),
        ("invoice_settlement", f"set settlement_date = null where {PAID_SETTLEMENT}", {"values"}),
        ("invoice_settlement", f"set row_hash = sha256('') where {ONE_SETTLEMENT}", {"hashes"}),
        ("invoice_settlement", f"set valid_to_run = valid_from_run where {ONE_SETTLEMENT}", {"values", "hashes"}),
        ("invoice_payment", "set paid_on = paid_on - 31 where tenant_id = 'acme'", {"values"}),
        ("customer", "set name = upper(name) where tenant_id = 'acme'", {"values"}),
    ],
    ids=["amount", "text", "to null", "row hash", "closed", "dates", "names"],
)
def test_a_changed_gdp_row_is_found_and_its_gdp_named(sales: Sales, model: str, change: str, shows: set[str]) -> None:
    with tampered(sales.project, f"gdp.{model}", f"update gdp.{model} {change}"):
        named = unproven(sales.project)
        assert all(name.startswith(f"GDP {model} as of run ") for name in named)
        assert {name.rpartition(" ")[2] for name in named} == shows


def test_a_deleted_gdp_row_is_found(sales: Sales) -> None:
    change = f"delete from gdp.invoice_settlement where {ONE_SETTLEMENT}"
    with tampered(sales.project, "gdp.invoice_settlement", change):
        assert {name.split(" as of")[0] for name in unproven(sales.project)} == {"GDP invoice_settlement"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("update published.snapshot__dso set value = value + 1 where tenant_id = 'acme' and period = '2026-03' "
         "and business_unit = 'NORTH'", ["published rows of dso version 1"]),
        ("update published.snapshot__dso set source_rows = source_rows + 1 where tenant_id = 'acme' "
         "and period = '2026-01'", ["published rows of dso version 1"]),
        ("delete from published.snapshot__dso where tenant_id = 'acme' and grain = 'month_total'",
         ["published rows of dso version 1", "number of published rows of dso"]),
    ],
    ids=["the value", "another period", "a row deleted"],
)
def test_a_changed_published_row_is_found(sales: Sales, change: str, named: list[str]) -> None:
    with tampered(sales.project, "published.snapshot__dso", change):
        assert unproven(sales.project) == named


def test_a_batch_whose_registration_says_something_else_is_found(sales: Sales) -> None:
    with tampered(sales.project, "platform.raw_batch",
                  "update platform.raw_batch set content_sha256 = repeat('0', 64) where tenant_id = 'acme' "
                  "and source_id = 'customers_2026-01-02.parquet'"):
        assert unproven(sales.project) == ["raw batch order_to_cash.customers/customers_2026-01-02.parquet"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("update platform.evidence set body = replace(body, '\"accepted\":', '\"accepted\":1') "
         "where tenant_id = 'acme' and kind = 'batch.landed' and seq = (select min(seq) from platform.evidence "
         "where tenant_id = 'acme' and kind = 'batch.landed')", "its body does not have the recorded hash"),
        ("delete from platform.evidence where tenant_id = 'acme' and seq = (select min(seq) from platform.evidence "
         "where tenant_id = 'acme' and kind = 'ingestion.finished')", "is missing"),
    ],
    ids=["edited", "deleted"],
)
def test_a_changed_entry_of_evidence_is_found(sales: Sales, change: str, says: str) -> None:
    with tampered(sales.project, "platform.evidence", change):
        named = unproven(sales.project)
        assert named and any(says in name for name in named), named


@pytest.mark.parametrize("change", ["delete from platform.evidence where {one}",
                                    "update platform.evidence set body = 'nothing' where {one}"])
def test_evidence_of_the_publication_that_is_gone_or_no_entry_any_more_is_an_error(sales: Sales, change: str) -> None:
    one = "tenant_id = 'acme' and kind = 'kpi.published' and subject = 'dso'"
    with tampered(sales.project, "platform.evidence", change.replace("{one}", one)):
        result = sales.project.command("explain", "dso", "--tenant", "acme", "--period", MONTH)
        assert result.exit_code == 1 and "evidence.broken" in result.stderr
        assert "barecount evidence verify" in result.stderr


def test_tampering_with_one_tenant_leaves_the_proof_of_another(sales: Sales) -> None:
    with tampered(sales.project, "gdp.invoice_settlement",
                  "update gdp.invoice_settlement set open_amount = open_amount + 1 where tenant_id = 'globex'"):
        assert explained(sales.project)[1]["holds"] is True
        theirs = sales.project.command("explain", "dso", "--tenant", "globex", "--period", MONTH)
        assert theirs.exit_code == 1 and "NOT PROVEN" in theirs.stdout
