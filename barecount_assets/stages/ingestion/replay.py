"""Replay: refused records go through ingestion again, after a fix of the contract, of the code, or of the record.

The records of one batch make one unit, `quarantine/<original source>#<token>`, which lands like any other: parsed to
the extraction contract, judged by the raw contract, its rows in the raw store and table, what is refused in quarantine.
In the transaction that lands it, each record gets its outcome: row N of the new batch, or a refusal of its own. The new
batch counts as long as the batch that refused the records does.

Records are judged before anything is written. One that would be refused for the same reason as before, with the same
bytes, stays open and is not written again: so a replay done twice does nothing the second time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from barecount_assets.stages import quarantine_life
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.ingestion import dataset_rules, edited_records, relanding, sources
from barecount_assets.stages.ingestion.payloads import CsvPayloads, JsonPayloads, MixedPayloads, PayloadReader
from barecount_assets.stages.ingestion.records import ExtractorSchema, ObservedSchema, ParsedBatch, Unit, Window
from barecount_assets.stages.ingestion.rereading import AsStated, rereading
from barecount_assets.stages.ingestion.rules import ContractRules
from barecount_assets.stages.ingestion.stage import Landing, split
from barecount_assets.stages.quarantine_life import Decision
from resources.governance.manifests import Pipeline
from resources.runners.facade import Progress
from resources.runners.stage import CheckOutcome, Placement, Stage, StageSpec, run_token
from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import quarantine_store, raw_tables
from resources.storage.quarantine_store import Group, Selection

_OWN = "quarantine/"
_OWN_GDP = relanding.BY_COLUMN
_TOKEN_LENGTH = 16
_REASONS = 5


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay, and how it was fixed.

    Attributes:
        values: fields to set in every record, by the source's or the raw table's name.
        edits: an exported file with edited payloads; only its records are replayed.
        decided_by, reason: who and why; both are on record.
    """

    selection: Selection
    decided_by: str
    reason: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    edits: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class BatchReplay:
    """What became of the selected records of one batch: every record is in one of the three counts.

    Attributes:
        replayed: accepted, as rows of the unit `into`.
        refused_again: refused for another reason than before, or with other bytes; open as records of their own.
        unchanged: would be refused as before; left open.
        reasons: why, most frequent first: (reason, message, records).
        into: source id of the new unit, None when nothing landed.
        rules: rules about all rows together that do not hold any more.
    """

    group: Group
    replayed: int
    refused_again: int
    unchanged: int
    reasons: tuple[tuple[str, str, int], ...] = ()
    into: str | None = None
    run_token: str | None = None
    rules: CheckOutcome | None = None


def replay(environment: StageEnvironment, request: ReplayRequest, progress: Progress) -> list[BatchReplay]:
    """Replay the selected open records that ingestion refused, and those of normalization that have a fix.

    Raises:
        BareCountError: usage for a fix that does not fit the records or a file that is not an export;
            declaration.unknown for datasets no pipeline has any more; what ingestion raises.
    """
    with environment.database.connect(autocommit=True) as connection:
        found = [group for group in quarantine_store.groups(connection, request.selection)
                 if group.stage == Stage.INGESTION or request.values or request.edits]
    results = []
    for owner in dict.fromkeys((group.tenant_id, group.pipeline) for group in found):
        # Records are read while others are copied in: over a connection of their own.
        with (environment.exclusive(*owner) as connection,
              environment.database.connect(autocommit=True) as reading):
            edits = edited_records.load(reading, request.edits) if request.edits else None
            for group in (group for group in found if (group.tenant_id, group.pipeline) == owner):
                results.append(_Replay(environment, connection, reading, request, group, edits, progress).run())
    return [result for result in results if result.replayed + result.refused_again + result.unchanged]


@dataclass
class _Judged:
    """Outcome of judging: records that go, in order, and what their unit's content is."""

    go: list[int] = field(default_factory=list)
    accepted: int = 0
    again: int = 0
    unchanged: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)


