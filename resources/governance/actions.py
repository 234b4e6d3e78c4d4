"""Action templates and rules as declared: what may be sent, and when.

One file per template, `contracts/actions/templates/<name>.yaml`, with sample events beside it in
`contracts/actions/templates/<name>.events/*.json`; one file per rule, `contracts/actions/rules/<name>.yaml`. A rule
names a subject, a condition, a template and a route of endpoints; what the engine makes of it is in
`resources/action/engine.py`.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, ValidationInfo, field_validator

from resources.governance.kpis import Kpi
from resources.governance.manifests import once
from resources.host.tenants import Weekday
from resources.runtime import conditions, sandbox
from resources.runtime.declared import (
    ColumnName,
    Declared,
    DeclaredDocument,
    Name,
    OwnedMetadata,
    Text,
    did_you_mean,
    listed,
    refusal,
)
from resources.runtime.yaml_source import FieldPath

TemplateKind = Literal["notification", "ticket", "webhook", "automation"]
BODY_TEXTS: Mapping[str, tuple[str, ...]] = {
    "notification": ("title", "text"),
    "ticket": ("title", "text"),
    "webhook": (),
    "automation": ("operation",),
}
"""Texts that a body of each kind must have; what else it has is sent as it is."""

CONTEXT_NAMES = ("event", "data", "events", "facts", "rule", "job", "tenant", "parameters")
"""Names a template's body may read, see docs/actions.md."""

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])\Z", re.ASCII)
_CLOCK = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]\Z|24:00\Z", re.ASCII)


def seconds(duration: str) -> int:
    """Seconds of a declared duration: `30s`, `5m`, `4h`, `2d`. Raises ValueError."""
    match = _DURATION.match(duration)
    if match is None:
        raise ValueError(duration)
    return int(match[1]) * _UNITS[match[2]]


def minutes(clock: str) -> int:
    """Minutes since midnight of a declared time of day, `00:00` to `24:00`."""
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)


def _duration(text: str) -> str:
    try:
        seconds(text)
    except ValueError as error:
        raise refusal("not a duration", allowed="a whole number and s, m, h or d, e.g. 5m") from error
    return text


def _clock(text: str) -> str:
    if not _CLOCK.match(text):
        raise refusal("not a time of day", allowed="HH:MM, quoted, 00:00 to 24:00")
    return text


Duration = Annotated[str, AfterValidator(_duration)]
Clock = Annotated[str, AfterValidator(_clock)]
EventType = Annotated[str, StringConstraints(pattern=r"^[a-z_]{2,40}\.[a-z_]{2,40}$")]
EndpointName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,39}$")]
Severity = Literal["info", "warning", "critical"]


# --- templates --------------------------------------------------------------------------------------------


class TemplateSpec(Declared):
    """What is sent.

    Attributes:
        parameters: JSON Schema (2020-12) of the parameters that rules give.
        body: texts in sandboxed Jinja2, nested as the kind needs; see `BODY_TEXTS`.
        recovery: body in place of `body` when the condition no longer holds; it closes what `body` opened.
    """

    kind: TemplateKind
    parameters: dict[str, JsonValue] = Field(default_factory=lambda: {"type": "object"})
    body: dict[str, JsonValue]
    recovery: dict[str, JsonValue] | None = None

    @field_validator("parameters")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise refusal(f"not a JSON Schema: {error.message}", at=tuple(error.absolute_path)) from error
        if schema.get("type") != "object":
            raise refusal("parameters have names", allowed="a schema with type: object", at=("type",))
        return schema

    @field_validator("body", "recovery")
    @classmethod
    def _can_be_rendered(
        cls, body: dict[str, JsonValue] | None, info: ValidationInfo
    ) -> dict[str, JsonValue] | None:
        if body is None:
            return None
        for path, source in sandbox.texts(body):
            try:
                unknown = sandbox.names(source) - set(CONTEXT_NAMES)
            except sandbox.Refused as refused:
                raise refusal(f"not a template: {refused}", at=path) from refused
            if unknown:
                name = sorted(unknown)[0]
                raise refusal(
                    f"reads {name}, which is not there" + did_you_mean(name, CONTEXT_NAMES), at=path,
                    allowed=listed(CONTEXT_NAMES))
        needed = BODY_TEXTS.get(info.data.get("kind", ""), ())
        missing = [name for name in needed if not isinstance(body.get(name), str)]
        if missing:
            raise refusal(f"a {info.data['kind']} needs {listed(missing)}", allowed="text under each of these keys")
        return body


