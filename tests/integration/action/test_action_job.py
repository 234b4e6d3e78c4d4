"""From an event to a verified webhook, through Dagster, through the worker, and through kills at any moment."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from barecount_assets import sensors
from barecount_assets.action_job import SINCE_TAG, Actions, action_job
from barecount_assets.action_work import ActionWork
from resources.action import jobs
from resources.runtime import events
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.trust import ledger
from tests.integration.action.engine_world import TENANTS, World, rule
from tests.integration.action.receivers import Server, serving


@pytest.fixture
def receiver() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def world(settings: Settings, database: Database, receiver: Server) -> World:
    return World.make(settings, database).publish().receive_at(receiver.url)


def run(world: World, **tags: str) -> dg.ExecuteInProcessResult:
    return action_job.execute_in_process(
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


@pytest.mark.crash
def test_killed_at_any_moment_under_load_every_event_still_leads_to_exactly_one_job(
    world: World, receiver: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PAGE", 20)
    dice = random.Random(4)
    expected = Counter[tuple[str, str, str]]()
    kills, number = 0, 0
    while kills < 15 or number < 15:
        for tenant in TENANTS:  # events keep coming while the job is killed
            number += 1
            values = [dice.choice((50, 70)) for _ in range(12)]
            world.happen(*values, tenant=tenant, unit=f"u{number}")
            expected.update((tenant, f"u{number}", f"2026-{month:02d}") for month, value in enumerate(values, 1)
                            if value == 70)
        child = os.fork()
        if child == 0:
            try:
                work = ActionWork.of(world.environment)
                while True:
                    jobs.evaluate(world.database, world.declarations, work.book, work.now, page=20)
                    work.enqueue()
                    work.deliver()
                    work.settle()
            finally:
                os._exit(1)
        time.sleep(dice.uniform(0.05, 0.8))  # the moment of the kill, not a wait for something
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended by itself before it was killed"
        kills += 1
    world.now = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)  # leases of killed workers are over
    work = ActionWork.of(world.environment, lambda: world.now)
    work.evaluate(), work.enqueue(), work.deliver(), work.settle()
    found = Counter(world.rows("select tenant_id, dimensions ->> 'business_unit', period from platform.action_job"))
    assert found == expected, "one job per event above the limit, none missing"
    assert {job.state for job in world.jobs(limit=10_000)} == {"completed"}
    effects = {request.headers["webhook-id"]: request.body for request in receiver.received}
    assert len(effects) == len(set(effects.values())) == sum(expected.values()), "one effect per job"
    with world.database.connect(autocommit=True) as connection:
        assert all(ledger.verify(connection, tenant).intact for tenant in TENANTS)
        told = fetch(connection, "select count(*) from platform.event where type = 'barecount.action.queued'")
        assert told[0][0] == sum(expected.values())
        assert events.count(connection, events.reader_at(connection, jobs.READER), ["kpi.changed"])[0] == 0
