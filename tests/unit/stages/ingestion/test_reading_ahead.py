"""While a unit is read, the one after it is begun, which nobody can tell from what is read."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from barecount_assets.stages.ingestion.reading_ahead import ReadAhead
from barecount_assets.stages.ingestion.records import (
    REJECT_SCHEMA,
    ExtractorSchema,
    Field,
    ObservedSchema,
    ParsedBatch,
    Unit,
    Window,
)
from resources.runtime.errors import BareCountError, ErrorCode

SCHEMA = ExtractorSchema((Field("name", "Name", pa.string()),))
UNITS = [Unit(f"day-{n}", f"day-{n}", dt.date(2026, 1, n), sha256=f"{n}" * 64) for n in range(1, 5)]
BATCHES = 3


@dataclass
class Connector:
    """Three batches of one row a unit; notes what it is asked for. Broken units cannot be read."""

    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    something_asked: threading.Condition = field(default_factory=threading.Condition)

    def discover(self, window: Window, cursor: str | None) -> list[Unit]:
        return UNITS

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        return ObservedSchema(names=(unit.source_id,))

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        for number in range(BATCHES):
            with self.something_asked:
                self.asked.append(f"{unit.source_id}.{number}")
                self.something_asked.notify_all()
            if unit.source_id in self.broken:
                raise BareCountError(ErrorCode.SOURCE_MALFORMED, f"{unit.source_id} is cut off")
            rows = pa.record_batch([[f"{unit.source_id}.{number}"], [number], [None]], schema=schema.arrow)
            yield ParsedBatch(rows, pa.RecordBatch.from_pylist([], schema=REJECT_SCHEMA), 1)

    def wait_for(self, what: str) -> None:
        with self.something_asked:
            assert self.something_asked.wait_for(lambda: what in self.asked, timeout=30), self.asked


def _names(batches: Iterator[ParsedBatch]) -> list[str]:
    return [name for batch in batches for name in batch.rows.column("name").to_pylist()]


def _expected(unit: Unit) -> list[str]:
    return [f"{unit.source_id}.{number}" for number in range(BATCHES)]


def test_every_unit_gives_what_it_would_give_alone() -> None:
    with ReadAhead(Connector(), UNITS) as reading:
        for unit in UNITS:
            assert reading.observed_schema(unit).names == (unit.source_id,)
            assert _names(reading.read(unit, SCHEMA)) == _expected(unit)


def test_the_next_unit_is_begun_up_to_its_first_batch_before_this_one_is_read() -> None:
    connector = Connector()
    with ReadAhead(connector, UNITS) as reading:
        batches = reading.read(UNITS[0], SCHEMA)
        connector.wait_for("day-2.0")
        assert connector.asked == ["day-2.0"]
        assert _names(batches) == _expected(UNITS[0])
    assert "day-2.1" not in connector.asked and "day-3.0" not in connector.asked


def test_nothing_is_read_where_nothing_is_asked_for() -> None:
    connector = Connector()
    with ReadAhead(connector, UNITS):
        pass
    assert connector.asked == []


def test_a_unit_that_is_left_out_leaves_no_trace() -> None:
    connector = Connector(broken={"day-2"})
    with ReadAhead(connector, UNITS) as reading:
        for unit in (UNITS[0], UNITS[2], UNITS[3]):
            assert reading.observed_schema(unit).names == (unit.source_id,)
            assert _names(reading.read(unit, SCHEMA)) == _expected(unit)


def test_an_error_is_raised_to_who_asks_for_the_unit() -> None:
    connector = Connector(broken={"day-2"})
    with ReadAhead(connector, UNITS) as reading:
        assert _names(reading.read(UNITS[0], SCHEMA)) == _expected(UNITS[0])
        with pytest.raises(BareCountError, match="day-2 is cut off"):
            reading.observed_schema(UNITS[1])


def test_what_answers_over_a_network_is_asked_for_one_thing_at_a_time() -> None:
    streams = [Unit(unit.source_id, unit.uri, unit.partition_date) for unit in UNITS]
    connector = Connector()
    with ReadAhead(connector, streams) as reading:
        assert _names(reading.read(streams[0], SCHEMA)) == _expected(streams[0])
    assert connector.asked == _expected(streams[0])
