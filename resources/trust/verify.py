#!/usr/bin/env python3
"""Verify evidence that left BareCount, with Python 3.9 or later and the package `cryptography` alone.

    python verify.py                             the unpacked bundle that this file lies in
    python verify.py BUNDLE                      a bundle, as .zip or unpacked
    python verify.py ENTRY.tlog-proof            the proof of one entry
      --key KEY                                  a public key you trust: its text (name+id+base64) or a file of it
      --checkpoint FILE                          a checkpoint you kept from earlier: history must not have changed since
      --json                                     the result as JSON

Exit codes: 0 everything holds, 1 something does not (and what), 2 wrong usage.

A bundle is only as trustworthy as the key that signed it. Without --key or --checkpoint the bundle is checked against
itself: it is whole and consistent, and the key it was signed with is printed for you to compare. And whoever can change
a bundle can change the copy of this file inside it: run a copy that you have from elsewhere.

Formats: Merkle tree of RFC 6962 (leaf SHA-256(0x00 || entry), node SHA-256(0x01 || left || right)), proofs verified as
in RFC 9162 2.1.3.2 and 2.1.4.2, C2SP signed notes and checkpoints (c2sp.org/signed-note, c2sp.org/tlog-checkpoint),
tiles of 256 hashes (c2sp.org/tlog-tiles), single proofs (c2sp.org/tlog-proof). Entry number N is leaf N-1.

The platform imports the functions below for its own verification: there is one implementation.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BUNDLE_FORMAT = "barecount-evidence-bundle/1"
KEY_ANNOUNCED = "signing_key.announced"
TILE = 256  # hashes in a complete tile
TILE_HEIGHT = 8
HASH = 32  # bytes
EMPTY_ROOT = hashlib.sha256(b"").digest()

_PROOF_HEADER = "c2sp.org/tlog-proof@v1"
_ED25519 = b"\x01"  # signature type of C2SP signed-note
_MAX_NOTE = 100_000  # bytes; a note with one signature has some 200
_MAX_DOCUMENT = 64 << 20  # bytes of a JSON document or of one line
_CHUNK = 1 << 20


class Malformed(ValueError):
    """Something is not in the format it should be in; the message says what."""


# --- Merkle tree ---------------------------------------------------------------------------------------------------


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962 leaf hash."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """Root of the tree whose leaf hashes these are (or whose complete subtrees of one height these are)."""
    if not hashes:
        return EMPTY_ROOT
    sha256, row = hashlib.sha256, list(hashes)
    while len(row) > 1:
        # An odd one out moves up unchanged, which is the tree of RFC 6962: left subtrees are complete.
        above = [sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row) - 1, 2)]
        if len(row) % 2:
            above.append(row[-1])
        row = above
    return row[0]


def inclusion_root(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Root that an inclusion proof leads to (RFC 9162 2.1.3.2); Malformed when its length is wrong."""
    if not 0 <= index < size:
        raise Malformed(f"leaf {index} is outside a tree of {size}")
    node, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise Malformed("the proof is too long")
        if node % 2 or node == last:
            root = node_hash(sibling, root)
            while node and not node % 2:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise Malformed("the proof is too short")
    return root


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the leaf is at `index` (from 0) in the tree of `size` leaves with this root."""
    try:
        return inclusion_root(index, size, leaf, proof) == root
    except Malformed:
        return False


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of `second` leaves begins with the tree of `first` leaves (RFC 9162 2.1.4.2)."""
    if first > second or first < 0:
        return False
    if first == second:
        return not proof and first_root == second_root
    if first == 0:
        return not proof and first_root == EMPTY_ROOT
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, first_root)
    if not path:
        return False
    node, last = first - 1, second - 1
    while node % 2:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node % 2 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while node and not node % 2:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root


