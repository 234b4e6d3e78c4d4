"""Decisions on record: once per occurrence, with evidence and event, and made again later with the same answer."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from resources.governance import approvals
from resources.governance.approvals import GrantedApproval, PendingApproval, RejectedApproval, RunRequested
from resources.governance.decision_points import Export, RunStart
from resources.governance.policies import Decision, decide, decisions, replay, require
from resources.governance.policy_files import Policy
from resources.runtime import events
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import ledger

NOW = dt.datetime(2026, 3, 2, 9, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
RUN = RunRequested("sales", "acme", dt.date(2026, 1, 1), dt.date(2026, 1, 31), {"orders": "somewhere"})


def policy(
    effect: str = "require_approval", condition: str = "runner_size == 'xlarge'", *, version: str = "1.0.0",
    name: str = "sizes", point: str = "run_start", mandatory: bool = False,
) -> Policy:
    return Policy.model_validate_json(f"""{{
        "apiVersion": "barecount/v1", "kind": "Policy",
        "metadata": {{"name": "{name}", "title": "Sizes", "description": "Sizes.", "version": "{version}",
                      "owners": [{{"name": "Ann", "email": "ann@example.com", "role": "owner"}}]}},
        "spec": {{"status": "active", "point": "{point}", "mandatory": {str(mandatory).lower()},
                  "approval": {{"request_hours": 4, "valid_hours": 2}},
                  "rules": [{{"id": "big", "condition": "{condition}", "effect": "{effect}",
                              "message": "too big"}}]}}
    }}""")


class Desk:
    """Asks one tenant's policies, each decision in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.transaction() as connection:
            fetch(connection, "select platform.register_tenant('acme', 'Acme', 'h')")

    def ask(self, *policies: Policy, now: dt.datetime = NOW, **named: Any) -> Decision:
        facts = RunStart(tenant="acme", pipeline="sales", **{"runner_size": "xlarge", **named.pop("facts", {})})
        options = {"subject": "sales January", "requested_by": "ann", "run_request": RUN, **named}
        with self.database.transaction() as connection:
            return decide(connection, {found.name: found for found in policies}, facts, now=now, **options)

    def answer(self, approval_id: int, by: str = "bob", *, approve: bool = True, now: dt.datetime = NOW) -> Any:
        with self.database.transaction() as connection:
            return approvals.answer(connection, approval_id, approve=approve, by=by, reason="we need it", now=now)

    def rows(self, statement: str) -> list[tuple]:
        with self.database.connect(autocommit=True) as connection:
            return fetch(connection, statement)


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def pending(decision: Decision) -> int:
    assert isinstance(decision.approval, PendingApproval)
    return decision.approval.approval_id


# --- recording -------------------------------------------------------------------------------------------


def test_a_decision_is_on_record_with_evidence_and_event(desk: Desk) -> None:
    decision = desk.ask(policy("deny"))
    assert not decision.allowed
    ((kind, subject, token),) = desk.rows("select kind, subject, run_token from platform.evidence")
    assert (kind, subject, token) == ("policy.decided", "run_start/sales January", decision.question.occurrence)
    with desk.database.connect(autocommit=True) as connection:
        (event,), _ = events.read(connection, events.Watermark())
        assert event.envelope["data"]["effect"] == "deny" and event.envelope["data"]["reasons"] == ["too big"]
        assert ledger.verify(connection, "acme").intact
        (found,) = decisions(connection, tenant_id="acme")
    assert (found.verdict, found.question.facts) == (decision.verdict, decision.question.facts)


def test_a_refusal_stays_on_record_and_names_policy_rule_and_reason(desk: Desk) -> None:
    with pytest.raises(BareCountError) as refused:
        require(desk.ask(policy("deny")))
    assert refused.value.code is ErrorCode.POLICY_DENIED
    assert "too big (policy sizes 1.0.0, rule big)" in refused.value.message
    assert desk.rows("select effect from platform.policy_decision") == [("deny",)]


@pytest.mark.parametrize("effect", ["allow", "warn"])
def test_allow_and_warn_let_it_happen(desk: Desk, effect: str) -> None:
    decision = desk.ask(policy(effect))
    require(decision)
    assert decision.warnings == (("too big",) if effect == "warn" else ())


def test_one_occurrence_is_decided_once_whatever_the_policy_says_by_then(desk: Desk) -> None:
    first = desk.ask(policy("allow"), occurrence="run-1")
    again = desk.ask(policy("deny", version="2.0.0"), occurrence="run-1")
    assert again.decision_id == first.decision_id and again.effect == "allow"
    assert desk.ask(policy("deny", version="2.0.0"), occurrence="run-2").effect == "deny"