class _Replay:
    """The replay of one batch's records, under the lock of its tenant and pipeline."""

    def __init__(
        self, environment: StageEnvironment, connection: psycopg.Connection, reading: psycopg.Connection,
        request: ReplayRequest, group: Group, edits: edited_records.Edits | None, progress: Progress,
    ) -> None:
        self._environment, self._connection, self._request, self._group = environment, connection, request, group
        self._edits, self._progress = edits, progress
        self._manifest = environment.declarations.effective(group.pipeline, group.tenant_id)
        self._extraction = environment.declarations.contract(group.dataset, "extraction")
        self._raw = environment.declarations.contract(group.dataset, "raw")
        self._source = _source(self._manifest, group.dataset)
        schema = sources.extractor_schema(
            self._extraction, environment.declarations.tenant(group.tenant_id).spec.timezone, self._source)
        self._records = _Records(reading, reader_of(self._manifest, schema, group), self._values(), edits)
        self._rules = ContractRules(self._raw, self._source, sources.required_of_states(self._extraction, self._source))

    def run(self) -> BatchReplay:
        ids = quarantine_store.ids_of(self._connection, self._request.selection, self._group)
        if self._edits is not None:
            ids = self._edits.those_of(ids)
        digest = hashlib.sha256(self._group.content_sha256.encode())
        judged = self._judge(ids, digest)
        reasons = tuple((*key, count) for key, count in judged.reasons.most_common(_REASONS))
        if self._request.dry_run or not judged.go:
            return BatchReplay(self._group, judged.accepted, judged.again, judged.unchanged, reasons)
        return self._land(judged, digest.hexdigest(), reasons)

    def _values(self) -> dict[str, str]:
        """The values to set, under the names that the records' fields have."""
        by_column = _is_by_column(self._group)
        named = {}
        for name, value in self._request.values.items():
            columns = [c for c in self._extraction.columns if name in (c.name, c.source_name)]
            if not columns:
                allowed = ", ".join(column.source_name for column in self._extraction.columns)
                raise BareCountError(
                    ErrorCode.USAGE, f"{self._group.dataset} has no field {name!r}, allowed: {allowed}",
                    hint="give --fix FIELD=VALUE with one of them")
            named[columns[0].name if by_column else columns[0].source_name] = value
        return named

    def _judge(self, ids: Sequence[int], digest: Any) -> _Judged:
        judged, before = _Judged(), 0
        for page in self._records.pages(ids):
            batch = self._records.reader.parse([record.payload for record in page], before)
            _, broken = split(batch, self._rules)
            refused = {row["row_number"] - before: row for rejects in (batch.rejects, broken) if rejects is not None
                       for row in rejects.select(["row_number", "field", "reason", "message"]).to_pylist()}
            for number, record in enumerate(page, start=1):
                verdict = refused.get(number)
                if verdict is not None:
                    judged.reasons[verdict["reason"], verdict["message"]] += 1
                    if not record.changed and record.refusal == (
                            verdict["field"], verdict["reason"], verdict["message"]):
                        judged.unchanged += 1
                        continue
                judged.again += verdict is not None
                judged.accepted += verdict is None
                judged.go.append(record.quarantine_id)
                digest.update(b"%d:" % len(record.payload) + record.payload)
            before += len(page)
            self._progress(f"judging {self._group.source_id}", before, len(ids))
        return judged

    def _land(self, judged: _Judged, content: str, reasons: tuple[tuple[str, str, int], ...]) -> BatchReplay:
        group, request = self._group, self._request
        token = run_token(replay=content, tenant=group.tenant_id, dataset=group.dataset, source_id=group.source_id)
        root = group.source_id.removeprefix(_OWN_GDP).removeprefix(_OWN).partition("#")[0]
        unit = Unit(
            f"{_OWN_GDP if _is_by_column(group) else _OWN}{root}#{token[:_TOKEN_LENGTH]}", "quarantine",
            group.partition_date, content, options={"replay_of": group.batch_id},
        )
        raw_tables.ensure(self._connection, group.dataset, self._raw.column_types)

        def account(connection: psycopg.Connection, batch: dict[str, Any]) -> None:
            number = quarantine_life.record(connection, Decision(
                group.tenant_id, group.pipeline, group.dataset, "replayed", f"{group.dataset}/{unit.source_id}",
                batch["run_token"], request.decided_by, request.reason, len(judged.go),
                {"stage": group.stage, "batch": group.content_sha256, "source_id": group.source_id,
                 "accepted": batch["accepted"], "refused_again": batch["quarantined"], "content_sha256": content,
                 "landed_in_entry": batch["evidence_seq"], "fixed_fields": sorted(request.values),
                 "edits_sha256": self._edits.sha256 if self._edits else None},
                {"values": dict(request.values), "edits": self._edits.sha256 if self._edits else None}
                if request.values or self._edits else None))
            fetch(connection, _OUTCOMES, ("{" + ",".join(map(str, judged.go)) + "}", number, batch["batch_id"],
                                          group.tenant_id, group.dataset))

        connector = _QuarantineConnector(self._records, judged.go, group, self._progress)
        placement = self._manifest.spec.runner
        spec = StageSpec(
            Stage.INGESTION, group.tenant_id, group.pipeline,
            Placement(placement.runner_class, placement.size, placement.network_profile),
            source=self._source.name,
        )
        landing = Landing(self._environment, spec, connector, self._extraction, self._raw, self._manifest.hash, account)
        landed = landing.land(self._connection, unit)
        batches = [group.batch_id, landed.batch["batch_id"]]
        return BatchReplay(
            group, landed.batch["accepted"], landed.batch["quarantined"], judged.unchanged, reasons, unit.source_id,
            landed.batch["run_token"], dataset_rules.check(self._connection, self._raw, batches),
        )


