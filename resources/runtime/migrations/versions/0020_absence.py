"""Complete deliveries replace the ones before them."""

from pathlib import Path

from alembic import op

revision = "0020"
down_revision = "0014"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0020_absence.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
