"""Merkle tiles, signing keys, checkpoints and where they are anchored; appending many entries at once."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0002_checkpoints.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
