"""Decisions: facts go in, the strictest effect of the policies that apply comes out, and it is put on record.

    with connection.transaction():
        decision = decide(connection, declarations.policies, facts, subject="...", requested_by=who, now=now)
    require(decision)

`decide` evaluates (see `policy_evaluation`) and records in the caller's transaction: commit before `require` raises, so
that a refusal is on record too. What was decided is decided again by `replay`, from the stored rules and facts alone.
"""

from __future__ import annotations

import datetime as dt
import getpass
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psycopg

from resources.governance import approvals
from resources.governance.approvals import GrantedApproval, PendingApproval, RejectedApproval, Requested
from resources.governance.decision_points import POINTS, Facts
from resources.governance.policy_evaluation import (
    AppliedPolicy,
    Match,
    PolicySet,
    Problem,
    Verdict,
    concerns,
    evaluate,
)
from resources.governance.policy_files import Effect, Policy
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.declared import canonical_hash
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger


def current_user() -> str:
    """Name of the operating system's user: who asks, where nobody says otherwise."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


# --- deciding --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What is to be decided.

    Attributes:
        subject: what it is about, in words a person recognises: pipeline and range, dataset and version, file.
        occurrence: makes this time one of its own; without `#`. The same point, subject and occurrence are decided
            once: asking again gives the decision on record, unless that denied, which is decided anew. A fresh one by
            default.
        run_request: the work to start when an approval is granted that this decision needs.
    """

    facts: Facts
    subject: str
    requested_by: str
    occurrence: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_request: Requested | None = None


@dataclass(frozen=True)
class Decision:
    """A decision on record.

    Attributes:
        facts_hash: SHA-256 (hex) of the facts' canonical JSON.
        approval: where the effect is require_approval: the approval that lets it through, the request that waits,
            or the rejection.
    """

    decision_id: int
    question: Question
    verdict: Verdict
    facts_hash: str
    decided_at: dt.datetime
    evidence_seq: int
    approval: GrantedApproval | PendingApproval | RejectedApproval | None = None

    @property
    def effect(self) -> Effect:
        return self.verdict.effect

    @property
    def allowed(self) -> bool:
        """Whether what was asked may happen."""
        return self.effect in ("allow", "warn") or isinstance(self.approval, GrantedApproval)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Messages of the rules that only warn."""
        return tuple(match.message for match in self.verdict.matched if match.effect == "warn")


def decide(
    connection: psycopg.Connection, policies: Mapping[str, Policy] | PolicySet, facts: Facts, *, subject: str,
    requested_by: str, now: dt.datetime, occurrence: str | None = None, run_request: Requested | None = None,
) -> Decision:
    """Decide one thing and record it in the caller's transaction. See `decide_all`."""
    occurrence = {} if occurrence is None else {"occurrence": occurrence}
    question = Question(facts, subject, requested_by, run_request=run_request, **occurrence)
    return decide_all(connection, policies, [question], now)[0]


def decide_all(
    connection: psycopg.Connection, policies: Mapping[str, Policy] | PolicySet, questions: Sequence[Question],
    now: dt.datetime,
) -> list[Decision]:
    """Decide many things and record them, their evidence (`policy.decided`) and events in the caller's transaction.

    The tenants must be registered. Where approval is needed and none counts, a request is made, or the one that
    waits is named.

    Raises:
        BareCountError: declaration.invalid when a policy has other rules than its version had before.
    """
    ready = policies if isinstance(policies, PolicySet) else PolicySet.of(policies)
    missing = _missing(connection, ready)
    verdicts = [
        evaluate(ready, question.facts, [policy.name for policy in missing if concerns(policy, question.facts)])
        for question in questions
    ]
    _register(connection, ready, {applied for verdict in verdicts for applied in verdict.applied})
    standing, questions = _on_record(connection, questions)
    recorded = _record(connection, [
        (question, verdict) for question, verdict in zip(questions, verdicts, strict=True)
        if _identity(question) not in standing
    ], now)
    standing |= {_identity(decision.question): decision for decision in recorded}
    return [_with_approval(connection, ready, standing[_identity(question)], question, now) for question in questions]


def require(*decisions: Decision) -> None:
    """Pass when all of them allow; call it after the transaction that recorded them has been committed.

    Raises:
        BareCountError: policy.denied naming policy, rule and message; approval.required naming the request.
    """
    denied = [decision for decision in decisions
              if decision.effect == "deny" or isinstance(decision.approval, RejectedApproval)]
    if denied:
        raise _denied(denied)
    waiting = [decision for decision in decisions if not decision.allowed]
    if waiting:
        raise _needs_approval(waiting)


