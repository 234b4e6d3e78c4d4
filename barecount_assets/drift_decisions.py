"""What a steward decides about drift: a new version of the contracts, or no.

A decision is one transaction of the database: the drift's row is locked, new contract versions are registered and
current, decision, evidence and event are written. What follows from it (reading the batches again, letting partitions
go on) is the next run's work.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from barecount_assets.stages.environment import StageEnvironment
from resources.governance import drift_register, registry
from resources.governance.compatibility import compare, next_version
from resources.governance.contract_evolution import column_name, evolved
from resources.governance.contracts import Contract, Layer, read_contract
from resources.governance.drift import Change, DriftClass, physical_type_of
from resources.governance.drift_register import Drift, Verdict
from resources.governance.manifests import OnDrift, Pipeline
from resources.runtime.database import fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.yaml_source import YamlSource

CAUSE = "drift"
_LAYERS: tuple[Layer, ...] = ("extraction", "raw")


@dataclass(frozen=True)
class Candidate:
    """The next version of one contract.

    Attributes:
        before, document: the contract's documents now and then.
        changed: False where the drift does not concern the contract; its version stays.
    """

    layer: Layer
    dataset: str
    current_version: str
    version: str
    before: Mapping[str, Any]
    document: Mapping[str, Any]

    @property
    def changed(self) -> bool:
        return self.version != self.current_version

    @property
    def text(self) -> str:
        """The document as a file."""
        return as_yaml(self.document)


@dataclass(frozen=True)
class Acceptance:
    """An accepted drift: its candidates are current, and lie at `files` for review."""

    drift: Drift
    candidates: tuple[Candidate, ...]
    files: tuple[Path, ...]


def candidates(environment: StageEnvironment, drift: Drift) -> tuple[Candidate, ...]:
    """What accepting a drift would make of the contracts in force. Nothing is written.

    Raises:
        BareCountError: declaration.invalid when a change cannot be declared as it is, e.g. a format nobody can parse.
    """
    manifest = environment.declarations.effective(drift.pipeline, drift.tenant_id)
    types = _types(environment, manifest, drift)
    note = f"drift {drift.drift_id}, found {drift.detected_at:%Y-%m-%d}"
    return tuple(_candidate(environment, drift, layer, types, note) for layer in _LAYERS)


def accept(
    environment: StageEnvironment, drift_id: int, *, by: str, reason: str, now: dt.datetime, write: bool = False
) -> Acceptance:
    """Declare what drifted: new contract versions, registered and current at once, if the policies allow it.

    Args:
        write: put the documents into `contracts/` itself instead of the review folder in the data folder.

    Raises:
        BareCountError: declaration.unknown, declaration.invalid, contract.drift_decided; policy.denied,
            approval.required, which stay on record.
    """
    _require_words(by, reason)
    _ask_policies(environment, drift_id, by, now)
    with environment.database.connect(autocommit=True) as connection, connection.transaction():
        drift = drift_register.locked(connection, drift_id)
        made = candidates(environment, drift)
        for candidate in made:
            if candidate.changed:
                registry.register(
                    connection, environment.declarations, drift.dataset, candidate.layer, candidate.document, who=by,
                    reason=f"drift {drift_id}: {reason}", cause=CAUSE, now=now,
                )
        decided = drift_register.decide(
            connection, drift_id, "accepted", by=by, reason=reason, now=now,
            versions=(made[0].version, made[1].version),
        )
    settings = environment.settings
    folder = settings.project_dir / "contracts" if write else settings.data_dir / "contracts" / "review"
    return Acceptance(decided, made, tuple(_write(folder, candidate) for candidate in made if candidate.changed))


def _ask_policies(environment: StageEnvironment, drift_id: int, by: str, now: dt.datetime) -> None:
    """Ask about the versions an acceptance would register, apart from its transaction: a refusal stays on record."""
    with environment.database.connect(autocommit=True) as connection:
        with connection.transaction():
            drift = drift_register.locked(connection, drift_id)
        changed = [candidate for candidate in candidates(environment, drift) if candidate.changed]
        contracts = [_read(candidate.document, drift, candidate.layer) for candidate in changed]
        steps = [registry.candidate_step(connection, environment.declarations, contract) for contract in contracts]
        registry.require_allowed(connection, environment.declarations, steps, by, now, origin=CAUSE)


def reject(environment: StageEnvironment, drift_id: int, *, by: str, reason: str, now: dt.datetime) -> Drift:
    """Refuse what drifted, by the manifest's `on_drift`: its part goes into quarantine, or its batches stay out.

    Raises:
        BareCountError: declaration.unknown, contract.drift_decided.
    """
    _require_words(by, reason)
    with environment.database.connect(autocommit=True) as connection, connection.transaction():
        drift = drift_register.locked(connection, drift_id)
        policy = environment.declarations.effective(drift.pipeline, drift.tenant_id).spec.on_drift
        return drift_register.decide(
            connection, drift_id, verdict_of(drift, policy), by=by, reason=reason, now=now,
            policy=policy.model_dump(),
        )


def verdict_of(drift: Drift, policy: OnDrift) -> Verdict:
    """What a rejection comes to: the strictest of what the policy says of the drift's classes."""
    said = {getattr(policy, change.kind.value) for change in drift.blocking}
    return "held" if "hold_batch" in said else "rejected"


