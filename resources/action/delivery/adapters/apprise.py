"""The long tail of services, through Apprise (https://github.com/caronc/apprise).

Apprise makes its own connections, so it runs in a process of its own (`apprise_process.py`) where every connection is
checked as it is made, and no other program can be started. The URL, which holds the tokens, goes there by its standard
input.

Guarantee: at least one message.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

from resources.action.delivery.adapters.base import Challenge, Dispatch, Network, unverified
from resources.action.delivery.model import Message, Outcome, Result
from resources.governance.endpoints import AppriseEndpoint
from resources.security.egress import EgressDenied

_TYPES = {"info": "info", "warning": "warning", "critical": "failure"}
_START_SECONDS = 30.0  # importing Apprise takes a second or two, more on a busy machine
_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


class AppriseAdapter:
    """Delivers through Apprise."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def deliver(self, dispatch: Dispatch[AppriseEndpoint]) -> Outcome:
        order = json.dumps({
            "url": dispatch.secret("url"), "title": dispatch.message.title, "body": dispatch.message.text,
            "type": _TYPES[dispatch.message.severity], "timeout": self._network.timeout,
            "openings": [asdict(opening) for opening in dispatch.policy.openings]})
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "resources.action.delivery.adapters.apprise_process"], input=order, text=True,
                capture_output=True, timeout=_START_SECONDS + 2 * self._network.timeout,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        except subprocess.TimeoutExpired:
            return Outcome(Result.UNAVAILABLE, "the service did not answer in time")
        try:
            answer = json.loads(ended.stdout)
        except ValueError:
            return Outcome(Result.UNAVAILABLE, f"Apprise ended with code {ended.returncode} and no answer")
        if answer["denied"]:
            raise EgressDenied(answer["denied"])
        if answer["sent"]:
            return Outcome(Result.DELIVERED, f"{answer['service']} took it")
        result = Result.REJECTED if answer["refused"] else Result.UNAVAILABLE
        return Outcome(result, answer["refused"] or f"{answer['service']} did not take it", answer["status"])

    def challenge(self, dispatch: Dispatch[AppriseEndpoint], code: str) -> Challenge:
        """Whoever reads the service's messages is shown a code."""
        message = Message("Verification of an endpoint", f"The code of endpoint {dispatch.endpoint} is {code}.")
        outcome = self.deliver(Dispatch(
            dispatch.tenant_id, dispatch.endpoint, f"challenge-{code}", message, dispatch.target, dispatch.policy,
            dispatch.now, dispatch.secrets))
        if outcome.result is not Result.DELIVERED:
            raise unverified(dispatch, outcome.reason)
        return Challenge(False, "a message with a code was sent")
