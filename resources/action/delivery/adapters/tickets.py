"""What ticket systems have in common: a message finds its ticket, or makes it, and leaves its mark in it.

A ticket is found by its correlation id, and every message leaves its own mark (`[barecount msg_...]`) in what it
writes: the description of the ticket it opened, or a comment. Before writing, the mark is looked for: a second attempt
after a lost answer changes nothing. With one delivery at a time (ticket endpoints are fifo unless declared otherwise)
the effect is exactly one.

| step | no open ticket | open ticket |
| --- | --- | --- |
| open | create | comment: it happened again |
| update | create | change title and severity, and comment |
| comment | create | comment |
| close | nothing | comment, then close |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from resources.action.delivery.adapters.base import Dispatch, outcome_of
from resources.action.delivery.model import Outcome, Result
from resources.security.http_client import Response

REJECTED = frozenset((400, 404, 405, 413, 422))
"""Answers by which a ticket system says that the message itself is at fault."""


class Refused(Exception):
    """The ticket system did not do what it was asked: what that means for the delivery."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


@dataclass(frozen=True)
class Ticket:
    """A ticket as found.

    Attributes:
        id: what the system's interface takes; `name`: what people call it.
        text: the description, where the mark of the message that opened it stands.
    """

    id: str
    name: str
    is_open: bool
    text: str


class TicketSystem(Protocol):
    """The few things a ticket system must do for one dispatch. Each raises `Refused`."""

    def find(self) -> list[Ticket]:
        """Tickets of the dispatch's correlation, the newest first."""
        ...

    def create(self, mark: str) -> Ticket: ...

    def update(self, ticket: Ticket) -> None: ...

    def comment(self, ticket: Ticket, text: str) -> None: ...

    def has_comment(self, ticket: Ticket, mark: str) -> bool: ...

    def close(self, ticket: Ticket) -> None: ...


def mark_of(dispatch: Dispatch[Any]) -> str:
    """The mark that a message leaves."""
    return f"[barecount {dispatch.idempotency_id}]"


def work_on(system: TicketSystem, dispatch: Dispatch[Any]) -> Outcome:
    """Bring the ticket to where the message wants it, whatever an earlier attempt has done already."""
    try:
        return _work_on(system, dispatch)
    except Refused as refused:
        return refused.outcome


def _work_on(system: TicketSystem, dispatch: Dispatch[Any]) -> Outcome:
    mark, step = mark_of(dispatch), dispatch.message.step
    tickets = system.find()
    opened = next((ticket for ticket in tickets if mark in ticket.text), None)
    if opened is not None:
        return _done(f"{opened.name} is open already", opened)
    ticket = next((ticket for ticket in tickets if ticket.is_open), None)
    if ticket is None and step == "close":
        return _done("there is no open ticket to close", tickets[0] if tickets else None)
    if ticket is None:
        created = system.create(mark)
        return _done(f"opened {created.name}", created)
    if step == "update":
        system.update(ticket)
    if not system.has_comment(ticket, mark):
        system.comment(ticket, f"{dispatch.message.title}\n\n{dispatch.message.text}\n\n{mark}")
    if step == "close":
        system.close(ticket)
        return _done(f"closed {ticket.name}", ticket)
    return _done(f"updated {ticket.name}" if step == "update" else f"commented on {ticket.name}", ticket)


def _done(what: str, ticket: Ticket | None) -> Outcome:
    return Outcome(Result.DELIVERED, what, 200, external_id=ticket.name if ticket else None)


def require_success(response: Response, dispatch: Dispatch[Any]) -> None:
    """Raise `Refused` for anything but 2xx."""
    outcome = outcome_of(response, dispatch.now, rejected=REJECTED)
    if outcome.result is not Result.DELIVERED:
        raise Refused(outcome)


def unreadable(response: Response) -> Refused:
    """A success whose body is not what the interface promises: perhaps a login page."""
    text = response.body.decode("utf-8", "replace")
    return Refused(Outcome(Result.UNAVAILABLE, "the answer is not the JSON that was expected", response.status, text))
