"""The platform schema under Alembic. One numbered `.sql` file per version, run by a thin revision beside it.

Alembic is imported only when there is something to apply: comparing the stamped version with the chain of files
costs one query.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import psycopg

from resources.runtime.errors import BareCountError, ErrorCode

_HERE = Path(__file__).parent
_LOCK_KEY = 7_251_108_311  # any fixed number: two commands must not migrate at once


@lru_cache(maxsize=1)
def versions() -> tuple[str, ...]:
    """Every version, in the order in which they follow each other, which need not be that of their numbers."""
    follows = {}
    for path in (_HERE / "versions").glob("*.py"):
        own, before = (re.search(rf"^{name} = (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                       for name in ("revision", "down_revision"))
        assert own is not None and before is not None, path
        follows[before[1].strip('"')] = own[1].strip('"')
    chain = [follows["None"]]
    while chain[-1] in follows:
        chain.append(follows[chain[-1]])
    return tuple(chain)


def head() -> str:
    """Newest version."""
    return versions()[-1]


def current(connection: psycopg.Connection) -> str | None:
    """Version the database is stamped with, None for a database without the platform schema."""
    if connection.execute("select to_regclass('platform.alembic_version')").fetchone() == (None,):
        return None
    row = connection.execute("select version_num from platform.alembic_version").fetchone()
    return row[0] if row else None


def require_current(admin_url: str) -> None:
    """Raise database.migration unless the database is at the newest version."""
    with _connect(admin_url) as connection:
        found = current(connection)
    if found != head():
        raise BareCountError(
            ErrorCode.DATABASE_MIGRATION,
            f"the platform schema is at version {found or 'none'}, this software needs {head()}",
            hint="run `barecount migrate`",
        )


def upgrade(admin_url: str) -> bool:
    """Bring the database to the newest version; True when something was applied.

    Raises:
        BareCountError: database.unavailable, database.migration (a newer schema than this software knows, or a
            user who may not create roles).
    """
    with _connect(admin_url) as connection:
        found = current(connection)
        if found == head():
            return False
        if found is not None and found not in versions():
            raise BareCountError(
                ErrorCode.DATABASE_MIGRATION,
                f"the platform schema is at version {found}, newer than this software's {head()}",
                hint="upgrade the software",
            )
        connection.execute("select pg_advisory_lock(%s)", (_LOCK_KEY,))
        if current(connection) == head():
            return False
        _apply(admin_url)
    return True


def _apply(admin_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.attributes["url"] = admin_url
    try:
        command.upgrade(config, "head")
    except Exception as error:
        cause = getattr(error, "orig", error)
        raise BareCountError(
            ErrorCode.DATABASE_MIGRATION,
            f"the platform schema could not be migrated: {str(cause).strip().splitlines()[0]}",
            hint="the URL's user needs CREATEROLE and CREATE on the database",
        ) from error


def _connect(admin_url: str) -> psycopg.Connection:
    from resources.runtime.database import unavailable_as_error

    with unavailable_as_error():
        return psycopg.connect(admin_url, autocommit=True)
