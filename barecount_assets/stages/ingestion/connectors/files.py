"""Files: one file, a folder or a glob, on local disk or S3, as units of CSV, JSON Lines or Parquet.

A source says where (`path`) and which (`file_name`, a glob in which `{date}` is the partition date, or `{date:FORMAT}`
where it is written in another format than YYYY-MM-DD). In globs, `*` and `?` stay within one path segment, `**` is any
number of folders, `[...]` is a character class; names that begin with a dot match only where the glob says the dot.
What a file's bytes mean is the format's matter (`csv`, `jsonl`, `parquet` beside this module).
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as arrow_fs

from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.connectors.jsonl import JsonlFormat
from barecount_assets.stages.ingestion.connectors.parquet import ParquetFormat
from barecount_assets.stages.ingestion.delivery_order import natural_key
from barecount_assets.stages.ingestion.records import (
    ExtractorSchema,
    ObservedSchema,
    ParsedBatch,
    Unit,
    Window,
)
from resources.governance import name_dates
from resources.runtime.errors import BareCountError, ErrorCode

_S3 = "s3://"
_DATE = re.compile(r"\{date(?::([^{}]*))?\}")
_SHOWN = 5  # names in an error
_HASH_BYTES = 4 << 20
_HASH_THREADS = 4


FileFormat = CsvFormat | JsonlFormat | ParquetFormat
_FORMATS: dict[str, type[FileFormat]] = {"csv": CsvFormat, "jsonl": JsonlFormat, "parquet": ParquetFormat}


def file_format(options: Mapping[str, Any]) -> FileFormat:
    """The format a manifest declares: `{"type": "csv", "delimiter": ";"}`; what is left out has its default.

    Raises:
        BareCountError: declaration.invalid for an unknown type or option, or a value that is not allowed.
    """
    options = dict(options)
    name = options.pop("type", None)
    if name not in _FORMATS:
        raise _undeclarable("type", name, _FORMATS)
    allowed = [field.name for field in fields(_FORMATS[name])]
    for option in options.keys() - set(allowed):
        raise _undeclarable(f"option of {name}", option, allowed)
    return _FORMATS[name](**options)


def partition_date_of(name: str, file_name: str) -> dt.date | None:
    """The `{date}` of a file by its name in the source's folder; None if it does not match or bears none.

    Raises:
        BareCountError: source.malformed when the date is no day of the calendar.
    """
    match = _glob(file_name).fullmatch(name)
    return match and _date(match, file_name, name)


def is_named(name: str, file_name: str) -> bool:
    """Whether a file of a source's folder is one that `file_name` means."""
    return _glob(file_name).fullmatch(name) is not None


