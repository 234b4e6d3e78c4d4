"""Workers that are killed at random moments under load: every effect happens, and none happens twice."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from resources.runtime.database import fetch
from resources.trust import ledger
from tests.fork_server import having_imported
from tests.integration.action.conftest import Desk
from tests.integration.action.receivers import JiraServer, Received, Reply, serving
from tests.integration.action.worker_process import work

KILLS = 30
LEASE = 1.5  # seconds; a request takes milliseconds


@pytest.mark.crash
def test_thirty_killed_workers_lose_nothing_and_repeat_nothing(desk: Desk, tmp_path: Path) -> None:
    dice = random.Random(20260302)
    processes = having_imported("tests.integration.action.worker_process")
    effects: Counter[str] = Counter()

    def deduplicates(request: Received) -> Reply:
        effects[request.headers["webhook-id"]] += 1
        time.sleep(dice.random() / 50)  # so that some die between the request and its answer
        return Reply(200)

    def start() -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=work, args=(desk.database.admin_url, str(tmp_path / "data"), LEASE))
        process.start()
        return process

    jira = JiraServer()
    desk.now = dt.datetime.now(dt.UTC)
    desk.secrets.keep("acme", "tickets", {"token": jira.token})
    keys = [f"job-{number}" for number in range(KILLS * 20)]
    with serving(deduplicates) as hooks, serving(jira) as tickets:
        desk.webhook(hooks.url)
        desk.endpoint({"adapter": "jira", "url": tickets.url, "project": "FIN", "user": jira.user,
                       "token": "secret://tickets#token"}, name="tickets")
        alive = [start(), start()]
        try:
            for kill in range(KILLS):
                desk.now = dt.datetime.now(dt.UTC)
                desk.queue(*keys[kill * 20:(kill + 1) * 20])
                desk.queue(f"ticket-{kill}", endpoint="tickets", title=f"ticket {kill}", correlation=str(kill))
                alive[0].join(dice.uniform(0.05, 0.4))
                victim = alive.pop(dice.randrange(2))
                victim.kill()
                victim.join()
                alive.append(start())
            _wait_until_done(desk)
        finally:
            for process in alive:
                process.kill()
                process.join()
    with desk.database.connect(autocommit=True) as connection:
        states = dict(fetch(connection, "select state, count(*) from platform.delivery group by state"))
        lost = fetch(connection, "select count(*) from platform.receipt where outcome = 'lost'")[0][0]
        assert ledger.verify(connection, "acme").intact
    assert states == {"completed": len(keys) + KILLS}
    assert lost > 0, "no worker died with a delivery in hand: the test kills at the wrong moments"
    assert len(effects) == len(keys)  # a receiver that deduplicates by webhook-id saw each effect once, and all of them
    summaries = Counter(issue["fields"]["summary"] for issue in jira.issues.values())
    assert summaries == Counter({f"ticket {number}": 1 for number in range(KILLS)})
    assert all(not issue["comments"] for issue in jira.issues.values())


def _wait_until_done(desk: Desk) -> None:
    deadline = time.monotonic() + 120
    with desk.database.connect(autocommit=True) as connection:
        while fetch(connection, "select exists (select from platform.delivery where finished_at is null)")[0][0]:
            assert time.monotonic() < deadline, "deliveries are still under way after two minutes"
            time.sleep(0.1)
