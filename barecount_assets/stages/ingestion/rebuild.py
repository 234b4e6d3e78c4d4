"""Rebuilding raw tables from the raw store: the tables are a copy, the store is the record."""

from __future__ import annotations

from itertools import chain
from typing import Any

from barecount_assets.stages.environment import StageEnvironment
from resources.governance.contracts import Contract
from resources.runtime.database import fetch, fetch_dicts, unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import raw_tables
from resources.storage.raw_store import RawStore


def rebuild(environment: StageEnvironment, dataset: str, tenant_id: str | None) -> dict[str, Any]:
    """Replace a dataset's rows with those of its raw objects, batch by batch, each in one transaction.

    Raises:
        BareCountError: declaration.unknown; store.corrupt when an object is gone or its checksum differs: its rows
            are left as they are.
    """
    contract = environment.declarations.contract(dataset, "raw")
    pipelines = [name for name, manifest in environment.declarations.pipelines.items()
                 if any(source.dataset == dataset for source in manifest.spec.sources)]
    tenants = [tenant_id] if tenant_id else sorted(
        {tenant for name in pipelines for tenant in environment.declarations.pipeline(name).spec.tenants})
    batches, rows = 0, 0
    for tenant in tenants:
        with environment.exclusive(tenant, pipelines[0]) as connection, unavailable_as_error():
            raw_tables.ensure(connection, dataset, contract.column_types)
            for batch in fetch_dicts(connection, _BATCHES, (tenant, dataset)):
                require_intact(environment.raw_store, batch["object_key"], batch["object_sha256"],
                               batch["evidence_seq"])
                with connection.transaction():
                    fetch(connection, raw_tables.delete_statement(dataset), (batch["batch_id"],))
                    objects = (as_declared(rows, contract) for rows in environment.raw_store.read(batch["object_key"]))
                    first = next(objects, None)
                    if first is not None:
                        raw_tables.append(connection, dataset, tenant, batch["batch_id"], chain([first], objects),
                                          first.schema)
                batches, rows = batches + 1, rows + batch["accepted"]
    return {"dataset": dataset, "tenants": tenants, "batches": batches, "rows": rows}


def require_intact(store: RawStore, key: str, sha256: str, evidence_seq: int) -> None:
    """Refuse an object whose bytes are not those that were written.

    Raises:
        BareCountError: store.corrupt.
    """
    found = store.sha256(key)
    if found != sha256:
        raise BareCountError(
            ErrorCode.STORE_CORRUPT,
            f"raw object {key} has SHA-256 {found or 'none, it is missing'}, evidence entry {evidence_seq} says "
            f"{sha256}",
            hint="restore the object from a backup of the raw store",
        )


def as_declared(rows: Any, contract: Contract) -> Any:
    """Rows of an object in the types its columns have by now: an accepted drift may have changed some."""
    from barecount_assets.stages.ingestion.parsing import parse_text
    from barecount_assets.stages.ingestion.records import Field
    from barecount_assets.stages.ingestion.sources import arrow_type

    for column in contract.columns:
        at = rows.schema.get_field_index(column.name)
        wanted = arrow_type(column.physical_type)
        if at >= 0 and rows.schema.field(at).type != wanted:
            field = Field(column.name, column.source_name, wanted)
            rows = rows.set_column(at, column.name, parse_text(field, rows.column(at).cast("string")))
    return rows


_BATCHES = """
select batch_id, object_key, object_sha256, accepted, evidence_seq
from platform.raw_batch b
where tenant_id = $1 and dataset = $2
    and not exists (select from platform.raw_expiry e where e.batch_id = b.batch_id)
order by batch_id
"""