@dataclass(frozen=True)
class FilesConnector:
    """Reader of one files source.

    Attributes:
        path: file, folder or glob; local, or `s3://bucket/key` (credentials and AWS_ENDPOINT_URL from the
            environment, as every AWS client takes them).
        file_name: glob of the files in the folder, relative to it. With `{date}` the source is dated: units
            carry the day, and the window chooses. None takes the file itself, or all files of the folder.
        format: how the bytes are read.
        asks_about_dates: names that look as if they held a date are refused: nothing says whether they do.
    """

    path: str
    file_name: str | None
    format: FileFormat
    asks_about_dates: bool = False

    def discover(self, window: Window, cursor: str | None = None) -> list[Unit]:
        """Files that match, in the window if they are dated, each with the SHA-256 of its bytes.

        Sorted by date and natural order of names, whatever order the file system lists them in. Every run sees
        every file of the window: whether one is new, its digest tells. `cursor` is not used.

        Raises:
            BareCountError: source.not_found, source.unreadable, source.unavailable (retryable);
                source.malformed for a name whose `{date}` is no day of the calendar; declaration.invalid for one of
                which nothing says whether it holds a date.
        """
        with _reading(self.path):
            found = [match for match in self._matches() if match[0] is None or match[0] in window]
            if self.asks_about_dates:
                _refuse_unexplained_dates([name for _, name, _ in found], self.path)
            found.sort(key=lambda match: (match[0] or dt.date.min, natural_key(match[1]), match[1]))
            with ThreadPoolExecutor(_HASH_THREADS) as pool:
                digests = pool.map(self._sha256, [info.path for _, _, info in found])
                return [
                    Unit(
                        name,
                        self._uri(info.path),
                        date,
                        digest,
                        info.size,
                        options={"mtime_ns": info.mtime_ns},
                    )
                    for (date, name, info), digest in zip(found, digests, strict=True)
                ]

    def left_out(self, first: dt.date, last: dt.date | None) -> tuple[list[str], list[str]]:
        """Files in a source's folder that no run reads, in natural order: those that `file_name` does not match, hidden
        ones apart, and those of days outside the pipeline's, which are inclusive.

        Both are empty where the source is one file, or its path says itself which files are meant.
        """
        path = self._resolved()
        unmatched, outside = [], []
        with _reading(self.path):
            info = self._filesystem.get_file_info(path)
            if info.type != arrow_fs.FileType.Directory or self.file_name is None:
                return [], []
            base, (pattern,), recursive = self._search(path, info)
            for info in self._filesystem.get_file_info(arrow_fs.FileSelector(base, recursive=recursive)):
                name = posixpath.relpath(info.path, base)
                if info.type != arrow_fs.FileType.File or any(part.startswith(".") for part in name.split("/")):
                    continue
                match = pattern.fullmatch(name)
                if match is None:
                    unmatched.append(name)
                elif (day := self._date(match, info.path)) and (day < first or (last is not None and day > last)):
                    outside.append(name)
        return sorted(unmatched, key=natural_key), sorted(outside, key=natural_key)

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        """The unit's own schema: CSV header, keys of the first JSON objects, Parquet footer.

        Raises:
            BareCountError: as `discover` and `read`.
        """
        with _reading(unit.uri), self._open(unit) as file:
            return self.format.observe(file, unit.uri)

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        """Stream the unit in batches of bounded size; an empty unit yields nothing.

        Raises:
            BareCountError: source.malformed when no record can be told apart; source.unavailable
                (retryable) when the file changed since it was discovered, so that its digest no longer holds.
        """
        with _reading(unit.uri), self._open(unit) as file:
            yield from self.format.read(file, schema, unit.uri)
            self._refuse_changed(unit)

    # Finding --------------------------------------------------------------------------------------------

    @cached_property
    def _filesystem(self) -> arrow_fs.FileSystem:
        if not self.path.startswith(_S3):
            return arrow_fs.LocalFileSystem()
        return _s3(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))

    def _uri(self, path: str) -> str:
        return f"{_S3}{path}" if self.path.startswith(_S3) else path

    def _path(self, uri: str) -> str:
        return uri.removeprefix(_S3)

    def _resolved(self) -> str:
        if self.path.startswith(_S3):
            return posixpath.normpath(self._path(self.path))  # keys know no "..": resolve it here
        return os.path.join(os.getcwd(), self.path).rstrip("/") or "/"

    def _matches(self) -> Iterator[tuple[dt.date | None, str, arrow_fs.FileInfo]]:
        """Partition date, source id and file of every match."""
        path = self._resolved()
        info = self._filesystem.get_file_info(path)
        if info.type == arrow_fs.FileType.File:
            match = self.file_name and _glob(self.file_name).fullmatch(info.base_name)
            if self.file_name and not match:
                raise _not_found(self._uri(path), f"its name does not match {self.file_name}")
            yield self._date(match, path) if match else None, info.base_name, info
            return
        base, patterns, recursive = self._search(path, info)
        selector = arrow_fs.FileSelector(base, recursive=recursive)
        if not self.path.startswith(_S3):
            _refuse_dangling_links(base, patterns, recursive)
        for info in self._filesystem.get_file_info(selector):
            name = posixpath.relpath(info.path, base)
            match = next(filter(None, (pattern.fullmatch(name) for pattern in patterns)), None)
            if match is None:
                continue
            day = self._date(match, info.path)
            if info.type == arrow_fs.FileType.File:
                yield day, name, info
            elif day is not None or info.type != arrow_fs.FileType.Directory:
                # A day's file that cannot be read must not look like a day without one.
                kind = "a folder" if info.type == arrow_fs.FileType.Directory else "neither a file nor a folder"
                raise _no_file(self._uri(info.path), kind)

    def _date(self, match: re.Match[str], path: str) -> dt.date | None:
        return _date(match, self.file_name or "", self._uri(path))

    def _search(self, path: str, info: arrow_fs.FileInfo) -> tuple[str, list[re.Pattern[str]], bool]:
        """Folder to list, patterns of the paths in it, and whether to list its folders too."""
        if info.type == arrow_fs.FileType.Directory:
            wanted = self.file_name or "*"
            return path, [_glob(wanted)], "/" in wanted
        segments = path.split("/")
        first = next((index for index, segment in enumerate(segments) if re.search(r"[*?[]", segment)), None)
        if first is None:
            raise _not_found(self._uri(path), "there is no such file or folder")
        base, rest = "/".join(segments[:first]) or "/", "/".join(segments[first:])
        if self._filesystem.get_file_info(base).type != arrow_fs.FileType.Directory:
            raise _not_found(self._uri(path), f"there is no folder {self._uri(base)}")
        if self.file_name is None:
            return base, [_glob(rest)], "/" in rest
        # The glob may name the files, which must then also be named as the source says, or their folders.
        files = re.compile(f"(?={_glob(rest).pattern}\\Z)(?:.*/)?{_glob(self.file_name).pattern}")
        return base, [files, _glob(f"{rest}/{self.file_name}")], True

    # Reading --------------------------------------------------------------------------------------------

    def _open(self, unit: Unit) -> pa.NativeFile:
        self._refuse_changed(unit)
        return self._filesystem.open_input_file(self._path(unit.uri))

    def _refuse_changed(self, unit: Unit) -> None:
        """Compare what the file system says now with what it said when the unit was discovered."""
        if "mtime_ns" not in unit.options:
            return
        info = self._filesystem.get_file_info(self._path(unit.uri))
        if info.type == arrow_fs.FileType.NotFound:
            raise _not_found(unit.uri, "it was there when the run began")
        if (info.size, info.mtime_ns) != (unit.size, unit.options["mtime_ns"]):
            raise BareCountError(
                ErrorCode.SOURCE_UNAVAILABLE,
                f"{unit.uri}: changed since it was discovered ({unit.size} bytes then, {info.size} now)",
                hint="Run again once the file is complete; have sources write elsewhere and then rename.",
                retryable=True,
            )

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with _reading(self._uri(path)), self._filesystem.open_input_file(path) as file:
            while block := file.read_buffer(_HASH_BYTES):
                digest.update(block)
        return digest.hexdigest()


