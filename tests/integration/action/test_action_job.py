"""From an event to a verified webhook, through Dagster, through the worker, and through kills at any moment."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from barecount_assets import sensors
from barecount_assets.action_job import SINCE_TAG, Actions, action_job
from barecount_assets.action_work import ActionWork
from resources.action import jobs
from resources.action.delivery import endpoints
from resources.governance.endpoints import Endpoint
from resources.runtime import events, logs
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.trust import ledger
from resources.trust.secrets import Secrets
from tests.integration.action.engine_world import NOW, TENANTS, World, endpoint, rule
from tests.integration.action.receivers import Received, Reply, Server, serving


@pytest.fixture
def receiver() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def world(settings: Settings, database: Database, receiver: Server) -> World:
    return World.make(settings, database).publish().receive_at(receiver.url)


def run(world: World, instance: dg.DagsterInstance | None = None, **tags: str) -> dg.ExecuteInProcessResult:
    return action_job.execute_in_process(
        instance=instance,
        resources={"actions": Actions(ActionWork.of(world.environment))}, tags=tags, raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})


def metadata(result: dg.ExecuteInProcessResult, op: str) -> dict[str, Any]:
    (output,) = [event.step_output_data for event in result.all_events
                 if event.event_type_value == "STEP_OUTPUT" and event.step_key == op]
    return {name: value.value for name, value in output.metadata.items()}


def test_one_run_decides_sends_and_shows_the_receipts_and_a_second_finds_nothing_to_do(
    world: World, receiver: Server
) -> None:
    world.happen(59, "66.4")
    world.happen(61, tenant="globex")
    result = run(world)
    assert result.success
    assert (metadata(result, "evaluate")["events"], metadata(result, "evaluate")["jobs"]) == (3, 2)
    assert metadata(result, "deliver")["delivered"] == 2
    shown = metadata(result, "record")
    assert "| acme | too_high | alert | dso | 2026-02 | completed |" in shown["decided"]
    assert shown["receipts"].count("| completed | 200 |") == 2
    assert sorted((r.path, r.document["data"]["subject"] if "data" in r.document else r.document["subject"])
                  for r in receiver.received) == [("/acme", "dso"), ("/globex", "dso")]
    assert "globex" not in next(r for r in receiver.received if r.path == "/acme").body.decode()
    again = run(world)
    assert again.success and metadata(again, "evaluate")["events"] == 0 and len(receiver.received) == 2


def test_a_run_with_a_failed_job_fails_and_names_it(settings: Settings, database: Database) -> None:
    world = World.make(settings, database, rule(route=["nowhere"])).publish()
    world.happen(61)
    result = run(world, **{SINCE_TAG: "2020-01-01T00:00:00+00:00"})
    assert not result.success
    (failed,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert failed.step_key == "record"
    assert "no endpoint nowhere is registered" in failed.step_failure_data.user_failure_data.description


def test_dagster_writes_no_secret_of_a_run_whose_receiver_repeats_them(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    token = "canary-token-of-the-receiver"

    def echo(request: Received) -> Reply:
        return Reply(410, repr(request.headers).encode())

    logs.configure(settings.data_dir)
    with serving(echo) as server:
        world = World.make(settings, database).publish().receive_at(server.url)
        secrets = Secrets.of(settings.data_dir, database)
        version = secrets.keep("acme", "ops", {"token": token})
        document = endpoint("acme", url=f"{server.url}/acme").model_dump(by_alias=True)
        document["spec"]["target"]["authorization"] = "secret://ops#token"
        with database.transaction() as connection:
            endpoints.register(connection, Endpoint.model_validate(document, strict=False), lambda _: version, now=NOW)
            endpoints.verified(connection, "acme", "ops", now=NOW, code=None, how="by the test")
        world.happen(61)
        (tmp_path / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
            result = run(world, instance)
            shown = repr([entry.dagster_event for entry in instance.all_logs(result.run_id)])
        assert server.received[0].headers["authorization"] == token
    signing = secrets.read("acme", "secret://ops#signing", purpose="the test").value
    files = [path for path in (*(tmp_path / "dagster").rglob("*"), *settings.data_dir.rglob("*")) if path.is_file()]
    written = "".join(path.read_bytes().decode("utf-8", "replace") for path in files)
    receipts = repr(world.rows("select response_excerpt from platform.receipt"))
    assert not result.success and "is dlq" in shown and "is dlq" in written and "[redacted]" in receipts
    for secret in (token, signing):
        assert secret not in shown + written + receipts


def test_many_events_start_one_run_and_a_lost_cursor_changes_nothing(
    world: World, receiver: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_database", lambda: world.database)
    sensor = sensors.kpi_events(world.declarations)
    assert sensor is not None

    def tick(cursor: str | None) -> tuple[list[dg.RunRequest], str | None]:
        with dg.DagsterInstance.ephemeral() as instance:
            data = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor, definitions=(
                dg.Definitions(jobs=[action_job], sensors=[sensor], resources={"actions": Actions()}))))
        return list(data.run_requests or ()), data.cursor

    _, start = tick(None)
    for month in range(1, 6):
        world.happen(61, unit=f"u{month}")
    requests, cursor = tick(start)
    assert len(requests) == 1 and SINCE_TAG in requests[0].tags
    assert run(world, **requests[0].tags).success
    assert tick(cursor)[0] == [], "nothing new"
    lost, _ = tick(None)
    assert len(lost) == 1
    assert run(world).success
    assert len(receiver.received) == 5 and len(world.jobs()) == 5


def test_the_worker_acts_on_an_event_at_once(world: World, receiver: Server) -> None:
    stop = threading.Event()
    work = ActionWork.of(world.environment)
    worker = threading.Thread(target=work.run, args=(stop,))
    worker.start()
    try:
        world.happen(61)
        deadline = time.monotonic() + 60
        while not (world.jobs() and world.jobs()[0].state == "completed") and time.monotonic() < deadline:
            stop.wait(0.05)
    finally:
        stop.set()
        worker.join()
    assert [job.state for job in world.jobs()] == ["completed"] and len(receiver.received) == 1


def _job(world: World) -> None:
    """What the action job's ops do, over and over."""
    work = ActionWork.of(world.environment)
    while True:
        jobs.evaluate(world.database, world.declarations, work.book, work.now, page=20)
        work.enqueue()
        work.deliver()
        work.settle()


