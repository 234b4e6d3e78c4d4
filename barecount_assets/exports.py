"""Data that leaves the platform as a file: policies and obligations are asked, then it is written, then on record.

The file gets its name only after its record is committed: a crash leaves a record of a file that is not there, never a
file of which nobody knows.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from barecount_assets import admission, project_lineage
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.ingestion import edited_records
from resources.governance import export_log, obligation_judge
from resources.governance.approvals import GrantedApproval
from resources.governance.column_lineage import INDIRECT, ROWS, Dependency, ProjectLineage
from resources.governance.decision_points import Export as ExportFacts
from resources.governance.export_log import Export, ExportedDataset
from resources.governance.obligation_judge import Facts
from resources.governance.policies import Decision
from resources.runners.stage import Stage
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import quarantine_store
from resources.storage.quarantine_store import Group, Selection


@dataclass(frozen=True)
class _Part:
    """What the file holds of one tenant and pipeline, and the decision that lets it go."""

    tenant_id: str
    pipeline: str
    datasets: tuple[ExportedDataset, ...]
    decision: Decision


def export_records(
    environment: StageEnvironment, selection: Selection, path: Path, *, requested_by: str, now: dt.datetime
) -> int:
    """Write refused records to a file; returns how many.

    Raises:
        BareCountError: policy.denied, approval.required; obligation.failed when a column may not be exported; usage
            for a file name with another ending.
    """
    with environment.database.connect(autocommit=True) as connection:
        groups = quarantine_store.groups(connection, selection)
        decisions = admission.admit_export_of_records(
            environment, selection, groups, requested_by=requested_by, now=now)
        parts = [_Part(tenant_id, pipeline, _datasets(environment, found), decisions[tenant_id, pipeline])
                 for (tenant_id, pipeline), found in quarantine_store.by_owner(groups).items()]
        for part in parts:
            _require_obligations(environment, part)

        def put_on_record(sha256: str) -> None:
            with environment.database.transaction() as recording:
                for part in parts:
                    _record(recording, environment, part, path.name, sha256, requested_by, now)

        return edited_records.export(quarantine_store.stream(connection, selection), path,
                                     lambda record: _encoding(environment, record), put_on_record)


def admit_evidence(environment: StageEnvironment, tenant_id: str, *, requested_by: str, now: dt.datetime) -> Decision:
    """Ask whether a tenant's evidence may leave: it holds names, counts and hashes, no records, and is internal.

    Raises:
        BareCountError: policy.denied, approval.required.
    """
    facts = ExportFacts(tenant=tenant_id, kind="evidence", classification="internal")
    (decision,) = admission.admit_export(
        environment, facts, f"evidence of {tenant_id}", requested_by=requested_by, now=now)
    return decision


def record_evidence(
    environment: StageEnvironment, decision: Decision, path: Path, sha256: str, entries: int, now: dt.datetime
) -> None:
    """Put on record that a bundle of evidence was written."""
    tenant_id = decision.question.facts.tenant
    with environment.database.transaction() as connection:
        export = Export(
            tenant_id, None, "evidence", (), path.name, sha256, decision.question.requested_by, decision.decision_id,
            _approval(decision), (ExportedDataset("export.evidence", entries, {}),))
        export_log.record(connection, export, environment.code_version, now)


def _datasets(environment: StageEnvironment, groups: Sequence[Group]) -> tuple[ExportedDataset, ...]:
    """What records of these batches show: the fields of the source, or raw columns where normalization refused them."""
    records: dict[str, int] = {}
    columns: dict[str, dict[str, tuple[Dependency, ...]]] = {}
    for group in groups:
        layer = "raw" if group.stage == Stage.NORMALIZATION else "source"
        asset, shown = f"{layer}.{group.dataset}", columns.setdefault(group.dataset, {})
        records[group.dataset] = records.get(group.dataset, 0) + group.records
        shown[ROWS] = tuple(sorted({*shown.get(ROWS, ()), Dependency(asset, ROWS, INDIRECT, "ROWS")}))
        contract = environment.declarations.contracts.get((group.dataset, "raw" if layer == "raw" else "extraction"))
        for column in contract.columns if contract else ():
            name = column.name if layer == "raw" else column.source_name
            shown[name] = tuple(sorted({*shown.get(name, ()), Dependency(asset, name)}))
    return tuple(
        ExportedDataset(f"export.{dataset}", records[dataset], columns[dataset]) for dataset in sorted(records))


def _require_obligations(environment: StageEnvironment, part: _Part) -> None:
    """Raises BareCountError obligation.failed when a column of the file may not be exported."""
    declarations = environment.declarations
    if part.pipeline not in declarations.pipelines:
        return
    project = project_lineage.of_project(environment.settings, declarations, may_compile=False)
    exported = {item.asset: item.lineage for item in part.datasets}
    facts = Facts(
        declarations, part.pipeline, ProjectLineage(project.fingerprint, {**project.assets, **exported}),
        part.tenant_id, approved=frozenset(exported) if _approval(part.decision) else frozenset())
    failed = [outcome for outcome in obligation_judge.judge_exports(declarations.obligations.values(), facts)
              if outcome.blocks]
    if not failed:
        return
    details = {"obligations": {outcome.obligation.name: outcome.details for outcome in failed}}
    with environment.database.transaction() as connection:
        export_log.refuse(connection, part.tenant_id, part.pipeline, part.decision.question.requested_by, details)
    raise BareCountError(
        ErrorCode.OBLIGATION_FAILED,
        f"refused records of {part.pipeline} of tenant {part.tenant_id} are not exported: "
        + " | ".join(f"{outcome.obligation.name}: {outcome.summary}" for outcome in failed),
        hint="nothing was written; narrow it with --dataset, or change the obligation with those who own it",
        details=details,
    )


def _record(
    connection: psycopg.Connection, environment: StageEnvironment, part: _Part, file_name: str, sha256: str, by: str,
    now: dt.datetime,
) -> None:
    manifest = environment.declarations.pipelines.get(part.pipeline)
    owners = tuple(person.email for person in manifest.metadata.owners) if manifest else ()
    export = Export(part.tenant_id, part.pipeline, "quarantine", owners, file_name, sha256, by,
                    part.decision.decision_id, _approval(part.decision), part.datasets)
    export_log.record(connection, export, environment.code_version, now)


def _approval(decision: Decision) -> int | None:
    return decision.approval.approval_id if isinstance(decision.approval, GrantedApproval) else None


def _encoding(environment: StageEnvironment, record: Mapping[str, Any]) -> str:
    """The encoding a record's source is declared to have; that of JSON for everything else."""
    manifest = environment.declarations.pipelines.get(record["pipeline"])
    for source in manifest.spec.sources if manifest else ():
        if source.dataset == record["dataset"] and source.connector == "files" and source.format.type == "csv":
            return source.format.encoding if record["stage"] == Stage.INGESTION else "utf-8"
    return "utf-8"
