"""Signed checkpoints of each tenant's ledger, proofs against them, and verification up to them.

A checkpoint is a C2SP tlog-checkpoint: origin `barecount/<tenant>`, number of entries, Merkle root of RFC 6962, signed
with Ed25519. The chain of hashes in the ledger shows that someone changed it clumsily; a checkpoint that lies outside
the database shows that anyone changed it at all.

Keys follow one another inside the ledger: entry `signing_key.announced` makes a key known, and the checkpoint that
ends with this entry is signed by the key before it. A key signs from its announcement up to and including its
successor's.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger, merkle, tiles
from resources.trust.signing import KeyStore
from resources.trust.verify import (
    EMPTY_ROOT,
    KEY_ANNOUNCED,
    Announcement,
    Checkpoint,
    Key,
    Malformed,
    announcement,
    leaf_hash,
    may_sign,
    proof_text,
    trusted_keys,
    verify_consistency,
    verify_inclusion,
)

_LOCK_SPACE = 0x0BC2  # first key of the two-key advisory locks: one signer per tenant at a time


def origin(tenant_id: str) -> str:
    """Origin line and key name of a tenant's log."""
    return f"barecount/{tenant_id}"


# --- Signing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signed:
    """A checkpoint that is on record; `created` says whether it was made just now."""

    checkpoint: Checkpoint
    key: Key
    created: bool


def create(database: Database, keys: KeyStore, tenant_id: str) -> Signed:
    """Sign the ledger as it is now; without new entries since, answer the newest checkpoint.

    The first checkpoint of a tenant makes its key.

    Raises:
        BareCountError: declaration.unknown (no such tenant); evidence.broken when the ledger does not contain the
            newest checkpoint, which is never papered over by a new signature; access.denied (private key).
    """
    with database.transaction() as connection:
        _lock(connection, tenant_id)
        known = announcements(connection, tenant_id)
        if not known:
            _refuse_fork(connection, tenant_id, ledger.newest(connection, tenant_id), keys)
        key = known[-1].key if known else _announce(connection, tenant_id, keys, None)
        size = ledger.newest(connection, tenant_id)
        newest = latest(connection, tenant_id)
        if newest is not None and newest.size == size and newest.signer == key.id:
            _refuse_fork(connection, tenant_id, size, keys)
            return Signed(newest, key, created=False)
        signed = _sign(connection, tenant_id, keys, key, size)
    keys.remember(key, signed.raw)
    return Signed(signed, key, created=True)


def rotate(database: Database, keys: KeyStore, tenant_id: str, *, lost: bool = False) -> Signed:
    """Replace a tenant's key: the old one signs the entry that announces the new one, and nothing after it.

    Args:
        lost: the old private key is gone; the new one then begins without a handover, and whoever pinned the old key
            has to be told the new one.

    Returns:
        The first checkpoint of the new key.
    """
    with database.transaction() as connection:
        _lock(connection, tenant_id)
        known = announcements(connection, tenant_id)
        if not known:
            raise BareCountError(ErrorCode.EVIDENCE_MISSING, f"tenant {tenant_id} has no signing key yet",
                                 hint="`barecount evidence checkpoint` makes the first one")
        old = known[-1].key
        if lost and keys.holds(old):
            raise BareCountError(ErrorCode.USAGE, f"the private key {old.id} is not lost: it lies in {keys.folder}",
                                 hint="rotate without --lost, so that the old key vouches for the new one")
        new = _announce(connection, tenant_id, keys, old)
        size = ledger.newest(connection, tenant_id)
        if not lost:
            _sign(connection, tenant_id, keys, old, size)
        signed = _sign(connection, tenant_id, keys, new, size)
    keys.remember(new, signed.raw)
    return Signed(signed, new, created=True)


def announcements(connection: psycopg.Connection, tenant_id: str) -> list[Announcement]:
    """The tenant's public keys, oldest first; the last one signs now."""
    rows = fetch(connection, "select announced_seq, public_key, replaces from platform.signing_key "
                             "where tenant_id = $1 order by announced_seq", (tenant_id,))
    return [Announcement(seq, Key.parse(text), replaces) for seq, text, replaces in rows]


