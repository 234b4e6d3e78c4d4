"""Ed25519 keys that sign checkpoints, and signed notes in C2SP format.

Private keys lie in `<data_dir>/keys`, one PEM file (PKCS #8) per key, readable by their owner alone. Below it, for each
database, lies the newest checkpoint that each key has signed: the signer's own memory, so that a history rewritten in
the database is neither signed again nor passed over by verification.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from resources.runtime.database import Database
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust.verify import Key

_EM_DASH = "\u2014"


@dataclass(frozen=True)
class KeyStore:
    """Private keys in a folder, and what they have signed for one database."""

    folder: Path
    memory: Path

    @classmethod
    def of(cls, data_dir: Path, database: Database) -> KeyStore:
        """The key store of a data folder, for a database."""
        place = "embedded"
        if not database.is_embedded:
            parts = conninfo_to_dict(database.admin_url)
            place = re.sub(r"[^\w.]+", "-", "-".join(str(parts.get(name, "")) for name in ("host", "port", "dbname")))
        return cls(data_dir / "keys", data_dir / "keys" / "signed" / place)

    def generate(self, name: str) -> Key:
        """Make a key pair, keep the private key, return the public one."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.generate()
        key = Key(name, private.public_key().public_bytes_raw())
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path(key), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BareCountError(
                ErrorCode.STORE_UNAVAILABLE, f"a signing key cannot be kept in {self.folder}: {error.strerror}",
                hint="make the folder writable for the platform's user alone",
            ) from error
        return key

    def holds(self, key: Key) -> bool:
        """Whether the private key is here."""
        return self._path(key).exists()

    def sign(self, key: Key, text: str) -> bytes:
        """The text (ends with a newline) as a signed note.

        Raises:
            BareCountError: access.denied when the private key is not here, or others can read it.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        path = self._path(key)
        try:
            mode, pem = path.stat().st_mode, path.read_bytes()
        except OSError as error:
            raise BareCountError(
                ErrorCode.ACCESS_DENIED, f"the private key {key.id} of {key.name} cannot be read at {path}: "
                f"{error.strerror}",
                hint="put it back from its backup; if it is lost, `barecount evidence rotate --lost` starts a new one",
            ) from error
        if mode & 0o077:
            raise BareCountError(
                ErrorCode.ACCESS_DENIED, f"the private key {path} can be read by others (mode {mode & 0o777:o})",
                hint="chmod 600 it, and rotate it when others may have read it",
            )
        private = serialization.load_pem_private_key(pem, None)
        if not isinstance(private, Ed25519PrivateKey) or private.public_key().public_bytes_raw() != key.public:
            raise BareCountError(ErrorCode.ACCESS_DENIED, f"the private key {path} is not that of {key.text}",
                                 hint="put the right file back from its backup")
        signature = base64.b64encode(bytes.fromhex(key.id) + private.sign(text.encode())).decode()
        return f"{text}\n{_EM_DASH} {key.name} {signature}\n".encode()

    def remember(self, key: Key, checkpoint: bytes) -> None:
        """Keep the newest checkpoint this key has signed; call it once the checkpoint is committed."""
        path = self.memory / f"{self._path(key).stem}.checkpoint"
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.memory.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(checkpoint)
            fresh.replace(path)
        except OSError as error:
            raise BareCountError(
                ErrorCode.STORE_UNAVAILABLE, f"the checkpoint cannot be kept at {path}: {error.strerror}",
                hint="free space or repair the folder's permissions; the checkpoint itself is recorded",
            ) from error

    def memories(self, name: str) -> list[Path]:
        """Files with the newest checkpoint of every key of this name, also keys that the database no longer knows."""
        return sorted(self.memory.glob(f"{_file_name(name)}-????????.checkpoint"))

    def _path(self, key: Key) -> Path:
        return self.folder / f"{_file_name(key.name)}-{key.id}.pem"


def _file_name(name: str) -> str:
    return name.replace("/", "-")
