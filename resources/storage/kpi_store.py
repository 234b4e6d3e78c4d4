"""The KPI store: series by tenant, grain, period and dimensions, as the KPI build left them."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from resources.storage import content

SCHEMA = "kpi"
EVERY = sql.SQL("tenant_id = $1")
PUBLISHABLE = sql.SQL("tenant_id = $1 and value is not null")


def table(kpi: str) -> sql.Identifier:
    return sql.Identifier(SCHEMA, kpi)


def series_hash(
    connection: psycopg.Connection, kpi: str, tenant_id: str, columns: Sequence[str], *, with_values: bool = False
) -> tuple[str, int]:
    """(content hash, rows) of a tenant's series; `with_values`: of its rows that have a value."""
    return content.hash_of(connection, table(kpi), PUBLISHABLE if with_values else EVERY, (tenant_id,), columns)
