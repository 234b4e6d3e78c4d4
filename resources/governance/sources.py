"""What a manifest may say about a source: files, a REST API, a SQL database.

Secrets appear as references, `${secret://name#field}` or `${env:NAME}`, and are looked up when the source is read; a
manifest that holds a value instead is refused. Templates name what changes from run to run in single braces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from resources.governance import name_dates
from resources.runtime.declared import SECRET_REFERENCE, DatasetId, Declared, Name, Text, did_you_mean, listed, refusal

PATH_PLACEHOLDERS = ("data_dir", "project_dir", "tenant")
"""Placeholders of a file source's path, besides `{sources.<name>}`, the path of another source."""

REST_PLACEHOLDERS = ("date", "next_date", "cursor", "until")
"""Placeholders of a REST source's URL and parameters."""

REFERENCE = re.compile(rf"\$\{{(?:env:(?P<variable>[A-Za-z_][A-Za-z0-9_]*)|(?P<secret>{SECRET_REFERENCE}))\}}")
"""A secret of the tenant, or a variable of the process that reads the source."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_REFERENCE_FORM = "${secret://name#field} or ${env:NAME}"


def placeholders(template: str) -> list[str]:
    """Names in braces, in order of appearance. Raises a refusal for braces that do not pair up."""
    rest = _PLACEHOLDER.sub("", template)
    if "{" in rest or "}" in rest:
        raise refusal("a brace without its partner", allowed="placeholders like {tenant}")
    return _PLACEHOLDER.findall(template)


def _well_formed(text: str) -> str:
    if "${" in REFERENCE.sub("", text):
        raise refusal("not a reference", found="${ that opens none", allowed=_REFERENCE_FORM)
    return text


def _secret(text: str) -> str:
    if REFERENCE.search(_well_formed(text)) is None:
        raise refusal("a secret's value in a manifest", found="a value", allowed=f"a reference: {_REFERENCE_FORM}")
    return text


Secret = Annotated[str, AfterValidator(_secret)]
"""Holds at least one reference."""

Referring = Annotated[str, AfterValidator(_well_formed)]
"""May hold references."""


_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_DURATION = r"^[0-9]+(\.[0-9]+)? (second|minute|hour|day)s?$"

Duration = Annotated[str, StringConstraints(pattern=_DURATION)]
Quantity = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Overlap = Annotated[int, Field(ge=0)] | Quantity | Duration
"""How far behind the stored cursor a reading begins: in the cursor's own numbers (seconds for one in time), or a
duration such as `15 minutes`.
"""


def seconds_of(overlap: float | str) -> float:
    """An overlap of a cursor in time."""
    if not isinstance(overlap, str):
        return float(overlap)
    number, unit = overlap.split(" ")
    return float(number) * _SECONDS[unit.removesuffix("s")]


Delivers = Literal["changes", "snapshot", "partition", "full"]
"""What a delivery is: further and changed records; the complete state; the complete state of its day; all there is."""

Parts = Literal["together", "newest"]
"""What several files of one complete delivery are: its parts, or corrections of which the newest counts."""

Marker = Annotated[str | bool | int, Field(description="As the column has it: text, true or false, or a number.")]
"""A value of a column that marks a record."""


ColumnName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""A column of the source's raw contract."""


