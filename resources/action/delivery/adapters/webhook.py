"""Webhooks as Standard Webhooks has them (https://github.com/standard-webhooks/standard-webhooks, spec 1.0.0).

Headers: `webhook-id` (the same on every attempt; receivers deduplicate by it), `webhook-timestamp` (seconds, of the
attempt), `webhook-signature` (space-separated: during a rotation there are two). Signed is `id.timestamp.body`:
`v1,` HMAC-SHA256 with the bytes of a `whsec_` secret, `v1a,` Ed25519 with a `whsk_` key.

Guarantee: exactly one effect at receivers that deduplicate by webhook-id, at least one elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from resources.action.delivery.adapters.base import (
    Challenge,
    Dispatch,
    Network,
    json_body,
    json_of,
    outcome_of,
    unverified,
)
from resources.action.delivery.model import Message, Outcome
from resources.governance.endpoints import WebhookEndpoint
from resources.runtime.errors import BareCountError, ErrorCode
from resources.security.http_client import Request, Response

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SYMMETRIC, _PRIVATE, _PUBLIC = "whsec_", "whsk_", "whpk_"
CHALLENGE_TYPE = "barecount.endpoint.verification"


class WebhookAdapter:
    """Delivers signed HTTP requests."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def deliver(self, dispatch: Dispatch[WebhookEndpoint]) -> Outcome:
        response, signed_by = self._post(dispatch, body_of(dispatch.message))
        return outcome_of(response, dispatch.now, signed_by=signed_by)

    def challenge(self, dispatch: Dispatch[WebhookEndpoint], code: str) -> Challenge:
        """The receiver verifies the signature and answers 2xx with `{"challenge": code}`."""
        response, _ = self._post(dispatch, json_body({"type": CHALLENGE_TYPE, "challenge": code}))
        answer = json_of(response)
        if not 200 <= response.status < 300 or not isinstance(answer, dict) or answer.get("challenge") != code:
            raise unverified(dispatch, f"it answered HTTP {response.status} without the challenge; allowed: 2xx with "
                                       '{"challenge": "<the one sent>"}')
        return Challenge(True, "the receiver gave the signed challenge back")

    def _post(self, dispatch: Dispatch[WebhookEndpoint], body: bytes) -> tuple[Response, str]:
        timestamp = int(dispatch.now.timestamp())
        secrets = [secret.value for secret in dispatch.secrets.get("signing", ())] or [dispatch.secret("signing")]
        headers = {
            **dispatch.target.headers,
            "Content-Type": dispatch.message.native.get("webhook", {}).get("content_type", "application/json"),
            "webhook-id": dispatch.idempotency_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(
                sign(secret, dispatch.idempotency_id, timestamp, body) for secret in secrets),
        }
        if dispatch.target.authorization is not None:
            headers["Authorization"] = dispatch.secret("authorization")
        request = Request("POST", dispatch.target.url, headers, body)
        return self._network.http.send(request, dispatch.policy), " ".join(map(key_id, secrets))


def body_of(message: Message) -> bytes:
    """The message's data as JSON; its texts where it has none."""
    return json_body(message.data or {
        "title": message.title, "text": message.text, "severity": message.severity, "step": message.step})


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature, as it stands in the header.

    Raises:
        BareCountError: secret.unknown for a value that is no signing secret.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    if secret.startswith(_PRIVATE):
        return "v1a," + base64.b64encode(_private_key(secret).sign(signed)).decode()
    return "v1," + base64.b64encode(hmac.new(_symmetric_key(secret), signed, hashlib.sha256).digest()).decode()


def verify(
    secrets: Iterable[str], headers: dict[str, str], body: bytes, now: dt.datetime,
    tolerance: dt.timedelta = dt.timedelta(minutes=5),
) -> bool:
    """What a receiver does: whether a signature of the headers (names in lower case) holds, and is fresh.

    `secrets` are `whsec_` secrets and `whpk_` public keys.
    """
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(now.timestamp() - int(timestamp)) > tolerance.total_seconds():
        return False
    signed = f"{message_id}.{timestamp}.".encode() + body
    given = headers.get("webhook-signature", "").split()
    return any(_holds(secret, signature, signed) for secret in secrets for signature in given)


def _holds(secret: str, signature: str, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    scheme, _, value = signature.partition(",")
    try:
        given = base64.b64decode(value, validate=True)
        if scheme == "v1a" and secret.startswith(_PUBLIC):
            Ed25519PublicKey.from_public_bytes(base64.b64decode(secret.removeprefix(_PUBLIC))).verify(given, signed)
            return True
    except (binascii.Error, InvalidSignature):
        return False
    return scheme == "v1" and secret.startswith(_SYMMETRIC) and hmac.compare_digest(
        given, hmac.new(_symmetric_key(secret), signed, hashlib.sha256).digest())


@lru_cache(maxsize=1_000)
def key_id(secret: str) -> str:
    """Names a key in receipts: the public half of it (Ed25519), or a digest (HMAC); 8 hex digits."""
    material = public_key(secret).encode() if secret.startswith(_PRIVATE) else b"barecount-key\0" + secret.encode()
    return hashlib.sha256(material).hexdigest()[:8]


def public_key(secret: str) -> str:
    """`whpk_<base64>` of a `whsk_` key: what its receivers need."""
    return _PUBLIC + base64.b64encode(_private_key(secret).public_key().public_bytes_raw()).decode()


def new_secret(*, asymmetric: bool = False) -> str:
    """A fresh signing secret: 32 random bytes, `whsec_` or `whsk_`."""
    import secrets

    return (_PRIVATE if asymmetric else _SYMMETRIC) + base64.b64encode(secrets.token_bytes(32)).decode()


@lru_cache(maxsize=1_000)
def _symmetric_key(secret: str) -> bytes:
    key = _decoded(secret, _SYMMETRIC)
    if not 24 <= len(key) <= 64:
        raise _no_secret(f"a {_SYMMETRIC} secret has 24 to 64 bytes, this one {len(key)}")
    return key


@lru_cache(maxsize=1_000)
def _private_key(secret: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _decoded(secret, _PRIVATE)
    if len(key) not in (32, 64):  # some tools append the public half to the seed
        raise _no_secret(f"a {_PRIVATE} key has 32 or 64 bytes, this one {len(key)}")
    return Ed25519PrivateKey.from_private_bytes(key[:32])


def _decoded(secret: str, prefix: str) -> bytes:
    if not secret.startswith(prefix):
        raise _no_secret(f"its value begins with neither {_SYMMETRIC} nor {_PRIVATE}")
    try:
        return base64.b64decode(secret.removeprefix(prefix), validate=True)
    except binascii.Error as error:
        raise _no_secret("its value is not base64") from error


def _no_secret(problem: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SECRET_UNKNOWN, f"not a signing secret of Standard Webhooks: {problem}",
        hint="`barecount secrets set NAME --generate whsec` makes one")