def _denied(decisions: list[Decision]) -> BareCountError:
    reasons = []
    for decision in decisions:
        if isinstance(decision.approval, RejectedApproval):
            found = decision.approval
            reasons.append(f"approval {found.approval_id} was rejected by {found.decided_by}: {found.reason}")
        reasons += [f"{m.message} (policy {m.policy} {m.version}, rule {m.rule})" for m in decision.verdict.decisive]
        reasons += [f"policy {p.policy}{f', rule {p.rule}' if p.rule else ''}: {p.message}"
                    for p in decision.verdict.problems]
    first = decisions[0]
    return BareCountError(
        ErrorCode.POLICY_DENIED,
        f"{first.question.facts.point.replace('_', ' ')} of {first.question.subject} for tenant "
        f"{first.question.facts.tenant} is denied: {' | '.join(reasons)}",
        hint="change what was asked, or the policy; "
        f"`barecount policies replay {first.decision_id}` shows the decision",
        details={"decisions": [decision.decision_id for decision in decisions], "reasons": reasons},
    )


def _needs_approval(decisions: list[Decision]) -> BareCountError:
    pending = {d.approval.approval_id: d for d in decisions if isinstance(d.approval, PendingApproval)}
    reasons = [f"{m.message} (policy {m.policy} {m.version}, rule {m.rule})"
               for decision in decisions for m in decision.verdict.decisive]
    first = decisions[0]
    numbers = " and ".join(str(number) for number in pending)
    resumes = any(decision.question.run_request is not None for decision in decisions)
    until = min(d.approval.expires_at for d in pending.values() if isinstance(d.approval, PendingApproval))
    return BareCountError(
        ErrorCode.APPROVAL_REQUIRED,
        f"{first.question.facts.point.replace('_', ' ')} of {first.question.subject} for tenant "
        f"{first.question.facts.tenant} waits for approval {numbers}: {' | '.join(reasons)}",
        hint=f"somebody else than {first.question.requested_by} says `barecount approvals approve {min(pending)} "
        f"--reason ...` before {until:%Y-%m-%d %H:%M} UTC; "
        + ("then it continues by itself where the Dagster daemon runs, or when the same command is given again"
           if resumes else "then give the same command again"),
        details={"approvals": list(pending), "decisions": [d.decision_id for d in decisions], "reasons": reasons},
    )


# --- recording -------------------------------------------------------------------------------------------

_Identity = tuple[str, str, str, str]


def _identity(question: Question) -> _Identity:
    return question.facts.tenant, question.facts.point, question.subject, question.occurrence


def _missing(connection: psycopg.Connection, policies: PolicySet) -> list[Policy]:
    """Policies that were mandatory when they were last asked, and are not declared any more."""
    rows = fetch(connection, _NEWEST_MANDATORY, (sorted(policies.names),))
    return [Policy.from_document(document) for (document,) in rows]


def _register(connection: psycopg.Connection, policies: PolicySet, applied: set[AppliedPolicy]) -> None:
    """Keep the rules of versions that are asked for the first time; refuse a version whose rules changed."""
    if not applied:
        return
    documents = {policy.name: policy for policy in policies.policies}
    names = sorted(item.policy for item in applied)
    known = {(name, version): digest for name, version, digest in fetch(connection, _REGISTERED, (names,))}
    for item in sorted(applied, key=lambda item: item.policy):
        registered = known.get((item.policy, item.version))
        if registered is None:
            fetch(connection, _REGISTER, (item.policy, item.version, item.content_hash,
                                          as_json(documents[item.policy].document)))
            registered = fetch(connection, _REGISTERED_HASH, (item.policy, item.version))[0][0]
        if registered != item.content_hash:
            raise BareCountError(
                ErrorCode.DECLARATION_INVALID,
                f"contracts/policies/{item.policy}.yaml: metadata.version: version {item.version} was asked with other "
                "rules before, and a version never changes",
                hint="give the changed policy a new version",
                details={"registered": registered, "found": item.content_hash},
            )


def _on_record(
    connection: psycopg.Connection, questions: Sequence[Question]
) -> tuple[dict[_Identity, Decision], list[Question]]:
    """Decisions that stand, and the questions with the occurrence they are decided under.

    Where the last answer was a denial, the question is decided again, as occurrence `<occurrence>#<number>`.
    """
    rows: dict[_Identity, list[Mapping[str, Any]]] = defaultdict(list)
    for row in fetch_dicts(connection, _KNOWN, ([question.occurrence for question in questions],)):
        rows[row["tenant_id"], row["point"], row["subject"], row["asked"]].append(row)
    standing: dict[_Identity, Decision] = {}
    decided_as = []
    for question in questions:
        if answers := rows.get(_identity(question)):
            row = answers[-1]
            name = f"{question.occurrence}#{len(answers)}" if row["effect"] == "deny" else row["occurrence"]
            question = replace(question, occurrence=name)
            if row["effect"] != "deny":
                standing[_identity(question)] = _decision_of(row, question)
        decided_as.append(question)
    return standing, decided_as


