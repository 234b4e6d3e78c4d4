"""Reading ahead: while one unit is written and committed, the next is already opened and parsed.

A day's file is small: it spends as long in the database and the raw store as in the parser, and each would wait for
the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise

from barecount_assets.stages.ingestion.records import (
    Connector,
    Cursor,
    ExtractorSchema,
    ObservedSchema,
    ParsedBatch,
    Unit,
    Window,
)


@dataclass(frozen=True)
class _Begun:
    observed: ObservedSchema
    first: list[ParsedBatch]
    rest: Iterator[ParsedBatch]


class ReadAhead:
    """A connector over another one: who reads a unit lets a thread begin the unit after it, up to its first batch.

    Only of units whose content is fixed: what answers over a network is asked for one thing at a time. Nothing is begun
    before a unit is read, so nothing is read where all is known. What was begun and is not asked for is dropped; an
    error of it is raised to who asks for that unit, and to nobody else.
    """

    def __init__(self, connector: Connector, units: Sequence[Unit]) -> None:
        self._connector = connector
        self._following = {unit: after for unit, after in pairwise(units) if after.sha256 is not None}
        self._pool = ThreadPoolExecutor(1, "ingestion-ahead")
        self._ahead: tuple[Unit, Future[_Begun]] | None = None

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def discover(self, window: Window, cursor: Cursor | None) -> list[Unit]:
        """See `Connector`."""
        return self._connector.discover(window, cursor)

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        """See `Connector`."""
        begun = self._begun(unit)
        return self._connector.observed_schema(unit) if begun is None else begun.observed

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        """See `Connector`; begins the next unit."""
        begun = self._begun(unit)
        following = self._following.get(unit)
        self._ahead = following and (following, self._pool.submit(self._begin, following, schema))
        return self._connector.read(unit, schema) if begun is None else chain(begun.first, begun.rest)

    def _begun(self, unit: Unit) -> _Begun | None:
        return self._ahead[1].result() if self._ahead is not None and self._ahead[0] == unit else None

    def _begin(self, unit: Unit, schema: ExtractorSchema) -> _Begun:
        observed = self._connector.observed_schema(unit)
        batches = self._connector.read(unit, schema.named_as(observed.names))
        return _Begun(observed, list(islice(batches, 1)), batches)
