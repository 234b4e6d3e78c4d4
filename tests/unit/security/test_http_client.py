"""Answers as servers really give them, byte by byte, and requests that cannot be made into others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from resources.security.egress import EgressPolicy, Opening
from resources.security.http_client import MAX_BODY, HttpClient, HttpFailure, Request

LOCAL = EgressPolicy((Opening("127.0.0.1", plaintext=True),))


@contextmanager
def answering(*connections: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives each connection its answers, one per request, and then ends it; also what it was sent."""
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answers in connections:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    received.append(_request(connection))
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/in", received
    finally:
        thread.join(10)
        listener.close()


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < _length(data):
        piece = connection.recv(65536)
        if not piece:
            break
        data += piece
    return data


def _length(data: bytes) -> int:
    (line,) = [line for line in data.split(b"\r\n") if line.lower().startswith(b"content-length:")] or [b":0"]
    return int(line.partition(b":")[2])


@pytest.fixture
def client() -> Iterator[HttpClient]:
    opened = HttpClient(timeout=5.0)
    yield opened
    opened.close()


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200\r\ncontent-length:2\r\n\r\nok",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    b"HTTP/1.0 200 OK\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;note=x\r\nk\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
])
def test_an_answer_is_read_however_it_is_framed(client: HttpClient, answer: bytes) -> None:
    with answering([answer]) as (url, received):
        response = client.send(Request("POST", url, {"X-Key": "v"}, b"{}"), LOCAL)
    assert (response.status, response.body, response.is_cut) == (200, b"ok", False)
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /in HTTP/1.1\r\nHost: 127.0.0.1:") and b"\r\nX-Key: v\r\n" in head and body == b"{}"
    assert b"\r\nContent-Length: 2" in head


def test_an_answer_that_breaks_off_or_is_too_long_says_so(client: HttpClient) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
    endless = b"HTTP/1.1 500 No\r\nContent-Length: 999999\r\n\r\n" + b"x" * (MAX_BODY + 10)
    with answering([half], [endless]) as (url, _):
        first, second = (client.send(Request("GET", url), LOCAL) for _ in range(2))
    assert (first.status, first.body, first.is_cut) == (200, b"half", True)
    assert (second.status, len(second.body), second.is_cut) == (500, MAX_BODY, True)


@pytest.mark.parametrize(("answer", "reason"), [
    (b"", "closed the connection without an answer"),
    (b"220 mail.example ESMTP\r\n", "does not answer in HTTP"),
    (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 70_000 + b"\r\n\r\n", "does not answer in HTTP"),
])
def test_what_is_no_answer_is_a_failure(client: HttpClient, answer: bytes, reason: str) -> None:
    with answering([answer]) as (url, _), pytest.raises(HttpFailure, match=reason):
        client.send(Request("GET", url), LOCAL)


def test_a_connection_is_used_again_unless_more_came_than_was_asked_for(client: HttpClient) -> None:
    plain = b"HTTP/1.1 204 No Content\r\n\r\n"
    surplus = plain + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    with answering([plain, surplus], [plain]) as (url, received):
        statuses = [client.send(Request("GET", url), LOCAL).status for _ in range(3)]
    assert statuses == [204, 204, 204] and len(received) == 3


@pytest.mark.parametrize("request_", [
    Request("GET", "http://127.0.0.1:9/in", {"X-Key": "a\r\nX-Other: b"}),
    Request("GET", "http://127.0.0.1:9/in", {"X-Key\r\nX-Other": "a"}),
    Request("GET", "http://127.0.0.1:9/a b"),
    Request("GET", "http://127.0.0.1:9/caf\u00e9"),
])
def test_a_header_or_path_that_would_make_another_request_is_not_sent(client: HttpClient, request_: Request) -> None:
    with pytest.raises(HttpFailure, match="characters that are not allowed"):
        client.send(request_, LOCAL)
