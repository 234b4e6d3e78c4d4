"""The export bundle: evidence in one file that an outsider verifies without us (see `verify.py`, which is in it).

| file | holds |
| --- | --- |
| `index.html` | what is in the bundle, for people |
| `entries.jsonl` | canonical bodies of the chosen entries, one a line, in order of their numbers |
| `tile/0/...` | the tiles of leaf hashes that those entries are in, named as in C2SP tlog-tiles |
| `proofs/inclusion.jsonl` | per tile: numbers of its entries in the bundle (ranges), and the RFC 6962 proof that the tile is in the checkpoint's tree: the tree of tiles has the shape of the tree of entries, eight levels up |
| `proofs/consistency.jsonl` | per older checkpoint: the RFC 6962 proof that the tree only grew since |
| `checkpoint`, `checkpoints/` | the signed checkpoint that everything is proven against, and the older ones |
| `keys.json` | public keys, each with the entry that announces it; those entries are always in the bundle |
| `verify.py` | the verifier |
| `manifest.json`, `manifest.note` | SHA-256 and size of every file, and the signature over it |

The same entries, checkpoints and keys give the same bytes: nothing in a bundle depends on when or where it was made.
"""  # noqa: E501  tables do not wrap

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import html
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import checkpoints, merkle, tiles
from resources.trust.signing import KeyStore
from resources.trust.verify import (
    BUNDLE_FORMAT,
    HASH,
    KEY_ANNOUNCED,
    TILE,
    TILE_HEIGHT,
    Announcement,
    Checkpoint,
    leaf_hash,
    manifest_text,
    tile_path,
    verify_consistency,
)

_SHOWN_ENTRIES = 1_000
_PAGE = 2_000
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold


@dataclass(frozen=True)
class Selection:
    """What to export: entries of days (UTC, both ends included) and sections.

    Attributes:
        sections: first words of kinds (`batch` of `batch.landed`); empty for all.
    """

    start: dt.date | None = None
    end: dt.date | None = None
    sections: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"from": self.start and self.start.isoformat(), "to": self.end and self.end.isoformat(),
                "sections": sorted(self.sections)}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written. `sha256` and `size` (bytes) are of the file."""

    path: Path
    tenant_id: str
    entries: int
    checkpoint: Checkpoint
    key: str
    sha256: str
    size: int


@dataclass
class _Contents:
    """What was found out while the entries were written."""

    ranges: dict[int, list[list[int]]] = field(default_factory=dict)  # tile -> ranges of entry numbers
    leaves: dict[int, bytearray] = field(default_factory=dict)  # tile -> leaf hashes of those entries
    kinds: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[int, str, str, str, str]] = field(default_factory=list)
    count: int = 0
    first: int = 0
    last: int = 0


def export(
    database: Database, keys: KeyStore, tenant_id: str, path: Path, selection: Selection,
    kept: Sequence[Checkpoint] = (),
) -> Bundle:
    """Write a bundle, proven against the newest checkpoint; where that lacks a chosen entry, sign a new one first.

    Args:
        path: the file, `.zip`; replaced if it exists, and only by a complete bundle.
        kept: checkpoints of the bundle's reader, to prove that the history contains them.

    Raises:
        BareCountError: evidence.missing (nothing to export), evidence.broken (the ledger is not what was signed),
            declaration.unknown (tenant), usage (sections), access.denied (private key).
    """
    with database.connect(autocommit=True) as connection:
        bounds = _bounds(connection, tenant_id, selection)
        covering = max([bounds[1], *(item.size for item in kept)])
        newest = checkpoints.latest(connection, tenant_id, covering=covering)
    checkpoint = newest or checkpoints.create(database, keys, tenant_id).checkpoint
    if checkpoint.size < covering:
        raise _broken(tenant_id, f"it has {checkpoint.size} entries, and {covering} were signed: it was cut off")
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with database.transaction() as connection, zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            connection.execute("set transaction isolation level repeatable read")
            writer = _Writer(archive)
            entries, key = _write(connection, keys, tenant_id, checkpoint, selection, bounds, kept, writer)
        with fresh.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = fresh.stat().st_size
        fresh.replace(path)
    except OSError as error:
        raise BareCountError(
            ErrorCode.STORE_UNAVAILABLE, f"the bundle {path} cannot be written: {error.strerror or error}",
            hint="choose another place with --out", retryable=True,
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return Bundle(path, tenant_id, entries, checkpoint, key, digest, size)


class _Writer:
    """Files of a bundle: written in order, each hashed for the manifest."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, name: str, data: bytes | Iterable[bytes]) -> None:
        info = zipfile.ZipInfo(name, _EPOCH)
        info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
        digest, size = hashlib.sha256(), 0
        with self._archive.open(info, "w", force_zip64=not isinstance(data, bytes)) as file:
            for chunk in (data,) if isinstance(data, bytes) else data:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        self.files[name] = {"bytes": size, "sha256": digest.hexdigest()}


