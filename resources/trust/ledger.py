"""The evidence ledger: append-only, hash-chained per tenant, verifiable by anyone who can read it.

Format. The body of an entry is the canonical JSON (RFC 8785) of
`{"v": 1, "tenant", "kind", "subject", "run_token", "at", "payload"}`. Its leaf hash is SHA-256(0x00 || body), as in
RFC 6962: `checkpoints.py` lays a Merkle tree over the same leaves. Its chain hash is SHA-256(previous chain hash ||
leaf hash), beginning with the empty string. Entries are numbered from 1 without gaps. The database computes both
hashes inside `platform.append_evidence` and `platform.append_evidence_batch`, which are the only ways in: call them in
the transaction that changes the state.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from resources.runtime.database import as_json, fetch
from resources.trust.verify import leaf_hash

_PAGE = 5_000  # entries read or appended at once


@dataclass(frozen=True)
class Entry:
    """What is put on record.

    Attributes:
        kind: what happened, `noun.verb` in the past: `batch.landed`, `gate.passed`, `kpi.published`.
        subject: what it happened to; unique together with tenant, kind and run token.
        run_token: the piece of work that did it.
        payload: facts, JSON-serialisable; counts as integers, amounts and ratios as strings.
    """

    tenant_id: str
    kind: str
    subject: str
    run_token: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One broken entry: its number, what kind of tampering shows, and how."""

    tenant_id: str
    seq: int
    problem: str
    message: str


@dataclass(frozen=True)
class Verification:
    """Result of verifying one tenant's chain.

    Attributes:
        head: chain hash of the last entry, hex.
        root: Merkle root, hex; `checkpoints`: how many hold. Only `checkpoints.verify` looks at these.
    """

    tenant_id: str
    entries: int
    head: str
    findings: tuple[Finding, ...] = field(default=())
    root: str = ""
    checkpoints: int = 0

    @property
    def intact(self) -> bool:
        return not self.findings


def canonical(value: Any) -> bytes:
    """Canonical JSON of RFC 8785.

    Documents of ASCII text and whole numbers, which nearly all evidence is, need no more than sorted keys; the standard
    library writes them in a quarter of the time.
    """
    if _is_plain(value):
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    import rfc8785

    return rfc8785.dumps(value)


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return value.isascii() and "\x7f" not in value
    if kind is dict:
        return all(type(key) is str and key.isascii() and "\x7f" not in key for key in value) and all(
            map(_is_plain, value.values()))
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    return value is None or kind is bool or (kind is int and abs(value) < 2**53)


def append(connection: psycopg.Connection, entry: Entry) -> int:
    """Append in the caller's transaction and return the entry's number."""
    at = _now()
    rows = fetch(
        connection,
        "select platform.append_evidence($1, $2, $3, $4, $5::text::timestamptz, $6)",
        (entry.tenant_id, entry.kind, entry.subject, entry.run_token, at, _body(entry, at)),
    )
    return rows[0][0]