def _worker(world: World) -> None:
    """What `barecount actions work` does."""
    ActionWork.of(world.environment).run(threading.Event())


def _forked(act: Callable[[World], None], world: World) -> int:
    child = os.fork()
    if child == 0:
        try:
            act(world)
        finally:
            os._exit(1)
    return child


@pytest.mark.crash
def test_job_and_worker_killed_at_any_moment_under_load_still_make_exactly_one_job_of_every_event(
    world: World, receiver: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PAGE", 20)
    dice = random.Random(4)
    world.happen(70, unit="first")
    expected = Counter[tuple[str, str, str]]({("acme", "first", "2026-01"): 1})
    start, work = time.monotonic(), ActionWork.of(world.environment)  # the children find everything imported
    work.evaluate(), work.enqueue(), work.deliver(), work.settle()
    longest, kills, number, sent = time.monotonic() - start, 0, 0, 1
    while kills < 30 or sent == 1:
        assert kills < 120, "nothing was sent while they were killed"
        for tenant in TENANTS:  # events keep coming while job and worker are killed
            number += 1
            values = [dice.choice((50, 70)) for _ in range(12)]
            world.happen(*values, tenant=tenant, unit=f"u{number}")
            expected.update((tenant, f"u{number}", f"2026-{month:02d}") for month, value in enumerate(values, 1)
                            if value == 70)
        moments = sorted((dice.uniform(0.05, longest), _forked(act, world)) for act in (_job, _worker))
        start = time.monotonic()
        for moment, child in moments:
            time.sleep(max(start + moment - time.monotonic(), 0))  # the moment of the kill, not a wait for something
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended by itself before it was killed"
            kills += 1
        before, sent = sent, world.rows("select count(*) from platform.receipt")[0][0]
        longest *= 0.9 if sent > before else 1.4  # how long it takes to send something, the machine says
    world.now = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)  # leases of killed workers are over
    work = ActionWork.of(world.environment, lambda: world.now)
    work.evaluate(), work.enqueue(), work.deliver(), work.settle()
    found = Counter(world.rows("select tenant_id, dimensions ->> 'business_unit', period from platform.action_job"))
    assert found == expected, "one job per event above the limit, none missing"
    assert {job.state for job in world.jobs(limit=10_000)} == {"completed"}
    effects = {request.headers["webhook-id"]: request.body for request in receiver.received}
    assert len(effects) == len(set(effects.values())) == sum(expected.values()), "one effect per job, none missing"
    assert len({(request.headers["webhook-id"], request.body) for request in receiver.received}) == len(effects), (
        "what was sent again under a key is the same to the byte")
    with world.database.connect(autocommit=True) as connection:
        assert all(ledger.verify(connection, tenant).intact for tenant in TENANTS)
        told = fetch(connection, "select count(*) from platform.event where type = 'barecount.action.queued'")
        assert told[0][0] == sum(expected.values())
        assert events.count(connection, events.reader_at(connection, jobs.READER), ["kpi.changed"])[0] == 0
