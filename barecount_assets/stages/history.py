"""What stages remember of earlier work: finished stage runs by token, and the newest of each stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import psycopg

from barecount_assets.stages import lineage
from resources.runners.identity import current as current_runner
from resources.runners.stage import Stage, StageReceipt, run_token
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.settings import stage_code_version
from resources.storage import artefacts
from resources.storage.artefacts import Artefact
from resources.trust import ledger


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage run: its token, run number, receipt, basis (what it was made from) and evidence."""

    run_token: str
    run_id: int | None
    receipt: StageReceipt
    basis: Mapping[str, Any]
    evidence_seq: int


def newest(connection: psycopg.Connection, tenant_id: str, pipeline: str, stage: Stage) -> FinishedStage | None:
    """The newest finished run of a stage."""
    rows = fetch_dicts(connection, _NEWEST, (tenant_id, pipeline, stage.value))
    if not rows:
        return None
    row = rows[0]
    return FinishedStage(
        row["run_token"], row["run_id"], StageReceipt.from_json(row["receipt"]["receipt"]), row["receipt"]["basis"],
        row["evidence_seq"],
    )


def token_for(
    connection: psycopg.Connection, identity: Mapping[str, Any], last: FinishedStage | None, tenant_id: str,
    pipeline: str, stage: Stage,
) -> str:
    """The run token of an identity.

    Work that was done before, but not last, is done again under a token that also names what came between: sources
    that went back to an earlier state must bring the earlier numbers back.
    """
    token = run_token(**identity)
    if last is None or last.run_token == token:
        return token
    seen = fetch(
        connection,
        "select 1 from platform.stage_run where tenant_id=$1 and pipeline=$2 and stage=$3 and run_token=$4",
        (tenant_id, pipeline, stage.value, token),
    )
    if not seen:
        return token
    again = run_token(again=token, after=last.evidence_seq)
    return last.run_token if last.basis.get("again_of") == token else again


def finish(
    connection: psycopg.Connection, receipt: StageReceipt, run_id: int, identity: Mapping[str, Any],
    evidence: Mapping[str, Any], basis: Mapping[str, Any] = MappingProxyType({}), artefact: Artefact | None = None,
) -> int:
    """Record a finished stage run, its evidence and its lineage in the caller's transaction.

    Returns the number of the entry. With the artefact it was computed with, the run can be computed again.

    Args:
        identity: what its token was asked for with, see `token_for`.
        basis: what it was made from, for the stages that follow.
    """
    plain = run_token(**identity)
    basis = {**basis, "again_of": plain if plain != receipt.run_token else None}
    if artefact is not None:
        artefacts.record(connection, artefact, stage_code_version(), receipt.tenant_id, receipt.pipeline,
                         receipt.stage.value, receipt.run_token)
        evidence = {**evidence, "artefact": artefact.sha256}
    seq = ledger.append(
        connection,
        ledger.Entry(receipt.tenant_id, f"{receipt.stage}.finished", receipt.pipeline, receipt.run_token,
                     {**evidence, "runner": current_runner()}),
    )
    fetch(
        connection, _FINISH,
        (receipt.tenant_id, receipt.pipeline, receipt.stage.value, receipt.run_token, run_id,
         as_json({"receipt": receipt.to_json(), "basis": basis}), seq),
    )
    announce(connection, receipt, seq)
    lineage.complete(connection, receipt, seq)
    return seq


def announce(connection: psycopg.Connection, receipt: StageReceipt, evidence_seq: int) -> None:
    """Tell that a stage finished, in the transaction that records it."""
    events.append(connection, events.Event(
        receipt.tenant_id, f"{receipt.stage}.finished", receipt.pipeline, receipt.run_token,
        {"pipeline": receipt.pipeline, "stage": receipt.stage.value, "counts": dict(receipt.counts)}, receipt.pipeline,
        evidence_seq, receipt.run_token,
    ))


def unchanged(finished: FinishedStage) -> StageReceipt:
    """The stored receipt of work that is done already."""
    return dataclasses.replace(finished.receipt, changed=False)


def run_number(
    connection: psycopg.Connection, tenant_id: str, pipeline: str, stage: Stage, token: str, manifest_hash: str,
    code_version: str,
) -> int:
    """The number of the run with this token: the same for every attempt."""
    key = (tenant_id, pipeline, token)
    find = "select run_id from platform.run where tenant_id = $1 and pipeline = $2 and run_token = $3"
    rows = fetch(connection, find, key)
    if not rows:
        rows = fetch(
            connection,
            "insert into platform.run (tenant_id, pipeline, run_token, stage, manifest_hash, code_version) "
            "values ($1, $2, $3, $4, $5, $6) returning run_id",
            (*key, stage.value, manifest_hash, code_version),
        )
    return rows[0][0]


_NEWEST = """
select run_token, run_id, receipt, evidence_seq
from platform.stage_run
where tenant_id = $1 and pipeline = $2 and stage = $3
order by evidence_seq desc
limit 1
"""
_FINISH = """
insert into platform.stage_run (tenant_id, pipeline, stage, run_token, run_id, receipt, evidence_seq)
values ($1, $2, $3, $4, $5, $6::text::jsonb, $7)
"""