def latest(connection: psycopg.Connection, tenant_id: str, *, covering: int = 0) -> Checkpoint | None:
    """The newest checkpoint, if it has at least `covering` entries."""
    rows = fetch(connection, _CHECKPOINTS + " and size >= $2 order by c.size desc, k.announced_seq desc limit 1",
                 (tenant_id, covering))
    return Checkpoint.parse(rows[0][0].encode()) if rows else None


def all_of(connection: psycopg.Connection, tenant_id: str) -> list[Checkpoint]:
    """Every checkpoint on record, oldest first."""
    rows = fetch(connection, _CHECKPOINTS + " order by c.size, k.announced_seq", (tenant_id,))
    return [Checkpoint.parse(note.encode()) for (note,) in rows]


def of_size(connection: psycopg.Connection, tenant_id: str, size: int) -> Checkpoint:
    """The checkpoint with this many entries.

    Raises:
        BareCountError: evidence.missing, naming those there are.
    """
    found = [checkpoint for checkpoint in all_of(connection, tenant_id) if checkpoint.size == size]
    if found:
        return found[-1]
    sizes = [str(c.size) for c in all_of(connection, tenant_id)]
    shown = ", ".join(sizes[-10:]) or "none"
    raise BareCountError(
        ErrorCode.EVIDENCE_MISSING, f"tenant {tenant_id} has no checkpoint of {size} entries; the newest are {shown}",
        hint="name one of them, or a file that holds a checkpoint",
    )


_CHECKPOINTS = (
    "select c.note from platform.checkpoint c join platform.signing_key k using (tenant_id, key_id) "
    "where tenant_id = $1"
)


def _lock(connection: psycopg.Connection, tenant_id: str) -> None:
    if not fetch(connection, "select 1 from platform.tenant where tenant_id = $1", (tenant_id,)):
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no tenant {tenant_id!r} in the ledger",
                             hint="run one of its pipelines first; `barecount status` lists tenants")
    fetch(connection, "select pg_advisory_xact_lock($1::int, hashtext($2))", (_LOCK_SPACE, tenant_id))


def _announce(connection: psycopg.Connection, tenant_id: str, keys: KeyStore, before: Key | None) -> Key:
    """A new key, on record in the ledger."""
    key = keys.generate(origin(tenant_id))
    replaces = before.id if before else None
    payload = {"key": key.text, "replaces": replaces}
    seq = ledger.append(connection, ledger.Entry(tenant_id, KEY_ANNOUNCED, key.name, key.id, payload))
    fetch(connection, "insert into platform.signing_key values ($1, $2, $3, $4, $5)",
          (tenant_id, key.id, key.text, seq, replaces))
    return key


def _sign(connection: psycopg.Connection, tenant_id: str, keys: KeyStore, key: Key, size: int) -> Checkpoint:
    _refuse_fork(connection, tenant_id, size, keys)
    root = tiles.StoredTree(connection, tenant_id, size).root()
    note = keys.sign(key, f"{origin(tenant_id)}\n{size}\n{base64.b64encode(root).decode()}\n")
    fetch(connection, "insert into platform.checkpoint values ($1, $2, $3, $4, $5)",
          (tenant_id, size, key.id, root, note.decode()))
    return Checkpoint.parse(note)


def _refuse_fork(connection: psycopg.Connection, tenant_id: str, size: int, keys: KeyStore) -> None:
    """A log never signs a tree that did not grow from every tree it has signed, as the database and keys know them."""
    tiles.extend(connection, tenant_id, size)
    memories = keys.memories(origin(tenant_id))
    newest = latest(connection, tenant_id)
    for before in [*([newest] if newest else []), *(Checkpoint.parse(path.read_bytes()) for path in memories)]:
        if before.size > size:
            found = f"the ledger of tenant {tenant_id} has {size} entries and {before.size} were signed: it was cut off"
        elif tiles.StoredTree(connection, tenant_id, before.size).root() != before.root:
            found = f"the first {before.size} entries of tenant {tenant_id} are not those that were signed"
        else:
            continue
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN, f"{found}; nothing is signed",
            hint="run `barecount evidence verify` to see what was changed, and restore the database from a backup; if "
            f"the database was made anew on purpose, move what is in {keys.memory} away",
        )