def tile_path(number: int, width: int) -> str:
    """Name of a tile of leaf hashes in a bundle, as in C2SP tlog-tiles: `tile/0/x001/234.p/17`."""
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.insert(0, f"x{number % 1000:03d}")
    return "tile/0/" + "/".join(groups) + ("" if width == TILE else f".p/{width}")


# --- Notes, keys, checkpoints --------------------------------------------------------------------------------------


def decode(text: str, length: int | None = None) -> bytes:
    """Standard base64, in its one canonical spelling; Malformed otherwise."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"not base64: {text[:60]!r}") from error
    if base64.b64encode(data).decode() != text or (length is not None and len(data) != length):
        raise Malformed(f"not {length or 'some'} bytes in base64: {text[:60]!r}")
    return data


class Signature(NamedTuple):
    """A signature line: who says to have signed, the key's id (8 hex digits), 64 bytes."""

    name: str
    key_id: str
    value: bytes


class Note(NamedTuple):
    """A C2SP signed note: the signed text (ends with a newline) and its signatures."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, raw: bytes) -> Note:
        """Read a note; says nothing about whether its signatures hold."""
        if len(raw) > _MAX_NOTE:
            raise Malformed(f"a note of {len(raw)} bytes")
        try:
            whole = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed("not UTF-8") from error
        if any(character < " " and character != "\n" for character in whole):
            raise Malformed("control characters in a note")
        text, separator, tail = whole.rpartition("\n\n")
        if not separator or not text or not tail.endswith("\n"):
            raise Malformed("not a signed note: no blank line before the signatures")
        signatures = []
        for line in tail[:-1].split("\n"):
            dash, _, rest = line.partition(" ")
            name, _, value = rest.partition(" ")
            data = decode(value)
            if dash != "\u2014" or not name or "+" in name or len(data) < 5:
                raise Malformed(f"not a signature line: {line[:60]!r}")
            signatures.append(Signature(name, data[:4].hex(), data[4:]))
        return cls(text + "\n", tuple(signatures))


class Key(NamedTuple):
    """An Ed25519 public key with its name."""

    name: str
    public: bytes

    @property
    def id(self) -> str:
        """First four bytes, in hex, of SHA-256(name || newline || 0x01 || key)."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).hexdigest()[:8]

    @property
    def text(self) -> str:
        """`name+id+base64(0x01 || key)`: the verifier key encoding that Go's note tools read."""
        return f"{self.name}+{self.id}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> Key:
        name, _, rest = text.strip().partition("+")
        key_id, _, value = rest.partition("+")
        if not name or not value or " " in name:
            raise Malformed(f"not a public key (name+id+base64): {text[:60]!r}")
        data = decode(value, 1 + HASH)
        if data[:1] != _ED25519:
            raise Malformed(f"not an Ed25519 key: {text[:60]!r}")
        key = cls(name, data[1:])
        if key.id != key_id:
            raise Malformed(f"the key's id is {key.id}, not {key_id[:60]!r}")
        return key

    def signed(self, note: Note) -> bool:
        """Whether this key has signed the note, and rightly."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        values = [s.value for s in note.signatures if (s.name, s.key_id) == (self.name, self.id)]
        try:
            for value in values:
                Ed25519PublicKey.from_public_bytes(self.public).verify(value, note.text.encode())
        except (InvalidSignature, ValueError):
            return False
        return bool(values)


class Checkpoint(NamedTuple):
    """A signed tree head in C2SP tlog-checkpoint format. `raw` is the whole note."""

    origin: str
    size: int
    root: bytes
    note: Note
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Checkpoint:
        note = Note.parse(raw)
        lines = note.text.split("\n")
        if len(lines) < 4 or not all(lines[:-1]):
            raise Malformed("not a checkpoint: origin, size and root hash are three lines")
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
            raise Malformed(f"not a tree size: {lines[1][:60]!r}")
        return cls(lines[0], int(lines[1]), decode(lines[2], HASH), note, raw)

    @property
    def signer(self) -> str | None:
        """Id of the key that the log's own signature names."""
        return next((s.key_id for s in self.note.signatures if s.name == self.origin), None)