class Deleted(Declared):
    """Tombstones: a record whose `column` has one of the `values` says that its entity is gone.

    Without values any value does, of a column that is a date or an instant: when it was deleted.
    """

    column: ColumnName
    values: tuple[Marker, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The values as text, as the column is when it is cast to text, on every engine."""
        return [str(value).lower() if isinstance(value, bool) else str(value) for value in self.values]


class Operations(Declared):
    """Change data capture: what each record of a log did, by a value of `column`.

    A record of `insert` or `update` is the entity's state, one of `delete` ends it, one of `before` (how a row was
    before its update) never counts. Any other value is refused. `sequence`: a column that puts the records of one
    entity in order, the greatest being the newest; without it they are in order of delivery and row.
    """

    column: ColumnName
    insert: tuple[Text, ...] = ()
    update: tuple[Text, ...] = ()
    delete: tuple[Text, ...] = Field(min_length=1)
    before: tuple[Text, ...] = ()
    sequence: ColumnName | None = None

    @property
    def state(self) -> tuple[str, ...]:
        """Values of records that say what an entity is."""
        return (*self.insert, *self.update)

    @property
    def allowed(self) -> tuple[str, ...]:
        return (*self.state, *self.delete, *self.before)

    @model_validator(mode="after")
    def _tell_apart(self) -> Self:
        if not self.state:
            raise refusal("no value says what an entity is", allowed="insert, update, or both", at=("insert",))
        kinds: dict[str, str] = {}
        for kind in ("insert", "update", "delete", "before"):
            for index, value in enumerate(getattr(self, kind)):
                if value in kinds:
                    raise refusal(f"a value of {kinds[value]} too", found=value, allowed="a value in one place",
                                  at=(kind, index))
                kinds[value] = kind
        return self


class Source(Declared):
    """What every source has: its name in the manifest, the dataset it fills, and what its deliveries say.

    Attributes:
        delivers: what a delivery is. Left out: `changes` of files, of a dated source and of a cursor; `full` of a
            table, query or API that is read whole each time.
        parts: of files that deliver snapshots, partitions or all there is: what several files of one delivery are.
            Left out: there is one file to a delivery, and a second one is refused.
        max_shrink: largest share, 0 to 1, by which a complete delivery may have fewer accepted records than the one
            it replaces; a smaller one waits for a decision. Left out: any.
        deleted, operations: which records say that an entity is gone.
    """

    name: Name
    dataset: DatasetId
    delivers: Delivers | None = None
    parts: Parts | None = None
    max_shrink: float | None = Field(default=None, ge=0, lt=1)
    deleted: Deleted | None = None
    operations: Operations | None = None

    @property
    def ordered_by(self) -> str:
        """What its deliveries are put in order by, in one word; `landing` where nothing is declared."""
        return "landing"

    @property
    def dated(self) -> bool:
        """True when each unit of the source belongs to the partition of one day."""
        return False

    @property
    def incremental_by(self) -> str | None:
        """The key of the declaration by which only what is new is read; None: everything is read each time."""
        return None

    @property
    def delivery(self) -> Delivers:
        """What a delivery of the source is, declared or by its kind."""
        return self.delivers or "changes"

    @property
    def whole(self) -> bool:
        """True when what is not in a delivery is gone."""
        return self.delivery != "changes"

    @property
    def marks_deletions(self) -> bool:
        return self.deleted is not None or self.operations is not None

    @property
    def for_models(self) -> dict[str, Any]:
        """What the dbt macros must know, as they take it (variable `sources`); empty when there is nothing."""
        known: dict[str, Any] = {}
        if self.deleted is not None:
            known["deleted"] = {"column": self.deleted.column, "values": self.deleted.texts}
        if self.operations is not None:
            known["operations"] = {"column": self.operations.column, "state": list(self.operations.state),
                                   "delete": list(self.operations.delete), "before": list(self.operations.before),
                                   "sequence": self.operations.sequence}
        return known

    @model_validator(mode="after")
    def _complete_in_itself(self) -> Self:
        """What is declared about absence fits together and fits the kind of source."""
        if self.delivers is not None and self.whole and self.incremental_by is not None:
            raise refusal(f"{self.incremental_by} brings what is new, never all there is", found=self.delivers,
                          allowed=f"changes; or no {self.incremental_by}", at=("delivers",))
        if self.delivers == "partition" and not self.dated:
            raise refusal("the source has no {date}", found="partition", allowed="snapshot, full or changes",
                          at=("delivers",))
        if self.delivers == "full" and self.dated:
            raise refusal("the source is read day by day", found="full", allowed="snapshot, partition or changes",
                          at=("delivers",))
        if self.max_shrink is not None and not self.whole:
            raise refusal("only what is complete can shrink", found="delivers: changes",
                          allowed="delivers: snapshot, partition or full", at=("max_shrink",))
        if self.parts is not None and not self.in_parts:
            raise refusal("a delivery of this source is one unit", found=self.parts,
                          allowed="with several files to a delivery: delivers partition, full, or a dated snapshot",
                          at=("parts",))
        return self

    @property
    def in_parts(self) -> bool:
        """True when one complete delivery may come as several units."""
        return False


# --- files ------------------------------------------------------------------------------------------------


Encoding = Literal["utf-8", "iso-8859-1", "iso-8859-15", "windows-1252"]
"""Encodings in which every byte below 128 is ASCII, so that records can be told apart before they are decoded."""

Character = Annotated[str, StringConstraints(pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x7f]$")]
"""One ASCII character that ends no line."""


class CsvFormat(Declared):
    """Dialect of delimited text.

    Attributes:
        quote: doubled to stand for itself; null when fields are never quoted.
        header: the first record names the columns; otherwise they are the contract's, in its order.
        multiline: a quoted field may hold line ends. An unclosed quote then swallows records.
    """

    type: Literal["csv"]
    delimiter: Character = ","
    quote: Character | None = '"'
    encoding: Encoding = "utf-8"
    header: bool = True
    multiline: bool = False

    @field_validator("quote")
    @classmethod
    def _differs_from_delimiter(cls, quote: str | None, info: ValidationInfo) -> str | None:
        if quote is not None and quote == info.data.get("delimiter"):
            raise refusal("the quote is the delimiter", allowed="another character")
        return quote


class JsonLinesFormat(Declared):
    """One JSON object per line, UTF-8."""

    type: Literal["jsonl"]


class ParquetFormat(Declared):
    """Apache Parquet, with its own types."""

    type: Literal["parquet"]


FileFormat = CsvFormat | JsonLinesFormat | ParquetFormat


class DateInName(Declared):
    """A date in the name, or a time: `date` is its format, `which` tells it from others, -1 being the last."""

    date: Text
    which: int | None = None

    @field_validator("date")
    @classmethod
    def _tells_a_date(cls, format: str) -> str:
        return _date_format((format,), times=True)[0]

    @field_validator("which")
    @classmethod
    def _counts_from_one(cls, which: int | None) -> int | None:
        return _position(which)


class NumberInName(Declared):
    """A number in the file's own name: 1 is the first, -1 the last."""

    number: int

    @field_validator("number")
    @classmethod
    def _counts_from_one(cls, number: int) -> int | None:
        return _position(number)


