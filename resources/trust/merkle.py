"""RFC 6962 Merkle trees: building one leaf by leaf, and making inclusion and consistency proofs.

Verifying is in `verify.py`, which also travels alone. Nothing here knows where hashes are kept: proofs are made from a
function `node(level, index)` that answers the hash of a complete subtree, `2**level` leaves from leaf
`index * 2**level` on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from resources.trust.verify import TILE, fold, node_hash

Node = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Tile:
    """A complete tile (C2SP tlog-tiles): 256 hashes of one tile level, and the root of the subtree they make."""

    level: int
    number: int
    hashes: bytes
    root: bytes


class Tree:
    """A tree that grows leaf by leaf. Keeps only its right edge: at most 255 hashes per tile level."""

    def __init__(self, on_tile: Callable[[Tile], None] | None = None) -> None:
        self.size = 0
        self._on_tile = on_tile
        self._edge: list[list[bytes]] = [[]]

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash; hands each tile that it completes to `on_tile`, lower levels first."""
        self.size += 1
        hashes = self._edge[0]
        hashes.append(leaf)
        if len(hashes) == TILE:
            self._complete(0)

    def root(self) -> bytes:
        """Root of the tree as it is now."""
        rest: list[bytes] = []  # root of everything below the level at hand: the last, incomplete subtree
        for hashes in self._edge:
            rest = [fold([*hashes, *rest])] if hashes or rest else []
        return fold(rest)

    def _complete(self, level: int) -> None:
        hashes, self._edge[level] = self._edge[level], []
        root = fold(hashes)
        if self._on_tile is not None:
            self._on_tile(Tile(level, (self.size >> 8 * (level + 1)) - 1, b"".join(hashes), root))
        if level + 1 == len(self._edge):
            self._edge.append([])
        self._edge[level + 1].append(root)
        if len(self._edge[level + 1]) == TILE:
            self._complete(level + 1)


def root_at(size: int, node: Node) -> bytes:
    """Root of the tree of the first `size` leaves."""
    return _subtree(0, size, node) if size else fold(())


def inclusion_proof(index: int, size: int, node: Node, height: int = 0) -> list[bytes]:
    """Inclusion proof of RFC 6962 2.1.1, from the leaf's sibling upwards.

    Args:
        index: number of the leaf, from 0; with `height`, number of the subtree of `2**height` leaves (the last one of
            the tree may be incomplete), whose root the proof then begins at.

    Raises:
        ValueError: there is no such leaf in a tree of `size`.
    """
    start = index << height
    if not 0 <= start < size:
        raise ValueError(f"leaf {start} is outside a tree of {size}")
    proof, low, high = [], 0, size
    while high - low > 1 << height:
        middle = low + _split(high - low)
        if start < middle:
            proof.append(_subtree(middle, high, node))
            high = middle
        else:
            proof.append(_subtree(low, middle, node))
            low = middle
    return proof[::-1]


def consistency_proof(first: int, second: int, node: Node) -> list[bytes]:
    """Proof of RFC 6962 2.1.2 that the tree of `second` leaves begins with the tree of `first` leaves.

    Raises:
        ValueError: `first` is greater than `second`.
    """
    if not 0 <= first <= second:
        raise ValueError(f"a tree of {first} is not the beginning of a tree of {second}")
    if first in (0, second):
        return []
    proof, low, high, known = [], 0, second, True
    while first != high:
        middle = low + _split(high - low)
        if first <= middle:
            proof.append(_subtree(middle, high, node))
            high = middle
        else:
            proof.append(_subtree(low, middle, node))
            low, known = middle, False
    if not known:  # the verifier knows the first root, and no other subtree of it
        proof.append(_subtree(low, high, node))
    return proof[::-1]


def _subtree(low: int, high: int, node: Node) -> bytes:
    """Hash over leaves low..high-1, where low is a multiple of the greatest complete subtree in it."""
    count = high - low
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return node(level, low >> level)
    middle = low + _split(count)
    return node_hash(_subtree(low, middle, node), _subtree(middle, high, node))


def _split(count: int) -> int:
    """The greatest power of two below `count` (> 1)."""
    return 1 << (count - 1).bit_length() - 1
