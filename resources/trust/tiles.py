"""A tenant's Merkle tree in PostgreSQL: complete tiles are kept, the right edge is computed when it is needed.

Appending an entry does not touch the tree. `extend` brings the tiles up to a size, reading each leaf hash once in the
life of a ledger; a proof then reads one tile per eight levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import psycopg

from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import merkle
from resources.trust.verify import HASH, TILE, TILE_HEIGHT, fold

_TILES_PER_STATEMENT = 64

_LEAVES = (
    "select (seq - 1) / 256, string_agg(leaf_hash, ''::bytea order by seq) from platform.evidence "
    "where tenant_id = $1 and $2::int = 0 and seq > $3::bigint * 256 and seq <= $4::bigint group by 1 order by 1"
)
_ROOTS = (
    "select tile / 256, string_agg(root, ''::bytea order by tile) from platform.evidence_tile "
    "where tenant_id = $1 and level = $2::int - 1 and tile >= $3::bigint * 256 and tile < $4::bigint "
    "group by 1 order by 1"
)
_INSERT = "insert into platform.evidence_tile values ($1, $2, $3, $4, $5) on conflict do nothing"


def extend(connection: psycopg.Connection, tenant_id: str, size: int) -> None:
    """Keep every tile that is complete in the tree of `size` entries.

    Raises:
        BareCountError: evidence.broken when entries are missing.
    """
    level = 0
    while complete := size >> TILE_HEIGHT * (level + 1):
        done = fetch(connection, "select coalesce(max(tile) + 1, 0) from platform.evidence_tile "
                                 "where tenant_id = $1 and level = $2", (tenant_id, level))[0][0]
        for first in range(done, complete, _TILES_PER_STATEMENT):
            last = min(first + _TILES_PER_STATEMENT, complete)
            rows = fetch(connection, _source(level), (tenant_id, level, first, last * TILE))
            tiles = {number: hashes for number, hashes in rows}
            for number in range(first, last):
                if len(tiles.get(number, b"")) != TILE * HASH:
                    raise _incomplete(tenant_id, level, number)
            with connection.cursor() as cursor:
                cursor.executemany(_INSERT, [(tenant_id, level, number, hashes, fold(_split(hashes)))
                                             for number, hashes in tiles.items()])
        level += 1


class StoredTree:
    """The tree of a tenant's first `size` entries, read from its tiles. `extend` must have come up to `size`."""

    def __init__(self, connection: psycopg.Connection, tenant_id: str, size: int) -> None:
        self._connection, self._tenant_id, self.size = connection, tenant_id, size
        self._tiles: dict[tuple[int, int], list[bytes]] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}

    def root(self) -> bytes:
        """Root of the whole tree."""
        return merkle.root_at(self.size, self.node)

    def node(self, level: int, index: int) -> bytes:
        """Hash of the complete subtree of `2**level` entries from entry number `index * 2**level + 1` on."""
        found = self._nodes.get((level, index))
        if found is None:
            tile_level, height = divmod(level, TILE_HEIGHT)
            number, offset = divmod(index << height, TILE)
            found = fold(self._tile(tile_level, number)[offset : offset + (1 << height)])
            self._nodes[level, index] = found
        return found

    def leaf_tiles(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Tiles of leaf hashes, complete or cut to the tree's size, in the order asked for; not kept in memory."""
        for start in range(0, len(numbers), _TILES_PER_STATEMENT):
            wanted = list(numbers[start : start + _TILES_PER_STATEMENT])
            rows = dict(fetch(
                self._connection, "select tile, hashes from platform.evidence_tile "
                "where tenant_id = $1 and level = 0 and tile = any($2)", (self._tenant_id, wanted)))
            for number in wanted:
                hashes = rows.get(number)
                width = self._width(0, number)
                yield number, (hashes[: width * HASH] if hashes else b"".join(self._tile(0, number)))

    def _width(self, level: int, number: int) -> int:
        return min(TILE, (self.size >> TILE_HEIGHT * level) - number * TILE)

    def _tile(self, level: int, number: int) -> list[bytes]:
        found = self._tiles.get((level, number))
        if found is None:
            found = self._tiles[level, number] = self._read(level, number)
        return found

    def _read(self, level: int, number: int) -> list[bytes]:
        width = self._width(level, number)
        read = partial(fetch, self._connection)
        rows = read("select tile, hashes from platform.evidence_tile where tenant_id = $1 and level = $2 and tile = $3",
                    (self._tenant_id, level, number)) if width == TILE else []
        # The right edge: its hashes are leaves, or roots of the complete tiles below.
        rows = rows or read(_source(level), (self._tenant_id, level, number, number * TILE + width))
        hashes = _split(rows[0][1]) if rows else []
        if len(hashes) != width:
            raise _incomplete(self._tenant_id, level, number)
        return hashes


def _source(level: int) -> str:
    return _ROOTS if level else _LEAVES


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[i : i + HASH] for i in range(0, len(hashes), HASH)]


def _incomplete(tenant_id: str, level: int, number: int) -> BareCountError:
    before = number << TILE_HEIGHT * (level + 1)
    return BareCountError(
        ErrorCode.EVIDENCE_BROKEN,
        f"the evidence of tenant {tenant_id} has a hole after entry {before}: tile {number} of level {level} is not "
        "whole",
        hint="run `barecount evidence verify`: it names what is missing",
    )
