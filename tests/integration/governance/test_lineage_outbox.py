"""The outbox of OpenLineage events: what runs leave that end, fail or are killed, and how events leave the house."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from resources.governance import lineage_relay, lineage_store
from resources.governance.column_lineage import AssetLineage, Dependency
from resources.governance.lineage_relay import FileTransport, HttpTransport
from resources.governance.lineage_store import AssetFacts
from resources.governance.openlineage import Dataset, Job, Run
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.trust import ledger

TENANT = "acme"
JOB = Job(TENANT, "order_to_cash", "publish", None, ("owner@finance.example",))
_FORK = multiprocessing.get_context("fork")


@pytest.fixture
def database(new_database: Callable[[], Database]) -> Database:
    made = new_database()
    with made.connect(autocommit=True) as connection:
        for tenant in (TENANT, "globex"):
            fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (tenant,))
    return made


def begin(database: Database, token: str, job: Job = JOB) -> Run | None:
    with database.connect(autocommit=True) as connection:
        return lineage_store.begin(connection, job, token, "code", None, [Dataset("kpi.revenue", 3, "before")])


def complete(connection: psycopg.Connection, run: Run, source: str = "value") -> int:
    """What a stage does at its end, in the caller's transaction."""
    seq = ledger.append(connection, ledger.Entry(run.job.tenant_id, "publish.finished", run.job.pipeline,
                                                 run.run_token, {}))
    edges = AssetLineage("published.revenue", run.job.name, {"value": (Dependency("kpi.revenue", source),)})
    lineage_store.complete(
        connection, run, seq, [Dataset("kpi.revenue", 3, "before")],
        [Dataset("published.revenue", 3, "after", lineage=edges.columns)],
        [AssetFacts("published.revenue", ("owner@finance.example",), {"domain": "finance"})], [edges])
    return seq


def done(database: Database, token: str, source: str = "value", job: Job = JOB) -> Run:
    run = begin(database, token, job)
    assert run is not None
    with database.connect(autocommit=True) as connection, connection.transaction():
        complete(connection, run, source)
    return run


def events(database: Database) -> list[tuple[str, str, int]]:
    """(type, run token, attempt) of every event, in order."""
    with database.connect(autocommit=True) as connection:
        return fetch(connection, """
            select e.type, r.run_token, r.attempt from platform.lineage_event e
            join platform.lineage_run r using (tenant_id, run) order by e.position""")


def killed(target: Callable[..., None], *arguments: Any) -> None:
    """Run something in a process that kills itself, and wait until it is gone."""
    process = _FORK.Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at_work(database: Database, token: str) -> None:
    begin(database, token)
    _die()


def _killed_before_commit(database: Database, token: str) -> None:
    run = begin(database, token)
    assert run is not None
    with database.connect(autocommit=True) as connection, connection.transaction():
        complete(connection, run)
        _die()


def test_work_leaves_one_start_and_one_end_however_often_it_is_asked_for(database: Database) -> None:
    done(database, "a")
    assert begin(database, "a") is None
    assert events(database) == [("START", "a", 1), ("COMPLETE", "a", 1)]


@pytest.mark.crash
@pytest.mark.parametrize("death", [_killed_at_work, _killed_before_commit])
def test_a_rerun_of_a_killed_run_leaves_what_an_undisturbed_run_leaves(
    new_database: Callable[[], Database], database: Database, death: Callable[[Database, str], None]
) -> None:
    killed(death, database, "a")
    assert events(database) == [("START", "a", 1)]
    first = done(database, "a")
    assert events(database) == [("START", "a", 1), ("COMPLETE", "a", 1)]
    undisturbed = new_database()
    with undisturbed.connect(autocommit=True) as connection:
        fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (TENANT,))
    assert done(undisturbed, "a").id == first.id
    statement = ("select event_id, run, type, body from platform.lineage_event order by position",
                 "select run, job, run_token, attempt, state, edges_sha256, evidence_seq from platform.lineage_run",
                 "select * from platform.lineage_edge", "select * from platform.lineage_asset")
    with database.connect(autocommit=True) as here, undisturbed.connect(autocommit=True) as there:
        for query in statement:
            assert fetch(here, query) == fetch(there, query)


def test_an_error_ends_the_attempt_and_the_next_has_a_run_of_its_own(database: Database) -> None:
    first = begin(database, "a")
    assert first is not None
    with database.connect(autocommit=True) as connection:
        lineage_store.fail(connection, first, "[transform.failed] the model has no column x")
        lineage_store.fail(connection, first, "said twice")
    second = done(database, "a")
    assert first.id != second.id
    assert events(database) == [("START", "a", 1), ("FAIL", "a", 1), ("START", "a", 2), ("COMPLETE", "a", 2)]


@pytest.mark.crash
def test_killed_work_that_is_not_taken_up_is_ended_by_the_next_run_of_its_job(database: Database) -> None:
    killed(_killed_at_work, database, "a")
    done(database, "b")
    assert events(database) == [("START", "a", 1), ("ABORT", "a", 1), ("START", "b", 1), ("COMPLETE", "b", 1)]


