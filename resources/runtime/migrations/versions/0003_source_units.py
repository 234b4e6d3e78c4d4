"""Units of sources point to their batches, so that copies of a file can be told apart."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0003_source_units.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