class Announcement(NamedTuple):
    """Entry `seq` of the log, which makes a key known. `replaces` is the id of the key before it."""

    seq: int
    key: Key
    replaces: str | None


def announcement(seq: int, entry: Any) -> Announcement | None:
    """The key that a ledger entry announces; None for entries of other kinds."""
    if not isinstance(entry, dict) or entry.get("kind") != KEY_ANNOUNCED:
        return None
    try:
        return Announcement(seq, Key.parse(entry["payload"]["key"]), entry["payload"]["replaces"])
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"entry {seq} announces no key") from error


def may_sign(key: Key, size: int, announcements: Iterable[Announcement]) -> bool:
    """Whether a key signs trees of this size: from its announcement up to and including its successor's."""
    announced = [a for a in announcements if a.key == key]
    ends = [a.seq for a in announcements if a.replaces == key.id and a.key.name == key.name]
    return bool(announced) and announced[0].seq <= size <= min(ends, default=size)


def trusted_keys(
    pinned: Sequence[Key], announcements: Sequence[Announcement], checkpoints: Iterable[Checkpoint]
) -> list[Key]:
    """Keys that follow from the pinned ones.

    A key hands over to its successor by signing the checkpoint whose last entry announces it. `checkpoints` and
    `announcements` must be of one history, which is for the caller to verify. With nothing pinned, all announced keys.
    """
    if not pinned:
        return [a.key for a in announcements]
    trusted, known = list(pinned), list(checkpoints)
    for item in sorted(announcements):
        before = [key for key in trusted if key.id == item.replaces]
        if any(c.size == item.seq and key.signed(c.note) for c in known for key in before):
            trusted.append(item.key)
    return trusted


# --- Bundles -------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Something that does not hold: the file (or part) it is about, and what."""

    where: str
    message: str


class Result:
    """What was verified. `ok` when nothing was found wrong."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.problems: list[Problem] = []

    @property
    def ok(self) -> bool:
        return not self.problems

    def wrong(self, where: str, message: str) -> None:
        self.problems.append(Problem(where, message))

    def attempt(self, where: str, check: Callable[..., Any], *arguments: Any) -> Any:
        """Run one check; whatever a hostile or broken file makes it stumble over becomes a problem of that file."""
        try:
            return check(*arguments)
        except (Malformed, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            said = str(error) if isinstance(error, Malformed) else f"not readable ({type(error).__name__}: {error})"
            self.wrong(where, said[:300])
        except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib_error()) as error:
            self.wrong(where, f"cannot be read: {error}"[:300])
        return None


def zlib_error() -> type[Exception]:
    """The decompressor's own exception."""
    import zlib

    return zlib.error


