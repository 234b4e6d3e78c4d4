"""What the demo delivers to: a receiver of signed webhooks, a mail server and a ticket system, all on this machine.

They are small, but they are what a receiver is: the webhook's signature is verified before anything is believed, mail
arrives over SMTP, and tickets are found again by their label.
"""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import hashlib
import hmac
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PROJECT, TOKEN = "FIN", "token-of-the-demo"


@dataclass
class Received:
    """What arrived.

    Attributes:
        webhooks: verified bodies by webhook-id; a second delivery of one id changes nothing.
        refused: webhooks whose signature did not verify.
        mails: messages, without the one that asks to verify the mailbox.
        code: the code that mail brought.
        tickets: issues by key.
    """

    secret: bytes
    webhooks: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    code: str = ""
    tickets: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Receivers:
    """Where they listen, and what they have received."""

    http_url: str
    smtp_port: int
    received: Received


@contextlib.contextmanager
def listening(signing_secret: str) -> Iterator[Receivers]:
    """Start all three on free ports of the loopback address, and stop them.

    Args:
        signing_secret: of the webhook, `whsec_<base64>`.
    """
    from aiosmtpd.controller import Controller

    received = Received(base64.b64decode(signing_secret.removeprefix("whsec_")))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(received))
    mail = Controller(_Mailbox(received), hostname="127.0.0.1", port=_free_port())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    mail.start()
    try:
        yield Receivers(f"http://127.0.0.1:{server.server_port}", mail.port, received)
    finally:
        mail.stop()
        server.shutdown()
        server.server_close()
        thread.join()


class _Mailbox:
    """Takes every mail."""

    def __init__(self, received: Received) -> None:
        self._received = received

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        body = message.get_body(("plain",))
        code = re.search(r"The code of endpoint \S+ is (\S+)\.", body.get_content() if body else "")
        if code:
            self._received.code = code[1]
        else:
            self._received.mails.append(message)
        return "250 taken"


def _handler(received: Received) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            status, document = (
                _webhook(received, self.headers, body) if url.path == "/hooks"
                else _tickets(received, self.command, url.path.removeprefix("/rest/api/2"), parse_qs(url.query),
                              self.headers.get("Authorization"), json.loads(body) if body else {}))
            answer = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the base class's names

        def log_message(self, *arguments: Any) -> None:
            return None

    return Handler


def _webhook(received: Received, headers: Any, body: bytes) -> tuple[int, Any]:
    """Standard Webhooks: verify `webhook-id.webhook-timestamp.body` before the body is read."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.new(received.secret, signed, hashlib.sha256).digest()).decode()
    if not any(hmac.compare_digest(wanted, one) for one in str(headers["webhook-signature"]).split()):
        received.refused += 1
        return 401, {"error": "the signature does not verify"}
    document = json.loads(body)
    if "challenge" in document:
        return 200, {"challenge": document["challenge"]}
    received.webhooks.setdefault(headers["webhook-id"], document)
    return 200, {}


def _tickets(
    received: Received, method: str, path: str, query: dict[str, list[str]], login: str | None, document: Any
) -> tuple[int, Any]:
    """As much of Jira's REST API 2 as opening, finding, commenting and closing an issue needs."""
    if login != f"Bearer {TOKEN}":
        return 401, {}
    match method, path.strip("/").split("/"):
        case "GET", ["myself"]:
            return 200, {"name": "barecount"}
        case "GET", ["project", name] if name == PROJECT:
            return 200, {"key": name}
        case "GET", ["search"]:
            label = re.search(r'labels = "([^"]+)"', query["jql"][0])
            found = [t for t in received.tickets.values() if label and label[1] in t["fields"]["labels"]]
            return 200, {"issues": found}
        case "POST", ["issue"]:
            key = f"{PROJECT}-{len(received.tickets) + 1}"
            status = {"name": "To Do", "statusCategory": {"key": "new"}}
            received.tickets[key] = {"id": key, "key": key, "fields": {**document["fields"], "status": status},
                                     "comments": []}
            return 201, {"id": key, "key": key}
        case "PUT", ["issue", key] if key in received.tickets:
            received.tickets[key]["fields"].update(document["fields"])
            return 200, {}
        case "GET", ["issue", key, "comment"] if key in received.tickets:
            return 200, {"comments": received.tickets[key]["comments"]}
        case "POST", ["issue", key, "comment"] if key in received.tickets:
            received.tickets[key]["comments"].append({"body": document["body"]})
            return 201, {}
        case "GET", ["issue", _, "transitions"]:
            return 200, {"transitions": [{"id": "31", "name": "Done", "to": {"name": "Done"}}]}
        case "POST", ["issue", key, "transitions"] if key in received.tickets:
            received.tickets[key]["fields"]["status"] = {"name": "Done", "statusCategory": {"key": "done"}}
            return 200, {}
    return 404, {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
