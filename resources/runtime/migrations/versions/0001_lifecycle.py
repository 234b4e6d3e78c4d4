"""The lifecycle: tenants, runs, raw batches, quarantine, gates, publications, evidence, roles."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0001_lifecycle.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
