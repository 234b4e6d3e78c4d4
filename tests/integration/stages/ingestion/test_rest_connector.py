"""REST connector against a real HTTP server that misbehaves."""

import datetime as dt
import gzip
import json
import logging
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pytest

from barecount_assets.stages.ingestion.connectors.references import Lookup
from barecount_assets.stages.ingestion.connectors.rest import RestConnector
from barecount_assets.stages.ingestion.records import ChangedInReading, Cursor, ExtractorSchema, Field, Window
from resources.governance.sources import RestSource
from resources.runtime.errors import BareCountError, ErrorCode

WINDOW = Window(dt.date(2026, 3, 5), dt.date(2026, 3, 6))
SCHEMA = ExtractorSchema(
    (
        Field("order_id", "id", pa.int64(), required=True),
        Field("amount", "amount", pa.decimal128(18, 2)),
    )
)
NOW = dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC)
TOKEN = "tok-5e3c"


@dataclass
class Answer:
    """What the server does with one request: answer, or break the connection after the given part of it."""

    body: bytes | object = b"[]"
    status: int = 200
    headers: dict = field(default_factory=dict)
    cut: bool = False
    reset: bool = False

    def __post_init__(self):
        if not isinstance(self.body, bytes):
            self.body = json.dumps(self.body).encode()


@dataclass
class Request:
    path: str
    query: dict
    headers: dict