def append_many(connection: psycopg.Connection, entries: Sequence[Entry]) -> list[int]:
    """Append many entries in the caller's transaction, a few statements in all; returns their numbers, in order.

    Entries of one tenant are numbered in the order given, without a gap between them.
    """
    at = _now()
    by_tenant: dict[str, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        by_tenant[entry.tenant_id].append(position)
    numbers = [0] * len(entries)
    for tenant_id in sorted(by_tenant):  # heads are locked in one order everywhere: no deadlock
        positions = by_tenant[tenant_id]
        for start in range(0, len(positions), _PAGE):
            page = positions[start : start + _PAGE]
            bodies = as_json([_body(entries[position], at) for position in page])
            first = fetch(connection, "select platform.append_evidence_batch($1, $2::text::jsonb)",
                          (tenant_id, bodies))[0][0]
            for offset, position in enumerate(page):
                numbers[position] = first + offset
    return numbers


def newest(connection: psycopg.Connection, tenant_id: str) -> int:
    """Number of a tenant's newest entry, 0 for none: what tells one occurrence of the same thing from the next."""
    return fetch(connection, "select seq from platform.evidence_head where tenant_id = $1", (tenant_id,))[0][0]


def verify(
    connection: psycopg.Connection, tenant_id: str, each_leaf: Callable[[bytes], None] | None = None
) -> Verification:
    """Recompute one tenant's chain from its first entry and compare it with everything that refers to it.

    Found: an edited entry (its hash, or a column that disagrees with the body), a deleted one (a gap, a missing end,
    or a state row whose evidence is gone), an inserted one and a reordered one (the chain does not follow). Only the
    first break of the chain is reported per kind of cause; entries after it are judged against their stored links.

    Entries are streamed: memory does not grow with the ledger.

    Args:
        each_leaf: is given the recomputed leaf hash of every entry, in order.
    """
    findings: list[Finding] = []
    chain, expected_seq = b"", 1

    def report(seq: int, problem: str, message: str) -> None:
        findings.append(Finding(tenant_id, seq, problem, message))

    with connection.transaction(), psycopg.RawServerCursor(connection, "evidence") as cursor:
        connection.execute("set transaction isolation level repeatable read, read only")
        cursor.execute(
            "select seq, kind, subject, run_token, occurred_at, body, leaf_hash, chain_hash "
            "from platform.evidence where tenant_id = $1 order by seq",
            (tenant_id,),
        )
        entries = 0
        while page := cursor.fetchmany(_PAGE):
            for seq, kind, subject, run_token, occurred_at, body, leaf, link in page:
                entries += 1
                if seq != expected_seq:
                    missing = f"{expected_seq}" if seq == expected_seq + 1 else f"{expected_seq} to {seq - 1}"
                    report(expected_seq, "deleted", f"entry {missing} is missing before entry {seq}")
                problem = _body_problem(tenant_id, kind, subject, run_token, occurred_at, body)
                if problem:
                    report(seq, "edited", f"entry {seq}: {problem}")
                found = leaf_hash(body.encode())
                if each_leaf is not None:
                    each_leaf(found)
                if found != leaf:
                    report(seq, "edited", f"entry {seq}: its body does not have the recorded hash")
                elif seq == expected_seq and hashlib.sha256(chain + leaf).digest() != link:
                    report(
                        seq, "broken chain",
                        f"entry {seq} does not follow entry {seq - 1}: it was inserted, moved, or replaced",
                    )
                chain, expected_seq = link, seq + 1
        findings.extend(_check_head(connection, tenant_id, expected_seq - 1, chain))
        findings.extend(_check_references(connection, tenant_id))
    return Verification(tenant_id, entries, chain.hex(), tuple(findings))


def tenants_with_evidence(connection: psycopg.Connection) -> list[str]:
    """Every tenant that has a chain, also one whose registration was tampered with."""
    rows = fetch(
        connection,
        "select tenant_id from platform.evidence_head union select tenant_id from platform.evidence order by 1",
    )
    return [tenant_id for (tenant_id,) in rows]


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


def _body(entry: Entry, at: str) -> str:
    return canonical(
        {
            "v": 1,
            "tenant": entry.tenant_id,
            "kind": entry.kind,
            "subject": entry.subject,
            "run_token": entry.run_token,
            "at": at,
            "payload": entry.payload,
        }
    ).decode()


def _body_problem(
    tenant_id: str, kind: str, subject: str, run_token: str, occurred_at: dt.datetime, body: str
) -> str | None:
    try:
        document = json.loads(body)
        recorded = (document["tenant"], document["kind"], document["subject"], document["run_token"])
        at = dt.datetime.fromisoformat(document["at"])
    except (ValueError, KeyError, TypeError):
        return "its body is not a ledger entry"
    if recorded != (tenant_id, kind, subject, run_token) or at != occurred_at:
        return "its columns disagree with its body"
    return None


def _check_head(connection: psycopg.Connection, tenant_id: str, last_seq: int, chain: bytes) -> list[Finding]:
    rows = fetch(connection, "select seq, chain_hash from platform.evidence_head where tenant_id = $1", (tenant_id,))
    if not rows:
        return [Finding(tenant_id, 0, "deleted", "the head of the chain is missing")]
    head_seq, head_hash = rows[0]
    if head_seq > last_seq:
        return [Finding(tenant_id, last_seq + 1, "deleted",
                        f"the chain ends at entry {last_seq}, its head says {head_seq}: the end was cut off")]
    if head_seq < last_seq:
        return [Finding(tenant_id, head_seq + 1, "inserted",
                        f"entry {head_seq + 1} and later were not appended by the platform: the head is at {head_seq}")]
    if head_hash != chain:
        return [Finding(tenant_id, last_seq, "broken chain", "the last entry does not have the head's hash")]
    return []


_REFERENCES = """
with refs as (
    select 'batch.landed' as kind, dataset || '/' || source_id as subject, run_token, evidence_seq
    from platform.raw_batch where tenant_id = $1
    union all
    select stage || '.finished', pipeline, run_token, evidence_seq
    from platform.stage_run where tenant_id = $1
    union all
    select case when passed then 'gate.passed' else 'gate.failed' end, kpi || '/' || gate, run_token, evidence_seq
    from platform.gate_result where tenant_id = $1
    union all
    select 'action.decided', job_key, rule_version, evidence_seq
    from platform.action_job where tenant_id = $1
    union all
    select 'kpi.published', name, run_token, evidence_seq
    from platform.publication where tenant_id = $1
    union all
    select 'delivery.' || outcome, endpoint, delivery_key || '#' || attempt, evidence_seq
    from platform.receipt where tenant_id = $1
    union all
    select p.stage || '.finished', p.pipeline, r.run_token, r.evidence_seq
    from platform.lineage_run r join platform.lineage_process p using (tenant_id, job)
    where r.tenant_id = $1 and r.state = 'completed'
    union all
    select 'obligation.' || case status when 'pass' then 'passed' when 'skip' then 'skipped' else status || 'ed' end,
        pipeline || '/' || obligation || case when number > 1 then '#' || number else '' end, run_token, evidence_seq
    from platform.obligation_result where tenant_id = $1
    union all
    select 'contract.registered', e.dataset || '/' || e.layer, v.document_hash, e.evidence_seq
    from platform.contract_evidence e join platform.contract_version v using (dataset, layer, version)
    where e.tenant_id = $1
    union all
    select 'definition.' || cause, pipeline, run_token, evidence_seq
    from platform.definition_version where tenant_id = $1
    union all
    select 'contract.' || case when active then 'subscribed' else 'unsubscribed' end,
        dataset || '/' || layer || '/' || consumer, run_token, evidence_seq
    from platform.contract_subscription where tenant_id = $1
    union all
    select 'quarantine.' || kind, subject, run_token, evidence_seq
    from platform.quarantine_decision where tenant_id = $1
    union all
    select 'raw.expired', subject, run_token, evidence_seq from platform.raw_expiry where tenant_id = $1
    union all
    select 'hold.added', subject, run_token, evidence_seq from platform.legal_hold where tenant_id = $1
    union all
    select 'hold.released', subject, run_token, evidence_seq from platform.legal_hold_release where tenant_id = $1
    union all
    select 'export.finished', coalesce(pipeline, kind), run_token, evidence_seq
    from platform.export where tenant_id = $1
    union all
    select 'run.replayed', pipeline, run_token, evidence_seq from platform.replay where tenant_id = $1
    union all
    select 'backfill.started', pipeline, run_token, evidence_seq from platform.backfill where tenant_id = $1
    union all
    select 'backfill.finished', pipeline, run_token, evidence_seq from platform.backfill_end where tenant_id = $1
    union all
    select 'policy.decided', point || '/' || subject, occurrence, evidence_seq
    from platform.policy_decision where tenant_id = $1
    union all
    select 'approval.requested', r.approval_id::text, d.occurrence, r.evidence_seq
    from platform.approval_request r join platform.policy_decision d using (decision_id) where r.tenant_id = $1
    union all
    select 'approval.' || verdict, approval_id::text, 'approval-' || approval_id, evidence_seq
    from platform.approval_verdict where tenant_id = $1
    union all
    select 'drift.detected', dataset || '/' || left(fingerprint, 12), fingerprint, evidence_seq
    from platform.drift where tenant_id = $1
    union all
    select 'drift.' || c.verdict, d.dataset || '/' || left(d.fingerprint, 12), d.fingerprint, c.evidence_seq
    from platform.drift_decision c join platform.drift d using (drift_id) where c.tenant_id = $1
)
select refs.evidence_seq, refs.kind, refs.subject
from refs
left join platform.evidence e
    on e.tenant_id = $1 and e.seq = refs.evidence_seq and e.kind = refs.kind
    and e.subject = refs.subject and e.run_token = refs.run_token
where e.seq is null
order by 1, 2, 3
limit 100
"""


def _check_references(connection: psycopg.Connection, tenant_id: str) -> list[Finding]:
    """State rows whose evidence is not what they say: a chain rewritten from some entry on shows here."""
    return [
        Finding(tenant_id, seq, "evidence missing", f"{kind} of {subject} refers to entry {seq}, which is not about it")
        for seq, kind, subject in fetch(connection, _REFERENCES, (tenant_id,))
    ]