def _write(
    connection: psycopg.Connection, keys: KeyStore, tenant_id: str, checkpoint: Checkpoint, selection: Selection,
    bounds: tuple[int, int], kept: Sequence[Checkpoint], writer: _Writer,
) -> tuple[int, str]:
    contents = _Contents()
    writer.add("entries.jsonl", _entries(connection, tenant_id, checkpoint, selection, bounds, contents))
    tree = tiles.StoredTree(connection, tenant_id, checkpoint.size)
    if tree.root() != checkpoint.root:
        raise _broken(tenant_id, f"the first {checkpoint.size} entries are not those of the checkpoint")
    for number, hashes in tree.leaf_tiles(list(contents.ranges)):
        _compare(tenant_id, number, hashes, contents)
        writer.add(tile_path(number, len(hashes) // HASH), hashes)
    writer.add("proofs/inclusion.jsonl", b"".join(_inclusion(tree, contents)))
    known = [item for item in checkpoints.announcements(connection, tenant_id) if item.seq <= checkpoint.size]
    older = _older(connection, tenant_id, checkpoint, kept)
    for name, item in older.items():
        writer.add(name, item.raw)
    writer.add("proofs/consistency.jsonl", b"".join(_consistency(tree, checkpoint, older, tenant_id)))
    writer.add("checkpoint", checkpoint.raw)
    writer.add("keys.json", _document([{"key": item.key.text, "announced": item.seq, "replaces": item.replaces}
                                       for item in known]))
    writer.add("index.html", _page(tenant_id, checkpoint, selection, contents, known, len(older)).encode())
    writer.add("verify.py", Path(__file__).with_name("verify.py").read_bytes())
    manifest = _document({
        "format": BUNDLE_FORMAT,
        "tenant": tenant_id,
        "origin": checkpoint.origin,
        "selection": selection.to_json(),
        "entries": {"count": contents.count, "first": contents.first, "last": contents.last},
        "checkpoint": {"size": checkpoint.size, "root": base64.b64encode(checkpoint.root).decode()},
        "files": writer.files.copy(),
    })
    signer = next(item.key for item in known if item.key.id == checkpoint.signer)
    writer.add("manifest.json", manifest)
    writer.add("manifest.note",
               keys.sign(signer, manifest_text(checkpoint.origin, hashlib.sha256(manifest).hexdigest())))
    return contents.count, signer.text


def _document(document: Any) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


# --- Entries -------------------------------------------------------------------------------------------------------

_BOUNDS = """
select min(seq), max(seq)
from platform.evidence
where tenant_id = $1
  and ($2::date is null or occurred_at >= $2::date::timestamp at time zone 'UTC')
  and ($3::date is null or occurred_at < ($3::date + 1)::timestamp at time zone 'UTC')
"""

_ENTRIES = f"""
select seq, kind, subject, occurred_at, body
from platform.evidence
where tenant_id = $1 and seq <= $2
  and (kind = '{KEY_ANNOUNCED}'
       or seq between $3 and $4 and ($5::text[] is null or split_part(kind, '.', 1) = any($5::text[])))
order by seq
"""


def _bounds(connection: psycopg.Connection, tenant_id: str, selection: Selection) -> tuple[int, int]:
    """First and last entry of the days; every entry between them belongs to the selection, so none can be left out."""
    if selection.sections:
        rows = fetch(connection, "select distinct split_part(kind, '.', 1) from platform.evidence where tenant_id = $1 "
                                 "order by 1", (tenant_id,))
        known = [name for (name,) in rows]
        unknown = sorted(set(selection.sections) - set(known))
        if unknown and known:
            raise BareCountError(ErrorCode.USAGE, f"no entry of tenant {tenant_id} is of section {', '.join(unknown)}",
                                 hint=f"sections are the first words of kinds; there are {', '.join(known)}")
    first, last = fetch(connection, _BOUNDS, (tenant_id, selection.start, selection.end))[0]
    if first is None:
        days = f" from {selection.start or 'the beginning'} to {selection.end or 'now'}"
        raise BareCountError(ErrorCode.EVIDENCE_MISSING, f"tenant {tenant_id} has no evidence{days}",
                             hint="`barecount evidence search` shows what there is")
    return first, last


def _entries(
    connection: psycopg.Connection, tenant_id: str, checkpoint: Checkpoint, selection: Selection,
    bounds: tuple[int, int], contents: _Contents,
) -> Iterator[bytes]:
    sections = list(selection.sections) or None
    with psycopg.RawServerCursor(connection, "entries") as cursor:
        cursor.execute(_ENTRIES, (tenant_id, checkpoint.size, *bounds, sections))
        while page := cursor.fetchmany(_PAGE):
            for seq, kind, subject, at, body in page:
                raw = body.encode()
                tile = (seq - 1) // TILE
                ranges = contents.ranges.setdefault(tile, [])
                if ranges and ranges[-1][1] == seq - 1:
                    ranges[-1][1] = seq
                else:
                    ranges.append([seq, seq])
                contents.leaves.setdefault(tile, bytearray()).extend(leaf_hash(raw))
                contents.count, contents.first, contents.last = contents.count + 1, contents.first or seq, seq
                contents.kinds[kind] += 1
                if len(contents.shown) < _SHOWN_ENTRIES:
                    contents.shown.append((seq, f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}", kind, subject, body))
                yield raw + b"\n"


def _compare(tenant_id: str, number: int, hashes: bytes, contents: _Contents) -> None:
    """What is exported is what was signed."""
    numbers = (seq for start, end in contents.ranges[number] for seq in range(start, end + 1))
    found = contents.leaves.pop(number)
    for position, seq in enumerate(numbers):
        offset = (seq - 1) % TILE * HASH
        if hashes[offset : offset + HASH] != found[position * HASH : (position + 1) * HASH]:
            raise _broken(tenant_id, f"entry {seq} is not the one that was signed")


def _inclusion(tree: tiles.StoredTree, contents: _Contents) -> Iterator[bytes]:
    for number, ranges in contents.ranges.items():
        proof = merkle.inclusion_proof(number, tree.size, tree.node, TILE_HEIGHT)
        yield _line({"tile": number, "entries": ranges, "proof": _encoded(proof)})


def _older(
    connection: psycopg.Connection, tenant_id: str, checkpoint: Checkpoint, kept: Sequence[Checkpoint]
) -> dict[str, Checkpoint]:
    """Every other checkpoint up to the size of the bundle's, by its name in the bundle."""
    found: dict[str, Checkpoint] = {}
    for item in sorted({*checkpoints.all_of(connection, tenant_id), *kept}, key=lambda item: (item.size, item.raw)):
        name = f"checkpoints/{item.size:012d}-{item.signer}.checkpoint"
        if name in found:
            raise _broken(tenant_id, f"there are two checkpoints of {item.size} entries")
        if item.size <= checkpoint.size and item.raw != checkpoint.raw:
            found[name] = item
    return found


def _consistency(
    tree: tiles.StoredTree, checkpoint: Checkpoint, older: dict[str, Checkpoint], tenant_id: str
) -> Iterator[bytes]:
    for name, item in older.items():
        proof = merkle.consistency_proof(item.size, tree.size, tree.node)
        if not verify_consistency(item.size, checkpoint.size, item.root, checkpoint.root, proof):
            raise _broken(tenant_id, f"the checkpoint of {item.size} entries is not of the same history")
        yield _line({"checkpoint": name, "proof": _encoded(proof)})


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _encoded(hashes: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(item).decode() for item in hashes]


def _broken(tenant_id: str, found: str) -> BareCountError:
    return BareCountError(
        ErrorCode.EVIDENCE_BROKEN, f"evidence of tenant {tenant_id}: {found}; nothing is exported",
        hint="run `barecount evidence verify` to see what was changed, and restore the database from a backup",
    )


# --- The page ------------------------------------------------------------------------------------------------------

_PAGE_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evidence of {tenant}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1a1a1a }}
h1, h2 {{ line-height: 1.2 }} h2 {{ margin-top: 2rem }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums }}
code, pre {{ font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap }}
pre {{ background: #f5f5f5; padding: .75rem }}
summary {{ cursor: pointer }}
</style></head><body>
<h1>Evidence of {tenant}</h1>
<p>{summary}</p>
<h2>Verify it yourself</h2>
<p>This page is a rendering; what counts is verified by the program in this bundle, or better by a copy of it that you
have from elsewhere. It needs Python and its package <code>cryptography</code>, no network and no database:</p>
<pre>python verify.py --key KEY_YOU_TRUST --checkpoint CHECKPOINT_YOU_KEPT</pre>
<h2>Checkpoint</h2>
<pre>{checkpoint}</pre>
<p>It signs the first {size} entries of the ledger. {older}</p>
<h2>Keys</h2>
<table><tr><th class="n">entry</th><th>public key</th><th>replaces</th></tr>
{keys}
</table>
<h2>What happened</h2>
<table><tr><th>kind</th><th class="n">entries</th></tr>
{kinds}
</table>
<h2>Entries</h2>
<p>{shown}</p>
<table><tr><th class="n">entry</th><th>at (UTC)</th><th>kind</th><th>subject and facts</th></tr>
{entries}
</table>
</body></html>
"""


def _page(
    tenant_id: str, checkpoint: Checkpoint, selection: Selection, contents: _Contents, known: Sequence[Announcement],
    older: int,
) -> str:
    escape = html.escape
    days = f"from {selection.start or 'the beginning'} to {selection.end or 'the checkpoint'}"
    sections = f"sections {', '.join(sorted(selection.sections))}" if selection.sections else "all sections"
    return _PAGE_HTML.format(
        tenant=escape(tenant_id),
        summary=escape(f"{contents.count:,} entries, numbers {contents.first} to {contents.last}, {days}, {sections}. "
                       "Entries that announce signing keys are always included."),
        checkpoint=escape(checkpoint.raw.decode()),
        size=f"{checkpoint.size:,}",
        older=f"{older} older checkpoints are proven to be of the same history." if older else "",
        keys="\n".join(f'<tr><td class="n">{item.seq}</td><td><code>{escape(item.key.text)}</code></td>'
                       f"<td><code>{escape(item.replaces or '')}</code></td></tr>" for item in known),
        kinds="\n".join(f'<tr><td>{escape(kind)}</td><td class="n">{count:,}</td></tr>'
                        for kind, count in sorted(contents.kinds.items())),
        shown="All of them." if len(contents.shown) == contents.count else
        f"The first {len(contents.shown):,}; all are in entries.jsonl.",
        entries="\n".join(
            f'<tr><td class="n">{seq}</td><td>{at}</td><td>{escape(kind)}</td><td><details><summary>{escape(subject)}'
            f"</summary><pre>{escape(_facts(body))}</pre></details></td></tr>"
            for seq, at, kind, subject, body in contents.shown),
    )


def _facts(body: str) -> str:
    return json.dumps(json.loads(body), ensure_ascii=False, indent=1)
