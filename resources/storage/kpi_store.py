"""The KPI store: series by tenant, grain, period and dimensions, as the KPI build left them."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from resources.storage import content

SCHEMA = "kpi"


def table(kpi: str) -> sql.Identifier:
    return sql.Identifier(SCHEMA, kpi)


def series_hash(
    connection: psycopg.Connection, kpi: str, tenant_id: str, columns: Sequence[str]
) -> tuple[str, int]:
    """(content hash, rows) of a tenant's series."""
    return content.hash_of(connection, table(kpi), sql.SQL("tenant_id = $1"), (tenant_id,), columns)