def _position(which: int | None) -> int | None:
    if which == 0:
        raise refusal("there is no such place", found="0", allowed="1 for the first, -1 for the last")
    return which


def _date_format(formats: Sequence[str], *, times: bool) -> Sequence[str]:
    problem = name_dates.problem_of(formats, times=times)
    if problem is not None:
        raise refusal(f"not the format of a date: {problem}", found=" ".join(formats), allowed="e.g. %Y%m%d, %Y-%m")
    return formats


def _kind_of_order(order: Any) -> str:
    if isinstance(order, str):
        return "word"
    names = order if isinstance(order, dict) else type(order).model_fields
    return "date" if "date" in names else "number"


FileOrder = Annotated[
    Annotated[Literal["landing", "natural", "modified"], Tag("word")] | Annotated[DateInName, Tag("date")]
    | Annotated[NumberInName, Tag("number")],
    Discriminator(_kind_of_order),
]


class FileSource(Source):
    """Files of a folder, or one file; local or `s3://`.

    `path` is a template with {data_dir}, {project_dir}, {tenant} and {sources.<name>}; without one it must be
    given when the pipeline runs (`--source NAME=PATH`). `file_name` is a glob, relative to the folder, in which
    {date} stands for the partition's date, YYYY-MM-DD, and {date:FORMAT} for one in another format; without {date} the
    source is undated: every file in every run. `order` says which of several deliveries is the newest: the one that
    landed last (`landing`, what counts where nothing is declared), or by names or times of the files.
    """

    connector: Literal["files"]
    path: Text | None = None
    file_name: Text | None = None
    format: Annotated[FileFormat, Field(discriminator="type")]
    order: FileOrder | None = None

    @field_validator("path")
    @classmethod
    def _known_placeholders(cls, path: str | None) -> str | None:
        for name in placeholders(path or ""):
            if name not in PATH_PLACEHOLDERS and not name.startswith("sources."):
                allowed = listed(f"{{{known}}}" for known in (*PATH_PLACEHOLDERS, "sources.<name>"))
                message = "unknown placeholder" + did_you_mean(name, PATH_PLACEHOLDERS)
                raise refusal(message, found=f"{{{name}}}", allowed=allowed)
        return path

    @field_validator("file_name")
    @classmethod
    def _only_dates(cls, file_name: str | None) -> str | None:
        formats = []
        for placeholder in placeholders(file_name or ""):
            name, _, format = placeholder.partition(":")
            if name != "date":
                raise refusal("unknown placeholder", found=f"{{{name}}}", allowed="{date}, {date:FORMAT}")
            formats.append(format if ":" in placeholder else name_dates.ISO)
        if formats:
            _date_format(formats, times=False)
        return file_name

    @property
    def dated(self) -> bool:
        return any(name.partition(":")[0] == "date" for name in placeholders(self.file_name or ""))

    @property
    def in_parts(self) -> bool:
        return self.whole and (self.dated or self.delivery == "full")

    @property
    def ordered_by(self) -> str:
        if isinstance(self.order, DateInName):
            return f"date {self.order.date}" + ("" if self.order.which is None else f" {self.order.which}")
        if isinstance(self.order, NumberInName):
            return f"number {self.order.number}"
        return self.order or "landing"


