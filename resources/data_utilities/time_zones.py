"""Time zones: on which clock an instant shows what, by rules that are the same on every machine and engine.

The rules come from the pinned `tzdata` package, never from the operating system, a database server or an engine, which
bring tables of their own age: for some zones and years these differ by an hour. What SQL needs of them travels to the
models as a run variable (see the macro `local_timestamp`): PostgreSQL, DuckDB and Spark cut days at the same instant.

A zone's rules are its offsets from UTC and the instants at which they change, up to the year 2200; afterwards the last
one holds. An instant has one wall clock time. A wall clock time has one instant, none (it lies in the gap when clocks
go forward) or two (in the fold when they go back): `instants` gives the first case and says which those are.

Format of the files: RFC 8536 (TZif).
"""

from __future__ import annotations

import datetime as dt
import io
import struct
import zoneinfo
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_LAST_YEAR = 2200
_NEIGHBOURS = (-2, -1, 0, 1, 2)  # among the offsets near a wall clock time: clocks change at most once a day


@dataclass(frozen=True)
class ZoneRules:
    """The rules of one zone.

    Attributes:
        name: in the IANA time zone database, e.g. `Europe/London`.
        starts: ascending instants, in seconds since 1970-01-01 UTC, at which the offset changes.
        offsets: seconds east of UTC before the first of them, then from each of them on: one more than `starts`.
    """

    name: str
    starts: tuple[int, ...]
    offsets: tuple[int, ...]

    def walls(self, instants: np.ndarray) -> np.ndarray:
        """Wall clock times of instants, both int64 microseconds; wall clock times count from 1970-01-01 00:00."""
        import numpy as np

        starts, offsets = self._micros()
        return instants + offsets[np.searchsorted(starts, instants, side="right")]

    def instants(self, walls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Instants of wall clock times, and the mask of those that the zone's clocks show exactly once.

        Where the mask is False the instant means nothing.
        """
        import numpy as np

        starts, offsets = self._micros()
        near = np.searchsorted(starts, walls, side="right")
        result, times = np.zeros(len(walls), np.int64), np.zeros(len(walls), np.int8)
        for step in _NEIGHBOURS:
            at = near + step
            exists = (at >= 0) & (at <= len(starts))
            candidate = walls - offsets[np.clip(at, 0, len(starts))]
            shown = exists & (np.searchsorted(starts, candidate, side="right") == at)
            result = np.where(shown, candidate, result)
            times += shown
        return result, times == 1

    def as_text(self) -> str:
        """The rules in one line, `OFFSET START OFFSET START OFFSET ...`, as the models' macros read them."""
        pairs = (f"{start} {offset}" for start, offset in zip(self.starts, self.offsets[1:], strict=True))
        return " ".join([str(self.offsets[0]), *pairs])

    def _micros(self) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        return np.array(self.starts, np.int64) * 1_000_000, np.array(self.offsets, np.int64) * 1_000_000


def database_version() -> str:
    """Version of the IANA time zone database that the rules are of, e.g. `2026f`."""
    import tzdata

    return tzdata.IANA_VERSION


@lru_cache(maxsize=64)
def rules_of(name: str) -> ZoneRules:
    """The rules of a zone.

    Raises:
        ValueError: the database has no zone of that name.
    """
    from importlib.resources import files

    content = b""
    if ".." not in name:
        with suppress(OSError):
            content = files("tzdata.zoneinfo").joinpath(*name.split("/")).read_bytes()
    if not content.startswith(b"TZif"):
        raise ValueError(f"{name!r} is no zone of the time zone database {database_version()}")
    starts, offsets = _explicit(content)
    starts, offsets = _with_yearly(name, content, starts, offsets)
    changes = [(start, offset) for start, before, offset in zip(starts, offsets, offsets[1:], strict=False)
               if offset != before]  # others change the abbreviation alone
    return ZoneRules(name, tuple(start for start, _ in changes), (offsets[0], *(offset for _, offset in changes)))


_HEADER = struct.Struct(">4s1s15x6l")


def _explicit(content: bytes) -> tuple[list[int], list[int]]:
    """The changes that a file lists: instants, and offsets, the one before the first included."""
    _, _, utc, wall, leaps, times, types, letters = _HEADER.unpack_from(content)
    second = _HEADER.size + times * 5 + types * 6 + letters + leaps * 8 + wall + utc  # the block of 64-bit times
    _, _, utc, wall, leaps, times, types, letters = _HEADER.unpack_from(content, second)
    at = second + _HEADER.size
    starts = list(struct.unpack_from(f">{times}q", content, at))
    kinds = struct.unpack_from(f">{times}B", content, at + times * 8)
    known = [struct.unpack_from(">l", content, at + times * 9 + kind * 6)[0] for kind in range(types)]
    return starts, [known[0], *(known[kind] for kind in kinds)]


def _with_yearly(name: str, content: bytes, starts: list[int], offsets: list[int]) -> tuple[list[int], list[int]]:
    """The changes, and those after the last one listed: a file states them as a rule for every year to come."""
    zone = zoneinfo.ZoneInfo.from_file(io.BytesIO(content), key=name)
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

    def offset_at(second: int) -> int:
        offset = (epoch + dt.timedelta(seconds=second)).astimezone(zone).utcoffset()
        assert offset is not None
        return int(offset.total_seconds())

    starts, offsets = list(starts), list(offsets)
    first = starts[-1] if starts else 0
    year = (epoch + dt.timedelta(seconds=first)).year
    months = (int(dt.datetime(y, m, 1, tzinfo=dt.UTC).timestamp()) for y in range(year, _LAST_YEAR + 1)
              for m in range(1, 13))
    known = first
    for month in months:
        if month <= known:
            continue
        before, after = offset_at(known), offset_at(month)
        if before != after:
            low, high = known, month
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_at(middle) == before else (low, middle)
            starts.append(high)
            offsets.append(after)
        known = month
    return starts, offsets
