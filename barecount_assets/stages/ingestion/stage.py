"""Ingestion: units of a source become raw batches, each whole or not at all.

For every unit: parse to the extraction contract, judge by the raw contract's rules, write the accepted rows to the raw
store and to the raw table in one pass, keep the refused ones whole in quarantine, and register batch and evidence in
the transaction that makes the rows visible. received = accepted + quarantined, or the unit does not land. Content that
landed already is not landed again.
"""

from __future__ import annotations

import datetime as dt
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from barecount_assets.stages import completeness, deliveries, lineage
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.ingestion import (
    cursors,
    dataset_rules,
    delivery_order,
    rejudging,
    relanding,
    schema_check,
    settling,
    sources,
)
from barecount_assets.stages.ingestion.delivery_order import LANDING_LENGTH, Delivered, landing_key
from barecount_assets.stages.ingestion.observing import RowObserver
from barecount_assets.stages.ingestion.reading_ahead import ReadAhead
from barecount_assets.stages.ingestion.records import (
    REJECT_SCHEMA,
    ChangedInReading,
    Connector,
    ObservedSchema,
    ParsedBatch,
    Unit,
    Window,
)
from barecount_assets.stages.ingestion.rules import RULE_BROKEN, ContractRules
from resources.governance import drift, drift_register, slos
from resources.governance.contracts import Contract
from resources.governance.drift import SeenInRows
from resources.governance.drift_register import WaitingBatch
from resources.governance.manifests import Pipeline
from resources.governance.openlineage import Dataset
from resources.runners.facade import Progress
from resources.runners.identity import current as current_runner
from resources.runners.stage import CheckOutcome, Output, Stage, StageReceipt, StageSpec, run_token
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts, unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import SOFTWARE_VERSION
from resources.storage import raw_tables
from resources.storage.raw_store import ObjectWriter, RawStore, StoredObject, prefix_of
from resources.trust import ledger

if TYPE_CHECKING:
    from resources.governance.sources import AnySource
    from resources.host.tenants import RawClass

_NOT_IN_EVIDENCE = {"batch_id", "is_current", "run_token", "observed_names", "replay_of", "supersedes",
                    "observed_types"}
_QUEUE_BATCHES = 2
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_READINGS = 3  # of one unit, whose source changes while it is read


def run(spec: StageSpec, environment: StageEnvironment, progress: Progress) -> StageReceipt:
    """Ingest one source over a window of days."""
    assert spec.source is not None and spec.window is not None
    _keep_freed_pages()
    window = Window(*(dt.date.fromisoformat(day) for day in spec.window))
    manifest = environment.declarations.effective(spec.pipeline, spec.tenant_id)
    source = manifest.source(spec.source)
    extraction = environment.declarations.contract(source.dataset, "extraction")
    raw = environment.declarations.contract(source.dataset, "raw")
    with environment.exclusive(spec.tenant_id, spec.pipeline) as connection, ExitStack() as stack:
        spec = _with_remembered_paths(connection, spec)
        connector = sources.connector_for(manifest, source, spec, environment)
        key = cursors.CursorKey(spec.tenant_id, spec.pipeline, spec.source)
        cursor = cursors.load(connection, key)
        units = connector.discover(window, cursor)
        incremental = stack.enter_context(cursors.NewRecords(connector, environment.database, key, cursor))
        time_zone = environment.declarations.tenant(spec.tenant_id).spec.timezone
        units = incremental.begin(units, sources.extractor_schema(extraction, time_zone, source))
        identity = {
            "stage": Stage.INGESTION,
            "tenant": spec.tenant_id,
            "pipeline": spec.pipeline,
            "manifest": manifest.hash,
            "source": spec.source,
            "window": list(spec.window),
            "contracts": [extraction.hash, raw.hash],
            "code": environment.code_version,
        }
        token = run_token(**identity, units=[[unit.source_id, unit.sha256 or unit.cursor or ""] for unit in units])
        reading = stack.enter_context(ReadAhead(incremental, units))
        landing = Landing(environment, spec, reading, extraction, raw, manifest.hash, incremental.landed)
        found = [unit.source_id for unit in units]
        if spec.probe and not (
            landing.all_known(connection, units) and not landing.reordered(connection)
            and _days_marked(connection, spec, source.dated, window)
            and not settling.due(connection, spec.tenant_id, extraction, raw)
            and not rejudging.due(connection, spec.tenant_id, raw)
            and deliveries.is_noted(connection, spec.tenant_id, source, found)
        ):
            return StageReceipt(Stage.INGESTION, spec.tenant_id, spec.pipeline, token, changed=True)
        environment.register_tenant(connection, spec.tenant_id)
        for name, path in spec.source_paths.items():
            fetch(connection, _REMEMBER_PATH, (spec.tenant_id, spec.pipeline, name, path))
        streams = any(unit.sha256 is None for unit in units)
        lineage.begin(environment, connection, spec, token, [Dataset(f"source.{raw.dataset}")],
                      told_by_content=streams)
        raw_tables.ensure(connection, raw.dataset, raw.column_types)
        reordered = landing.reorder(connection)
        landed: list[_Landed] = []
        for number, unit in enumerate(units, start=1):
            progress(f"{spec.source} {unit.source_id}", number - 1, len(units))
            landed.append(landing.land(connection, unit))
        incremental.finish(connection)
        progress(spec.source, len(units), len(units))
        relanded, settled = landing.settle(connection, source)
        successors, judged = landing.judge_again(connection, source, progress)
        for by_number in (relanded, successors):
            landed = [replace(item, batch=by_number.get(item.batch["batch_id"], item.batch)) for item in landed]
        deliveries.note_absent(connection, spec.tenant_id, source, found)
        held = deliveries.settle(connection, environment, spec.tenant_id, spec.pipeline, [source])
        changed = settled + judged.batches + reordered + held > 0 or any(
            unit.state not in ("known", "withdrawn") for unit in landed)
        if streams:
            token = run_token(**identity, units=[[item.unit.source_id, item.unit.sha256 or item.batch["content_sha256"]]
                                                 for item in landed])
        withdrawn = [item.unit.source_id for item in landed if item.state == "withdrawn"]
        looked: dict[str, Any] = {}
        if source.connector == "files":
            from barecount_assets.stages.ingestion import notices

            looked = notices.of_folder(connection, environment, manifest, source, spec, connector, units, window,
                                       withdrawn)
        return _finish(spec, environment, connection, source.dated, window, token,
                       [item for item in landed if item.state != "withdrawn"], changed, extraction, manifest, judged,
                       incremental.facts, looked)


