"""Sends OpenLineage events from the outbox to where they are wanted: a file, an HTTP endpoint, or nowhere.

`BARECOUNT_LINEAGE` says where: `none` (the default: events stay in the outbox, and a transport named later gets all
of them), `file` (`lineage/events.jsonl` in the data folder), `file:PATH`, or an http(s) URL. A URL without a path gets
OpenLineage's own, `/api/v1/lineage`; `OPENLINEAGE_API_KEY` is sent as bearer token where it is set.

Into the file every event goes exactly once, as one line: the length that the file had when everything in it was on
record is kept with the record, and what a killed relay wrote beyond it is cut off before the next one writes. To the
endpoint events go at least once, those of a run in order, and an event sent again is the same in every byte (its id is
in the facet `barecount_run` and in the header `Idempotency-Key`). What the endpoint calls malformed (400, 413, 422) is
put on record as refused and does not hold up the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import psycopg

from resources.governance import openlineage
from resources.runtime.database import Database, fetch, unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    import httpx

VARIABLE = "BARECOUNT_LINEAGE"
API_KEY_VARIABLE = "OPENLINEAGE_API_KEY"
ALLOWED = "none, file, file:PATH, or an http(s) URL"
_DEFAULT_PATH = "/api/v1/lineage"
_TIMEOUT_SECONDS = 15.0
_PAGE = 500
_LOCK = 0x0BC8_0001  # advisory lock of one relay at a time
_MALFORMED = {400, 413, 422}
_MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class StoredEvent:
    """An event of the outbox: its id, and the bytes that are sent."""

    event_id: str
    line: bytes


@dataclass(frozen=True)
class Relayed:
    """What a relay did: events sent, events the endpoint refused for good, events that are still to be sent."""

    sent: int
    refused: int
    pending: int


class Transport(Protocol):
    """Takes a page of events, in order, and records what became of each."""

    name: str

    def send(self, connection: psycopg.Connection, events: list[StoredEvent]) -> tuple[int, int]:
        """Returns how many were sent and how many refused.

        Raises:
            BareCountError: lineage.undelivered; what went before is on record as sent.
        """
        ...


def transport_of(settings: Settings, chosen: str | None = None) -> Transport | None:
    """The transport that is chosen, by the environment unless given; None for `none`.

    Raises:
        BareCountError: usage when it is none of those allowed.
    """
    text = chosen or os.environ.get(VARIABLE) or "none"
    kind, _, rest = text.partition(":")
    if text == "none":
        return None
    if kind == "file":
        return FileTransport(Path(rest).expanduser().resolve() if rest else settings.data_dir / "lineage/events.jsonl")
    if kind in ("http", "https") and urlsplit(text).hostname:
        url = text if urlsplit(text).path.strip("/") else text.rstrip("/") + _DEFAULT_PATH
        return HttpTransport(url, os.environ.get(API_KEY_VARIABLE) or None)
    raise BareCountError(ErrorCode.USAGE, f"{text!r} is no transport of lineage, allowed: {ALLOWED}",
                         hint=f"correct {VARIABLE} or --to")


def relay(database: Database, transport: Transport) -> Relayed:
    """Send everything the transport has not had yet. Two at once take turns.

    Raises:
        BareCountError: lineage.undelivered, database.unavailable.
    """
    sent = refused = 0
    with unavailable_as_error(), database.connect(autocommit=True) as connection:
        fetch(connection, "select pg_advisory_lock($1)", (_LOCK,))
        for page in _pages(connection, transport.name):
            done, bad = transport.send(connection, page)
            sent, refused = sent + done, refused + bad
        return Relayed(sent, refused, pending(connection, transport))


def pending(connection: psycopg.Connection, transport: Transport) -> int:
    """How many events the transport has not had yet."""
    return fetch(connection, _PENDING, (transport.name,))[0][0]


def _pages(connection: psycopg.Connection, transport: str) -> Iterator[list[StoredEvent]]:
    while rows := fetch(connection, _NEXT, (transport, _PAGE)):
        yield [
            StoredEvent(str(event_id), _line(openlineage.at(body, occurred_at)))
            for event_id, body, occurred_at in rows
        ]


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True)
class FileTransport:
    """JSON Lines, each event once."""

    path: Path

    @property
    def name(self) -> str:
        return f"file:{self.path}"

    def send(self, connection: psycopg.Connection, events: list[StoredEvent]) -> tuple[int, int]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                self._own(connection, file)
                with connection.transaction():
                    self._cut_to_record(connection, file)
                    file.write(b"".join(event.line + b"\n" for event in events))
                    file.flush()
                    os.fsync(file.fileno())
                    fetch(connection, "update platform.lineage_transport set bytes = $2 where transport = $1",
                          (self.name, file.seek(0, os.SEEK_END)))
                    for event in events:
                        _record(connection, self.name, event)
        except OSError as error:
            raise self._refusal(f"{error.strerror or error}", "make the file writable, then relay again") from error
        return len(events), 0

    def _own(self, connection: psycopg.Connection, file: BinaryIO) -> None:
        """From the first line on the file is this outbox's: what is in it by then is somebody else's."""
        if fetch(connection, "select 1 from platform.lineage_transport where transport = $1", (self.name,)):
            return
        if file.seek(0, os.SEEK_END):
            raise self._refusal("it holds something already, and not from here", "name a file that does not exist")
        fetch(connection, "insert into platform.lineage_transport (transport) values ($1)", (self.name,))

    def _cut_to_record(self, connection: psycopg.Connection, file: BinaryIO) -> None:
        (recorded,) = fetch(
            connection, "select bytes from platform.lineage_transport where transport = $1 for update", (self.name,))[0]
        size = file.seek(0, os.SEEK_END)
        if size == 0 or size == recorded:
            return  # a file that was moved away begins anew
        if size < recorded:
            raise self._refusal(f"it has {size} bytes, {recorded} were written", "move it away; the next begins anew")
        file.seek(recorded)
        tail = file.read().split(b"\n")[:-1]
        known = {str(row[0]) for row in fetch(
            connection, "select event_id from platform.lineage_event where event_id::text = any($1)",
            ([_event_id(line) for line in tail],))}
        if any(_event_id(line) not in known for line in tail):
            raise self._refusal("somebody else wrote into it", "name a file of its own")
        file.truncate(recorded)
        file.seek(0, os.SEEK_END)

    def _refusal(self, what: str, hint: str) -> BareCountError:
        return BareCountError(ErrorCode.LINEAGE_UNDELIVERED, f"events cannot be written to {self.path}: {what}",
                              hint=hint)


def _event_id(line: bytes) -> str:
    try:
        return str(json.loads(line)["run"]["facets"]["barecount_run"]["eventId"])
    except (ValueError, KeyError, TypeError):
        return ""


@dataclass(frozen=True)
class HttpTransport:
    """OpenLineage's own: one POST per event."""

    url: str
    api_key: str | None = None

    @property
    def name(self) -> str:
        return self.url

    def send(self, connection: psycopg.Connection, events: list[StoredEvent]) -> tuple[int, int]:
        import httpx

        refused = 0
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        with httpx.Client(timeout=_TIMEOUT_SECONDS, headers=headers) as client:
            for event in events:
                response = self._post(client, event)
                problem = None
                if response.status_code in _MALFORMED:
                    problem = f"{response.status_code}: {response.text[:_MESSAGE_LENGTH]}".replace("\0", "")
                    refused += 1
                elif not response.is_success:
                    raise self._undelivered(f"it answered {response.status_code}")
                _record(connection, self.name, event, problem)
        return len(events) - refused, refused

    def _post(self, client: httpx.Client, event: StoredEvent) -> httpx.Response:
        import httpx

        try:
            return client.post(self.url, content=event.line, headers={"Idempotency-Key": event.event_id})
        except httpx.HTTPError as error:
            raise self._undelivered(str(error) or type(error).__name__) from error

    def _undelivered(self, what: str) -> BareCountError:
        return BareCountError(
            ErrorCode.LINEAGE_UNDELIVERED, f"lineage events cannot be delivered to {self.url}: {what}",
            hint="they stay in the outbox; `barecount lineage relay` sends them once the endpoint answers",
            retryable=True,
        )


def _record(connection: psycopg.Connection, transport: str, event: StoredEvent, refused: str | None = None) -> None:
    fetch(connection, _RECORD, (transport, event.event_id, refused))


_NEXT = """
select e.event_id, e.body, e.occurred_at from platform.lineage_event e
where not exists (select from platform.lineage_delivery d where d.transport = $1 and d.event_id = e.event_id)
order by e.position
limit $2
"""
_PENDING = """
select count(*) from platform.lineage_event e
where not exists (select from platform.lineage_delivery d where d.transport = $1 and d.event_id = e.event_id)
"""
_RECORD = """
insert into platform.lineage_delivery (transport, event_id, refused) values ($1, $2::uuid, $3)
"""
