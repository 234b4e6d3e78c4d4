"""The register of definitions: which definition a version of a GDP or KPI stands for, per tenant, for ever.

A version is bound to a definition when a number of that version is published. To others it is bound only when they were
shown to compute the same: each binding is evidence of its tenant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.governance.definitions import BoundVersion, Definition
from resources.runtime.database import as_json, fetch
from resources.trust import ledger


@dataclass(frozen=True)
class Binding:
    """Why a version is bound.

    Attributes:
        cause: registered (published), accepted (somebody gave a reason), followed, upgraded.
        decision_id: of the policies, for what is accepted.
    """

    tenant_id: str
    pipeline: str
    cause: str
    run_token: str
    reason: str = ""
    decided_by: str = ""
    decision_id: int | None = None


def store(connection: psycopg.Connection, definitions: Sequence[Definition]) -> None:
    """Keep what definitions say, in the caller's transaction."""
    fetch(connection, _STORE, (as_json([{"sha256": d.sha256, "document": d.document} for d in definitions]),))


def document(connection: psycopg.Connection, sha256: str) -> Mapping[str, Any] | None:
    """What a definition says, None when it is not kept."""
    rows = fetch(connection, "select document from platform.definition where sha256 = $1", (sha256,))
    return rows[0][0] if rows else None


def bound(connection: psycopg.Connection, pipeline: str | None = None) -> list[BoundVersion]:
    """What versions stand for, of a pipeline or of all, for every tenant, oldest first."""
    return [BoundVersion(*row) for row in fetch(connection, _BOUND, (pipeline,))]


def bound_for(versions: Sequence[BoundVersion], tenant_id: str) -> list[BoundVersion]:
    """What counts for a tenant: his own; of versions that were never published for him, those of others."""
    own = {(v.kind, v.name, v.version) for v in versions if v.tenant_id == tenant_id}
    return [v for v in versions if v.tenant_id == tenant_id or (v.kind, v.name, v.version) not in own]


def bind(connection: psycopg.Connection, binding: Binding, versions: Sequence[BoundVersion]) -> None:
    """Bind versions to definitions that are stored, with evidence, in the caller's transaction; known ones stay."""
    known = {(v.kind, v.name, v.version, v.sha256) for v in bound(connection, binding.pipeline)
             if v.tenant_id == binding.tenant_id}
    new = [v for v in versions if (v.kind, v.name, v.version, v.sha256) not in known]
    if not new:
        return
    seq = ledger.append(connection, ledger.Entry(
        binding.tenant_id, f"definition.{binding.cause}", binding.pipeline, binding.run_token, {
            "definitions": {f"{v.kind}.{v.name}": {"version": v.version, "sha256": v.sha256} for v in new},
            "reason": binding.reason, "by": binding.decided_by, "decision": binding.decision_id}))
    for version in new:
        fetch(connection, _BIND, (
            binding.tenant_id, binding.pipeline, version.kind, version.name, version.version, version.sha256,
            binding.cause, version.source_sha256, version.stage_code, binding.reason, binding.decided_by,
            binding.decision_id, binding.run_token, seq))


_STORE = """
insert into platform.definition (sha256, document)
select d.sha256, d.document from jsonb_to_recordset($1::text::jsonb) as d(sha256 text, document jsonb)
on conflict (sha256) do nothing
"""
_BOUND = """
select pipeline, kind, name, version, sha256, source_sha256, stage_code, tenant_id
from platform.definition_version
where $1::text is null or pipeline = $1
order by registered_at, tenant_id, kind, name
"""
_BIND = """
insert into platform.definition_version (
    tenant_id, pipeline, kind, name, version, sha256, cause, source_sha256, stage_code, reason, decided_by, decision_id,
    run_token, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::bigint, $13, $14)
"""