# --- Proofs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InclusionProof:
    """That an entry is in the ledger which a checkpoint signs.

    Attributes:
        body: canonical JSON of the entry.
        hashes: RFC 6962 inclusion proof, from the leaf's sibling upwards.
    """

    tenant_id: str
    seq: int
    body: str
    hashes: tuple[bytes, ...]
    checkpoint: Checkpoint
    key: Key

    @property
    def holds(self) -> bool:
        """Recomputed from the body: hash, path to the root, signature."""
        return self.key.signed(self.checkpoint.note) and verify_inclusion(
            self.seq - 1, self.checkpoint.size, leaf_hash(self.body.encode()), self.hashes, self.checkpoint.root)

    def text(self) -> bytes:
        """As a C2SP tlog-proof, complete in itself: the entry is its extra data."""
        return proof_text(self.body.encode(), self.seq - 1, self.hashes, self.checkpoint.raw)

    def to_json(self) -> dict[str, Any]:
        return {
            "tenant": self.tenant_id, "entry": self.seq, "body": self.body,
            "leaf_hash": leaf_hash(self.body.encode()).hex(), "leaf_index": self.seq - 1,
            "tree_size": self.checkpoint.size, "root_hash": self.checkpoint.root.hex(),
            "proof": [item.hex() for item in self.hashes],
            "checkpoint": self.checkpoint.raw.decode(), "key": self.key.text, "holds": self.holds,
        }


def prove(connection: psycopg.Connection, tenant_id: str, seq: int) -> InclusionProof:
    """The inclusion proof of an entry in the newest checkpoint.

    Raises:
        BareCountError: evidence.missing when there is no such entry, or no checkpoint has it yet; evidence.broken when
            the tree is damaged.
    """
    rows = fetch(connection, "select body from platform.evidence where tenant_id = $1 and seq = $2", (tenant_id, seq))
    if not rows:
        raise BareCountError(ErrorCode.EVIDENCE_MISSING, f"tenant {tenant_id} has no entry {seq}",
                             hint="`barecount evidence search` finds entries")
    checkpoint = latest(connection, tenant_id, covering=seq)
    if checkpoint is None:
        raise BareCountError(
            ErrorCode.EVIDENCE_MISSING, f"entry {seq} of tenant {tenant_id} is newer than the newest checkpoint",
            hint=f"sign one: barecount evidence checkpoint --tenant {tenant_id}",
        )
    tree = tiles.StoredTree(connection, tenant_id, checkpoint.size)
    key = next(a.key for a in announcements(connection, tenant_id) if a.key.id == checkpoint.signer)
    hashes = merkle.inclusion_proof(seq - 1, checkpoint.size, tree.node)
    return InclusionProof(tenant_id, seq, rows[0][0], tuple(hashes), checkpoint, key)


@dataclass(frozen=True)
class ConsistencyProof:
    """That the tree of the second checkpoint grew from that of the first."""

    first: Checkpoint
    second: Checkpoint
    hashes: tuple[bytes, ...]

    @property
    def holds(self) -> bool:
        return verify_consistency(
            self.first.size, self.second.size, self.first.root, self.second.root, self.hashes)

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first.raw.decode(), "second": self.second.raw.decode(),
            "proof": [item.hex() for item in self.hashes], "holds": self.holds,
        }


def consistency(
    connection: psycopg.Connection, tenant_id: str, first: Checkpoint, second: Checkpoint
) -> ConsistencyProof:
    """The consistency proof between two checkpoints, given in any order; `holds` is False for a fork.

    Raises:
        BareCountError: evidence.broken when a checkpoint has more entries than the ledger, or the tree is damaged.
    """
    first, second = sorted((first, second), key=lambda checkpoint: checkpoint.size)
    size = ledger.newest(connection, tenant_id)
    if second.size > size:
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN,
            f"the checkpoint has {second.size} entries, the ledger of tenant {tenant_id} only {size}: it was cut off",
            hint="run `barecount evidence verify` with --checkpoint and its file",
        )
    tiles.extend(connection, tenant_id, second.size)  # of a checkpoint that is not on record here
    tree = tiles.StoredTree(connection, tenant_id, second.size)
    return ConsistencyProof(first, second, tuple(merkle.consistency_proof(first.size, second.size, tree.node)))


