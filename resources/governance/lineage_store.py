"""The lineage graph and the outbox of OpenLineage events, in PostgreSQL.

What a run leaves, exactly. An attempt begins with one START and ends with one of COMPLETE, FAIL or ABORT; each event is
written in the transaction that changes the state it tells of.

- A stage that comes to its end: START and COMPLETE of attempt 1. Work found done leaves nothing more.
- A killed process leaves START. The next run of the same work goes on with that attempt, so START and COMPLETE are all
  that is left: nothing lost, nothing doubled. `eventTime` of START is when work first began.
- An error leaves FAIL when the database can still be reached; the next run is attempt 2 and has a run id of its own.
- A killed process whose work is not taken up again (its sources changed, so the token did): the next run of the same
  job ends it with ABORT.

Graph: a completed run refers to the edges it was made with. What holds now is the newest completed run of each job;
as of a run, the newest up to its evidence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.governance import openlineage
from resources.governance.column_lineage import AssetLineage, Dependency
from resources.governance.openlineage import ABORT, COMPLETE, FAIL, START, Dataset, Job, Run
from resources.runtime.database import as_json, fetch
from resources.runtime.errors import BareCountError, ErrorCode


@dataclass(frozen=True)
class AssetFacts:
    """What the graph knows of an asset besides its edges."""

    asset: str
    owners: tuple[str, ...]
    tags: Mapping[str, str]
    contract_version: str | None = None
    contract_hash: str | None = None

    @property
    def layer(self) -> str:
        return self.asset.partition(".")[0]


@dataclass(frozen=True)
class Edge:
    """A column of one asset depends on something."""

    asset: str
    column: str
    on: Dependency


def begin(
    connection: psycopg.Connection, job: Job, run_token: str, code_version: str, window: tuple[str, str] | None,
    inputs: Sequence[Dataset],
) -> Run | None:
    """Put on record that work begins; None when this work was completed before.

    The caller holds the lock of tenant and pipeline: whatever is still open of this job is a dead process's.
    """
    with connection.transaction():
        fetch(connection, _PROCESS, (job.tenant_id, job.name, job.pipeline, job.stage, job.source,
                                     ", ".join(job.owners)))
        earlier = [(Run(job, token, attempt, code, window), state) for token, attempt, code, state in fetch(
            connection, _EARLIER, (job.tenant_id, job.name, run_token))]
        own = [(run, state) for run, state in earlier if run.run_token == run_token]
        if any(state == "completed" for _, state in own):
            return None
        for run, state in earlier:
            if state == "started":
                if run.run_token == run_token:
                    return run
                _end(connection, run, ABORT, "aborted", error="the process was killed, and its work was not taken up")
        run = Run(job, run_token, len(own) + 1, code_version, window)
        fetch(connection, _BEGIN, (job.tenant_id, run.id, job.name, run_token, run.attempt, code_version))
        _append(connection, run, START, openlineage.event(START, run, inputs))
        return run


def complete(
    connection: psycopg.Connection, run: Run, evidence_seq: int, inputs: Sequence[Dataset],
    outputs: Sequence[Dataset], assets: Iterable[AssetFacts], edges: Sequence[AssetLineage],
) -> None:
    """Put the end of a run on record, with the graph it leaves, in the caller's transaction."""
    tenant = run.job.tenant_id
    rows = [
        {"target_asset": lineage.asset, "target_column": column, "source_asset": d.asset, "source_column": d.column,
         "kind": d.kind, "subtype": d.subtype, "masked": d.masked}
        for lineage in edges for column, found in sorted(lineage.columns.items()) for d in found
    ]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    if not fetch(connection, "select 1 from platform.lineage_edge where tenant_id = $1 and edges_sha256 = $2 limit 1",
                 (tenant, digest)):
        fetch(connection, _EDGES, (tenant, digest, as_json(rows)))
    for facts in sorted(assets, key=lambda found: found.asset):
        fetch(connection, _ASSET, (tenant, facts.asset, facts.layer, facts.contract_version, facts.contract_hash,
                                   ", ".join(facts.owners), as_json(facts.tags)))
    fetch(connection, _COMPLETE, (tenant, run.id, digest, evidence_seq))
    _append(connection, run, COMPLETE,
            openlineage.event(COMPLETE, run, inputs, outputs, evidence_seq=evidence_seq))


def fail(connection: psycopg.Connection, run: Run, message: str, *, aborted: bool = False) -> None:
    """Put on record that a run ended without its work done; nothing when it has ended already."""
    with connection.transaction():
        _end(connection, run, ABORT if aborted else FAIL, "aborted" if aborted else "failed", error=message)


