"""The evidence ledger: every kind of tampering, done straight in SQL by the owner, is found and named."""

from __future__ import annotations

import hashlib
import json

import psycopg
import pytest

from resources.runtime.database import Database, fetch
from resources.trust import ledger


@pytest.fixture
def chain(database: Database) -> Database:
    """A database with ten entries of tenant acme and three of globex."""
    with database.transaction() as connection:
        for tenant, count in (("acme", 10), ("globex", 3)):
            fetch(connection, "select platform.register_tenant($1, $1, 'h')", (tenant,))
            for number in range(1, count + 1):
                entry = ledger.Entry(tenant, "test.happened", f"thing {number}", "token", {"number": number})
                assert ledger.append(connection, entry) == number
    return database


def tamper(database: Database, *statements: str) -> None:
    """As the owner of the tables, with the guards switched off."""
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("set session_replication_role = replica")
        for statement in statements:
            connection.execute(statement)


def verify(database: Database, tenant: str = "acme") -> ledger.Verification:
    with database.connect(autocommit=True) as connection:
        return ledger.verify(connection, tenant)


def test_an_untouched_chain_is_intact(chain: Database) -> None:
    result = verify(chain)
    assert result.intact
    assert result.entries == 10


def test_the_hashes_follow_the_published_format(chain: Database) -> None:
    link = b""
    with chain.connect() as connection:
        for body, leaf, stored in fetch(
            connection, "select body, leaf_hash, chain_hash from platform.evidence where tenant_id='acme' order by seq"
        ):
            assert ledger.canonical(json.loads(body)).decode() == body
            assert hashlib.sha256(b"\x00" + body.encode()).digest() == leaf
            link = hashlib.sha256(link + leaf).digest()
            assert link == stored
    assert verify(chain).head == link.hex()


@pytest.mark.parametrize(
    ("statements", "seq", "problem"),
    [
        (["update platform.evidence set body = replace(body, '\"number\":4', '\"number\":5') "
          "where tenant_id='acme' and seq=4"], 4, "edited"),
        (["update platform.evidence set kind = 'other' where tenant_id='acme' and seq=4"], 4, "edited"),
        (["update platform.evidence set occurred_at = occurred_at + interval '1 s' where tenant_id='acme' and seq=4"],
         4, "edited"),
        (["update platform.evidence set run_token = 'other' where tenant_id='acme' and seq=4"], 4, "edited"),
        (["delete from platform.evidence where tenant_id='acme' and seq=4"], 4, "deleted"),
        (["delete from platform.evidence where tenant_id='acme' and seq=1"], 1, "deleted"),
        (["delete from platform.evidence where tenant_id='acme' and seq=10"], 10, "deleted"),
        (["delete from platform.evidence where tenant_id='acme'"], 1, "deleted"),
        (["update platform.evidence set seq = seq + 1000 where tenant_id='acme' and seq > 4",
          "update platform.evidence set seq = seq - 999 where tenant_id='acme' and seq > 1000",
          "insert into platform.evidence select tenant_id, 5, kind, 'forged', run_token, occurred_at, "
          "replace(body, 'thing 4', 'forged'), sha256('\\x00'::bytea || convert_to(replace(body, 'thing 4', 'forged'), "
          "'UTF8')), chain_hash from platform.evidence where tenant_id='acme' and seq=4"], 5, "broken chain"),
        (["update platform.evidence set seq = 999 where tenant_id='acme' and seq=4",
          "update platform.evidence set seq = 4 where tenant_id='acme' and seq=5",
          "update platform.evidence set seq = 5 where tenant_id='acme' and seq=999"], 4, "broken chain"),
        (["insert into platform.evidence select tenant_id, 11, kind, 'forged', run_token, occurred_at, "
          "replace(body, 'thing 10', 'forged'), sha256('\\x00'::bytea || convert_to(replace(body, 'thing 10', "
          "'forged'), 'UTF8')), chain_hash from platform.evidence where tenant_id='acme' and seq=10"],
         11, "broken chain"),
        (["update platform.evidence_head set seq = 9 where tenant_id='acme'"], 10, "inserted"),
        (["delete from platform.evidence_head where tenant_id='acme'"], 0, "deleted"),
    ],
)
def test_tampering_is_found_and_the_entry_named(
    chain: Database, statements: list[str], seq: int, problem: str
) -> None:
    tamper(chain, *statements)
    findings = verify(chain).findings
    assert (seq, problem) in {(finding.seq, finding.problem) for finding in findings}, findings
    assert verify(chain, "globex").intact


def test_a_moved_entry_of_another_tenant_is_found(chain: Database) -> None:
    tamper(chain, "update platform.evidence set tenant_id='globex', seq=4 where tenant_id='acme' and seq=10")
    assert not verify(chain, "acme").intact
    assert not verify(chain, "globex").intact


def test_state_whose_evidence_was_replaced_is_found(chain: Database) -> None:
    tamper(
        chain,
        "insert into platform.stage_run (tenant_id, pipeline, stage, run_token, receipt, evidence_seq) "
        "values ('acme', 'p', 'publish', 'token', '{}', 3)",
    )
    assert [finding.problem for finding in verify(chain).findings] == ["evidence missing"]


@pytest.mark.parametrize(
    "statement",
    [
        "update platform.evidence set kind = 'x'",
        "delete from platform.evidence",
        "truncate platform.evidence",
        "insert into platform.evidence select * from platform.evidence",
        "update platform.evidence_head set seq = 0",
        "alter table platform.evidence disable trigger all",
        "drop table platform.evidence",
    ],
)
def test_the_platform_role_can_only_append(chain: Database, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), chain.connect() as connection:
        connection.execute(statement)


@pytest.mark.parametrize("statement", ["update platform.evidence set kind='x'", "delete from platform.evidence",
                                       "truncate platform.evidence cascade"])
def test_even_the_owner_meets_a_guard_first(chain: Database, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), psycopg.connect(chain.admin_url) as connection:
        connection.execute(statement)


def test_a_rolled_back_change_leaves_no_evidence(chain: Database) -> None:
    def failing() -> None:
        with chain.transaction() as connection:
            ledger.append(connection, ledger.Entry("acme", "test.happened", "thing 11", "token", {}))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    result = verify(chain)
    assert (result.intact, result.entries) == (True, 10)