# --- Verification --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """A checkpoint from outside the database: where it was found, and its bytes."""

    source: str
    raw: bytes


def verify(
    connection: psycopg.Connection, tenant_id: str, witnesses: Sequence[Witness] = (), pinned: Sequence[Key] = ()
) -> ledger.Verification:
    """Verify a tenant's chain (see `ledger.verify`), its tree, keys, and every checkpoint, in one pass.

    Found beyond what the chain shows: `truncated` and `rewritten` (the entries are not those a checkpoint signs: also
    when every hash in the database was computed anew), `fork` (two signed checkpoints that are not of one history),
    `key`, `signature`, `checkpoint` (on record and outside disagree), `tile`.

    Args:
        witnesses: checkpoints from outside the database; those of other tenants are skipped.
        pinned: public keys to trust; without them, those the ledger announces.
    """
    findings: list[ledger.Finding] = []

    def report(seq: int, problem: str, message: str) -> None:
        findings.append(ledger.Finding(tenant_id, seq, problem, message))

    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        outside = _read_witnesses(tenant_id, witnesses, report)
        recorded = _recorded(connection, tenant_id, report)
        known = announcements(connection, tenant_id)
        candidates = [*recorded, *outside]
        wanted = {candidate.checkpoint.size for candidate in candidates}
        roots: dict[int, bytes] = {}
        with psycopg.RawServerCursor(connection, "tiles") as stored:
            stored.execute(_TILES, (tenant_id,))
            tree = merkle.Tree(_TileComparison(stored, report))

            def grow(leaf: bytes) -> None:
                tree.append(leaf)
                if tree.size in wanted:
                    roots[tree.size] = tree.root()

            chain = ledger.verify(connection, tenant_id, grow)
        _check_keys(connection, tenant_id, known, report)
        origin_keys = [key for key in pinned if key.name == origin(tenant_id)]
        matching = [c.checkpoint for c in candidates if roots.get(c.checkpoint.size) == c.checkpoint.root]
        trusted = trusted_keys(origin_keys, known, matching)
        good = _judge(candidates, roots, tree.size, known, trusted, report)
        _compare_with_record(recorded, outside, good, report)
    return replace(chain, findings=(*chain.findings, *findings), root=tree.root().hex(),
                   checkpoints=len({candidate.checkpoint.raw for candidate in good}))


@dataclass(frozen=True)
class _Candidate:
    source: str
    checkpoint: Checkpoint
    is_witness: bool


def _read_witnesses(tenant_id: str, witnesses: Sequence[Witness], report: Any) -> list[_Candidate]:
    found = []
    for witness in witnesses:
        try:
            checkpoint = Checkpoint.parse(witness.raw)
        except Malformed as error:
            report(0, "checkpoint", f"{witness.source}: {error}")
            continue
        if checkpoint.origin == origin(tenant_id):
            found.append(_Candidate(witness.source, checkpoint, True))
    return found


def _recorded(connection: psycopg.Connection, tenant_id: str, report: Any) -> list[_Candidate]:
    """Checkpoints of the database, whose columns must be those of their notes."""
    found = []
    for size, key_id, root, note in fetch(
        connection, "select size, key_id, root_hash, note from platform.checkpoint where tenant_id = $1 "
                    "order by size, key_id", (tenant_id,)
    ):
        try:
            checkpoint = Checkpoint.parse(note.encode())
        except Malformed as error:
            report(size, "checkpoint", f"the recorded checkpoint of {size} entries: {error}")
            continue
        if (checkpoint.origin, checkpoint.size, checkpoint.signer, checkpoint.root) != (
            origin(tenant_id), size, key_id, root
        ):
            report(size, "checkpoint", f"the recorded checkpoint of {size} entries disagrees with its own note")
        found.append(_Candidate("the recorded checkpoint", checkpoint, False))
    return found


