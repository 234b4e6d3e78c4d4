"""Secrets by reference: declarations name them, values exist only while they are used.

A reference is `secret://name#field`; without a field it means `value`. Names belong to a tenant: the same reference of
two tenants is two secrets, and no call takes a name without the tenant. A secret has versions; the one before the
current stays readable, so that what is signed or sent during a rotation can still be.

Two providers keep values. `LocalSecrets`: AES-256-GCM files in `<data_dir>/secrets`, key in `<data_dir>/keys`, both for
the owner alone; tenant, name and version are authenticated with the value, so that files cannot be swapped.
`AwsSecrets`: AWS Secrets Manager, secrets named `<prefix><tenant>/<name>`, a JSON object of fields.

`Secrets.read` is the one way to a value: it leaves evidence (`secret.read`, never the value) and makes logs, errors and
receipts of this process blank the value out.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets as random_source
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from resources.runtime.database import Database
from resources.runtime.declared import SECRET_REFERENCE
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.redaction import protect
from resources.trust import ledger

DEFAULT_FIELD = "value"
_KEPT_VERSIONS = 2


@dataclass(frozen=True)
class Reference:
    """Names a field of a secret, and holds no value."""

    name: str
    field: str = DEFAULT_FIELD

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises BareCountError declaration.invalid for what is no reference."""
        if re.fullmatch(SECRET_REFERENCE, text) is None:
            raise BareCountError(  # what was found is not shown: it may be the value itself
                ErrorCode.DECLARATION_INVALID, "not a reference to a secret, allowed: secret://name#field",
                hint="keep the value with `barecount secrets set NAME`, and refer to it",
            )
        name, _, field_name = text.removeprefix("secret://").partition("#")
        return cls(name, field_name or DEFAULT_FIELD)

    def __str__(self) -> str:
        return f"secret://{self.name}#{self.field}"


@dataclass(frozen=True)
class SecretVersion:
    """One version of a secret: its fields' values, which no representation shows."""

    version: str
    fields: Mapping[str, str] = field(repr=False)


class SecretProvider(Protocol):
    """Keeps secrets. Raises BareCountError secret.unknown and secret.unavailable (retryable)."""

    def get(self, tenant_id: str, name: str, version: str | None = None) -> SecretVersion:
        """A version of a secret, the current one unless named."""
        ...

    def current_version(self, tenant_id: str, name: str) -> str:
        """Name of the current version, without its value."""
        ...

    def put(self, tenant_id: str, name: str, fields: Mapping[str, str]) -> str:
        """Keep a new version and make it the current one; returns its name."""
        ...

    def names(self, tenant_id: str) -> list[str]:
        """Names of the tenant's secrets."""
        ...


