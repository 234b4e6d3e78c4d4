"""The raw store: source facts exactly as received, as Parquet (zstd), write-once, content-addressed.

An object's key is `tenant=<t>/dataset=<d>/load_date=<date>/run=<token>/<sha256>.parquet`, where sha256 is that of the
object's own bytes. Writing a key that exists is refused unless the bytes are the same, which is how a run that was
killed after the write and before the commit finds its own object again. Objects are never replaced or changed.

In S3 an object lies in the storage class of its declared `raw_class` (`S3_CLASSES`), all of which are read at once; a
folder has one class.

Row groups have a fixed number of rows whatever the batches handed in, and how a column is encoded depends on the rows
of the first of them, so the same rows give the same bytes with the same Parquet writer.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resources.host.tenants import RawClass
from resources.runtime.errors import BareCountError, ErrorCode

ROW_GROUP_ROWS = 131_072
_CHUNK = 1 << 20
_UNFINISHED = ".parquet.tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # disk, quota, limit of the process
_LONGEST_INTEGER_DECIMAL = 18  # digits that 64 bits hold
S3_CLASSES: Mapping[RawClass, str] = {
    "standard": "STANDARD", "infrequent": "STANDARD_IA", "archive": "GLACIER_IR",
}  # fmt: skip
_ROWS_PER_DICTIONARY_VALUE = 8  # fewer make a dictionary cost more time and space than it saves


@dataclass(frozen=True)
class StoredObject:
    """One object: its key below the store's root, SHA-256 (hex) of its bytes, size in bytes, rows."""

    key: str
    sha256: str
    size: int
    rows: int


class Backend(Protocol):
    """Where finished objects lie. Keys are relative, with forward slashes."""

    def scratch_dir(self) -> Path:
        """A local folder for objects being written, on the same file system where that matters."""

    def put(self, local: Path, key: str, sha256: str, raw_class: RawClass) -> None:
        """Move a finished local file to `key`; refuse to replace other content."""

    def open(self, key: str) -> pa.NativeFile:
        """Open for reading; source.not_found semantics are those of `RawStore`."""

    def local_file(self, key: str, folder: Path) -> Path:
        """An object's own file, or a copy of it in `folder`."""

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""

    def reclassify(self, key: str, raw_class: RawClass, *, dry_run: bool) -> bool:
        """See `RawStore.reclassify`."""


class RawStore:
    """Write and read raw objects. `location` is a folder or `s3://bucket/prefix`."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._backend: Backend = _S3(location) if location.startswith("s3://") else _Folder(Path(location))

    def writer(self, schema: pa.Schema, raw_class: RawClass = "standard") -> ObjectWriter:
        """Begin an object; where it is put may depend on what it turns out to hold."""
        return ObjectWriter(self._backend, schema, raw_class)

    def read(self, key: str) -> Iterator[pa.RecordBatch]:
        """Stream an object's rows.

        Raises:
            BareCountError: store.corrupt when the object is gone or is not what was written.
        """
        try:
            with self._backend.open(key) as source:
                yield from pq.ParquetFile(source).iter_batches(batch_size=ROW_GROUP_ROWS)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise BareCountError(
                ErrorCode.STORE_CORRUPT, f"raw object {key} cannot be read: {error}",
                hint="restore it from a backup of the raw store: its checksum is in the evidence",
            ) from error

    def sha256(self, key: str) -> str | None:
        """SHA-256 (hex) of the object's bytes now, None when there is no such object."""
        try:
            source = self._backend.open(key)
        except FileNotFoundError:
            return None
        digest = hashlib.sha256()
        with source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def reclassify(self, key: str, raw_class: RawClass, *, dry_run: bool = False) -> bool:
        """Let an object lie in a storage class; False when it does already, is gone, or the store has but one.

        Its bytes stay as they are.

        Raises:
            BareCountError: store.unavailable.
        """
        return self._backend.reclassify(key, raw_class, dry_run=dry_run)

    def local_file(self, key: str, folder: Path) -> Path:
        """An object as a file that others can read: where it lies, or a copy in `folder`."""
        return self._backend.local_file(key, folder)

    def delete(self, key: str) -> None:
        """Delete an object, if it is there: retention alone does.

        Raises:
            BareCountError: store.unavailable when the store refuses, as one with object lock does.
        """
        with _store_errors():
            self._backend.delete(key)


def prefix_of(tenant_id: str, dataset: str, load_date: str, run_token: str) -> str:
    """Partition path of one load."""
    return f"tenant={tenant_id}/dataset={dataset}/load_date={load_date}/run={run_token}"


