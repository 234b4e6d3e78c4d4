"""Which batches count, for any order in which complete deliveries land, against a plain model of what a source says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barecount_assets.stages.deliveries import Delivered, ambiguous, in_force, shrunk
from resources.governance.sources import FileSource

FIRST = dt.date(2026, 5, 4)
KINDS = (
    ("snapshot", "together"), ("snapshot", "newest"), ("partition", "together"), ("partition", "newest"),
    ("full", "newest"), ("snapshot", None),
)


def source(delivers: str, parts: str | None, **declared: Any) -> FileSource:
    """A source of files, with dates but where it delivers all there is or one snapshot after the other."""
    undated = delivers == "full" or (delivers, parts) == ("snapshot", None)
    name = "*.csv" if undated else "{date}-*.csv"
    return FileSource(name="orders", dataset="shop.orders", connector="files", path="in", file_name=name,
                      format={"type": "csv"}, delivers=delivers, parts=parts, **declared)


@dataclass(frozen=True)
class Landing:
    """One file that lands: its day, its name without it, its rows, and how many of them were refused and replayed."""

    day: int
    name: str
    rows: int
    replayed: bool


landings = st.lists(st.builds(
    Landing, st.integers(0, 3), st.sampled_from("abc"), st.integers(0, 9), st.booleans()), min_size=1, max_size=12)


def batches_of(files: Sequence[Landing], *, dated: bool) -> list[Delivered]:
    """The register after the files landed one after the other: a file that comes again says what it says then."""
    standing: dict[str, list[Delivered]] = {}
    for number, file in enumerate(files):
        day = FIRST + dt.timedelta(days=file.day) if dated else None
        unit = f"{file.day}-{file.name}"
        own = Delivered(2 * number, unit, day, f"{number:04}", file.rows)
        replay = replace(own, batch_id=2 * number + 1, source_id=f"quarantine/{unit}", replay_of=own.batch_id)
        standing[unit] = [own, replay] if file.replayed else [own]
    return sorted((batch for unit in standing.values() for batch in unit), key=lambda batch: batch.batch_id)


def modelled(files: Sequence[Landing], delivers: str, parts: str | None) -> set[int]:
    """Numbers of what counts, by a model of days and of the files of each, the last one to come being the newest."""
    days: dict[int, dict[str, int]] = {}
    for number, file in enumerate(files):
        day = file.day if delivers == "partition" or (delivers == "snapshot" and parts) else 0
        files_of_day = days.setdefault(day, {})
        files_of_day.pop(f"{file.day}-{file.name}", None)
        files_of_day[f"{file.day}-{file.name}"] = number
    chosen = [days[max(days)]] if delivers == "snapshot" else list(days.values())
    numbers = {n for day in chosen for n in (day.values() if parts == "together" else list(day.values())[-1:])}
    return {2 * n for n in numbers} | {2 * n + 1 for n in numbers if files[n].replayed}


@pytest.mark.parametrize(("delivers", "parts"), KINDS)
@given(files=landings)
def test_the_newest_delivery_counts_with_the_replays_of_its_records(
    delivers: str, parts: str | None, files: list[Landing]
) -> None:
    declared = source(delivers, parts)
    assert in_force(declared, batches_of(files, dated=declared.dated)) == modelled(files, delivers, parts)


@given(files=landings, order=st.randoms())
def test_which_batches_count_does_not_depend_on_how_they_are_listed(files: list[Landing], order: Any) -> None:
    for delivers, parts in KINDS:
        declared = source(delivers, parts)
        listed = batches_of(files, dated=declared.dated)
        shuffled = list(listed)
        order.shuffle(shuffled)
        assert in_force(declared, shuffled) == in_force(declared, listed)


@given(files=landings, share=st.sampled_from([0.0, 0.25, 0.5]))
def test_what_counts_never_shrinks_by_more_than_the_share_unless_somebody_judged(
    files: list[Landing], share: float
) -> None:
    declared = source("snapshot", "newest", max_shrink=share)
    committed: set[int] = set()
    held: set[int] = set()
    ever: dict[int, Delivered] = {}

    def register(said: set[int], committed: set[int]) -> list[Delivered]:
        """As the database has it: a date that waits stays as it was committed."""
        waiting = {ever[number].partition_date for number in held & said}
        return [replace(ever[number], included=number in committed, judged=number in held,
                        stands=number in (committed if ever[number].partition_date in waiting else said))
                for number in sorted(said | committed)]

    for count in range(1, len(files) + 1):
        landed = batches_of(files[:count], dated=True)
        ever.update((batch.batch_id, batch) for batch in landed)
        said = {batch.batch_id for batch in landed}
        before = sum(ever[number].rows for number in committed)
        held.update(*(delivery.batches for delivery in shrunk(declared, register(said, committed))))
        assert shrunk(declared, register(said, committed)) == [], "asked once, not every time"
        counts = in_force(declared, register(said, committed))
        if counts - committed and committed:
            rows, newest = sum(ever[number].rows for number in counts), max(counts)
            assert rows >= before * (1 - share) or ever[newest].order < max(ever[n].order for n in committed)
        committed = counts


def test_several_files_of_one_delivery_are_ambiguous_until_somebody_says_what_they_are() -> None:
    files = [Landing(0, "a", 1, False), Landing(0, "b", 1, False), Landing(1, "a", 1, True)]
    for delivers in ("snapshot", "partition"):
        register = batches_of(files, dated=True)
        several = ambiguous(_undeclared(delivers), register)
        assert [batch.source_id for batch in several] == ([] if delivers == "snapshot" else ["0-a", "0-b"])
        assert ambiguous(source(delivers, "newest"), register) == []
    newest = batches_of([*files, Landing(1, "b", 1, False)], dated=True)
    assert [batch.source_id for batch in ambiguous(_undeclared("snapshot"), newest)] == ["1-a", "1-b"]


def _undeclared(delivers: str) -> FileSource:
    return source(delivers, "newest").model_copy(update={"parts": None})
