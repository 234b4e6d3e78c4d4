"""Records of a REST API: JSON pages fetched with GET, dated, incremental or whole.

One unit is one date (`{date}` in the URL or a parameter), one slice of time (`{cursor}`), or everything the
URL answers. Its pages are fetched one after the other, as their records are read, so memory is bounded by
`max_response_bytes`; the records themselves are judged exactly as lines of JSON Lines are.

Pages that are counted from the start (page, offset) belong together only while the source stands still: where it
announces how much it has, an announcement that changes from page to page, or that the records do not keep, is
`ChangedInReading`. Whoever reads starts again.

A GET is safe to repeat, hence failures that may pass (429, 500, 502, 503, 504, a time-out, a broken
connection) are tried again, and a page is taken apart only once it is whole.

A slice of time begins at the stored cursor less the declared overlap. What of it was read before is told by the
fingerprint of each record, its JSON without order of members and nulls: the API does not say which member of a record
the slice is cut by, so all records of one reading are compared with those of the reading before.

Redirects are not followed and the next page must lie at the same origin: credentials go where the manifest
says and nowhere else.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx

from barecount_assets.stages.ingestion.connectors.jsonl import JsonlFormat
from barecount_assets.stages.ingestion.connectors.references import Lookup, References
from barecount_assets.stages.ingestion.fingerprints import Fingerprints, of_digests
from barecount_assets.stages.ingestion.records import (
    ChangedInReading,
    Cursor,
    ExtractorSchema,
    ObservedSchema,
    ParsedBatch,
    Slice,
    Unit,
    Window,
)
from resources.governance.sources import (
    Basic,
    Bearer,
    BodyCursor,
    Header,
    Incremental,
    LinkHeader,
    Offset,
    PageNumber,
    RestSource,
    seconds_of,
)
from resources.runtime.errors import BareCountError, ErrorCode

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_RETRIED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class _Page:
    """One answer, whole: its text, where each record lies in it, and the request that led to it."""

    number: int
    url: httpx.URL
    headers: httpx.Headers
    text: str
    records: list[tuple[int, int]]

    def at(self, path: str) -> Any:
        """Value at a dotted path of the body, numbers as text; None when a step is missing."""
        try:
            return _DECODER.raw_decode(self.text, _locate(self.text, path))[0]
        except _NotThere:
            return None


class _Lines:
    """The records of pages as a stream of JSON lines, fetched when they are read.

    Records are the text as received, since encoding a parsed one again could change a number. Only line ends
    between its tokens become blanks; inside a JSON string there are none (RFC 8259, 7).
    """

    def __init__(self, pages: Iterator[_Page], *, with_digests: bool = False) -> None:
        self._pages = pages
        self._buffer = bytearray()
        self._digests: list[bytes] | None = [] if with_digests else None

    def read(self, size: int) -> bytes:
        """`size` bytes, less only at the end."""
        while len(self._buffer) < size and (page := next(self._pages, None)) is not None:
            for start, end in page.records:
                if self._digests is not None:
                    self._digests.append(_digest(page.text[start:end]))
                self._buffer += page.text[start:end].translate(_ONE_LINE).encode() + b"\n"
        block = bytes(self._buffer[:size])
        del self._buffer[:size]
        return block


    def take_digests(self, count: int) -> list[bytes]:
        """Digests of the next records, in order."""
        assert self._digests is not None
        taken, self._digests = self._digests[:count], self._digests[count:]
        return taken


def _digest(record: str) -> bytes:
    """16 bytes of a record's content: neither blanks, order of members nor members that are null count."""
    value = _AS_WRITTEN.decode(record)
    if isinstance(value, dict):
        value = {name: member for name, member in value.items() if member is not None}
    return hashlib.md5(json.dumps(value, sort_keys=True).encode(), usedforsecurity=False).digest()


