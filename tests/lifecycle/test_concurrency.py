"""Two runs of the same data never interleave, two tenants never disturb each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from barecount_assets import admission, lifecycle
from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.governance.approvals import RunRequested
from resources.governance.declarations import load
from resources.host import runner_catalog
from resources.runners.facade import RunnerFacade
from resources.runners.stage import Stage, StageReceipt, StageSpec
from tests.lifecycle import harness
from tests.lifecycle.harness import PROJECT, TENANT, Command, Deliveries, State, Uninterrupted

OTHER_TENANT = "globex"


@pytest.fixture(scope="module")
def uninterrupted(server: str, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return harness.uninterrupted(server, tmp_path_factory.getbasetemp())


def test_of_runs_of_the_same_data_at_the_same_moment_one_works_the_others_are_refused_and_welcome_after_it(
    server: str, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    settings = harness.project(tmp_path / "data")
    database = harness.new_database(server, "raced")
    request = uninterrupted.deliveries.deliver(1, settings)
    middle = uninterrupted.stop_before(Stage.NORMALIZATION, "dbt: ")
    commands = [Command(settings, database, request, tmp_path / str(number), middle) for number in range(3)]
    for command in commands:
        command.child.begin()

    working = [command for command in commands if command.child.until_stop() is not None]
    assert len(working) == 1, "one is in the middle of its work, the others have ended meanwhile"
    for command in commands:
        if command not in working:
            assert command.wait() == 1
            assert command.outcome["error"]["code"] == "run.in_progress" and command.outcome["error"]["retryable"]
            assert f"a run of order_to_cash for tenant {TENANT} is in progress" in command.outcome["error"]["message"]
    (first,) = working
    first.child.begin()
    assert first.wait() == 0 and first.outcome["changed"]

    later = Command(settings, database, request, tmp_path / "later")
    later.child.begin()
    assert later.wait() == 0 and not later.outcome["changed"]
    _assert_same(State.of(database, settings), uninterrupted.states[1])


def test_two_tenants_run_side_by_side_into_the_same_tables_from_the_first_run_on(
    server: str, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    settings = harness.project(tmp_path / "data")
    database = harness.new_database(server, "shared")
    other = Deliveries.make(tmp_path / "sample", OTHER_TENANT)
    commands = [
        Command(settings, database, deliveries.deliver(1, settings, tenant), tmp_path / tenant)
        for tenant, deliveries in ((TENANT, uninterrupted.deliveries), (OTHER_TENANT, other))
    ]
    for command in commands:
        command.child.begin()
    for command in commands:
        assert command.wait() == 0, command.outcome
        assert command.outcome["changed"]
    _assert_same(State.of(database, settings, TENANT), uninterrupted.tenants_own)
    assert State.of(database, settings, OTHER_TENANT).ledger


def test_stages_called_from_two_threads_wait_for_each_other_and_do_the_work_once(
    server: str, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    settings = harness.project(tmp_path / "data")
    environment = StageEnvironment(settings, harness.new_database(server, "threads"), load(PROJECT))
    facade = RunnerFacade(
        runner_catalog.read_environment(PROJECT, settings.environment), runner_catalog.read_sizes(PROJECT),
        lambda spec, progress: execute(spec, progress, environment))
    request = uninterrupted.deliveries.deliver(1, settings)
    environment.admit_contracts(request.tenant_id, request.pipeline)
    asked = RunRequested(request.pipeline, request.tenant_id, request.start, request.end)
    admission.admit_run(environment, asked, trigger="command")
    manifest = environment.declarations.effective(request.pipeline, request.tenant_id)
    for spec in sorted(lifecycle.specs(manifest, request), key=_turn):
        first, second = _at_once(spec, facade)
        assert first.changed != second.changed, f"{spec.stage} was done twice, or not at all"
        assert (first.run_token, first.outputs) == (second.run_token, second.outputs)
    _assert_same(State.of(environment.database, settings), uninterrupted.states[1])


def _turn(spec: StageSpec) -> tuple[int, str]:
    """When Dagster runs a stage: the ledger keeps the order."""
    order = (Stage.CALENDAR, Stage.INGESTION, Stage.NORMALIZATION, Stage.KPI_BUILD, Stage.PUBLISH)
    return order.index(spec.stage), spec.source or ""


def _at_once(spec: StageSpec, facade: RunnerFacade) -> list[StageReceipt]:
    """Receipts of the same stage run by two threads that begin together."""
    together = threading.Barrier(2)
    receipts: list[StageReceipt] = []
    errors: list[Exception] = []

    def call() -> None:
        together.wait()
        try:
            receipts.append(facade.run(spec))
        except Exception as error:  # told in the thread of the test
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(harness.PATIENCE)
    assert not errors, errors
    return receipts


def _assert_same(state: State, expected: State) -> None:
    differences = state.differences(expected)
    assert not differences, "\n".join(differences)