def test_a_denial_is_decided_anew_when_it_is_asked_again(desk: Desk) -> None:
    denied = [desk.ask(policy("deny", "runs_today > 3"), occurrence="run-1", facts={"runs_today": 4}) for _ in range(2)]
    tomorrow = desk.ask(policy("deny", "runs_today > 3"), occurrence="run-1", facts={"runs_today": 0})
    assert [decision.question.occurrence for decision in (*denied, tomorrow)] == ["run-1", "run-1#1", "run-1#2"]
    assert tomorrow.allowed
    assert desk.ask(policy("deny", "runs_today > 3"), occurrence="run-1").decision_id == tomorrow.decision_id


def test_what_an_approval_let_through_once_stays_let_through(desk: Desk) -> None:
    desk.answer(pending(desk.ask(policy(), occurrence="run-1")))
    desk.ask(policy(), occurrence="run-1")
    later = NOW + 30 * HOUR
    assert desk.ask(policy(), occurrence="run-1", now=later).allowed
    assert not desk.ask(policy(), occurrence="run-2", now=later).allowed


def test_what_is_on_record_cannot_be_changed_even_by_the_owner(desk: Desk) -> None:
    desk.answer(pending(desk.ask(policy())))
    with psycopg.connect(desk.database.admin_url, autocommit=True) as connection:
        for table in ("policy_version", "policy_decision", "approval_request", "approval_verdict"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                connection.execute(f"delete from platform.{table}")


def test_a_version_whose_rules_changed_is_refused_with_its_file(desk: Desk) -> None:
    desk.ask(policy("allow"))
    with pytest.raises(BareCountError) as refused:
        desk.ask(policy("deny"))
    assert refused.value.code is ErrorCode.DECLARATION_INVALID
    assert "contracts/policies/sizes.yaml: metadata.version: version 1.0.0" in refused.value.message


def test_a_mandatory_policy_that_was_asked_once_cannot_just_disappear(desk: Desk) -> None:
    desk.ask(policy("allow", mandatory=True))
    gone = desk.ask()
    assert gone.effect == "deny" and gone.verdict.missing == ("sizes",)
    desk.ask(policy("allow", version="2.0.0"))  # no longer mandatory
    assert desk.ask().effect == "allow"


# --- replay ----------------------------------------------------------------------------------------------


def test_a_decision_is_made_again_with_the_same_answer_after_the_policy_changed(desk: Desk) -> None:
    old = desk.ask(policy("deny"))
    desk.ask(policy("allow", version="2.0.0"))
    broken = desk.ask(policy("deny", "1 / days > 0", version="3.0.0"), facts={"days": 0})
    with desk.database.connect(autocommit=True) as connection:
        found = replay(connection, old.decision_id)
        assert found.same and found.verdict == old.verdict
        assert replay(connection, broken.decision_id).same
        with pytest.raises(BareCountError, match="there is no decision 99"):
            replay(connection, 99)


def test_replay_sees_facts_and_rules_that_were_changed_behind_its_back(desk: Desk) -> None:
    first = desk.ask(policy("deny"))
    with psycopg.connect(desk.database.admin_url) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "update platform.policy_decision set facts = jsonb_set(facts, '{runner_size}', '\"small\"')")
    with desk.database.connect(autocommit=True) as connection:
        found = replay(connection, first.decision_id)
    assert not found.same and not found.facts_intact and found.verdict.effect == "allow"


# --- approvals -------------------------------------------------------------------------------------------


def test_what_needs_approval_waits_until_somebody_else_approves(desk: Desk) -> None:
    number = pending(desk.ask(policy()))
    with pytest.raises(BareCountError) as waits:
        require(desk.ask(policy()))
    assert waits.value.code is ErrorCode.APPROVAL_REQUIRED
    assert f"waits for approval {number}" in waits.value.message
    desk.answer(number)
    decision = desk.ask(policy())
    require(decision)
    assert decision.approval == GrantedApproval(number, "bob", NOW + 2 * HOUR)
    with desk.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").intact
        kinds = [kind for (kind,) in fetch(connection, "select distinct kind from platform.evidence order by 1")]
    assert kinds == ["approval.approved", "approval.requested", "policy.decided"]


def test_asking_again_makes_no_second_request(desk: Desk) -> None:
    assert pending(desk.ask(policy())) == pending(desk.ask(policy(), requested_by="carl"))


def test_who_asked_cannot_approve(desk: Desk) -> None:
    number = pending(desk.ask(policy()))
    with pytest.raises(BareCountError, match="was requested by ann, who cannot answer it") as refused:
        desk.answer(number, by="ann")
    assert refused.value.code is ErrorCode.APPROVAL_REFUSED
    assert not desk.ask(policy()).allowed


def test_the_database_itself_refuses_an_approval_by_who_asked(desk: Desk) -> None:
    number = pending(desk.ask(policy()))
    with desk.database.connect() as connection, pytest.raises(psycopg.errors.CheckViolation):
        fetch(connection, "insert into platform.approval_verdict values "
              "($1, 'acme', 'ann', 'ann', 'approved', 'mine', now(), now(), 1)", (number,))


