"""What rules make of events: always the same jobs, and why."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.action.engine import Rulebook, decide
from resources.action.model import Decision, JobDraft, JobState, SeriesFacts, Signal, Silence, State, Unacknowledged
from tests.unit.action.conftest import CLOCKS, MINUTE, NOW, Events, make_rule

Book = Callable[..., Rulebook]


class Story:
    """Decisions one after the other, each upon the state the one before left."""

    def __init__(self, book: Rulebook, **state: Any) -> None:
        self.book, self.state = book, State(**state)

    def go(self, *signals: Signal, now: dt.datetime = NOW) -> Decision:
        decision = decide(self.book, signals, self.state, now, explain=True)
        self.state = State(
            {**self.state.incidents, **{i.key: i for i in decision.incidents}},
            {**self.state.groups, **{g.key: g for g in decision.groups}}, self.state.silences,
            tuple(job for job in self.state.unacknowledged if job.job_id not in decision.escalated))
        return decision


def kinds(jobs: Sequence[JobDraft]) -> list[tuple[str, str]]:
    return [(job.kind, job.period) for job in jobs]


def test_a_value_above_the_limit_makes_one_job_and_its_key_is_always_the_same(book: Book, event: Events) -> None:
    signals = [event(59.9), event(66.4, unit="south")]
    decision = decide(book(), signals, State(), NOW, explain=True)
    (job,) = decision.jobs
    assert (job.subject, dict(job.dimensions), job.period) == (
        "dso", {"business_unit": "south", "grain": "month"}, "2026-03")
    assert (job.state, job.route, job.occurrences[0].facts["value"]) == (JobState.QUEUED, ("ops",), "66.4")
    assert decide(book(), signals, State(), NOW + MINUTE) == decide(book(), signals, State(), NOW + MINUTE)
    assert decide(book(), signals, State(), NOW + 99 * MINUTE).jobs[0].key == job.key
    assert [(e.event_id, e.outcome) for e in decision.explanations] == [("e1", "nothing"), ("e2", "job")]
    assert "value > 60.0" in decision.explanations[0].reason


def test_events_read_again_change_nothing(book: Book, event: Events) -> None:
    story = Story(book(make_rule(recovery="value <= 60.0")))
    signals = [event(61, "2026-01"), event(50, "2026-02"), event(62, "2026-03")]
    assert kinds(story.go(*signals).jobs) == [("alert", "2026-01"), ("recovery", "2026-02"), ("alert", "2026-03")]
    again = story.go(*signals)
    assert again.jobs == () and again.incidents == ()
    assert {explanation.outcome for explanation in again.explanations} == {"seen"}


def test_the_same_period_fires_once_more_only_after_it_recovered(book: Book, event: Events) -> None:
    story = Story(book(make_rule(recovery="value < 55.0")))
    first = story.go(event(61)).jobs[0]
    assert story.go(event(63)).jobs[0].key == first.key, "a restated value is the same job"
    assert story.go(event(58)).jobs == (), "between the limits nothing ends"
    (recovery,) = story.go(event(50)).jobs
    assert (recovery.kind, recovery.correlation) == ("recovery", first.correlation)
    again = story.go(event(70)).jobs[0]
    assert again.key != first.key and again.correlation != first.correlation


def test_an_older_period_does_not_end_a_newer_ones_incident(book: Book, event: Events) -> None:
    story = Story(book(make_rule(recovery="value <= 60.0")))
    story.go(event(61, "2026-03"))
    assert story.go(event(40, "2026-01")).jobs == ()
    assert kinds(story.go(event(61, "2026-02")).jobs) == [("alert", "2026-02")]
    assert kinds(story.go(event(40, "2026-04")).jobs) == [("recovery", "2026-04")]


def test_later_jobs_of_an_incident_add_to_its_ticket(book: Book, event: Events) -> None:
    jobs = Story(book()).go(event(61, "2026-01"), event(62, "2026-02")).jobs
    assert [job.first for job in jobs] == [True, False]
    assert len({job.correlation for job in jobs}) == 1


def test_dimensions_grain_kpi_and_tenant_select_the_events(book: Book, event: Events) -> None:
    subject = {"kpi": "dso", "grain": "month", "dimensions": {"business_unit": "north"}}
    rule = make_rule(subject=subject, tenants=["acme"])
    signals = [event(70), event(70, unit="south"), event(70, tenant="globex"), event(70, grain="month_total"),
               event(70, kpi="revenue")]
    assert [job.occurrences[0].event_id for job in decide(book(rule), signals, State(), NOW).jobs] == ["e1"]


def test_conditions_read_the_history_of_the_series(book: Book, event: Events) -> None:
    facts = SeriesFacts(Decimal(50), dt.date(2026, 2, 1), Decimal(48), Decimal("2.5"), 12, Decimal(47), Decimal("5.1"))
    for condition, holds in {
        "change > 9.9 && change_ratio > 0.19": True, "value > mean + 3.0 * deviation": True, "score > 5.2": False,
        "observations >= 12 && days_since_prior == 28": True, "prior_scaled == 50000000": True, "age_days == 31": True,
        "value_scaled == 60000000": True, "restatement > 0.0": False, "value - expected > 12.0": True,
    }.items():
        rule = make_rule(condition=condition, anomaly={"periods": 12})
        found = decide(book(rule), [event(60, facts=facts)], State(), NOW)
        assert bool(found.jobs) is holds, condition


def test_what_is_missing_is_told(book: Book, event: Events) -> None:
    decision = decide(book(make_rule(condition="change > 1.0")), [event(60)], State(), NOW, explain=True)
    assert (decision.jobs, decision.explanations[0].reason) == ((), "there is no change")


# Debounce ----------------------------------------------------------------------------------------------------


def test_a_condition_must_hold_often_enough_in_a_row(book: Book, event: Events) -> None:
    story = Story(book(make_rule(debounce={"consecutive": 3})))
    found = [story.go(event(value, f"2026-0{month}")).jobs
             for month, value in enumerate((61, 61, 50, 61, 61, 61, 61), 1)]
    assert [kinds(jobs) for jobs in found] == [[], [], [], [], [], [("alert", "2026-06")], [("alert", "2026-07")]]


def test_a_condition_must_hold_long_enough(book: Book, event: Events) -> None:
    story = Story(book(make_rule(debounce={"hold": "10m"})))
    assert story.go(event(61)).jobs == ()
    assert story.go(event(50, at=NOW + 5 * MINUTE), now=NOW + 5 * MINUTE).jobs == ()
    assert story.go(now=NOW + 20 * MINUTE).jobs == (), "it did not hold"
    story.go(event(62, at=NOW + 21 * MINUTE), now=NOW + 21 * MINUTE)
    assert story.go(now=NOW + 30 * MINUTE).jobs == ()
    assert kinds(story.go(now=NOW + 31 * MINUTE).jobs) == [("alert", "2026-03")]
    assert story.go(now=NOW + 99 * MINUTE).jobs == ()


# Groups ------------------------------------------------------------------------------------------------------


def test_firings_wait_for_each_other_and_come_as_one_job(book: Book, event: Events) -> None:
    rule = make_rule(recovery="value <= 60.0", aggregate={
        "group_by": ["kpi"], "group_wait": "30s", "group_interval": "5m", "repeat_interval": "1h"})
    story = Story(book(rule))
    assert story.go(event(61), event(62, unit="south"), event(63, tenant="globex")).jobs == ()
    later = NOW + dt.timedelta(seconds=30)
    acme, globex = story.go(now=later).jobs
    assert [len(acme.occurrences), len(globex.occurrences)] == [2, 1]
    assert {o.labels["business_unit"] for o in acme.occurrences} == {"north", "south"}
    story.go(event(64, unit="east", at=later), now=later + MINUTE)
    assert story.go(now=later + 4 * MINUTE).jobs == (), "the interval is not over"
    (second,) = story.go(now=later + 5 * MINUTE).jobs
    assert [o.labels["business_unit"] for o in second.occurrences] == ["east"]
    assert second.correlation == acme.correlation and second.key != acme.key and not second.first
    repeated = [job for job in story.go(now=later + 70 * MINUTE).jobs if job.tenant_id == "acme"]
    assert [len(job.occurrences) for job in repeated] == [3], "all that fire still"
    assert story.go(event(50), event(50, unit="south")).jobs == ()
    (end,) = story.go(event(50, unit="east")).jobs
    assert (end.kind, end.correlation) == ("recovery", acme.correlation)


def test_a_firing_that_ended_before_its_group_was_sent_is_not_sent(book: Book, event: Events) -> None:
    story = Story(book(make_rule(recovery="value <= 60.0", aggregate={"group_wait": "30s"})))
    story.go(event(61), event(50))
    assert story.go(now=NOW + MINUTE).jobs == ()


# Who is not told ---------------------------------------------------------------------------------------------


def test_a_stronger_rule_inhibits_a_weaker_one_with_the_same_labels(book: Book, event: Events) -> None:
    weak = make_rule("a_weak_one", condition="value > 50.0",
                     inhibited_by=[{"rule": "too_high", "equal": ["business_unit"]}])
    jobs = decide(book(weak, make_rule()), [event(61), event(55, unit="south")], State(), NOW).jobs
    assert [(job.rule, job.state, job.reason) for job in jobs] == [
        ("too_high", JobState.QUEUED, ""),
        ("a_weak_one", JobState.SUPPRESSED, "inhibited by too_high, which fires"),
        ("a_weak_one", JobState.QUEUED, "")]


def test_nothing_recovers_of_which_nobody_was_told(book: Book, event: Events) -> None:
    silence = Silence(7, "acme", None, {"business_unit": "north"}, NOW - MINUTE, NOW + MINUTE, "known", "ann")
    story = Story(book(make_rule(recovery="value <= 60.0")), silences=(silence,))
    suppressed, other = story.go(event(61), event(61, tenant="globex")).jobs
    assert suppressed.state is JobState.SUPPRESSED and "silence 7 until" in suppressed.reason
    assert other.state is JobState.QUEUED, "another tenant's silence"
    assert [job.tenant_id for job in story.go(event(50), event(50, tenant="globex"), now=NOW + 5 * MINUTE).jobs] == [
        "globex"]


@pytest.mark.parametrize(
    ("at", "spec", "state", "until"),
    [
        # Good Friday of 2026 is the 3rd of April, Easter Monday the 6th; London is an hour ahead of UTC
        ("2026-04-02T12:00", {"business_hours": {"from": "09:00", "to": "17:00"}}, JobState.QUEUED, None),
        ("2026-04-02T16:00", {"business_hours": {"from": "09:00", "to": "17:00"}}, JobState.QUEUED, "2026-04-07T08:00"),
        ("2026-04-02T07:59", {"business_hours": {"from": "09:00", "to": "17:00"}}, JobState.QUEUED, "2026-04-02T08:00"),
        ("2026-04-02T22:30", {"mute": [{"from": "22:00", "to": "06:00"}]}, JobState.QUEUED, "2026-04-03T05:00"),
        ("2026-04-04T01:00", {"mute": [{"days": ["friday"], "from": "22:00", "to": "06:00"}]}, JobState.QUEUED,
         "2026-04-04T05:00"),
        ("2026-04-05T01:00", {"mute": [{"days": ["friday"], "from": "22:00", "to": "06:00"}]}, JobState.QUEUED, None),
        ("2026-04-02T22:30", {"mute": [{"from": "22:00", "to": "24:00", "then": "suppress"}]}, JobState.SUPPRESSED,
         None),
        ("2026-10-24T12:00", {"business_hours": {"from": "09:00", "to": "17:00"}}, JobState.QUEUED, "2026-10-26T09:00"),
    ],
)
def test_the_tenants_hours_decide_when(
    book: Book, event: Events, at: str, spec: dict[str, Any], state: JobState, until: str | None
) -> None:
    now = dt.datetime.fromisoformat(at).replace(tzinfo=dt.UTC)
    (job,) = decide(book(make_rule(**spec)), [event(61)], State(), now).jobs
    wanted = None if until is None else dt.datetime.fromisoformat(until).replace(tzinfo=dt.UTC)
    assert (job.state, job.not_before) == (state, wanted), job.reason


def test_a_job_may_wait_for_an_approval(book: Book, event: Events) -> None:
    story = Story(book(make_rule(approval={"required": True, "expires": "2h"}, recovery="value <= 60.0")))
    (job,) = story.go(event(61)).jobs
    assert (job.state, job.expires_at) == (JobState.PENDING_APPROVAL, NOW + 120 * MINUTE)
    assert story.go(event(50)).jobs[0].state is JobState.QUEUED, "a recovery needs none"


def test_a_job_nobody_acknowledged_is_escalated_once(book: Book, event: Events) -> None:
    ruled = book(make_rule(escalation={"after": "1h", "route": ["boss"]}))
    (job,) = decide(ruled, [event(61)], State(), NOW).jobs
    late = Unacknowledged(5, job, NOW + 60 * MINUTE)
    story = Story(ruled, unacknowledged=(late,))
    assert story.go(now=NOW + 59 * MINUTE).escalated == ()
    decision = story.go(now=NOW + 60 * MINUTE)
    (escalation,) = decision.jobs
    assert decision.escalated == (5,)
    assert (escalation.kind, escalation.route, escalation.severity) == ("escalation", ("boss",), "critical")
    assert escalation.correlation == job.correlation and escalation.key != job.key
    assert story.go(now=NOW + 99 * MINUTE).jobs == ()


# Always ------------------------------------------------------------------------------------------------------

RULES = [
    make_rule(recovery="value < 55.0"), make_rule("grouped", aggregate={"group_by": ["business_unit"]}),
    make_rule("patient", debounce={"consecutive": 2}), make_rule("held", debounce={"hold": "2m"}),
    make_rule("weak", condition="value > 40.0", inhibited_by=[{"rule": "too_high", "equal": ["business_unit"]}]),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(30, 80), st.integers(1, 4), st.sampled_from(["north", "south"]),
                          st.sampled_from(["acme", "globex"])), max_size=25), st.data())
def test_however_events_are_cut_into_pages_and_read_again_the_jobs_are_the_same(
    facts: list[tuple[int, int, str, str]], data: st.DataObject
) -> None:
    make = Events()
    signals = [make(value, f"2026-0{month}", unit=unit, tenant=tenant) for value, month, unit, tenant in facts]
    ruled = Rulebook(RULES, CLOCKS)
    whole = {job.key: job for job in Story(ruled).go(*signals).jobs}
    story, found, at = Story(ruled), {}, 0
    while at < len(signals):
        size = data.draw(st.integers(1, 6))
        again = data.draw(st.integers(0, at))
        for job in story.go(*signals[again:at + size]).jobs:
            found.setdefault(job.key, job)
        at += size
    assert {k: (j.kind, j.state) for k, j in found.items()} == {k: (j.kind, j.state) for k, j in whole.items()}
    assert all(job.tenant_id == job.occurrences[-1].envelope["tenant"] for job in found.values())