@dataclass(frozen=True)
class _Landed:
    """What became of one unit; state is landed, reinstated, redelivered, known or withdrawn."""

    unit: Unit
    state: str
    batch: dict[str, Any]


@dataclass(frozen=True)
class _Judgement:
    """A batch (its row of `platform.raw_batch`) that lands again, and what of it moves."""

    batch: dict[str, Any]
    moves: rejudging.Moves


class Landing:
    """Lands the units of one source, in the session that holds the stage lock: who lost the lock lands nothing.

    The session is busy while a connector reads: one that reads from the same database needs a connection of its own.
    """

    def __init__(
        self,
        environment: StageEnvironment,
        spec: StageSpec,
        connector: Connector,
        extraction: Contract,
        raw: Contract,
        manifest_hash: str,
        replay: Callable[[psycopg.Connection, dict[str, Any]], None] | None = None,
    ) -> None:
        """`replay` is given every batch that lands, in its transaction, to account for the records in it."""
        self._replay = replay
        self._environment, self._spec, self._connector = environment, spec, connector
        self._extraction, self._raw, self._manifest_hash = extraction, raw, manifest_hash
        manifest = environment.declarations.effective(spec.pipeline, spec.tenant_id)
        assert spec.source is not None
        self._source, self._raw_class = manifest.source(spec.source), manifest.spec.retention.raw_class
        time_zone = environment.declarations.tenant(spec.tenant_id).spec.timezone
        self._schema = sources.extractor_schema(extraction, time_zone, self._source)
        self._required = sources.required_of_states(extraction, self._source)
        self._rules = ContractRules(raw, self._source, self._required)

    def all_known(self, connection: psycopg.Connection, units: list[Unit]) -> bool:
        """Whether every unit's content has landed as what the unit says. A stream is unknown until it is read."""
        for unit in units:
            batch = unit.sha256 and self._known(connection, unit, unit.sha256)
            if not batch or not batch["is_said"] or self._moved(unit, batch):
                return False
        return True

    def reordered(self, connection: psycopg.Connection) -> bool:
        """Whether another order is declared than units have been put in."""
        return bool(fetch(connection, _OTHERWISE_ORDERED, self._order_key))

    def reorder(self, connection: psycopg.Connection) -> int:
        """Put what landed under another declared order in the one that is declared now; returns how many units."""
        with connection.transaction():
            rows = fetch(connection, _OTHERWISE_ORDERED, self._order_key)
            if not rows:
                return 0
            orders = {
                source_id: self._declared_order(Delivered(source_id, modified_at, cursor, kind)) + landing_key(landing)
                for source_id, landing, modified_at, cursor, kind in rows
            }
            tenant_id, dataset, ordered_by = self._order_key
            head = ledger.newest(connection, tenant_id)
            ledger.append(connection, ledger.Entry(
                tenant_id, "source.reordered", dataset, run_token(reordered=dataset, by=ordered_by, after=head),
                {"ordered_by": ordered_by, "delivery_orders": orders}))
            fetch(connection, _REORDER, (*self._order_key, list(orders), list(orders.values())))
        return len(rows)

    @property
    def _order_key(self) -> tuple[str, str, str]:
        return self._spec.tenant_id, self._raw.dataset, self._source.ordered_by

    def _declared_order(self, unit: Delivered) -> str:
        return delivery_order.declared_key(self._source, unit)

    def _moved(self, unit: Unit, batch: dict[str, Any]) -> bool:
        """Whether a unit that says what it said stands elsewhere now: its file has another time."""
        return unit.options.get("replay_of") is None and not batch["is_withdrawn"] and (
            self._declared_order(delivered(unit)) != batch["unit_order"][:-LANDING_LENGTH])

    def land(self, connection: psycopg.Connection, unit: Unit) -> _Landed:
        """Land one unit unless its content is there."""
        if unit.sha256 is not None:
            known = self._known(connection, unit, unit.sha256)
            if known is not None:
                return self._recognise(connection, unit, known)
        for reading in range(1, _READINGS + 1):
            observed = self._connector.observed_schema(unit)
            schema = self._schema.named_as(observed.names)
            try:
                with unavailable_as_error():
                    return self._copy(connection, unit, observed, self._connector.read(unit, schema))
            except ChangedInReading:  # nothing of it has landed
                if reading == _READINGS:
                    raise
        raise AssertionError("a unit is read at least once")

    def settle(self, connection: psycopg.Connection, source: AnySource) -> tuple[dict[int, dict[str, Any]], int]:
        """Let every batch go on that need not wait any longer.

        Returns the batches that were landed again, by the number of the batch each supersedes, and how many went on.
        """
        relanded: dict[int, dict[str, Any]] = {}
        due = settling.due(connection, self._spec.tenant_id, self._extraction, self._raw)
        for item in due:
            if item.outcome != "relanded":
                settling.apply(connection, item, self._raw)
                continue
            (old,) = fetch_dicts(connection, _BATCH, (item.batch.batch_id,))
            unit = Unit(old["source_id"], old["object_key"], old["partition_date"], old["content_sha256"],
                        delivery_order=old["delivery_order"])
            rows = relanding.read(self._environment.raw_store, old, source, item.batch.drift.observed, self._schema,
                                  rejudging.decided(connection, old))
            with unavailable_as_error():
                landed = self._copy(connection, unit, item.batch.drift.observed, rows, item.batch)
            relanded[item.batch.batch_id] = landed.batch
        return relanded, len(due)

    def judge_again(
        self, connection: psycopg.Connection, source: AnySource, progress: Progress
    ) -> tuple[dict[int, dict[str, Any]], rejudging.Judged]:
        """Hold landed batches against the rules in force, where they landed under others; land again what moves.

        Returns the batches that were landed again, by the number of the batch each supersedes, and what it came to.
        """
        due = rejudging.due(connection, self._spec.tenant_id, self._raw)
        judged = rejudging.Judged(self._raw.dataset, self._raw.version)
        if not due:
            return {}, judged
        unmoved = rejudging.unmoved(connection, due, self._raw)
        unchanged, expired, moved = [], [], []
        successors: dict[int, dict[str, Any]] = {}
        for number, batch in enumerate(due):
            progress(f"judging {batch['source_id']}", number, len(due))
            if batch["batch_id"] in unmoved:
                unchanged.append(batch)
                continue
            if batch["is_expired"]:
                expired.append(batch)
                continue
            moves = rejudging.judge(self._environment.raw_store, batch, source, self._schema, self._rules,
                                    rejudging.decided(connection, batch))
            if not moves.any:
                unchanged.append(batch)
                continue
            moved.append(moves)
            successors[batch["batch_id"]] = self._land_again(connection, source, batch["batch_id"], moves)
        judged = rejudging.Judged(
            self._raw.dataset, self._raw.version, len(due), len(moved), sum(one.to_quarantine for one in moved),
            sum(one.to_accepted for one in moved), len(expired), rejudging.days_of(expired))
        rejudging.record(connection, self._raw, self._spec.tenant_id, self._spec.pipeline, judged, unchanged, expired)
        return successors, judged

    def _land_again(
        self, connection: psycopg.Connection, source: AnySource, batch_id: int, moves: rejudging.Moves
    ) -> dict[str, Any]:
        """Land a batch as it is under the rules in force, in the place of the one it is read from."""
        (old,) = fetch_dicts(connection, _BATCH, (batch_id,))
        unit = Unit(old["source_id"], old["object_key"], old["partition_date"], old["content_sha256"],
                    options={"replay_of": old["replay_of"]}, delivery_order=old["delivery_order"])
        observed = rejudging.observed(old)
        rows = relanding.read(self._environment.raw_store, old, source, observed, self._schema,
                              rejudging.decided(connection, old))
        return self._copy(connection, unit, observed, rows, judged=_Judgement(old, moves)).batch

    def _in_force(self, connection: psycopg.Connection, day: dt.date) -> tuple[Contract, ContractRules]:
        """The contract whose rules are for a day, and those: an earlier one where the present says from when it is."""
        contract = rejudging.in_force(connection, self._raw, day)
        if contract is self._raw:
            return contract, self._rules
        return contract, ContractRules(rejudging.of_columns(contract, self._raw), self._source, self._required)

    def _known(self, connection: psycopg.Connection, unit: Unit, content_sha256: str) -> dict[str, Any] | None:
        """The batch with this content of the unit's day; `is_said` tells whether it is what the unit says now.

        Of one whose rows expired only the unit that says it is told: for any other its content is not there any more.
        """
        rows = fetch_dicts(
            connection, _KNOWN,
            (self._spec.tenant_id, self._raw.dataset, unit.partition_date, content_sha256, unit.source_id),
        )
        return rows[0] if rows else None

    def _expired(self, connection: psycopg.Connection, unit: Unit, content_sha256: str) -> list[int]:
        """Batches with this content of the unit's day whose rows expired: one that lands now takes their place."""
        return [number for (number,) in fetch(
            connection, _EXPIRED, (self._spec.tenant_id, self._raw.dataset, str(unit.partition_date or "") or None,
                                   content_sha256))]

    def _recognise(self, connection: psycopg.Connection, unit: Unit, batch: dict[str, Any]) -> _Landed:
        """Known content is what the unit says already, or comes again: as a copy, or back from an earlier state."""
        if batch["is_said"] and not self._moved(unit, batch):
            return _Landed(unit, "withdrawn" if batch["is_withdrawn"] else "known", batch)
        state = "redelivered" if batch["is_current"] else "reinstated"
        with connection.transaction():
            # The same content can come and go any number of times; what was last on record tells them apart.
            head = ledger.newest(connection, self._spec.tenant_id)
            landing = fetch(connection, _NEXT_LANDING, (self._spec.tenant_id, self._raw.dataset))[0][0]
            order = self._order(connection, unit, landing)
            ledger.append(
                connection,
                ledger.Entry(
                    self._spec.tenant_id, f"batch.{state}", f"{batch['dataset']}/{unit.source_id}",
                    run_token(batch=batch["run_token"], source_id=unit.source_id, after=head),
                    {"content_sha256": batch["content_sha256"], "landed_in_entry": batch["evidence_seq"],
                     "delivery_order": order},
                ),
            )
            self._point(connection, unit, batch["batch_id"], order, landing)
        return _Landed(unit, state, batch)

    def _copy(
        self, connection: psycopg.Connection, unit: Unit, observed: ObservedSchema, batches: Iterator[ParsedBatch],
        supersedes: WaitingBatch | None = None, judged: _Judgement | None = None,
    ) -> _Landed:
        spec, dataset = self._spec, self._raw.dataset
        # To judge a batch again makes it no younger.
        load_date = (judged.batch["load_date"] if judged else dt.datetime.now(dt.UTC).date()).isoformat()
        store = self._environment.raw_store
        known: dict[str, Any] | None = None
        under, rules = self._in_force(connection, unit.partition_date or dt.date.fromisoformat(load_date))
        with connection.transaction() as transaction, ExitStack() as stack:
            batch_id, landing = fetch(connection, _BEGIN, (spec.tenant_id, dataset))[0][:2]
            accepted = stack.enter_context(store.writer(self._schema.arrow, self._raw_class))
            quarantine = stack.enter_context(_Quarantine(store, self._raw_class))
            feed = stack.enter_context(_Feed(batches, rules, accepted, quarantine))
            raw_tables.append(connection, dataset, spec.tenant_id, batch_id, feed, self._schema.arrow)
            if accepted.rows + quarantine.rows != feed.received:
                raise BareCountError(
                    ErrorCode.INTERNAL,
                    f"{unit.source_id}: received {feed.received} records, but accepted {accepted.rows} and "
                    f"quarantined {quarantine.rows}",
                    hint="nothing of the unit landed; report this file's shape",
                )
            content = unit.sha256 or _content_of_stream(accepted.seal(), quarantine.seal())
            if unit.slice is not None:  # its records are new, even if others that landed look like them
                content = run_token(unit=unit.source_id, content=content)
            elif unit.sha256 is None:
                known = self._known(connection, unit, content)
                if known is not None:
                    raise psycopg.Rollback(transaction)
            expired = self._expired(connection, unit, content)
            object_token = self._object_token(unit, content, len(expired), supersedes, judged)
            prefix = prefix_of(spec.tenant_id, dataset, load_date, object_token)
            stored, refused = accepted.finish(prefix), quarantine.finish(f"{prefix}/quarantine")
            batch = self._register(connection, unit, observed, feed.observer.seen(), batch_id, object_token, content,
                                   load_date, stored, refused, supersedes, max(expired, default=None), landing, judged,
                                   under)
            if refused is not None:
                self._load_quarantine(connection, refused, unit, batch_id, object_token)
            if judged is not None:
                self._succeed(connection, judged.batch, batch)
            if supersedes is not None:
                (old,) = fetch_dicts(connection, _BATCH, (supersedes.batch_id,))
                self._succeed(connection, old, batch)
                drift_register.release(connection, supersedes, "relanded", {"landed_in_entry": batch["evidence_seq"]})
                drift_register.settle(connection, supersedes.drift, f"contracts {self._extraction.version} declare it")
            if self._replay is not None:
                self._replay(connection, batch)
        if known is not None:
            return self._recognise(connection, unit, known)
        return _Landed(unit, "landed", batch)

    def _succeed(self, connection: psycopg.Connection, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Put a batch in the place of the one it was read from: with its units, and what was decided of its records."""
        rejudging.carry_over(connection, old, new["batch_id"])
        fetch(connection, _SUPERSEDE, (old["tenant_id"], old["dataset"], old["batch_id"], new["batch_id"]))

    def _object_token(
        self, unit: Unit, content: str, expired: int, supersedes: WaitingBatch | None, judged: _Judgement | None
    ) -> str:
        """Identity of what a unit says, as read under the contracts: what it holds names it, no clock does."""
        identity: dict[str, Any] = {
            "tenant": self._spec.tenant_id, "dataset": self._raw.dataset, "source_id": unit.source_id,
            "partition_date": unit.partition_date and unit.partition_date.isoformat(),
            "contracts": [self._extraction.hash, self._raw.hash],
        }
        if supersedes is not None:
            identity["read_again"] = supersedes.drift.fingerprint  # contracts may be the same: what reads is newer
        if expired:
            identity["expired_before"] = expired  # its object has a name of its own: the old one's is deleted
        if judged is not None:  # going back to earlier rules must not find the objects of then
            identity["judged_again"] = judged.batch["run_token"]
        return run_token(**identity, content=content)

    def _load_quarantine(
        self, connection: psycopg.Connection, refused: StoredObject, unit: Unit, batch_id: int, token: str
    ) -> None:
        constants = {
            "tenant_id": self._spec.tenant_id, "pipeline": self._spec.pipeline, "dataset": self._raw.dataset,
            "stage": Stage.INGESTION.value, "batch_id": batch_id, "source_id": unit.source_id, "run_token": token,
        }
        raw_tables.append_quarantine(connection, self._environment.raw_store.read(refused.key), constants)

    def _register(
        self, connection: psycopg.Connection, unit: Unit, observed: ObservedSchema, seen: SeenInRows, batch_id: int,
        token: str, content: str, load_date: str, stored: StoredObject, refused: StoredObject | None,
        supersedes: WaitingBatch | None, expired: int | None, landing: int, judged: _Judgement | None,
        under: Contract,
    ) -> dict[str, Any]:
        changes = drift.classify(observed, seen, self._extraction, self._raw) if judged is None else []
        order = self._order(connection, unit, landing)
        batch = {
            "batch_id": batch_id, "tenant_id": self._spec.tenant_id, "pipeline": self._spec.pipeline,
            "dataset": self._raw.dataset, "source_id": unit.source_id,
            "partition_date": unit.partition_date and unit.partition_date.isoformat(), "load_date": load_date,
            "is_current": True, "content_sha256": content, "received": seen.records, "accepted": stored.rows,
            "quarantined": refused.rows if refused else 0, "object_key": stored.key, "object_sha256": stored.sha256,
            "object_bytes": stored.size, "quarantine_key": refused and refused.key,
            "quarantine_sha256": refused and refused.sha256, "schema_hash": self._schema.hash,
            "extraction_version": self._extraction.version, "contract_version": under.version,
            "contract_hash": under.hash, "software_version": SOFTWARE_VERSION,
            "drift": [change.to_json() for change in changes] or (judged.batch["drift"] if judged else None),
            "run_token": token,
            "supersedes": judged.batch["batch_id"] if judged else supersedes.batch_id if supersedes else expired,
            "observed_names": list(observed.names),
            "observed_types": list(observed.types) if observed.types else judged.batch["observed_types"] if judged
            else None,
            "replay_of": unit.options.get("replay_of"), "delivery_order": order,
        }
        subject = f"{self._raw.dataset}/{unit.source_id}"
        # Batch numbers and load dates differ from one database to the next; content does not.
        payload = {k: v for k, v in batch.items() if k not in _NOT_IN_EVIDENCE}
        if "cursor" in unit.options:
            payload["cursor"] = unit.options["cursor"]
        if supersedes is not None:
            payload["read_again_because"] = supersedes.drift.subject
        if judged is not None:
            payload["judged_again"] = {
                "from_contract": judged.batch["contract_version"], "from_entry": judged.batch["evidence_seq"],
                "to_quarantine": judged.moves.to_quarantine, "to_accepted": judged.moves.to_accepted}
        seq = ledger.append(
            connection,
            ledger.Entry(self._spec.tenant_id, "batch.landed", subject, token,
                         {**payload, "manifest_hash": self._manifest_hash}),
        )
        fetch(connection, _REGISTER, (as_json({**batch, "evidence_seq": seq}),))
        if refused is not None:
            events.append(connection, events.Event(
                self._spec.tenant_id, "records.quarantined", subject, token,
                {"pipeline": self._spec.pipeline, "dataset": self._raw.dataset, "source_id": unit.source_id,
                 "received": seen.records, "quarantined": refused.rows},
                self._spec.pipeline, seq, token,
            ))
        if batch["replay_of"] is None and any(change.blocking for change in changes):
            drift_register.record(connection, batch, observed, changes, self._extraction, self._raw)
        if judged is None and supersedes is None:
            self._point(connection, unit, batch_id, order, landing)
        return {**batch, "evidence_seq": seq}

    def _order(self, connection: psycopg.Connection, unit: Unit, landing: int) -> str:
        """The unit's place among the deliveries of its dataset. What is read again keeps that of its first reading."""
        if unit.delivery_order is not None:
            return unit.delivery_order
        original = unit.options.get("replay_of")
        if original is not None:
            statement = "select delivery_order from platform.raw_batch where batch_id = $1"
            return delivery_order.replay_key(fetch(connection, statement, (original,))[0][0], landing)
        return self._declared_order(delivered(unit)) + landing_key(landing)

    def _point(self, connection: psycopg.Connection, unit: Unit, batch_id: int, order: str, landing: int) -> None:
        """Let a unit say a batch from now on."""
        about = delivered(unit)
        tenant_id, dataset, ordered_by = self._order_key
        fetch(connection, _POINT, (tenant_id, dataset, unit.source_id, batch_id, order, landing, ordered_by,
                                   about.modified_at, about.cursor, about.kind))


def _content_of_stream(accepted: str, refused: str | None) -> str:
    """Digest of all that a stream held, by those of its objects: what was refused is content too."""
    return accepted if refused is None else run_token(accepted=accepted, refused=refused)


def delivered(unit: Unit) -> Delivered:
    """What a declared order may go by."""
    modified = unit.options.get("mtime_ns")
    return Delivered(
        unit.source_id, None if modified is None else _EPOCH + dt.timedelta(microseconds=modified // 1000),
        unit.cursor or None, unit.slice and unit.slice.cursor.kind)


class _Quarantine:
    """Refused records of one unit, spilled to an object of their own so that memory stays bounded."""

    def __init__(self, store: RawStore, raw_class: RawClass) -> None:
        self._store, self._raw_class = store, raw_class
        self._writer: ObjectWriter | None = None
        self.rows = 0

    def __enter__(self) -> _Quarantine:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.discard()

    def write(self, rejects: pa.RecordBatch) -> None:
        if rejects.num_rows == 0:
            return
        if self._writer is None:
            self._writer = self._store.writer(REJECT_SCHEMA, self._raw_class)
        self._writer.write(rejects)
        self.rows += rejects.num_rows

    def seal(self) -> str | None:
        return self._writer.seal() if self._writer else None

    def finish(self, prefix: str) -> StoredObject | None:
        return self._writer.finish(prefix) if self._writer else None


class _Feed:
    """Accepted rows of a unit, as an iterator for COPY, produced one step ahead by a thread.

    Parsing, judging, compressing and hashing overlap with the database taking rows in. The queue is bounded, so a
    slow database slows the reader down instead of filling memory.
    """

    def __init__(
        self, batches: Iterator[ParsedBatch], rules: ContractRules, accepted: ObjectWriter, quarantine: _Quarantine
    ) -> None:
        self._batches, self._rules = batches, rules
        self._accepted, self._quarantine = accepted, quarantine
        self._queue: queue.Queue[pa.RecordBatch | BaseException | None] = queue.Queue(_QUEUE_BATCHES)
        self._stop = threading.Event()
        self.observer = RowObserver()
        self._thread = threading.Thread(target=self._produce, name="ingestion-feed", daemon=True)
        self.received = 0

    def __enter__(self) -> _Feed:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _produce(self) -> None:
        try:
            for batch in self._batches:
                if self._stop.is_set():
                    return
                rows = self._split(batch)
                self._accepted.write(rows)
                self._queue.put(rows)
            self._queue.put(None)
        except BaseException as error:  # handed to the thread that waits for rows
            self._queue.put(error)

    def _split(self, batch: ParsedBatch) -> pa.RecordBatch:
        self.received += batch.received
        self.observer.batch(batch)
        rows, broken = split(batch, self._rules, self.observer)
        self._quarantine.write(batch.rejects)
        if broken is not None:
            self._quarantine.write(broken)
        return rows


def split(
    batch: ParsedBatch, rules: ContractRules, observer: RowObserver | None = None
) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    """The rows that keep every rule, and as rejects the records of those that do not; None when all of them do."""
    verdict = rules.judge(batch.rows)
    if verdict is None:
        return batch.rows, None
    if observer is not None:
        observer.judged(verdict)
    positions = verdict.positions.to_arrow().cast(pa.int64())
    broken = batch.rows.take(positions)
    rejects = pa.RecordBatch.from_arrays(
        [
            broken.column("_row_number"),
            verdict.fields.to_arrow().cast(pa.string()),
            pa.array([RULE_BROKEN] * broken.num_rows, pa.string()),
            verdict.messages.to_arrow().cast(pa.string()),
            batch.payload_of(positions),
        ],
        schema=REJECT_SCHEMA,
    )
    keep = pc.invert(pc.is_in(pa.array(range(batch.rows.num_rows), pa.int64()), value_set=positions))
    return batch.rows.filter(keep), rejects


def _finish(
    spec: StageSpec, environment: StageEnvironment, connection: psycopg.Connection, dated: bool, window: Window,
    token: str, landed: list[_Landed], changed: bool, extraction: Contract, manifest: Pipeline,
    judged: rejudging.Judged, cursor: Mapping[str, Any], looked: dict[str, Any],
) -> StageReceipt:
    batches = [item.batch for item in landed]
    unique = {batch["batch_id"]: batch for batch in batches}.values()
    counts = {
        "units": len(landed),
        "landed": sum(item.state == "landed" for item in landed),
        "reinstated": sum(item.state == "reinstated" for item in landed),
        "redelivered": len(landed) - len(unique),
        **{name: sum(batch[name] for batch in unique) for name in ("received", "accepted", "quarantined")},
    }
    content = run_token(content=sorted(batch["content_sha256"] for batch in unique))
    shown = {**counts, **judged.counts()}
    raw = environment.declarations.contract(extraction.dataset, "raw")
    schema, waiting = schema_check.check(connection, spec, extraction, unique)
    there = _not_expired(connection, unique)
    under_rules = [number for batch in there if (number := batch["batch_id"]) not in waiting or schema.blocking]
    checks = (
        schema,
        _accounting_check(extraction, connection, there),
        dataset_rules.check(connection, raw, under_rules),
        _completeness_check(connection, spec, manifest, extraction),
    )
    per_day: dict[str, dict[str, int]] = {}
    for batch in unique:
        nothing = dict.fromkeys(("received", "accepted", "quarantined"), 0)
        day = per_day.setdefault(str(batch["partition_date"] or ""), nothing)
        for name in day:
            day[name] += batch[name]
    receipt = StageReceipt(
        stage=Stage.INGESTION, tenant_id=spec.tenant_id, pipeline=spec.pipeline, run_token=token, changed=changed,
        counts=shown, outputs=(Output(extraction.dataset, content, counts["accepted"]),), checks=checks,
        facts={"source": spec.source, "days": per_day, **looked,
               **({"judged_again": asdict(judged)} if judged.batches else {}),
               **({"cursor": dict(cursor)} if cursor else {})},
    )
    with connection.transaction():
        done = fetch(
            connection,
            "select evidence_seq from platform.stage_run "
            "where tenant_id=$1 and pipeline=$2 and stage=$3 and run_token=$4",
            (spec.tenant_id, spec.pipeline, Stage.INGESTION.value, token),
        )
        if done:
            (seq,) = done[0]
        else:
            # What this attempt had to do (`landed`) is no part of what is there now: an earlier one may have died.
            stored = {name: n for name, n in counts.items() if name not in ("landed", "reinstated")}
            payload = {
                "source": spec.source, "window": list(spec.window or ()), "counts": stored, "content_sha256": content,
                "contract": {"dataset": extraction.dataset, "extraction": extraction.version},
                "code_version": environment.code_version, "runner": current_runner(),
            }
            seq = ledger.append(
                connection,
                ledger.Entry(spec.tenant_id, f"{Stage.INGESTION}.finished", spec.pipeline, token, payload),
            )
            fetch(connection, _FINISH, (spec.tenant_id, spec.pipeline, Stage.INGESTION.value, token,
                                        as_json(payload), seq))
            events.append(connection, events.Event(
                spec.tenant_id, f"{Stage.INGESTION}.finished", spec.pipeline, token,
                {"pipeline": spec.pipeline, "stage": Stage.INGESTION.value, "source": spec.source, "counts": stored},
                spec.pipeline, seq, token,
            ))
            slos.check_completeness(connection, manifest, spec.tenant_id, spec.source or "", counts, token)
        if dated:
            fetch(connection, _MARK_DAYS, (spec.tenant_id, spec.pipeline, spec.source, window.start, window.end))
        read = Dataset(f"source.{extraction.dataset}", counts["received"], content)
        lineage.complete(connection, receipt, seq, [read])
    return receipt


def _not_expired(connection: psycopg.Connection, batches: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batches whose rows retention has left where they are."""
    ids = [batch["batch_id"] for batch in batches]
    rows = fetch(connection, "select batch_id from platform.raw_expiry where batch_id = any($1)", (ids,))
    expired = {batch_id for (batch_id,) in rows}
    return [batch for batch in batches if batch["batch_id"] not in expired]


def _accounting_check(
    extraction: Contract, connection: psycopg.Connection, batches: Sequence[dict[str, Any]]
) -> CheckOutcome:
    """Recount what is stored and compare with what was received: the promise, checked where it could break."""
    ids = [batch["batch_id"] for batch in batches]
    received = sum(batch["received"] for batch in batches)
    stored = raw_tables.count_rows(connection, extraction.dataset, ids)
    quarantined = fetch(
        connection, "select count(*) from platform.quarantine where batch_id = any($1) and stage = $2",
        (ids, Stage.INGESTION.value),
    )[0][0]
    passed = received == stored + quarantined
    return CheckOutcome(
        "nothing_lost", extraction.dataset, passed, True,
        f"received {received} = accepted {stored} + quarantined {quarantined}" if passed
        else f"received {received}, but {stored} rows and {quarantined} quarantined records are stored",
        {"received": received, "accepted": stored, "quarantined": quarantined},
    )


def _completeness_check(
    connection: psycopg.Connection, spec: StageSpec, manifest: Pipeline, extraction: Contract
) -> CheckOutcome:
    """How much of the source is refused by now; what follows from it is decided before anything is published."""
    (shares,) = completeness.measure(connection, manifest, spec.tenant_id, [spec.source or ""])
    gate = completeness.decide(manifest, shares)
    return CheckOutcome(gate.gate, extraction.dataset, gate.passed, False, gate.summary, gate.details)


def _with_remembered_paths(connection: psycopg.Connection, spec: StageSpec) -> StageSpec:
    """A path given once (`--source NAME=PATH`) serves later runs of schedules and the UI, until another is given."""
    rows = fetch(
        connection, "select source, path from platform.source_path where tenant_id = $1 and pipeline = $2",
        (spec.tenant_id, spec.pipeline),
    )
    return replace(spec, source_paths={**dict(rows), **spec.source_paths})


def _keep_freed_pages() -> None:
    """Let Arrow use an allocator that gives the next batch the pages of the last one.

    Arrow's own choice returns them to the system, which clears them again: a tenth of the time, and a higher peak.
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def _days_marked(connection: psycopg.Connection, spec: StageSpec, dated: bool, window: Window) -> bool:
    if not dated:
        return True
    marked = fetch(
        connection,
        "select count(*) from platform.ingested_day "
        "where tenant_id=$1 and pipeline=$2 and source=$3 and day between $4 and $5",
        (spec.tenant_id, spec.pipeline, spec.source, window.start, window.end),
    )[0][0]
    return marked == (window.end - window.start).days + 1


# What is lost in a power cut is landed again.
_BEGIN = """
with counter as (
    insert into platform.delivery_counter as c (tenant_id, dataset, landings) values ($1, $2, 1)
    on conflict (tenant_id, dataset) do update set landings = c.landings + 1
    returning landings
)
select nextval('platform.raw_batch_batch_id_seq'), landings, set_config('synchronous_commit', 'off', true) from counter
"""
_NEXT_LANDING = """
insert into platform.delivery_counter as c (tenant_id, dataset, landings) values ($1, $2, 1)
on conflict (tenant_id, dataset) do update set landings = c.landings + 1
returning landings
"""
_BATCH = "select * from platform.raw_batch where batch_id = $1"
_KNOWN = """
select b.*, u.source_id is not null as is_said, u.delivery_order as unit_order,
    u.withdrawn_seq is not null as is_withdrawn
from platform.raw_batch b
left join platform.source_unit u
    on u.tenant_id = b.tenant_id and u.dataset = b.dataset and u.source_id = $5 and u.batch_id = b.batch_id
where b.tenant_id = $1 and b.dataset = $2 and b.partition_date is not distinct from $3::date and b.content_sha256 = $4
    and (u.source_id is not null or not exists (select from platform.raw_expiry e where e.batch_id = b.batch_id))
order by is_said desc, batch_id desc limit 1
"""
_EXPIRED = """
select b.batch_id from platform.raw_batch b join platform.raw_expiry e on e.batch_id = b.batch_id
where b.tenant_id = $1 and b.dataset = $2 and b.partition_date is not distinct from $3::text::date
    and b.content_sha256 = $4
order by 1
"""
_POINT = """
insert into platform.source_unit (
    tenant_id, dataset, source_id, batch_id, delivery_order, landing, ordered_by, modified_at, cursor_value,
    cursor_kind)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (tenant_id, dataset, source_id) do update set
    batch_id = excluded.batch_id, delivery_order = excluded.delivery_order, landing = excluded.landing,
    ordered_by = excluded.ordered_by, modified_at = excluded.modified_at, cursor_value = excluded.cursor_value,
    cursor_kind = excluded.cursor_kind, withdrawn_seq = null
"""
_OTHERWISE_ORDERED = """
select u.source_id, u.landing, coalesce(u.modified_at, b.landed_at), u.cursor_value, u.cursor_kind
from platform.source_unit u join platform.raw_batch b using (batch_id)
where u.tenant_id = $1 and u.dataset = $2 and u.ordered_by <> $3 and b.replay_of is null
"""
_REORDER = """
update platform.source_unit u set delivery_order = o.delivery_order, ordered_by = $3
from unnest($4::text[], $5::text[]) as o (source_id, delivery_order)
where u.tenant_id = $1 and u.dataset = $2 and u.source_id = o.source_id
"""
_REGISTER = """
insert into platform.raw_batch (
    batch_id, tenant_id, pipeline, dataset, source_id, partition_date, load_date, is_current, content_sha256, received,
    accepted, quarantined, object_key, object_sha256, object_bytes, quarantine_key, quarantine_sha256, schema_hash,
    extraction_version, contract_version, contract_hash, software_version, drift, supersedes, run_token, observed_names,
    observed_types, replay_of, delivery_order, evidence_seq)
overriding system value
select
    batch_id, tenant_id, pipeline, dataset, source_id, partition_date, load_date, is_current, content_sha256, received,
    accepted, quarantined, object_key, object_sha256, object_bytes, quarantine_key, quarantine_sha256, schema_hash,
    extraction_version, contract_version, contract_hash, software_version, nullif(drift, 'null'::jsonb), supersedes,
    run_token, observed_names, nullif(observed_types, 'null'::jsonb), replay_of, delivery_order, evidence_seq
from jsonb_populate_record(null::platform.raw_batch, $1::text::jsonb)
"""
_SUPERSEDE = """
update platform.source_unit set batch_id = $4 where tenant_id = $1 and dataset = $2 and batch_id = $3
"""
_REMEMBER_PATH = """
insert into platform.source_path (tenant_id, pipeline, source, path) values ($1, $2, $3, $4)
on conflict (tenant_id, pipeline, source) do update set path = excluded.path where source_path.path <> excluded.path
"""
_FINISH = """
insert into platform.stage_run (tenant_id, pipeline, stage, run_token, receipt, evidence_seq)
values ($1, $2, $3, $4, $5::text::jsonb, $6)
"""
_MARK_DAYS = """
insert into platform.ingested_day (tenant_id, pipeline, source, day)
select $1, $2, $3, day::date from generate_series($4::date, $5::date, interval '1 day') as day
on conflict do nothing
"""
