"""Batches judged again under later contract versions."""

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0013"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0019_judgements.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
