"""`barecount contracts`, from the command line, on a copy of the shipped project."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resources.runtime.database import Database
from tests.conftest import PROJECT, barecount

RAW = "contracts/datasets/order_to_cash/invoices/raw.yaml"
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for folder in ("contracts", "dbt_project/models"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    shutil.copy(PROJECT / "dbt_project" / "dbt_project.yml", tmp_path / "dbt_project" / "dbt_project.yml")
    return tmp_path


@pytest.fixture
def contracts(project: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `barecount contracts`; gives its exit code and everything it printed."""
    monkeypatch.setenv("BARECOUNT_PROJECT_DIR", str(project))
    monkeypatch.setenv("BARECOUNT_DATA_DIR", str(project / "data"))
    monkeypatch.setenv("BARECOUNT_DATABASE_URL", database.admin_url)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str]:
        result = barecount("contracts", *arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


def edit(project: Path, version: str, *changes: tuple[str, str]) -> Path:
    """The raw contract of invoices as somebody changes it."""
    file = project / RAW
    text = (PROJECT / RAW).read_text()
    for old, new in (("version: 1.0.0", f"version: {version}"), *changes):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)
    return file


def as_json(contracts: Command, *arguments: str, code: int = 0) -> Any:
    exit_code, text = contracts(*arguments, "--json")
    assert exit_code == code, text
    return json.loads(text)


FEWER_UNITS = ("[NORTH, SOUTH, ONLINE]", "[NORTH, ONLINE]")
MORE_UNITS = ("[NORTH, SOUTH, ONLINE]", "[NORTH, SOUTH, ONLINE, EXPORT]")


def test_sync_prints_the_plan_applies_it_and_then_finds_it_done(contracts: Command, project: Path) -> None:
    code, text = contracts("sync", "--dry-run")
    assert code == 0 and "register order_to_cash.invoices raw 1.0.0" in text and "25 new" in text
    assert all(row["version"] is None for row in as_json(contracts, "list"))
    code, text = contracts("sync")
    assert code == 0 and "registered 25 versions" in text
    code, text = contracts("sync")
    assert code == 0 and "nothing to register" in text and "25 unchanged" in text
    listed = {(row["dataset"], row["layer"]): row for row in as_json(contracts, "list", "order_to_cash")}
    assert listed["order_to_cash.invoices", "raw"]["version"] == "1.0.0"
    assert listed["order_to_cash.revenue", "activation"]["subscribers"] == 6


def test_a_breaking_change_names_whom_it_breaks_and_needs_a_reason(contracts: Command, project: Path) -> None:
    contracts("sync")
    code, _ = contracts("subscribe", "order_to_cash.invoices", "raw", "--consumer", "audit", "--compatibility",
                        "full", "--tenant", "acme")
    assert code == 0
    candidate = edit(project, "2.0.0", FEWER_UNITS)
    code, text = contracts("check", str(candidate))
    assert code == 1 and "breaks producers: business_unit" in text and "would break audit of acme" in text
    for arguments in (["sync", "--dry-run"], ["sync"]):
        code, text = contracts(*arguments)
        assert code == 1 and "breaks producers: business_unit" in text and "would break audit of acme" in text
    assert as_json(contracts, "show", "order_to_cash.invoices", "raw")["version"] == "1.0.0"
    code, text = contracts("sync", "--reason", "SOUTH was closed", "--who", "ann")
    assert code == 0 and "registered 1 versions" in text
    first, second = as_json(contracts, "history", "order_to_cash.invoices", "raw")
    assert (second["registered_by"], second["reason"]) == ("ann", "SOUTH was closed")
    assert second["compatibility"] == "forward"
    assert first["readable_until"] and second["readable_until"] is None
    code, text = contracts("history", "order_to_cash.invoices", "raw")
    assert code == 0 and "2.0.0 *" in text


def test_diff_compares_what_is_declared_with_what_is_current(contracts: Command, project: Path) -> None:
    contracts("sync")
    assert as_json(contracts, "diff", "order_to_cash.invoices", "raw")["changes"] == []
    edit(project, "1.1.0", MORE_UNITS)
    found = as_json(contracts, "diff", "order_to_cash.invoices", "raw")
    assert (found["from"], found["to"], found["compatibility"]) == ("1.0.0", "1.1.0", "backward")
    assert [(change["kind"], change["breaks"]) for change in found["changes"]] == [("values", "consumers")]
    contracts("sync")
    edit(project, "1.2.0")
    contracts("sync", "--reason", "back again")
    found = as_json(contracts, "diff", "order_to_cash.invoices", "raw", "--from", "1.0.0", "--to", "1.2.0")
    assert found["changes"] == []
    found = as_json(contracts, "diff", "order_to_cash.invoices", "raw", "--to", "1.1.0")
    assert (found["from"], found["to"]) == ("1.0.0", "1.1.0")


def test_a_changed_document_under_its_old_number_is_refused_with_the_number_it_needs(
    contracts: Command, project: Path
) -> None:
    contracts("sync")
    edit(project, "1.0.0", MORE_UNITS)
    code, text = contracts("sync", "--reason", "please")
    assert code == 1 and "versions never change; 1.1.0 would do" in text
    envelope = as_json(contracts, "sync", code=1)["error"]
    assert envelope["code"] == "contract.immutable" and "1.1.0 in " + RAW in envelope["hint"]


def test_a_subscription_is_shown_and_ended(contracts: Command) -> None:
    contracts("sync")
    arguments = ("order_to_cash.invoices", "raw", "--consumer", "audit")
    assert [one["tenant_id"] for one in as_json(contracts, "subscribe", *arguments)] == ["acme", "globex"]
    assert not any(one["changed"] for one in as_json(contracts, "subscribe", *arguments))
    code, text = contracts("show", "order_to_cash.invoices", "raw")
    assert code == 0 and "relied on by audit of globex: forward from 1.0.0" in text
    assert len(as_json(contracts, "unsubscribe", *arguments)) == 2
    assert as_json(contracts, "unsubscribe", *arguments, code=1)["error"]["code"] == "declaration.unknown"


def test_a_candidate_that_is_no_contract_is_refused_by_line(contracts: Command, project: Path) -> None:
    candidate = project / "candidate.yaml"
    for text in ("", "a: [", "customProperties: 7\n", "customProperties: [{property: dataset, value: [1]}]\n",
                 "customProperties: [{property: [layer]}, 1]\n"):
        candidate.write_text(text)
        envelope = as_json(contracts, "check", str(candidate), code=1)["error"]
        assert envelope["code"] == "declaration.invalid" and "candidate.yaml:" in envelope["message"], text


def test_what_is_not_there_is_refused_with_what_is(contracts: Command) -> None:
    error = as_json(contracts, "show", "order_to_cash.invoices", "raw", code=1)["error"]
    assert "not registered yet" in error["message"]
    contracts("sync")
    error = as_json(contracts, "show", "order_to_cash.invoices", "raw", "--version", "9.0.0", code=1)["error"]
    assert "registered are 1.0.0" in error["message"]
    error = as_json(contracts, "history", "order_to_cash.invoice", "raw", code=1)["error"]
    assert "did you mean 'order_to_cash.invoices'" in error["hint"]
    code, _ = contracts("subscribe", "order_to_cash.invoices", "raw", "--consumer", "audit", "--min-version", "two")
    assert code == 2
