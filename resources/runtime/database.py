"""Connections to the platform's PostgreSQL, and nothing else.

Three kinds, all made from one URL: `connect` (psycopg, for statements and, see `arrow_copy`, for columns in),
`connect_arrow` (ADBC, for columns out by binary COPY) and `analyst_url` (for people, as the analyst role of one
tenant). Platform connections run as the role `barecount_platform`; only migrations use the URL's own user. Statements
use PostgreSQL's `$1` placeholders everywhere, so that both drivers share them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from resources.runtime import embedded
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

PLATFORM_ROLE = "barecount_platform"
ANALYST_GROUP = "barecount_analyst"
ANALYST_PREFIX = "analyst_"
_ANALYST_PASSWORD_LIFETIME = "1 day"


@dataclass(frozen=True)
class Database:
    """The database of one project.

    Attributes:
        admin_url: libpq URL whose user may create roles and schemas; used by migrations alone.
        is_embedded: whether the server is the embedded one.
    """

    admin_url: str
    is_embedded: bool

    @classmethod
    def open(cls, settings: Settings, *, migrate: bool | None = None) -> Database:
        """Start or reach the server and make sure that its schema is the one this code needs.

        The embedded server is migrated automatically; an external one only with `migrate=True`.

        Raises:
            BareCountError: database.unavailable; database.migration when an external server is behind.
        """
        if settings.database_url:
            database = cls(settings.database_url, is_embedded=False)
        else:
            database = cls(embedded.start(settings.data_dir), is_embedded=True)
        from resources.runtime import migrations

        if database.is_embedded or migrate:
            migrations.upgrade(database.admin_url)
        else:
            migrations.require_current(database.admin_url)
        return database

    @cached_property
    def url(self) -> str:
        """URL that acts as the platform role, in UTC whatever the server's and the machine's zones are."""
        return with_option(self.admin_url, f"-crole={PLATFORM_ROLE} -ctimezone=UTC")

    def connect(self, *, autocommit: bool = False) -> psycopg.Connection:
        """A psycopg connection as the platform role, with `$1` placeholders.

        Raises:
            BareCountError: database.unavailable (retryable).
        """
        with unavailable_as_error():
            return psycopg.connect(self.url, autocommit=autocommit, cursor_factory=psycopg.RawCursor)

    def connect_arrow(self):
        """An ADBC connection as the platform role, in a transaction (not autocommit)."""
        import adbc_driver_postgresql.dbapi as adbc

        with unavailable_as_error():
            return adbc.connect(self.url)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection]:
        """One transaction on a connection of its own: committed on leaving, rolled back on any error."""
        connection = self.connect()
        try:
            with unavailable_as_error(), connection:
                yield connection
        finally:
            connection.close()

    def analyst_url(self, tenant_id: str) -> str:
        """URL that connects as the analyst of one tenant.

        The embedded server admits accounts of the machine; elsewhere the role gets a fresh password that ends after
        a day.

        Raises:
            BareCountError: declaration.unknown when the tenant has no analyst role yet.
        """
        role = ANALYST_PREFIX + tenant_id
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            if not connection.execute("select 1 from pg_roles where rolname = %s", (role,)).fetchone():
                raise BareCountError(
                    ErrorCode.DECLARATION_UNKNOWN,
                    f"tenant {tenant_id!r} has no analyst role: it is not declared, or nothing has run for it yet",
                    hint="run one of its pipelines first, or see `barecount tenants`",
                )
            if self.is_embedded:
                return _with_user(self.admin_url, role)
            password = secrets.token_urlsafe(24)
            connection.execute(
                sql.SQL("alter role {} password {} valid until {}").format(
                    sql.Identifier(role),
                    sql.Literal(password),
                    sql.Literal(_now_plus(connection, _ANALYST_PASSWORD_LIFETIME)),
                )
            )
            return _with_user(self.admin_url, role, password)


def fetch(connection: psycopg.Connection, statement: str, parameters: Sequence[Any] = ()) -> list[tuple]:
    """Run one statement with `$1` placeholders and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, tuple(parameters) or None)
        return cursor.fetchall() if cursor.description else []


def fetch_dicts(connection: psycopg.Connection, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Like `fetch`, as one dict per row."""
    with connection.cursor() as cursor:
        cursor.execute(statement, tuple(parameters) or None)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def as_json(value: Any) -> str:
    """JSON text for a `$n::text::jsonb` parameter."""
    return json.dumps(value, ensure_ascii=False, default=str)


@contextmanager
def unavailable_as_error() -> Iterator[None]:
    """Turn a lost or refused connection of any of the drivers into database.unavailable (retryable)."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
            raise
        raise lost_connection(error) from error
    except Exception as error:
        if type(error).__module__.startswith("adbc_driver_manager") and _is_connection_loss(error):
            raise lost_connection(error) from error
        raise


def lost_connection(error: Exception) -> BareCountError:
    """The envelope for a database that went away or cannot be reached."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BareCountError(
        ErrorCode.DATABASE_UNAVAILABLE,
        f"PostgreSQL is not available: {first_line}",
        hint="run the same command again once the server is back: nothing is lost and nothing happens twice",
        retryable=True,
    )


def _is_connection_loss(error: Exception) -> bool:
    state = getattr(error, "sqlstate", None) or ""
    text = str(error).lower()
    return state[:2] in {"08", "57"} or any(
        sign in text
        for sign in ("server closed the connection", "terminating connection", "no connection to the server",
                     "connection to server", "connection not open", "could not receive data", "could not send data")
    )


def with_option(url: str, option: str) -> str:
    """The URL with one more server option (`-cname=value`) at connection start."""
    separator = "&" if "?" in url else "?"
    return f"{url}{separator}options={quote(option, safe='')}"


def _with_user(url: str, user: str, password: str | None = None) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))


def _now_plus(connection: psycopg.Connection, interval: str) -> str:
    row = connection.execute("select (now() + %s::interval)::text", (interval,)).fetchone()
    assert row is not None
    return row[0]
