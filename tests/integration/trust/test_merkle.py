"""The tree in PostgreSQL: tiles grow with the ledger, and proofs from them are those of the whole tree."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger, merkle, tiles
from resources.trust.verify import fold, leaf_hash, verify_consistency, verify_inclusion
from tests.integration.trust.conftest import Log


def leaves(log: Log) -> list[bytes]:
    return [leaf_hash(body.encode()) for body in log.bodies()]


def kept(log: Log) -> list[tuple[int, int]]:
    with log.database.connect() as connection:
        return fetch(connection, "select level, tile from platform.evidence_tile order by 1, 2")


def test_tiles_are_kept_once_they_are_complete_and_extended_step_by_step(log: Log) -> None:
    for count, expected in ((255, 0), (1, 1), (300, 2), (212, 3)):
        log.append(count)
        size = len(log.bodies())
        with log.database.transaction() as connection:
            tiles.extend(connection, "acme", size)
            tiles.extend(connection, "acme", size)
        assert kept(log) == [(0, number) for number in range(expected)]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700])
def test_roots_and_proofs_are_those_of_the_entries(log: Log, size: int) -> None:
    log.append(700)
    hashes = leaves(log)
    with log.database.transaction() as connection:
        tiles.extend(connection, "acme", 700)
        tree = tiles.StoredTree(connection, "acme", size)
        root = fold(hashes[:size])
        assert tree.root() == root
        for index in {0, size // 2, size - 1}:
            proof = merkle.inclusion_proof(index, size, tree.node)
            assert verify_inclusion(index, size, hashes[index], proof, root)
        for first in {1, size // 3 or 1, size}:
            proof = merkle.consistency_proof(first, size, tree.node)
            assert verify_consistency(first, size, fold(hashes[:first]), root, proof)
        assert b"".join(data for _, data in tree.leaf_tiles(range(-(-size // 256)))) == b"".join(hashes[:size])


def test_three_levels_of_tiles(log: Log) -> None:
    size = 66_000
    with psycopg.connect(log.database.admin_url) as connection:
        connection.execute(
            "insert into platform.evidence select 'acme', n, 'k', n::text, 't', now(), n::text, "
            "sha256('\\x00'::bytea || convert_to(n::text, 'UTF8')), '' from generate_series(1, %s) n", (size,))
    hashes = [leaf_hash(str(number).encode()) for number in range(1, size + 1)]
    with log.database.transaction() as connection:
        tiles.extend(connection, "acme", size)
        tree = tiles.StoredTree(connection, "acme", size)
        assert tree.root() == fold(hashes)
        for index in (0, 65_535, 65_536, size - 1):
            proof = merkle.inclusion_proof(index, size, tree.node)
            assert verify_inclusion(index, size, hashes[index], proof, fold(hashes))
    assert kept(log) == [*((0, number) for number in range(257)), (1, 0)]


def test_a_proof_reads_a_handful_of_tiles(log: Log) -> None:
    log.append(2_000)
    with log.database.transaction() as connection:
        tiles.extend(connection, "acme", 2_000)
        before = fetch(connection, "select pg_stat_get_xact_tuples_fetched('platform.evidence_tile'::regclass) "
                                   "+ pg_stat_get_xact_tuples_returned('platform.evidence_tile'::regclass)")[0][0]
        merkle.inclusion_proof(1_234, 2_000, tiles.StoredTree(connection, "acme", 2_000).node)
        after = fetch(connection, "select pg_stat_get_xact_tuples_fetched('platform.evidence_tile'::regclass) "
                                  "+ pg_stat_get_xact_tuples_returned('platform.evidence_tile'::regclass)")[0][0]
    assert after - before < 40


def test_a_hole_in_the_entries_is_named_instead_of_hashed_over(log: Log) -> None:
    log.append(600)
    log.tamper("delete from platform.evidence where tenant_id = 'acme' and seq = 300")
    with log.database.transaction() as connection, pytest.raises(BareCountError) as caught:
        tiles.extend(connection, "acme", 600)
    assert caught.value.code is ErrorCode.EVIDENCE_BROKEN
    assert "hole after entry 256" in caught.value.message


def test_many_entries_appended_at_once_are_those_appended_one_by_one(new_log: Callable[[], Log]) -> None:
    one, many = new_log(), new_log()
    entries = [ledger.Entry("acme", "test.happened", f"thing {n}", "token", {"n": n, "s": 'ä "✓" \\ \n'})
               for n in range(20)]
    with one.database.transaction() as connection:
        assert [ledger.append(connection, entry) for entry in entries] == list(range(1, 21))
    with many.database.transaction() as connection:
        assert ledger.append_many(connection, entries[:10]) == list(range(1, 11))
    with many.database.transaction() as connection:
        assert ledger.append_many(connection, entries[10:]) == list(range(11, 21))
    columns = "select seq, kind, subject, run_token, body::jsonb - 'at' from platform.evidence order by seq"
    with one.database.connect() as first, many.database.connect() as second:
        assert fetch(first, columns) == fetch(second, columns)
    assert many.verify().intact


def test_a_batch_may_hold_entries_of_several_tenants_and_keeps_their_order(log: Log) -> None:
    entries = [ledger.Entry(tenant, "test.happened", str(number), "token", {})
               for number, tenant in enumerate(("globex", "acme", "globex", "acme", "acme"))]
    with log.database.transaction() as connection:
        assert ledger.append_many(connection, entries) == [1, 1, 2, 2, 3]
        assert ledger.append_many(connection, []) == []
    assert log.verify().entries == 3 and log.verify(tenant="globex").entries == 2


def test_a_batch_is_appended_whole_or_not_at_all(log: Log) -> None:
    log.append(3)
    entries = [ledger.Entry("acme", "test.happened", subject, "token", {}) for subject in ("new", "thing 2")]

    def append() -> None:
        with log.database.transaction() as connection:
            ledger.append_many(connection, entries)

    with pytest.raises(psycopg.errors.UniqueViolation):
        append()
    result = log.verify()
    assert (result.intact, result.entries) == (True, 3)


def test_a_batch_for_a_tenant_takes_no_body_of_another(log: Log) -> None:
    body = ledger.canonical({"tenant": "globex", "kind": "k", "subject": "s", "run_token": "t", "at": "2026-01-01"})
    with log.database.connect() as connection, pytest.raises(psycopg.errors.CheckViolation):
        fetch(connection, "select platform.append_evidence_batch('acme', jsonb_build_array($1::text))",
              (body.decode(),))


def test_memory_does_not_grow_with_the_ledger(log: Log) -> None:
    """Entries come in pages from a cursor of the server."""
    log.append(30)
    with log.database.connect(autocommit=True) as connection:
        statements = []
        original = psycopg.RawServerCursor.fetchmany

        def fetchmany(self: psycopg.RawServerCursor, size: int = 0) -> list[tuple]:
            rows = original(self, size)
            statements.append(len(rows))
            return rows

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger, "_PAGE", 10)
            patch.setattr(psycopg.RawServerCursor, "fetchmany", fetchmany)
            assert ledger.verify(connection, "acme").intact
    assert statements == [10, 10, 10, 0]