def as_yaml(document: Mapping[str, Any]) -> str:
    """A contract's document as its file."""
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=120)


def _candidate(
    environment: StageEnvironment, drift: Drift, layer: Layer, types: Mapping[str, str], note: str
) -> Candidate:
    contract = environment.declarations.contract(drift.dataset, layer)
    document = evolved(contract.document, layer, drift.blocking, types, note)
    if document == contract.document:
        return Candidate(layer, drift.dataset, contract.version, contract.version, contract.document, document)
    version = next_version(contract.version, compare(contract, _read(document, drift, layer)), contract.mode)
    return Candidate(layer, drift.dataset, contract.version, version, contract.document,
                     {**document, "version": version})


def _read(document: Mapping[str, Any], drift: Drift, layer: Layer) -> Contract:
    named = YamlSource(f"drift {drift.drift_id}/{layer}", document, {})
    contract, findings = read_contract(named, drift.dataset, layer)
    if contract is None:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            "\n".join([f"drift {drift.drift_id} cannot be declared as it is", *map(str, findings)]),
            hint="declare it by hand in contracts/ under a new version, or reject the drift",
        )
    return contract


def _types(environment: StageEnvironment, manifest: Pipeline, drift: Drift) -> dict[str, str]:
    """Contract types of added fields and changed types: as stated by the source, else as its values are."""
    from barecount_assets.stages.ingestion import relanding

    source = next(source for source in manifest.spec.sources if source.dataset == drift.dataset)
    wanted = [c for c in drift.blocking if c.kind in (DriftClass.FIELD_ADDED, DriftClass.TYPE_CHANGED)]
    types, batches = {}, None
    for change in wanted:
        stated = physical_type_of(_stated(drift, change)) if _stated(drift, change) else None
        if stated is None:
            if batches is None:
                with environment.database.connect(autocommit=True) as connection:
                    batches = fetch_dicts(connection, _BATCHES, (drift.drift_id,))
            field = _field(environment, drift, change)
            stated = relanding.infer_type(
                relanding.values_of(environment.raw_store, batches, source, drift.observed, field))
        types[change.field] = stated
    return types


def _stated(drift: Drift, change: Change) -> str:
    stated = dict(zip(drift.observed.names, drift.observed.types or (), strict=False))
    return stated.get(change.field, "")


def _field(environment: StageEnvironment, drift: Drift, change: Change) -> Any:
    """The field as text, under the column's name where it has one: that is where accepted rows have it."""
    from barecount_assets.stages.ingestion.records import Field

    extraction = environment.declarations.contract(drift.dataset, "extraction")
    names = {column.source_name: column.name for column in extraction.columns}
    return Field(names.get(change.field, column_name(change.field)), change.field, pa.string())


def _require_words(by: str, reason: str) -> None:
    if not by.strip() or not reason.strip():
        raise BareCountError(ErrorCode.USAGE, "a decision needs a person and a reason",
                             hint="give --reason WHY, and --by WHO where it is not the user of this machine")


def _write(folder: Path, candidate: Candidate) -> Path:
    namespace, _, name = candidate.dataset.partition(".")
    path = folder / "datasets" / namespace / name / f"{candidate.layer}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(candidate.text, encoding="utf-8")
    return path


_BATCHES = """
select b.* from platform.raw_batch b join platform.drift_batch w using (batch_id)
where w.drift_id = $1 order by batch_id
"""
