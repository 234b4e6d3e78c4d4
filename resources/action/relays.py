"""Relays: events leave the outbox for a webhook, AWS SNS, SQS or EventBridge, at least once, with stable ids.

A target is `none` (consumers read the outbox themselves), `https://...`, `sns:<topic ARN>`, `sqs:<queue URL>` or
`eventbridge:<bus name or ARN>`. Every event is the CloudEvents envelope as JSON; its `id` is the same however often it
is sent, and is the deduplication id of FIFO topics and queues, whose message group is made of `partitionkey`: tenant
and subject, within which order is kept. EventBridge does neither: consumers order by `time` and deduplicate by `id`.

A named relay remembers how far it has come after the target took the events: killed in between, it sends them again.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from resources.runtime import events
from resources.runtime.database import Database, fetch, unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.events import StoredEvent, Watermark
from resources.security.egress import EgressPolicy
from resources.security.http_client import HttpClient, Request

TARGETS = "none, https://HOST/PATH, sns:ARN, sqs:QUEUE_URL or eventbridge:BUS"
PAGE = 500
_BATCH = 10  # the most that SNS, SQS and EventBridge take at once
_LOCK_SPACE = 0x0BE1
_GROUP = re.compile(r"[\w!\"#$%&'()*+,\-./:;<=>?@\[\]^`{|}~\\]{1,128}\Z", re.ASCII)


class Target(Protocol):
    """Where events go. `send` returns once the target has taken all of them, and raises relay.failed when not."""

    name: str

    def send(self, page: Sequence[StoredEvent]) -> None: ...


@dataclass(frozen=True)
class Nowhere:
    """Consumers read the outbox themselves."""

    name: str = "none"

    def send(self, page: Sequence[StoredEvent]) -> None:
        return None


@dataclass(frozen=True)
class Webhook:
    """One POST per event, CloudEvents in structured mode (`application/cloudevents+json`), in order."""

    name: str
    http: HttpClient
    policy_of: Callable[[str], EgressPolicy]

    def send(self, page: Sequence[StoredEvent]) -> None:
        for event in page:
            kind = "application/cloudevents+json; charset=utf-8"
            headers = {"Content-Type": kind, "Idempotency-Key": event.event_id}
            request = Request("POST", self.name, headers, _body(event))
            response = self.http.send(request, self.policy_of(event.tenant_id))
            if not 200 <= response.status < 300:
                raise _refused(self.name, f"answered {response.status} to event {event.event_id}")


@dataclass(frozen=True)
class Sns:
    """An SNS topic; a FIFO topic (`.fifo`) keeps order and removes duplicates."""

    name: str
    client: Any

    def send(self, page: Sequence[StoredEvent]) -> None:
        fifo = self.name.endswith(".fifo")
        for batch in _batches(page):
            entries = [{
                "Id": str(number), "Message": _body(event).decode(),
                "MessageAttributes": {name: {"DataType": "String", "StringValue": value} for name, value in (
                    ("type", event.type), ("tenant", event.tenant_id), ("subject", event.subject))},
                **(_fifo(event) if fifo else {}),
            } for number, event in enumerate(batch)]
            answer = self.client.publish_batch(TopicArn=self.name, PublishBatchRequestEntries=entries)
            _require_all(self.name, answer.get("Failed"))


@dataclass(frozen=True)
class Sqs:
    """An SQS queue; a FIFO queue (`.fifo`) keeps order and removes duplicates."""

    name: str
    client: Any

    def send(self, page: Sequence[StoredEvent]) -> None:
        fifo = self.name.endswith(".fifo")
        for batch in _batches(page):
            entries = [{"Id": str(number), "MessageBody": _body(event).decode(), **(_fifo(event) if fifo else {})}
                       for number, event in enumerate(batch)]
            answer = self.client.send_message_batch(QueueUrl=self.name, Entries=entries)
            _require_all(self.name, answer.get("Failed"))


@dataclass(frozen=True)
class EventBridge:
    """An EventBridge bus: source `barecount`, detail type the event's type, detail the envelope."""

    name: str
    client: Any

    def send(self, page: Sequence[StoredEvent]) -> None:
        for batch in _batches(page):
            answer = self.client.put_events(Entries=[{
                "Source": "barecount", "DetailType": event.type, "Detail": _body(event).decode(),
                "EventBusName": self.name, "Time": event.occurred_at, "Resources": [event.envelope["source"]],
            } for event in batch])
            _require_all(self.name, [entry for entry in answer["Entries"] if entry.get("ErrorCode")])


