"""KPI specifications: a metric as code, with its meaning, grains, gates and system of record.

One file per KPI, `contracts/kpis/<pipeline>/<kpi>.yaml`. The dbt model of the KPI's name computes it; the
specification says what the gates must prove before a value is published.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from resources.governance.manifests import once
from resources.governance.sources import placeholders
from resources.runtime.declared import (
    ColumnName,
    DatasetId,
    Declared,
    DeclaredDocument,
    Name,
    Number,
    OwnedMetadata,
    Text,
    refusal,
)


class KpiMetadata(OwnedMetadata):
    """Identity and owners of a KPI. `name` is also the name of its model and of the published table."""

    pipeline: Name


class Grain(Declared):
    """One series of the KPI: a value per period and combination of dimensions."""

    name: Name
    period: Literal["day", "month"]
    dimensions: tuple[ColumnName, ...] = ()

    @field_validator("dimensions")
    @classmethod
    def _dimensions_once(cls, dimensions: tuple[str, ...]) -> tuple[str, ...]:
        return once(dimensions)


class Dependency(Declared):
    """A GDP the KPI is computed from.

    `date_column` puts a row into a period. When rows change, `effect` says which periods are rebuilt:
    `period`, only theirs; `onward`, theirs and every later one.
    """

    gdp: Name
    date_column: ColumnName
    effect: Literal["period", "onward"]


class ValueRange(Declared):
    """Least and greatest acceptable value, both inclusive; None: no bound."""

    min: Number | None = None
    max: Number | None = None

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, maximum: Number | None, info: ValidationInfo) -> Number | None:
        minimum = info.data.get("min")
        if minimum is not None and maximum is not None and maximum < minimum:
            raise refusal("below min", allowed=f"{minimum} or more")
        return maximum


class Thresholds(Declared):
    """What values are accepted, and what values are good.

    Acceptance decides whether a build may be published: range of values, share of null values (0 to 1), least number
    of rows. `warning` and `critical` are ranges a value should keep; they stop nothing, but say in which state
    (`ok`, `warning`, `critical`) a published value is, which KPI events carry and action rules act on.

    A row without a value (0/0) fails the KPI, beyond `max_null_ratio`. With `on_null: withhold_series` it fails nobody
    else: the series of its dimensions has no value in that period, the others are published, and the gate names it.
    """

    value: ValueRange = ValueRange()
    warning: ValueRange = ValueRange()
    critical: ValueRange = ValueRange()
    max_null_ratio: float = Field(default=0, ge=0, le=1)
    min_rows: int = Field(default=1, ge=0)
    on_null: Literal["fail", "withhold_series"] = "fail"

    @field_validator("on_null")
    @classmethod
    def _either_withheld_or_tolerated(cls, on_null: str, info: ValidationInfo) -> str:
        if on_null == "withhold_series" and info.data.get("max_null_ratio"):
            raise refusal("with a max_null_ratio", found=on_null, allowed="fail, or no max_null_ratio: no row without "
                          "a value is published")
        return on_null


class ReconciliationKey(Declared):
    """Column of the system of record that names the period, and its form: `{date}` is the KPI's period."""

    source: ColumnName
    format: Text = "{date}"

    @field_validator("format")
    @classmethod
    def _holds_the_date_once(cls, form: str) -> str:
        if placeholders(form) != ["date"]:
            raise refusal("does not hold {date} once", allowed="text with {date} in it, e.g. {date}.csv")
        return form


class Reconciliation(Declared):
    """Comparison of the KPI with a system of record, key by key.

    Rows of `grain`, summed over dimensions, are compared per period with column `value` of the raw dataset
    `system_of_record`; a difference above `tolerance` (in the KPI's unit) stops that period's publication.
    """

    system_of_record: DatasetId
    grain: Name
    key: ReconciliationKey
    value: ColumnName
    tolerance: Number = Field(ge=0)


class KpiSpec(Declared):
    """What a KPI means and what must hold of it."""

    unit: Text
    formula: Text
    grains: tuple[Grain, ...] = Field(min_length=1)
    depends_on: tuple[Dependency, ...] = Field(min_length=1)
    calendar: bool
    thresholds: Thresholds = Thresholds()
    reconciliation: Reconciliation | None = None

    @field_validator("grains")
    @classmethod
    def _grains_once(cls, grains: tuple[Grain, ...]) -> tuple[Grain, ...]:
        once([grain.name for grain in grains], part="name")
        return grains

    @field_validator("depends_on")
    @classmethod
    def _gdps_once(cls, dependencies: tuple[Dependency, ...]) -> tuple[Dependency, ...]:
        once([dependency.gdp for dependency in dependencies], part="gdp")
        return dependencies

    @field_validator("reconciliation")
    @classmethod
    def _compares_a_declared_grain(
        cls, reconciliation: Reconciliation | None, info: ValidationInfo
    ) -> Reconciliation | None:
        names = [grain.name for grain in info.data.get("grains", ())]
        if reconciliation is not None and names and reconciliation.grain not in names:
            raise refusal("no such grain", found=reconciliation.grain, allowed=", ".join(names), at=("grain",))
        return reconciliation


class Kpi(DeclaredDocument):
    """A KPI specification."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["Kpi"]
    metadata: KpiMetadata
    spec: KpiSpec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def withholds(self) -> bool:
        """Whether rows without a value are left out of what is published."""
        return self.spec.thresholds.on_null == "withhold_series"

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Dimension columns of the KPI's table: those of every grain, in order of first appearance."""
        return tuple(dict.fromkeys(name for grain in self.spec.grains for name in grain.dimensions))