@lru_cache(maxsize=4)
def _s3(endpoint: str | None) -> arrow_fs.S3FileSystem:
    if not endpoint:
        return arrow_fs.S3FileSystem()
    parts = urlsplit(endpoint)
    return arrow_fs.S3FileSystem(endpoint_override=parts.netloc, scheme=parts.scheme)


@lru_cache(maxsize=256)
def _glob(glob: str) -> re.Pattern[str]:
    """The pattern of the paths a glob matches; each format of a date is a group, the same text every time."""
    pattern: list[str] = []
    formats = _formats(glob)
    grouped: set[str] = set()
    for token in re.findall(rf"{_DATE_TOKEN}|\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\]|.", glob, re.DOTALL):
        at_start = not pattern or pattern[-1].endswith("/") or pattern[-1] == _FOLDERS
        if date := _DATE.fullmatch(token):
            format = date[1] or name_dates.ISO
            name = f"date{formats.index(format)}"
            text = _ISO_DATE if format == name_dates.ISO else name_dates.pattern_of(format)
            pattern.append(f"(?P={name})" if format in grouped else f"(?P<{name}>{text})")
            grouped.add(format)
        elif token == "**/":
            pattern.append(_FOLDERS)
        elif token in ("*", "**", "?") or len(token) > 1:
            hidden = r"(?!\.)" if at_start else ""
            pattern.append(hidden + (_WILDCARDS.get(token) or _class(token)))
        else:
            pattern.append(re.escape(token))
    return re.compile("".join(pattern), re.DOTALL | re.ASCII)


@lru_cache(maxsize=256)
def _formats(glob: str) -> tuple[str, ...]:
    """Formats in which a glob has the date, or parts of it, each once."""
    return tuple(dict.fromkeys(format or name_dates.ISO for format in _DATE.findall(glob)))


_DATE_TOKEN = r"\{date(?::[^{}]*)?\}"
_ISO_DATE = r"\d{4}-\d{2}-\d{2}"
_FOLDERS = r"(?:[^/.][^/]*/)*"
_WILDCARDS = {"*": "[^/]*", "?": "[^/]", "**": ".*"}


def _class(token: str) -> str:
    """The pattern of `[...]`, which does not match a slash either."""
    return r"(?!/)" + fnmatch.translate(token).removesuffix(r"\Z")