class ObjectWriter:
    """One object in the making: nothing is visible before `finish`, nothing is left behind without it."""

    def __init__(self, backend: Backend, schema: pa.Schema, raw_class: RawClass) -> None:
        self._backend, self._schema, self._raw_class = backend, schema, raw_class
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._path: Path | None = None
        self._writer: pq.ParquetWriter | None = None
        self._sealed: str | None = None
        self.rows = 0

    def __enter__(self) -> ObjectWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Raises BareCountError store.full when there is no room."""
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self.rows += batch.num_rows
        while self._pending_rows >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(self._pending, self._schema)
            self._write_group(table.slice(0, ROW_GROUP_ROWS))
            rest = table.slice(ROW_GROUP_ROWS)
            self._pending, self._pending_rows = rest.to_batches(), rest.num_rows

    def seal(self) -> str:
        """Close the object, which takes no more rows; returns the SHA-256 (hex) of its bytes."""
        if self._sealed is None:
            if self._pending_rows or self._writer is None:
                self._write_group(pa.Table.from_batches(self._pending, self._schema))
            assert self._writer is not None and self._path is not None
            with _store_errors():
                self._writer.close()
                with self._path.open("rb") as written:
                    self._sealed = hashlib.file_digest(written, "sha256").hexdigest()
                    os.fsync(written.fileno())
        return self._sealed

    def finish(self, prefix: str) -> StoredObject:
        """Seal the object and put it below `prefix` (see `prefix_of`), under its content-addressed key."""
        digest = self.seal()
        assert self._path is not None
        with _store_errors():
            size = self._path.stat().st_size
            key = f"{prefix}/{digest}.parquet"
            self._backend.put(self._path, key, digest, self._raw_class)
        return StoredObject(key, digest, size, self.rows)

    def discard(self) -> None:
        """Remove what is unfinished; after `finish` there is nothing to remove."""
        if self._writer is not None and self._writer.is_open:
            try:
                self._writer.close()
            except OSError:
                pass  # a full disk refuses the footer too; the file goes away in the next line
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write_group(self, group: pa.Table) -> None:
        group = group.combine_chunks()
        with _store_errors():
            if self._writer is None:
                self._writer = self._open(group)
            self._writer.write_table(group, row_group_size=ROW_GROUP_ROWS)

    def _open(self, first: pa.Table) -> pq.ParquetWriter:
        handle, name = tempfile.mkstemp(
            prefix=f"{os.getpid()}-", suffix=_UNFINISHED, dir=self._backend.scratch_dir()
        )
        os.close(handle)
        self._path = Path(name)
        dictionaries, deltas = _encodings(first)
        return pq.ParquetWriter(
            self._path, self._schema, compression="zstd", use_dictionary=dictionaries,
            column_encoding=dict.fromkeys(deltas, "DELTA_BINARY_PACKED"), store_decimal_as_integer=True,
            write_page_checksum=True,
            # To find the least and greatest text takes a fifth of the time of writing, and nothing looks for those.
            write_statistics=[field.name for field in self._schema if not _is_text(field.type)],
        )


def _encodings(group: pa.Table) -> tuple[list[str], list[str]]:
    """Columns to write as dictionaries, because values repeat, and as differences, because they are whole numbers."""
    dictionaries, deltas = [], []
    for field, column in zip(group.schema, group.columns, strict=True):
        type_ = field.type
        if pa.types.is_boolean(type_):
            continue
        if pc.count_distinct(column, mode="all").as_py() * _ROWS_PER_DICTIONARY_VALUE <= group.num_rows:
            dictionaries.append(field.name)
        elif pa.types.is_integer(type_) or pa.types.is_temporal(type_) or _is_stored_as_integer(type_):
            deltas.append(field.name)
    return dictionaries, deltas


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_binary(type_)


def _is_stored_as_integer(type_: pa.DataType) -> bool:
    return pa.types.is_decimal(type_) and type_.precision <= _LONGEST_INTEGER_DECIMAL


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._cleaned = False

    def scratch_dir(self) -> Path:
        scratch = self._root / ".writing"
        scratch.mkdir(parents=True, exist_ok=True)
        if not self._cleaned:
            self._cleaned = True
            for left in scratch.glob(f"*{_UNFINISHED}"):
                if not _is_running(int(left.name.partition("-")[0])):
                    left.unlink(missing_ok=True)
        return scratch

    def put(self, local: Path, key: str, sha256: str, raw_class: RawClass) -> None:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(local, target)  # unlike rename, refuses an existing name
        except FileExistsError:
            with target.open("rb") as existing:
                found = hashlib.file_digest(existing, "sha256").hexdigest()
            if found != sha256:
                raise _refused(key, found) from None
        local.unlink()
        target.chmod(0o444)

    def open(self, key: str) -> pa.NativeFile:
        return pa.OSFile(str(self._root / key), "rb")

    def reclassify(self, key: str, raw_class: RawClass, *, dry_run: bool) -> bool:
        return False

    def local_file(self, key: str, folder: Path) -> Path:
        return self._root / key

    def delete(self, key: str) -> None:
        path = self._root / key
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self._root or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


class _S3:
    """Objects in S3: conditional puts (`If-None-Match: *`) make writing once a promise of the store."""

    def __init__(self, location: str) -> None:
        parts = urlsplit(location)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._client_instance = None

    def scratch_dir(self) -> Path:
        return Path(tempfile.gettempdir())

    def put(self, local: Path, key: str, sha256: str, raw_class: RawClass) -> None:
        from botocore.exceptions import ClientError

        try:
            with local.open("rb") as body:
                self._client().put_object(
                    Bucket=self._bucket, Key=self._key(key), Body=body, IfNoneMatch="*", Metadata={"sha256": sha256},
                    StorageClass=S3_CLASSES[raw_class],
                )
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 412:
                raise self._unavailable(error) from error
            with self.open(key) as existing:
                found = hashlib.sha256(existing.read()).hexdigest()
            if found != sha256:
                raise _refused(key, found) from None
        local.unlink()

    def open(self, key: str) -> pa.NativeFile:
        from botocore.exceptions import ClientError

        try:
            body = self._client().get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
        except ClientError as error:
            if error.response["Error"]["Code"] in {"NoSuchKey", "404"}:
                raise FileNotFoundError(f"s3://{self._bucket}/{self._key(key)}") from None
            raise self._unavailable(error) from error
        # Parquet needs to seek; a spooled local copy keeps memory bounded.
        spool = tempfile.TemporaryFile()  # noqa: SIM115  closed with the Arrow file that wraps it
        for chunk in body.iter_chunks(_CHUNK):
            spool.write(chunk)
        spool.seek(0)
        return pa.PythonFile(spool, "r")

    def reclassify(self, key: str, raw_class: RawClass, *, dry_run: bool) -> bool:
        from botocore.exceptions import ClientError

        place = {"Bucket": self._bucket, "Key": self._key(key)}
        try:
            found = self._client().head_object(**place).get("StorageClass", "STANDARD")  # which S3 leaves out
            if found == S3_CLASSES[raw_class]:
                return False
            if not dry_run:  # `copy` takes the metadata along, and copies large objects in parts
                self._client().copy(place, **place, ExtraArgs={"StorageClass": S3_CLASSES[raw_class]})
        except ClientError as error:
            if error.response["Error"]["Code"] in {"NoSuchKey", "404"}:
                return False
            raise self._unavailable(error) from error
        return True

    def local_file(self, key: str, folder: Path) -> Path:
        copy = folder / key.rpartition("/")[2]
        with self.open(key) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        return copy

    def delete(self, key: str) -> None:
        from botocore.exceptions import ClientError

        try:
            self._client().delete_object(Bucket=self._bucket, Key=self._key(key))
        except ClientError as error:
            raise self._unavailable(error) from error

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _client(self):
        if self._client_instance is None:
            import boto3

            self._client_instance = boto3.client("s3")
        return self._client_instance

    def _unavailable(self, error: Exception) -> BareCountError:
        return BareCountError(
            ErrorCode.STORE_UNAVAILABLE, f"the raw store s3://{self._bucket} answered: {error}",
            hint="check the bucket's name and the credentials, then run again", retryable=True,
        )


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _refused(key: str, found: str) -> BareCountError:
    return BareCountError(
        ErrorCode.STORE_CONFLICT,
        f"raw object {key} exists with other content (SHA-256 {found}): a second write of a name is refused",
        hint="the stored object was changed from outside; restore it before running again",
    )


class _store_errors:  # noqa: N801  used as a statement
    """Operating-system errors of the store as envelopes."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in _FULL or "No space left" in str(error):
            raise BareCountError(
                ErrorCode.STORE_FULL, "the raw store has no space left: nothing of the current unit landed",
                hint="free space and run the same command again", retryable=True,
            ) from error
        raise BareCountError(
            ErrorCode.STORE_UNAVAILABLE, f"the raw store cannot be written: {error.strerror or error}",
            hint="check the folder's permissions or set BARECOUNT_RAW_STORE", retryable=True,
        ) from error
