"""Slack: incoming webhooks and `chat.postMessage` (https://api.slack.com/methods/chat.postMessage).

Guarantee: at least one message. Slack knows no idempotency key: a worker killed between Slack's answer and its record
leads to a second message.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from resources.action.delivery.adapters.base import (
    Challenge,
    Dispatch,
    Network,
    json_body,
    json_of,
    outcome_of,
    unverified,
)
from resources.action.delivery.model import Message, Outcome, Result
from resources.governance.endpoints import SlackEndpoint
from resources.runtime.redaction import protect
from resources.security.http_client import Request, Response

_REJECTED = frozenset((400, 404, 413))
_MAY_PASS = frozenset(("ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable",
                       "request_timeout", "team_added_to_org", "token_expired", "invalid_auth", "not_authed",
                       "account_inactive", "token_revoked", "not_in_channel"))
"""Errors of the Web API that time, or an administrator, may cure."""


class SlackAdapter:
    """Delivers chat messages."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def deliver(self, dispatch: Dispatch[SlackEndpoint]) -> Outcome:
        response = self._post(dispatch, payload(dispatch.message))
        outcome = outcome_of(response, dispatch.now, rejected=_REJECTED)
        if dispatch.target.token is None or outcome.result is not Result.DELIVERED:
            return outcome
        return _of_web_api(response, outcome)

    def challenge(self, dispatch: Dispatch[SlackEndpoint], code: str) -> Challenge:
        """A bot's token is tried out; a channel behind an incoming webhook is shown a code."""
        if dispatch.target.token is not None:
            answer = json_of(self._call(dispatch, "auth.test", {}))
            if not isinstance(answer, dict) or not answer.get("ok"):
                problem = answer.get("error") if isinstance(answer, dict) else "no JSON"
                raise unverified(dispatch, f"Slack's auth.test answers {problem}")
            return Challenge(True, "Slack knows the token")
        message = Message("Verification of an endpoint", f"The code of endpoint {dispatch.endpoint} is {code}.")
        response = self._post(dispatch, payload(message))
        if response.status != 200:
            raise unverified(dispatch, f"Slack answers HTTP {response.status}")
        return Challenge(False, "a message with a code was posted to the channel")

    def _post(self, dispatch: Dispatch[SlackEndpoint], document: dict[str, Any]) -> Response:
        if dispatch.target.token is not None:
            return self._call(dispatch, "chat.postMessage", {"channel": dispatch.target.channel, **document})
        url = dispatch.secret("webhook_url")
        path = urlsplit(url).path
        protect(path)  # the secret part of it, and what an error page would repeat
        protect(path.rpartition("/")[2])
        request = Request("POST", url, {"Content-Type": "application/json"}, json_body(document))
        return self._network.http.send(request, dispatch.policy)

    def _call(self, dispatch: Dispatch[SlackEndpoint], method: str, document: dict[str, Any]) -> Response:
        headers = {"Content-Type": "application/json; charset=utf-8",
                   "Authorization": f"Bearer {dispatch.secret('token')}"}
        url = f"{dispatch.target.api_url.rstrip('/')}/{method}"
        return self._network.http.send(Request("POST", url, headers, json_body(document)), dispatch.policy)


def payload(message: Message) -> dict[str, Any]:
    """The message in Slack's own terms; `native["slack"]` (blocks, thread_ts, ...) goes over it."""
    return {"text": f"*{_escaped(message.title)}*\n{_escaped(message.text)}".strip(), **message.native.get("slack", {})}


def _of_web_api(response: Response, outcome: Outcome) -> Outcome:
    """The Web API says 200 to everything; what happened is in the body."""
    answer = json_of(response)
    if isinstance(answer, dict) and answer.get("ok") is True:
        return Outcome(Result.DELIVERED, "ok", outcome.status, outcome.response, external_id=answer.get("ts"))
    error = str(answer.get("error", "no error named")) if isinstance(answer, dict) else "the answer is no JSON"
    result = Result.UNAVAILABLE if error in _MAY_PASS or not isinstance(answer, dict) else Result.REJECTED
    return Outcome(result, f"Slack says {error}", outcome.status, outcome.response)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
