"""Definitions of GDPs and KPIs, by version."""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0016"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0014_definitions.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