# In the order in which the tree completes them.
_TILES = (
    "select level, tile, hashes, root from platform.evidence_tile where tenant_id = $1 "
    "order by (tile + 1) << (8 * (level + 1)), level"
)


class _TileComparison:
    """Compares kept tiles with those that the entries give; tiles not kept yet are none of its business."""

    def __init__(self, stored: psycopg.RawServerCursor, report: Any) -> None:
        self._rows, self._report, self._broken = iter(stored), report, False

    def __call__(self, tile: merkle.Tile) -> None:
        row = None if self._broken else next(self._rows, None)
        if row is not None and row != (tile.level, tile.number, tile.hashes, tile.root):
            self._broken = True  # the first one says it
            self._report((tile.number << 8 * (tile.level + 1)) + 1, "tile",
                         f"tile {tile.number} of level {tile.level} is not the one that the entries give")


def _check_keys(
    connection: psycopg.Connection, tenant_id: str, known: Sequence[Announcement], report: Any
) -> None:
    """The key table says what the ledger says."""
    import json

    rows = fetch(connection, "select seq, body from platform.evidence where tenant_id = $1 and kind = $2 order by seq",
                 (tenant_id, KEY_ANNOUNCED))
    announced = []
    for seq, body in rows:
        try:
            announced.append(announcement(seq, json.loads(body)))
        except ValueError as error:
            report(seq, "key", str(error))
    for item in [item for item in known if item not in announced]:
        report(item.seq, "key", f"signing key {item.key.id} was not announced by entry {item.seq}")
    for item in [item for item in announced if item not in known]:
        report(item.seq, "key", f"signing key {item.key.id}, announced by entry {item.seq}, is not on record")


def _judge(
    candidates: Sequence[_Candidate], roots: dict[int, bytes], size: int, known: Sequence[Announcement],
    trusted: Sequence[Key], report: Any,
) -> list[_Candidate]:
    """Report what is wrong with each checkpoint; returns those with nothing wrong."""
    good: list[_Candidate] = []
    wrong: list[_Candidate] = []
    for candidate in candidates:
        checkpoint = candidate.checkpoint
        name = f"{candidate.source} of {checkpoint.size} entries"
        signer = next((key for key in trusted if key.signed(checkpoint.note)), None)
        if signer is None:
            report(checkpoint.size, "signature", f"{name} is not signed by a trusted key")
        elif not may_sign(signer, checkpoint.size, known):
            report(checkpoint.size, "signature", f"{name} is signed by key {signer.id}, which signs no such tree")
        if checkpoint.size > size:
            report(size + 1, "truncated", f"{name}: the ledger has only {size}, its end was cut off")
        elif roots.get(checkpoint.size, EMPTY_ROOT) != checkpoint.root:
            wrong.append(candidate)
        elif signer is not None:
            good.append(candidate)
    for candidate in wrong:
        checkpoint = candidate.checkpoint
        # Rightly signed, as is a checkpoint of the history at hand that is no older: two histories were signed.
        later = next((c for c in good if c.checkpoint.size >= checkpoint.size), None)
        if later is not None and any(key.signed(checkpoint.note) for key in trusted):
            report(checkpoint.size, "fork", f"{candidate.source} of {checkpoint.size} entries and {later.source} of "
                   f"{later.checkpoint.size} are both signed and not of one history")
        else:
            report(checkpoint.size, "rewritten", f"the first {checkpoint.size} entries are not those that "
                   f"{candidate.source} signs, even if their hashes follow one another")
    return good


def _compare_with_record(
    recorded: Sequence[_Candidate], outside: Sequence[_Candidate], good: Sequence[_Candidate], report: Any
) -> None:
    """A good checkpoint that was handed out must be on record."""
    notes = {candidate.checkpoint.note.text for candidate in recorded}
    for candidate in outside:
        if candidate in good and candidate.checkpoint.note.text not in notes:
            report(candidate.checkpoint.size, "checkpoint",
                   f"{candidate.source} of {candidate.checkpoint.size} entries was removed from the record")
