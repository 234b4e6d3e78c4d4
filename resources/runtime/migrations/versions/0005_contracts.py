"""Contract registry: datasets, immutable versions, subscriptions."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0005_contracts.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