class ActionTemplate(DeclaredDocument):
    """A template of actions. Its content address is `hash`."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["ActionTemplate"]
    metadata: OwnedMetadata
    spec: TemplateSpec

    @property
    def name(self) -> str:
        return self.metadata.name

    def parameter_problems(self, parameters: Mapping[str, Any]) -> list[tuple[FieldPath, str]]:
        """What the schema refuses in a rule's parameters: the way to the value, and why."""
        from jsonschema import Draft202012Validator

        errors = Draft202012Validator(self.spec.parameters).iter_errors(dict(parameters))
        return [(tuple(error.absolute_path), error.message) for error in errors]


# --- rules ------------------------------------------------------------------------------------------------


class Subject(Declared):
    """Which events a rule looks at: their type, and of KPI events the KPI, the grain and values of dimensions."""

    event: EventType = "kpi.changed"
    kpi: Name | None = None
    grain: Name | None = None
    dimensions: dict[ColumnName, Text] = Field(default_factory=dict)

    @field_validator("event")
    @classmethod
    def _does_not_answer_itself(cls, event: str) -> str:
        if event.startswith("action.") and event not in ACTION_SUBJECTS:
            raise refusal("a rule would answer itself", allowed=f"{listed(ACTION_SUBJECTS)}, or events of other parts")
        return event

    @field_validator("kpi")
    @classmethod
    def _only_of_kpi_events(cls, kpi: str | None, info: ValidationInfo) -> str | None:
        event = info.data.get("event", "")
        if kpi is not None and not event.startswith("kpi."):
            raise refusal(f"events {event} are not of a KPI", allowed="event: kpi.changed")
        return kpi


ACTION_SUBJECTS = ("action.failed", "action.dlq")
"""Events of the engine itself that a rule may look at."""


def is_own_event(event: str) -> bool:
    """Whether a job, one of its deliveries or the health of an endpoint made the event.

    Jobs of rules that look at such events are on record like others, and make no events themselves, nor do their
    deliveries: no rule answers itself, nor another that answers it.
    """
    return event.startswith(("action.", "delivery.", "endpoint."))


class History(Declared):
    """How many periods before the event's are looked at for `mean` and `deviation`."""

    periods: int = Field(default=12, ge=2, le=400)


class Anomaly(Declared):
    """Seasonal window of the robust score.

    The window is the last `periods` periods before the event's that have its place in a season of `season` periods
    (7 for weekdays of a daily series, 12 for months of a monthly one, 1 for no season); with fewer than `least` there
    is no score.
    """

    periods: int = Field(ge=3, le=400)
    season: int = Field(default=1, ge=1, le=366)
    least: int = Field(default=3, ge=3, le=400)


class Debounce(Declared):
    """How long a condition must hold before anything happens: so many events of the series in a row, or so long."""

    consecutive: int = Field(default=1, ge=1, le=100)
    hold: Duration | None = None


class Aggregate(Declared):
    """Many firings, one job. Firings that agree in `group_by` wait together for `group_wait`; a group sends new firings
    at the earliest `group_interval` after its last job, and all that still fire again after `repeat_interval`.
    """

    group_by: tuple[Text, ...] = ()
    group_wait: Duration = "30s"
    group_interval: Duration = "5m"
    repeat_interval: Duration | None = None

    @field_validator("group_by")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return once(names)


class Inhibition(Declared):
    """A stronger rule: while it fires for a subject with the same labels, this one is suppressed."""

    rule: Name
    equal: tuple[Text, ...] = ()


class Window(Declared):
    """Time of day, in the tenant's time zone, in which nothing is sent; over midnight when it ends before it begins."""

    days: tuple[Weekday, ...] = ()
    start: Clock = Field(alias="from")
    end: Clock = Field(alias="to")
    then: Literal["defer", "suppress"] = "defer"