def target_of(text: str, policy_of: Callable[[str], EgressPolicy]) -> Target:
    """The target that a text names.

    Raises:
        BareCountError: usage for a text that names none.
    """
    kind, _, rest = text.partition(":")
    if text == "none":
        return Nowhere()
    if kind in ("https", "http") and rest.startswith("//"):
        return Webhook(text, HttpClient(), policy_of)
    services = {"sns": ("sns", Sns), "sqs": ("sqs", Sqs), "eventbridge": ("events", EventBridge)}
    if kind in services and rest:
        import boto3

        service, target = services[kind]
        return target(rest, boto3.client(service))
    raise BareCountError(ErrorCode.USAGE, f"{text!r} names no target of events; allowed are {TARGETS}",
                         hint="AWS credentials and region come from the environment, as boto3 finds them")


def relay(
    database: Database, target: Target, reader: str, *, tenant_id: str | None = None,
    types: Sequence[str] | None = None,
) -> int:
    """Send everything a named relay has not sent; returns how many events. One relay of a name works at a time.

    Raises:
        BareCountError: relay.failed (retryable); what the target took before is not forgotten page by page.
    """
    name, sent = f"relay:{reader}", 0
    with unavailable_as_error(), database.connect(autocommit=True) as connection:
        fetch(connection, "select pg_advisory_lock($1, $2)", (_LOCK_SPACE, zlib.crc32(name.encode()) - 2**31))
        while True:
            before = events.reader_at(connection, name)
            page, after = events.read(connection, before, PAGE, tenant_id=tenant_id, types=types)
            _send(target, page)
            if after != before:
                events.move_reader(connection, name, after)
            sent += len(page)
            if not page:
                return sent


def replay(
    database: Database, target: Target, start: Callable[[Any], Watermark], wanted: Callable[[StoredEvent], bool], *,
    tenant_id: str | None = None, types: Sequence[str] | None = None,
) -> int:
    """Send events again from a place on, under the same ids; no relay's memory moves. Returns how many events.

    Args:
        start: gives the watermark to begin at; `wanted` leaves out what a watermark may have before it.
    """
    sent = 0
    with unavailable_as_error(), database.connect(autocommit=True) as connection:
        at = start(connection)
        while True:
            page, at = events.read(connection, at, PAGE, tenant_id=tenant_id, types=types)
            chosen = [event for event in page if wanted(event)]
            _send(target, chosen)
            sent += len(chosen)
            if not page:
                return sent


def _send(target: Target, page: Sequence[StoredEvent]) -> None:
    if not page:
        return
    try:
        target.send(page)
    except BareCountError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("botocore", "boto3"):
            raise
        raise _refused(target.name, f"{type(error).__name__}: {error}") from error


def _batches(page: Sequence[StoredEvent]) -> Iterator[Sequence[StoredEvent]]:
    for start in range(0, len(page), _BATCH):
        yield page[start : start + _BATCH]


def _body(event: StoredEvent) -> bytes:
    return json.dumps(event.envelope, ensure_ascii=False, sort_keys=True).encode()


def _fifo(event: StoredEvent) -> dict[str, str]:
    key = str(event.envelope.get("partitionkey") or event.tenant_id)
    group = key if _GROUP.match(key) else hashlib.sha256(key.encode()).hexdigest()
    return {"MessageGroupId": group, "MessageDeduplicationId": event.event_id}


def _require_all(target: str, failed: Sequence[Any] | None) -> None:
    if failed:
        first = failed[0]
        reason = first.get("Message") or first.get("ErrorMessage") or first.get("Code") or first.get("ErrorCode")
        raise _refused(target, f"did not take {len(failed)} events: {reason}")


def _refused(target: str, what: str) -> BareCountError:
    return BareCountError(
        ErrorCode.RELAY_FAILED, f"relay to {target}: {what}", retryable=True,
        hint="give the same command again once the target takes events: what it took has the same ids",
    )