@dataclass(frozen=True)
class _Record:
    """A refused record as it goes into the replay, and why it was refused (field, reason, message)."""

    quarantine_id: int
    payload: bytes
    changed: bool
    refusal: tuple[str | None, str, str]


@dataclass(frozen=True)
class _Records:
    """Refused records with their fixes, page by page."""

    connection: psycopg.Connection
    reader: PayloadReader
    values: Mapping[str, str]
    edits: edited_records.Edits | None

    def pages(self, ids: Sequence[int]) -> Iterator[list[_Record]]:
        for start in range(0, len(ids), quarantine_store.PAGE):
            numbers = ids[start : start + quarantine_store.PAGE]
            edited = self.edits.payloads(numbers) if self.edits else {}
            yield [self._record(*row, edited.get(row[0])) for row in quarantine_store.page(self.connection, numbers)]

    def _record(
        self, number: int, field_: str | None, reason: str, message: str, payload: bytes, edited: bytes | None
    ) -> _Record:
        now = payload
        if edited is not None and edited != payload:
            self.reader.require_one(edited)
            now = edited
        if self.values:
            now = self.reader.corrected(now, self.values)
        return _Record(number, now, now != payload, (field_, reason, message))


@dataclass(frozen=True)
class _QuarantineConnector:
    """Reads records from quarantine as ingestion reads a source."""

    records: _Records
    ids: Sequence[int]
    group: Group
    progress: Progress

    def discover(self, window: Window, cursor: str | None) -> list[Unit]:
        """Nothing is found by looking: units are made from a decision."""
        return []

    def observed_schema(self, unit: Unit) -> ObservedSchema:
        """That of the batch that refused the records."""
        if _is_by_column(self.group) or not self.group.observed_names:
            return ObservedSchema(())
        return ObservedSchema(self.group.observed_names, self.group.observed_types)

    def read(self, unit: Unit, schema: ExtractorSchema) -> Iterator[ParsedBatch]:
        """The records, fixed, in the order their source had them."""
        before = 0
        for page in self.records.pages(self.ids):
            yield self.records.reader.parse([record.payload for record in page], before)
            before += len(page)
            self.progress(f"replaying {self.group.source_id}", before, len(self.ids))


def reader_of(manifest: Pipeline, schema: ExtractorSchema, group: Group) -> PayloadReader:
    """The reader of a group's payloads.

    Raises:
        BareCountError: declaration.unknown for a dataset that the pipeline no longer reads; usage for records of a CSV
            file whose header is not on record.
    """
    source = _source(manifest, group.dataset)
    if _is_by_column(group):
        return JsonPayloads(schema, by_column=True)
    names, types = group.observed_names or (), group.observed_types
    schema = schema.named_as(names)
    if source.connector != "files" or source.format.type != "csv":
        again = rereading(source, names, types)
        return JsonPayloads(schema, stated=again if isinstance(again, AsStated) else None)
    from barecount_assets.stages.ingestion.connectors.files import file_format

    csv = file_format(source.format.model_dump())
    names = names if csv.header else tuple(f.source_name for f in schema.fields)
    if not names:
        raise BareCountError(
            ErrorCode.USAGE, f"the header of {group.source_id} is not on record: its batch landed before headers were",
            hint="deliver the records again in a file of their own, and discard these")
    return MixedPayloads(CsvPayloads(csv, names, schema), JsonPayloads(schema))


def _source(manifest: Pipeline, dataset: str) -> Any:
    for source in manifest.spec.sources:
        if source.dataset == dataset:
            return source
    raise BareCountError(
        ErrorCode.DECLARATION_UNKNOWN, f"pipeline {manifest.name} has no source of {dataset} any more",
        hint="discard its refused records, or declare the source again")


def _is_by_column(group: Group) -> bool:
    return group.stage != Stage.INGESTION or group.source_id.startswith(_OWN_GDP)


_OUTCOMES = """
insert into platform.quarantine_outcome (quarantine_id, state, decision_id, batch_id, row_number, again_id)
select went.id, case when again.quarantine_id is null then 'replayed' else 'refused_again' end, $2::bigint, $3::bigint,
    went.number, again.quarantine_id
from unnest($1::text::bigint[]) with ordinality as went (id, number)
left join platform.quarantine again on again.tenant_id = $4 and again.dataset = $5 and again.batch_id = $3::bigint
    and again.stage = 'ingestion' and again.row_number = went.number
"""
