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
from resources.storage import content, model_tables

SCHEMA = "published"


def ensure(connection: psycopg.Connection, name: str, columns: Sequence[tuple[str, str]]) -> None:
    """Create the snapshot table and its views; `columns` are (name, PostgreSQL type), `tenant_id` among them.

    A column that is not declared any more stays in the table and in `<name>__versions`, for the versions that have it;
    `<name>` shows the declared columns, and others as long as a current version has values in them: that of a tenant
    for whom the new contract has published nothing yet.

    Raises:
        BareCountError: store.conflict when a column is declared with another type than it was published with, and
            when something of a consumer's own needs a column of the view that is to go.
    """
    table = sql.Identifier(SCHEMA, f"snapshot__{name}")
    # Two tenants may publish a KPI for the first time at the same moment.
    fetch(connection, "select pg_advisory_xact_lock(hashtextextended($1, 0))", (f"{SCHEMA}.{name}",))
    existing = _columns(connection, f"snapshot__{name}")
    existing.pop("version", None)
    for column, kind in columns:
        if column in existing and existing[column] != model_tables.spelled(kind):
            raise BareCountError(
                ErrorCode.STORE_CONFLICT,
                f"published {name} has the column {column} as {existing[column]}, its contract declares {kind}",
                hint="consumers rely on it: publish the change under another column's or KPI's name")
    if not existing:
        _create(connection, table, columns)
    for column, kind in columns:
        if existing and column not in existing:
            _run(connection, "alter table {} add column {} {}", table, sql.Identifier(column), sql.SQL(kind))
    declared = [column for column, _ in columns]
    gone = [column for column in existing if column not in declared]
    needed = [column for column in gone if _is_current(connection, name, column)]
    _show(connection, name, _CURRENT_VIEW, [*declared, *needed])
    _show(connection, f"{name}__versions", _VERSIONS_VIEW, ["version", *declared, *gone], of=name)


def _create(connection: psycopg.Connection, table: sql.Identifier, columns: Sequence[tuple[str, str]]) -> None:
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


def _show(
    connection: psycopg.Connection, view: str, template: str, columns: Sequence[str], of: str | None = None
) -> None:
    """Let a view have these columns; nothing is done where it has them.

    PostgreSQL replaces a view that gets more columns at its end; any other is dropped and made again.
    """
    name = of or view
    shown = list(_columns(connection, view))
    if shown == list(columns):
        return
    relation = sql.Identifier(SCHEMA, view)
    if shown != list(columns)[: len(shown)]:
        try:
            with connection.transaction():
                _run(connection, "drop view {}", relation)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise BareCountError(
                ErrorCode.STORE_CONFLICT,
                f"the columns of published.{view} become {', '.join(columns)}, but something else is made of those it "
                f"has, {', '.join(shown)}: {error.diag.message_detail}",
                hint="drop or change what depends on the view, then run again") from error
    listed = sql.SQL(", ").join(sql.SQL("s.{}").format(sql.Identifier(column)) for column in columns)
    _run(connection, template, relation, listed, sql.Identifier(SCHEMA, f"snapshot__{name}"), sql.Literal(name))
    _run(connection, "grant select on {} to {}", relation, sql.Identifier(ANALYST_GROUP))


def _is_current(connection: psycopg.Connection, name: str, column: str) -> bool:
    """Whether some tenant's current version has a value in a column."""
    statement = sql.SQL(
        "select exists (select from {} s join published.current_version c "
        "on c.tenant_id = s.tenant_id and c.version = s.version and c.name = $1 where s.{} is not null)"
    ).format(sql.Identifier(SCHEMA, f"snapshot__{name}"), sql.Identifier(column))
    return fetch(connection, statement.as_string(connection), (name,))[0][0]


def _columns(connection: psycopg.Connection, relation: str) -> dict[str, str]:
    """Type by name of the columns of a table or view of this store, in order; empty when there is none."""
    return dict(fetch(connection, _COLUMNS, (f"{SCHEMA}.{relation}",)))


def write_snapshot(
    connection: psycopg.Connection, name: str, version: int, tenant_id: str, columns: Sequence[str],
    source: sql.Identifier, *, with_values: bool = False,
) -> None:
    """Add a version made of a tenant's rows of `source` (those with a value), in the caller's transaction."""
    listed = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("insert into {} (version, {}) select $1::int, {} from {} where tenant_id = $2 {}").format(
        sql.Identifier(SCHEMA, f"snapshot__{name}"), listed, listed, source,
        sql.SQL("and value is not null" if with_values else ""),
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


_COLUMNS = """
select attname::text, format_type(atttypid, atttypmod) from pg_attribute
where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
order by attnum
"""
_CURRENT_VIEW = """
create or replace view {0} with (security_invoker = true, security_barrier = true) as
select {1} from {2} s
join published.current_version c on c.tenant_id = s.tenant_id and c.version = s.version and c.name = {3}
"""
_VERSIONS_VIEW = """
create or replace view {0} with (security_invoker = true, security_barrier = true) as select {1} from {2} s
"""
