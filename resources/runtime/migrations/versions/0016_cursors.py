"""Cursors, typed, and what was read behind them."""

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0017"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0016_cursors.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
