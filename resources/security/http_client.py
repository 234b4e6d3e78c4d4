"""An HTTP/1.1 client that goes only where a tenant may go, follows nothing, and waits no longer than it should.

Connections come from `egress.connect`: to a checked address, with the name in `Host`, SNI and the certificate check.
Redirects are answers like any other. Everything, from connecting to the last byte of the body, happens within
`timeout` seconds (resolving the name aside, which the system's resolver bounds); bodies are read up to a limit, and
what is longer closes the connection. Connections are kept alive per policy and origin and used by one thread at a time.
Nothing is sent twice: who repeats a request must know that it may.

Answers are read by `httptools` (llhttp, the parser of Node.js): of a webhook's processor time `http.client` took half,
and the pools of httpcore and urllib3 more than that.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import SOFTWARE_VERSION
from resources.security import egress
from resources.security.deadlines import Deadlines

MAX_BODY = 64 * 1024
_PIECE = 64 * 1024
_MAX_HEAD = 64 * 1024
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")
_BODIES = ("POST", "PUT", "PATCH")
_IDLE_SECONDS = 30.0
_IDLE_PER_ORIGIN = 128
USER_AGENT = f"BareCount/{SOFTWARE_VERSION}"


class HttpFailure(BareCountError):
    """There was no answer, or none that could be read: a timeout, a reset, a wrong certificate."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.SOURCE_UNAVAILABLE, message, retryable=True)


@dataclass(frozen=True)
class Request:
    """One request; the body is sent as it is."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Response:
    """One answer.

    Attributes:
        headers: names in lower case.
        body: at most `MAX_BODY` bytes of it; `is_cut` says whether there was more.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_cut: bool


@dataclass(frozen=True)
class _Origin:
    policy: egress.EgressPolicy
    scheme: str
    host: str
    port: int

    @property
    def header(self) -> str:
        """As it stands in `Host`: without the port where it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host.encode("idna").decode()
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}


class HttpClient:
    """Sends requests; safe to use from many threads. Close it to end its connections."""

    def __init__(
        self, *, timeout: float = 15.0, resolve: egress.Resolver = egress.system_resolver,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout = timeout
        self._resolve = resolve
        self._tls = tls or ssl.create_default_context()
        self._idle: dict[_Origin, deque[tuple[float, socket.socket]]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._watch = Deadlines()

    def send(self, request: Request, policy: egress.EgressPolicy) -> Response:
        """Send one request and read its answer.

        Raises:
            EgressDenied: the policy does not allow the connection; nothing was sent.
            HttpFailure: no answer; the message says what happened, and names no address.
        """
        parts = urlsplit(request.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise egress.EgressDenied("only http and https URLs are connected to")
        origin = _Origin(policy, parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])
        message = _message(request, origin, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        deadline = time.monotonic() + self._timeout
        with _as_failure(origin, self._timeout):
            sock = self._take(origin) or self._open(origin, deadline)
            try:
                with self._watch.until(deadline, sock):
                    sock.sendall(message)
                    answer = _read(sock)
            except BaseException:
                sock.close()
                raise
            if answer.may_stay_open:
                self._give_back(origin, sock)
            else:
                sock.close()
        return Response(answer.status, answer.headers, bytes(answer.body[:MAX_BODY]), answer.is_cut)

    def close(self) -> None:
        """End all idle connections."""
        with self._lock:
            idle, self._idle = self._idle, defaultdict(deque)
        for connections in idle.values():
            for _, connection in connections:
                connection.close()
        self._watch.close()

    def _open(self, origin: _Origin, deadline: float) -> socket.socket:
        plaintext = origin.scheme == "http"
        sock = egress.connect(
            origin.host, origin.port, origin.policy, plaintext=plaintext, resolve=self._resolve,
            timeout=max(deadline - time.monotonic(), 0.001))
        try:
            sock.settimeout(self._timeout)
            if not plaintext:
                sock = self._tls.wrap_socket(sock, server_hostname=origin.host, do_handshake_on_connect=False)
                with self._watch.until(deadline, sock):
                    sock.do_handshake()
        except BaseException:
            sock.close()
            raise
        return sock

    def _take(self, origin: _Origin) -> socket.socket | None:
        """An idle connection that the other side has not closed."""
        while True:
            with self._lock:
                connections = self._idle.get(origin)
                if not connections:
                    return None
                since, sock = connections.pop()
            fresh = time.monotonic() - since < _IDLE_SECONDS
            if fresh and not _is_readable(sock):  # an end of the stream, or bytes nobody asked for
                return sock
            sock.close()

    def _give_back(self, origin: _Origin, sock: socket.socket) -> None:
        with self._lock:
            connections = self._idle[origin]
            connections.append((time.monotonic(), sock))
            surplus = connections.popleft()[1] if len(connections) > _IDLE_PER_ORIGIN else None
        if surplus is not None:
            surplus.close()


def _message(request: Request, origin: _Origin, path: str) -> bytes:
    """The request as it is sent, in one piece: head and body apart would wake the receiver twice.

    Raises:
        HttpFailure: a header or the path has characters that would make another request of it.
    """
    headers = {"Host": origin.header, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
    if request.body is not None or request.method in _BODIES:
        headers["Content-Length"] = str(len(request.body or b""))
    texts = (path, *headers, *headers.values())
    if " " in path or not path.isascii() or any(map(_UNSAFE.search, texts)):
        raise HttpFailure(f"the request to {origin.host}:{origin.port} cannot be sent: its path or a header has "
                          "characters that are not allowed there")
    lines = [f"{request.method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (request.body or b"")


class _Answer:
    """An answer while it is being read: what httptools tells of it."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, {}, bytearray()  # type: int, dict[str, str], bytearray
        self.has_head = self.is_whole = self.may_stay_open = False
        self._head = 0
        self.parser: Any = None

    @property
    def is_enough(self) -> bool:
        return self.is_whole or len(self.body) > MAX_BODY

    @property
    def is_cut(self) -> bool:
        """Whether the body was longer than what was read of it."""
        ends_with_connection = not {"content-length", "transfer-encoding"} & self.headers.keys()
        return len(self.body) > MAX_BODY or not (self.is_whole or ends_with_connection)

    def on_message_begin(self) -> None:
        if self.is_whole:  # a second answer, that nobody asked for
            self.may_stay_open = False
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > _MAX_HEAD:
            raise ValueError("the head is too long")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status, self.has_head = self.parser.get_status_code(), True

    def on_body(self, data: bytes) -> None:
        if not self.is_enough:
            self.body += data

    def on_message_complete(self) -> None:
        if self.status < 200:  # an answer before the answer
            self.headers, self.has_head = {}, False
        else:
            self.is_whole = True
            self.may_stay_open = (self.parser.get_http_version() == "1.1"
                                  and "close" not in self.headers.get("connection", "").lower())


