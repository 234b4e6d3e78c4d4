"""What counts of a source whose deliveries are complete: absence is data there.

A manifest says of every source what a delivery is (`delivers`). Of `changes` every delivery counts. Of the others the
newest one does, and replaces what was there before it:

| delivers | a delivery is | it replaces |
| --- | --- | --- |
| `snapshot` | the units of a date; without dates, one unit | everything of an earlier date, or order |
| `partition` | the units of a date | what there was of that date |
| `full` | all units that a reading finds; of a table or an API, one unit | everything else |

Where one delivery may come as several files, `parts` says whether they are its parts (`together`) or corrections
(`newest`). A delivery that shrank by more than `max_shrink` waits for a decision as a drift does; what it would replace
stays in force. Replayed records belong to the batch that they were refused from.

The outcome is `platform.replaced_batch`, which `platform.counted_batch` leaves out. It follows from the register of
batches and the manifest alone: ingestion settles it for its source, normalization for all of them before it reads.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import psycopg

from barecount_assets.stages.environment import StageEnvironment
from resources.governance import drift_register
from resources.governance.drift import Change, DriftClass, ObservedSchema
from resources.governance.sources import AnySource
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode


@dataclass(frozen=True)
class Delivered:
    """A batch as far as deliveries are concerned.

    Attributes:
        order: key of the order in which batches of a dataset were delivered; greater is newer.
        rows: accepted records.
        replay_of: the batch its records were refused from, None for what a source delivered.
        stands: a unit says it, it is not held or kept out, and the newest reading of its source found it.
        included: the last commit was made from it.
        judged: somebody decided, or has to decide, about how much it lacks.
    """

    batch_id: int
    source_id: str
    partition_date: dt.date | None
    order: str
    rows: int
    replay_of: int | None = None
    stands: bool = True
    included: bool = False
    judged: bool = False


@dataclass(frozen=True)
class Shrunk:
    """A delivery with too few records: its batches that are new, its records, and those of what it would replace."""

    batches: tuple[int, ...]
    rows: int
    before: int


def in_force(source: AnySource, batches: Iterable[Delivered]) -> set[int]:
    """Numbers of the standing batches that the newest deliveries consist of."""
    return {number for group in _groups(source, batches) for number in _with_replays(_newest(source, group), group)}


def ambiguous(source: AnySource, batches: Iterable[Delivered]) -> list[Delivered]:
    """The batches of the first delivery in force that consists of several, where nobody has said what they are."""
    if _parts(source) is not None:
        return []
    return next((newest for group in _groups(source, batches) if len(newest := _newest(source, group)) > 1), [])


def shrunk(source: AnySource, batches: Sequence[Delivered]) -> list[Shrunk]:
    """Deliveries in force that lack more of what they replace than the source allows, and that nobody has judged.

    Each is compared with what the last commit was made from; before the first commit, with the delivery before it. One
    that is older than what it replaces counts because somebody took that back, which is a decision already.
    """
    if source.max_shrink is None:
        return []
    found = []
    for group in _groups(source, batches):
        newest = _with_replays(_newest(source, group), group)
        new = tuple(b.batch_id for b in group if b.batch_id in newest and not (b.included or b.judged))
        rows = sum(b.rows for b in group if b.batch_id in newest)
        replaced = {b.batch_id for b in group if b.included}
        if not any(b.included for b in batches):
            earlier = [b for b in group if b.batch_id not in newest]
            replaced = _with_replays(_newest(source, earlier), earlier)
        before = sum(b.rows for b in group if b.batch_id in replaced)
        is_later = _when(group, newest) >= _when(group, replaced)
        if new and is_later and rows < before * (1 - source.max_shrink):
            found.append(Shrunk(new, rows, before))
    return found


def _groups(source: AnySource, batches: Iterable[Delivered]) -> list[list[Delivered]]:
    """Batches among which the newest delivery counts: those of a date, or all."""
    groups: dict[dt.date | None, list[Delivered]] = {}
    for batch in batches:
        groups.setdefault(batch.partition_date if source.delivery == "partition" else None, []).append(batch)
    return [groups[day] for day in sorted(groups, key=lambda day: day or dt.date.min)]


def _newest(source: AnySource, group: Sequence[Delivered]) -> list[Delivered]:
    """The batches of the newest delivery of a group, replays apart."""
    batches = [batch for batch in group if batch.stands and batch.replay_of is None]
    if source.delivery == "snapshot" and batches:
        last = max(batch.partition_date or dt.date.min for batch in batches)
        batches = [batch for batch in batches if (batch.partition_date or dt.date.min) == last]
    if _parts(source) == "newest" and batches:
        order = max(batch.order for batch in batches)
        batches = [batch for batch in batches if batch.order == order]
    return batches


def _with_replays(newest: Sequence[Delivered], group: Sequence[Delivered]) -> set[int]:
    """The batches and the standing replays of their refused records, and of those of replays."""
    numbers = {batch.batch_id for batch in newest}
    for batch in sorted(group, key=lambda batch: batch.batch_id):  # a replay comes after what it replays
        if batch.stands and batch.replay_of in numbers:
            numbers.add(batch.batch_id)
    return numbers


def _when(group: Sequence[Delivered], numbers: set[int]) -> tuple[dt.date, str]:
    """Date and order of the newest of some batches."""
    return max(((b.partition_date or dt.date.min, b.order) for b in group if b.batch_id in numbers),
               default=(dt.date.min, ""))


def _parts(source: AnySource) -> str | None:
    """What several units of one delivery are; None where nobody has said it and there may be several."""
    return source.parts or (None if source.in_parts else "newest")


# --- the register -------------------------------------------------------------------------------------------


def note_absent(connection: psycopg.Connection, tenant_id: str, source: AnySource, found: Collection[str]) -> None:
    """Keep which units of a source the newest reading of it did not find: those of a `full` one are gone.

    Raises:
        BareCountError: source.not_found when nothing was found where something was: a folder that is not mounted looks
            like this, and everything would be gone.
    """
    whole = source.in_parts and source.delivery == "full"
    if whole and not found and fetch(connection, _ANY_UNIT, (tenant_id, source.dataset)):
        raise BareCountError(
            ErrorCode.SOURCE_NOT_FOUND,
            f"source {source.name} delivers all there is, and there is no file of it any more",
            hint="check its path; if everything is gone indeed, deliver a file without records",
        )
    fetch(connection, _ABSENT, (tenant_id, source.dataset, list(found), whole))


def is_noted(connection: psycopg.Connection, tenant_id: str, source: AnySource, found: Collection[str]) -> bool:
    """Whether `note_absent` would change nothing."""
    whole = source.in_parts and source.delivery == "full"
    return not whole or not fetch(connection, _NOT_NOTED, (tenant_id, source.dataset, list(found)))


def settle(
    connection: psycopg.Connection, environment: StageEnvironment, tenant_id: str, pipeline: str,
    sources: Sequence[AnySource],
) -> int:
    """Let the newest deliveries of some sources count, under the lock of tenant and pipeline.

    Returns the batches that wait from now on, as they lack too much.

    Raises:
        BareCountError: declaration.invalid when several files are one delivery and nobody has said what they are.
    """
    with connection.transaction():
        waiting = 0
        for source in sources:
            if source.whole:
                waiting += _hold_shrunk(connection, environment, tenant_id, pipeline, source)
        replaced = []
        for source in sources:
            if source.whole:
                batches = _delivered(connection, tenant_id, pipeline, source.dataset)
                _refuse_ambiguous(source, batches)
                newest = in_force(source, batches)
                replaced += [batch.batch_id for batch in batches if batch.batch_id not in newest]
        datasets = [source.dataset for source in sources]
        fetch(connection, _NOT_REPLACED, (tenant_id, datasets, replaced))
        if replaced:
            fetch(connection, _REPLACED, (replaced,))
    return waiting


def _hold_shrunk(
    connection: psycopg.Connection, environment: StageEnvironment, tenant_id: str, pipeline: str, source: AnySource
) -> int:
    """Put deliveries that lack too much on record; their partitions are held from then on."""
    if source.max_shrink is None:
        return 0
    extraction = environment.declarations.contract(source.dataset, "extraction")
    raw = environment.declarations.contract(source.dataset, "raw")
    waiting = 0
    for delivery in shrunk(source, _delivered(connection, tenant_id, pipeline, source.dataset)):
        batches = fetch_dicts(connection, _BATCHES, (list(delivery.batches),))
        change = Change(
            DriftClass.DELIVERY_SHRUNK, ", ".join(batch["source_id"] for batch in batches), True,
            f"at least {1 - source.max_shrink:.6g} of {delivery.before}", str(delivery.rows),
            values=tuple(batch["content_sha256"] for batch in batches))
        for batch in batches:
            drift_register.record(connection, batch, ObservedSchema(()), [change], extraction, raw)
        waiting += len(batches)
    return waiting


def _delivered(connection: psycopg.Connection, tenant_id: str, pipeline: str, dataset: str) -> list[Delivered]:
    rows = fetch_dicts(connection, _DELIVERED, (tenant_id, pipeline, dataset))
    return [Delivered(**row) for row in rows]


def _refuse_ambiguous(source: AnySource, batches: Sequence[Delivered]) -> None:
    several = ambiguous(source, batches)
    if several:
        day = several[0].partition_date
        named = ", ".join(sorted(batch.source_id for batch in several))
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            f"source {source.name} delivers a {source.delivery} in one file, found {len(several)}"
            f"{f' of {day}' if day else ''}: {named}",
            hint=f"say in the manifest what they are: `parts: together` if they are parts of one {source.delivery}, "
            "`parts: newest` if each is a correction of the one before",
        )


_ANY_UNIT = "select 1 from platform.source_unit where tenant_id = $1 and dataset = $2 limit 1"
_NOT_NOTED = """
select 1 from platform.source_unit u
left join platform.absent_unit a using (tenant_id, dataset, source_id)
where tenant_id = $1 and dataset = $2 and (source_id = any($3)) = (a.source_id is not null)
limit 1
"""
_ABSENT = """
with found as (
    delete from platform.absent_unit a
    where tenant_id = $1 and dataset = $2 and (not $4 or source_id = any($3))
)
insert into platform.absent_unit (tenant_id, dataset, source_id)
select tenant_id, dataset, source_id from platform.source_unit
where $4 and tenant_id = $1 and dataset = $2 and source_id <> all($3)
on conflict do nothing
"""
_DELIVERED = """
select s.batch_id, s.source_id, s.partition_date, s.delivery_order as order, s.accepted as rows, b.replay_of,
    s.is_current and (b.replay_of is not null or not exists (
        select from platform.absent_unit a join platform.source_unit u using (tenant_id, dataset, source_id)
        where u.batch_id = s.batch_id
    ) or exists (
        select from platform.source_unit u where u.batch_id = s.batch_id and not exists (
            select from platform.absent_unit a
            where a.tenant_id = u.tenant_id and a.dataset = u.dataset and a.source_id = u.source_id)
    )) as stands,
    n.batch_id is not null as included,
    exists (
        select from platform.drift_batch w join platform.drift d on d.drift_id = w.drift_id
        where w.batch_id = s.batch_id and d.changes @> '[{"kind": "delivery_shrunk"}]'
    ) as judged
from platform.standing_batch s
join platform.raw_batch b on b.batch_id = s.batch_id
left join platform.normalized_batch n on n.tenant_id = $1 and n.pipeline = $2 and n.batch_id = s.batch_id
where s.tenant_id = $1 and s.dataset = $3 and (s.is_current or n.batch_id is not null)
order by s.batch_id
"""
_BATCHES = """
select batch_id, tenant_id, pipeline, dataset, source_id, partition_date::text, content_sha256, run_token
from platform.raw_batch where batch_id = any($1) order by batch_id
"""
_NOT_REPLACED = """
delete from platform.replaced_batch where tenant_id = $1 and dataset = any($2) and batch_id <> all($3)
"""
_REPLACED = """
insert into platform.replaced_batch (batch_id, tenant_id, dataset)
select batch_id, tenant_id, dataset from platform.raw_batch where batch_id = any($1)
on conflict do nothing
"""