def _date(match: re.Match[str], file_name: str, where: str) -> dt.date | None:
    formats = _formats(file_name)
    texts = [match[f"date{number}"] for number in range(len(formats))]
    try:
        return name_dates.parse(texts, formats).date() if formats else None
    except ValueError as error:
        wanted = "YYYY-MM-DD" if formats == (name_dates.ISO,) else " ".join(formats)
        raise BareCountError(
            ErrorCode.SOURCE_MALFORMED,
            f"{where}: found the date {' '.join(texts)} in its name, allowed is a day of the calendar as {wanted}",
            hint="Rename the file to the day it belongs to, or move it away.",
        ) from error


def _refuse_unexplained_dates(names: Sequence[str], where: str) -> None:
    dated = [(name, date) for name in names if (date := name_dates.look_for_date(name)) is not None]
    if not dated:
        return
    name, date = dated[0]
    globs = name_dates.common_file_names([name for name, _ in dated]) or name_dates.common_file_names([name])
    shown = ", ".join(name for name, _ in dated[:_SHOWN]) + (f" and {len(dated) - _SHOWN} more"
                                                             if len(dated) > _SHOWN else "")
    raise BareCountError(
        ErrorCode.DECLARATION_INVALID,
        f"{where}: {shown} look as if they held a date ({name[date.start:date.end]}), and the source declares neither "
        "{date} nor an order: they would be undated, and what lands last would be the newest",
        hint=f"If it is the day the file belongs to, declare file_name: {' or '.join(map(repr, globs))}. If it only "
        f"says which file is newer, declare order: {{date: '{date.formats[0]}'}}; if it means nothing, declare "
        "order: landing.",
        details={"files": [name for name, _ in dated[:100]], "file_name": globs},
    )


# Errors -------------------------------------------------------------------------------------------------


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn the file system's errors about one file or folder into BareCount's."""
    try:
        yield
    except OSError as error:
        raise _failure(error, where) from error
    except UnicodeDecodeError as error:
        named = error.object.decode(errors="backslashreplace")
        raise BareCountError(
            ErrorCode.SOURCE_UNREADABLE,
            f"{named}: found a name that is not UTF-8, which no manifest can name",
            hint="Rename the file.",
        ) from error


_REFUSED_BY_AWS = re.compile(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN")


def _failure(error: OSError, where: str) -> BareCountError:
    text = str(error)
    if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in text or "NO_SUCH_KEY" in text:
        return _not_found(where, "there is no such file or folder")
    if "AWS Error" in text and not _REFUSED_BY_AWS.search(text):
        return BareCountError(
            ErrorCode.SOURCE_UNAVAILABLE,
            f"{where}: S3 did not answer as it should: {text.splitlines()[0]}",
            hint="Check the network, the region and AWS_ENDPOINT_URL; a later run may succeed.",
            retryable=True,
        )
    return BareCountError(
        ErrorCode.SOURCE_UNREADABLE,
        f"{where}: cannot be read: {error.strerror or text.splitlines()[0]}",
        hint="Grant the account that runs BareCount read access to the file and its folders.",
    )


def _refuse_dangling_links(base: str, patterns: list[re.Pattern[str]], recursive: bool) -> None:
    """Arrow leaves links without a target, and those that lead to themselves, out of its listing."""
    for folder, folders, files in os.walk(base):
        for name in files:
            path = os.path.join(folder, name)
            relative = posixpath.relpath(path, base)
            if any(pattern.fullmatch(relative) for pattern in patterns) and not os.path.exists(path):
                raise _no_file(path, "a link without a target")
        if not recursive:
            folders.clear()


def _no_file(where: str, found: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_UNREADABLE,
        f"{where}: found {found}, allowed is a file",
        hint="Deliver the file itself, or move this away.",
    )


def _not_found(where: str, why: str) -> BareCountError:
    return BareCountError(
        ErrorCode.SOURCE_NOT_FOUND,
        f"{where}: not found: {why}",
        hint="Check the source's path and file_name in the manifest, or give --source NAME=PATH.",
    )


def _undeclarable(what: str, found: object, allowed: Iterable[str]) -> BareCountError:
    choice = ", ".join(allowed) or "no option"
    return BareCountError(ErrorCode.DECLARATION_INVALID, f"format, {what}: found {found!r}, allowed {choice}")
