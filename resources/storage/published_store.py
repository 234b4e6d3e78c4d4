"""The published store: immutable snapshots, one current version per tenant and name, swapped atomically.

`published.snapshot__<name>` holds every version; rows are only ever added. `published.<name>` is the current version,
`published.<name>__versions` all of them with their number. Both are views that run with the reader's rights; row-level
security is forced on the tables, so an analyst sees the rows of one tenant and nothing without one.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from resources.runtime.database import ANALYST_GROUP, PLATFORM_ROLE, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import content

SCHEMA = "published"


def ensure(connection: psycopg.Connection, name: str, columns: Sequence[tuple[str, str]]) -> None:
    """Create the snapshot table and its views; `columns` are (name, PostgreSQL type), `tenant_id` among them.

    Raises:
        BareCountError: store.conflict when the stored columns differ: published contracts change with a new name
            or an added column only.
    """
    table = sql.Identifier(SCHEMA, f"snapshot__{name}")
    # Two tenants may publish a KPI for the first time at the same moment.
    fetch(connection, "select pg_advisory_xact_lock(hashtextextended($1, 0))", (f"{SCHEMA}.{name}",))
    existing = dict(
        fetch(
            connection,
            "select attname::text, format_type(atttypid, atttypmod) from pg_attribute "
            "where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attname <> 'version'",
            (f"{SCHEMA}.snapshot__{name}",),
        )
    )
    wanted = dict(columns)
    if set(existing) == set(wanted):
        return
    if missing := set(existing) - set(wanted):
        raise BareCountError(
            ErrorCode.STORE_CONFLICT,
            f"published {name} has columns {', '.join(sorted(missing))} that its contract no longer declares",
            hint="consumers rely on them: publish the change under a new KPI name",
        )
    if existing:
        for column in wanted:
            if column not in existing:
                _run(connection, "alter table {} add column {} {}", table, sql.Identifier(column),
                     sql.SQL(wanted[column]))
    else:
        definitions = sql.SQL(", ").join(
            sql.SQL("{} {}{}").format(
                sql.Identifier(column), sql.SQL(kind), sql.SQL(" not null" if column == "tenant_id" else ""))
            for column, kind in columns
        )
        _run(connection, "create table {} (version int not null, {})", table, definitions)
        _run(connection, "create index on {} (tenant_id, version)", table)
        _run(connection, "alter table {} enable row level security", table)
        _run(connection, "alter table {} force row level security", table)
        _run(connection, "create policy platform_all on {} to {} using (true) with check (true)", table,
             sql.Identifier(PLATFORM_ROLE))
        _run(connection, "create policy own_tenant on {} for select to {} "
             "using (tenant_id = published.session_tenant())", table, sql.Identifier(ANALYST_GROUP))
        _run(connection, "create trigger append_only before update or delete on {} "
             "for each row execute function platform.refuse_change()", table)
        _run(connection, "create trigger append_only_truncate before truncate on {} "
             "for each statement execute function platform.refuse_change()", table)
        _run(connection, "grant select on {} to {}", table, sql.Identifier(ANALYST_GROUP))
    listed = sql.SQL(", ").join(sql.SQL("s.{}").format(sql.Identifier(column)) for column in wanted)
    current, versions = sql.Identifier(SCHEMA, name), sql.Identifier(SCHEMA, f"{name}__versions")
    _run(connection, "create or replace view {} with (security_invoker = true, security_barrier = true) as "
         "select {} from {} s join published.current_version c "
         "on c.tenant_id = s.tenant_id and c.version = s.version and c.name = {}",
         current, listed, table, sql.Literal(name))
    _run(connection, "create or replace view {} with (security_invoker = true, security_barrier = true) as "
         "select s.version, {} from {} s", versions, listed, table)
    for view in (current, versions):
        _run(connection, "grant select on {} to {}", view, sql.Identifier(ANALYST_GROUP))


def write_snapshot(
    connection: psycopg.Connection, name: str, version: int, tenant_id: str, columns: Sequence[str],
    source: sql.Identifier,
) -> None:
    """Add a version made of a tenant's rows of `source`, in the caller's transaction."""
    listed = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("insert into {} (version, {}) select $1::int, {} from {} where tenant_id = $2").format(
        sql.Identifier(SCHEMA, f"snapshot__{name}"), listed, listed, source
    )
    fetch(connection, statement.as_string(connection), (version, tenant_id))


def snapshot_hash(
    connection: psycopg.Connection, name: str, tenant_id: str, version: int, columns: Sequence[str]
) -> tuple[str, int]:
    """(content hash, rows) of a stored version."""
    return content.hash_of(
        connection, sql.Identifier(SCHEMA, f"snapshot__{name}"), sql.SQL("tenant_id = $1 and version = $2::int"),
        (tenant_id, version), columns,
    )


def make_current(connection: psycopg.Connection, name: str, tenant_id: str, version: int) -> None:
    """Point readers to a version, in the caller's transaction."""
    fetch(
        connection,
        "insert into published.current_version (tenant_id, name, version) values ($1, $2, $3::int) "
        "on conflict (tenant_id, name) do update set version = excluded.version",
        (tenant_id, name, version),
    )


def _run(connection: psycopg.Connection, template: str, *parts: sql.Composable) -> None:
    fetch(connection, sql.SQL(template).format(*parts).as_string(connection))
