"""Pipeline manifests: the lifecycle of one family of numbers, declared.

One file per pipeline, `contracts/pipelines/<name>.yaml`. A manifest names sources, models, KPIs, a class of
runner and owners; it never names a machine. What a source may say is in `sources`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from resources.governance.sources import AnySource, FileSource, Source, placeholders
from resources.host.runner_catalog import NetworkProfile, RunnerClassName, SizeName
from resources.host.tenants import PipelineOverride, RawClass
from resources.runtime.declared import (
    Cron,
    Declared,
    DeclaredDocument,
    Email,
    Name,
    OwnedMetadata,
    Text,
    TimeZone,
    did_you_mean,
    listed,
    refusal,
)


class Partitions(Declared):
    """Daily partitions, from `start` to `end`, both inclusive; without `end`, to this day."""

    start: dt.date
    end: dt.date | None = None

    @field_validator("end")
    @classmethod
    def _ends_after_start(cls, end: dt.date | None, info: ValidationInfo) -> dt.date | None:
        start = info.data.get("start")
        if end is not None and start is not None and end < start:
            raise refusal("ends before it begins", allowed=f"{start} or later")
        return end


class Transforms(Declared):
    """The models that build GDPs (dbt model names), and whether they need the tenant's calendar table.

    `engine` computes GDPs and KPIs; every engine gives the same rows, and PostgreSQL keeps them.
    """

    engine: Literal["postgres", "duckdb", "spark"] = "postgres"
    calendar: bool
    gdp: tuple[Name, ...] = Field(min_length=1)

    @field_validator("gdp")
    @classmethod
    def _models_once(cls, gdp: tuple[str, ...]) -> tuple[str, ...]:
        return once(gdp)


class Publication(Declared):
    """Who consumes the published numbers, and what for."""

    consumers: tuple[Text, ...]
    description: Text


class RunnerClass(Declared):
    """How work is executed, chosen by workload. `size` is a name of the platform's catalog."""

    runner_class: RunnerClassName = Field(alias="class")
    size: SizeName
    network_profile: NetworkProfile


class Schedule(Declared):
    """When the pipeline runs by itself."""

    cron: Cron
    timezone: TimeZone


MAX_REFUSED = 0.01
"""Greatest share of refused records where a manifest says nothing."""


class Freshness(Declared):
    """Hours that may pass between the end of a partition's day and its publication.

    `max_data_lag_hours`: that may pass between the end of the day after the newest one a source has delivered and now,
    as long as `max_lag_hours` where it is left out; a source that comes on working days needs more.
    """

    max_lag_hours: float = Field(gt=0)
    max_data_lag_hours: float | None = Field(default=None, gt=0)


class Completeness(Declared):
    """Share of its received records, 0 to 1, that a source may have refused and open, and each of its units.

    Where nothing is said it is 0.01; `min_accepted_ratio` says it the other way round. Replayed records, and those
    that were discarded with a reason, are decided and not counted. `hold` publishes nothing while a limit is exceeded.
    """

    max_refused: float | None = Field(default=None, ge=0, le=1)
    max_refused_per_unit: float | None = Field(default=None, ge=0, le=1)
    min_accepted_ratio: float | None = Field(default=None, ge=0, le=1)
    on_breach: Literal["hold", "warn"] = "hold"

    @field_validator("min_accepted_ratio")
    @classmethod
    def _said_once(cls, ratio: float | None, info: ValidationInfo) -> float | None:
        if ratio is not None and info.data.get("max_refused") is not None:
            raise refusal("says again what max_refused says", found=str(ratio), allowed="one of the two")
        return ratio

    @property
    def limit(self) -> float:
        """Greatest share that may be refused of a source."""
        if self.max_refused is not None:
            return self.max_refused
        return MAX_REFUSED if self.min_accepted_ratio is None else round(1 - self.min_accepted_ratio, 9)

    @property
    def unit_limit(self) -> float:
        """Greatest share that may be refused of one unit."""
        return self.limit if self.max_refused_per_unit is None else self.max_refused_per_unit


class Accuracy(Declared):
    """Whether published numbers must agree with a system of record."""

    reconciled: bool


class Slos(Declared):
    """Promises to consumers; a missed one is an event with an owner."""

    freshness: Freshness | None = None
    completeness: Completeness = Completeness()
    accuracy: Accuracy | None = None


