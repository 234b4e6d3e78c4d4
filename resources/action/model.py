"""What the action engine works on: events with their history, incidents, groups, silences, and the jobs it decides on.

All of it is data. What decides is `engine.py`, what stores is `jobs.py`.
"""

from __future__ import annotations

import copy
import datetime as dt
import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Literal

EVENT_PREFIX = "barecount."
JobKind = Literal["alert", "recovery", "escalation"]
Phase = Literal["idle", "pending", "firing"]


class JobState(enum.StrEnum):
    """Where a job is.

    PENDING_APPROVAL waits for a person, QUEUED for its time or a worker, RUNNING for its deliveries. COMPLETED: every
    delivery was. FAILED: it could not be sent, or was refused; `retry` tries again. DLQ: a delivery was given up.
    SUPPRESSED: the rule held and nothing is sent, for the reason given.
    """

    PENDING_APPROVAL = "pending approval"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DLQ = "dlq"
    SUPPRESSED = "suppressed"


@dataclass(frozen=True)
class SeriesFacts:
    """What came before an event's period in its series, computed in SQL from the publication the event tells of.

    Attributes:
        prior, prior_start: value and first day of the period before.
        mean, deviation, observations: of the last n periods before; deviation is that of a sample.
        expected: median of the seasonal window.
        score: (value - expected) / (1.4826 x MAD), None where the window is short or does not vary.
    """

    prior: Decimal | None = None
    prior_start: dt.date | None = None
    mean: Decimal | None = None
    deviation: Decimal | None = None
    observations: int = 0
    expected: Decimal | None = None
    score: Decimal | None = None


@dataclass(frozen=True)
class Signal:
    """An event as the engine sees it, with the facts that each rule (by name) asked for.

    Attributes:
        series: names the series: subject, grain and dimensions, as canonical JSON.
    """

    position: int
    event_id: str
    tenant_id: str
    type: str
    subject: str
    occurred_at: dt.datetime
    envelope: Mapping[str, Any]
    series_facts: Mapping[str, SeriesFacts] = field(default_factory=dict)

    data: Mapping[str, Any] = field(init=False, repr=False, compare=False)
    dimensions: Mapping[str, str] = field(init=False, repr=False, compare=False)
    series: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        data = self.envelope.get("data") or {}
        dimensions = data.get("dimensions") or {}
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "dimensions", dimensions)
        object.__setattr__(self, "series", json.dumps(
            [self.subject, data.get("grain"), dimensions], sort_keys=True, ensure_ascii=False))

    @property
    def period(self) -> str:
        return str(self.data.get("period") or "")

    def with_facts(self, facts: Mapping[str, SeriesFacts]) -> Signal:
        """The same event with these facts, by rule."""
        signal = copy.copy(self)
        object.__setattr__(signal, "series_facts", facts)
        return signal

    @property
    def labels(self) -> dict[str, str]:
        """What firings are grouped, compared and silenced by: dimensions and a few parts of the event."""
        labels = {name: str(self.data[name]) for name in ("kpi", "grain", "period", "pipeline", "threshold_state")
                  if self.data.get(name) is not None}
        return {**labels, **{name: str(value) for name, value in self.dimensions.items()}, "subject": self.subject}


@dataclass(frozen=True)
class Occurrence:
    """An event that a rule fired for: all that a template needs of it. `facts` has numbers as decimal strings."""

    event_id: str
    position: int
    series: str
    period: str
    envelope: Mapping[str, Any]
    facts: Mapping[str, str | int | None]
    labels: Mapping[str, str]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Occurrence:
        return cls(**document)


@dataclass(frozen=True)
class Incident:
    """What a rule knows of one series of a tenant.

    Attributes:
        phase: idle; pending, the condition holds but not long enough; firing.
        position: newest event that changed it; older ones, read again, change nothing.
        streak: events in a row for which the condition held.
        episode: how often it has ended; part of the identity of its jobs.
        due_at: when a pending one fires.
        told: whether a job of this episode was not suppressed; only then is there something to recover.
    """

    tenant_id: str
    rule: str
    series: str
    phase: Phase = "idle"
    position: int = 0
    streak: int = 0
    episode: int = 0
    due_at: dt.datetime | None = None
    occurrence: Occurrence | None = None
    told: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tenant_id, self.rule, self.series)

    @property
    def correlation(self) -> str:
        """What tickets of this episode meet by."""
        digest = hashlib.sha256(f"{self.tenant_id}\0{self.series}".encode()).hexdigest()
        return f"{self.rule}-{digest[:16]}-{self.episode}"