class BusinessHours(Declared):
    """Time of day, in the tenant's time zone and on business days of its calendar, outside of which nothing is sent."""

    start: Clock = Field(alias="from")
    end: Clock = Field(alias="to")
    then: Literal["defer", "suppress"] = "defer"

    @field_validator("end")
    @classmethod
    def _ends_after_start(cls, end: str, info: ValidationInfo) -> str:
        if "start" in info.data and minutes(end) <= minutes(info.data["start"]):
            raise refusal("ends before it begins", allowed=f"later than {info.data['start']}")
        return end


class Approval(Declared):
    """A person must approve a job before it is sent, within `expires`."""

    required: bool = True
    expires: Duration = "1d"


class Escalation(Declared):
    """Who hears of a job that nobody acknowledged within `after`, besides those of the rule's route."""

    after: Duration
    route: tuple[EndpointName, ...] = Field(min_length=1)
    severity: Severity = "critical"


class RuleSpec(Declared):
    """When which template goes where."""

    tenants: tuple[Name, ...] = Field(min_length=1)
    subject: Subject
    condition: Text
    recovery: Text | None = None
    history: History = History()
    anomaly: Anomaly | None = None
    template: Name
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    severity: Severity = "warning"
    route: tuple[EndpointName, ...] = Field(min_length=1)
    debounce: Debounce = Debounce()
    aggregate: Aggregate | None = None
    inhibited_by: tuple[Inhibition, ...] = ()
    mute: tuple[Window, ...] = ()
    business_hours: BusinessHours | None = None
    approval: Approval = Approval(required=False)
    escalation: Escalation | None = None

    @field_validator("tenants", "route")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return once(names)


class ActionRule(DeclaredDocument):
    """A rule over events."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["ActionRule"]
    metadata: OwnedMetadata
    spec: RuleSpec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def version(self) -> str:
        """Declared version and the first 12 digits of the content's hash: two contents never share it."""
        return f"{self.metadata.version}+{self.hash[:12]}"


# --- across files -----------------------------------------------------------------------------------------

LABELS = ("kpi", "grain", "period", "subject", "pipeline", "threshold_state")
"""Names besides dimensions by which firings are grouped and compared."""

_NUMBERS = ("value", "previous", "restatement", "prior", "change", "change_ratio", "mean", "deviation", "expected",
            "score")
_SCALED = ("value_scaled", "previous_scaled", "prior_scaled")
_WHOLE = ("observations", "days_since_prior", "age_days")


def variables(rule: ActionRule, dimensions: Collection[str]) -> dict[str, Any]:
    """Names a rule's conditions may read, with example values of their types."""
    return {
        **dict.fromkeys(_NUMBERS, 1.5), **dict.fromkeys(_SCALED, 1_500_000), **dict.fromkeys(_WHOLE, 3),
        "dimensions": {**dict.fromkeys(dimensions, "x"), **rule.spec.subject.dimensions},
        "parameters": rule.spec.parameters, "tenant": "acme", "kpi": "x", "grain": "x", "period": "2026-03",
        "unit": "x", "threshold_state": "ok", "period_complete": True, "data": {},
        "event": {"type": "barecount.kpi.changed", "subject": "x", "id": "x", "pipeline": "x",
                  "time": dt.datetime(2026, 3, 1, tzinfo=dt.UTC)},
    }


