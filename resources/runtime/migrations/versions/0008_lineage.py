"""Lineage graph, OpenLineage outbox and obligations."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0008_lineage.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
