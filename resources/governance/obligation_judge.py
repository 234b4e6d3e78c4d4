"""How obligations stand for a pipeline: judged by its declarations and column lineage, and by what a run has seen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from resources.data_utilities.calendar import add_business_days
from resources.governance.column_lineage import (
    CALENDAR,
    CONSTANT,
    DIRECT,
    REGISTER,
    ROWS,
    VARIABLE,
    AssetLineage,
    Dependency,
    ProjectLineage,
)
from resources.governance.contracts import Contract
from resources.governance.declarations import Declarations
from resources.governance.manifests import Pipeline
from resources.governance.modes import Layer
from resources.governance.obligations import (
    FlowSource,
    ForbidFlow,
    FreshnessSla,
    Obligation,
    RequiredTag,
    RequireProvenance,
)
from resources.runtime.declared import listed

Status = Literal["pass", "fail", "warn", "skip"]
_CONTRACT_LAYERS: Mapping[str, Layer] = {
    "source": "extraction", "raw": "raw", "gdp": "gold", "kpi": "activation", "published": "activation",
}  # fmt: skip
_NAMED = 10  # violations that a summary and a ledger entry name


@dataclass(frozen=True)
class Violation:
    """One way in which an obligation is not kept.

    Attributes:
        asset, column: what is at fault; no column where it is the whole asset, no asset where it is the pipeline.
        path: the columns on the way, from where the flow begins to where it must not arrive.
    """

    message: str
    asset: str = ""
    column: str = ""
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How an obligation stands for a pipeline: status, what was seen, and what is wrong."""

    obligation: Obligation
    status: Status
    summary: str
    violations: tuple[Violation, ...] = field(default=())

    @property
    def blocks(self) -> bool:
        return self.status == "fail"

    @property
    def details(self) -> dict[str, Any]:
        """For the ledger: the first violations, and how many there are."""
        return {
            "violations": len(self.violations),
            "named": [
                {"message": v.message, "asset": v.asset, "column": v.column, "path": list(v.path)}
                for v in self.violations[:_NAMED]
            ],
        }


@dataclass(frozen=True)
class Facts:
    """What obligations are judged by.

    Attributes:
        lineage: of the project, with edges beyond it (exports) where a run knows of any.
        approved: exports that an approval let through.
        tenant_id, today, newest: of a run: whose, the tenant's day, and the newest day of each dated source (None: no
            day has arrived). Without them freshness is not judged.
    """

    declarations: Declarations
    pipeline: str
    lineage: ProjectLineage
    tenant_id: str | None = None
    today: dt.date | None = None
    newest: Mapping[str, dt.date | None] = field(default_factory=dict)
    approved: frozenset[str] = frozenset()

    @property
    def manifest(self) -> Pipeline:
        return self.declarations.pipeline(self.pipeline)

    def assets(self, layers: Iterable[str]) -> Iterator[str]:
        """The pipeline's assets in some layers."""
        spec = self.manifest.spec
        names = {
            "source": [source.dataset for source in spec.sources], "raw": [source.dataset for source in spec.sources],
            "gdp": spec.transforms.gdp, "kpi": spec.kpis, "published": spec.kpis,
        }
        own = {f"{layer}.{name}" for layer, found in names.items() for name in found}
        for layer in layers:
            if layer in names:
                yield from (f"{layer}.{name}" for name in names[layer])
            else:  # what a run has seen beyond the project, where it leads back to this pipeline
                yield from (name for name, lineage in sorted(self.lineage.assets.items())
                            if name.startswith(f"{layer}.") and own & set(lineage.reads))

    def contract(self, asset: str) -> Contract | None:
        """The contract of an asset of the pipeline, None for what has none."""
        layer, _, name = asset.partition(".")
        dataset = name if layer in ("source", "raw") else f"{self.pipeline}.{name}"
        at = _CONTRACT_LAYERS.get(layer)
        return self.declarations.contracts.get((dataset, at)) if at else None

    def columns(self, asset: str) -> tuple[str, ...]:
        """Columns of an asset, by its contract or, where it has none, by its lineage."""
        contract = self.contract(asset)
        if contract is not None:
            return tuple(c.source_name if asset.startswith("source.") else c.name for c in contract.columns)
        lineage = self.lineage.assets.get(asset)
        return tuple(column for column in lineage.columns if column != ROWS) if lineage else ()