def rule_problems(
    rule: ActionRule, kpis: Mapping[str, Kpi | None], served: Mapping[str, Collection[str]],
    templates: Mapping[str, ActionTemplate | None], rules: Mapping[str, ActionRule | None],
) -> Iterator[tuple[FieldPath, str, Any, str]]:
    """What is wrong between a rule and the rest: (path, message, found, allowed).

    Args:
        kpis, templates, rules: by name; None for one whose file is broken in itself.
        served: tenants by the pipelines that serve them.
    """
    spec, subject = rule.spec, rule.spec.subject
    tenants = {tenant for names in served.values() for tenant in names}
    kpi = kpis.get(subject.kpi) if subject.kpi else None
    dimensions: Collection[str] = ()
    if subject.kpi is not None and subject.kpi not in kpis:
        yield (("spec", "subject", "kpi"), "no such KPI" + did_you_mean(subject.kpi, kpis), subject.kpi, listed(kpis))
    if kpi is not None:
        dimensions = kpi.dimensions
        tenants = set(served.get(kpi.metadata.pipeline, ()))
        yield from _grain_problems(rule, kpi)
    for index, tenant in enumerate(spec.tenants):
        if tenants and tenant not in tenants:
            message = "not served by the KPI's pipeline" if kpi else "served by no pipeline"
            yield (("spec", "tenants", index), message, tenant, listed(sorted(tenants)))
    known = variables(rule, dimensions)
    for field, expression in (("condition", spec.condition), ("recovery", spec.recovery)):
        if expression is not None and (problem := conditions.problem(expression, known)):
            yield (("spec", field), problem, expression, listed(known) if "is not there" in problem else "")
        elif expression is not None and spec.anomaly is None:
            if read := {"expected", "score"} & conditions.compile_condition(expression).variables:
                yield (("spec", field), f"reads {listed(sorted(read))}, which needs spec.anomaly", expression, "")
    if spec.template not in templates:
        message = "no such template" + did_you_mean(spec.template, templates)
        yield (("spec", "template"), message, spec.template, listed(templates))
    elif template := templates[spec.template]:
        for path, message in template.parameter_problems(spec.parameters):
            yield (("spec", "parameters", *path), f"refused by template {spec.template}: {message}", None, "")
    yield from _inhibition_problems(rule, rules)
    labels = (*LABELS, *dimensions)
    for index, name in enumerate(spec.aggregate.group_by if spec.aggregate else ()):
        if kpi is not None and name not in labels:
            path = ("spec", "aggregate", "group_by", index)
            yield (path, "no such label" + did_you_mean(name, labels), name, listed(labels))


def _grain_problems(rule: ActionRule, kpi: Kpi) -> Iterator[tuple[FieldPath, str, Any, str]]:
    subject = rule.spec.subject
    grains = {grain.name: grain for grain in kpi.spec.grains}
    dimensions: Collection[str] = kpi.dimensions
    if subject.grain is not None and subject.grain not in grains:
        message = f"no grain of {kpi.name}" + did_you_mean(subject.grain, grains)
        yield (("spec", "subject", "grain"), message, subject.grain, listed(grains))
    elif subject.grain is not None:
        dimensions = grains[subject.grain].dimensions
    for name in subject.dimensions:
        if name not in dimensions:
            message = "no dimension of the subject" + did_you_mean(name, dimensions)
            yield (("spec", "subject", "dimensions", name), message, name, listed(dimensions))


def _inhibition_problems(
    rule: ActionRule, rules: Mapping[str, ActionRule | None]
) -> Iterator[tuple[FieldPath, str, Any, str]]:
    for index, inhibition in enumerate(rule.spec.inhibited_by):
        path = ("spec", "inhibited_by", index, "rule")
        if inhibition.rule not in rules:
            message = "no such rule" + did_you_mean(inhibition.rule, rules)
            yield (path, message, inhibition.rule, listed(rules))
        elif rule.name in _stronger(inhibition.rule, rules):
            yield (path, "the rules inhibit each other in a circle", inhibition.rule, "a rule above this one")


def _stronger(name: str, rules: Mapping[str, ActionRule | None]) -> set[str]:
    """The rule and every rule above it."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            rule = rules.get(current)
            waiting += [inhibition.rule for inhibition in rule.spec.inhibited_by] if rule else []
    return found


def strongest_first(rules: Collection[ActionRule]) -> list[ActionRule]:
    """Rules in the order in which they are decided: those that inhibit others come before them."""
    by_name: dict[str, ActionRule | None] = {rule.name: rule for rule in rules}
    return sorted(rules, key=lambda rule: (len(_stronger(rule.name, by_name)), rule.name))


# --- sample events ----------------------------------------------------------------------------------------


def samples_folder(project_dir: Path, template: str) -> Path:
    return project_dir / "contracts" / "actions" / "templates" / f"{template}.events"


def read_sample(file: Path) -> dict[str, Any]:
    """A sample event, a CloudEvents envelope.

    Raises ValueError, saying why, for a file that is none.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read as JSON: {error}") from error
    missing = [name for name in ("id", "source", "type", "subject", "time", "tenant", "data")
               if not isinstance(document, dict) or name not in document]
    if missing:
        raise ValueError(f"is no event of the platform: {listed(missing)} missing")
    return document
