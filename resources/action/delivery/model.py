"""What is delivered, and what came of it: the data between the queue, the worker and the adapters."""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import rfc8785

TicketStep = Literal["open", "update", "comment", "close"]
Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Message:
    """A rendered action, in the parts that adapters need.

    Attributes:
        title: one line: e-mail subject, ticket summary, first line of a chat message.
        text: plain text for people.
        data: body of a webhook, JSON-serialisable; amounts and ratios as strings.
        html: the text once more for e-mail clients that show HTML.
        severity: orders tickets and notifications.
        step: what happens to the ticket; adapters that are no ticket systems send every step as a message.
        correlation: what one ticket is about, e.g. rule and subject: `open`, `update`, `comment` and `close` with the
            same correlation meet in one ticket of an endpoint. Without it the delivery key stands for it.
        native: parts for one kind of adapter, merged over what it would send: `{"slack": {"blocks": [...]}}`,
            `{"jira": {"labels": [...]}}`, `{"servicenow": {"impact": "1"}}`.
    """

    title: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    html: str | None = None
    severity: Severity = "info"
    step: TicketStep = "open"
    correlation: str | None = None
    native: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the message."""
        return hashlib.sha256(rfc8785.dumps(asdict(self))).hexdigest()


@dataclass(frozen=True)
class Delivery:
    """A message for one endpoint.

    Attributes:
        key: names the effect: unique per tenant, the same on every attempt, and what receivers deduplicate by.
            1 to 200 characters.
        endpoint: name of an endpoint of the tenant.
        origin: what asked for it, e.g. the job.
        not_before: when the first attempt is due; at once without it.
        is_quiet: what becomes of it is on record and no event, so that a message about deliveries causes none.
    """

    tenant_id: str
    key: str
    endpoint: str
    message: Message
    origin: str | None = None
    not_before: dt.datetime | None = None
    is_quiet: bool = False


class DeliveryState(enum.StrEnum):
    """Where a delivery is. `failed` waits for its next attempt; `dlq` waits for somebody to replay it."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DLQ = "dlq"


class Result(enum.StrEnum):
    """What an attempt came to, as the adapter sees it.

    DELIVERED: the receiver took it. UNAVAILABLE: it may take it later. THROTTLED: it wants to be left alone for a
    while. REJECTED: it will never take this message. GONE: it takes nothing any more.
    """

    DELIVERED = "delivered"
    UNAVAILABLE = "unavailable"
    THROTTLED = "throttled"
    REJECTED = "rejected"
    GONE = "gone"


@dataclass(frozen=True)
class Outcome:
    """What one attempt came to.

    Attributes:
        reason: short, for people and receipts; no values of secrets.
        status: HTTP or SMTP status, None when there was no answer.
        response: beginning of the answer's body.
        signature_key_id: ids of the keys that signed, separated by spaces.
        external_id: what the receiver calls it: key of the ticket, timestamp of the chat message.
        retry_after: seconds the receiver asked to wait.
    """

    result: Result
    reason: str
    status: int | None = None
    response: str | None = None
    signature_key_id: str | None = None
    external_id: str | None = None
    retry_after: float | None = None
