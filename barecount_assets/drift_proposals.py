"""What accepting a drift would make of the contracts, tried on the batches that wait before anybody is asked.

A proposal is more than the change written down: the waiting batches are read again under it, as the next run would read
them, and whatever would still block becomes part of the proposal. So an acceptance takes effect, or is refused and says
what stands against it. Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from barecount_assets.stages.environment import StageEnvironment
from resources.governance import drift as drifts
from resources.governance.compatibility import compare, next_version
from resources.governance.contract_evolution import column_name, evolved
from resources.governance.contracts import Contract, Layer, read_contract
from resources.governance.drift import Change, DriftClass, physical_type_of
from resources.governance.drift_register import Drift
from resources.governance.sources import AnySource
from resources.runtime.database import fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.yaml_source import YamlSource
from resources.storage import raw_tables

_LAYERS: tuple[Layer, ...] = ("extraction", "raw")
_TRIALS = 8
"""Most times that what still differs is added to a proposal; each time the waiting batches are read again."""


@dataclass(frozen=True)
class Candidate:
    """The next version of one contract.

    Attributes:
        before, document: the contract's documents now and then.
        changed: False where the drift does not concern the contract; its version stays.
        words: what the version changes, a sentence each.
    """

    layer: Layer
    dataset: str
    current_version: str
    version: str
    before: Mapping[str, Any]
    document: Mapping[str, Any]
    words: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return self.version != self.current_version

    @property
    def text(self) -> str:
        """The document as a file."""
        return as_yaml(self.document)


def as_yaml(document: Mapping[str, Any]) -> str:
    """A contract's document as its file."""
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=120)


def candidates(environment: StageEnvironment, drift: Drift) -> tuple[Candidate, ...]:
    """What accepting a drift would make of the contracts in force; none of a delivery that shrank. Nothing is written.

    Raises:
        BareCountError: declaration.invalid when a change cannot be declared as it is, e.g. a format nobody can parse;
            contract.drift_unacceptable when no contract would let the waiting batches pass; store.corrupt.
    """
    return () if drift.of_delivery else _Trial(environment, drift).candidates()


