"""What was published under an older contract version stays readable after a newer one replaced it."""

from __future__ import annotations

from psycopg import sql

from resources.runtime.database import Database, fetch
from resources.storage import published_store

OLD = [("tenant_id", "text"), ("period", "text"), ("value", "numeric")]
NEW = [*OLD, ("channel", "text")]


def test_snapshots_of_both_versions_are_read_side_by_side(database: Database) -> None:
    with database.transaction() as connection:
        fetch(connection, "select platform.register_tenant('acme', 'Acme', 'hash')")
        fetch(connection, "create table kpi.turnover (tenant_id text, period text, value numeric, channel text)")
        fetch(connection, "insert into kpi.turnover values ('acme', '2026-03', 7, 'shop')")
        for version, columns in ((1, OLD), (2, NEW)):
            published_store.ensure(connection, "turnover", columns)
            published_store.write_snapshot(connection, "turnover", version, "acme", [name for name, _ in columns],
                                           sql.Identifier("kpi", "turnover"))
    with database.connect(autocommit=True) as connection:
        rows = fetch(connection, "select version, period, value, channel from published.turnover__versions order by 1")
    assert rows == [(1, "2026-03", 7, None), (2, "2026-03", 7, "shop")]
