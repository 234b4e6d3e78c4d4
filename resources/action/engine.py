"""The action engine: events and rules in, jobs out, and nothing else happens.

`decide` is a function of its arguments: the same events, rules, state and time give the same jobs, in the same order,
with the same keys. It reads no clock, no database and no file. `jobs.py` calls it and stores what follows.

How a rule lives: the condition holds for an event of a series, often or long enough (debounce): the series fires, with
one job per period. While it fires, a stronger rule may inhibit others. It ends when the recovery condition holds (the
condition no longer does, where none is declared) for the period that fires or a later one. Each end begins a new
episode, so that the same period may fire once more after it recovered.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from resources.action import hours
from resources.action.hours import TenantClock
from resources.action.model import (
    EVENT_PREFIX,
    Decision,
    Explanation,
    Group,
    Incident,
    JobDraft,
    JobKind,
    JobState,
    Occurrence,
    SeriesFacts,
    Signal,
    State,
    Unacknowledged,
)
from resources.action.values import HISTORY_NAMES, Values, facts_of
from resources.governance.actions import ActionRule, seconds, strongest_first
from resources.runtime.conditions import Condition, compile_condition

_MEMORY = 10_000  # kinds of events whose rules are remembered
_NO_FACTS = SeriesFacts()


class Rulebook:
    """Rules made ready: conditions compiled, found by tenant and type of event, stronger ones first."""

    def __init__(self, rules: Sequence[ActionRule], clocks: Mapping[str, TenantClock]) -> None:
        self.rules = {rule.name: rule for rule in rules}
        self.clocks = clocks
        self._conditions = {rule.name: compile_condition(rule.spec.condition) for rule in rules}
        self._recoveries = {rule.name: compile_condition(rule.spec.recovery) for rule in rules if rule.spec.recovery}
        self._by_event: dict[tuple[str, str], list[ActionRule]] = {}
        for rule in strongest_first(rules):
            for tenant in rule.spec.tenants:
                self._by_event.setdefault((tenant, EVENT_PREFIX + rule.spec.subject.event), []).append(rule)
        self._names = sorted({name for rule in rules for name in rule.spec.subject.dimensions})
        self._found: dict[tuple[Any, ...], tuple[ActionRule, ...]] = {}
        self._history_readers = frozenset(rule.name for rule in rules if self._needs_history(rule))

    @property
    def event_types(self) -> list[str]:
        """Types of events that some rule looks at, as `events.read` takes them."""
        return sorted({rule.spec.subject.event for rule in self.rules.values()})

    def condition(self, rule: ActionRule) -> Condition:
        return self._conditions[rule.name]

    def recovery(self, rule: ActionRule) -> Condition | None:
        return self._recoveries.get(rule.name)

    def for_event(self, signal: Signal) -> tuple[ActionRule, ...]:
        """Rules whose subject the event is; remembered for events that no rule tells apart."""
        rules = self._by_event.get((signal.tenant_id, signal.type))
        if rules is None:
            return ()
        data, dimensions = signal.data, signal.dimensions
        kind = (signal.tenant_id, signal.type, data.get("kpi"), data.get("grain"),
                *(dimensions.get(name) for name in self._names))
        try:
            found = self._found.get(kind)
        except TypeError:  # a value that is no text
            return tuple(rule for rule in rules if matches(rule, signal))
        if found is None:
            if len(self._found) >= _MEMORY:
                self._found.clear()
            found = self._found[kind] = tuple(rule for rule in rules if matches(rule, signal))
        return found

    def reads_history(self, rule: ActionRule) -> bool:
        """Whether a rule's conditions need more of a series than the event tells."""
        return rule.name in self._history_readers

    def _needs_history(self, rule: ActionRule) -> bool:
        conditions = filter(None, (self.condition(rule), self.recovery(rule)))
        return rule.spec.anomaly is not None or any(one.variables & HISTORY_NAMES for one in conditions)


