"""E-mail, Slack and Apprise's services: what arrives there, and what refusals mean."""

from __future__ import annotations

import email
import email.policy
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, Session

from resources.action.delivery import verification
from resources.action.delivery.adapters.base import Network
from resources.action.delivery.worker import Sender
from resources.runtime.errors import BareCountError
from resources.security.egress import EgressPolicy, Opening
from tests.integration.action import receivers
from tests.integration.action.conftest import LOCAL, Desk
from tests.integration.action.receivers import Reply, serving


class Mailbox:
    """Keeps what it is sent; `refuse` gives a reply for a recipient instead."""

    def __init__(self, refuse: Callable[[str], str | None] = lambda recipient: None) -> None:
        self.messages: list[email.message.EmailMessage] = []
        self.refuse = refuse

    async def handle_RCPT(self, server: Any, session: Session, envelope: Envelope, address: str, options: Any) -> str:
        if refusal := self.refuse(address):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 taken"


@contextmanager
def smtp(mailbox: Mailbox, **options: Any) -> Iterator[int]:
    with socket.socket() as free:  # the controller wants to know its port beforehand
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = Controller(mailbox, "127.0.0.1", port, **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def target(port: int, **options: Any) -> dict[str, Any]:
    return {"adapter": "email", "host": "127.0.0.1", "port": port, "security": "none",
            "sender": "barecount@acme.example", "recipients": ["cfo@acme.example"], **options}


def test_an_email_has_the_same_id_on_every_attempt_and_a_thread_per_subject(desk: Desk) -> None:
    mailbox = Mailbox(lambda recipient: "451 later")
    with smtp(mailbox) as port:
        desk.endpoint(target(port))
        desk.queue("1", title="DSO is\n61 days", html="<b>61</b>", correlation="dso", severity="critical")
        assert desk.work().failed == 1
        mailbox.refuse = lambda recipient: None
        desk.later(minutes=1)
        desk.queue("2", correlation="dso")
        assert desk.work().completed == 2
    first, second = sorted(mailbox.messages, key=lambda one: not one.is_multipart())
    assert first["Subject"] == "DSO is 61 days" and first["Importance"] == "high"
    assert first.get_body(("html",)).get_content().strip() == "<b>61</b>"
    assert first["References"] == second["References"] and first["Message-ID"] != second["Message-ID"]
    failed, done = desk.receipts("1")
    assert (failed.status, failed.reason) == (451, "every recipient is refused")
    assert done.external_id == first["Message-ID"]


def test_a_recipient_that_does_not_exist_is_given_up_and_the_others_get_it(desk: Desk) -> None:
    mailbox = Mailbox(lambda recipient: "550 no such user" if "gone" in recipient else None)
    with smtp(mailbox) as port:
        desk.endpoint(target(port, recipients=["gone@acme.example"]), name="gone")
        desk.endpoint(target(port, recipients=["gone@acme.example", "cfo@acme.example"]), name="both")
        desk.queue("1", endpoint="gone")
        desk.queue("2", endpoint="both")
        assert (report := desk.work()).dlq == 1 and report.completed == 1
    assert desk.receipts("2")[0].reason == "accepted for 1 of 2 recipients" and len(mailbox.messages) == 1


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_mail_is_encrypted_and_the_login_is_checked(desk: Desk, tmp_path: Path, security: str) -> None:
    pair, public = receivers.certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair)

    def login(server: Any, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=data.password == b"mail-password", handled=False)

    options: dict[str, Any] = {"authenticator": login, "auth_required": True}
    options |= ({"ssl_context": tls, "auth_require_tls": False} if security == "tls" else
                {"tls_context": tls, "require_starttls": True})
    desk.secrets.keep("acme", "mail", {"password": "mail-password"})
    desk.secrets.keep("acme", "wrong", {"password": "mail-passw0rd"})
    desk.network.close()
    desk.network = Network.open(timeout=5.0, tls=ssl.create_default_context(cafile=str(public)))
    desk.policies["acme"] = EgressPolicy((Opening("127.0.0.1"),))
    mailbox = Mailbox()
    with smtp(mailbox, **options) as port:
        for name in ("mail", "wrong"):
            desk.endpoint(target(port, security=security, username="bot", password=f"secret://{name}#password",
                                 host="localhost"), name=name)
            desk.queue(name, endpoint=name)
        desk.work()
    assert desk.delivery("mail").state == "completed" and len(mailbox.messages) == 1
    assert desk.receipts("wrong")[0].reason == "the login is refused"


