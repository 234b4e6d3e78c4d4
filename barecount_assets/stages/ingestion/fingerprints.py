"""What tells the records of a cursor's slice apart, so that a record read twice lands once.

A slice is read again from where the last one ended, and a record that is there unchanged must not land again. Its
fingerprint is a digest of all it holds under the source's own names; nulls are left out, so that a column that the
source adds changes nothing until it holds something. Contracts have no part in it: a new version makes no record new.
Digests are computed by column.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Measure = Literal["number", "text", "read", "none"]
"""What a span is measured in: numbers; texts, instants in ISO 8601 among them; the instant of reading; nothing."""

DIGEST = np.dtype("S16")
NO_VALUE = "\0null"  # stands for the missing value of a cursor
_KEY_DIGITS = 16


@dataclass(frozen=True)
class Span:
    """Cursor values from `low` to `high`, both included, as keys in binary order; None where no record has a key.

    `unplaced`: there are records beside, whose cursor is null or has no key.
    """

    measure: Measure
    low: str | None
    high: str | None
    unplaced: bool = False

    def joined(self, other: Span) -> Span:
        """The span of both."""
        lows = [span.low for span in (self, other) if span.low is not None]
        highs = [span.high for span in (self, other) if span.high is not None]
        return Span(other.measure, min(lows, default=None), max(highs, default=None), self.unplaced or other.unplaced)


@dataclass(frozen=True)
class Fingerprints:
    """One per received record of a batch, in the order of the records.

    Attributes:
        digests: `DIGEST`, of the record's content.
        values: uint64, of the record's cursor value. Whoever reads a record reads all of the same value.
        span: where the records lie.
        sought: where the same records lay when they were read before.
        ever: records count as read if any earlier reading had them; else only the last reading of their value counts.
    """

    digests: np.ndarray
    values: np.ndarray
    span: Span
    sought: Span
    ever: bool = False

    def __len__(self) -> int:
        return len(self.digests)


def number_key(number: float) -> str:
    """16 hex digits whose binary order is that of the numbers."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", number))
    flipped = bits ^ (0xFFFFFFFFFFFFFFFF if bits >> 63 else 1 << 63)
    return f"{flipped:0{_KEY_DIGITS}x}"


def of_texts(columns: Mapping[str, pa.Array], cursor: str, measure: Measure, *, ever: bool) -> Fingerprints:
    """Fingerprints of rows, from all their columns as text, under the source's names.

    Args:
        cursor: name of the column that is the cursor.
        measure: what its values are measured in.
    """
    pieces: list[pa.Array | str] = []
    for name in sorted(columns):
        text = columns[name]
        # The length keeps two values apart whatever characters they hold.
        member = pc.binary_join_element_wise(
            f"{len(name)}:{name}=", pc.binary_length(text).cast(pa.string()), ":", text, ";", "")
        pieces.append(pc.fill_null(member, ""))
    content = pc.binary_join_element_wise(*pieces, "")
    values = columns[cursor]
    span = _span(values, measure)
    of_content, of_values = _digests([content, pc.fill_null(values, NO_VALUE)])
    return Fingerprints(of_content, of_values.view(np.uint64)[::2].copy(), span, span, ever)


def of_digests(digests: Sequence[bytes], read_at: float, since: float, *, ever: bool) -> Fingerprints:
    """Fingerprints of records whose cursor value is not known: they were read at one instant, seconds since 1970.

    `since`: they may have been read before from then on.
    """
    span = Span("read", number_key(read_at), number_key(read_at))
    sought = Span("read", number_key(since), number_key(float("inf")))
    packed = np.frombuffer(b"".join(digests), DIGEST)
    return Fingerprints(packed, np.zeros(len(packed), np.uint64), span, sought, ever)


def _span(values: pa.Array, measure: Measure) -> Span:
    placed = values.drop_null()
    unplaced = len(placed) < len(values)
    if measure == "none" or not len(placed):
        return Span(measure, None, None, unplaced or len(placed) > 0)
    if measure == "number":
        try:
            ends = pc.min_max(placed.cast(pa.float64())).as_py()
        except pa.ArrowInvalid:
            return Span(measure, None, None, True)
        return Span(measure, number_key(ends["min"]), number_key(ends["max"]), unplaced)
    ends = pc.min_max(placed).as_py()
    return Span(measure, ends["min"], ends["max"], unplaced)


def _digests(columns: Sequence[pa.Array]) -> list[np.ndarray]:
    """MD5 of each value of each column: nobody has to be kept from making two alike, and it is the same for ever."""
    names = [f"c{number}" for number in range(len(columns))]
    relation = _hasher().cursor().from_arrow(pa.table(list(columns), names=names))
    hashed = relation.project(", ".join(f"unhex(md5({name}))" for name in names)).to_arrow_table()
    return [_packed(column) for column in hashed.columns]


def _packed(column: pa.ChunkedArray) -> np.ndarray:
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty(0, DIGEST)
    return np.frombuffer(b"".join(
        chunk.buffers()[-1][chunk.offset * 16 : (chunk.offset + len(chunk)) * 16].to_pybytes() for chunk in chunks
    ), DIGEST)


@cache
def _hasher() -> Any:
    """DuckDB, which computes a digest by column. One connection per process; a cursor of it per use."""
    import duckdb

    return duckdb.connect(config={"threads": 1})