def judge(obligations: Iterable[Obligation], facts: Facts) -> list[Outcome]:
    """How the obligations that concern a pipeline (and tenant) stand, in order of name."""
    concerned = sorted((o for o in obligations if o.concerns(facts.pipeline, facts.tenant_id)), key=lambda o: o.name)
    return [_judged(obligation, facts) for obligation in concerned]


def judge_exports(obligations: Iterable[Obligation], facts: Facts) -> list[Outcome]:
    """How those obligations stand that forbid flows to exports, by the exports in the lineage alone."""
    outcomes = []
    for obligation in sorted(obligations, key=lambda o: o.name):
        check = obligation.spec.check
        if obligation.concerns(facts.pipeline, facts.tenant_id) and isinstance(check, ForbidFlow) and (
                "export" in check.to.layers):
            outcomes.append(_outcome(obligation, _flows_to(check, facts, ("export",)), "no such flow"))
    return outcomes


def _judged(obligation: Obligation, facts: Facts) -> Outcome:
    check = obligation.spec.check
    if isinstance(check, ForbidFlow):
        found, kept = _forbidden_flows(check, facts), "no such flow"
    elif isinstance(check, RequiredTag):
        found, kept = _missing_tags(check, facts), f"every asset has the tag {check.tag}"
    elif isinstance(check, RequireProvenance):
        found, kept = _without_provenance(check, facts), "every column leads to its sources"
    else:
        newest = [day for day in facts.newest.values() if day is not None]
        if facts.today is None or facts.tenant_id is None or not newest:
            return Outcome(obligation, "skip", "no day of a dated source has arrived")
        found, kept = _late(check, facts), f"the newest day is {min(newest)}"
    return _outcome(obligation, found, kept)


def _outcome(obligation: Obligation, found: Sequence[Violation], kept: str) -> Outcome:
    if not found:
        return Outcome(obligation, "pass", kept)
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    status: Status = "fail" if obligation.spec.on_failure == "block" else "warn"
    return Outcome(obligation, status, f"{found[0].message}{more}", tuple(found))


# --- flows -------------------------------------------------------------------------------------------------------


def _forbidden_flows(check: ForbidFlow, facts: Facts) -> list[Violation]:
    found = _flows_to(check, facts, check.to.layers)
    profile = facts.manifest.spec.runner.network_profile
    if profile in check.to.network_profiles:
        arriving = sorted(
            f"{asset}.{column}" for (asset, column), _ in _guarded(check.source, facts) if asset.startswith("raw."))
        if arriving:
            found.append(Violation(
                f"the pipeline's runner has network profile {profile} and works on {listed(arriving[:_NAMED])}",
                path=tuple(arriving)))
    return found


def _flows_to(check: ForbidFlow, facts: Facts, layers: Iterable[str]) -> list[Violation]:
    guarded = dict(_guarded(check.source, facts))
    let_through = facts.approved if check.approved == "allowed" else frozenset()
    return [
        violation for asset in facts.assets(layers) if asset not in let_through for column in facts.columns(asset)
        if (violation := _flow(check, facts.lineage, guarded, asset, column)) is not None
    ]


def _guarded(source: FlowSource, facts: Facts) -> Iterator[tuple[tuple[str, str], str]]:
    """Columns that must not flow, each with why."""
    for asset in facts.assets(("source", "raw", "gdp", "kpi", "published")):
        contract = facts.contract(asset)
        for column in contract.columns if contract else ():
            name = column.source_name if asset.startswith("source.") else column.name
            tags = [tag for tag in source.tags if tag in column.tags]
            if column.classification in source.classifications:
                yield (asset, name), f"is {column.classification}"
            elif tags:
                yield (asset, name), f"has the tag {tags[0]}"
            elif f"{asset}.{name}" in source.columns:
                yield (asset, name), "may not leave"


