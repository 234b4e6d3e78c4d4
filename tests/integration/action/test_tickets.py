"""Tickets are opened once, commented, updated and closed in Jira and ServiceNow, also when answers get lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from resources.action.delivery import verification
from resources.action.delivery.worker import Sender
from resources.runtime.errors import BareCountError
from tests.integration.action.conftest import LOCAL, Desk
from tests.integration.action.receivers import JiraServer, Received, ServiceNowServer, serving


@dataclass
class Office:
    """A desk with a ticket system, and a view of its tickets that both kinds share."""

    desk: Desk
    system: Any
    target: dict[str, Any]
    tickets: Callable[[], list[tuple[str, bool, list[str]]]] = field(default=lambda: [])

    def send(self, key: str, step: str, title: str = "DSO is 61 days", about: str = "dso") -> None:
        self.desk.queue(key, title=title, step=step, correlation=about, severity="critical")
        self.desk.work()
        self.desk.later(minutes=1)


@pytest.fixture(params=["jira", "servicenow"])
def office(desk: Desk, request: pytest.FixtureRequest) -> Iterator[Office]:
    desk.secrets.keep("acme", "tickets", {"token": "jira-token", "password": "snow-password"})
    system: Any = JiraServer() if request.param == "jira" else ServiceNowServer()
    with serving(system) as server:
        if request.param == "jira":
            target = {"adapter": "jira", "url": server.url, "project": "FIN", "user": system.user,
                      "token": "secret://tickets#token"}
            office = Office(desk, system, target, lambda: [
                (one["fields"]["summary"], one["fields"]["status"]["statusCategory"]["key"] != "done",
                 [text.split("\n")[0] for text in one["comments"]]) for one in system.issues.values()])
        else:
            target = {"adapter": "servicenow", "url": server.url, "username": "bot",
                      "password": "secret://tickets#password"}
            office = Office(desk, system, target, lambda: [
                (one["short_description"], one["active"] == "true",
                 [text.split("\n")[0] for ticket, text in system.notes if ticket == one["sys_id"]])
                for one in system.records.values()])
        desk.endpoint(target)
        yield office


def test_a_ticket_lives_as_long_as_the_kpi_is_off(office: Office) -> None:
    office.send("1", "open")
    assert office.tickets() == [("DSO is 61 days", True, [])]
    office.send("2", "open", "still 61")
    office.send("3", "comment", "62 now")
    office.send("4", "update", "DSO is 63 days")
    assert office.tickets() == [("DSO is 63 days", True, ["still 61", "62 now", "DSO is 63 days"])]
    office.send("5", "close", "DSO is 44 days")
    [(_, is_open, comments)] = office.tickets()
    assert not is_open and comments[-1] == "DSO is 44 days"
    office.send("6", "open", "DSO is 70 days")
    assert [one[1] for one in office.tickets()] == [False, True]
    receipts = [office.desk.receipts(str(number))[0] for number in range(1, 7)]
    assert [one.outcome for one in receipts] == ["completed"] * 6
    assert receipts[0].external_id == receipts[4].external_id != receipts[5].external_id
    assert receipts[0].reason.startswith("opened")


def test_another_subject_has_another_ticket_and_closing_nothing_is_fine(office: Office) -> None:
    office.send("1", "close")
    office.send("2", "open", about="dso of north")
    office.send("3", "open", about="dso of south")
    assert len(office.tickets()) == 2
    assert office.desk.receipts("1")[0].reason == "there is no open ticket to close"


@pytest.mark.parametrize("step", ["open", "comment", "update", "close"])
def test_an_answer_that_gets_lost_does_not_happen_twice(office: Office, step: str) -> None:
    if step != "open":
        office.send("before", "open")
    lost: list[str] = []

    def lose_each_answer_once(request: Received) -> None:
        if request.method != "GET" and request.path not in lost:
            lost.append(request.path)
            raise ConnectionResetError

    office.system.before_answer = lose_each_answer_once
    office.desk.queue("job", title="again", step=step, correlation="dso")
    for _ in range(4):
        office.desk.work()
        office.desk.later(hours=1)
    assert lost and office.desk.delivery("job").state == "completed"
    [(title, is_open, comments)] = office.tickets()
    assert comments == ([] if step == "open" else ["again"])
    assert is_open == (step != "close") and (title == "again") == (step in ("open", "update"))


def test_the_account_must_see_the_place_before_anything_is_sent(office: Office) -> None:
    desk = office.desk
    desk.endpoint({**office.target, **({"project": "OPS"} if "project" in office.target else {"username": "nobody"})},
                  name="wrong", verified=False)
    desk.endpoint(office.target, name="right", verified=False)
    sender = Sender(desk.database, desk.secrets, lambda tenant: LOCAL, desk.network)
    with pytest.raises(BareCountError, match="HTTP 40[14]"):
        verification.challenge(desk.database, sender, "acme", "wrong", now=desk.now)
    assert verification.challenge(desk.database, sender, "acme", "right", now=desk.now).confirmed


def test_a_message_that_jira_will_never_take_is_given_up_at_once(desk: Desk) -> None:
    desk.secrets.keep("acme", "tickets", {"token": "jira-token"})
    jira = JiraServer()
    with serving(jira) as server:
        desk.endpoint({"adapter": "jira", "url": server.url, "project": "FIN", "user": jira.user,
                       "token": "secret://tickets#token", "issue_type": "Nonsense"})
        desk.queue("1", step="open")
        assert desk.work().dlq == 1
    [receipt] = desk.receipts("1")
    assert (receipt.status, receipt.reason) == (400, "HTTP 400") and "issuetype" in str(receipt.response_excerpt)
