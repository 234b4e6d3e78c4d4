"""Quarantine life, replays, back-fills, retention."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0009_quarantine.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
