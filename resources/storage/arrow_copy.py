"""Arrow batches into a table by binary COPY."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator

import psycopg
import pyarrow as pa
from psycopg import sql

_PIECE_BYTES = 512 * 1024
# What the server has not read yet. With the system's own choice it waits for rows, and a load takes a sixth longer: a
# socket counts as writable once three quarters of it are empty, and then the next rows still have to be encoded.
_SOCKET_BYTES = 1024 * 1024


def append(
    connection: psycopg.Connection, schema_name: str, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """COPY batches of a schema in, in the connection's transaction. Memory is that of one batch.

    What goes wrong in making them is raised as it is, and ends the COPY.
    """
    from pgpq import ArrowToPostgresBinaryEncoder

    _widen(connection)
    encoder = ArrowToPostgresBinaryEncoder(schema)
    statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(
        sql.Identifier(schema_name, table), sql.SQL(", ").join(map(sql.Identifier, schema.names)))
    with connection.cursor() as cursor, cursor.copy(statement) as rows:
        rows.write(encoder.write_header())
        for batch in batches:
            for piece in _pieces(batch):
                rows.write(encoder.write_batch(piece))
        rows.write(encoder.finish())


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = max(1, batch.num_rows * _PIECE_BYTES // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _widen(connection: psycopg.Connection) -> None:
    """Let more bytes wait in a local connection's socket; one over TCP adapts by itself."""
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        if copy.family is socket.AF_UNIX:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