class Source:
    """Files of a bundle, in a folder or in a zip."""

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() else None
        self._zip = None if self._folder else zipfile.ZipFile(path)

    def names(self) -> list[str]:
        if self._folder is not None:
            return [p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*") if not p.is_dir()]
        return [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def open(self, name: str) -> BinaryIO:
        if self._folder is not None:
            return (self._folder / name).open("rb")
        return self._zip.open(name)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            data = file.read(_MAX_DOCUMENT + 1)
        if len(data) > _MAX_DOCUMENT:
            raise Malformed("too large")
        return data

    def lines(self, name: str) -> Iterator[bytes]:
        """Lines without their newline; every line must have one."""
        with self.open(name) as file, io.BufferedReader(file, _CHUNK) as buffered:
            while line := buffered.readline(_MAX_DOCUMENT):
                if not line.endswith(b"\n"):
                    raise Malformed("the last line is cut off")
                yield line[:-1]


def verify_bundle(path: Path, pinned: Sequence[Key] = (), kept: Sequence[Checkpoint] = ()) -> Result:
    """Verify a bundle.

    Args:
        path: folder or zip.
        pinned: public keys the caller trusts.
        kept: checkpoints the caller has from elsewhere; the bundle's history must contain them.
    """
    result = Result()
    source = result.attempt(path.name, Source, path)
    if source is None:
        return result
    manifest = result.attempt("manifest.json", _check_files, source, result)
    if manifest is None:
        return result
    checkpoint = result.attempt("checkpoint", lambda: Checkpoint.parse(source.read("checkpoint")))
    if checkpoint is None:
        return result
    if checkpoint.origin != manifest["origin"]:
        result.wrong("checkpoint", f"it is of {checkpoint.origin}, the bundle is of {manifest['origin']}")
    if manifest["checkpoint"] != {"size": checkpoint.size, "root": base64.b64encode(checkpoint.root).decode()}:
        result.wrong("checkpoint", "it is not the one that the manifest names")
    announcements = result.attempt("entries.jsonl", _check_entries, source, manifest, checkpoint, result)
    if announcements is None:
        return result
    result.attempt("keys.json", _check_keys, source, announcements)
    older = result.attempt("proofs/consistency.jsonl", _check_older, source, checkpoint, announcements, result) or []
    _check_trust(source, manifest, checkpoint, announcements, older, pinned, kept, result)
    return result


def _check_files(source: Source, result: Result) -> dict[str, Any]:
    """Every file is the one in the manifest, and there are no others."""
    manifest = json.loads(source.read("manifest.json"))
    if manifest["format"] != BUNDLE_FORMAT:
        raise Malformed(f"format {str(manifest['format'])[:60]!r}, this program reads {BUNDLE_FORMAT!r}")
    if not isinstance(manifest["origin"], str) or not isinstance(manifest["tenant"], str):
        raise Malformed("no tenant or origin")
    listed: dict[str, Any] = manifest["files"]
    names = source.names()
    for name in sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        result.wrong(name, "is in the bundle more than once")
    for name in sorted(set(names) - set(listed) - {"manifest.json", "manifest.note"}):
        result.wrong(name, "is not in the manifest")
    for name, wanted in sorted(listed.items()):
        result.attempt(name, _check_file, source, name, wanted)
    return manifest


def _check_file(source: Source, name: str, wanted: dict[str, Any]) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        file = source.open(name)
    except (KeyError, FileNotFoundError):
        raise Malformed("is missing") from None
    with file:
        while size <= wanted["bytes"] and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            size += len(chunk)
    if size != wanted["bytes"] or digest.hexdigest() != wanted["sha256"]:
        raise Malformed("was changed: its SHA-256 is not the one in the manifest")


def _check_entries(
    source: Source, manifest: dict[str, Any], checkpoint: Checkpoint, result: Result
) -> list[Announcement]:
    """Every entry is the leaf that its tile says, and every tile is part of the checkpoint's tree."""
    lines = source.lines("entries.jsonl")
    announcements: list[Announcement] = []
    tiles = -(-checkpoint.size // TILE)  # the tree of tiles has the shape of the tree of leaves, eight levels up
    count, first, last, wrong = 0, 0, 0, 0
    for raw in source.lines("proofs/inclusion.jsonl"):
        item = json.loads(raw)
        number = item["tile"]
        if type(number) is not int or not 0 <= number < tiles:
            raise Malformed(f"proofs/inclusion.jsonl: there is no tile {number} in a tree of {checkpoint.size}")
        width = min(TILE, checkpoint.size - number * TILE)
        name = tile_path(number, width)
        if name not in manifest["files"]:
            raise Malformed(f"{name} is not in the manifest")
        data = source.read(name)
        leaves = [data[i : i + HASH] for i in range(0, len(data), HASH)]
        proof = [decode(text, HASH) for text in item["proof"]]
        if len(data) != width * HASH or not verify_inclusion(number, tiles, fold(leaves), proof, checkpoint.root):
            result.wrong(name, "it is not part of the checkpoint's tree")
        for start, end in item["entries"]:
            if not last < start <= end <= number * TILE + width or start <= number * TILE:
                raise Malformed(f"proofs/inclusion.jsonl: entries {start} to {end} are not entries of tile {number}")
            for seq in range(start, end + 1):
                body = next(lines, None)
                if body is None:
                    raise Malformed(f"entry {seq} is missing")
                if leaf_hash(body) != leaves[(seq - 1) % TILE]:
                    wrong += 1
                    if wrong <= 10:
                        result.wrong("entries.jsonl", f"line {count + 1} is not entry {seq} of the log")
                else:
                    found = announcement(seq, _entry(body, seq, manifest["tenant"]))
                    announcements.extend([found] if found else [])
                count, first, last = count + 1, first or seq, seq
    if next(lines, None) is not None:
        result.wrong("entries.jsonl", f"there are more than the {count} entries that have a proof")
    if wrong > 10:
        result.wrong("entries.jsonl", f"{wrong} entries in all are not those of the log")
    if manifest["entries"] != {"count": count, "first": first, "last": last}:
        result.wrong("manifest.json",
                     f"it says {str(manifest['entries'])[:80]}, the bundle has {count} entries, {first} to {last}")
    result.facts.update(
        tenant=manifest["tenant"], selection=manifest["selection"], entries=count, first=first, last=last,
        complete=count == last - first + 1 if count else True,
    )
    return announcements


def _entry(body: bytes, seq: int, tenant: str) -> Any:
    entry = json.loads(body)
    if not isinstance(entry, dict) or entry.get("tenant") != tenant:
        raise Malformed(f"entry {seq} is not an entry of tenant {tenant}")
    return entry


def _check_keys(source: Source, announcements: Sequence[Announcement]) -> None:
    """keys.json lists what the log announces."""
    listed = [(item["announced"], Key.parse(item["key"]), item["replaces"]) for item in
              json.loads(source.read("keys.json"))]
    if listed != [tuple(item) for item in announcements]:
        raise Malformed("it does not list the keys that the log announces")


def _check_older(
    source: Source, checkpoint: Checkpoint, announcements: Sequence[Announcement], result: Result
) -> list[Checkpoint]:
    """Older checkpoints: signed by a key that might sign then, and the tree has only grown since."""
    older = []
    for raw in source.lines("proofs/consistency.jsonl"):
        item = json.loads(raw)
        name = item["checkpoint"]
        found = result.attempt(name, lambda name=name: Checkpoint.parse(source.read(name)))
        if found is None:
            continue
        proof = [decode(text, HASH) for text in item["proof"]]
        if found.origin != checkpoint.origin:
            result.wrong(name, f"it is of {found.origin}, not of {checkpoint.origin}")
        elif not verify_consistency(found.size, checkpoint.size, found.root, checkpoint.root, proof):
            result.wrong(name, f"fork: the tree of {checkpoint.size} entries did not grow from that of {found.size}")
        elif not any(a.key.signed(found.note) and may_sign(a.key, found.size, announcements) for a in announcements):
            result.wrong(name, "it is not signed by a key that might sign it")
        else:
            older.append(found)
    return older


def _check_trust(
    source: Source, manifest: dict[str, Any], checkpoint: Checkpoint, announcements: Sequence[Announcement],
    older: Sequence[Checkpoint], pinned: Sequence[Key], kept: Sequence[Checkpoint], result: Result,
) -> None:
    trusted = [key for key in trusted_keys(pinned, announcements, [*older, checkpoint])
               if key.name == checkpoint.origin]
    unsigned = "it is not signed by a key you trust" if pinned else "it is not rightly signed"
    signer = next((key for key in trusted if key.signed(checkpoint.note)), None)
    allowed = [key for key in trusted if may_sign(key, checkpoint.size, announcements)]
    if signer is None:
        result.wrong("checkpoint", unsigned)
    elif signer not in allowed:
        result.wrong("checkpoint", f"it is signed by key {signer.id}, which was replaced before")
    note = result.attempt("manifest.note", lambda: Note.parse(source.read("manifest.note")))
    if note is not None:
        digest = hashlib.sha256(source.read("manifest.json")).hexdigest()
        if note.text != manifest_text(manifest["origin"], digest):
            result.wrong("manifest.json", "it was changed: manifest.note was signed for another one")
        elif not any(key.signed(note) for key in allowed):
            result.wrong("manifest.note", unsigned)
    for mine in kept:
        _check_kept(mine, checkpoint, older, result)
    result.facts.update(
        origin=checkpoint.origin, size=checkpoint.size, root=base64.b64encode(checkpoint.root).decode(),
        signed_by=signer.text if signer else None, older_checkpoints=len(older),
        trusted_up_to=checkpoint.size if pinned else max((mine.size for mine in kept), default=0),
    )


def _check_kept(mine: Checkpoint, checkpoint: Checkpoint, older: Sequence[Checkpoint], result: Result) -> None:
    """The bundle's history contains a checkpoint that the caller kept."""
    same_size = [c for c in (checkpoint, *older) if c.size == mine.size]
    if mine.origin != checkpoint.origin:
        result.wrong("your checkpoint", f"it is of {mine.origin}, the bundle is of {checkpoint.origin}")
    elif any(c.root != mine.root for c in same_size):
        result.wrong("your checkpoint", f"the history was rewritten: the bundle's tree of {mine.size} entries has "
                     "another root than yours")
    elif mine.size > checkpoint.size:
        result.wrong("your checkpoint", f"it has {mine.size} entries, the bundle's only {checkpoint.size}: entries "
                     "were cut off, or the bundle is older than your checkpoint")
    elif not same_size:
        result.wrong("your checkpoint", f"the bundle has no proof for a tree of {mine.size} entries: ask for one made "
                     "with `barecount evidence export --checkpoint` and your file")


def manifest_text(origin: str, digest: str) -> str:
    """What is signed for a bundle: not a checkpoint, as the second line is no number."""
    return f"{origin}\nbundle sha256 {digest}\n"


# --- Single proofs -------------------------------------------------------------------------------------------------


def verify_proof(raw: bytes, pinned: Sequence[Key] = (), kept: Sequence[Checkpoint] = ()) -> Result:
    """Verify a C2SP tlog-proof whose extra data is the entry itself, against a key or the very checkpoint."""
    result = Result()
    result.attempt("proof", _check_proof, raw, pinned, kept, result)
    return result


def _check_proof(raw: bytes, pinned: Sequence[Key], kept: Sequence[Checkpoint], result: Result) -> None:
    head, separator, note = raw.partition(b"\n\n")
    lines = head.decode("utf-8").split("\n")
    if not separator or lines[0] != _PROOF_HEADER or len(lines) < 3:
        raise Malformed(f"not a proof: it begins with {lines[0][:60]!r}")
    if not lines[1].startswith("extra ") or not re.fullmatch(r"index (0|[1-9][0-9]{0,18})", lines[2]):
        raise Malformed("a proof has the entry in its second line and the index in its third")
    entry, index = decode(lines[1][6:]), int(lines[2][6:])
    checkpoint = Checkpoint.parse(note)
    if not verify_inclusion(index, checkpoint.size, leaf_hash(entry), [decode(x, HASH) for x in lines[3:]],
                            checkpoint.root):
        result.wrong("entry", f"it is not entry {index + 1} of the checkpoint's tree")
    signer = next((key for key in pinned if key.name == checkpoint.origin and key.signed(checkpoint.note)), None)
    if pinned and signer is None:
        result.wrong("checkpoint", "it is not signed by a key you trust")
    same = [c for c in kept if (c.origin, c.size, c.root) == (checkpoint.origin, checkpoint.size, checkpoint.root)]
    if kept and not same:
        result.wrong("your checkpoint", f"it is not the proof's, of {checkpoint.size} entries of {checkpoint.origin}")
    document = json.loads(entry)
    result.facts.update(
        tenant=document["tenant"], entries=1, first=index + 1, last=index + 1, complete=True, entry=document,
        origin=checkpoint.origin, size=checkpoint.size, root=base64.b64encode(checkpoint.root).decode(),
        signed_by=signer.text if signer else None, trusted_up_to=checkpoint.size if signer or same else 0,
    )


def proof_text(entry: bytes, index: int, proof: Sequence[bytes], checkpoint: bytes) -> bytes:
    """A C2SP tlog-proof with the entry as its extra data."""
    lines = [_PROOF_HEADER, f"extra {base64.b64encode(entry).decode()}", f"index {index}",
             *(base64.b64encode(item).decode() for item in proof)]
    return "\n".join(lines).encode() + b"\n\n" + checkpoint


# --- Command -------------------------------------------------------------------------------------------------------


def _describe(result: Result) -> Iterator[str]:
    facts = result.facts
    if "entries" in facts:
        span = f"{facts['entries']} entries of {facts['tenant']}, numbers {facts['first']} to {facts['last']}"
        yield f"entries     {span}" + (", none left out" if facts["complete"] else ", a selection")
    if "entry" in facts:
        entry = facts["entry"]
        yield f"entry       {entry.get('at')}  {entry.get('kind')}  {entry.get('subject')}"
    if "size" in facts:
        yield f"checkpoint  {facts['origin']}, {facts['size']} entries, root {facts['root']}"
        yield f"signed by   {facts['signed_by'] or 'nobody that could be checked'}"
        if facts.get("older_checkpoints"):
            yield f"grown from  {facts['older_checkpoints']} older checkpoints"
    for problem in result.problems:
        yield f"WRONG       {problem.where}: {problem.message}"
    if not result.ok:
        yield "NOT VERIFIED"
    elif facts["trusted_up_to"] == facts["size"]:
        yield "VERIFIED    against what you trust"
    elif facts["trusted_up_to"]:
        yield (f"VERIFIED    up to entry {facts['trusted_up_to']} against your checkpoint; later entries were added to "
               "the same history, by who holds the key above: compare it")
    else:
        yield "VERIFIED    in itself; compare the key with one you got elsewhere, or pass --key or --checkpoint"


def _argument_key(text: str) -> Key:
    try:
        return Key.parse(Path(text).read_text(encoding="utf-8") if Path(text).is_file() else text)
    except (Malformed, OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _argument_checkpoint(text: str) -> Checkpoint:
    try:
        return Checkpoint.parse(Path(text).read_bytes())
    except (Malformed, OSError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="verify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path(__file__).resolve().parent, metavar="PATH",
                        help="a bundle (.zip or folder) or a .tlog-proof; default: the folder of this file")
    parser.add_argument("--key", action="append", default=[], type=_argument_key, help="a public key you trust")
    parser.add_argument("--checkpoint", action="append", default=[], type=_argument_checkpoint,
                        help="a checkpoint you kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not options.path.exists():
        parser.error(f"there is no {options.path}")
    try:
        import cryptography  # noqa: F401
    except ImportError:
        parser.error("the Python package 'cryptography' is needed to check signatures: pip install cryptography")
    if options.path.suffix == ".tlog-proof":
        if not options.key and not options.checkpoint:
            parser.error("a single proof is verified against a --key or a --checkpoint that you trust")
        result = verify_proof(options.path.read_bytes(), options.key, options.checkpoint)
    else:
        result = verify_bundle(options.path, options.key, options.checkpoint)
    if options.json:
        problems = [problem._asdict() for problem in result.problems]
        print(json.dumps({"ok": result.ok, **result.facts, "problems": problems}, indent=2))
    else:
        print("\n".join(_describe(result)))
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
