"""Instants and wall clock times of columns, each made of the other by the rules of a zone, vectorised and exact.

A column of instants is `timestamp('us', 'UTC')`, one of wall clock times `timestamp('us')`. What has no counterpart
becomes null: the times that a zone's clocks skip when they go forward, and those that they show twice when they go
back. Which of two instants such a time was, only its source can say, by writing the offset.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from resources.data_utilities.time_zones import rules_of

WALL = pa.timestamp("us")
INSTANT = pa.timestamp("us", "UTC")
_FIRST = np.datetime64("0001-01-01", "us").astype(np.int64)
_LAST = np.datetime64("9999-12-31T23:59:59.999999", "us").astype(np.int64)


def walls_of(instants: pa.Array, time_zone: str | None) -> pa.Array:
    """What a zone's clocks show at instants; without a zone, those of UTC."""
    micros, missing = _micros(instants)
    shown = micros if time_zone is None else rules_of(time_zone).walls(micros)
    return pa.array(shown, mask=missing | ~in_range(shown)).cast(WALL)


def instants_of(walls: pa.Array, time_zone: str) -> pa.Array:
    """The instants at which a zone's clocks show the times, where they do so once."""
    micros, missing = _micros(walls)
    instants, once = rules_of(time_zone).instants(micros)
    return pa.array(instants, mask=missing | ~once | ~in_range(instants)).cast(INSTANT)


def in_range(micros: np.ndarray) -> np.ndarray:
    """Mask of the microseconds since 1970 that lie in the years 1 to 9999: others are no values of the platform."""
    return (micros >= _FIRST) & (micros <= _LAST)


def _micros(times: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds, and the mask of nulls."""
    micros = times.cast(pa.int64())
    return micros.fill_null(0).to_numpy(zero_copy_only=False), times.is_null().to_numpy(zero_copy_only=False)