_AS_WRITTEN = json.JSONDecoder(parse_int="\0{}".format, parse_float="\0{}".format)  # 1 is not "1", nor 1.0
_MARGIN = 86_400.0  # seconds by which the clocks of source and reader may differ
_ONE_LINE = str.maketrans("\r\n", "  ")


class RestConnector:
    """Reads one API.

    Args:
        source: what to fetch, as declared.
        lookup: where references are looked up.
        sleep: waits the given seconds between attempts.
        now: the current instant, with zone.
        jitter: a number from 0 to 1 that scales each wait (full jitter): clients do not return in step.
    """

    def __init__(
        self,
        source: RestSource,
        *,
        lookup: Lookup = Lookup(),  # noqa: B008  # has no state
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._lookup = lookup
        self._sleep = sleep
        self._now = now
        self._jitter = jitter

    def discover(self, window: Window, cursor: Cursor | None) -> list[Unit]:
        """Units by declaration alone: nothing is fetched, so digest and size are unknown until they are read.

        Dated: one unit per date of the window. Incremental: one slice from the cursor to now less the lag,
        none when that is empty. Otherwise one unit.
        """
        source = self._source
        if source.dated:
            days = (window.start + dt.timedelta(days=n) for n in range((window.end - window.start).days + 1))
            return [
                Unit(source_id=day.isoformat(), uri=self._uri(_day(day)), partition_date=day) for day in days
            ]
        if source.incremental is None:
            return [Unit(source_id="all", uri=self._uri({}))]
        return self._slice(source.incremental, cursor)

    def _slice(self, incremental: Incremental, cursor: Cursor | None) -> list[Unit]:
        """The slice of time from the cursor, less the overlap, to now, less the lag."""
        value = cursor and cursor.value
        after = incremental.start if value is None else value
        until = self._now().astimezone(dt.UTC) - dt.timedelta(seconds=incremental.lag_seconds)
        through = until.strftime(incremental.format)
        if through == after or _is_later(after, through, incremental.format):
            return []
        memory = dict(cursor.memory) if cursor else {}
        if cursor is not None and cursor.kind is None and "floor" not in memory:
            memory["floor"] = value  # what an earlier release read is known by the cursor alone
        first = _earlier(after, incremental, memory.get("floor"))
        since, since_before = _seconds(first, incremental.format), memory.get("since")
        # Further back than the last reading: what is read again is compared with all that was ever read.
        ever = cursor is not None and (since is None or since_before is None or since < since_before)
        memory["since"] = since
        reading = cursor.reading if cursor else 0
        return [
            Unit(
                source_id=f"{after}..{through}" + (f"#{reading + 1}" if reading else ""),
                uri=self._uri({"cursor": first, "until": through}),
                cursor=through,
                options={"after": first, "since": None if ever or since is None else since - _MARGIN, "ever": ever},
                slice=Slice(Cursor(through, _KIND, reading, memory)),
            )
        ]

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        """Field names of the first page's records, in order of appearance, and their kinds of JSON value."""
        with closing(self._pages(unit)) as pages:
            return JsonlFormat().observe(_Lines(islice(pages, 1)), unit.uri)

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        """Fetch the unit page by page, as JSON Lines: batches do not depend on the size of pages.

        Raises BareCountError: source.unavailable (retryable: attempts used up), source.unreadable (401, 403,
        other refusals), source.not_found (404, 410, a redirect), source.malformed (no JSON, no array at the
        path, too large, pages in a circle or without end). Raises ChangedInReading when the number of records or
        pages that is announced changes, or is not what came.
        """
        with closing(self._pages(unit)) as pages:
            lines = _Lines(pages, with_digests=unit.slice is not None)
            for batch in JsonlFormat().read(lines, schema, unit.uri):
                if unit.slice is not None:
                    batch = replace(batch, fingerprints=self._fingerprints(lines, batch, unit))
                yield batch

    def _fingerprints(self, lines: _Lines, batch: ParsedBatch, unit: Unit) -> Fingerprints:
        since = unit.options["since"]
        return of_digests(
            lines.take_digests(batch.received), self._now().timestamp(), -math.inf if since is None else since,
            ever=unit.options["ever"],
        )

    def _uri(self, placeholders: Mapping[str, str]) -> str:
        return str(self._first_url(placeholders))

    def _first_url(self, placeholders: Mapping[str, str]) -> httpx.URL:
        """URL of the first page: placeholders encoded in the URL, parameters added to its own query."""

        def fill(template: str, encode: Callable[[str], str] = str) -> str:
            return _PLACEHOLDER.sub(lambda match: encode(placeholders[match[1]]), template)

        url = httpx.URL(fill(self._source.url, lambda value: quote(value, safe="")))
        return url.copy_merge_params({name: fill(value) for name, value in self._source.params.items()})

    def _pages(self, unit: Unit) -> Iterator[_Page]:
        source = self._source
        if unit.partition_date is not None:
            placeholders = _day(unit.partition_date)
        elif unit.cursor is not None:
            placeholders = {"cursor": unit.options["after"], "until": unit.cursor}
        else:
            placeholders = {}
        references = References(self._lookup)
        walk = _Walk(source.pagination, self._first_url(placeholders))
        with httpx.Client(headers=self._headers(references), timeout=source.timeout_seconds) as client:
            for number in range(1, source.max_pages + 1):
                page = self._page(client, walk.url, number, references)
                yield page
                if not walk.advance(page):
                    return
        raise BareCountError(
            ErrorCode.SOURCE_MALFORMED,
            f"{_shown(walk.url)} has more than {source.max_pages} pages",
            hint="split the unit by date, ask for larger pages, or raise max_pages",
        )

    def _headers(self, references: References) -> dict[str, bytes]:
        """Request headers, credentials among them, with their references resolved."""
        headers = {name: references.resolve(value) for name, value in self._source.headers.items()}
        match self._source.auth:
            case Bearer(token=token):
                headers["Authorization"] = f"Bearer {references.resolve(token)}"
            case Header(name=name, value=value):
                headers[name] = references.resolve(value)
            case Basic(username=username, password=password):
                pair = f"{references.resolve(username)}:{references.resolve(password)}".encode()
                headers["Authorization"] = f"Basic {references.hide(base64.b64encode(pair).decode())}"
        return {name: value.encode() for name, value in {"Accept": "application/json", **headers}.items()}

    def _page(self, client: httpx.Client, url: httpx.URL, number: int, references: References) -> _Page:
        response, body = self._fetch(client, url, references)
        where = f"page {number} of {_shown(url)}"
        try:
            text = body.decode("utf-8-sig")
            records = _record_spans(text, self._source.records)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise BareCountError(
                ErrorCode.SOURCE_MALFORMED,
                f"{where} is not JSON ({response.headers.get('content-type', 'no content type')}): {error}",
                hint="check the URL; some APIs answer with a login or an error page and status 200",
            ) from None
        except _NotThere as missing:
            raise BareCountError(
                ErrorCode.SOURCE_MALFORMED,
                f"{where} has no array of records at {self._source.records or 'its top'}: {missing}",
                hint="correct records: the dotted path to the array",
            ) from None
        return _Page(number, url, response.headers, text, records)

    def _fetch(
        self, client: httpx.Client, url: httpx.URL, references: References
    ) -> tuple[httpx.Response, bytes]:
        """One answer with status 200 and its body, tried as often as declared."""
        source = self._source
        for attempt in range(1, source.max_attempts + 1):
            wait = min(source.backoff_seconds * 2**attempt, source.max_wait_seconds) * self._jitter()
            try:
                with client.stream("GET", url) as response:
                    if response.status_code not in _RETRIED:
                        body = self._body(response)
                        if response.status_code != 200:
                            raise _refused(
                                url, response, references.redact(body[:4096].decode(errors="replace"))
                            )
                        return response, body
                    failure = f"answered {response.status_code}"
                    asked = _retry_after(response.headers.get("retry-after"), self._now())
                    if asked is not None:
                        wait = min(asked, source.max_wait_seconds)
            except (httpx.TransportError, httpx.DecodingError) as error:
                failure = f"failed ({type(error).__name__}: {references.redact(str(error))})"
            if attempt < source.max_attempts:
                self._sleep(wait)
        raise BareCountError(
            ErrorCode.SOURCE_UNAVAILABLE,
            f"{_shown(url)} {failure}, {source.max_attempts} times in a row",
            hint="try again later; nothing of the unit has landed",
            retryable=True,
        )

    def _body(self, response: httpx.Response) -> bytes:
        """The whole body, decompressed; a slow or oversized one is given up as soon as it is known to be."""
        source, body = self._source, bytearray()
        deadline = time.monotonic() + source.answer_seconds
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > source.max_response_bytes:
                raise BareCountError(
                    ErrorCode.SOURCE_MALFORMED,
                    f"{_shown(response.url)} answered with more than {source.max_response_bytes} bytes",
                    hint="ask for smaller pages, or raise max_response_bytes",
                )
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout(f"the answer took longer than {source.answer_seconds:g} s")
        return bytes(body)


def _is_later(one: str, other: str, format: str) -> bool:
    """Whether one instant is later than the other; False where one is not written in the format."""
    try:
        return dt.datetime.strptime(one, format) > dt.datetime.strptime(other, format)
    except ValueError:
        return False


_KIND = "instant"


def _seconds(instant: str, format: str) -> float | None:
    """Seconds since 1970 of an instant in the format; None of one that is not written in it."""
    try:
        return dt.datetime.strptime(instant, format).replace(tzinfo=dt.UTC).timestamp()
    except ValueError:
        return None


def _earlier(after: str, incremental: Incremental, floor: str | None) -> str:
    """The cursor less the overlap, not before the floor; as it is where it is not written in the format."""
    seconds, lowest = _seconds(after, incremental.format), _seconds(floor or "", incremental.format)
    if lowest is not None and (seconds is None or seconds < lowest):
        return floor or after
    if not incremental.overlap or seconds is None:
        return after
    first = max(seconds - seconds_of(incremental.overlap), -math.inf if lowest is None else lowest)
    return dt.datetime.fromtimestamp(math.floor(first), dt.UTC).strftime(incremental.format)


def _day(day: dt.date) -> dict[str, str]:
    return {"date": day.isoformat(), "next_date": (day + dt.timedelta(days=1)).isoformat()}


def _shown(url: httpx.URL) -> str:
    """The URL without its query: cursors and links may be signed."""
    return str(url.copy_with(query=None, fragment=None))


def _refused(url: httpx.URL, response: httpx.Response, body: str) -> BareCountError:
    """The error of a final status other than 200."""
    status, shown = response.status_code, _shown(url)
    if status in (401, 403):
        fault = "missing or wrong" if status == 401 else "not allowed"
        return BareCountError(
            ErrorCode.SOURCE_UNREADABLE,
            f"{shown} answered {status}: the credentials are {fault}",
            hint="check what auth and headers refer to: set, current, and granted this resource",
        )
    if 300 <= status < 400:
        target = response.headers.get("location")
        leads = f" to {_shown(url.join(target))}" if target else ""
        return BareCountError(
            ErrorCode.SOURCE_NOT_FOUND,
            f"{shown} answered {status}{leads}; redirects are not followed",
            hint="declare the final URL, if it is the API's",
        )
    if status in (404, 410):
        return BareCountError(
            ErrorCode.SOURCE_NOT_FOUND, f"{shown} answered {status}", hint="correct url and params"
        )
    said = " ".join("".join(c if c.isprintable() else " " for c in body).split())[:200]
    return BareCountError(
        ErrorCode.SOURCE_UNREADABLE,
        f"{shown} answered {status}: {said or 'no body'}",
        hint="the API does not accept the request; check params, headers and pagination",
    )


def _retry_after(value: str | None, now: dt.datetime) -> float | None:
    """Seconds that a Retry-After header (RFC 9110, 10.2.3) asks for, number or date; None if unreadable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:  # "-0000" says UTC without a place
        until = until.replace(tzinfo=dt.UTC)
    return max(0.0, (until - now).total_seconds())


# ------------------------------------------------------------------------------------------- pagination


class _Walk:
    """The way from page to page of one unit; refuses to go in a circle.

    Attributes:
        url: the page to fetch next.
    """

    def __init__(self, pagination: Any, first: httpx.URL) -> None:
        self._pagination = pagination
        self._first = first
        self._received = 0
        self._announced: dict[str, int] = {}
        self._seen: set[bytes] = set()
        match pagination:
            case PageNumber(param=param, start=start):
                size = {pagination.size_param: pagination.size} if pagination.size_param else {}
                self.url = first.copy_merge_params({param: start, **size})
            case Offset(offset_param=param, limit_param=size, limit=limit):
                self.url = first.copy_merge_params({param: 0, size: limit})
            case _:
                self.url = first

    def advance(self, page: _Page) -> bool:
        """Point `url` at the page after `page`; False when that was the last."""
        self._received += len(page.records)
        match self._pagination:
            case PageNumber(param=param, start=start, pages=path, total=total_path):
                pages = self._unchanged(page, path)
                total = self._unchanged(page, total_path)
                if page.number >= pages if pages is not None else not page.records:
                    self._require_all(page, total)
                    return False
                self._once(page, hashlib.sha256(page.text.encode()).digest(), "the page before again")
                self.url = self.url.copy_set_param(param, start + page.number)
            case Offset(offset_param=param, total=path):
                total = self._unchanged(page, path)
                if not page.records or (total is not None and self._received >= total):
                    self._require_all(page, total)
                    return False
                self._once(page, hashlib.sha256(page.text.encode()).digest(), "the page before again")
                self.url = self.url.copy_set_param(param, self._received)
            case BodyCursor(param=param, next=path):
                following = page.at(path)
                if following in (None, "", False):
                    return False
                if not isinstance(following, str):
                    raise _odd(page, f"a next cursor at {path!r} that is no text or number")
                self._once(page, following.encode(errors="surrogatepass"), "a cursor it had given before")
                self.url = self.url.copy_set_param(param, following)
            case LinkHeader():
                try:
                    following = next_link(page.headers.get_list("link"), page.url)
                except httpx.InvalidURL as error:
                    raise _odd(page, f"a next link that is no URL ({error})") from None
                if following is None:
                    return False
                if _origin(following) != _origin(self._first):
                    raise _odd(page, f"a next page at another origin, {_shown(following)}")
                self._once(page, str(following).encode(), "a next link it had given before")
                self.url = following
            case _:
                return False
        return True

    def _unchanged(self, page: _Page, path: str | None) -> int | None:
        """What the page announces at a path, which is what the first one announced; None when none is declared."""
        announced = _count(page, path)
        if path is None or announced is None:
            return None
        first = self._announced.setdefault(path, announced)
        if announced != first:
            raise _changed(page, f"announced {announced} at {path!r}, the first page {first}")
        return announced

    def _require_all(self, page: _Page, total: int | None) -> None:
        if total is not None and self._received != total:
            found = f"is the last, and the pages brought {self._received} records of the {total} announced"
            raise _changed(page, found)

    def _once(self, page: _Page, mark: bytes, what: str) -> None:
        """Raise source.malformed when the mark of a page was met before."""
        if mark in self._seen:
            raise _odd(page, f"{what}: the pages go in a circle")
        self._seen.add(mark)


def _count(page: _Page, path: str | None) -> int | None:
    """Whole number at a path of the body; None when none is declared."""
    if path is None:
        return None
    value = page.at(path)
    if not isinstance(value, str) or not value.isdecimal():
        raise _odd(page, f"no whole number at {path!r}")
    return int(value)


def _odd(page: _Page, found: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_MALFORMED,
        f"page {page.number} of {_shown(page.url)} answered with {found}",
        hint="check pagination against the API's documentation",
    )


def _changed(page: _Page, found: str) -> ChangedInReading:
    return ChangedInReading(
        ErrorCode.SOURCE_UNAVAILABLE,
        f"the source changed while it was read: page {page.number} of {_shown(page.url)} {found}",
        hint="run again when it stands still; if this never ends, the API's count is of something else: leave it out "
        "of pagination, or page by cursor",
        retryable=True,
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


_LINK = re.compile(r'<([^>]*)>((?:\s*;\s*[^\s=;,"]+(?:\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*))?)*)')
_LINK_PARAMETER = re.compile(r';\s*([^\s=;,"]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?')


def next_link(headers: list[str], base: httpx.URL) -> httpx.URL | None:
    """Target of the first link with relation `next` in Link headers (RFC 8288), resolved against `base`.

    Of a repeated `rel` only the first counts, relations are separated by blanks and compared without case,
    and a link with an `anchor` speaks of another document (RFC 8288, 3.2 and 3.3).
    """
    for header in headers:
        for target, tail in _LINK.findall(header):
            parameters: dict[str, str] = {}
            for name, quoted, token in _LINK_PARAMETER.findall(tail):
                parameters.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or token)
            if "next" in parameters.get("rel", "").lower().split() and "anchor" not in parameters:
                return base.join(target)
    return None


# ------------------------------------------------------------------------------------------- JSON text


class _NotThere(Exception):
    """The path leads nowhere, or not to an array; the message says what is there."""


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
_SKIPPER = json.JSONDecoder(parse_int=str, parse_float=str, object_pairs_hook=lambda _: None)
"""Checks and passes over a value without holding what is in it."""
_BLANK = re.compile(r"[ \t\n\r]*")


def _record_spans(text: str, path: str) -> list[tuple[int, int]]:
    """Start and end of each element of the array at a dotted path of a JSON text.

    Raises json.JSONDecodeError for a text that is no JSON document, `_NotThere` when there is no array.
    """
    start = _skip(text, 0)
    _, end = _SKIPPER.raw_decode(text, start)
    if _skip(text, end) != len(text):
        raise json.JSONDecodeError("extra data after the document", text, end)
    start = _locate(text, path)
    if text[start] != "[":
        raise _NotThere(f"found {_named(text[start])}")
    return list(_elements(text, start))


def _locate(text: str, path: str) -> int:
    """Where the value at a dotted path of a valid document starts. Raises `_NotThere`."""
    start = _skip(text, 0)
    for step in path.split(".") if path else ():
        if text[start] != "{":
            raise _NotThere(f"{step!r} is asked of {_named(text[start])}")
        members = dict(_members(text, start))  # of repeated names the last counts
        if step not in members:
            raise _NotThere(f"there is no {step!r} among {', '.join(list(members)[:20]) or 'no members'}")
        start = members[step]
    return start


def _skip(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()


def _members(text: str, at: int) -> Iterator[tuple[str, int]]:
    """Name and start of value of each member of the object that opens at `at`, of a valid document."""
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _SKIPPER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)  # behind the colon
        _, end = _SKIPPER.raw_decode(text, start)
        yield name, start
        at = _behind_comma(text, end)


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Start and end of each element of the array that opens at `at`, of a valid document."""
    at = _skip(text, at + 1)
    while text[at] != "]":
        _, end = _SKIPPER.raw_decode(text, at)
        yield at, end
        at = _behind_comma(text, end)


def _behind_comma(text: str, at: int) -> int:
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at


def _named(first: str) -> str:
    kinds = {"{": "an object", "[": "an array", '"': "a text", "n": "null", "t": "true", "f": "false"}
    return kinds.get(first, "a number")