@dataclass(frozen=True)
class LocalSecrets:
    """Encrypted files: `<folder>/<tenant>/<name>.json` holds the newest versions, oldest first."""

    folder: Path
    key_file: Path

    @classmethod
    def of(cls, data_dir: Path) -> LocalSecrets:
        return cls(data_dir / "secrets", data_dir / "keys" / "secrets.key")

    def get(self, tenant_id: str, name: str, version: str | None = None) -> SecretVersion:
        versions = self._versions(tenant_id, name)
        for stored in reversed(versions):
            if version is None or stored["version"] == version:
                return SecretVersion(stored["version"], self._open(tenant_id, name, stored))
        raise _not_kept(tenant_id, name, version if versions else None)

    def current_version(self, tenant_id: str, name: str) -> str:
        versions = self._versions(tenant_id, name)
        if not versions:
            raise _not_kept(tenant_id, name)
        return versions[-1]["version"]

    def put(self, tenant_id: str, name: str, fields: Mapping[str, str]) -> str:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        versions = self._versions(tenant_id, name)
        version = str(int(versions[-1]["version"]) + 1 if versions else 1)
        nonce = os.urandom(12)
        sealed = AESGCM(self._key(create=True)).encrypt(
            nonce, json.dumps(dict(fields)).encode(), _context(tenant_id, name, version))
        versions.append({"version": version, "nonce": _encode(nonce), "sealed": _encode(sealed)})
        _write_private(self._path(tenant_id, name), json.dumps(versions[-_KEPT_VERSIONS:]).encode())
        return version

    def names(self, tenant_id: str) -> list[str]:
        return sorted(path.stem for path in (self.folder / tenant_id).glob("*.json"))

    def _path(self, tenant_id: str, name: str) -> Path:
        if not re.fullmatch(r"[a-z][a-z0-9_]{1,39}", tenant_id):
            raise BareCountError(ErrorCode.SECRET_UNKNOWN, f"{tenant_id!r} is not the id of a tenant")
        return self.folder / tenant_id / f"{Reference.parse(f'secret://{name}').name}.json"

    def _versions(self, tenant_id: str, name: str) -> list[dict[str, str]]:
        try:
            return json.loads(self._path(tenant_id, name).read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise _unavailable(f"secret {name!r} of tenant {tenant_id} cannot be read: {type(error).__name__}",
                               "put the file back from its backup") from error

    def _open(self, tenant_id: str, name: str, stored: Mapping[str, str]) -> dict[str, str]:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            opened = AESGCM(self._key(create=False)).decrypt(
                base64.b64decode(stored["nonce"]), base64.b64decode(stored["sealed"]),
                _context(tenant_id, name, stored["version"]))
        except InvalidTag as error:
            raise _unavailable(
                f"secret {name!r} of tenant {tenant_id} does not open: its file was changed, or {self.key_file} is not "
                "the key it was kept with", "put both back from one backup, or set the secret again") from error
        return json.loads(opened)

    def _key(self, *, create: bool) -> bytes:
        try:
            mode, key = self.key_file.stat().st_mode, self.key_file.read_bytes()
        except FileNotFoundError:
            if not create or any(self.folder.glob("*/*.json")):
                raise _unavailable(f"the key of the secrets is not at {self.key_file}",
                                   "put it back from its backup; without it no secret opens") from None
            key, mode = random_source.token_bytes(32), 0o600
            _write_private(self.key_file, key)
        if mode & 0o077:
            raise BareCountError(
                ErrorCode.ACCESS_DENIED, f"{self.key_file} can be read by others (mode {mode & 0o777:o})",
                hint="chmod 600 it, and set every secret anew when others may have read it")
        return key


@dataclass(frozen=True)
class AwsSecrets:
    """AWS Secrets Manager, with the credentials and region of the environment."""

    prefix: str = "barecount/"

    def get(self, tenant_id: str, name: str, version: str | None = None) -> SecretVersion:
        wanted = {"VersionId": version} if version else {}
        found = self._call("get_secret_value", f"secret {name!r} of tenant {tenant_id}",
                           SecretId=self._id(tenant_id, name), **wanted)
        try:
            fields = json.loads(found["SecretString"])
        except (KeyError, ValueError):
            fields = None
        if not isinstance(fields, dict):
            fields = {DEFAULT_FIELD: found.get("SecretString", "")}
        return SecretVersion(found["VersionId"], {str(key): str(value) for key, value in fields.items()})

    def current_version(self, tenant_id: str, name: str) -> str:
        found = self._call("describe_secret", f"secret {name!r} of tenant {tenant_id}",
                           SecretId=self._id(tenant_id, name))
        return next(version for version, stages in found["VersionIdsToStages"].items() if "AWSCURRENT" in stages)

    def put(self, tenant_id: str, name: str, fields: Mapping[str, str]) -> str:
        secret_id, text = self._id(tenant_id, name), json.dumps(dict(fields))
        what = f"secret {name!r} of tenant {tenant_id}"
        if name in self.names(tenant_id):
            return self._call("put_secret_value", what, SecretId=secret_id, SecretString=text)["VersionId"]
        return self._call("create_secret", what, Name=secret_id, SecretString=text)["VersionId"]

    def names(self, tenant_id: str) -> list[str]:
        start, found, page = self._id(tenant_id, ""), [], {}
        while True:
            answer = self._call("list_secrets", "the list of secrets",
                                Filters=[{"Key": "name", "Values": [start]}], **page)
            found += [one["Name"].removeprefix(start) for one in answer["SecretList"] if one["Name"].startswith(start)]
            if not answer.get("NextToken"):
                return sorted(found)
            page = {"NextToken": answer["NextToken"]}

    def _id(self, tenant_id: str, name: str) -> str:
        return f"{self.prefix}{tenant_id}/{name}"

    @cached_property
    def _client(self) -> Any:
        import boto3

        return boto3.client("secretsmanager")

    def _call(self, operation: str, what: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(**arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "ResourceNotFoundException":
                raise BareCountError(ErrorCode.SECRET_UNKNOWN, f"{what} is not in AWS Secrets Manager",
                                     hint="create it there, or with `barecount secrets set`") from error
            raise _unavailable(f"{what}: AWS Secrets Manager answers {code}",
                               "see the permissions of the account") from error
        except BotoCoreError as error:
            raise _unavailable(f"{what}: AWS Secrets Manager cannot be reached ({type(error).__name__})",
                               "see network, region and credentials") from error


@dataclass(frozen=True)
class Secrets:
    """Reads secrets for the platform, on record."""

    provider: SecretProvider
    database: Database

    @classmethod
    def of(cls, data_dir: Path, database: Database) -> Secrets:
        """The provider that `BARECOUNT_SECRETS` names: `local` (default), or `aws` (or `aws:PREFIX`).

        Raises:
            BareCountError: declaration.unknown for another name.
        """
        chosen, _, prefix = (os.environ.get("BARECOUNT_SECRETS") or "local").partition(":")
        if chosen == "local":
            return cls(LocalSecrets.of(data_dir), database)
        if chosen == "aws":
            return cls(AwsSecrets(prefix or "barecount/"), database)
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"BARECOUNT_SECRETS is {chosen!r}, allowed: local, "
                             "aws, aws:PREFIX", hint="unset it for the local store")

    def read(self, tenant_id: str, reference: str, *, purpose: str, version: str | None = None) -> SecretValue:
        """The value a reference stands for. The evidence is committed before the value is handed out.

        Args:
            purpose: what it is read for, for the record.

        Raises:
            BareCountError: declaration.invalid, secret.unknown, secret.unavailable (retryable), access.denied.
        """
        wanted = Reference.parse(reference)
        found = self.provider.get(tenant_id, wanted.name, version)
        value = found.fields.get(wanted.field)
        if value is None:
            raise BareCountError(
                ErrorCode.SECRET_UNKNOWN,
                f"secret {wanted.name!r} of tenant {tenant_id} has no field {wanted.field!r}; "
                f"its fields are {', '.join(sorted(found.fields)) or 'none'}",
                hint=f"`barecount secrets set {wanted.name} --field {wanted.field}` keeps it")
        protect(value)
        with self.database.transaction() as connection:
            ledger.append(connection, ledger.Entry(
                tenant_id, "secret.read", str(wanted), random_source.token_hex(8),
                {"purpose": purpose, "version": found.version}))
        return SecretValue(value, found.version)

    def keep(self, tenant_id: str, name: str, fields: Mapping[str, str]) -> str:
        """Keep a new version of a secret: its current fields with these over them; returns the version.

        The evidence (`secret.kept`) is committed after the value is kept.
        """
        for value in fields.values():
            protect(value)
        try:
            before: Mapping[str, str] = self.provider.get(tenant_id, name).fields
        except BareCountError as error:
            if error.code is not ErrorCode.SECRET_UNKNOWN:
                raise
            before = {}
        version = self.provider.put(tenant_id, name, {**before, **fields})
        with self.database.transaction() as connection:
            ledger.append(connection, ledger.Entry(
                tenant_id, "secret.kept", f"secret://{name}", random_source.token_hex(8),
                {"version": version, "fields": sorted(fields)}))
        return version


@dataclass(frozen=True)
class SecretValue:
    """A value in use; no representation shows it."""

    value: str = field(repr=False)
    version: str


def _not_kept(tenant_id: str, name: str, version: str | None = None) -> BareCountError:
    what = f"secret {name!r} of tenant {tenant_id}" + (f" has no version {version}" if version else " is not kept")
    return BareCountError(ErrorCode.SECRET_UNKNOWN, what, hint=f"`barecount secrets set {name} --tenant {tenant_id}` "
                          f"keeps it; `barecount secrets list --tenant {tenant_id}` shows what there is")


def _context(tenant_id: str, name: str, version: str) -> bytes:
    return json.dumps(["barecount-secret-1", tenant_id, name, version]).encode()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unavailable(message: str, hint: str) -> BareCountError:
    return BareCountError(ErrorCode.SECRET_UNAVAILABLE, message, hint=hint, retryable=True)


def _write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, for the owner alone."""
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise BareCountError(
            ErrorCode.STORE_UNAVAILABLE, f"a secret cannot be kept at {path}: {error.strerror}",
            hint="make the folder writable for the platform's user alone") from error
