"""PostgreSQL goes away in the middle of a run: one clear error, nothing lost, and the next run ends as it should."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from resources.runners.stage import Stage
from resources.runtime import embedded, migrations
from resources.runtime.errors import BareCountError
from tests.lifecycle import harness
from tests.lifecycle.harness import Command, State, Uninterrupted

IMMEDIATE, KILLED = signal.SIGQUIT, signal.SIGKILL


class Server:
    """A PostgreSQL server of the tests' own, which they may treat badly; it is started if it does not run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = embedded.start(folder)
        migrations.upgrade(self.url)

    def crash(self, how: signal.Signals) -> None:
        """End the server without a checkpoint, and wait until it is gone."""
        postmaster = int((self._folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, how)
        harness.until(lambda: not _is_running(postmaster))

    def start(self) -> None:
        """Start it again, as soon as what the crash left behind allows."""
        harness.until(self._is_started)

    def _is_started(self) -> bool:
        try:
            return embedded.start(self._folder) == self.url
        except (BareCountError, psycopg.OperationalError):
            return False


@pytest.fixture
def own_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="bc-restart-"))
    folder.chmod(0o755)
    yield Server(folder)
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def uninterrupted(server: str, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return harness.uninterrupted(server, tmp_path_factory.getbasetemp())


@dataclass(frozen=True)
class Loss:
    """How the server goes away before a step of a stage, and whether it is back before the run looks for it."""

    stage: Stage
    step: str
    how: signal.Signals
    back_at_once: bool


LOSSES = (
    Loss(Stage.INGESTION, "end of transaction", KILLED, back_at_once=True),
    Loss(Stage.NORMALIZATION, "dbt: ", IMMEDIATE, back_at_once=True),
    Loss(Stage.KPI_BUILD, "progress: gates", IMMEDIATE, back_at_once=False),
    Loss(Stage.PUBLISH, "insert into platform.publication", KILLED, back_at_once=False),
)


@pytest.mark.crash
def test_a_run_that_loses_postgresql_says_so_and_the_next_one_goes_on_and_ends_like_an_uninterrupted_one(
    own_server: Server, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    settings = harness.project(tmp_path / "data")
    database = harness.new_database(own_server.url, "lost", synchronous_commit=True)
    request = uninterrupted.deliveries.deliver(1, settings)
    for loss in LOSSES:
        stop = uninterrupted.stop_before(loss.stage, loss.step)
        command = Command(settings, database, request, tmp_path / loss.stage, stop)
        command.child.begin()
        assert command.child.until_stop() is not None, f"{loss} was not on the way"
        assert command.child.steps[-1][1].stage == loss.stage
        committed = harness.entries(database)
        own_server.crash(loss.how)
        if loss.back_at_once:
            own_server.start()
        command.child.begin()
        assert command.wait() == 1
        if not loss.back_at_once:
            own_server.start()
        assert command.outcome["error"]["code"] == "database.unavailable", (loss, command.outcome)
        assert command.outcome["error"]["retryable"]
        assert "run the same command again" in command.outcome["error"]["hint"]

        kept = harness.entries(database)
        assert kept == committed[: len(kept)]
        # Files land without waiting for the disk: the last ones may land again. Nothing else may go.
        assert {kind for _, kind, *_ in committed[len(kept) :]} <= {"batch.landed"}

    again = Command(settings, database, request, tmp_path / "again")
    again.child.begin()
    assert again.wait() == 0, again.outcome
    differences = State.of(database, settings).differences(uninterrupted.states[1])
    assert not differences, "\n".join(differences)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