def _decision_of(row: Mapping[str, Any], question: Question | None = None) -> Decision:
    facts = POINTS[row["point"]].from_values(row["facts"])
    verdict = Verdict(
        row["effect"], tuple(Match(**item) for item in row["matched"]),
        tuple(Problem(**item) for item in row["problems"]), tuple(AppliedPolicy(**item) for item in row["applied"]),
        tuple(row["missing"]),
    )
    run_request = question.run_request if question else None
    recorded = Question(facts, row["subject"], row["requested_by"], row["occurrence"], run_request)
    return Decision(row["decision_id"], recorded, verdict, row["facts_hash"], row["decided_at"], row["evidence_seq"])


def _record(
    connection: psycopg.Connection, fresh: Sequence[tuple[Question, Verdict]], now: dt.datetime
) -> list[Decision]:
    if not fresh:
        return []
    hashes = [canonical_hash(question.facts.values()) for question, _ in fresh]
    numbers = ledger.append_many(connection, [
        ledger.Entry(
            question.facts.tenant, "policy.decided", f"{question.facts.point}/{question.subject}", question.occurrence,
            {
                "effect": verdict.effect, "facts_sha256": digest, "requested_by": question.requested_by,
                "policies": {item.policy: f"{item.version} {item.content_hash}" for item in verdict.applied},
                "matched": [f"{m.policy}/{m.rule}: {m.effect}" for m in verdict.matched],
                "problems": [f"{p.policy}/{p.rule}: {p.message}" for p in verdict.problems],
            },
        )
        for (question, verdict), digest in zip(fresh, hashes, strict=True)
    ])
    rows = [
        {
            "tenant_id": question.facts.tenant, "point": question.facts.point,
            "subject": question.subject, "occurrence": question.occurrence, "effect": verdict.effect,
            "facts": question.facts.values(), "facts_hash": digest,
            "applied": [asdict(item) for item in verdict.applied], "missing": list(verdict.missing),
            "matched": [asdict(item) for item in verdict.matched],
            "problems": [asdict(item) for item in verdict.problems], "requested_by": question.requested_by,
            "evidence_seq": seq,
        }
        for (question, verdict), digest, seq in zip(fresh, hashes, numbers, strict=True)
    ]
    ids = {(tenant, seq): decision_id for decision_id, tenant, seq in fetch(connection, _INSERT, (as_json(rows), now))}
    decisions = [
        Decision(ids[question.facts.tenant, seq], question, verdict, digest, now, seq)
        for (question, verdict), digest, seq in zip(fresh, hashes, numbers, strict=True)
    ]
    events.append(connection, *(_event(decision) for decision in decisions))
    return decisions


def _event(decision: Decision) -> events.Event:
    question, facts = decision.question, decision.question.facts
    return events.Event(
        facts.tenant, "policy.decided", f"{facts.point}/{question.subject}", question.occurrence,
        {"decision": decision.decision_id, "effect": decision.effect,
         "reasons": [match.message for match in decision.verdict.decisive]
         + [problem.message for problem in decision.verdict.problems]},
        facts.pipeline or None, decision.evidence_seq,
    )


# --- approvals -------------------------------------------------------------------------------------------


def _with_approval(
    connection: psycopg.Connection, policies: PolicySet, decision: Decision, question: Question, now: dt.datetime
) -> Decision:
    if decision.effect != "require_approval":
        return decision
    limits = [policy.spec.approval for policy in policies.policies
              if policy.name in {match.policy for match in decision.verdict.decisive}]
    wanted = approvals.Wanted(
        tenant_id=question.facts.tenant, key=_approval_key(policies, decision), point=question.facts.point,
        subject=question.subject, decision_id=decision.decision_id, requested_by=question.requested_by,
        run_request=question.run_request, occurrence=question.occurrence,
        reasons=tuple(match.message for match in decision.verdict.decisive), pipeline=question.facts.pipeline,
        request_hours=min((limit.request_hours for limit in limits), default=1),
        valid_hours=min((limit.valid_hours for limit in limits), default=1),
    )
    found = approvals.find_or_request(connection, wanted, now)
    return replace(decision, approval=found)


def _approval_key(policies: PolicySet, decision: Decision) -> str:
    """Identity of what is approved: point, subject, the rules that want approval, and the facts these looked at.

    Facts that no such rule names (how many runs there were today) may change between request and approval.
    """
    facts = decision.question.facts
    values, rules = facts.values(), []
    names: set[str] = set()
    wanted = {(match.policy, match.rule) for match in decision.verdict.decisive}
    for item in policies.by_point[facts.point]:
        for compiled in item.rules:
            if (item.policy.name, compiled.rule.id) in wanted and compiled.condition is not None:
                rules.append([item.policy.name, item.policy.version, compiled.rule.id])
                names |= set(compiled.condition.names) & values.keys()
    return canonical_hash({
        "tenant": facts.tenant, "point": facts.point, "subject": decision.question.subject, "rules": rules,
        "facts": {name: values[name] for name in sorted(names)},
    })


