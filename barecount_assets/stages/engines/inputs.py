"""What engines read: raw objects as files, and relations of PostgreSQL as Arrow.

An object is read only if it is what evidence says was written. One that was written under an earlier contract version
is rewritten, in a folder of the run, in the columns and types of now, by the code that rebuilds raw tables: engines see
files of one schema.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

from barecount_assets.stages.dbt import Relation
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.ingestion.rebuild import as_declared, require_intact
from barecount_assets.stages.ingestion.records import EXTRA, ROW_NUMBER
from barecount_assets.stages.ingestion.sources import arrow_type
from resources.governance.contracts import Contract
from resources.runtime.database import fetch, unavailable_as_error
from resources.storage import raw_tables


@dataclass(frozen=True)
class RawFile:
    """One raw object as a local Parquet file, and the number of its batch."""

    path: Path
    batch_id: int


@dataclass(frozen=True)
class Inputs:
    """What one run reads.

    Attributes:
        connection: autocommit, of this run alone.
        tenant_id: whose rows; nobody else's are ever read.
        batches: raw batches that the run reacts to, current or not.
        time_zone: the tenant's, in which an engine's session is.
        folder: of this run; gone afterwards.
    """

    environment: StageEnvironment
    connection: psycopg.Connection
    tenant_id: str
    batches: Sequence[int]
    time_zone: str
    folder: Path

    @classmethod
    @contextmanager
    def opened(
        cls, environment: StageEnvironment, tenant_id: str, variables: Mapping[str, Any], folder: Path
    ) -> Iterator[Inputs]:
        """Inputs of a run with a connection and an empty folder of its own."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            with unavailable_as_error(), environment.database.connect(autocommit=True) as connection:
                yield cls(environment, connection, tenant_id, list(variables.get("batches", ())),
                          variables.get("time_zone", "UTC"), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def raw_contract(self, relation: Relation) -> Contract:
        """The contract of the dataset whose raw table a relation is."""
        return self.environment.declarations.contract(relation.name.replace("__", ".", 1), "raw")

    def raw_files(self, relation: Relation) -> list[RawFile]:
        """The objects of a raw table's batches: those that count, and those the run reacts to.

        Raises:
            BareCountError: store.corrupt when an object is missing or has another checksum.
        """
        contract = self.raw_contract(relation)
        batches = fetch(self.connection, _BATCHES, (self.tenant_id, contract.dataset, list(self.batches)))
        store = self.environment.raw_store
        found = []
        for batch_id, key, sha256, evidence_seq in batches:
            require_intact(store, key, sha256, evidence_seq)
            path = as_of_now(store.local_file(key, self.folder), contract, self.folder / f"batch-{batch_id}.parquet")
            found.append(RawFile(path, batch_id))
        return found

    def no_raw_rows(self, relation: Relation) -> pa.Table:
        """A raw table's columns without a row."""
        return raw_schema(self.raw_contract(relation)).empty_table()

    def types(self, relation: Relation) -> list[tuple[str, str]]:
        """(name, PostgreSQL type) of a relation's columns, in order."""
        return fetch(self.connection, _COLUMNS, (relation.schema, relation.name))  # type: ignore[return-value]

    @contextmanager
    def rows(self, relation: Relation, columns: Sequence[str]) -> Iterator[pa.RecordBatchReader]:
        """The tenant's rows of a relation in PostgreSQL, streamed; numerics come as text."""
        statement = sql.SQL("select {} from {} where tenant_id = $1").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(relation.schema, relation.name))
        with self.environment.database.connect_arrow() as arrow, arrow.cursor() as cursor:
            cursor.execute(statement.as_string(None), (self.tenant_id,))
            with cursor.fetch_record_batch() as reader:
                yield reader


def raw_schema(contract: Contract) -> pa.Schema:
    """Schema of raw objects under a contract: its columns, the number of the record, undeclared values."""
    return pa.schema([*((name, arrow_type(kind)) for name, kind in contract.column_types),
                      (ROW_NUMBER, pa.int64()), (EXTRA, pa.string())])


def as_of_now(path: Path, contract: Contract, copy: Path) -> Path:
    """A raw object's file if it has the columns and types of a contract, else a copy of it that has."""
    wanted = raw_schema(contract)
    if _has_schema(pq.read_schema(path), wanted):
        return path
    with pq.ParquetWriter(copy, wanted) as writer:
        for rows in pq.ParquetFile(path).iter_batches():
            declared = as_declared(rows, contract)
            writer.write_batch(pa.record_batch(
                [declared.column(field.name) if field.name in declared.schema.names
                 else pa.nulls(declared.num_rows, field.type) for field in wanted], schema=wanted))
    return copy


def raw_types(contract: Contract) -> list[tuple[str, str]]:
    """(name, PostgreSQL type) of a raw table's columns, stamps included."""
    return [*contract.column_types, *((name, kind.split()[0]) for name, kind in raw_tables.STAMPS)]


def _has_schema(found: pa.Schema, wanted: pa.Schema) -> bool:
    types = {field.name: field.type for field in found}
    return all(types.get(field.name) == field.type for field in wanted)


_BATCHES = """
select b.batch_id, b.object_key, b.object_sha256, b.evidence_seq
from platform.raw_batch b join platform.counted_batch c using (batch_id)
where b.tenant_id = $1 and b.dataset = $2 and (c.is_current or b.batch_id = any($3::bigint[]))
    and not exists (select from platform.raw_expiry e where e.batch_id = b.batch_id)
order by b.batch_id
"""
_COLUMNS = """
select attname::text, format_type(atttypid, atttypmod) from pg_attribute
where attrelid = to_regclass(quote_ident($1) || '.' || quote_ident($2)) and attnum > 0 and not attisdropped
order by attnum
"""