def _end(connection: psycopg.Connection, run: Run, kind: str, state: str, *, error: str) -> None:
    ended = fetch(connection, _END, (run.job.tenant_id, run.id, state))
    if ended:
        _append(connection, run, kind, openlineage.event(kind, run, error=error))


def _append(connection: psycopg.Connection, run: Run, kind: str, body: Mapping[str, Any]) -> None:
    fetch(connection, _EVENT, (run.job.tenant_id, run.event_id(kind), run.id, kind, as_json(body)))


# --- reading the graph -------------------------------------------------------------------------------------------


def edges(connection: psycopg.Connection, tenant_id: str, as_of: int | None = None) -> list[Edge]:
    """The edges that hold now, or held when the entry `as_of` of the ledger was written."""
    return [
        Edge(asset, column, Dependency(source, source_column, kind, subtype, masked))
        for asset, column, source, source_column, kind, subtype, masked in fetch(
            connection, _GRAPH, (tenant_id, as_of))
    ]


def evidence_of_run(connection: psycopg.Connection, tenant_id: str, run: str) -> int:
    """Number of the ledger entry of a completed run, named by its run id or (the beginning of) its run token.

    Raises:
        BareCountError: run.unknown when there is none, or more than one.
    """
    rows = fetch(connection, _RUN, (tenant_id, run.lower()))
    if len(rows) != 1:
        found = "no completed run" if not rows else f"{len(rows)} completed runs"
        raise BareCountError(
            ErrorCode.RUN_UNKNOWN, f"{found} of tenant {tenant_id} has a run id or run token that begins with {run!r}",
            hint="`barecount lineage runs` lists them; give more of the token" if rows else
            "`barecount lineage runs` lists them",
        )
    return rows[0][0]


_PROCESS = """
insert into platform.lineage_process (tenant_id, job, pipeline, stage, source, owners) values ($1, $2, $3, $4, $5, $6)
on conflict (tenant_id, job) do update set owners = excluded.owners
where lineage_process.owners <> excluded.owners
"""
_EARLIER = """
select run_token, attempt, code_version, state from platform.lineage_run
where tenant_id = $1 and job = $2 and (state = 'started' or run_token = $3)
order by attempt
"""
_BEGIN = """
insert into platform.lineage_run (tenant_id, run, job, run_token, attempt, state, code_version)
values ($1, $2, $3, $4, $5, 'started', $6)
"""
_COMPLETE = """
update platform.lineage_run
set state = 'completed', edges_sha256 = $3, evidence_seq = $4, ended_at = clock_timestamp()
where tenant_id = $1 and run = $2
"""
_END = """
update platform.lineage_run set state = $3, ended_at = clock_timestamp()
where tenant_id = $1 and run = $2 and state = 'started'
returning 1
"""
_EVENT = """
insert into platform.lineage_event (tenant_id, event_id, run, type, body) values ($1, $2, $3, $4, $5::text::jsonb)
"""
_EDGES = """
insert into platform.lineage_edge (tenant_id, edges_sha256, target_asset, target_column, source_asset, source_column,
    kind, subtype, masked)
select $1, $2, e.target_asset, e.target_column, e.source_asset, e.source_column, e.kind, e.subtype, e.masked
from jsonb_to_recordset($3::text::jsonb) as e(target_asset text, target_column text, source_asset text,
    source_column text, kind text, subtype text, masked boolean)
"""
_ASSET = """
insert into platform.lineage_asset (tenant_id, asset, layer, contract_version, contract_hash, owners, tags)
values ($1, $2, $3, $4, $5, $6, $7::text::jsonb)
on conflict (tenant_id, asset) do update
set contract_version = excluded.contract_version, contract_hash = excluded.contract_hash, owners = excluded.owners,
    tags = excluded.tags
where (lineage_asset.contract_hash, lineage_asset.owners, lineage_asset.tags)
    is distinct from (excluded.contract_hash, excluded.owners, excluded.tags)
"""
_GRAPH = """
with newest as (
    select distinct on (job) job, edges_sha256 from platform.lineage_run
    where tenant_id = $1 and state = 'completed' and ($2::bigint is null or evidence_seq <= $2)
    order by job, evidence_seq desc
)
select distinct e.target_asset, e.target_column, e.source_asset, e.source_column, e.kind, e.subtype, e.masked
from newest join platform.lineage_edge e on e.tenant_id = $1 and e.edges_sha256 = newest.edges_sha256
order by 1, 2, 3, 4, 5, 6, 7
"""
_RUN = """
select evidence_seq from platform.lineage_run
where tenant_id = $1 and state = 'completed' and (run::text = $2 or starts_with(run_token, $2))
"""
