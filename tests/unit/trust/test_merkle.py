"""The Merkle tree agrees with RFC 6962 written down naively, and its proofs prove nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.trust import merkle
from resources.trust.verify import (
    EMPTY_ROOT,
    TILE,
    TILE_HEIGHT,
    fold,
    leaf_hash,
    tile_path,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [leaf_hash(str(number).encode()) for number in range(1_200)]


def mth(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 2.1, over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def split(count: int) -> int:
    k = 1
    while k * 2 < count:
        k *= 2
    return k


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 2.1.2."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def node(level: int, index: int) -> bytes:
    part = LEAVES[index << level : (index + 1) << level]
    assert len(part) == 1 << level, "only complete subtrees may be asked for"
    return mth(part)


sizes = st.integers(1, len(LEAVES))
pairs = st.tuples(sizes, sizes).map(sorted)


def test_hashes_are_those_of_the_rfc() -> None:
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert fold([]) == EMPTY_ROOT == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def test_the_root_of_the_certificate_transparency_test_vectors() -> None:
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [leaf_hash(bytes.fromhex(entry)) for entry in entries]
    assert fold(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert fold(leaves[:3]).hex() == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"


@pytest.mark.parametrize("size", [*range(20), 255, 256, 257, 511, 512, 513, 1_200])
def test_growing_and_folding_give_the_root_of_the_rfc(size: int) -> None:
    tree = merkle.Tree()
    for leaf in LEAVES[:size]:
        tree.append(leaf)
    assert tree.size == size
    assert tree.root() == fold(LEAVES[:size]) == merkle.root_at(size, node) == mth(LEAVES[:size])


def test_tiles_are_handed_out_once_they_are_complete() -> None:
    tiles: list[merkle.Tile] = []
    tree = merkle.Tree(tiles.append)
    count = TILE * TILE + 300
    leaves = [leaf_hash(number.to_bytes(4, "big")) for number in range(count)]
    for leaf in leaves:
        tree.append(leaf)
    assert [(tile.level, tile.number) for tile in tiles] == [*((0, n) for n in range(256)), (1, 0), (0, 256)]
    assert tiles[3].hashes == b"".join(leaves[3 * TILE : 4 * TILE])
    assert tiles[256].hashes == b"".join(tile.root for tile in tiles[:256])
    assert tree.root() == mth(leaves)


@settings(max_examples=60)
@given(size=sizes, data=st.data())
def test_inclusion_proofs_are_those_of_the_rfc_and_hold(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, node)
    assert proof == path(index, LEAVES[:size])
    assert verify_inclusion(index, size, LEAVES[index], proof, mth(LEAVES[:size]))


@settings(max_examples=60)
@given(pair=pairs)
def test_consistency_proofs_are_those_of_the_rfc_and_hold(pair: list[int]) -> None:
    first, second = pair
    proof = merkle.consistency_proof(first, second, node)
    assert proof == subproof(first, LEAVES[:second], True)
    assert verify_consistency(first, second, mth(LEAVES[:first]), mth(LEAVES[:second]), proof)


@settings(max_examples=60)
@given(size=sizes, data=st.data())
def test_a_tile_is_proven_like_a_leaf_of_the_tree_of_tiles(size: int, data: st.DataObject) -> None:
    tiles = -(-size // TILE)
    number = data.draw(st.integers(0, tiles - 1))
    proof = merkle.inclusion_proof(number, size, node, TILE_HEIGHT)
    tile = fold(LEAVES[number * TILE : min(size, (number + 1) * TILE)])
    assert verify_inclusion(number, tiles, tile, proof, mth(LEAVES[:size]))


@settings(max_examples=60)
@given(size=st.integers(2, 200), data=st.data())
def test_an_inclusion_proof_proves_no_other_leaf_place_size_or_root(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof, root = path(index, LEAVES[:size]), mth(LEAVES[:size])
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
    assert not verify_inclusion(index, size, LEAVES[other], proof, root)
    assert not verify_inclusion(other, size, LEAVES[index], proof, root)
    assert not verify_inclusion(index, size, LEAVES[index], proof, mth(LEAVES[: size - 1]))
    assert not verify_inclusion(size + index, size, LEAVES[index], proof, root)
    assert not verify_inclusion(-1, size, LEAVES[index], proof, root)
    place = data.draw(st.integers(0, len(proof)))
    assert not verify_inclusion(index, size, LEAVES[index], [*proof[:place], LEAVES[0][::-1], *proof[place:]], root)
    if proof:
        assert not verify_inclusion(index, size, LEAVES[index], proof[:-1], root)
        assert not verify_inclusion(index, size, LEAVES[index], [*proof[:-1], LEAVES[0][::-1]], root)


@settings(max_examples=60)
@given(pair=st.tuples(st.integers(1, 200), st.integers(1, 200)).filter(lambda p: p[0] != p[1]).map(sorted),
       data=st.data())
def test_a_consistency_proof_does_not_prove_a_fork(pair: list[int], data: st.DataObject) -> None:
    first, second = pair
    proof = merkle.consistency_proof(first, second, node)
    changed = data.draw(st.integers(0, first - 1))
    forked = [*LEAVES[:changed], LEAVES[-1], *LEAVES[changed + 1 : second]]
    old, new = mth(LEAVES[:first]), mth(LEAVES[:second])
    assert not verify_consistency(first, second, mth(forked[:first]), new, proof)
    assert not verify_consistency(first, second, old, mth(forked), proof)
    assert not verify_consistency(first, second, old, mth(forked), subproof(first, forked, True))
    assert not verify_consistency(second, first, new, old, proof)
    place = data.draw(st.integers(0, len(proof)))
    assert not verify_consistency(first, second, old, new, [*proof[:place], LEAVES[0][::-1], *proof[place:]])
    if proof:
        assert not verify_consistency(first, second, old, new, proof[:-1])


def test_the_empty_tree_and_the_same_tree_are_consistent_without_a_proof() -> None:
    assert merkle.consistency_proof(0, 7, node) == merkle.consistency_proof(7, 7, node) == []
    assert verify_consistency(0, 7, EMPTY_ROOT, mth(LEAVES[:7]), [])
    assert verify_consistency(7, 7, mth(LEAVES[:7]), mth(LEAVES[:7]), [])
    assert not verify_consistency(7, 7, mth(LEAVES[:7]), mth(LEAVES[1:8]), [])
    assert not verify_consistency(0, 7, LEAVES[0], mth(LEAVES[:7]), [])


@pytest.mark.parametrize(("index", "size"), [(5, 5), (-1, 5), (0, 0)])
def test_a_proof_of_a_leaf_that_is_not_there_is_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"outside a tree of {size}"):
        merkle.inclusion_proof(index, size, node)


def test_a_larger_tree_is_not_the_beginning_of_a_smaller_one() -> None:
    with pytest.raises(ValueError, match="not the beginning"):
        merkle.consistency_proof(6, 5, node)


@pytest.mark.parametrize(("number", "width", "name"), [
    (5, 256, "tile/0/005"), (273, 112, "tile/0/273.p/112"), (1_234_067, 256, "tile/0/x001/x234/067"),
    (1_000, 256, "tile/0/x001/000"),
])
def test_tiles_are_named_as_in_tlog_tiles(number: int, width: int, name: str) -> None:
    assert tile_path(number, width) == name