def _flow(
    check: ForbidFlow, lineage: ProjectLineage, guarded: Mapping[tuple[str, str], str], asset: str, column: str
) -> Violation | None:
    """The shortest way by which a guarded column reaches this one."""
    start = (asset, column)
    came_from: dict[tuple[str, str], tuple[str, str] | None] = {start: None}
    waiting = [start]
    while waiting:
        at = waiting.pop(0)
        if at in guarded:
            path = [at]
            while (following := came_from[path[-1]]) is not None:
                path.append(following)
            names = tuple(".".join(node) for node in path)
            way = f"{names[0]} {guarded[at]}" + (f" and reaches {' -> '.join(names[1:])}" if len(names) > 1 else "")
            return Violation(way, asset, column, names)
        for dependency in _dependencies(lineage.assets.get(at[0]), at[1], rows=check.indirect == "forbidden"):
            if dependency.kind != DIRECT and check.indirect == "allowed":
                continue
            if dependency.masked and check.masked == "allowed":
                continue
            node = (dependency.asset, dependency.column)
            if node not in came_from:
                came_from[node] = at
                waiting.append(node)
    return None


def _dependencies(asset: AssetLineage | None, column: str, *, rows: bool) -> Sequence[Dependency]:
    if asset is None:
        return ()
    return (*asset.columns.get(column, ()), *(asset.columns.get(ROWS, ()) if rows else ()))


# --- tags, provenance, freshness ---------------------------------------------------------------------------------


def _missing_tags(check: RequiredTag, facts: Facts) -> list[Violation]:
    found = []
    for asset in facts.assets(check.layers):
        contract = facts.contract(asset)
        own = dict(tag.split(":", 1) for tag in (contract.tags if contract else ()) if ":" in tag)
        value = own.get(check.tag, facts.manifest.metadata.tags.get(check.tag))
        if value is None:
            found.append(Violation(f"{asset} has no tag {check.tag}", asset))
        elif check.values and value not in check.values:
            message = f"{asset} has the tag {check.tag} {value!r}, allowed: {listed(check.values)}"
            found.append(Violation(message, asset))
    return found


def _without_provenance(check: RequireProvenance, facts: Facts) -> list[Violation]:
    unknown = {(problem.asset, problem.column): problem.message for problem in facts.lineage.unresolved}
    whole = {asset: message for (asset, column), message in unknown.items() if column == ROWS}
    found = []
    for asset in facts.assets(check.layers):
        for column in facts.columns(asset):
            problem = _provenance_problem(facts.lineage, unknown, whole, asset, column)
            if problem is not None:
                found.append(Violation(f"{asset}.{column} {problem}", asset, column))
    return found


def _provenance_problem(
    lineage: ProjectLineage, unknown: Mapping[tuple[str, str], str], whole: Mapping[str, str], asset: str, column: str
) -> str | None:
    if asset.startswith("source."):
        return None
    reached = [(asset, column), *((d.asset, d.column) for d in lineage.upstream(asset, column))]
    if len(reached) == 1:
        return "comes from nothing that is known"
    for node in reached:
        if node in unknown or node[0] in whole:
            return f"comes from {'.'.join(node)}, of which it is not known where it comes from: " + (
                unknown.get(node) or whole[node[0]])
        ends = node[0] in (CONSTANT, VARIABLE, CALENDAR, REGISTER) or node[0].startswith("source.")
        # Stamps of the platform in raw tables (`_batch_id`) have no source of their own.
        if not ends and node[0] not in lineage.assets:
            return f"comes from {'.'.join(node)}, which nothing declared makes"
        if not ends and not lineage.assets[node[0]].columns.get(node[1]) and not node[1].startswith("_"):
            return f"comes from {'.'.join(node)}, which comes from nothing that is known"
    return None


def _late(check: FreshnessSla, facts: Facts) -> list[Violation]:
    assert facts.tenant_id is not None and facts.today is not None
    calendar = facts.declarations.calendar(facts.tenant_id)
    found = []
    for source, day in sorted(facts.newest.items()):
        if day is None:
            found.append(Violation(f"no day of source {source} has arrived"))
        elif add_business_days(calendar, day, check.max_business_days + 1) <= facts.today:
            due = add_business_days(calendar, day, check.max_business_days + 1)
            found.append(Violation(
                f"the newest day of source {source} is {day}: since {due} that is more than "
                f"{check.max_business_days} business days ago"))
    return found
