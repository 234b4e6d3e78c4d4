"""An HTTP/1.1 client that goes only where a tenant may go, follows nothing, and waits no longer than it should.

Connections come from `egress.connect`: to a checked address, with the name in `Host`, SNI and the certificate check.
Redirects are answers like any other. Everything, from connecting to the last byte of the body, happens within
`timeout` seconds (resolving the name aside, which the system's resolver bounds); bodies are read up to a limit, and
what is longer closes the connection. Connections are kept alive per policy and origin and used by one thread at a time.
Nothing is sent twice: who repeats a request must know that it may.

`http.client` of the standard library, because it costs a third of what the pools of httpcore and urllib3 do.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import SOFTWARE_VERSION
from resources.security import egress
from resources.security.deadlines import Deadlines

MAX_BODY = 64 * 1024
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


class HttpClient:
    """Sends requests; safe to use from many threads. Close it to end its connections."""

    def __init__(
        self, *, timeout: float = 15.0, resolve: egress.Resolver = egress.system_resolver,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout = timeout
        self._resolve = resolve
        self._tls = tls or ssl.create_default_context()
        self._idle: dict[_Origin, deque[tuple[float, _Connection]]] = defaultdict(deque)
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
        port = parts.port or (443 if parts.scheme == "https" else 80)
        origin = _Origin(policy, parts.scheme, parts.hostname, port)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        deadline = time.monotonic() + self._timeout
        with _as_failure(origin, self._timeout):
            connection = self._take(origin) or self._open(origin, deadline)
            try:
                with self._watch.until(deadline, connection.sock):
                    response = self._exchange(connection, request, path)
                    body = response.read(MAX_BODY + 1)
            except BaseException:
                connection.close()
                raise
            if response.isclosed() and not response.will_close:
                self._give_back(origin, connection)
            else:
                connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, headers, body[:MAX_BODY], len(body) > MAX_BODY)

    def close(self) -> None:
        """End all idle connections."""
        with self._lock:
            idle, self._idle = self._idle, defaultdict(deque)
        for connections in idle.values():
            for _, connection in connections:
                connection.close()
        self._watch.close()

    @staticmethod
    def _exchange(connection: _Connection, request: Request, path: str) -> http.client.HTTPResponse:
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
        connection.request(request.method, path, body=request.body, headers=headers)
        connection.flush()
        return connection.getresponse()

    def _open(self, origin: _Origin, deadline: float) -> _Connection:
        plaintext = origin.scheme == "http"
        raw = egress.connect(
            origin.host, origin.port, origin.policy, plaintext=plaintext, resolve=self._resolve,
            timeout=max(deadline - time.monotonic(), 0.001))
        connection = _Connection(origin.host, origin.port)
        try:
            raw.settimeout(self._timeout)
            connection.sock = raw
            if not plaintext:
                connection.sock = raw = self._tls.wrap_socket(
                    raw, server_hostname=origin.host, do_handshake_on_connect=False)
                with self._watch.until(deadline, raw):
                    raw.do_handshake()
        except BaseException:
            raw.close()
            raise
        if not plaintext:
            connection.default_port = 443  # keeps the port out of the Host header where it is the usual one
        return connection

    def _take(self, origin: _Origin) -> _Connection | None:
        """An idle connection that the other side has not closed."""
        while True:
            with self._lock:
                connections = self._idle.get(origin)
                if not connections:
                    return None
                since, connection = connections.pop()
            fresh = time.monotonic() - since < _IDLE_SECONDS
            if fresh and not _is_readable(connection.sock):  # an end of the stream, or bytes nobody asked for
                return connection
            connection.close()

    def _give_back(self, origin: _Origin, connection: _Connection) -> None:
        with self._lock:
            connections = self._idle[origin]
            connections.append((time.monotonic(), connection))
            surplus = connections.popleft()[1] if len(connections) > _IDLE_PER_ORIGIN else None
        if surplus is not None:
            surplus.close()


class _Connection(http.client.HTTPConnection):
    """Sends a request in one piece, where `http.client` sends head and body as two, which wakes the receiver twice.

    It never connects by itself: its socket comes from `egress.connect`, and when that is gone the connection is over.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._pieces: list[bytes] = []

    def connect(self) -> None:
        raise ConnectionError("the connection is over")

    def send(self, data: bytes) -> None:
        self._pieces.append(data)

    def flush(self) -> None:
        """Send what was collected."""
        pieces, self._pieces = self._pieces, []
        self.sock.sendall(b"".join(pieces))


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
    except http.client.RemoteDisconnected as error:
        raise HttpFailure(f"{where} closed the connection without an answer") from error
    except http.client.HTTPException as error:
        raise HttpFailure(f"{where} does not answer in HTTP: {type(error).__name__}") from error
    except OSError as error:
        raise HttpFailure(f"the connection to {where} failed: {error.strerror or type(error).__name__}") from error
