"""Obligations in a run: judged before anything is published, and on record with evidence and event."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable

import pytest

from barecount_assets.stages import obligations
from resources.governance import declarations, obligation_store
from resources.governance.declarations import Declarations
from resources.governance.obligations import Obligation
from resources.runners.stage import Placement, Stage, StageSpec
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.trust import ledger
from tests.conftest import PROJECT

NOW = dt.datetime(2026, 3, 6, 12, tzinfo=dt.UTC)
SPEC = StageSpec(Stage.PUBLISH, "acme", "order_to_cash", Placement("container", "medium", "private_vpc"))


@pytest.fixture
def database(new_database: Callable[[], Database]) -> Database:
    made = new_database()
    with made.connect(autocommit=True) as connection:
        fetch(connection, "select platform.register_tenant('acme', 'acme', 'hash')")
    return made


def declared(tag: str, on_failure: str = "block") -> Declarations:
    """The shipped declarations with one obligation in place of all."""
    shipped = declarations.load(PROJECT)
    model = shipped.obligations["assets_have_a_domain"]
    spec = model.spec.model_copy(update={
        "on_failure": on_failure, "check": model.spec.check.model_copy(update={"tag": tag})})
    changed: Obligation = model.model_copy(update={"spec": spec}).with_hash(f"hash of {tag}")
    return dataclasses.replace(shipped, obligations={model.name: changed})


def enforce(database: Database, settings: Settings, declared: Declarations, token: str = "a" * 64) -> list[str]:
    with database.connect(autocommit=True) as connection:
        outcomes = obligations.enforce(connection, settings, declared, SPEC, token, NOW)
    return [outcome.status for outcome in outcomes]


def on_record(database: Database) -> list[tuple[str, str, int]]:
    """(kind, subject, events about it) of the ledger's entries; fails when they and the state do not agree."""
    with database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").findings == ()
        return fetch(connection, """
            select e.kind, e.subject, (select count(*)::int from platform.event v where v.tenant_id = e.tenant_id
                and v.type = 'barecount.' || e.kind and v.subject = e.subject
                and (v.envelope ->> 'evidence')::int = e.seq)
            from platform.evidence e where kind like 'obligation.%' order by seq""")


def test_a_blocking_obligation_that_is_not_kept_stops_the_publication_and_says_why(
    database: Database, settings: Settings
) -> None:
    with pytest.raises(BareCountError) as refused:
        enforce(database, settings, declared("cost_centre"))
    assert refused.value.code is ErrorCode.OBLIGATION_FAILED
    assert "raw.order_to_cash.invoices has no tag cost_centre" in refused.value.message
    assert on_record(database) == [("obligation.failed", "order_to_cash/assets_have_a_domain", 1)]


def test_one_that_warns_lets_it_go_on(database: Database, settings: Settings) -> None:
    assert enforce(database, settings, declared("cost_centre", "warn")) == ["warn"]
    assert on_record(database) == [("obligation.warned", "order_to_cash/assets_have_a_domain", 1)]


def test_the_same_outcome_of_the_same_work_is_on_record_once_and_another_one_besides(
    database: Database, settings: Settings
) -> None:
    for _ in range(2):
        with pytest.raises(BareCountError):
            enforce(database, settings, declared("cost_centre"))
    assert enforce(database, settings, declared("domain")) == ["pass"]
    assert on_record(database) == [("obligation.failed", "order_to_cash/assets_have_a_domain", 1),
                                   ("obligation.passed", "order_to_cash/assets_have_a_domain#2", 1)]
    with database.connect(autocommit=True) as connection:
        (newest,) = obligation_store.newest(connection, "acme", None)
    assert (newest["status"], newest["blocking"]) == ("pass", True)


def test_freshness_is_skipped_before_any_day_has_arrived(database: Database, settings: Settings) -> None:
    shipped = declarations.load(PROJECT)
    only = {name: found for name, found in shipped.obligations.items() if name == "order_to_cash_is_fresh"}
    assert enforce(database, settings, dataclasses.replace(shipped, obligations=only)) == ["skip"]