def matches(rule: ActionRule, signal: Signal) -> bool:
    """Whether an event is the subject of a rule, its type and tenant apart."""
    subject, data = rule.spec.subject, signal.data
    if subject.kpi is not None and subject.kpi != data.get("kpi"):
        return False
    if subject.grain is not None and subject.grain != data.get("grain"):
        return False
    dimensions = signal.dimensions
    return all(dimensions.get(name) == value for name, value in subject.dimensions.items())


def decide(book: Rulebook, signals: Sequence[Signal], state: State, now: dt.datetime, *, explain: bool = False
           ) -> Decision:
    """What follows from events, in order, and from the time having come.

    Args:
        signals: newer than those decided before, by position within a tenant.
        explain: also say why, event by event and rule by rule.
    """
    work = _Work(book, state, now, explain)
    for signal in signals:
        for rule in book.for_event(signal):
            work.event(rule, signal)
    work.time_passed()
    return work.decision()


class _Work:
    """One decision while it is being made."""

    def __init__(self, book: Rulebook, state: State, now: dt.datetime, explain: bool) -> None:
        self._book, self._state, self._now, self._explain = book, state, now, explain
        self._incidents = dict(state.incidents)
        self._groups = dict(state.groups)
        self._firing: dict[tuple[str, str], dict[str, Incident]] = {}
        for incident in state.incidents.values():
            self._note_firing(incident)
        self._changed_incidents: dict[tuple[str, str, str], Incident] = {}
        self._changed_groups: dict[tuple[str, str, str], Group] = {}
        self._jobs: dict[str, JobDraft] = {}
        self._escalated: list[int] = []
        self._explanations: list[Explanation] = []
        self._values: Values | None = None

    def decision(self) -> Decision:
        return Decision(tuple(self._jobs.values()), tuple(self._changed_incidents.values()),
                        tuple(self._changed_groups.values()), tuple(self._escalated), tuple(self._explanations))

    # --- events ---------------------------------------------------------------------------------------------

    def event(self, rule: ActionRule, signal: Signal) -> None:
        """What one event does to one rule."""
        name = rule.name
        known = self._incidents.get((signal.tenant_id, name, signal.series))
        if known is not None and signal.position <= known.position:
            self._say(rule, signal, "seen", f"decided before: newer event {known.position} is on record")
            return
        facts = signal.series_facts.get(name, _NO_FACTS)
        values = self._values_of(signal, facts, rule)
        outcome = self._book.condition(rule).evaluate(values)
        if not outcome.holds and known is None and not self._explain:
            return
        incident = known or Incident(signal.tenant_id, name, signal.series)
        if outcome.holds:
            self._holds(rule, incident, signal, facts)
        else:
            self._holds_not(rule, incident, signal, values, outcome.reason)

    def _values_of(self, signal: Signal, facts: SeriesFacts, rule: ActionRule) -> Values:
        """Values for a rule's conditions; rules that look at the same event and facts share them."""
        if self._values is None or self._values.signal is not signal or self._values.facts is not facts:
            self._values = Values(signal, facts)
        return self._values.of(rule.spec.parameters)

    def _holds(self, rule: ActionRule, incident: Incident, signal: Signal, facts: SeriesFacts) -> None:
        occurrence = Occurrence(signal.event_id, signal.position, signal.series, signal.period, signal.envelope,
                                facts_of(signal, facts), signal.labels)
        debounce = rule.spec.debounce
        streak = incident.streak + 1
        fresh = replace(incident, position=signal.position, streak=streak, occurrence=occurrence)
        if incident.phase == "firing":
            if incident.occurrence is not None and signal.period < incident.occurrence.period:
                fresh = replace(fresh, occurrence=incident.occurrence)  # an older period does not move the incident
            self._keep(fresh)
            self._fire(rule, fresh, occurrence, signal)
        elif streak < debounce.consecutive:
            self._keep(replace(fresh, phase="pending", due_at=None))
            self._say(rule, signal, "debounced", f"holds {streak} times in a row, {debounce.consecutive} are needed")
        elif debounce.hold is not None:
            due = incident.due_at or signal.occurred_at + dt.timedelta(seconds=seconds(debounce.hold))
            self._keep(replace(fresh, phase="pending", due_at=due))
            self._say(rule, signal, "debounced", f"fires if it still holds at {due.isoformat()}")
        else:
            firing = replace(fresh, phase="firing", due_at=None)
            self._keep(firing)
            self._fire(rule, firing, occurrence, signal)

    def _holds_not(
        self, rule: ActionRule, incident: Incident, signal: Signal, values: Mapping[str, Any], reason: str
    ) -> None:
        reason = reason or f"the condition does not hold: {rule.spec.condition}"
        if incident.phase == "firing":
            self._may_recover(rule, incident, signal, values, reason)
        elif incident.phase == "pending":
            self._keep(replace(incident, phase="idle", streak=0, due_at=None, position=signal.position))
            self._say(rule, signal, "debounced", f"held too shortly; {reason}")
        else:
            self._say(rule, signal, "nothing", reason)

    def _may_recover(
        self, rule: ActionRule, incident: Incident, signal: Signal, values: Mapping[str, Any], reason: str
    ) -> None:
        assert incident.occurrence is not None
        if signal.period < incident.occurrence.period:
            self._say(rule, signal, "nothing", f"{reason}; fires for {incident.occurrence.period}, a later period")
            return
        recovery = self._book.recovery(rule)
        if recovery is not None and not (outcome := recovery.evaluate(values)).holds:
            self._say(rule, signal, "nothing", outcome.reason or f"not recovered: {rule.spec.recovery}")
            return
        ended = replace(incident, phase="idle", streak=0, position=signal.position, episode=incident.episode + 1,
                        told=False)
        self._keep(ended)
        facts = signal.series_facts.get(rule.name, _NO_FACTS)
        occurrence = Occurrence(signal.event_id, signal.position, signal.series, signal.period, signal.envelope,
                                facts_of(signal, facts), signal.labels)
        if rule.spec.aggregate is not None:
            self._leave_group(rule, incident, occurrence)
        elif recovery is not None:
            subject, dimensions = _subject_of(occurrence)
            if incident.told:
                self._job(rule, "recovery", incident.tenant_id, subject, dimensions, signal.period,
                          f"episode {incident.episode}", incident.correlation, (occurrence,))
        self._say(rule, signal, "recovered", f"fired for {incident.occurrence.period}")

    def _fire(self, rule: ActionRule, incident: Incident, occurrence: Occurrence, signal: Signal | None) -> None:
        """A series fires: into its group, or at once."""
        if rule.spec.aggregate is not None:
            self._join_group(rule, incident, occurrence, signal)
            return
        subject, dimensions = _subject_of(occurrence)
        job = self._job(rule, "alert", incident.tenant_id, subject, dimensions, occurrence.period,
                        f"episode {incident.episode}", incident.correlation, (occurrence,),
                        first=not incident.told)
        if job.state is not JobState.SUPPRESSED and not incident.told:
            self._keep(replace(incident, told=True))
        self._say(rule, signal, "job", f"{job.state.value}{f': {job.reason}' if job.reason else ''}", occurrence)

    # --- groups ---------------------------------------------------------------------------------------------

    def _join_group(
        self, rule: ActionRule, incident: Incident, occurrence: Occurrence, signal: Signal | None
    ) -> None:
        aggregate = rule.spec.aggregate
        assert aggregate is not None
        group = self._group(rule, incident.tenant_id, occurrence)
        if any(sent.series == occurrence.series and sent.period == occurrence.period for sent in group.sent):
            self._say(rule, signal, "grouped", "sent with its group before", occurrence)
            return
        waiting = (*(other for other in group.waiting
                     if (other.series, other.period) != (occurrence.series, occurrence.period)), occurrence)
        if group.waiting and group.flush_at is not None:
            flush_at = group.flush_at
        elif group.sent_at is None:
            flush_at = self._now + dt.timedelta(seconds=seconds(aggregate.group_wait))
        else:
            flush_at = max(self._now, group.sent_at + dt.timedelta(seconds=seconds(aggregate.group_interval)))
        self._keep_group(replace(group, waiting=waiting, flush_at=flush_at))
        self._say(rule, signal, "grouped", f"with {len(waiting) - 1} others until {flush_at.isoformat()}", occurrence)

    def _leave_group(self, rule: ActionRule, incident: Incident, recovered: Occurrence) -> None:
        """A series recovered: it is sent no more, and the last one that does ends the group's episode."""
        assert incident.occurrence is not None
        for group in [group for group in self._groups.values()
                      if (group.tenant_id, group.rule) == (incident.tenant_id, rule.name)]:
            waiting = tuple(other for other in group.waiting if other.series != incident.series)
            sent = tuple(other for other in group.sent if other.series != incident.series)
            if (waiting, sent) == (group.waiting, group.sent):
                continue
            flush_at = group.flush_at if waiting or sent else None
            left = replace(group, waiting=waiting, sent=sent, flush_at=flush_at)
            if group.sent and not sent and not waiting:
                left = replace(left, episode=group.episode + 1, sent_at=None, told=False)
                if rule.spec.recovery is not None and group.told:
                    self._job(rule, "recovery", group.tenant_id, _group_subject(group, recovered), group.labels,
                              group.labels.get("period", ""), f"batch {group.window}", group.correlation, (recovered,))
            self._keep_group(left)

    def _flush(self, rule: ActionRule, group: Group) -> None:
        """A group's time has come: what is new, or after the repeat interval all that still fires."""
        aggregate = rule.spec.aggregate
        repeat = aggregate.repeat_interval if aggregate else None
        occurrences = group.waiting or group.sent
        sent = (*(other for other in group.sent if other not in group.waiting), *group.waiting)
        flush_at = self._now + dt.timedelta(seconds=seconds(repeat)) if repeat else None
        fresh = replace(group, waiting=(), sent=sent, sent_at=self._now, window=group.window + 1, flush_at=flush_at)
        self._keep_group(fresh)
        if occurrences:
            job = self._job(rule, "alert", group.tenant_id, _group_subject(group, occurrences[-1]), group.labels,
                            group.labels.get("period", ""), f"batch {fresh.window}", group.correlation, occurrences,
                            first=not group.told)
            if job.state is not JobState.SUPPRESSED and not group.told:
                self._keep_group(replace(fresh, told=True))
            self._say(rule, None, "job", f"{len(occurrences)} firings together, {job.state.value}", occurrences[-1])

    def _group(self, rule: ActionRule, tenant_id: str, occurrence: Occurrence) -> Group:
        assert rule.spec.aggregate is not None
        labels = {name: occurrence.labels.get(name, "") for name in rule.spec.aggregate.group_by}
        group = Group(tenant_id, rule.name, labels)
        return self._groups.get(group.key, group)

    # --- time -----------------------------------------------------------------------------------------------

    def time_passed(self) -> None:
        """What is due by now: debounced series, groups, escalations."""
        for incident in sorted(self._incidents.values(), key=lambda found: found.key):
            rule = self._book.rules.get(incident.rule)
            due = incident.due_at is not None and incident.due_at <= self._now
            if rule is not None and incident.phase == "pending" and due and incident.occurrence is not None:
                firing = replace(incident, phase="firing", due_at=None)
                self._keep(firing)
                self._fire(rule, firing, incident.occurrence, None)
        for group in sorted(self._groups.values(), key=lambda found: found.key):
            rule = self._book.rules.get(group.rule)
            if rule is not None and group.flush_at is not None and group.flush_at <= self._now:
                self._flush(rule, group)
        for job in self._state.unacknowledged:
            self._escalate(job)

    def _escalate(self, job: Unacknowledged) -> None:
        draft = job.draft
        rule = self._book.rules.get(draft.rule)
        escalation = rule.spec.escalation if rule else None
        if rule is None or escalation is None or job.escalate_at > self._now:
            return
        self._escalated.append(job.job_id)
        self._job(rule, "escalation", draft.tenant_id, draft.subject, draft.dimensions, draft.period, draft.window,
                  draft.correlation, draft.occurrences)

    # --- jobs -----------------------------------------------------------------------------------------------

    def _job(
        self, rule: ActionRule, kind: JobKind, tenant_id: str, subject: str, dimensions: Mapping[str, str], period: str,
        window: str, correlation: str, occurrences: tuple[Occurrence, ...], *, first: bool = True,
    ) -> JobDraft:
        spec = rule.spec
        escalation = spec.escalation if kind == "escalation" else None
        state, reason, not_before = self._verdict(rule, kind, tenant_id, occurrences)
        needs_approval = spec.approval.required and kind == "alert" and state is JobState.QUEUED
        job = JobDraft(
            tenant_id, rule.name, rule.version, kind, subject, dict(dimensions), period, window,
            escalation.severity if escalation else spec.severity, spec.template, spec.parameters,
            escalation.route if escalation else spec.route, correlation, occurrences,
            JobState.PENDING_APPROVAL if needs_approval else state, reason, not_before,
            self._now + dt.timedelta(seconds=seconds(spec.approval.expires)) if needs_approval else None, first,
        )
        return self._jobs.setdefault(job.key, job)

    def _verdict(
        self, rule: ActionRule, kind: JobKind, tenant_id: str, occurrences: Sequence[Occurrence]
    ) -> tuple[JobState, str, dt.datetime | None]:
        """Whether a job is sent, later, or not at all. Recoveries are sent like what they end, but never inhibited."""
        labels = occurrences[-1].labels
        for silence in self._state.silences:
            if (silence.tenant_id == tenant_id and silence.rule in (None, rule.name)
                    and silence.starts_at <= self._now < silence.ends_at
                    and all(labels.get(name) == value for name, value in silence.labels.items())):
                return (JobState.SUPPRESSED, f"silence {silence.silence_id} until {silence.ends_at.isoformat()}: "
                        f"{silence.reason}", None)
        if kind == "alert" and (stronger := self._inhibitor(rule, tenant_id, labels)):
            return JobState.SUPPRESSED, f"inhibited by {stronger}, which fires", None
        if kind != "escalation" and (rule.spec.mute or rule.spec.business_hours):
            found = hours.closed(rule.spec.mute, rule.spec.business_hours, self._book.clocks[tenant_id], self._now)
            if found is not None and (found.then == "suppress" or found.until is None):
                return JobState.SUPPRESSED, found.reason, None
            if found is not None:
                return JobState.QUEUED, f"deferred: {found.reason}", found.until
        return JobState.QUEUED, "", None

    def _inhibitor(self, rule: ActionRule, tenant_id: str, labels: Mapping[str, str]) -> str | None:
        for inhibition in rule.spec.inhibited_by:
            for incident in self._firing.get((tenant_id, inhibition.rule), {}).values():
                theirs = incident.occurrence.labels if incident.occurrence else {}
                if all(theirs.get(name) == labels.get(name) for name in inhibition.equal):
                    return inhibition.rule
        return None

    # --- keeping --------------------------------------------------------------------------------------------

    def _keep(self, incident: Incident) -> None:
        self._incidents[incident.key] = incident
        self._changed_incidents[incident.key] = incident
        self._note_firing(incident)

    def _note_firing(self, incident: Incident) -> None:
        firing = self._firing.setdefault((incident.tenant_id, incident.rule), {})
        firing.pop(incident.series, None)
        if incident.phase == "firing":
            firing[incident.series] = incident

    def _keep_group(self, group: Group) -> None:
        self._groups[group.key] = group
        self._changed_groups[group.key] = group

    def _say(
        self, rule: ActionRule, signal: Signal | None, outcome: str, reason: str, occurrence: Occurrence | None = None
    ) -> None:
        if self._explain:
            event_id = signal.event_id if signal else occurrence.event_id if occurrence else ""
            self._explanations.append(Explanation(rule.name, event_id, outcome, reason))


def _subject_of(occurrence: Occurrence) -> tuple[str, Mapping[str, str]]:
    data = occurrence.envelope.get("data") or {}
    dimensions = {**(data.get("dimensions") or {})}
    if data.get("grain") is not None:
        dimensions["grain"] = data["grain"]
    return str(occurrence.envelope.get("subject", "")), dimensions


def _group_subject(group: Group, occurrence: Occurrence) -> str:
    return group.labels.get("subject") or str(occurrence.envelope.get("subject", ""))