def test_mail_is_not_sent_in_the_open_to_a_server_without_starttls(desk: Desk) -> None:
    mailbox = Mailbox()
    with smtp(mailbox) as port:
        desk.endpoint(target(port, security="starttls"))
        desk.queue("1")
        assert desk.work().failed == 1
    assert mailbox.messages == [] and "STARTTLS" in desk.receipts("1")[0].reason


def test_a_mailbox_is_verified_by_the_code_it_was_sent(desk: Desk) -> None:
    mailbox = Mailbox()
    with smtp(mailbox) as port:
        desk.endpoint(target(port), verified=False)
        sender = Sender(desk.database, desk.secrets, lambda tenant: LOCAL, desk.network)
        answered = verification.challenge(desk.database, sender, "acme", "ops", now=desk.now)
        assert not answered.confirmed
        found = re.search(r"is ([0-9a-f]{16})\.", mailbox.messages[0].get_content())
        assert found is not None
        with pytest.raises(BareCountError, match="not the one"):
            verification.confirm(desk.database, "acme", "ops", "0" * 16, now=desk.now)
        verification.confirm(desk.database, "acme", "ops", found[1], now=desk.now)
        desk.queue("1")
        assert desk.work().completed == 1


def test_a_code_is_worth_nothing_after_a_day(desk: Desk) -> None:
    mailbox = Mailbox()
    with smtp(mailbox) as port:
        desk.endpoint(target(port), verified=False)
        sender = Sender(desk.database, desk.secrets, lambda tenant: LOCAL, desk.network)
        verification.challenge(desk.database, sender, "acme", "ops", now=desk.now)
    found = re.search(r"is ([0-9a-f]{16})\.", mailbox.messages[0].get_content())
    assert found is not None
    desk.later(hours=25)
    with pytest.raises(BareCountError, match="over a day old"):
        verification.confirm(desk.database, "acme", "ops", found[1], now=desk.now)


def test_slack_is_reached_by_webhook_and_by_the_web_api(desk: Desk) -> None:
    answers = {"/hook": Reply(200, b"ok"), "/api/chat.postMessage": Reply(200, b'{"ok": true, "ts": "17.5"}')}
    with serving(lambda request: answers[request.path]) as server:
        desk.secrets.keep("acme", "slack", {"url": f"{server.url}/hook", "token": "xoxb-token-of-the-test"})
        desk.endpoint({"adapter": "slack", "webhook_url": "secret://slack#url"}, name="hook")
        desk.endpoint({"adapter": "slack", "token": "secret://slack#token", "channel": "#finance",
                       "api_url": f"{server.url}/api"}, name="bot")
        for name in ("hook", "bot"):
            desk.queue(name, endpoint=name, title="DSO > 60 & rising", native={"slack": {"unfurl_links": False}})
        assert desk.work().completed == 2
        answers["/api/chat.postMessage"] = Reply(200, b'{"ok": false, "error": "channel_not_found"}')
        desk.queue("lost", endpoint="bot")
        answers["/hook"] = Reply(429, b"", {"Retry-After": "30"})
        desk.queue("later", endpoint="hook")
        report = desk.work()
    assert (report.dlq, report.failed) == (1, 1)
    hook, bot = sorted(server.received[:2], key=lambda one: one.path, reverse=True)
    assert hook.document == {"text": "*DSO &gt; 60 &amp; rising*\nabove 45", "unfurl_links": False}
    assert bot.document["channel"] == "#finance" and bot.headers["authorization"] == "Bearer xoxb-token-of-the-test"
    assert desk.receipts("bot")[0].external_id == "17.5"
    assert desk.receipts("lost")[0].reason == "Slack says channel_not_found"


def test_apprise_delivers_within_the_egress_policy_only(desk: Desk) -> None:
    with serving() as server:
        desk.secrets.keep("acme", "tail", {"url": f"json://127.0.0.1:{server.port}/in", "bad": "syslog://"})
        desk.endpoint({"adapter": "apprise", "url": "secret://tail#url"})
        desk.endpoint({"adapter": "apprise", "url": "secret://tail#bad"}, name="bad")
        desk.queue("1")
        desk.queue("2", endpoint="bad")
        report = desk.work()
        assert (report.completed, report.dlq) == (1, 1)
        desk.policies["acme"] = EgressPolicy()
        desk.queue("3")
        assert desk.work().dlq == 1
    assert [request.document["title"] for request in server.received] == ["DSO is 61 days"]
    assert "refused" in desk.receipts("2")[0].reason and "refused" in desk.receipts("3")[0].reason
    assert json.dumps([one.reason for one in desk.receipts()]).count("json://") == 0
