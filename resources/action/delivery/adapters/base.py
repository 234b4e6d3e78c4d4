"""What an adapter is given, and what it answers.

An adapter turns a `Dispatch` into requests and their answers into an `Outcome`. It keeps nothing, decides about no
retry, and never raises for what the other side did: only `worker.py` knows about attempts, time and the database.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import hashlib
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from resources.action.delivery.model import Message, Outcome, Result
from resources.runtime.errors import BareCountError, ErrorCode
from resources.security.egress import EgressPolicy, Resolver, system_resolver
from resources.security.http_client import HttpClient, Response
from resources.trust.secrets import SecretValue

Target = TypeVar("Target")


@dataclass(frozen=True)
class Network:
    """How adapters reach the world.

    Attributes:
        timeout: seconds for one request, or one e-mail, from connecting to the last byte.
    """

    http: HttpClient
    timeout: float = 15.0
    resolve: Resolver = system_resolver
    tls: ssl.SSLContext | None = None

    @classmethod
    def open(
        cls, *, timeout: float = 15.0, resolve: Resolver = system_resolver, tls: ssl.SSLContext | None = None
    ) -> Network:
        return cls(HttpClient(timeout=timeout, resolve=resolve, tls=tls), timeout, resolve, tls)

    def close(self) -> None:
        self.http.close()


@dataclass(frozen=True)
class Dispatch(Generic[Target]):
    """One attempt to deliver a message.

    Attributes:
        key: the delivery key, the same on every attempt.
        target: the endpoint's target as declared.
        secrets: valid values by purpose, the newest first.
        now: when the attempt is made.
    """

    tenant_id: str
    endpoint: str
    key: str
    message: Message
    target: Target
    policy: EgressPolicy
    now: dt.datetime
    secrets: Mapping[str, Sequence[SecretValue]] = field(default_factory=dict, repr=False)

    @property
    def idempotency_id(self) -> str:
        """What receivers deduplicate by: made of tenant and delivery key, fit for a header, 36 characters."""
        return "msg_" + hashlib.sha256(f"{self.tenant_id}\0{self.key}".encode()).hexdigest()[:32]

    @property
    def correlation_id(self) -> str:
        """What one ticket is known by: made of tenant, endpoint and the message's correlation, 34 characters."""
        about = self.message.correlation or self.key
        return "barecount-" + hashlib.sha256(
            f"{self.tenant_id}\0{self.endpoint}\0{about}".encode()).hexdigest()[:24]

    def secret(self, purpose: str) -> str:
        """The newest value for a purpose.

        Raises:
            BareCountError: secret.unknown when the endpoint has none.
        """
        values = self.secrets.get(purpose)
        if not values:
            raise BareCountError(ErrorCode.SECRET_UNKNOWN, f"endpoint {self.endpoint} has no secret for {purpose}")
        return values[0].value


@dataclass(frozen=True)
class Challenge:
    """How a challenge went: confirmed at once, or sent with a code that somebody must give back."""

    confirmed: bool
    how: str


class Adapter(Protocol):
    """Delivers to one kind of system."""

    def deliver(self, dispatch: Dispatch[Any]) -> Outcome:
        """Deliver. Raises BareCountError for what kept it from being tried: egress.denied, secret.*, source.*."""
        ...

    def challenge(self, dispatch: Dispatch[Any], code: str) -> Challenge:
        """Make the receiver prove that it wants deliveries.

        Raises:
            BareCountError: delivery.unverified when it does not.
        """
        ...


def json_body(document: Any) -> bytes:
    """JSON that is the same bytes for the same document."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def json_of(response: Response) -> Any:
    """The answer's body, or None when it is no JSON."""
    try:
        return json.loads(response.body)
    except ValueError:
        return None


def outcome_of(
    response: Response, now: dt.datetime, *, rejected: frozenset[int] = frozenset(), signed_by: str | None = None,
    external_id: str | None = None,
) -> Outcome:
    """What an HTTP answer means.

    Args:
        rejected: statuses by which this receiver says that it will never take the message.
    """
    status = response.status
    retry_after = None
    if 200 <= status < 300:
        result, reason = Result.DELIVERED, f"HTTP {status}"
    elif status == 410:
        result, reason = Result.GONE, "HTTP 410: the endpoint takes nothing any more"
    elif status in (429, 503):
        retry_after = retry_after_seconds(response.headers.get("retry-after"), now)
        result = Result.THROTTLED if status == 429 or retry_after is not None else Result.UNAVAILABLE
        reason = f"HTTP {status}" + (f", retry after {retry_after:.0f} s" if retry_after is not None else "")
    elif 300 <= status < 400:
        result, reason = Result.UNAVAILABLE, f"HTTP {status}: redirects are not followed"
    else:
        result, reason = Result.REJECTED if status in rejected else Result.UNAVAILABLE, f"HTTP {status}"
    text = response.body.decode("utf-8", "replace")
    return Outcome(result, reason, status, text, signed_by, external_id, retry_after)


def retry_after_seconds(value: str | None, now: dt.datetime) -> float | None:
    """Seconds of a Retry-After header, which has seconds or a date; None for neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip())
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=dt.UTC)
    return max(0.0, (until - now).total_seconds())


def unverified(dispatch: Dispatch[Any], problem: str) -> BareCountError:
    """The error of a challenge that failed."""
    return BareCountError(
        ErrorCode.DELIVERY_UNVERIFIED, f"endpoint {dispatch.tenant_id}/{dispatch.endpoint} is not verified: {problem}",
        hint="correct the receiver or the declaration, then verify again")
