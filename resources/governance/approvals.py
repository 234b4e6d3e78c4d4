"""Approvals: somebody else than who asked says yes or no, with a reason, within a time.

A request names exactly what it is for by its key (see `policies`). It waits until it expires; a granted approval counts
until `valid_until`, and a rejection until the request would have expired. Afterwards the next decision makes a new
request. Answers are rows that are only ever added, one per request: of two people who answer at once, one is told.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger

_KEY_LOCKS = 0x0BD0  # first key of the two-key advisory locks of approvals: by key, and by number
_NUMBER_LOCKS = 0x0BD1


@dataclass(frozen=True)
class RunRequested:
    """The run that waits: pipeline, tenant, inclusive range of days, paths given for sources, and how it was asked.

    With a `granularity` it is a back-fill, partition by partition: day, week, month or fiscal_period.
    """

    pipeline: str
    tenant_id: str
    start: dt.date
    end: dt.date
    source_paths: Mapping[str, str] = field(default_factory=dict)
    backfill: bool = False
    granularity: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "start": self.start.isoformat(), "end": self.end.isoformat()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunRequested:
        """Inverse of `to_json`."""
        days = {name: dt.date.fromisoformat(document[name]) for name in ("start", "end")}
        return cls(**{**document, **days})


@dataclass(frozen=True)
class ReplayRequested:
    """The computing again that waits: run token, versions (recorded or current), and whether it would publish."""

    pipeline: str
    tenant_id: str
    replay_of: str
    versions: str
    publishes: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RecordsRequested:
    """The replay of refused records that waits: which, how they are changed, and why.

    Attributes:
        narrowed: dataset, run, reason, field; only those that were given.
        ids: numbers of records; none for all that match.
        values: to set, by field.
        edits: path of an edited export. Its content is part of what is approved.
    """

    pipeline: str
    tenant_id: str
    narrowed: Mapping[str, str]
    ids: Sequence[int] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    edits: str | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Requested = RunRequested | ReplayRequested | RecordsRequested
"""Work that is started once it is approved."""


def _requested(document: Mapping[str, Any]) -> Requested:
    if "replay_of" in document:
        return ReplayRequested(**document)
    return RecordsRequested(**document) if "narrowed" in document else RunRequested.from_json(document)


@dataclass(frozen=True)
class GrantedApproval:
    """An approval that counts until `valid_until`."""

    approval_id: int
    decided_by: str
    valid_until: dt.datetime


@dataclass(frozen=True)
class PendingApproval:
    """A request that waits for an answer until `expires_at`."""

    approval_id: int
    expires_at: dt.datetime


@dataclass(frozen=True)
class RejectedApproval:
    """A request that was refused; nobody needs to be asked again before `expires_at`."""

    approval_id: int
    decided_by: str
    reason: str
    expires_at: dt.datetime


@dataclass(frozen=True)
class Wanted:
    """What approval is wanted for."""

    tenant_id: str
    key: str
    point: str
    subject: str
    decision_id: int
    requested_by: str
    run_request: Requested | None
    occurrence: str
    reasons: tuple[str, ...]
    pipeline: str
    request_hours: int
    valid_hours: int


@dataclass(frozen=True)
class Approval:
    """A request with its answer, as people see it.

    Attributes:
        state: pending, approved, rejected, expired (nobody answered in time, or the approval no longer counts).
        used_by: number of the first decision it let through.
    """

    approval_id: int
    tenant_id: str
    pipeline: str
    point: str
    subject: str
    reasons: tuple[str, ...]
    requested_by: str
    requested_at: dt.datetime
    expires_at: dt.datetime
    state: str
    decision_id: int
    run_request: Requested | None = None
    decided_by: str | None = None
    decided_at: dt.datetime | None = None
    reason: str | None = None
    valid_until: dt.datetime | None = None
    used_by: int | None = None


def find_or_request(
    connection: psycopg.Connection, wanted: Wanted, now: dt.datetime
) -> GrantedApproval | PendingApproval | RejectedApproval:
    """The approval that counts at `now`, else the newest answer or request that does, else a new request.

    A decision that an approval let through once stays let through. In the caller's transaction; two that want the same
    wait for each other, so that one request is made.
    """
    if settled := fetch(connection, _SETTLED, (wanted.decision_id,)):
        return GrantedApproval(*settled[0])
    fetch(connection, "select pg_advisory_xact_lock($1, $2)", (_KEY_LOCKS, _lock(f"{wanted.tenant_id}/{wanted.key}")))
    rows = fetch_dicts(connection, _OF_KEY, (wanted.tenant_id, wanted.key, now))
    if rows:
        row = rows[0]
        if row["verdict"] == "approved":
            fetch(connection, _USE, (row["approval_id"], wanted.decision_id, now))
            return GrantedApproval(row["approval_id"], row["decided_by"], row["valid_until"])
        if row["verdict"] == "rejected":
            return RejectedApproval(row["approval_id"], row["decided_by"], row["reason"], row["expires_at"])
        return PendingApproval(row["approval_id"], row["expires_at"])
    return _request(connection, wanted, now)


def _request(connection: psycopg.Connection, wanted: Wanted, now: dt.datetime) -> PendingApproval:
    number = fetch(connection, "select nextval('platform.approval_request_approval_id_seq')")[0][0]
    expires_at = now + dt.timedelta(hours=wanted.request_hours)
    run_request = wanted.run_request.to_json() if wanted.run_request else None
    facts = {
        "approval": number, "decision": wanted.decision_id, "point": wanted.point, "subject": wanted.subject,
        "reasons": list(wanted.reasons), "requested_by": wanted.requested_by, "expires_at": expires_at.isoformat(),
        "run": run_request,
    }
    seq = ledger.append(
        connection, ledger.Entry(wanted.tenant_id, "approval.requested", str(number), wanted.occurrence, facts))
    fetch(connection, _REQUEST, (
        number, wanted.tenant_id, wanted.key, wanted.decision_id, wanted.point, wanted.subject,
        None if run_request is None else as_json(run_request), wanted.requested_by, now, expires_at,
        wanted.valid_hours, seq))
    events.append(connection, events.Event(
        wanted.tenant_id, "approval.requested", str(number), wanted.occurrence, facts, wanted.pipeline or None, seq))
    return PendingApproval(number, expires_at)


def answer(
    connection: psycopg.Connection, approval_id: int, *, approve: bool, by: str, reason: str, now: dt.datetime
) -> Approval:
    """Approve or reject a request, in the caller's transaction.

    Raises:
        BareCountError: declaration.unknown for a number without a request; approval.refused when it was answered
            already, has expired, or `by` is who asked.
    """
    fetch(connection, "select pg_advisory_xact_lock($1, $2)", (_NUMBER_LOCKS, _lock(str(approval_id))))
    request = get(connection, approval_id, now)
    _require_answerable(request, by, reason)
    valid_until = None
    if approve:
        valid_hours = fetch(connection, "select valid_hours from platform.approval_request where approval_id = $1",
                            (approval_id,))[0][0]
        valid_until = now + dt.timedelta(hours=valid_hours)
    kind = "approval.approved" if approve else "approval.rejected"
    facts = {
        "approval": approval_id, "decision": request.decision_id, "point": request.point, "subject": request.subject,
        "requested_by": request.requested_by, "decided_by": by, "reason": reason,
        "valid_until": valid_until.isoformat() if valid_until else None,
    }
    token = f"approval-{approval_id}"
    seq = ledger.append(connection, ledger.Entry(request.tenant_id, kind, str(approval_id), token, facts))
    fetch(connection, _ANSWER, (
        approval_id, request.tenant_id, request.requested_by, by, kind.removeprefix("approval."), reason, now,
        valid_until, seq))
    events.append(connection, events.Event(
        request.tenant_id, kind, str(approval_id), token, facts, request.pipeline or None, seq))
    return get(connection, approval_id, now)


def _require_answerable(request: Approval, by: str, reason: str) -> None:
    problem = hint = None
    if request.decided_by is not None:
        problem = f"was {request.state if request.state != 'expired' else 'answered'} by {request.decided_by} already"
        hint = "one answer counts; the next decision that needs one makes a new request"
    elif request.state == "expired":
        problem = f"expired on {request.expires_at:%Y-%m-%d %H:%M} UTC"
        hint = "ask again: give the command that needed it once more"
    elif by == request.requested_by:
        problem = f"was requested by {by}, who cannot answer it"
        hint = "somebody else has to; --as NAME says who you are"
    elif not by.strip() or not reason.strip():
        problem = "needs a name and a reason"
        hint = "give --reason in words that an auditor understands"
    if problem:
        raise BareCountError(ErrorCode.APPROVAL_REFUSED, f"approval {request.approval_id} {problem}", hint=hint)


def get(connection: psycopg.Connection, approval_id: int, now: dt.datetime) -> Approval:
    """One request with its answer. Raises BareCountError declaration.unknown for a number without one."""
    rows = fetch_dicts(connection, _SELECT + "where r.approval_id = $2::bigint", (now, approval_id))
    if not rows:
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no approval {approval_id}",
                             hint="`barecount approvals list --all` lists them")
    return _approval(rows[0])


def listed(
    connection: psycopg.Connection, now: dt.datetime, *, tenant_id: str | None = None, everything: bool = False,
    limit: int = 100,
) -> list[Approval]:
    """Requests that wait, oldest first; with `everything` also those that do not, newest first."""
    rows = fetch_dicts(connection, _LIST_ALL if everything else _LIST_PENDING, (now, tenant_id, limit))
    return [_approval(row) for row in rows]


def to_start(connection: psycopg.Connection, now: dt.datetime) -> list[Approval]:
    """Granted approvals that count, let nothing through yet, and have a run waiting for them; oldest first."""
    return [_approval(row) for row in fetch_dicts(connection, _TO_START, (now,))]


def _approval(row: Mapping[str, Any]) -> Approval:
    run_request = row["run_request"]
    return Approval(**{
        **row, "reasons": tuple(row["reasons"]),
        "run_request": None if run_request is None else _requested(run_request),
    })


def _lock(text: str) -> int:
    """Signed 32-bit key of an advisory lock."""
    return zlib.crc32(text.encode()) - 2**31


_OF_KEY = """
select r.approval_id, r.expires_at, v.verdict, v.decided_by, v.reason, v.valid_until
from platform.approval_request r
left join platform.approval_verdict v using (approval_id)
where r.tenant_id = $1 and r.approval_key = $2
    and case v.verdict when 'approved' then v.valid_until > $3 else r.expires_at > $3 end
