"""Alembic environment: online only, the URL comes from the caller, the version table lives in `platform`."""

from alembic import context
from sqlalchemy import create_engine, pool

_PREFIX = "postgresql+psycopg://"
_url = context.config.attributes["url"].replace("postgresql://", _PREFIX, 1).replace("postgres://", _PREFIX, 1)

with create_engine(_url, poolclass=pool.NullPool).connect() as connection:
    connection.exec_driver_sql("create schema if not exists platform")
    connection.commit()
    context.configure(connection=connection, version_table_schema="platform", transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