def test_the_graph_is_that_of_the_newest_runs_or_as_of_one(database: Database) -> None:
    done(database, "aaa", source="numerator")
    done(database, "bbb", source="value")
    with database.connect(autocommit=True) as connection:
        assert [edge.on.column for edge in lineage_store.edges(connection, TENANT)] == ["value"]
        then = lineage_store.evidence_of_run(connection, TENANT, "aaa")
        assert [edge.on.column for edge in lineage_store.edges(connection, TENANT, then)] == ["numerator"]
        assert lineage_store.edges(connection, "globex") == []
        with pytest.raises(BareCountError) as refused:
            lineage_store.evidence_of_run(connection, TENANT, "c")
    assert refused.value.code is ErrorCode.RUN_UNKNOWN


def test_events_and_edges_are_only_ever_added(database: Database) -> None:
    done(database, "a")
    for statement in ("delete from platform.lineage_event", "update platform.lineage_edge set masked = true"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), database.connect() as connection:
            fetch(connection, statement)


# --- relay -------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _killed_after_writing(database: Database, transport: FileTransport) -> None:
    lineage_relay._record = _die  # the file is written and synced, the record is not
    lineage_relay.relay(database, transport)


@pytest.mark.crash
def test_a_file_gets_every_event_once_also_when_the_relay_is_killed(database: Database, tmp_path: Path) -> None:
    transport = FileTransport(tmp_path / "out" / "events.jsonl")
    done(database, "a")
    assert lineage_relay.relay(database, transport).sent == 2
    done(database, "b")
    killed(_killed_after_writing, database, transport)
    assert len(lines(transport.path)) == 4
    with transport.path.open("ab") as file:
        file.write(b'{"eventType":"COMP')  # a line cut off
    assert lineage_relay.relay(database, transport) == lineage_relay.Relayed(2, 0, 0)
    assert lineage_relay.relay(database, transport).sent == 0
    written = lines(transport.path)
    assert [event["eventType"] for event in written] == ["START", "COMPLETE"] * 2
    assert len({event["run"]["facets"]["barecount_run"]["eventId"] for event in written}) == 4


def test_a_file_of_somebody_else_is_left_alone(database: Database, tmp_path: Path) -> None:
    transport = FileTransport(tmp_path / "events.jsonl")
    transport.path.write_text("mine\n")
    done(database, "a")
    with pytest.raises(BareCountError, match="holds something already"):
        lineage_relay.relay(database, transport)
    transport.path.unlink()
    lineage_relay.relay(database, transport)
    with transport.path.open("a") as file:
        file.write("mine\n")
    done(database, "b")
    with pytest.raises(BareCountError, match="somebody else wrote"):
        lineage_relay.relay(database, transport)
    assert transport.path.read_text().endswith("mine\n")


def test_a_file_that_was_moved_away_begins_anew_with_what_is_new(database: Database, tmp_path: Path) -> None:
    transport = FileTransport(tmp_path / "events.jsonl")
    done(database, "a")
    lineage_relay.relay(database, transport)
    transport.path.rename(tmp_path / "archived.jsonl")
    done(database, "b")
    assert lineage_relay.relay(database, transport).sent == 2
    assert len(lines(transport.path)) == 2


class Endpoint(ThreadingHTTPServer):
    """An OpenLineage endpoint that remembers what it got, and answers as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.received: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.answers.pop(0) if self.server.answers else 201
        self.server.received.append((self.path, dict(self.headers), body))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_an_endpoint_gets_every_event_in_order_and_the_same_again_after_an_error(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "key-of-ours")
    done(database, "a")
    with endpoint() as server:
        transport = lineage_relay.transport_of(settings, server.url)
        assert transport is not None
        server.answers = [201, 503]
        with pytest.raises(BareCountError) as error:
            lineage_relay.relay(database, transport)
        assert error.value.code is ErrorCode.LINEAGE_UNDELIVERED and error.value.retryable
        assert lineage_relay.relay(database, transport) == lineage_relay.Relayed(1, 0, 0)
        paths, headers, bodies = zip(*server.received, strict=True)
    assert set(paths) == {"/api/v1/lineage"}
    assert [body["eventType"] for body in bodies] == ["START", "COMPLETE", "COMPLETE"]
    assert bodies[1] == bodies[2]
    assert headers[1]["Idempotency-Key"] == headers[2]["Idempotency-Key"]
    assert headers[0]["Authorization"] == "Bearer key-of-ours"


def test_an_event_the_endpoint_calls_malformed_does_not_hold_up_the_rest(database: Database) -> None:
    done(database, "a")
    with endpoint() as server:
        server.answers = [422]
        transport = HttpTransport(server.url)
        assert lineage_relay.relay(database, transport) == lineage_relay.Relayed(1, 1, 0)
    with database.connect(autocommit=True) as connection:
        assert fetch(connection, "select count(*) from platform.lineage_delivery where refused like '422%'") == [(1,)]


def test_an_endpoint_that_is_not_there_loses_nothing(database: Database) -> None:
    done(database, "a")
    with endpoint() as server:
        url = server.url
    with pytest.raises(BareCountError, match="cannot be delivered"):
        lineage_relay.relay(database, HttpTransport(url))
    with database.connect(autocommit=True) as connection:
        assert lineage_relay.pending(connection, HttpTransport(url)) == 2


@pytest.mark.parametrize("text", ["kafka://broker", "https://", "nowhere"])
def test_an_unknown_transport_is_refused_with_what_is_allowed(settings: Settings, text: str) -> None:
    with pytest.raises(BareCountError, match="no transport of lineage, allowed: none, file"):
        lineage_relay.transport_of(settings, text)
