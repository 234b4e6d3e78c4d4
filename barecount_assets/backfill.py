"""Back-fills: a range of days run partition by partition of the calendar, resumable, one trail of evidence.

A back-fill begins with `backfill.started` and ends with `backfill.finished`, which names every partition with the run
tokens of its stages. What stopped half-way is resumed by the same request: finished partitions are not run again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import psycopg

from barecount_assets import lifecycle
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.stages.environment import StageEnvironment
from resources.data_utilities.fiscal import fiscal_periods
from resources.runners.facade import Progress
from resources.runners.stage import StageReceipt, run_token
from resources.runtime import events
from resources.runtime.database import as_json, fetch
from resources.runtime.errors import BareCountError
from resources.trust import ledger

Granularity = Literal["day", "week", "month", "fiscal_period"]


@dataclass(frozen=True)
class Range:
    """Days of one partition, both inclusive."""

    first: dt.date
    last: dt.date


@dataclass(frozen=True)
class BackfillRequest:
    """What to run again: the whole range as a run's request, the size of its partitions, and who asks."""

    run: RunRequest
    granularity: Granularity
    requested_by: str


@dataclass(frozen=True)
class BackfillOutcome:
    """How far a back-fill came.

    Attributes:
        partitions: all of them, in order; `done` how many are, `resumed` how many were before.
        error: why it stopped, None when it did not.
        evidence_seq: number of its last entry: `backfill.finished`, or `backfill.started` when it stopped.
    """

    request: BackfillRequest
    run_token: str
    partitions: tuple[Range, ...]
    done: int
    resumed: int
    error: BareCountError | None
    evidence_seq: int

    def to_json(self) -> dict[str, Any]:
        run = self.request.run
        return {
            "pipeline": run.pipeline, "tenant": run.tenant_id, "from": str(run.start), "to": str(run.end),
            "run_token": self.run_token, "partitions": len(self.partitions), "done": self.done,
            "resumed": self.resumed, "evidence": self.evidence_seq, **(self.error.envelope() if self.error else {}),
        }


def partitions_of(environment: StageEnvironment, request: BackfillRequest) -> tuple[Range, ...]:
    """The calendar's partitions that the range touches, cut to the range, oldest first."""
    start, end = request.run.start, request.run.end
    ends: list[dt.date] = []
    if request.granularity == "fiscal_period":
        settings = environment.declarations.calendar(request.run.tenant_id).fiscal
        ends = [period.end for period in fiscal_periods(settings, start, end)]
    else:
        ends = [day for day in (start + dt.timedelta(days=n) for n in range((end - start).days + 1))
                if _ends(day, request.granularity)]
    lasts = sorted({min(last, end) for last in [*ends, end] if last >= start})
    firsts = [start, *(last + dt.timedelta(days=1) for last in lasts[:-1])]
    return tuple(Range(first, last) for first, last in zip(firsts, lasts, strict=True))


def backfill(
    environment: StageEnvironment, request: BackfillRequest, progress: Progress,
    on_partition: Callable[[Range, int, int, RunOutcome], None],
    on_receipt: Callable[[StageReceipt], None] | None = None,
) -> BackfillOutcome:
    """Run every partition that is not done, oldest first, and stop at the first that fails.

    Args:
        on_partition: is told of each partition that ran: its days, its number, how many there are, its outcome.
    """
    partitions = partitions_of(environment, request)
    with environment.database.connect(autocommit=True) as connection:
        number, token, started = _begin(environment, connection, request, partitions)
        finished = {row[0] for row in fetch(
            connection, "select first_day from platform.backfill_partition where backfill_id = $1", (number,))}
        done = len(finished)
        for position, part in enumerate(partitions, start=1):
            if part.first in finished:
                continue
            outcome = _run(environment, replace(request.run, start=part.first, end=part.last), progress, on_receipt)
            on_partition(part, position, len(partitions), outcome)
            if outcome.error is not None:
                return BackfillOutcome(request, token, partitions, done, len(finished), outcome.error, started)
            fetch(connection, _PARTITION, (number, part.first, part.last, as_json(_tokens(outcome)), outcome.changed,
                                           outcome.dagster_run_id))
            done += 1
        ended = _end(connection, request, number, token)
    return BackfillOutcome(request, token, partitions, done, len(finished), None, ended)