class Retention(Declared):
    """Storage class of raw batches and days they are kept."""

    raw_class: RawClass
    raw_days: int = Field(ge=1)


Rejection = Literal["quarantine_part", "hold_batch"]
"""What the rejection of a drift does: its drifted part goes into quarantine and the rest counts, or the batch is kept
out.
"""


class OnDrift(Declared):
    """What becomes of a batch whose drift a steward rejects, by class. Of several classes the strictest counts.

    The drifted part: of an added field its values; of a changed type, a new value or a null the rows that have it.
    """

    field_added: Rejection = "quarantine_part"
    field_missing: Rejection = "hold_batch"
    type_changed: Rejection = "quarantine_part"
    enum_grown: Rejection = "quarantine_part"
    nullability: Rejection = "quarantine_part"
    semantic_hint: Rejection = "hold_batch"


class Alerts(Declared):
    """Whom alerts go to."""

    route: tuple[Email, ...] = Field(min_length=1)


class PipelineMetadata(OwnedMetadata):
    """Identity and owners of a pipeline."""

    tags: dict[Name, Text] = Field(default_factory=dict)


class PipelineSpec(Declared):
    """What a pipeline consists of."""

    tenants: tuple[Name, ...] = Field(min_length=1)
    partitions: Partitions
    sources: tuple[AnySource, ...] = Field(min_length=1)
    transforms: Transforms
    kpis: tuple[Name, ...] = Field(min_length=1)
    publication: Publication
    runner: RunnerClass
    schedule: Schedule | None = None
    slos: Slos = Slos()
    retention: Retention
    alerts: Alerts
    on_drift: OnDrift = OnDrift()

    @field_validator("tenants", "kpis")
    @classmethod
    def _names_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return once(names)

    @field_validator("sources")
    @classmethod
    def _sources_hang_together(cls, sources: tuple[AnySource, ...]) -> tuple[AnySource, ...]:
        once([source.name for source in sources], part="name")
        once([source.dataset for source in sources], part="dataset")
        needs = {source.name: _needed_sources(source) for source in sources}
        for index, source in enumerate(sources):
            for needed in needs[source.name]:
                if needed not in needs:
                    message = "unknown source in a placeholder" + did_you_mean(needed, needs)
                    raise refusal(message, found=f"{{sources.{needed}}}", allowed=listed(needs), at=(index, "path"))
            if source.name in _reachable(source.name, needs):
                raise refusal("a path that leads back to itself", found=source.name, at=(index, "path"))
        return sources


def _needed_sources(source: Source) -> list[str]:
    path = source.path if isinstance(source, FileSource) else None
    return [name.removeprefix("sources.") for name in placeholders(path or "") if name.startswith("sources.")]


def _reachable(start: str, needs: Mapping[str, list[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(needs[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += needs.get(name, [])
    return reached


def once(names: Iterable[str], part: str | None = None) -> tuple[str, ...]:
    """The names, when none is there twice; else refuses the second (its `part`, of a list of mappings)."""
    seen: list[str] = []
    for name in names:
        if name in seen:
            at = (len(seen),) if part is None else (len(seen), part)
            raise refusal("named twice", found=name, at=at)
        seen.append(name)
    return tuple(seen)


class Pipeline(DeclaredDocument):
    """A pipeline manifest."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["Pipeline"]
    metadata: PipelineMetadata
    spec: PipelineSpec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def sources_for_models(self) -> dict[str, dict[str, Any]]:
        """What the dbt macros must know of the sources, by dataset; those of which they need know nothing left out."""
        return {source.dataset: known for source in self.spec.sources if (known := source.for_models)}

    def source(self, name: str) -> AnySource:
        """The source of that name. Raises KeyError for a name the manifest does not have."""
        return {source.name: source for source in self.spec.sources}[name]

    def overridden(self, override: PipelineOverride | None) -> Self:
        """The manifest with a tenant's changes; its `hash` stays that of the file."""
        if override is None:
            return self
        changes: dict[str, Declared] = {}
        for part in ("schedule", "retention", "alerts"):
            replaced, own = getattr(override, part), getattr(self.spec, part)
            if replaced is not None and own is not None:
                changes[part] = own.model_copy(update=replaced.model_dump(exclude_none=True))
        return self.model_copy(update={"spec": self.spec.model_copy(update=changes)})