def _read(sock: socket.socket) -> _Answer:
    """One answer, to its end or the limit.

    Raises:
        httptools.HttpParserError: what came is no HTTP; OSError: the connection broke.
    """
    import httptools

    answer = _Answer()
    answer.parser = parser = httptools.HttpResponseParser(answer)
    parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
    while not answer.is_enough:
        data = sock.recv(_PIECE)
        if not data:
            if not answer.has_head:
                raise _Disconnected
            break
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            if not answer.is_whole:
                raise
            answer.may_stay_open = False  # bytes that nobody asked for
    answer.may_stay_open &= not answer.is_cut
    return answer


class _Disconnected(ConnectionError):
    """The other side ended the connection before it answered."""


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _as_failure(origin: _Origin, timeout: float) -> Iterator[None]:
    """Errors of sockets, TLS and parsing as `HttpFailure`."""
    where = f"{origin.host}:{origin.port}"
    try:
        yield
    except TimeoutError as error:
        raise HttpFailure(f"{where} did not answer within {timeout:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise HttpFailure(f"{where} has no valid certificate: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise HttpFailure(f"TLS with {where} failed: {error.reason or 'protocol error'}") from error
    except socket.gaierror as error:
        raise HttpFailure(f"{origin.host} does not resolve") from error
    except _Disconnected as error:
        raise HttpFailure(f"{where} closed the connection without an answer") from error
    except OSError as error:
        raise HttpFailure(f"the connection to {where} failed: {error.strerror or type(error).__name__}") from error
    except Exception as error:
        if not type(error).__module__.startswith("httptools"):
            raise
        raise HttpFailure(f"{where} does not answer in HTTP: {error}") from error