@contextmanager
def api(respond):
    """A server on a free port; `respond(request, count)` answers, count the number of requests so far."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            parts = urlsplit(self.path)
            seen.append(Request(parts.path, dict(parse_qsl(parts.query)), dict(self.headers)))
            answer = respond(seen[-1], len(seen))
            if answer.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.rfile.close()  # it holds the socket open
                self.connection.close()
                return
            self.send_response(answer.status)
            length = len(answer.body) * (2 if answer.cut else 1)
            for name, value in {"Content-Length": str(length), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(answer.body)
            except ConnectionError:  # the client had enough
                self.close_connection = True
            if answer.cut:
                self.close_connection = True

        def finish(self):
            try:
                super().finish()
            except (ValueError, ConnectionError):  # closed by `reset`
                return

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a reset connection is the point of the test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rows(count, first=1):
    return [{"id": n, "amount": n / 4} for n in range(first, first + count)]


class Reader:
    """A connector whose waits are written down instead of waited for."""

    def __init__(self, url, environment=None, now=NOW, **fields):
        self.waits = []
        self.connector = RestConnector(
            RestSource.model_validate(
                {"name": "orders", "dataset": "shop.orders", "connector": "rest", "url": url, **fields}
            ),
            lookup=Lookup({"TOKEN": TOKEN} if environment is None else environment),
            sleep=self.waits.append,
            now=lambda: now,
            jitter=lambda: 1.0,
        )

    def batches(self, cursor=None, unit=0):
        return list(self.connector.read(self.connector.discover(WINDOW, cursor)[unit], SCHEMA))

    def ids(self, **kwargs):
        return [i for batch in self.batches(**kwargs) for i in batch.rows.column("order_id").to_pylist()]


class TestReading:
    def test_pages_are_one_stream_of_numbered_records(self):
        def respond(request, _):
            page = int(request.query["page"])
            return Answer({"data": {"items": rows(2, first=2 * page - 1) if page <= 3 else []}})

        with api(respond) as (url, seen):
            batches = Reader(url, records="data.items", pagination={"type": "page"}).batches()
        assert sum(batch.received for batch in batches) == 6
        table = pa.Table.from_batches([batch.rows for batch in batches])
        assert (
            table.column("order_id").to_pylist()
            == table.column("_row_number").to_pylist()
            == [1, 2, 3, 4, 5, 6]
        )
        assert len(seen) == 4

    def test_money_is_read_digit_by_digit(self):
        body = b'[{"id": 1, "amount": 9007199254740993.37}]'
        with api(lambda *_: Answer(body)) as (url, _):
            (batch,) = Reader(url).batches()
        assert str(batch.rows.column("amount")[0]) == "9007199254740993.37"

    def test_a_record_that_does_not_fit_is_kept_whole_as_received(self):
        body = b'[{"id": 1, "amount": 1.0},\n {"id": "x",  "amount": 1.50}, 7]'
        with api(lambda *_: Answer(body)) as (url, _):
            (batch,) = Reader(url).batches()
        assert batch.received == 3 == batch.rows.num_rows + batch.rejects.num_rows
        assert batch.rows.column("_row_number").to_pylist() == [1]
        assert batch.rejects.column("row_number").to_pylist() == [2, 3]
        assert batch.rejects.column("reason").to_pylist() == ["wrong_type", "not_an_object"]
        assert batch.rejects.column("payload").to_pylist() == [b'{"id": "x",  "amount": 1.50}', b"7"]

    def test_an_undeclared_field_is_kept(self):
        with api(lambda *_: Answer([{"id": 1, "amount": 1, "colour": "red"}])) as (url, _):
            (batch,) = Reader(url).batches()
        assert json.loads(batch.rows.column("_extra")[0].as_py()) == {"colour": "red"}

    def test_no_records_are_no_batches(self):
        with api(lambda *_: Answer([])) as (url, _):
            assert Reader(url).batches() == []

    def test_the_date_of_the_unit_is_asked_for(self):
        with api(lambda *_: Answer(rows(1))) as (url, seen):
            reader = Reader(f"{url}/orders/{{date}}", params={"to": "{next_date}"})
            assert reader.ids(unit=1) == [1]
        assert (seen[0].path, seen[0].query) == ("/orders/2026-03-06", {"to": "2026-03-07"})

    def test_a_slice_is_asked_for_again_with_the_same_ends(self):
        with api(lambda *_: Answer(rows(1))) as (url, seen):
            reader = Reader(
                url,
                params={"since": "{cursor}", "before": "{until}"},
                incremental={"start": "2026-01-01T00:00:00Z"},
            )
            (unit,) = reader.connector.discover(WINDOW, Cursor("2026-03-05T00:00:00Z"))
            for _ in range(2):
                list(reader.connector.read(unit, SCHEMA))
        assert (
            seen[0].query
            == seen[1].query
            == {"since": "2026-03-05T00:00:00Z", "before": "2026-03-05T11:59:00Z"}
        )

    def test_the_observed_schema_comes_from_the_first_page_only(self):
        def respond(request, _):
            return Answer([{"id": 1, "amount": 2}, {"id": 2, "colour": "red"}])

        with api(respond) as (url, seen):
            connector = Reader(url, pagination={"type": "page"}).connector
            observed = connector.observed_schema(connector.discover(WINDOW, None)[0])
        assert (observed.names, len(seen)) == (("id", "amount", "colour"), 1)
        assert observed.types == ("JSON number", "JSON number", "JSON string")

    def test_pages_are_fetched_as_they_are_consumed(self):
        def respond(request, count):
            return Answer([{"id": count, "amount": 1, "note": "x" * 3_000_000}])

        with api(respond) as (url, seen):
            connector = Reader(url, pagination={"type": "page"}).connector
            stream = connector.read(connector.discover(WINDOW, None)[0], SCHEMA)
            assert next(stream).received >= 1
            stream.close()
        assert len(seen) < 20  # blocks of the parser, not all there is: the pages have no end

    def test_a_compressed_body_is_read(self):
        body = gzip.compress(json.dumps(rows(2)).encode())
        with api(lambda *_: Answer(body, headers={"Content-Encoding": "gzip"})) as (url, _):
            assert Reader(url).ids() == [1, 2]


class TestPagination:
    def test_a_short_page_does_not_end_numbered_pages(self):
        def respond(request, _):
            page = int(request.query["page"])
            return Answer(rows({0: 3, 1: 1, 2: 3}.get(page, 0), first=10 * page + 1))

        pagination = {"type": "page", "start": 0, "size_param": "size", "size": 3}
        with api(respond) as (url, seen):
            assert Reader(url, pagination=pagination).ids() == [1, 2, 3, 11, 21, 22, 23]
        assert seen[0].query == {"page": "0", "size": "3"}

    def test_a_known_number_of_pages_saves_the_empty_one(self):
        def respond(request, _):
            return Answer({"pages": 2, "items": rows(1, first=int(request.query["page"]))})

        with api(respond) as (url, seen):
            assert Reader(url, records="items", pagination={"type": "page", "pages": "pages"}).ids() == [1, 2]
        assert len(seen) == 2

    def test_the_offset_moves_by_what_was_received_not_by_what_was_asked(self):
        def respond(request, _):
            offset = int(request.query["offset"])
            return Answer(rows(min(2, 5 - offset), first=offset + 1))  # caps the page at 2

        with api(respond) as (url, seen):
            assert Reader(url, pagination={"type": "offset", "limit": 100}).ids() == [1, 2, 3, 4, 5]
        assert [request.query["offset"] for request in seen] == ["0", "2", "4", "5"]

    @pytest.mark.parametrize("announced", [3, 5])
    def test_another_number_of_records_than_announced_is_a_changed_source(self, announced):
        def respond(request, _):
            offset = int(request.query["offset"])
            return Answer({"total": announced, "items": rows(max(0, min(2, 4 - offset)), first=offset + 1)})

        with (
            api(respond) as (url, _),
            pytest.raises(ChangedInReading, match=f"4 records of the {announced} announced") as refused,
        ):
            Reader(
                url, records="items", pagination={"type": "offset", "limit": 2, "total": "total"}
            ).batches()
        assert refused.value.retryable

    @pytest.mark.parametrize(
        ("pagination", "said"),
        [
            ({"type": "offset", "limit": 2, "total": "total"}, "announced 5 at 'total', the first page 6"),
            ({"type": "page", "pages": "pages"}, "announced 2 at 'pages', the first page 3"),
            ({"type": "page", "total": "total"}, "announced 5 at 'total', the first page 6"),
        ],
    )
    def test_an_announcement_that_changes_from_page_to_page_is_a_changed_source(self, pagination, said):
        def respond(request, count):
            document = {"total": 6, "pages": 3} if count == 1 else {"total": 5, "pages": 2}
            return Answer({**document, "items": rows(2, first=2 * count - 1)})

        with api(respond) as (url, _), pytest.raises(ChangedInReading, match=said) as refused:
            Reader(url, records="items", pagination=pagination).batches()
        assert refused.value.code is ErrorCode.SOURCE_UNAVAILABLE

    def test_a_cursor_in_the_body_is_followed_until_it_is_null(self):
        following = {None: ("b", 1), "b": (3, 2), "3": (None, 3)}

        def respond(request, _):
            cursor, record = following[request.query.get("after")]
            return Answer({"items": rows(1, first=record), "paging": {"next": cursor}})

        pagination = {"type": "cursor", "param": "after", "next": "paging.next"}
        with api(respond) as (url, _):
            assert Reader(url, records="items", pagination=pagination).ids() == [1, 2, 3]

    def test_link_headers_are_followed_with_the_same_credentials(self):
        def respond(request, count):
            link = {"Link": '</start>; rel="prev", </more?x=1>; rel="next"'} if count == 1 else {}
            return Answer(rows(1, first=count), headers=link)

        with api(respond) as (url, seen):
            reader = Reader(
                url, pagination={"type": "link_header"}, auth={"type": "bearer", "token": "${env:TOKEN}"}
            )
            assert reader.ids() == [1, 2]
        assert seen[1].path == "/more"
        assert [request.headers["Authorization"] for request in seen] == [f"Bearer {TOKEN}"] * 2

    @pytest.mark.parametrize(
        ("pagination", "respond"),
        [
            ({"type": "page"}, lambda request, n: Answer({"items": rows(2)})),
            ({"type": "offset", "limit": 2}, lambda request, n: Answer({"items": rows(2)})),
            (
                {"type": "cursor", "next": "next"},
                lambda request, n: Answer({"items": rows(1, first=n), "next": "ab"[n % 2]}),
            ),
            (
                {"type": "link_header"},
                lambda request, n: Answer({"items": rows(1)}, headers={"Link": "</again>; rel=next"}),
            ),
        ],
        ids=["page", "offset", "cursor", "link_header"],
    )
    def test_pages_that_go_in_a_circle_are_refused(self, pagination, respond):
        with api(respond) as (url, seen), pytest.raises(BareCountError, match="in a circle") as refused:
            Reader(url, records="items", pagination=pagination).batches()
        assert refused.value.code is ErrorCode.SOURCE_MALFORMED
        assert len(seen) <= 3

    def test_pages_without_end_are_refused(self):
        with (
            api(lambda request, n: Answer(rows(1, first=n))) as (url, _),
            pytest.raises(BareCountError, match="more than 7 pages"),
        ):
            Reader(url, pagination={"type": "page"}, max_pages=7).batches()

    def test_credentials_are_not_carried_to_another_origin(self):
        with api(lambda *_: Answer(rows(1))) as (elsewhere, strangers):
            link = {"Link": f"<{elsewhere}/steal?k=v>; rel=next"}
            with api(lambda *_: Answer(rows(1), headers=link)) as (url, _):
                with pytest.raises(BareCountError, match="another origin") as refused:
                    Reader(
                        url,
                        pagination={"type": "link_header"},
                        auth={"type": "bearer", "token": "${env:TOKEN}"},
                    ).ids()
        assert strangers == []
        assert "k=v" not in str(refused.value)


class TestFailures:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_a_passing_failure_is_asked_again_with_growing_waits(self, status):
        with api(lambda _, n: Answer(rows(1)) if n == 4 else Answer(status=status)) as (url, _):
            reader = Reader(url)
            assert reader.ids() == [1]
        assert reader.waits == [1.0, 2.0, 4.0]

    @pytest.mark.parametrize(
        ("value", "waits"),
        [("17", [17]), ("Thu, 05 Mar 2026 12:00:30 GMT", [30]), ("86400", [60]), ("soon", [1])],
    )
    def test_retry_after_is_honoured_and_capped(self, value, waits):
        limited = Answer(status=429, headers={"Retry-After": value})
        with api(lambda _, n: limited if n == 1 else Answer(rows(1))) as (url, _):
            reader = Reader(url)
            assert reader.ids() == [1]
        assert reader.waits == waits

    @pytest.mark.parametrize(
        "broken", [Answer(reset=True), Answer(b'[{"id": 1}, {"id"', cut=True)], ids=["reset", "cut"]
    )
    def test_a_broken_connection_is_tried_again_and_no_record_comes_twice(self, broken):
        def respond(request, count):
            return (
                broken
                if count == 2
                else Answer({"pages": 3, "items": rows(1, first=int(request.query["page"]))})
            )

        with api(respond) as (url, _):
            reader = Reader(url, records="items", pagination={"type": "page", "pages": "pages"})
            assert reader.ids() == [1, 2, 3]
        assert len(reader.waits) == 1

    def test_a_silent_server_is_given_up(self):
        release = threading.Event()

        def respond(*_):
            release.wait(5)
            return Answer()

        with api(respond) as (url, seen):
            reader = Reader(url, timeout_seconds=0.05, max_attempts=2)
            with pytest.raises(BareCountError, match="ReadTimeout.*2 times") as refused:
                reader.batches()
            release.set()
        assert refused.value.code is ErrorCode.SOURCE_UNAVAILABLE
        assert refused.value.retryable

    def test_an_answer_that_drips_is_given_up(self):
        body = json.dumps(rows(200_000)).encode()
        with api(lambda *_: Answer(body)) as (url, _):
            with pytest.raises(BareCountError, match="took longer than"):
                Reader(url, answer_seconds=1e-6, max_attempts=1).batches()

    def test_attempts_end(self):
        with api(lambda *_: Answer(status=503)) as (url, seen):
            reader = Reader(url, max_attempts=3)
            with pytest.raises(BareCountError, match="answered 503, 3 times in a row") as refused:
                reader.batches()
        assert (len(seen), len(reader.waits)) == (3, 2)
        assert (refused.value.code, refused.value.retryable) == (ErrorCode.SOURCE_UNAVAILABLE, True)

    def test_nobody_listening_is_unavailable(self):
        with api(lambda *_: Answer()) as (url, _):
            pass
        with pytest.raises(BareCountError, match="ConnectError") as refused:
            Reader(url, max_attempts=2).batches()
        assert refused.value.retryable

    @pytest.mark.parametrize(
        ("answer", "code", "said"),
        [
            (Answer(status=401), ErrorCode.SOURCE_UNREADABLE, "credentials are missing or wrong"),
            (Answer(status=403), ErrorCode.SOURCE_UNREADABLE, "credentials are not allowed"),
            (Answer(status=404), ErrorCode.SOURCE_NOT_FOUND, "answered 404"),
            (
                Answer(b'{"error":\n"bad limit"}', status=400),
                ErrorCode.SOURCE_UNREADABLE,
                '{"error": "bad limit"}',
            ),
            (
                Answer(status=302, headers={"Location": "https://login.example/?back=secret"}),
                ErrorCode.SOURCE_NOT_FOUND,
                "answered 302 to https://login.example/; redirects are not followed",
            ),
            (
                Answer(b"<html>", headers={"Content-Type": "text/html"}),
                ErrorCode.SOURCE_MALFORMED,
                "is not JSON (text/html)",
            ),
            (Answer(b'["\xff"]'), ErrorCode.SOURCE_MALFORMED, "is not JSON"),
            (
                Answer({"error": "x"}),
                ErrorCode.SOURCE_MALFORMED,
                "no array of records at its top: found an object",
            ),
            (Answer(b"[" * 100_000), ErrorCode.SOURCE_MALFORMED, "is not JSON"),
        ],
    )
    def test_a_final_failure_is_said_once_and_not_retried(self, answer, code, said):
        with api(lambda *_: answer) as (url, seen), pytest.raises(BareCountError) as refused:
            Reader(url).batches()
        assert refused.value.code is code
        assert said in refused.value.message
        assert not refused.value.retryable
        assert "secret" not in str(refused.value)
        assert len(seen) == 1

    @pytest.mark.parametrize("compressed", [False, True])
    def test_an_oversized_answer_is_given_up_early(self, compressed):
        body = b"[" + b" " * 20_000_000 + b"]"
        answer = (
            Answer(gzip.compress(body), headers={"Content-Encoding": "gzip"}) if compressed else Answer(body)
        )
        with (
            api(lambda *_: answer) as (url, _),
            pytest.raises(BareCountError, match="more than 1000000 bytes") as refused,
        ):
            Reader(url, max_response_bytes=1_000_000).batches()
        assert refused.value.code is ErrorCode.SOURCE_MALFORMED


class TestCredentials:
    @pytest.mark.parametrize(
        ("fields", "header", "value"),
        [
            ({"auth": {"type": "bearer", "token": "${env:TOKEN}"}}, "Authorization", f"Bearer {TOKEN}"),
            ({"auth": {"type": "header", "name": "X-Key", "value": "${env:TOKEN}"}}, "X-Key", TOKEN),
            (
                {"auth": {"type": "basic", "username": "reader", "password": "${env:TOKEN}"}},
                "Authorization",
                "Basic cmVhZGVyOnRvay01ZTNj",
            ),
            ({"headers": {"X-Both": "v1 ${env:TOKEN}"}}, "X-Both", f"v1 {TOKEN}"),
        ],
    )
    def test_references_are_resolved_when_the_source_is_read(self, fields, header, value):
        with api(lambda *_: Answer()) as (url, seen):
            Reader(url, **fields).batches()
        assert seen[0].headers[header] == value

    def test_a_reference_that_is_not_set_is_named_when_the_source_is_read(self):
        reader = Reader(
            "http://127.0.0.1:1/x", environment={}, auth={"type": "bearer", "token": "${env:TOKEN}"}
        )
        with pytest.raises(BareCountError, match="environment variable TOKEN is not set") as refused:
            reader.batches()
        assert refused.value.code is ErrorCode.DECLARATION_UNKNOWN

    def test_a_value_with_a_line_end_is_refused_without_being_shown(self):
        fields = {"environment": {"TOKEN": f"{TOKEN}\n"}, "auth": {"type": "bearer", "token": "${env:TOKEN}"}}
        with pytest.raises(BareCountError, match="TOKEN holds a line end") as refused:
            Reader("http://127.0.0.1:1/x", **fields).batches()
        assert TOKEN not in str(refused.value)

    @pytest.mark.parametrize(
        "auth",
        [
            {"type": "bearer", "token": "${env:TOKEN}"},
            {"type": "basic", "username": "reader", "password": "${env:TOKEN}"},
        ],
        ids=["bearer", "basic"],
    )
    def test_no_credential_reaches_a_log_an_error_or_a_unit(self, caplog, auth):
        caplog.set_level(logging.DEBUG)

        def respond(request, _):
            return Answer(f"bad key {request.headers['Authorization'].split()[1]}".encode(), status=400)

        with api(respond) as (url, _):
            reader = Reader(url, auth=auth)
            unit = reader.connector.discover(WINDOW, None)[0]
            with pytest.raises(BareCountError, match=r"bad key \*\*\*") as refused:
                list(reader.connector.read(unit, SCHEMA))
        assert caplog.records
        everything = caplog.text + str(refused.value) + repr(unit) + repr(refused.value.__cause__)
        assert TOKEN not in everything
        assert "cmVhZGVyOnRvay01ZTNj" not in everything