CursorOrder = Literal["landing", "cursor"]
"""By landing, as each reading finds the source as it is by then, or by the typed end of each slice."""


def _cursor_to_order_by(order: str | None, has_cursor: bool) -> None:
    if order == "cursor" and not has_cursor:
        raise refusal("there is no cursor to order by", found="cursor", allowed="landing", at=("order",))


# --- REST -------------------------------------------------------------------------------------------------


class Bearer(Declared):
    """`Authorization: Bearer <token>`."""

    type: Literal["bearer"]
    token: Secret


class Basic(Declared):
    """HTTP basic authentication."""

    type: Literal["basic"]
    username: Referring
    password: Secret


class Header(Declared):
    """A key in a header of the API's own."""

    type: Literal["header"]
    name: Text
    value: Secret


class NoPages(Declared):
    """The first answer is all there is."""

    type: Literal["none"] = "none"


class PageNumber(Declared):
    """`?page=1`, `?page=2`, until the number at path `pages` is reached or, without it, a page is empty.

    What is announced at `pages`, and at `total` (a number of records), must hold from the first page to the last.
    """

    type: Literal["page"]
    param: Text = "page"
    start: int = Field(default=1, ge=0)
    size_param: Text | None = None
    size: int | None = Field(default=None, ge=1)
    pages: Text | None = None
    total: Text | None = None

    @field_validator("size")
    @classmethod
    def _has_its_parameter(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get("size_param") is None:
            raise refusal("given without size_param", allowed="size_param and size together")
        return size


class Offset(Declared):
    """`?offset=0&limit=500`, moved on by the records received, until the number at path `total` of them.

    That number must hold from the first page to the last, and be what came.
    """

    type: Literal["offset"]
    offset_param: Text = "offset"
    limit_param: Text = "limit"
    limit: int = Field(ge=1)
    total: Text | None = None


class BodyCursor(Declared):
    """The body names the next page at path `next`; null, missing or empty ends the unit."""

    type: Literal["cursor"]
    param: Text = "cursor"
    next: Text


class LinkHeader(Declared):
    """A `Link` header with `rel="next"` (RFC 8288) leads to the next page; without one the unit ends."""

    type: Literal["link_header"]


class Incremental(Declared):
    """How the slice of time of an incremental source is written.

    Attributes:
        start: value of {cursor} before anything was read.
        lag_seconds: {until} and the stored cursor stay this far behind the clock, for records that become
            visible late.
        overlap: each slice begins this much before the stored cursor; what was read before and is unchanged
            does not land again. Seconds, or a duration like `15 minutes`.
        format: strftime format of the ends of the slice, in UTC.
    """

    start: Text
    lag_seconds: int = Field(default=60, ge=0)
    overlap: Overlap = 0
    format: Text = "%Y-%m-%dT%H:%M:%SZ"


Auth = Annotated[Bearer | Basic | Header, Field(discriminator="type")]
Pagination = Annotated[NoPages | PageNumber | Offset | BodyCursor | LinkHeader, Field(discriminator="type")]


class RestSource(Source):
    """Records of an HTTP API, fetched page by page.

    Attributes:
        url: http or https; path and query may hold placeholders, never credentials.
        params: query parameters; values may hold placeholders.
        headers: request headers; values may be references.
        records: dotted path to the array of records; empty: the body is the array.
        pagination: how one page leads to the next.
        incremental: needed with {cursor}, refused without.
        timeout_seconds: longest wait for a connection and between two pieces of an answer.
        answer_seconds: longest time one whole answer may take.
        max_attempts: requests per page, the first included.
        backoff_seconds: mean wait before the second attempt; doubled with each.
        max_wait_seconds: cap of every wait.
        max_response_bytes: size limit of one answer, decompressed.
        max_pages: limit of pages per unit.
    """

    connector: Literal["rest"]
    url: Text
    params: dict[str, str] = Field(default_factory=dict)
    headers: dict[str, Referring] = Field(default_factory=dict, repr=False)
    auth: Auth | None = None
    records: str = ""
    pagination: Pagination = NoPages()
    incremental: Incremental | None = None
    timeout_seconds: float = Field(default=30.0, gt=0)
    answer_seconds: float = Field(default=300.0, gt=0)
    max_attempts: int = Field(default=6, ge=1)
    backoff_seconds: float = Field(default=0.5, ge=0)
    max_wait_seconds: float = Field(default=60.0, ge=0)
    max_response_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    max_pages: int = Field(default=100_000, ge=1)
    order: CursorOrder | None = None

    @field_validator("params")
    @classmethod
    def _known_placeholders(cls, params: dict[str, str]) -> dict[str, str]:
        for name, value in params.items():
            _require_known(value, (name,))
        return params

    @field_validator("url")
    @classmethod
    def _can_be_fetched(cls, url: str) -> str:
        _require_known(url, ())
        parts = _url_parts(_PLACEHOLDER.sub("x", url))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise refusal("not a web address", found="something else", allowed="http://host/... or https://host/...")
        if parts.username is not None:
            raise refusal("holds a user or password", found="credentials", allowed="a URL without; declare auth")
        if "{" in url.split("/", 3)[2]:
            raise refusal("the host holds a placeholder", allowed="placeholders in path and query")
        return url

    @model_validator(mode="after")
    def _dated_or_incremental(self) -> Self:
        _cursor_to_order_by(self.order, self.incremental is not None)
        texts = (self.url, *self.params.values())
        used = {name for text in texts for name in _PLACEHOLDER.findall(text)}
        found = listed(f"{{{name}}}" for name in sorted(used))
        if used & {"date", "next_date"} and used & {"cursor", "until"}:
            raise refusal("both dated and incremental", found=found, allowed="{date} or {cursor}", at=("url",))
        if "until" in used and "cursor" not in used:
            raise refusal("{until} without {cursor}", found=found, allowed="both, or {cursor} alone", at=("url",))
        if ("cursor" in used) != (self.incremental is not None):
            message = "{cursor} in url or params and the section incremental need each other"
            raise refusal(message, found=found, allowed="both, or neither", at=("incremental",))
        return self

    @property
    def ordered_by(self) -> str:
        return self.order or "landing"

    @property
    def dated(self) -> bool:
        return any("{date}" in text or "{next_date}" in text for text in (self.url, *self.params.values()))

    @property
    def incremental_by(self) -> str | None:
        return None if self.incremental is None else "incremental"

    @property
    def delivery(self) -> Delivers:
        return self.delivers or ("changes" if self.dated or self.incremental else "full")


def _require_known(text: str, at: tuple[str, ...]) -> None:
    if "${" in text:
        allowed = "references in headers and auth; URLs are logged along the way"
        raise refusal("holds a reference", found=_REFERENCE_FORM, allowed=allowed, at=at)
    for name in placeholders(text):
        if name not in REST_PLACEHOLDERS:
            allowed = listed(f"{{{known}}}" for known in REST_PLACEHOLDERS)
            message = "unknown placeholder" + did_you_mean(name, REST_PLACEHOLDERS)
            raise refusal(message, found=f"{{{name}}}", allowed=allowed, at=at)


# --- SQL --------------------------------------------------------------------------------------------------


class SqlSource(Source):
    """Rows of a table or query of a database, whole or incremental on a column.

    Attributes:
        dsn: `dialect://user:password@host/database`; any part, or the whole, may be a reference, and the
            password must be one.
        table: `name` or `schema.name`, case kept.
        query: one SELECT, instead of `table`.
        cursor_column: column whose values grow; without it the whole source is one unit every time. Rows that have
            none are read every time.
        overlap: each slice begins this much before the greatest value read; what was read before and is unchanged
            does not land again. A number for numbers, a duration like `15 minutes` (or seconds) for dates and
            timestamps; none for text.
        late_commits: `snapshot` also reads what transactions wrote that were not over at the last reading, whatever
            their cursor values; of PostgreSQL tables, by a scan of the table. `overlap` leaves it to the overlap.
        order_by: columns that put rows of equal cursor in one order.
        batch_rows: rows per batch for databases without an Arrow driver.
        connect_timeout_seconds: how long the database may take to accept the connection.
    """

    connector: Literal["sql"]
    dsn: Annotated[Text, Field(repr=False)]
    table: Annotated[str, StringConstraints(pattern=r"^[^.\s][^.]*(\.[^.]+)?$")] | None = None
    query: Text | None = None
    cursor_column: Text | None = None
    overlap: Overlap = 0
    late_commits: Literal["snapshot", "overlap"] = "snapshot"
    order_by: tuple[Text, ...] = ()
    batch_rows: int = Field(default=20_000, ge=1)
    connect_timeout_seconds: int = Field(default=15, ge=1)
    order: CursorOrder | None = None

    @property
    def incremental_by(self) -> str | None:
        return None if self.cursor_column is None else "cursor_column"

    @property
    def delivery(self) -> Delivers:
        return self.delivers or ("changes" if self.cursor_column else "full")

    @field_validator("dsn")
    @classmethod
    def _holds_no_password(cls, dsn: str) -> str:
        _well_formed(dsn)
        if REFERENCE.fullmatch(dsn):
            return dsn
        parts = _url_parts(REFERENCE.sub("reference", dsn))
        if not parts.scheme or "://" not in dsn:
            raise refusal("not a database URL", found="something else", allowed=f"dialect://..., or {_REFERENCE_FORM}")
        if parts.password not in (None, "reference"):
            raise refusal("holds a password", found="a value", allowed=f"a reference: {_REFERENCE_FORM}")
        return dsn

    @property
    def ordered_by(self) -> str:
        return self.order or "landing"

    @model_validator(mode="after")
    def _table_or_query(self) -> Self:
        _cursor_to_order_by(self.order, self.cursor_column is not None)
        if (self.table is None) == (self.query is None):
            found = "neither" if self.table is None else "both"
            raise refusal("a table or a query is read", found=found, allowed="one of table and query", at=("table",))
        if self.cursor_column is None and seconds_of(self.overlap):
            raise refusal("an overlap without a cursor", found="no cursor_column", allowed="both", at=("overlap",))
        return self


def _url_parts(url: str) -> Any:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # parsed only when asked for
    except ValueError as error:
        raise refusal(f"not a URL: {error}", found="something else") from error
    return parts


AnySource = Annotated[FileSource | RestSource | SqlSource, Field(discriminator="connector")]
