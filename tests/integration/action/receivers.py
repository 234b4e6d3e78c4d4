"""Receivers as the world has them: real servers on this machine, some of which misbehave."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Received:
    """A request as it came in; names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """An HTTP server that answers what `reply` says and keeps what it was sent.

    `reply` may also return a function, which is given the handler and does with the connection as it likes.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Callable[[Received], Reply | Callable[[BaseHTTPRequestHandler], None]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.received: list[Received] = []

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Received(self.command, self.path, headers, self.rfile.read(length))
        self.server.received.append(request)
        reply = self.server.reply(request)
        if not isinstance(reply, Reply):
            self.close_connection = True
            reply(self)
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_PATCH = _answer

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@contextmanager
def serving(
    reply: Callable[[Received], Any] = lambda request: Reply(), *, certificate: Path | None = None
) -> Iterator[Server]:
    """A running server; with a PEM file of key and certificate it speaks TLS."""
    server = Server(reply)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


# --- ways to misbehave ------------------------------------------------------------------------------------


def resets(handler: BaseHTTPRequestHandler) -> None:
    """Ends the connection with RST."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def says_nothing(handler: BaseHTTPRequestHandler) -> None:
    """Keeps the connection open until the other side has had enough."""
    handler.connection.recv(1)


def drips(handler: BaseHTTPRequestHandler) -> None:
    """Sends a byte of its answer now and then, so that no single read times out."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            handler.wfile.write(b"a")
            handler.wfile.flush()
            handler.connection.settimeout(0.02)
            try:
                if not handler.connection.recv(1):
                    return
            except TimeoutError:
                continue
    except OSError:
        return


def talks_without_end(handler: BaseHTTPRequestHandler) -> None:
    """A body that never ends."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            handler.wfile.write(b"x" * 65536)
    except OSError:
        return


def talks_nonsense(handler: BaseHTTPRequestHandler) -> None:
    """No HTTP at all."""
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


# --- ticket systems ---------------------------------------------------------------------------------------


@dataclass
class JiraServer:
    """As much of Jira's REST API 2 as a client needs, with its state. `before_answer` can lose an answer."""

    user: str = "bot@acme.example"
    token: str = "jira-token"
    issues: dict[str, dict[str, Any]] = field(default_factory=dict)
    before_answer: Callable[[Received], None] = lambda request: None

    def __call__(self, request: Received) -> Reply | Callable[[BaseHTTPRequestHandler], None]:
        expected = "Basic " + base64.b64encode(f"{self.user}:{self.token}".encode()).decode()
        if request.headers.get("authorization") != expected:
            return Reply(401, f"bad login {request.headers.get('authorization')}".encode())
        reply = self._route(request)
        try:
            self.before_answer(request)
        except ConnectionResetError:
            return resets
        return reply

    def _route(self, request: Received) -> Reply:
        url = urlsplit(request.path)
        path = url.path.removeprefix("/rest/api/2")
        match request.method, path.strip("/").split("/"):
            case "GET", ["myself"]:
                return _json({"accountId": "1"})
            case "GET", ["project", "FIN"]:
                return _json({"key": "FIN"})
            case "GET", ["search", "jql"]:
                label = re.search(r'labels = "([^"]+)"', parse_qs(url.query)["jql"][0])
                assert label is not None
                found = [issue for issue in self.issues.values() if label[1] in issue["fields"]["labels"]]
                return _json({"issues": found[::-1]})
            case "POST", ["issue"]:
                return self._create(request.document["fields"])
            case "PUT", ["issue", number]:
                self.issues[number]["fields"].update(request.document["fields"])
                return Reply(204)
            case "GET", ["issue", number, "comment"]:
                return _json({"comments": [{"body": text} for text in self.issues[number]["comments"]]})
            case "POST", ["issue", number, "comment"]:
                self.issues[number]["comments"].append(request.document["body"])
                return _json({"id": "1"}, 201)
            case "GET", ["issue", _, "transitions"]:
                return _json({"transitions": [{"id": "21", "name": "Finish", "to": {"name": "Done"}}]})
            case "POST", ["issue", number, "transitions"]:
                assert request.document == {"transition": {"id": "21"}}
                self.issues[number]["fields"]["status"] = {"name": "Done", "statusCategory": {"key": "done"}}
                return Reply(204)
        return Reply(404)

    def _create(self, fields: dict[str, Any]) -> Reply:
        if fields["issuetype"]["name"] == "Nonsense":
            return _json({"errors": {"issuetype": "unknown"}}, 400)
        number = str(len(self.issues) + 1)
        status = {"name": "To Do", "statusCategory": {"key": "new"}}
        self.issues[number] = {"id": number, "key": f"FIN-{number}", "fields": {**fields, "status": status},
                               "comments": []}
        return _json({"id": number, "key": f"FIN-{number}"}, 201)


@dataclass
class ServiceNowServer:
    """As much of ServiceNow's Table API as a client needs, with its state."""

    records: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    before_answer: Callable[[Received], None] = lambda request: None

    def __call__(self, request: Received) -> Reply | Callable[[BaseHTTPRequestHandler], None]:
        if request.headers.get("authorization") != "Basic " + base64.b64encode(b"bot:snow-password").decode():
            return Reply(401)
        reply = self._route(request)
        try:
            self.before_answer(request)
        except ConnectionResetError:
            return resets
        return reply

    def _route(self, request: Received) -> Reply:
        url = urlsplit(request.path)
        query = parse_qs(url.query, keep_blank_values=True).get("sysparm_query", [""])[0]
        match request.method, url.path.removeprefix("/api/now/table/").split("/"):
            case "GET", ["incident"]:
                wanted = query.partition("^")[0].removeprefix("correlation_id=")
                found = [row for row in self.records.values() if row["correlation_id"] == wanted]
                return _json({"result": found[::-1]})
            case "GET", ["sys_journal_field"]:
                parts = dict(part.split("=", 1) for part in query.split("^") if "=" in part)
                mark = query.partition("valueLIKE")[2]
                found = [{"sys_id": "n"} for record, text in self.notes
                         if record == parts["element_id"] and mark in text]
                return _json({"result": found})
            case "POST", ["incident"]:
                number = str(len(self.records) + 1)
                row = {**request.document, "sys_id": number, "number": f"INC{number}", "active": "true"}
                self.records[number] = row
                return _json({"result": row}, 201)
            case "PATCH", ["incident", number]:
                fields = dict(request.document)
                if note := fields.pop("work_notes", None):
                    self.notes.append((number, note))
                self.records[number].update(fields)
                if fields.get("state") == "6":
                    self.records[number]["active"] = "false"
                return _json({"result": self.records[number]})
        return Reply(404)


def _json(document: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json"})


# --- certificates -----------------------------------------------------------------------------------------


def certificate(folder: Path, name: str = "localhost", address: str = "127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate: a PEM file of key and certificate for a server, and one a client may trust."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())
    both, alone = folder / f"{name}.pem", folder / f"{name}.crt"
    both.write_bytes(private + public)
    alone.write_bytes(public)
    return both, alone
