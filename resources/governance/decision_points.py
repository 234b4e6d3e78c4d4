"""Decision points: where the platform asks its policies, and what it tells them.

Each point has one class of facts. The class is the documentation (`fields`), the table conditions are type-checked
against, and the record of what a decision was made from. Facts are flat: bool, int, str and tuples of str, so that
they are the same in CEL, in JSON and in Python. Lists are sorted where order means nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, get_type_hints

from resources.governance.contracts import CLASSIFICATIONS, Contract
from resources.governance.kpis import Kpi
from resources.governance.manifests import Pipeline
from resources.governance.policy_conditions import BOOL, INT, STRING

_CEL_TYPES: Mapping[Any, str] = {bool: BOOL, int: INT, str: STRING, tuple[str, ...]: f"list({STRING})"}


@dataclass(frozen=True)
class Field:
    """One fact a condition may name: its CEL type and what it says."""

    name: str
    type: str
    meaning: str


def _fact(meaning: str, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(metadata={"meaning": meaning}, default=default)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What every decision is told. `point` names the class."""

    point: ClassVar[str] = ""
    about: ClassVar[str] = ""

    tenant: str = _fact("id of the tenant")
    pipeline: str = _fact("name of the pipeline, empty where there is none", "")
    datasets: tuple[str, ...] = _fact("datasets concerned, namespace.name", ())

    @classmethod
    def fields(cls) -> tuple[Field, ...]:
        """The facts with their types, in order."""
        hints = get_type_hints(cls)
        return tuple(
            Field(item.name, _CEL_TYPES[hints[item.name]], item.metadata["meaning"]) for item in dataclasses.fields(cls)
        )

    @classmethod
    def types(cls) -> Mapping[str, str]:
        """CEL type by name."""
        return {item.name: item.type for item in cls.fields()}

    @classmethod
    def required(cls) -> frozenset[str]:
        """Names of the facts that have no default."""
        return frozenset(item.name for item in dataclasses.fields(cls) if item.default is dataclasses.MISSING)

    def values(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The facts, or those of these names, as JSON carries them."""
        own = self.__dict__
        return {
            name: list(value) if type(value := own[name]) is tuple else value
            for name in (own if names is None else names)
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Facts:
        """Inverse of `values`; a fact that was not known then has its default."""
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in known
        })


@dataclass(frozen=True, kw_only=True)
class ManifestRegistration(Facts):
    point: ClassVar[str] = "manifest_registration"
    about: ClassVar[str] = "A manifest, or what it refers to, is new or changed for a tenant; asked before it runs."

    version: str = _fact("version of the manifest")
    kpis: tuple[str, ...] = _fact("KPIs of the pipeline", ())
    kpis_without_fiscal_period: tuple[str, ...] = _fact(
        "KPIs without a column fiscal_period in their activation contract, or without the calendar that fills it", ())
    classification: str = _fact("highest classification of a column of the pipeline's contracts", "public")
    network_profile: str = _fact("declared network profile", "")


@dataclass(frozen=True, kw_only=True)
class RunStart(Facts):
    point: ClassVar[str] = "run_start"
    about: ClassVar[str] = "A run is about to start for a tenant, on the placement its manifest declares."

    tenant_status: str = _fact("draft, active, suspended or offboarded", "active")
    runner_class: str = _fact("serverless, container, managed_etl or dedicated_compute", "")
    runner_size: str = _fact("small, medium, large or xlarge", "")
    network_profile: str = _fact("public_vpc_egress, private_vpc, privatelink, vpn or on_premise_agent", "")
    cost_class: str = _fact("low, medium or high: what class and size cost, see `cost_class`", "low")
    classification: str = _fact("highest classification of a column the run reads or writes", "public")
    days: int = _fact("days of the range", 1)
    runs_today: int = _fact("runs of the tenant admitted on this day, in the tenant's time zone", 0)
    rows_today: int = _fact("rows received for the tenant on this day", 0)
    quota_runs_per_day: int = _fact("declared quota of runs, 0: none", 0)
    quota_rows_per_day: int = _fact("declared quota of rows, 0: none", 0)
    trigger: str = _fact("command (`barecount run`) or dagster (schedule, sensor, UI)", "command")


@dataclass(frozen=True, kw_only=True)
class ContractChange(Facts):
    point: ClassVar[str] = "contract_change"
    about: ClassVar[str] = "A contract version is about to become current."

    dataset: str = _fact("namespace.name")
    layer: str = _fact("extraction, raw, gold or activation")
    from_version: str = _fact("current version, empty for the first", "")
    to_version: str = _fact("version that would become current")
    breaking: bool = _fact("the change breaks the compatibility the contract promises", False)
    broken_subscribers: tuple[str, ...] = _fact("consumers whose subscription it would break", ())
    classification: str = _fact("highest classification of a column of the new version", "public")
    origin: str = _fact("declared (contracts/) or drift", "declared")


@dataclass(frozen=True, kw_only=True)
class DefinitionChange(Facts):
    point: ClassVar[str] = "definition_change"
    about: ClassVar[str] = (
        "A changed definition of GDPs or KPIs is to count as the version they have; values are compared next.")

    definitions: tuple[str, ...] = _fact("what changed: gdp.name version or kpi.name version")
    reason: str = _fact("why values are said to stay", "")


@dataclass(frozen=True, kw_only=True)
class Backfill(Facts):
    point: ClassVar[str] = "backfill"
    about: ClassVar[str] = "A range of days is computed again, see the definition of a back-fill."

    days: int = _fact("days of the range")
    published_days: int = _fact("days of the range whose numbers have been published before", 0)
    first_day: str = _fact("first day, YYYY-MM-DD", "")
    last_day: str = _fact("last day, YYYY-MM-DD", "")


@dataclass(frozen=True, kw_only=True)
class Replay(Facts):
    point: ClassVar[str] = "replay"
    about: ClassVar[str] = "A past run, or quarantined records, are sent through their stages again."

    kind: str = _fact("run or quarantine")
    records: int = _fact("records to send again; 0 for a run", 0)
    publishes: bool = _fact("what comes out becomes current", False)


@dataclass(frozen=True, kw_only=True)
class PublicationDecision(Facts):
    point: ClassVar[str] = "publication"
    about: ClassVar[str] = "Every gate has passed and KPIs are about to become current."

    kpis: tuple[str, ...] = _fact("KPIs of the pipeline")
    consumers: tuple[str, ...] = _fact("declared consumers", ())
    classification: str = _fact("highest classification of a published column", "public")
    gates: int = _fact("gates of the build, all passed", 0)


@dataclass(frozen=True, kw_only=True)
class Export(Facts):
    point: ClassVar[str] = "export"
    about: ClassVar[str] = "Data is about to leave the platform as a file."

    kind: str = _fact("evidence or quarantine")
    classification: str = _fact("highest classification of a column of what is exported", "public")
    records: int = _fact("records in the file, 0 when not known before", 0)


@dataclass(frozen=True, kw_only=True)
class TemplatePublication(Facts):
    point: ClassVar[str] = "template_publication"
    about: ClassVar[str] = "A version of an action template is about to become the one that a tenant's jobs send."

    template: str = _fact("name of the template")
    version: str = _fact("declared version")
    digest: str = _fact("SHA-256 of the template's content")
    kind: str = _fact("notification, ticket, webhook or automation", "notification")
    replaces: str = _fact("version that is published now, empty for the first", "")


@dataclass(frozen=True, kw_only=True)
class TenantLife(Facts):
    point: ClassVar[str] = "tenant_life"
    about: ClassVar[str] = "A tenant is new, or its declaration changed; asked before it is used."

    status: str = _fact("declared status: draft, active, suspended or offboarded")
    previous_status: str = _fact("status the database last accepted, empty for a new tenant", "")
    region: str = _fact("cloud region", "")


POINTS: Mapping[str, type[Facts]] = MappingProxyType({
    kind.point: kind
    for kind in (ManifestRegistration, RunStart, ContractChange, DefinitionChange, Backfill, Replay,
                 PublicationDecision, Export, TemplatePublication, TenantLife)
})
"""Facts by decision point."""


def highest_classification(contracts: Iterable[Contract]) -> str:
    """The strictest classification of any column; an unclassified column counts as public."""
    found = {column.classification for contract in contracts for column in contract.columns}
    return max(found & set(CLASSIFICATIONS), key=CLASSIFICATIONS.index, default=CLASSIFICATIONS[0])


def manifest_facts(
    manifest: Pipeline, tenant_id: str, contracts: Sequence[Contract], kpis: Sequence[tuple[Kpi, Contract]]
) -> ManifestRegistration:
    """What the registration of a manifest is decided from, when it runs as when it is checked offline.

    Args:
        contracts: of everything the pipeline reads and writes.
        kpis: with their activation contracts.
    """
    without = tuple(
        kpi.name for kpi, contract in kpis if contract.column("fiscal_period") is None or not kpi.spec.calendar)
    return ManifestRegistration(
        tenant=tenant_id, pipeline=manifest.name, datasets=tuple(sorted({contract.dataset for contract in contracts})),
        version=manifest.metadata.version, kpis=manifest.spec.kpis, kpis_without_fiscal_period=without,
        classification=highest_classification(contracts), network_profile=manifest.spec.runner.network_profile,
    )


_CLASS_COST = {"serverless": 0, "container": 0, "managed_etl": 1, "dedicated_compute": 1}
_SIZE_COST = {"small": 0, "medium": 0, "large": 1, "xlarge": 2}


def cost_class(runner_class: str, size: str) -> str:
    """`low`, `medium` or `high`.

    A size above medium, and a class that is billed while it waits, each cost one step; xlarge costs two.
    """
    return ("low", "medium", "high", "high")[_CLASS_COST.get(runner_class, 1) + _SIZE_COST.get(size, 2)]
