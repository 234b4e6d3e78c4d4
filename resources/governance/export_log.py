"""Exports on record: who took what out of the platform, which columns, and the approval that let it go.

Each leaves evidence `export.finished`, an event, a row per dataset, and, where it holds columns of a dataset, a
completed run in the lineage graph whose edges lead from `export.<dataset>` to what was copied. All in one transaction.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from resources.governance import lineage_store
from resources.governance.column_lineage import ROWS, AssetLineage, Dependency
from resources.governance.lineage_store import AssetFacts
from resources.governance.openlineage import Dataset, Field, Job
from resources.runtime import events
from resources.runtime.database import fetch, fetch_dicts
from resources.trust import ledger

Kind = Literal["quarantine", "evidence"]


@dataclass(frozen=True)
class ExportedDataset:
    """What a file holds of a dataset.

    Attributes:
        asset: `export.<dataset>`.
        columns: where each comes from; `*` for the records.
    """

    asset: str
    records: int
    columns: Mapping[str, tuple[Dependency, ...]]

    @property
    def lineage(self) -> AssetLineage:
        return AssetLineage(self.asset, "", self.columns)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [name for name in self.columns if name != ROWS]


@dataclass(frozen=True)
class Export:
    """A file, as far as one tenant and pipeline are in it.

    Attributes:
        pipeline: None for evidence, which is no pipeline's.
        owners: e-mail addresses of the pipeline's.
        decision_id, approval_id: what let it go.
    """

    tenant_id: str
    pipeline: str | None
    kind: Kind
    owners: tuple[str, ...]
    file_name: str
    file_sha256: str
    exported_by: str
    decision_id: int
    approval_id: int | None
    datasets: tuple[ExportedDataset, ...]


def record(connection: psycopg.Connection, export: Export, code_version: str, now: dt.datetime) -> int:
    """Put an export on record in the caller's transaction; returns the number of its evidence."""
    subject = export.pipeline or export.kind
    run_token = _token(connection, export.tenant_id, export=export.kind, pipeline=export.pipeline,
                       file=export.file_sha256)
    facts = {
        "kind": export.kind, "file": export.file_name, "file_sha256": export.file_sha256, "by": export.exported_by,
        "decision": export.decision_id, "approval": export.approval_id,
        "datasets": {item.asset: {"records": item.records, "columns": item.names} for item in export.datasets},
    }
    seq = ledger.append(connection, ledger.Entry(export.tenant_id, "export.finished", subject, run_token, facts))
    events.append(connection, events.Event(
        export.tenant_id, "export.finished", subject, run_token, facts, export.pipeline, seq, run_token))
    for item in export.datasets:
        fetch(connection, _RECORD, (
            export.tenant_id, run_token, item.asset, export.pipeline, export.kind, export.file_name,
            export.file_sha256, item.records, item.names, export.exported_by, export.decision_id, export.approval_id,
            now, seq))
        if item.columns and export.pipeline is not None:
            _draw(connection, export, export.pipeline, item, run_token, code_version, seq)
    return seq


def refuse(
    connection: psycopg.Connection, tenant_id: str, pipeline: str, by: str, details: Mapping[str, Any]
) -> None:
    """Put on record that obligations kept an export from being written, in the caller's transaction."""
    facts = {"by": by, **details}
    token = _token(connection, tenant_id, refused=pipeline, by=by)
    seq = ledger.append(connection, ledger.Entry(tenant_id, "export.refused", pipeline, token, facts))
    events.append(connection, events.Event(
        tenant_id, "export.refused", pipeline, token, facts, pipeline, seq, token))


def _token(connection: psycopg.Connection, tenant_id: str, **what: Any) -> str:
    """Every export is one of its own, also of the same content."""
    head = ledger.newest(connection, tenant_id)
    return hashlib.sha256(ledger.canonical({"tenant": tenant_id, "after": head, **what})).hexdigest()


def _draw(
    connection: psycopg.Connection, export: Export, pipeline: str, item: ExportedDataset, run_token: str,
    code_version: str, evidence_seq: int,
) -> None:
    """A run of the graph that begins and ends here."""
    job = Job(export.tenant_id, pipeline, "export", item.asset.partition(".")[2], export.owners)
    read = [Dataset(asset, item.records) for asset in item.lineage.reads]
    run = lineage_store.begin(connection, job, run_token, code_version, None, read)
    assert run is not None, "a run token of an export is used once"
    left = Dataset(item.asset, item.records, export.file_sha256, tuple(Field(name, "text") for name in item.names),
                   export.owners, lineage=item.columns)
    lineage_store.complete(connection, run, evidence_seq, read, [left], [AssetFacts(item.asset, export.owners, {})],
                           [item.lineage])


def approved(connection: psycopg.Connection, tenant_id: str) -> frozenset[str]:
    """Exported assets whose newest export was let through by an approval."""
    return frozenset(asset for (asset,) in fetch(connection, _APPROVED, (tenant_id,)))


def listed(connection: psycopg.Connection, tenant_id: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
    """Exports, the newest first."""
    return fetch_dicts(connection, _LIST, (tenant_id, limit))


_RECORD = """
insert into platform.export (
    tenant_id, run_token, asset, pipeline, kind, file_name, file_sha256, records, columns, exported_by, decision_id,
    approval_id, exported_at, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text[], $10, $11, $12::bigint, $13, $14)
"""
_APPROVED = """
select asset from (
    select distinct on (asset) asset, approval_id from platform.export where tenant_id = $1
    order by asset, evidence_seq desc
) newest where approval_id is not null
"""
_LIST = """
select tenant_id, asset, kind, file_name, file_sha256, records, columns, exported_by, decision_id, approval_id,
    run_token, exported_at, evidence_seq
from platform.export where $1::text is null or tenant_id = $1
order by exported_at desc, tenant_id, evidence_seq desc, asset limit $2::bigint
"""
