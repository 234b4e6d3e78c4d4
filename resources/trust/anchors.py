"""Checkpoints outside the database: one file per checkpoint, written once, in a folder or in S3.

A file is named `<tenant>/<size>-<key id>.checkpoint`, the size with twelve digits, and holds the signed note. The same
key signs the same tree with the same bytes, so a file that exists with other bytes is a fork. In S3 a put is
conditional (`If-None-Match: *`); where the bucket has object lock, the file is locked as the bucket's own rule says,
or else in compliance mode for `retain_days`, when not even the account's owner can remove it.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust.checkpoints import Witness
from resources.trust.verify import Checkpoint

RETAIN_DAYS = 2_555  # seven years


@dataclass(frozen=True)
class Placed:
    """A checkpoint that lies at the anchor now; `locked_until` where the store promises to keep it."""

    name: str
    size: int
    created: bool
    locked_until: dt.datetime | None


class Anchor(Protocol):
    """A place that only ever gains files."""

    location: str

    def put(self, name: str, data: bytes) -> tuple[bool, dt.datetime | None]:
        """Write once: whether the file is new, and until when it is locked. Other bytes at the name are refused."""

    def read(self, tenant_id: str | None = None) -> Iterator[Witness]:
        """Every checkpoint file, of one tenant or of all, in order of name."""


def open_anchor(location: str, retain_days: int = RETAIN_DAYS) -> Anchor:
    """The anchor at a folder or an `s3://bucket/prefix`."""
    return _S3(location, retain_days) if location.startswith("s3://") else _Folder(Path(location).expanduser())


def anchor(database: Database, tenant_id: str, place: Anchor) -> list[Placed]:
    """Put every checkpoint that is not recorded as lying there, oldest first. A second call has nothing to do.

    Raises:
        BareCountError: evidence.broken when another checkpoint lies under a name; store.unavailable.
    """
    placed = []
    with database.connect(autocommit=True) as connection:
        rows = fetch(connection, _WAITING, (tenant_id, place.location))
        for size, key_id, note in rows:
            name = f"{tenant_id}/{size:012d}-{key_id}.checkpoint"
            created, locked_until = place.put(name, note.encode())
            fetch(connection, "insert into platform.checkpoint_anchor values ($1, $2, $3, $4, $5) "
                              "on conflict do nothing", (tenant_id, size, key_id, place.location, locked_until))
            placed.append(Placed(name, size, created, locked_until))
    return placed


_WAITING = """
select c.size, c.key_id, c.note
from platform.checkpoint c
left join platform.checkpoint_anchor a
    on (a.tenant_id, a.size, a.key_id) = (c.tenant_id, c.size, c.key_id) and a.location = $2
where c.tenant_id = $1 and a.tenant_id is null
order by c.size, c.created_at
"""


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self.location = str(self._root)

    def put(self, name: str, data: bytes) -> tuple[bool, dt.datetime | None]:
        target = self._root / name
        fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.chmod(0o444)
            try:
                os.link(fresh, target)  # unlike rename, refuses an existing name
            except FileExistsError:
                if target.read_bytes() != data:
                    raise _other(f"{self.location}/{name}") from None
                return False, None
            finally:
                fresh.unlink()
        except OSError as error:
            raise _unavailable(self.location, error.strerror or str(error)) from error
        return True, None

    def read(self, tenant_id: str | None = None) -> Iterator[Witness]:
        if not self._root.is_dir():
            raise _unavailable(self.location, "there is no such folder")
        for path in sorted(self._root.glob(f"{tenant_id or '*'}/*.checkpoint")):
            yield Witness(str(path), path.read_bytes())


class _S3:
    def __init__(self, location: str, retain_days: int) -> None:
        import boto3

        parts = urlsplit(location)
        self.location = location.rstrip("/")
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._retain_days = retain_days
        self._client = boto3.client("s3")
        self._lock: dict[str, str] | None = None

    def put(self, name: str, data: bytes) -> tuple[bool, dt.datetime | None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._lock is None:
                self._lock = self._lock_mode()
            arguments = {}
            if self._lock.get("mode"):
                until = dt.datetime.now(dt.UTC) + dt.timedelta(days=self._retain_days)
                arguments = {"ObjectLockMode": self._lock["mode"], "ObjectLockRetainUntilDate": until}
            created = self._put(self._key(name), data, arguments)
            return created, self._locked_until(self._key(name))
        except (ClientError, BotoCoreError) as error:
            raise _unavailable(self.location, str(error)) from error

    def read(self, tenant_id: str | None = None) -> Iterator[Witness]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(f"{tenant_id}/" if tenant_id else ""))
            for page in pages:
                for item in page.get("Contents", ()):
                    if item["Key"].endswith(".checkpoint"):
                        body = self._client.get_object(Bucket=self._bucket, Key=item["Key"])["Body"].read()
                        yield Witness(f"s3://{self._bucket}/{item['Key']}", body)
        except (ClientError, BotoCoreError) as error:
            raise _unavailable(self.location, str(error)) from error

    def _put(self, key: str, data: bytes, arguments: dict[str, object]) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType="text/plain; charset=utf-8",
                                    IfNoneMatch="*", **arguments)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 412:
                raise
            if self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read() != data:
                raise _other(f"s3://{self._bucket}/{key}") from None
            return False
        return True

    def _lock_mode(self) -> dict[str, str]:
        """How to lock: `{}` where the bucket cannot or does it by a rule of its own."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_object_lock_configuration(Bucket=self._bucket)["ObjectLockConfiguration"]
        except ClientError as error:
            if error.response["Error"]["Code"] == "ObjectLockConfigurationNotFoundError":
                return {}
            raise
        if found.get("ObjectLockEnabled") != "Enabled" or "DefaultRetention" in found.get("Rule", {}):
            return {}
        return {"mode": "COMPLIANCE"}

    def _locked_until(self, key: str) -> dt.datetime | None:
        return self._client.head_object(Bucket=self._bucket, Key=key).get("ObjectLockRetainUntilDate")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


def read_file(path: Path) -> Witness:
    """A checkpoint in a file, readable as one.

    Raises:
        BareCountError: usage, when there is no checkpoint in it.
    """
    try:
        witness = Witness(str(path), path.read_bytes())
        Checkpoint.parse(witness.raw)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BareCountError(ErrorCode.USAGE, f"{path} is not a checkpoint: {reason}",
                             hint="give a file as `barecount evidence checkpoint --out` writes it") from error
    return witness


def _other(place: str) -> BareCountError:
    return BareCountError(
        ErrorCode.EVIDENCE_BROKEN,
        f"{place} holds another checkpoint of this size and key: two histories were signed, or the file was changed",
        hint="run `barecount evidence verify` with --anchor to see which of the two the ledger follows",
    )


def _unavailable(location: str, reason: str) -> BareCountError:
    return BareCountError(
        ErrorCode.STORE_UNAVAILABLE, f"the anchor {location} cannot be used: {reason}",
        hint="check the place's name and permissions, then run the same command again: nothing is written twice",
        retryable=True,
    )
