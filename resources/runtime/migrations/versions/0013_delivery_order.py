"""The order of deliveries."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0013_delivery_order.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
