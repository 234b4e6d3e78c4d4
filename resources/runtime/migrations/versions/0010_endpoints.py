"""Endpoints, deliveries, receipts, DLQ."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0010_endpoints.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
