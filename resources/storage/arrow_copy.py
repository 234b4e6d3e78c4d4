"""Arrow batches into a table by binary COPY."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

# The driver encodes a record batch, then sends it whole. One that fits into the buffer of the socket leaves it free to
# encode the next while the server reads; beyond that the two take turns, for half as long again.
_PIECE_BYTES = 32 * 1024


def append(cursor: Any, schema_name: str, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """COPY batches of a schema in, in the cursor's transaction. Memory is that of one batch.

    What goes wrong in making them is raised as it is: the driver would wrap its text in another.
    """
    failures: list[BaseException] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                yield from _pieces(batch)
        except BaseException as error:
            failures.append(error)
            raise

    try:
        reader = pa.RecordBatchReader.from_batches(schema, watched())
        cursor.adbc_ingest(table, reader, mode="append", db_schema_name=schema_name)
    except Exception as error:
        if failures and not isinstance(failures[0], GeneratorExit):  # that one only says that the driver gave up
            raise failures[0] from error
        raise


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = max(1, batch.num_rows * _PIECE_BYTES // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)
