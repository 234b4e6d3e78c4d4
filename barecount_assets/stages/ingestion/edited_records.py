"""Refused records as files: exported to be edited by people or programs, and read back for a replay.

CSV, JSON Lines and Parquet have the same columns. `payload` is the record as its source had it: text, in the encoding
that `payload_encoding` names, or base64 where it is no text. Only `quarantine_id`, `payload` and `payload_encoding` are
read back; records that are not in the file are left alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode

FORMATS = ("csv", "jsonl", "parquet")
COLUMNS = pa.schema([
    ("quarantine_id", pa.int64()), ("tenant_id", pa.string()), ("pipeline", pa.string()), ("dataset", pa.string()),
    ("stage", pa.string()), ("source_id", pa.string()), ("partition_date", pa.string()), ("row_number", pa.int64()),
    ("field", pa.string()), ("reason", pa.string()), ("message", pa.string()), ("state", pa.string()),
    ("payload", pa.string()), ("payload_encoding", pa.string()),
])  # fmt: skip
_BASE64 = "base64"


def export(
    pages: Iterable[list[dict[str, Any]]], path: Path, encoding_of: Callable[[dict[str, Any]], str],
    on_written: Callable[[str], None] = lambda sha256: None,
) -> int:
    """Write records to a file by its ending, page by page; nothing is at `path` before all of them are.

    Args:
        encoding_of: the encoding of a record's source.
        on_written: is told the file's SHA-256 before it gets its name; when it raises, there is no file.

    Raises:
        BareCountError: usage for another ending.
    """
    kind = _format(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    rows = 0
    try:
        with _writer(kind, unfinished) as writer:
            for page in pages:
                listed = [{**{name: record.get(name) for name in COLUMNS.names}, **_text(record, encoding_of(record)),
                           "partition_date": record["partition_date"] and str(record["partition_date"])}
                          for record in page]
                writer.write(listed)
                rows += len(listed)
        with unfinished.open("rb") as written:
            on_written(hashlib.file_digest(written, "sha256").hexdigest())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


@dataclass(frozen=True)
class Edits:
    """Edited payloads, in a temporary table of `connection`; `sha256` is that of the file."""

    connection: psycopg.Connection
    sha256: str

    def those_of(self, ids: Sequence[int]) -> list[int]:
        """The records among `ids` that are in the file, in the order given."""
        there = {number for (number,) in fetch(self.connection, "select quarantine_id from edited_record")}
        return [number for number in ids if number in there]

    def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Payloads by number."""
        with self.connection.cursor(binary=True) as cursor:
            cursor.execute("select quarantine_id, payload from edited_record where quarantine_id = any($1::bigint[])",
                           (list(ids),))
            return dict(cursor.fetchall())


def load(connection: psycopg.Connection, path: Path) -> Edits:
    """Read an edited export into a temporary table of the connection.

    Raises:
        BareCountError: source.not_found; usage for a file that is not an export, or names a record twice or one that
            never was in quarantine.
    """
    kind = _format(path)
    sha256 = sha256_of(path)
    fetch(connection, "drop table if exists edited_record")
    fetch(connection, "create temporary table edited_record (quarantine_id bigint primary key, payload bytea not null)")
    try:
        with connection.transaction(), connection.cursor() as cursor:
            with cursor.copy("copy edited_record from stdin") as copy:
                for number, row in enumerate(_rows(kind, path), start=1):
                    copy.write_row(_edited(path, number, row))
    except psycopg.errors.UniqueViolation as error:
        raise _refused(path, f"a record twice: {str(error.diag.message_detail)}") from error
    except (pa.ArrowInvalid, json.JSONDecodeError, KeyError) as error:
        raise _refused(path, str(error).splitlines()[0]) from error
    fetch(connection, "analyze edited_record")
    unknown = fetch(connection, _UNKNOWN)
    if unknown:
        raise _refused(path, f"record {unknown[0][0]}, which is not in quarantine")
    return Edits(connection, sha256)


def sha256_of(path: Path) -> str:
    """Checksum of an edited export, in hex. Raises BareCountError source.not_found."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BareCountError(ErrorCode.SOURCE_NOT_FOUND, f"{path}: {error.strerror}",
                             hint="`barecount quarantine export` writes one") from error


def _format(path: Path) -> str:
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise BareCountError(ErrorCode.USAGE, f"{path}: found the ending {path.suffix!r}, allowed: "
                             + ", ".join(f".{name}" for name in FORMATS), hint="name the file after its format")
    return kind


def _text(record: dict[str, Any], encoding: str) -> dict[str, str]:
    payload = record["payload"] or b""
    try:
        text = payload.decode(encoding)
        if "\0" not in text and text.encode(encoding) == payload:
            return {"payload": text, "payload_encoding": encoding}
    except UnicodeError:
        pass
    return {"payload": base64.b64encode(payload).decode(), "payload_encoding": _BASE64}


def _edited(path: Path, number: int, row: dict[str, Any]) -> tuple[int, bytes]:
    encoding = row.get("payload_encoding") or "utf-8"
    try:
        if encoding == _BASE64:
            payload = base64.b64decode(row["payload"], validate=True)
        else:
            payload = row["payload"].encode(encoding)
        return int(row["quarantine_id"]), payload
    except (ValueError, LookupError, AttributeError, TypeError, binascii.Error) as error:
        raise _refused(path, f"in its record {number}: {error}") from error


def _refused(path: Path, found: str) -> BareCountError:
    return BareCountError(
        ErrorCode.USAGE, f"{path}: found {found}; allowed is an export of quarantine with edited payloads",
        hint="export again and change the column payload only")


def _rows(kind: str, path: Path) -> Iterator[dict[str, Any]]:
    if kind == "jsonl":
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
        return
    if kind == "parquet":
        batches: Iterable[pa.RecordBatch] = pq.ParquetFile(path).iter_batches()
    else:
        batches = arrow_csv.open_csv(
            path, parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(COLUMNS.names, pa.string()), strings_can_be_null=False))
    for batch in batches:
        wanted = [name for name in ("quarantine_id", "payload", "payload_encoding") if name in batch.schema.names]
        yield from batch.select(wanted).to_pylist()


class _Lines:
    """JSON Lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, records: list[dict[str, Any]]) -> None:
        self._file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


class _Columns:
    """CSV and Parquet."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __enter__(self) -> _Columns:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, records: list[dict[str, Any]]) -> None:
        self._writer.write_table(pa.Table.from_pylist(records, schema=COLUMNS))


def _writer(kind: str, path: Path) -> Any:
    if kind == "jsonl":
        return _Lines(path)
    if kind == "parquet":
        return _Columns(pq.ParquetWriter(path, COLUMNS, compression="zstd"))
    return _Columns(arrow_csv.CSVWriter(path, COLUMNS))


_UNKNOWN = """
select e.quarantine_id from edited_record e
where not exists (select from platform.quarantine q where q.quarantine_id = e.quarantine_id) limit 1
"""
