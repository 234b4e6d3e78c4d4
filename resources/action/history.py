"""What came before an event's period in its series: computed in SQL, from the publication that the event tells of.

A publication never changes, so the same event has the same history whenever it is read. The robust score is that of
Iglewicz and Hoaglin (1993): distance from the median in units of 1.4826 x MAD, which for normal data is the standard
deviation; it does not exist where the window does not vary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from resources.action.engine import Rulebook
from resources.action.model import SeriesFacts, Signal
from resources.governance.actions import ActionRule
from resources.governance.kpis import Kpi
from resources.runtime.database import as_json, fetch
from resources.storage import published_store


@dataclass(frozen=True)
class _Question:
    """Facts wanted of one publication: whose, of which KPI and version, and over which windows."""

    tenant_id: str
    kpi: str
    version: int
    periods: int
    season: int
    season_periods: int
    least: int


def with_history(
    connection: psycopg.Connection, book: Rulebook, kpis: Mapping[str, Kpi], signals: Sequence[Signal]
) -> list[Signal]:
    """The signals with the facts that their rules read; those that no rule reads facts of as they are."""
    wanted: dict[_Question, list[tuple[int, str]]] = defaultdict(list)
    questions: dict[tuple[Any, ...], _Question | None] = {}
    for index, signal in enumerate(signals):
        for rule in book.for_event(signal):
            if not book.reads_history(rule) or not signal.data.get("period_start"):
                continue
            kind = (rule.name, signal.tenant_id, str(signal.data.get("kpi")), signal.data.get("publication_version"))
            if kind not in questions:
                questions[kind] = _question(rule, signal, kpis)
            if question := questions[kind]:
                wanted[question].append((index, rule.name))
    found: dict[int, dict[str, SeriesFacts]] = defaultdict(dict)
    for question, readers in wanted.items():
        indexes = sorted({index for index, _ in readers})
        answers = _ask(connection, kpis[question.kpi], question, [signals[index] for index in indexes])
        by_index = dict(zip(indexes, answers, strict=True)) if answers else {}
        for index, rule_name in readers:
            if index in by_index:
                found[index][rule_name] = by_index[index]
    return [signal.with_facts(found[index]) if index in found else signal for index, signal in enumerate(signals)]


def _question(rule: ActionRule, signal: Signal, kpis: Mapping[str, Kpi]) -> _Question | None:
    kpi, version = signal.data.get("kpi"), signal.data.get("publication_version")
    if kpi not in kpis or not isinstance(version, int):
        return None
    anomaly = rule.spec.anomaly
    return _Question(signal.tenant_id, kpi, version, rule.spec.history.periods, anomaly.season if anomaly else 1,
                     anomaly.periods if anomaly else 3, anomaly.least if anomaly else 3)


def _ask(connection: psycopg.Connection, kpi: Kpi, question: _Question, signals: Sequence[Signal]) -> list[SeriesFacts]:
    """Facts of each signal; none at all when nothing was published."""
    snapshot = sql.Identifier(published_store.SCHEMA, f"snapshot__{kpi.name}")
    if fetch(connection, "select to_regclass($1)", (snapshot.as_string(connection),))[0][0] is None:
        return []
    dimensions = sql.SQL(", ").join(
        sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(name)) for name in kpi.dimensions)
    lengths = {grain.name: grain.period for grain in kpi.spec.grains}
    asked = as_json([
        {"number": number, "grain": signal.data.get("grain"), "dimensions": dict(signal.dimensions),
         "period_start": signal.data["period_start"]} for number, signal in enumerate(signals)])
    statement = sql.SQL(_FACTS).format(snapshot=snapshot, dimensions=dimensions).as_string(connection)
    rows = fetch(connection, statement, (
        question.tenant_id, question.version, asked, as_json(lengths), question.periods, question.season,
        question.season_periods, question.least))
    return [SeriesFacts(*row) for row in rows]


def signals_of(rows: Sequence[Any]) -> list[Signal]:
    """Events as they lie in the outbox, as the engine takes them."""
    return [Signal(row.position, row.event_id, row.tenant_id, row.type, row.subject, row.occurred_at, row.envelope)
            for row in rows]


_FACTS = """
with asked as materialized (
    select * from jsonb_to_recordset($3::text::jsonb)
        as a (number int, grain text, dimensions jsonb, period_start date)
),
series as (
    select grain, jsonb_strip_nulls(jsonb_build_object({dimensions})) as dimensions, period_start, value,
        case $4::text::jsonb ->> grain
            when 'month' then extract(year from period_start)::int * 12 + extract(month from period_start)::int
            else period_start - date '2000-01-03' end as number
    from {snapshot}
    where tenant_id = $1 and version = $2::int and grain in (select grain from asked)
),
windows as (
    select grain, dimensions, period_start, value,
        lag(value) over series as prior,
        lag(period_start) over series as prior_start,
        avg(value) over before as mean,
        stddev_samp(value) over before as deviation,
        count(value) over before as observations,
        array_agg(value) over (
            partition by grain, dimensions, ((number % $6::int) + $6::int) % $6::int order by period_start
            rows between $7::int preceding and 1 preceding) as season
    from series
    window series as (partition by grain, dimensions order by period_start),
        before as (partition by grain, dimensions order by period_start rows between $5::int preceding and 1 preceding)
),
found as materialized (
    select asked.number, windows.*
    from asked left join windows using (grain, dimensions, period_start)
)
select prior, prior_start, mean, found.deviation, coalesce(observations, 0)::int,
    median.expected,
    case when spread.deviation > 0 then (value - median.expected) / (1.4826 * spread.deviation) end as score
from found
cross join lateral (
    select case when count(v) >= $8::int then percentile_cont(0.5) within group (order by v) end::numeric as expected
    from unnest(season) as s (v) where v is not null
) as median
cross join lateral (
    select percentile_cont(0.5) within group (order by abs(v - median.expected))::numeric as deviation
    from unnest(season) as s (v) where v is not null
) as spread
order by number
"""
