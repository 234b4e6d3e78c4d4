"""The outbox: events commit with the state they tell of, in order per key, and no reader ever skips one."""

from __future__ import annotations

import datetime as dt
import json
import random
import threading
from pathlib import Path

import psycopg
import pytest

from resources.runtime import events
from resources.runtime.database import Database, fetch
from resources.runtime.events import Event, Watermark
from resources.trust import ledger
from tests.conftest import PROJECT

SCHEMA = PROJECT.parent / "shared" / "schemas" / "cloudevents" / "cloudevents.json"

BEGINNING = Watermark()


@pytest.fixture
def tenants(database: Database) -> tuple[str, str]:
    with database.transaction() as connection:
        for tenant in ("acme", "globex"):
            fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (tenant,))
    return "acme", "globex"


def happened(number: int, tenant: str = "acme", subject: str = "dso") -> Event:
    return Event(tenant, "kpi.published", subject, str(number), {"number": number}, "order_to_cash", number, "token")


def everything(connection: psycopg.Connection, after: Watermark = BEGINNING, limit: int = 3):
    found = []
    while True:
        page, after = events.read(connection, after, limit)
        if not page:
            return found, after
        found += page


def test_an_event_is_a_cloudevent(database: Database, tenants: tuple[str, str]) -> None:
    if not SCHEMA.is_file():
        pytest.skip(f"the published schema is not at {SCHEMA}")
    from jsonschema import Draft7Validator, FormatChecker

    with database.transaction() as connection:
        events.append(connection, happened(1), Event("globex", "drift.detected", "a/b", "1"))
    with database.connect(autocommit=True) as connection:
        found, _ = everything(connection)
    validator = Draft7Validator(json.loads(Path(SCHEMA).read_text()), format_checker=FormatChecker())
    assert len(found) == 2
    for event in found:
        validator.validate(event.envelope)
        assert event.envelope["id"] == event.event_id


def test_a_rolled_back_change_leaves_no_event(database: Database, tenants: tuple[str, str]) -> None:
    with pytest.raises(RuntimeError), database.transaction() as connection:
        events.append(connection, happened(1))
        raise RuntimeError
    with database.connect(autocommit=True) as connection:
        assert everything(connection)[0] == []


def test_the_same_occurrence_is_refused_a_second_time(database: Database, tenants: tuple[str, str]) -> None:
    with database.transaction() as connection:
        events.append(connection, happened(1))
    with pytest.raises(psycopg.errors.UniqueViolation), database.transaction() as connection:
        events.append(connection, happened(1))


def test_events_cannot_be_changed(database: Database, tenants: tuple[str, str]) -> None:
    with database.transaction() as connection:
        events.append(connection, happened(1))
    for statement in ("delete from platform.event", "update platform.event set type = 'x'", "truncate platform.event",
                      "insert into platform.event (tenant_id, event_id, type, subject, occurred_at, envelope) "
                      "values ('acme', 'x', 'x', 'x', now(), '{}')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), database.transaction() as connection:
            connection.execute(statement)


def test_a_late_commit_is_not_skipped(database: Database, tenants: tuple[str, str]) -> None:
    with database.connect() as late, database.connect(autocommit=True) as reader:
        events.append(late, happened(1))  # begins first, takes the lower position, commits last
        with database.transaction() as early:
            events.append(early, happened(2, "globex"))
        seen, watermark = everything(reader)
        late.commit()
        more, _ = everything(reader, watermark)
    assert sorted(event.position for event in seen + more) == [1, 2]


def test_an_event_of_an_older_transaction_is_not_read_before_the_one_it_follows(
    database: Database, tenants: tuple[str, str]
) -> None:
    with database.connect() as oldest, database.connect() as running, database.connect(autocommit=True) as reader:
        for connection in (oldest, running):
            fetch(connection, "select pg_current_xact_id()")
        with database.transaction() as youngest:
            events.append(youngest, happened(1))
        events.append(oldest, happened(2))
        oldest.commit()
        seen, watermark = everything(reader)  # the oldest one is over, the youngest is not final: another one runs
        running.rollback()
        more, _ = everything(reader, watermark)
    assert [event.envelope["data"]["number"] for event in seen + more] == [1, 2]


def test_readers_see_everything_once_and_each_key_in_order_while_others_write(
    database: Database, tenants: tuple[str, str]
) -> None:
    order = threading.Lock()
    written: list[tuple[str, int]] = []

    def write(worker: int) -> None:
        dice = random.Random(worker)
        for number in range(25):
            tenant = dice.choice(tenants)
            with database.transaction() as connection:
                fetch(connection, "select pg_current_xact_id()")  # its number is older than its turn
                fetch(connection, "select pg_sleep($1::float8)", (dice.random() / 200,))
                ledger.append(connection, ledger.Entry(tenant, "kpi.published", "dso", f"{worker}-{number}", {}))
                with order:
                    written.append((tenant, worker * 100 + number))
                events.append(connection, happened(worker * 100 + number, tenant))

    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for writer in writers:
        writer.start()
    seen, watermark = [], Watermark()
    with database.connect(autocommit=True) as connection:
        while any(writer.is_alive() for writer in writers):
            page, watermark = events.read(connection, watermark, limit=7)
            seen += page
        seen += everything(connection, watermark)[0]
    for tenant in tenants:
        assert [event.envelope["data"]["number"] for event in seen if event.tenant_id == tenant] == [
            number for at, number in written if at == tenant]


def test_a_reader_goes_on_where_it_stopped_and_can_go_back(database: Database, tenants: tuple[str, str]) -> None:
    for number in range(5):
        with database.transaction() as connection:
            events.append(connection, happened(number))
    with database.connect(autocommit=True) as connection:
        first, watermark = events.read(connection, events.reader_at(connection, "jobs"), 2)
        events.move_reader(connection, "jobs", watermark)
        rest, _ = everything(connection, events.reader_at(connection, "jobs"))
        again, _ = everything(connection, events.at_position(connection, first[1].position))
        since, _ = everything(connection, events.at_time(connection, rest[0].occurred_at))
        future = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
        assert everything(connection, events.at_time(connection, future))[0] == []
    assert [e.position for e in first + rest] == [1, 2, 3, 4, 5]
    assert {2, 3, 4, 5} <= {e.position for e in again}
    assert {3, 4, 5} <= {e.position for e in since}


def test_reading_can_be_narrowed_to_a_tenant_and_to_types(database: Database, tenants: tuple[str, str]) -> None:
    with database.transaction() as connection:
        events.append(connection, happened(1), happened(2, "globex"), Event("acme", "gate.failed", "dso", "3"))
    with database.connect(autocommit=True) as connection:
        own, _ = events.read(connection, Watermark(), tenant_id="acme")
        failed, _ = events.read(connection, Watermark(), types=["gate.failed"])
    assert {event.tenant_id for event in own} == {"acme"} and len(own) == 2
    assert [event.type for event in failed] == ["barecount.gate.failed"]
