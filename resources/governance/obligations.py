"""Obligations: what must hold of the movement of data, as declared.

One file per obligation, `contracts/obligations/<name>.yaml`. What depends on the code alone (where columns flow, tags,
provenance) is judged by `barecount check` already; freshness needs a run. A violated obligation fails when it blocks,
and the publish stage then publishes nothing; else it warns. How they are judged is in `obligation_judge`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from resources.governance.manifests import once
from resources.host.runner_catalog import Classification, NetworkProfile
from resources.runtime.declared import Declared, DeclaredDocument, Name, OwnedMetadata, Text, refusal

AssetLayer = Literal["source", "raw", "gdp", "kpi", "published", "export"]


class FlowSource(Declared):
    """The columns that must not flow: by classification or tag in their contract, or by name."""

    classifications: tuple[Classification, ...] = ()
    tags: tuple[Text, ...] = ()
    columns: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _names_something(self) -> FlowSource:
        if not (self.classifications or self.tags or self.columns):
            raise refusal("names no column", allowed="classifications, tags or columns")
        return self


class FlowTarget(Declared):
    """Where they must not arrive: layers of assets, and runners with one of these network profiles."""

    layers: tuple[AssetLayer, ...] = ()
    network_profiles: tuple[NetworkProfile, ...] = ()

    @model_validator(mode="after")
    def _names_something(self) -> FlowTarget:
        if not (self.layers or self.network_profiles):
            raise refusal("names no place", allowed="layers or network_profiles")
        return self


class ForbidFlow(Declared):
    """No column of `from` may flow to `to`.

    `indirect: forbidden` also counts columns that only decide about a value or a row; `masked: forbidden` also counts
    flows that show nothing of the value: counts and hashes; `approved: allowed` leaves out exports that an approval let
    through.
    """

    type: Literal["forbid_flow"]
    source: FlowSource = Field(alias="from")
    to: FlowTarget
    indirect: Literal["allowed", "forbidden"] = "allowed"
    masked: Literal["allowed", "forbidden"] = "allowed"
    approved: Literal["allowed", "forbidden"] = "forbidden"


class RequiredTag(Declared):
    """Every asset of the layers has the tag, with one of the values where any are named.

    Tags are those of the pipeline's manifest and `key:value` tags of the contract.
    """

    type: Literal["required_tag"]
    tag: Name
    values: tuple[Text, ...] = ()
    layers: tuple[AssetLayer, ...] = Field(min_length=1)


class RequireProvenance(Declared):
    """Every column of the layers leads to sources, or to constants, run variables or the calendar; none is unknown."""

    type: Literal["require_provenance"]
    layers: tuple[AssetLayer, ...] = Field(min_length=1)


class FreshnessSla(Declared):
    """The newest day of every dated source is at most so many business days old, by the tenant's calendar."""

    type: Literal["freshness_sla"]
    max_business_days: int = Field(ge=0, le=366)


class Scope(Declared):
    """Which pipelines and tenants it is about; without names, all."""

    pipelines: tuple[Name, ...] = ()
    tenants: tuple[Name, ...] = ()

    @field_validator("pipelines", "tenants")
    @classmethod
    def _names_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return once(names)


class ObligationSpec(Declared):
    """What must hold, of what, and what follows when it does not."""

    check: Annotated[ForbidFlow | RequiredTag | RequireProvenance | FreshnessSla, Field(discriminator="type")]
    scope: Scope = Scope()
    on_failure: Literal["block", "warn"]


class Obligation(DeclaredDocument):
    """An obligation."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["Obligation"]
    metadata: OwnedMetadata
    spec: ObligationSpec

    @property
    def name(self) -> str:
        return self.metadata.name

    def concerns(self, pipeline: str, tenant_id: str | None = None) -> bool:
        """Whether it is about a pipeline, and about one of its tenants when one is named."""
        scope = self.spec.scope
        return (not scope.pipelines or pipeline in scope.pipelines) and (
            tenant_id is None or not scope.tenants or tenant_id in scope.tenants
        )