@dataclass(frozen=True)
class Group:
    """Firings of a rule that agree in `group_by`.

    Attributes:
        labels: the values they agree in.
        waiting: not sent yet; `sent`: sent, and firing still. One per series, the newest.
        flush_at: when it sends next, None while there is nothing to send.
        window: number of the last job.
        episode: how often all of it has recovered.
        told: as in `Incident`.
    """

    tenant_id: str
    rule: str
    labels: Mapping[str, str]
    waiting: tuple[Occurrence, ...] = ()
    sent: tuple[Occurrence, ...] = ()
    flush_at: dt.datetime | None = None
    sent_at: dt.datetime | None = None
    window: int = 0
    episode: int = 0
    told: bool = False

    @property
    def name(self) -> str:
        return json.dumps(self.labels, sort_keys=True, ensure_ascii=False)

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tenant_id, self.rule, self.name)

    @property
    def correlation(self) -> str:
        digest = hashlib.sha256(f"{self.tenant_id}\0{self.name}".encode()).hexdigest()
        return f"{self.rule}-{digest[:16]}-{self.episode}"


@dataclass(frozen=True)
class Silence:
    """Nobody wants to hear of a rule (None: any) with these labels for a while."""

    silence_id: int
    tenant_id: str
    rule: str | None
    labels: Mapping[str, str]
    starts_at: dt.datetime
    ends_at: dt.datetime
    reason: str
    created_by: str


@dataclass(frozen=True)
class Unacknowledged:
    """A job that was sent and must be acknowledged by `escalate_at`."""

    job_id: int
    draft: JobDraft
    escalate_at: dt.datetime


@dataclass(frozen=True)
class JobDraft:
    """A job as decided. Its identity is `key`: whoever decides it again makes the same one.

    Attributes:
        subject, dimensions, period: what it is about; of a group, the labels it agrees in.
        window: which episode or batch.
        correlation: what tickets meet by.
        state, reason: queued, pending approval or suppressed, and why.
        not_before: when it may be sent at the earliest; `expires_at`: until when it may be approved.
        first: whether it opens its ticket, rather than adding to it.
    """

    tenant_id: str
    rule: str
    rule_version: str
    kind: JobKind
    subject: str
    dimensions: Mapping[str, str]
    period: str
    window: str
    severity: str
    template: str
    parameters: Mapping[str, Any]
    route: tuple[str, ...]
    correlation: str
    occurrences: tuple[Occurrence, ...]
    state: JobState
    reason: str = ""
    not_before: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    first: bool = True

    @property
    def key(self) -> str:
        """SHA-256 (hex) of tenant, rule version, kind, subject, dimensions, period and window."""
        identity = [self.tenant_id, self.rule, self.rule_version, self.kind, self.subject, self.dimensions, self.period,
                    self.window]
        return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As JSON-serialisable data; times as ISO 8601."""
        return {**asdict(self), "state": self.state.value,
                "not_before": self.not_before and self.not_before.isoformat(),
                "expires_at": self.expires_at and self.expires_at.isoformat()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> JobDraft:
        """Inverse of `to_json`."""
        times = {name: document[name] and dt.datetime.fromisoformat(document[name])
                 for name in ("not_before", "expires_at")}
        return cls(**{**document, **times, "state": JobState(document["state"]), "route": tuple(document["route"]),
                      "occurrences": tuple(map(Occurrence.from_json, document["occurrences"]))})


@dataclass(frozen=True)
class State:
    """Everything besides events and rules that a decision rests on."""

    incidents: Mapping[tuple[str, str, str], Incident] = field(default_factory=dict)
    groups: Mapping[tuple[str, str, str], Group] = field(default_factory=dict)
    silences: tuple[Silence, ...] = ()
    unacknowledged: tuple[Unacknowledged, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Why a rule did what it did about an event, or at a time (`event_id` is empty then)."""

    rule: str
    event_id: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What follows: jobs in order, incidents and groups that changed, jobs that were escalated, and why."""

    jobs: tuple[JobDraft, ...] = ()
    incidents: tuple[Incident, ...] = ()
    groups: tuple[Group, ...] = ()
    escalated: tuple[int, ...] = ()
    explanations: tuple[Explanation, ...] = ()