# --- looking back ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replayed:
    """A decision on record, and what the same rules say to the same facts now."""

    decision: Decision
    verdict: Verdict
    facts_intact: bool
    rules_intact: bool

    @property
    def same(self) -> bool:
        """Whether the answer is the recorded one, from unchanged rules and facts.

        Messages of evaluation errors are the evaluator's, and may change with it; which rule failed may not.
        """
        recorded, now = self.decision.verdict, self.verdict
        return (
            self.facts_intact and self.rules_intact
            and (recorded.effect, recorded.matched, recorded.missing) == (now.effect, now.matched, now.missing)
            and [(p.policy, p.rule) for p in recorded.problems] == [(p.policy, p.rule) for p in now.problems]
        )


def replay(connection: psycopg.Connection, decision_id: int) -> Replayed:
    """Evaluate a recorded decision again, from the stored rules and facts alone.

    Raises:
        BareCountError: declaration.unknown for a number without a decision; evidence.broken when stored rules are gone.
    """
    rows = fetch_dicts(connection, _BY_ID, (decision_id,))
    if not rows:
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"there is no decision {decision_id}",
                             hint="`barecount policies decisions` lists them")
    decision = _decision_of(rows[0])
    stored, intact = [], True
    for item in decision.verdict.applied:
        found = fetch(connection, "select document from platform.policy_version where policy = $1 and version = $2",
                      (item.policy, item.version))
        if not found:
            raise BareCountError(
                ErrorCode.EVIDENCE_BROKEN, f"the rules of {item.policy} {item.version} are not stored any more",
                hint="somebody removed them as the database's owner; the ledger has their hash")
        policy = Policy.from_document(found[0][0])
        intact &= policy.content_hash == item.content_hash
        stored.append(policy)
    facts = decision.question.facts
    verdict = evaluate(PolicySet.of(stored), facts, decision.verdict.missing)
    return Replayed(decision, verdict, canonical_hash(rows[0]["facts"]) == decision.facts_hash, intact)


def decisions(
    connection: psycopg.Connection, *, tenant_id: str | None = None, point: str | None = None,
    effect: str | None = None, limit: int = 50,
) -> list[Decision]:
    """Decisions on record, newest first."""
    return [_decision_of(row) for row in fetch_dicts(connection, _LIST, (tenant_id, point, effect, limit))]


_COLUMNS = """
decision_id, tenant_id, point, subject, occurrence, effect, facts, facts_hash, applied, missing, matched, problems,
requested_by, decided_at, evidence_seq
"""
_NEWEST_MANDATORY = """
select document from (
    select distinct on (policy) document
    from platform.policy_version
    where policy <> all ($1::text[])
    order by policy, registered_at desc, version desc
) newest
where (document #> '{spec,mandatory}')::boolean
"""
_REGISTERED = "select policy, version, content_hash from platform.policy_version where policy = any($1::text[])"
_REGISTERED_HASH = "select content_hash from platform.policy_version where policy = $1 and version = $2"
_REGISTER = """
insert into platform.policy_version (policy, version, content_hash, document) values ($1, $2, $3, $4::text::jsonb)
on conflict do nothing
"""
_KNOWN = f"select asked, {_COLUMNS} from platform.policy_decision where asked = any($1::text[]) order by decision_id"
_INSERT = """
insert into platform.policy_decision (
    tenant_id, point, subject, occurrence, effect, facts, facts_hash, applied, missing, matched, problems,
    requested_by, decided_at, evidence_seq)
select tenant_id, point, subject, occurrence, effect, facts, facts_hash, applied, missing, matched, problems,
    requested_by, $2::timestamptz, evidence_seq
from jsonb_to_recordset($1::text::jsonb) as r (
    tenant_id text, point text, subject text, occurrence text, effect text, facts jsonb, facts_hash text,
    applied jsonb, missing jsonb, matched jsonb, problems jsonb, requested_by text, evidence_seq bigint)
returning decision_id, tenant_id, evidence_seq
"""
_BY_ID = f"select {_COLUMNS} from platform.policy_decision where decision_id = $1"
_LIST = f"""
select {_COLUMNS} from platform.policy_decision
where ($1::text is null or tenant_id = $1) and ($2::text is null or point = $2) and ($3::text is null or effect = $3)
order by decision_id desc
limit $4::bigint
"""
