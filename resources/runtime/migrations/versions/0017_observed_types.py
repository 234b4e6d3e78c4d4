"""Types that a unit says its fields have, on record with its batch."""

from pathlib import Path

from alembic import op

revision = "0017"
down_revision = "0019"


def upgrade() -> None:
    script = (Path(__file__).parents[1] / "sql" / "0017_observed_types.sql").read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(script)  # many statements: the simple query protocol