def _ends(day: dt.date, granularity: Granularity) -> bool:
    if granularity == "week":
        return day.isoweekday() == 7
    return granularity == "day" or (day + dt.timedelta(days=1)).day == 1


def _run(
    environment: StageEnvironment, run: RunRequest, progress: Progress,
    on_receipt: Callable[[StageReceipt], None] | None,
) -> RunOutcome:
    try:
        return lifecycle.run(environment, run, progress, on_receipt)
    except BareCountError as error:
        return RunOutcome(run, False, [], error)


def _tokens(outcome: RunOutcome) -> Mapping[str, str]:
    """Run tokens of a partition's stages, by stage and source."""
    return {"/".join(filter(None, (r.stage.value, r.facts.get("source")))): r.run_token for r in outcome.receipts}


def _begin(
    environment: StageEnvironment, connection: psycopg.Connection, request: BackfillRequest,
    partitions: tuple[Range, ...],
) -> tuple[int, str, int]:
    """Number, token and first entry of the back-fill: of the one that stopped half-way, or of a new one."""
    run = request.run
    with connection.transaction():
        environment.register_tenant(connection, run.tenant_id)
        key = (run.tenant_id, run.pipeline, run.start, run.end, request.granularity)
        head = ledger.newest(connection, run.tenant_id)
        unfinished = fetch(connection, _UNFINISHED, key)
        if unfinished:
            return unfinished[0]  # type: ignore[return-value]
        token = run_token(backfill=run.pipeline, tenant=run.tenant_id, first=str(run.start), last=str(run.end),
                          granularity=request.granularity, after=head)
        payload = {"from": str(run.start), "to": str(run.end), "granularity": request.granularity,
                   "partitions": len(partitions), "by": request.requested_by}
        seq = _record(connection, run, "backfill.started", token, payload)
        number = fetch(connection, _START, (*key, token, request.requested_by, seq))[0][0]
    return number, token, seq


def _end(connection: psycopg.Connection, request: BackfillRequest, number: int, token: str) -> int:
    run = request.run
    with connection.transaction():
        rows = fetch(connection, _PARTITIONS, (number,))
        seq = _record(connection, run, "backfill.finished", token, {
            "from": str(run.start), "to": str(run.end), "granularity": request.granularity,
            "partitions": [{"from": str(first), "to": str(last), "changed": changed, "runs": tokens}
                           for first, last, changed, tokens in rows]})
        fetch(connection, _END, (number, run.tenant_id, run.pipeline, token, seq))
    return seq


def _record(
    connection: psycopg.Connection, run: RunRequest, kind: str, token: str, payload: Mapping[str, Any]
) -> int:
    seq = ledger.append(connection, ledger.Entry(run.tenant_id, kind, run.pipeline, token, payload))
    facts = {**payload, "partitions": payload["partitions"] if isinstance(payload["partitions"], int)
             else len(payload["partitions"])}
    events.append(connection, events.Event(
        run.tenant_id, kind, run.pipeline, token, facts, run.pipeline, seq, token))
    return seq


_UNFINISHED = """
select b.backfill_id, b.run_token, b.evidence_seq from platform.backfill b
where b.tenant_id = $1 and b.pipeline = $2 and b.first_day = $3 and b.last_day = $4 and b.granularity = $5
    and not exists (select from platform.backfill_end e where e.backfill_id = b.backfill_id)
order by b.backfill_id desc limit 1
"""
_START = """
insert into platform.backfill (
    tenant_id, pipeline, first_day, last_day, granularity, run_token, requested_by, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7, $8) returning backfill_id
"""
_PARTITION = """
insert into platform.backfill_partition (backfill_id, first_day, last_day, tokens, changed, dagster_run)
values ($1, $2, $3, $4::text::jsonb, $5, $6) on conflict do nothing
"""
_PARTITIONS = """
select first_day, last_day, changed, tokens from platform.backfill_partition where backfill_id = $1 order by first_day
"""
_END = """
insert into platform.backfill_end (backfill_id, tenant_id, pipeline, run_token, evidence_seq)
values ($1, $2, $3, $4, $5)
"""