def test_an_expired_approval_no_longer_counts(desk: Desk) -> None:
    number = pending(desk.ask(policy()))
    desk.answer(number, now=NOW + HOUR)
    assert desk.ask(policy(), now=NOW + 3 * HOUR - dt.timedelta(seconds=1)).allowed
    late = desk.ask(policy(), now=NOW + 3 * HOUR)
    assert not late.allowed and pending(late) != number


def test_a_request_that_nobody_answered_expires(desk: Desk) -> None:
    number = pending(desk.ask(policy()))
    with pytest.raises(BareCountError, match="expired on 2026-03-02 13:00 UTC"):
        desk.answer(number, now=NOW + 4 * HOUR)
    assert pending(desk.ask(policy(), now=NOW + 4 * HOUR)) != number


def test_a_rejection_holds_until_the_request_would_have_expired(desk: Desk) -> None:
    number = pending(desk.ask(policy()))
    desk.answer(number, approve=False)
    decision = desk.ask(policy())
    assert isinstance(decision.approval, RejectedApproval)
    with pytest.raises(BareCountError, match="was rejected by bob: we need it") as refused:
        require(decision)
    assert refused.value.code is ErrorCode.POLICY_DENIED
    assert pending(desk.ask(policy(), now=NOW + 4 * HOUR)) != number


def test_an_approval_is_for_what_was_asked_and_nothing_else(desk: Desk) -> None:
    rule = policy(condition="runner_size == 'xlarge' && days > 3")
    desk.answer(pending(desk.ask(rule, facts={"days": 4, "runs_today": 1})))
    assert desk.ask(rule, facts={"days": 4, "runs_today": 2}).allowed  # no rule looked at this fact
    assert not desk.ask(rule, facts={"days": 5}).allowed
    assert not desk.ask(rule, subject="sales February", facts={"days": 4}).allowed
    assert not desk.ask(policy(condition="runner_size == 'xlarge' && days > 2", version="2.0.0"),
                        facts={"days": 4}).allowed


def test_of_two_who_answer_at_once_one_is_told_that_the_other_was_first(desk: Desk) -> None:
    number = pending(desk.ask(policy()))
    barrier, outcomes = threading.Barrier(2), []

    def answer(by: str, approve: bool) -> None:
        barrier.wait()
        try:
            outcomes.append(desk.answer(number, by, approve=approve).state)
        except BareCountError as error:
            outcomes.append(error.message)

    both = [threading.Thread(target=answer, args=("bob", True)), threading.Thread(target=answer, args=("eve", False))]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    (kept,) = desk.rows("select decided_by, verdict from platform.approval_verdict")
    told = [outcome for outcome in outcomes if outcome not in ("approved", "rejected")]
    assert kept in [("bob", "approved"), ("eve", "rejected")]
    assert told == [f"approval {number} was {kept[1]} by {kept[0]} already"]


def test_two_that_want_the_same_at_once_make_one_request(desk: Desk) -> None:
    desk.ask(policy("allow", "days > 90", name="other"))  # registered before, so that only requests compete
    both = [threading.Thread(target=desk.ask, args=(policy(),)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert desk.rows("select count(*) from platform.approval_request") == [(1,)]
    assert desk.rows("select count(*) from platform.policy_decision where point = 'run_start'") == [(3,)]


def test_a_run_that_was_approved_is_started_once(desk: Desk) -> None:
    number = pending(desk.ask(policy()))

    def waiting(now: dt.datetime = NOW) -> list[Any]:
        with desk.database.connect(autocommit=True) as connection:
            return approvals.to_start(connection, now)

    assert waiting() == []
    desk.answer(number)
    assert [(item.approval_id, item.run_request) for item in waiting()] == [(number, RUN)]
    assert waiting(NOW + 2 * HOUR) == []  # the approval has ended
    desk.ask(policy())
    assert waiting() == []


def test_approvals_are_listed_with_their_state(desk: Desk, new_database: Callable[[], Database]) -> None:
    first = pending(desk.ask(policy()))
    second = pending(desk.ask(policy(), subject="other"))
    desk.answer(first, approve=False)
    with desk.database.connect(autocommit=True) as connection:
        (waiting,) = approvals.listed(connection, NOW)
        everything = approvals.listed(connection, NOW, everything=True)
        later = approvals.listed(connection, NOW + 5 * HOUR, everything=True)
    assert (waiting.approval_id, waiting.reasons, waiting.requested_by) == (second, ("too big",), "ann")
    assert [item.state for item in everything] == ["pending", "rejected"]
    assert [item.state for item in later] == ["expired", "rejected"]


def test_other_points_are_asked_with_their_own_facts(desk: Desk) -> None:
    rule = policy("deny", "classification == 'restricted'", name="exports", point="export")
    with desk.database.transaction() as connection:
        decision = decide(connection, {"exports": rule}, Export(tenant="acme", kind="quarantine",
                          classification="restricted"), subject="file", requested_by="ann", now=NOW)
    assert decision.effect == "deny"