order by r.approval_id desc
limit 1
"""
_SETTLED = """
select v.approval_id, v.decided_by, v.valid_until
from platform.approval_use u join platform.approval_verdict v using (approval_id)
where u.decision_id = $1
"""
_USE = """
insert into platform.approval_use (approval_id, decision_id, used_at) values ($1, $2, $3) on conflict do nothing
"""
_REQUEST = """
insert into platform.approval_request (
    approval_id, tenant_id, approval_key, decision_id, point, subject, run_request, requested_by, requested_at,
    expires_at, valid_hours, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $11, $12)
"""
_ANSWER = """
insert into platform.approval_verdict (
    approval_id, tenant_id, requested_by, decided_by, verdict, reason, decided_at, valid_until, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_SELECT = """
select r.approval_id, r.tenant_id, d.facts ->> 'pipeline' as pipeline, r.point, r.subject, r.requested_by,
    r.requested_at, r.expires_at, r.decision_id,
    r.run_request, v.decided_by, v.decided_at, v.reason, v.valid_until,
    (select min(u.decision_id) from platform.approval_use u where u.approval_id = r.approval_id) as used_by,
    (select coalesce(jsonb_agg(m ->> 'message'), '[]') from jsonb_array_elements(d.matched) m
     where m ->> 'effect' = 'require_approval') as reasons,
    case
        when v.verdict = 'rejected' then 'rejected'
        when v.verdict = 'approved' and v.valid_until > $1::timestamptz then 'approved'
        when v.verdict is null and r.expires_at > $1::timestamptz then 'pending'
        else 'expired'
    end as state
from platform.approval_request r
join platform.policy_decision d using (decision_id)
left join platform.approval_verdict v using (approval_id)
"""
_LIST_PENDING = _SELECT + """
where ($2::text is null or r.tenant_id = $2) and v.verdict is null and r.expires_at > $1::timestamptz
order by r.approval_id
limit $3::bigint
"""
_LIST_ALL = _SELECT + """
where ($2::text is null or r.tenant_id = $2)
order by r.approval_id desc
limit $3::bigint
"""
_TO_START = _SELECT + """
where r.run_request is not null and v.verdict = 'approved' and v.valid_until > $1::timestamptz
    and not exists (select from platform.approval_use u where u.approval_id = r.approval_id)
order by r.approval_id
"""
