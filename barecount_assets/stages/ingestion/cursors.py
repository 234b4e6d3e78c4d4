"""Cursors of incremental sources: where reading goes on, and which of the records read again are new.

A slice begins where the last one ended, that value included, less the declared overlap; records without a cursor value
are in every slice. So nothing is missed that came later with a value already read, and most of a slice may have been
read before. `NewRecords` stands between the connector and the landing and lets through what is new: of every cursor
value it compares the records that are there now with those of its last reading, as multisets of fingerprints. A record
that is there twice and was there once lands once more; one that went from A to B and back to A lands three times.

Fingerprints are kept in `platform.cursor_mark`, a chunk per batch. Of a chunk it is known between which cursor values
it lies, so that a reading looks at those near it; memory is that of a batch, a chunk, and the records of one value.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa

from barecount_assets.stages.ingestion.fingerprints import DIGEST, Fingerprints, Span
from barecount_assets.stages.ingestion.records import (
    ROW_NUMBER,
    ChangedInReading,
    Connector,
    Cursor,
    ExtractorSchema,
    ObservedSchema,
    ParsedBatch,
    Unit,
    Window,
)
from resources.runners.stage import run_token
from resources.runtime.database import Database, as_json, fetch, unavailable_as_error
from resources.trust import ledger

_INTEGERS = frozenset({"int", "int2", "int4", "int8"})  # kinds whose values are numbers in JSON
_CHUNK_RECORDS = 128 * 1024
_SPILL_BYTES = 8 << 20


@dataclass(frozen=True)
class CursorKey:
    """Whose cursor it is."""

    tenant_id: str
    pipeline: str
    source: str

    @property
    def parameters(self) -> tuple[str, str, str]:
        return self.tenant_id, self.pipeline, self.source


def load(connection: psycopg.Connection, key: CursorKey) -> Cursor | None:
    """The stored cursor; None before the first reading."""
    rows = fetch(connection, _LOAD, key.parameters)
    if not rows:
        return None
    text, state = rows[0]
    if state is None:
        return Cursor(text)
    value = state["value"]
    return Cursor(None if value is None else str(value), state["kind"], state["reading"], state["memory"])


def store(connection: psycopg.Connection, key: CursorKey, cursor: Cursor, evidence_seq: int | None) -> None:
    """Keep a cursor; without evidence of its own it has that of its last move."""
    as_before = cursor.kind is None and cursor.value is not None and not cursor.memory
    state = None if as_before else as_json(to_json(cursor))
    fetch(connection, _STORE, (*key.parameters, cursor.value, state, evidence_seq))


def to_json(cursor: Cursor) -> dict[str, Any]:
    """A cursor as it is stored: integers are numbers, other values texts of their kind."""
    value = int(cursor.value) if cursor.value is not None and cursor.kind in _INTEGERS else cursor.value
    return {"kind": cursor.kind, "value": value, "reading": cursor.reading, "memory": dict(cursor.memory)}


@dataclass
class _Pending:
    """The records of the cursor value that may go on in the next batch."""

    value: int
    span: Span
    records: int = 0
    matched: int = 0
    expected: int = 0
    digests: list[np.ndarray] = field(default_factory=list)
    counted: tuple[np.ndarray, np.ndarray] = (np.empty(0, DIGEST), np.empty(0, np.int64))

    @property
    def changed(self) -> bool:
        return not self.records == self.matched == self.expected


class NewRecords:
    """A connector over an incremental one that leaves out the records that were read before and are unchanged.

    A context: it holds a connection of its own for what was read before, as the landing's is busy while it reads.
    """

    def __init__(self, connector: Connector, database: Database, key: CursorKey, cursor: Cursor | None) -> None:
        self._connector, self._database, self._key = connector, database, key
        self._before = cursor
        self._stack = ExitStack()
        self._memory: psycopg.Connection | None = None
        self._spill = tempfile.SpooledTemporaryFile(_SPILL_BYTES)
        self._chunks = 0
        self._units: dict[str, Unit] = {}
        self._begun: dict[str, tuple[ParsedBatch, Generator[ParsedBatch, None, None]]] = {}
        self._pending: _Pending | None = None
        self._idle: Unit | None = None
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> NewRecords:
        self._stack.enter_context(self._spill)
        return self

    def __exit__(self, *error: object) -> None:
        for _, rest in self._begun.values():
            rest.close()
        self._stack.close()

    # A connector ---------------------------------------------------------------------------------------------

    def discover(self, window: Window, cursor: Cursor | None) -> list[Unit]:
        """See `Connector`."""
        return self._connector.discover(window, cursor)

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        """See `Connector`."""
        return self._connector.observed_schema(unit)

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        """See `Connector`; a slice's batches as far as they are new."""
        if unit.slice is None:
            return self._connector.read(unit, schema)
        if unit.source_id not in self._begun:
            return self._fresh(unit, schema)
        first, rest = self._begun.pop(unit.source_id)
        return chain([first], rest)

    # Slices --------------------------------------------------------------------------------------------------

    def begin(self, units: Sequence[Unit], schema: ExtractorSchema) -> list[Unit]:
        """Read each slice up to its first new record. Returns the units without those that hold nothing new."""
        going_on = []
        for unit in units:
            if unit.slice is None:
                going_on.append(unit)
                continue
            batches = self._fresh(unit, schema)
            try:
                first = next(batches, None)
            except ChangedInReading:  # who lands it reads it again
                going_on.append(unit)
                continue
            if first is None:
                self._idle = unit
            else:
                self._begun[unit.source_id] = (first, batches)
                going_on.append(unit)
        self._units = {unit.source_id: unit for unit in going_on if unit.slice is not None}
        return going_on

    def landed(self, connection: psycopg.Connection, batch: dict[str, Any]) -> None:
        """Store cursor and fingerprints with the slice's batch, in its transaction."""
        unit = self._units.pop(batch["source_id"], None)
        if unit is not None:  # others land again from the raw store
            self._store(connection, unit, batch["evidence_seq"], landed=True)

    def finish(self, connection: psycopg.Connection) -> None:
        """Store what a reading that found nothing new has to say."""
        if self._idle is None:
            return
        unit, before = self._idle, self._before
        assert unit.slice is not None
        cursor = unit.slice.cursor
        with connection.transaction():
            seq = None
            if unit.slice.notes and before is not None and before.value != cursor.value:
                seq = record_move(connection, self._key, before, cursor, {"notes": list(unit.slice.notes)})
            self._store(connection, unit, seq, landed=False)

    def _store(self, connection: psycopg.Connection, unit: Unit, seq: int | None, *, landed: bool) -> None:
        reading = (self._before.reading if self._before else 0) + (1 if landed or self._chunks else 0)
        store(connection, self._key, replace(unit.slice.cursor, reading=reading), seq)
        self._spill.seek(0)
        for _ in range(self._chunks):
            span, digests, values = pickle.load(self._spill)  # noqa: S301  # our own, of this process
            only = int(values[0]) if (values == values[0]).all() and span.measure != "read" else None
            if only is not None:
                fetch(connection, _FORGET, (*self._key.parameters, only, reading))
            for start in range(0, len(digests), _CHUNK_RECORDS):
                part = slice(start, start + _CHUNK_RECORDS)
                fetch(connection, _MARK, (
                    *self._key.parameters, reading, span.measure, span.low, span.high, span.unplaced, only,
                    digests[part].tobytes(), values[part].tobytes()))

    # New or not ----------------------------------------------------------------------------------------------

    def _fresh(self, unit: Unit, schema: ExtractorSchema) -> Generator[ParsedBatch, None, None]:
        """The new records of a slice, read from its start."""
        cursor = unit.slice.cursor
        self.facts = unit.options["cursor"] = {
            "kind": cursor.kind, "value": to_json(cursor)["value"], "already_landed": 0,
            "notes": list(unit.slice.notes),
        }
        self._spill.seek(0)
        self._chunks, self._pending = 0, None
        with closing(self._connector.read(unit, schema)) as batches:
            for batch in batches:
                if not batch.received:
                    continue
                assert batch.fingerprints is not None and len(batch.fingerprints) == batch.received
                new = self._compare(batch.fingerprints)
                self.facts["already_landed"] += int(len(new) - new.sum())
                if new.all():
                    yield batch
                elif new.any():
                    yield _only(batch, new)
            self._close_pending()

    def _compare(self, marks: Fingerprints) -> np.ndarray:
        """Mask of the records that the last reading of their cursor value had not, or not as often."""
        values, of_value = np.unique(marks.values, return_inverse=True)
        digests, of_digest, copies = np.unique(marks.digests, return_inverse=True, return_counts=True)
        latest, ever, expected = self._read_before(marks, values, digests)
        rank = np.empty(len(marks), np.int64)
        starts = np.cumsum(copies) - copies
        rank[np.argsort(of_digest, kind="stable")] = np.arange(len(marks)) - np.repeat(starts, copies)
        if self._pending is not None:
            rank += _counts_of(*self._pending.counted, digests)[of_digest]
        matched = rank < latest[of_digest]
        self._keep(marks, values, of_value, matched, expected)
        return rank >= (ever if marks.ever else latest)[of_digest]

    def _keep(
        self, marks: Fingerprints, values: np.ndarray, of_value: np.ndarray, matched: np.ndarray, expected: np.ndarray
    ) -> None:
        """Spill the fingerprints of the cursor values whose records are not what they were; the last one waits."""
        pending, last = self._pending, marks.values[-1]
        if pending is not None and pending.value not in values:
            self._close_pending()
            pending = None
        records = np.bincount(of_value, minlength=len(values))
        matches = np.bincount(of_value, weights=matched, minlength=len(values)).astype(np.int64)
        if pending is not None:
            at = int(np.searchsorted(values, pending.value))
            pending.records += int(records[at])
            pending.matched += int(matches[at])
            pending.digests.append(marks.digests[of_value == at])
            pending.span = pending.span.joined(marks.span)
            if pending.value != last:
                self._close_pending()
            records[at] = matches[at] = expected[at] = 0  # accounted for
        changed = (records != matches) | (records != expected)
        changed[values == last] = False
        chosen = changed[of_value]
        if chosen.any():
            self._write(marks.span, marks.digests[chosen], marks.values[chosen])
        mine = marks.values == last
        if self._pending is None:
            at = int(np.searchsorted(values, last))
            self._pending = _Pending(int(last), marks.span, int(records[at]), int(matches[at]), int(expected[at]),
                                     [marks.digests[mine]])
        self._pending.counted = _added(*self._pending.counted, marks.digests[mine])

    def _close_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and pending.changed:
            digests = np.concatenate(pending.digests)
            self._write(pending.span, digests, np.full(len(digests), pending.value, np.uint64))

    def _write(self, span: Span, digests: np.ndarray, values: np.ndarray) -> None:
        pickle.dump((span, digests, values.view(np.int64)), self._spill)
        self._chunks += 1

    def _read_before(
        self, marks: Fingerprints, values: np.ndarray, digests: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How often each digest was read: by the last reading of its cursor value, and by any reading at most; and how
        many records the last reading of each value had.
        """
        found = [part for part in self._stored(marks, values) if len(part[0])]
        if not found:
            return np.zeros(len(digests), np.int64), np.zeros(len(digests), np.int64), np.zeros(len(values), np.int64)
        readings, of_value, stored = (np.concatenate(parts) for parts in zip(*found, strict=True))
        newest = np.zeros(len(values), np.int64)
        np.maximum.at(newest, of_value, readings)
        current = readings == newest[of_value]
        expected = np.bincount(of_value[current], minlength=len(values))
        known, counts = np.unique(stored[current], return_counts=True)
        latest = _counts_of(known, counts, digests)
        if not marks.ever:
            return latest, latest, expected
        ever = np.zeros(len(digests), np.int64)
        for reading in np.unique(readings):
            known, counts = np.unique(stored[readings == reading], return_counts=True)
            ever = np.maximum(ever, _counts_of(known, counts, digests))
        return latest, ever, expected

    def _stored(self, marks: Fingerprints, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Stored fingerprints of these cursor values: their reading, the value's place in `values`, the digest."""
        if self._before is None:
            return
        if self._memory is None:
            self._memory = self._stack.enter_context(self._database.connect(autocommit=True))
        sought = marks.sought
        parameters = (*self._key.parameters, sought.measure, sought.low, sought.high, sought.unplaced)
        with unavailable_as_error(), self._memory.cursor(binary=True) as cursor:
            for reading, packed, of_records in cursor.stream(_READ_BEFORE, parameters):
                stored = np.frombuffer(of_records, np.uint64)
                at = np.searchsorted(values, stored).clip(max=len(values) - 1)
                chosen = values[at] == stored
                if chosen.any():
                    count = int(chosen.sum())
                    yield np.full(count, reading, np.int64), at[chosen], np.frombuffer(packed, DIGEST)[chosen]


def record_move(
    connection: psycopg.Connection, key: CursorKey, before: Cursor | None, after: Cursor, why: dict[str, Any]
) -> int:
    """Evidence of a cursor that moved without a batch. Returns the number of the entry."""
    head = ledger.newest(connection, key.tenant_id)
    subject = f"{key.pipeline}/{key.source}"
    payload = {
        "from": before and to_json(before)["value"], "to": to_json(after)["value"], "kind": after.kind, **why,
    }
    token = run_token(kind="cursor.moved", subject=subject, tenant=key.tenant_id, after=head)
    return ledger.append(connection, ledger.Entry(key.tenant_id, "cursor.moved", subject, token, payload))


def _counts_of(known: np.ndarray, counts: np.ndarray, sought: np.ndarray) -> np.ndarray:
    """The count of each sought digest; `known` is sorted and holds each once."""
    if not len(known):
        return np.zeros(len(sought), np.int64)
    at = np.searchsorted(known, sought).clip(max=len(known) - 1)
    return np.where(known[at] == sought, counts[at], 0)


def _added(known: np.ndarray, counts: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts with further digests counted."""
    digests, of_digest = np.unique(np.concatenate([known, more]), return_inverse=True)
    weights = np.concatenate([counts, np.ones(len(more), np.int64)])
    return digests, np.bincount(of_digest, weights=weights, minlength=len(digests)).astype(np.int64)


def _only(batch: ParsedBatch, chosen: np.ndarray) -> ParsedBatch:
    """The batch with some of its records, which keep their numbers."""
    rows, rejects = batch.rows, batch.rejects
    of_rows, of_rejects = rows.column(ROW_NUMBER).to_numpy(), rejects.column("row_number").to_numpy()
    first = min(int(numbers[0]) for numbers in (of_rows, of_rejects) if len(numbers))
    kept = np.flatnonzero(chosen[of_rows - first])
    original = batch.original
    left = rejects.filter(pa.array(chosen[of_rejects - first]))
    refused = batch.refused
    if left.num_rows < rejects.num_rows:  # of the others only the first fault of a record is known
        faults = zip(left.column("field").to_pylist(), left.column("reason").to_pylist(), strict=True)
        refused = tuple((field, reason, count) for (field, reason), count in Counter(faults).items() if field)
    return ParsedBatch(
        rows.take(pa.array(kept)), left, int(chosen.sum()),
        original and (lambda positions: original(pa.array(kept).take(positions))), refused,
    )


_LOAD = """
select cursor, state from platform.source_cursor where tenant_id = $1 and pipeline = $2 and source = $3
"""
_STORE = """
insert into platform.source_cursor as c (tenant_id, pipeline, source, cursor, state, evidence_seq)
values ($1, $2, $3, $4, $5::text::jsonb, $6)
on conflict (tenant_id, pipeline, source) do update set
    cursor = excluded.cursor, state = excluded.state, evidence_seq = coalesce(excluded.evidence_seq, c.evidence_seq),
    updated_at = now()
"""
_READ_BEFORE = """
select reading, digests, cursor_values from platform.cursor_mark
where tenant_id = $1 and pipeline = $2 and source = $3
    and (measure <> $4 or (high >= $5 and low <= $6) or (unplaced and $7))
"""
_MARK = """
insert into platform.cursor_mark (
    tenant_id, pipeline, source, reading, measure, low, high, unplaced, only_value, digests, cursor_values)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_FORGET = """
delete from platform.cursor_mark
where tenant_id = $1 and pipeline = $2 and source = $3 and only_value = $4 and reading < $5
"""