class _Trial:
    """One drift's changes, and the batches that wait for them."""

    def __init__(self, environment: StageEnvironment, drift: Drift) -> None:
        self._environment, self._drift = environment, drift
        from barecount_assets.stages.ingestion import rejudging

        manifest = environment.declarations.effective(drift.pipeline, drift.tenant_id)
        self._source: AnySource = next(s for s in manifest.spec.sources if s.dataset == drift.dataset)
        self._current = {layer: environment.declarations.contract(drift.dataset, layer) for layer in _LAYERS}
        self._note = f"drift {drift.drift_id}, found {drift.detected_at:%Y-%m-%d}"
        with environment.database.connect(autocommit=True) as connection:
            self._batches = fetch_dicts(connection, _BATCHES, (drift.drift_id,))
            self._decided = {batch["batch_id"]: rejudging.decided(connection, batch) for batch in self._batches}
        self._time_zone = environment.declarations.tenant(drift.tenant_id).spec.timezone
        self._types: dict[str, str] = {}

    def candidates(self) -> tuple[Candidate, ...]:
        changes = [change for change in self._drift.blocking
                   if drifts.still_blocking(change, self._current["extraction"], self._current["raw"])]
        for _ in range(_TRIALS):
            proposed = tuple(self._candidate(layer, changes) for layer in _LAYERS)
            extraction, raw = (self._contract(candidate) for candidate in proposed)
            left = [*(change for change in changes if drifts.still_blocking(change, extraction, raw)),
                    *self._still_different(extraction, raw)]
            if not left:
                return proposed
            further = [change for change in left if change not in changes]
            if not further:
                break
            changes += further
        raise BareCountError(
            ErrorCode.DRIFT_UNACCEPTABLE,
            f"accepting drift {self._drift.drift_id} of {self._drift.dataset} would not let its batches pass; what "
            f"would stand against it: {drifts.summary(left)}",
            hint="declare it by hand in contracts/datasets under a new version (perhaps a new column beside the old "
            "one), have the source corrected, or reject the drift",
        )

    def _contract(self, candidate: Candidate) -> Contract:
        if not candidate.changed:
            return self._current[candidate.layer]
        return read_candidate(candidate.document, self._drift, candidate.layer)

    def _candidate(self, layer: Layer, changes: Sequence[Change]) -> Candidate:
        contract, drift = self._current[layer], self._drift
        document = evolved(contract.document, layer, changes, self._types_of(changes), self._note)
        if document == contract.document:
            return Candidate(layer, drift.dataset, contract.version, contract.version, contract.document, document)
        comparison = compare(contract, read_candidate(document, drift, layer))
        version = next_version(contract.version, comparison, contract.mode)
        words = tuple(change.message for change in comparison.changes)
        return Candidate(layer, drift.dataset, contract.version, version, contract.document,
                         {**document, "version": version}, words)

    def _still_different(self, extraction: Contract, raw: Contract) -> Iterator[Change]:
        """What would block if the waiting batches were read again under these contracts."""
        from barecount_assets.stages.ingestion import relanding
        from barecount_assets.stages.ingestion.observing import RowObserver
        from barecount_assets.stages.ingestion.rules import ContractRules
        from barecount_assets.stages.ingestion.sources import extractor_schema, required_of_states
        from barecount_assets.stages.ingestion.stage import split

        schema = extractor_schema(extraction, self._time_zone, self._source)
        rules = ContractRules(raw, self._source, required_of_states(extraction, self._source))
        observed = self._drift.observed
        found: dict[Change, None] = {}
        for batch in self._batches:
            observer = RowObserver()
            decided = self._decided[batch["batch_id"]]
            for parsed in relanding.read(self._environment.raw_store, batch, self._source, observed, schema, decided):
                observer.batch(parsed)
                split(parsed, rules, observer)
            changes = drifts.classify(observed, observer.seen(), extraction, raw)
            found.update((change, None) for change in changes if change.blocking)
        return iter(found)

    # --- types ----------------------------------------------------------------------------------------------

    def _types_of(self, changes: Sequence[Change]) -> dict[str, str]:
        """Contract types of added fields and changed types, by the source's name of the field."""
        for change in changes:
            wanted = change.kind is DriftClass.TYPE_CHANGED or (
                change.kind is DriftClass.FIELD_ADDED and not change.declared)
            if wanted and change.field not in self._types:
                self._types[change.field] = self._type_of(change)
        return self._types

    def _type_of(self, change: Change) -> str:
        """The type the source states, else the first that holds what waits and what is stored."""
        from barecount_assets.stages.ingestion import relanding
        from barecount_assets.stages.ingestion.records import Field
        from barecount_assets.stages.ingestion.sources import arrow_type

        store, observed = self._environment.raw_store, self._drift.observed
        name, names = self._column_of(change.field), self._names_of(change.field)
        called = next((own for own in names if own in observed.names), change.field)

        def field(kind: str) -> Field:
            shown_in = self._time_zone if kind in ("date", "timestamp") else None
            return Field(
                name, called, arrow_type(kind), time_zone=shown_in, json=kind == "json", names=(called, *names))

        types = dict(zip(observed.names, observed.types or (), strict=False))
        stated = physical_type_of(types.get(called, ""))
        if stated is not None and self._fits(field(stated), stated, change):
            return stated
        inferred = relanding.infer_type(
            relanding.values_of(store, self._batches, self._source, observed, field("text")))
        if change.declared == "timestamptz" and {stated, inferred} & {"timestamp", "date"}:
            raise BareCountError(
                ErrorCode.DRIFT_UNACCEPTABLE,
                f"{change.field} of {self._drift.dataset} is an instant and arrives without an offset: which instants "
                "are meant, no type says",
                hint="say on whose clock they are: logicalTypeOptions.defaultTimezone of the column in extraction.yaml "
                "and raw.yaml, under a new version; or have the source write offsets, and reject the drift",
            )
        tried = dict.fromkeys((inferred, "numeric(38,9)", "double precision", "text", "json"))
        return next((kind for kind in tried if self._fits(field(kind), kind, change)), "text")

    def _fits(self, field: Any, kind: str, change: Change) -> bool:
        """Whether a type is another than declared, and holds every value that waits and every one that is stored."""
        from barecount_assets.stages.ingestion import relanding

        if change.kind is DriftClass.TYPE_CHANGED:
            if kind == change.declared:
                return False
            with self._environment.database.connect(autocommit=True) as connection:
                stored_as = "text" if kind == "json" else kind
                if raw_tables.count_unfit(connection, self._drift.dataset, field.name, stored_as):
                    return False
        return relanding.holds(
            self._environment.raw_store, self._batches, self._source, self._drift.observed, field)

    def _names_of(self, source_name: str) -> list[str]:
        """The names the source may have a field under, once the drift is accepted."""
        aliases = [name for column in self._current["extraction"].columns if column.source_name == source_name
                   for name in column.aliases]
        renamed = [change.field for change in self._drift.blocking
                   if change.kind is DriftClass.FIELD_ADDED and change.declared == source_name]
        return [source_name, *aliases, *renamed]

    def _column_of(self, source_name: str) -> str:
        """The column a field has, or would have: that is where accepted rows have it."""
        names = {column.source_name: column.name for column in self._current["extraction"].columns}
        return names.get(source_name, column_name(source_name))


def read_candidate(document: Mapping[str, Any], drift: Drift, layer: Layer) -> Contract:
    """A proposed document as a contract. Raises BareCountError declaration.invalid."""
    named = YamlSource(f"drift {drift.drift_id}/{layer}", document, {})
    contract, findings = read_contract(named, drift.dataset, layer)
    if contract is None:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            "\n".join([f"drift {drift.drift_id} cannot be declared as it is", *map(str, findings)]),
            hint="declare it by hand in contracts/ under a new version, or reject the drift",
        )
    return contract


_BATCHES = """
select b.* from platform.raw_batch b join platform.drift_batch w using (batch_id)
where w.drift_id = $1 and w.outcome = 'waiting' and b.is_current
    and not exists (select from platform.raw_expiry e where e.batch_id = b.batch_id)
order by batch_id
"""
