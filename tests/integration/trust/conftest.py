"""Ledgers with checkpoints, and the ways of someone who owns the database and wants to change history."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from resources.runtime.database import Database, fetch
from resources.trust import checkpoints, ledger, tiles
from resources.trust.signing import KeyStore
from resources.trust.verify import Checkpoint, Key

Bodies = list[str]


@dataclass
class Log:
    """A database, the key store of its platform, and what can be done with both."""

    database: Database
    keys: KeyStore

    def append(self, count: int, tenant: str = "acme", kind: str = "test.happened") -> list[int]:
        with self.database.transaction() as connection:
            start = fetch(connection, "select seq from platform.evidence_head where tenant_id = $1", (tenant,))[0][0]
            return ledger.append_many(connection, [
                ledger.Entry(tenant, kind, f"thing {number}", "token", {"number": number})
                for number in range(start + 1, start + count + 1)])

    def sign(self, tenant: str = "acme") -> Checkpoint:
        return checkpoints.create(self.database, self.keys, tenant).checkpoint

    def key(self, tenant: str = "acme") -> Key:
        with self.database.connect() as connection:
            return checkpoints.announcements(connection, tenant)[-1].key

    def verify(
        self, *outside: Checkpoint, tenant: str = "acme", pinned: Sequence[Key] = ()
    ) -> ledger.Verification:
        witnesses = [checkpoints.Witness("a kept checkpoint", checkpoint.raw) for checkpoint in outside]
        with self.database.connect(autocommit=True) as connection:
            return checkpoints.verify(connection, tenant, witnesses, pinned)

    def problems(self, *outside: Checkpoint, tenant: str = "acme", pinned: Sequence[Key] = ()) -> set[str]:
        return {finding.problem for finding in self.verify(*outside, tenant=tenant, pinned=pinned).findings}

    def bodies(self, tenant: str = "acme") -> Bodies:
        with self.database.connect() as connection:
            return [body for (body,) in fetch(
                connection, "select body from platform.evidence where tenant_id = $1 order by seq", (tenant,))]

    def tamper(self, *statements: str) -> None:
        """As the owner of the tables, with the guards switched off."""
        with psycopg.connect(self.database.admin_url) as connection:
            connection.execute("set session_replication_role = replica")
            for statement in statements:
                connection.execute(statement)

    def rewrite(self, change: Callable[[Bodies], Bodies], *, forget: bool = False, tenant: str = "acme") -> None:
        """The whole re-hash: other entries, every hash, head and tile made anew, keys moved along.

        With `forget`, recorded checkpoints go as well, and nothing inside the database contradicts any more.
        """
        bodies = change(self.bodies(tenant))
        with psycopg.connect(self.database.admin_url, cursor_factory=psycopg.RawCursor) as connection:
            connection.execute("set session_replication_role = replica")
            connection.execute("delete from platform.evidence where tenant_id = $1", (tenant,))
            connection.execute("delete from platform.evidence_tile where tenant_id = $1", (tenant,))
            if forget:
                connection.execute("delete from platform.checkpoint where tenant_id = $1", (tenant,))
            connection.execute("update platform.evidence_head set seq = 0, chain_hash = '' where tenant_id = $1",
                               (tenant,))
            connection.execute("select platform.append_evidence_batch($1, $2::text::jsonb)",
                               (tenant, json.dumps(bodies)))
            connection.execute(
                "update platform.signing_key k set announced_seq = e.seq from platform.evidence e "
                "where e.tenant_id = $1 and k.tenant_id = $1 and e.kind = 'signing_key.announced' "
                "and e.run_token = k.key_id", (tenant,))
            connection.execute("delete from platform.signing_key where tenant_id = $1 and announced_seq > $2",
                               (tenant, len(bodies)))
            tiles.extend(connection, tenant, len(bodies))


@pytest.fixture
def new_log(new_database: Callable[[], Database], tmp_path: Path) -> Callable[[], Log]:
    """Makes ledgers with the tenants acme and globex and nothing in them."""

    def make() -> Log:
        database = Database(new_database().admin_url, is_embedded=False)  # each with memories of its own
        with database.transaction() as connection:
            for tenant in ("acme", "globex"):
                fetch(connection, "select platform.register_tenant($1, $1, 'h')", (tenant,))
        return Log(database, KeyStore.of(tmp_path, database))

    return make


@pytest.fixture
def log(new_log: Callable[[], Log]) -> Log:
    """An empty ledger."""
    return new_log()


def edit(bodies: Bodies) -> Bodies:
    return [body.replace('"number":4}', '"number":5}') for body in bodies]


def delete(bodies: Bodies) -> Bodies:
    return [*bodies[:3], *bodies[4:]]


def insert(bodies: Bodies) -> Bodies:
    return [*bodies[:3], bodies[3].replace("thing 4", "forged"), *bodies[3:]]


def reorder(bodies: Bodies) -> Bodies:
    return [*bodies[:3], bodies[4], bodies[3], *bodies[5:]]


def truncate(bodies: Bodies) -> Bodies:
    return bodies[:-1]


CHANGES = [edit, delete, insert, reorder, truncate]
