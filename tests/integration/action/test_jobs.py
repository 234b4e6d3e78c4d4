"""Events become jobs once, and jobs are followed to their end, whoever calls and how often."""

from __future__ import annotations

import datetime as dt
import json
import threading
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from barecount_assets.action_work import ActionWork
from barecount_assets.cli import status
from resources.action import jobs, people, templates
from resources.action.delivery import endpoints, queue
from resources.action.delivery.model import Delivery, Message
from resources.action.model import JobState
from resources.governance.actions import ActionRule, ActionTemplate
from resources.runtime import events
from resources.runtime.database import Database, as_json, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings
from resources.storage import published_store
from resources.trust import ledger
from tests.integration.action.engine_world import NOW, World, rule

MINUTE = dt.timedelta(minutes=1)


@pytest.fixture
def world(settings: Settings, database: Database) -> World:
    return World.make(settings, database).publish()


def make(settings: Settings, database: Database, *rules: ActionRule) -> World:
    return World.make(settings, database, *rules).publish()


def test_an_event_becomes_a_rendered_job_with_a_delivery_per_endpoint(world: World) -> None:
    world.happen(59, "66.41")
    found = world.advance()
    (job,) = world.jobs()
    assert (found.events, found.jobs, found.dispatched) == (2, {"queued": 1}, 1), job.reason
    assert (job.state, job.period, job.dimensions) == (
        "running", "2026-02", {"business_unit": "north", "grain": "month"})
    assert job.message is not None and job.message["title"] == "Too high: dso of acme is 66.41 days (2026-02)"
    assert job.message["data"]["facts"]["value"] == "66.41" and job.message["step"] == "open"
    (delivery,) = world.rows("select delivery_key, endpoint, origin, message -> 'correlation' from platform.delivery")
    assert delivery == (f"{job.job_key}.ops", "ops", f"action_job:{job.job_id}", job.correlation)
    told = world.rows("select type from platform.event where type like 'barecount.action.%' order by position")
    assert [kind for (kind,) in told] == ["barecount.action.queued", "barecount.action.sent"]
    with world.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").intact


def test_done_is_done(world: World) -> None:
    world.happen(61, 50, 62)
    world.advance()
    before = world.rows("select * from platform.action_job order by job_id")
    assert world.advance().idle
    with world.database.transaction() as connection:
        fetch(connection, "delete from platform.event_reader")  # a lost watermark: everything is read again
    again = world.advance()
    assert (again.events, again.jobs, again.dispatched) == (3, {}, 0)
    assert world.rows("select * from platform.action_job order by job_id") == before


def test_many_that_evaluate_at_once_make_each_job_once(world: World) -> None:
    for month in range(1, 9):
        world.happen(*[70] * month, unit=f"u{month}")
    failures: list[Exception] = []

    def work() -> None:
        try:
            jobs.advance(world.database, world.declarations, world.book, lambda: NOW, page=3)
        except Exception as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    found = world.rows("select dimensions ->> 'business_unit', count(*)::int, count(distinct period)::int "
                       "from platform.action_job group by 1 order by 1")
    assert found == [(f"u{n}", n, n) for n in range(1, 9)]
    assert world.rows("select count(*)::int from platform.delivery") == [(36,)]


def test_the_database_itself_refuses_a_second_job_of_the_same_subject_period_and_window(world: World) -> None:
    world.happen(61)
    world.advance()
    columns = ("tenant_id, rule, rule_version, kind, subject, dimensions, period, window_name, severity, template, "
               "route, correlation, draft, state, reason, decided_at, changed_at, evidence_seq")
    with pytest.raises(psycopg.errors.UniqueViolation), world.database.transaction() as connection:
        fetch(connection, f"insert into platform.action_job (job_key, {columns}) "
                          f"select 'another key', {columns} from platform.action_job")


def test_a_job_follows_its_deliveries(world: World) -> None:
    world.happen(61)
    world.advance()
    assert world.settle() == 0
    world.finish_deliveries("dlq")
    assert world.settle() == 1 and world.settle() == 0
    (job,) = world.jobs()
    assert job.state == "dlq" and job.reason.startswith("given up at ops")
    world.finish_deliveries()
    assert world.settle() == 1
    assert world.jobs()[0].state == "completed", "a replayed delivery completes its job"
    kinds = world.rows("select kind from platform.evidence "
                       "where tenant_id = 'acme' and kind like 'action.%' order by seq")
    assert [kind for (kind,) in kinds] == ["action.decided", "action.sent", "action.dlq", "action.completed"]


def test_without_a_published_template_a_job_fails_says_so_and_can_be_retried(
    settings: Settings, database: Database
) -> None:
    world = World.make(settings, database)
    world.happen(61)
    assert world.advance().jobs == {"failed": 1}
    (job,) = world.jobs()
    assert "template kpi_alert is not published for tenant acme" in job.reason
    with world.database.transaction() as connection:
        assert people.retry(connection, world.declarations, job.job_id, by="ann", now=NOW) == "failed"
    world.publish()
    with world.database.transaction() as connection:
        assert people.retry(connection, world.declarations, job.job_id, by="ann", now=NOW) == "queued"
    assert world.advance().dispatched == 1
    with pytest.raises(BareCountError, match="is running, only failed"), database.transaction() as connection:
        people.retry(connection, world.declarations, job.job_id, by="ann", now=NOW)


def test_a_route_to_an_endpoint_nobody_registered_fails_the_job_and_no_other(
    settings: Settings, database: Database
) -> None:
    world = make(settings, database, rule(), rule("lost", route=["ops", "nowhere"]))
    world.happen(61)
    world.advance()
    assert [(job.rule, job.state) for job in world.jobs()] == [("lost", "failed"), ("too_high", "running")]
    assert "no endpoint nowhere is registered" in world.jobs(rule="lost")[0].reason
    assert world.rows("select endpoint from platform.delivery") == [("ops",)]


def test_a_template_that_cannot_be_rendered_fails_its_job_and_stops_nothing(
    settings: Settings, database: Database
) -> None:
    world = make(settings, database)
    world.happen(61, 62, unit="north", period_start=None)
    world.happen(61, unit="south", value="61", dimensions={"business_unit": "x" * 300, "note": "y" * 300})
    assert world.advance().events == 3
    assert {job.state for job in world.jobs()} == {"running"}


def test_approval_comes_before_everything(settings: Settings, database: Database) -> None:
    world = make(settings, database, rule(approval={"required": True, "expires": "2h"}))
    world.happen(61, 62, 63)
    world.advance()
    first, second, third = world.jobs()
    assert {job.state for job in world.jobs()} == {"pending approval"}
    with database.transaction() as connection:
        people.approve(connection, first.job_id, by="bob", approve=True, reason="real", now=NOW)
        people.approve(connection, second.job_id, by="bob", approve=False, reason="known", now=NOW)
    assert world.advance().dispatched == 1
    with pytest.raises(BareCountError) as refused, database.transaction() as connection:
        people.approve(connection, first.job_id, by="eve", approve=True, reason="again", now=NOW)
    assert refused.value.code is ErrorCode.ACTION_CONFLICT
    world.advance(121)
    assert [(job.state, job.approved_by) for job in world.jobs()] == [
        ("running", "bob"), ("failed", None), ("failed", None)]
    assert world.jobs()[2].reason == "nobody approved it in time"
    with database.transaction() as connection:
        state = people.retry(connection, world.declarations, third.job_id, by="ann", now=world.now)
    assert state == JobState.PENDING_APPROVAL, "a retry is no way around the approval"


def test_time_alone_makes_grouped_debounced_and_escalated_jobs(settings: Settings, database: Database) -> None:
    world = make(
        settings, database, rule(aggregate={"group_by": ["kpi"], "group_wait": "1m"}),
        rule("held", debounce={"hold": "5m"}), rule("urgent", escalation={"after": "10m", "route": ["ops"]}))
    world.happen(61, 62)
    world.happen(63, unit="south")
    world.advance()
    assert {job.rule for job in world.jobs()} == {"urgent"}
    with database.connect(autocommit=True) as connection:
        assert not jobs.waiting(connection, world.book, world.now)
        assert jobs.waiting(connection, world.book, world.now + MINUTE)
    world.advance(1)
    (grouped,) = world.jobs(rule="too_high")
    assert len(grouped.draft["occurrences"]) == 3
    acked = world.jobs(rule="urgent")[0]
    with database.transaction() as connection:
        people.acknowledge(connection, acked.job_id, by="ann", now=world.now)
    real = dt.datetime.now(dt.UTC)  # a hold begins with the event, which has the time of the database
    world.now = real + 6 * MINUTE
    world.advance()
    assert len(world.jobs(rule="held")) == 2
    for _ in range(2):
        escalated = [job for job in world.jobs(rule="urgent") if job.kind == "escalation"]
        assert len(escalated) == 2, "of three, one was acknowledged"
        world.advance(60)


def test_a_silence_suppresses_its_tenants_jobs_and_ends(world: World) -> None:
    with world.database.transaction() as connection:
        number = people.silence(connection, "acme", rule=None, labels={"business_unit": "north"}, starts_at=NOW,
                              ends_at=NOW + 60 * MINUTE, reason="migration", by="ann")
    world.happen(61)
    world.happen(61, unit="south")
    world.happen(61, tenant="globex")
    world.advance()
    assert sorted((j.tenant_id, j.dimensions["business_unit"], j.state) for j in world.jobs()) == [
        ("acme", "north", "suppressed"), ("acme", "south", "running"), ("globex", "north", "running")]
    with pytest.raises(BareCountError), world.database.transaction() as connection:
        people.unsilence(connection, number, by="eve", now=NOW, tenant_id="globex")
    with world.database.transaction() as connection:
        people.unsilence(connection, number, by="ann", now=NOW)
        assert people.silences(connection, NOW + MINUTE) == []
        assert people.retry(connection, world.declarations, world.jobs(state="suppressed")[0].job_id, by="ann",
                          now=NOW) == "queued"


def test_a_rule_may_answer_failed_jobs_but_never_itself(settings: Settings, database: Database) -> None:
    world = make(settings, database, rule("lost", route=["nowhere"]),
                 rule("alarm", subject={"event": "action.failed"}, condition="data.severity == 'warning'",
                      route=["nowhere"]))
    world.happen(61)
    for _ in range(4):
        world.advance()
    assert [job.rule for job in world.jobs()] == ["lost", "alarm"], "the alarm's own failure makes no event"


def fits_any_event(world: World) -> World:
    """The shipped template with a body that reads nothing of a KPI."""
    document = json.loads(world.declarations.action_template("kpi_alert").model_dump_json(by_alias=True))
    body = {"title": "{{ event.type }} of {{ event.subject }}", "text": "See the record."}
    document["spec"] |= {"body": body, "recovery": body}
    template = ActionTemplate.model_validate_json(json.dumps(document))
    world.declarations = replace(world.declarations, action_templates={template.name: template})
    return world


def test_a_rule_may_answer_dead_letters_and_its_own_dead_letter_is_no_event(
    settings: Settings, database: Database
) -> None:
    """The alarm goes to the endpoint that is broken: without care it would answer itself for ever."""
    every_time = {"group_by": ["subject"], "group_wait": "1s", "group_interval": "1s"}
    world = World.make(settings, database, rule(), rule(
        "alarm", subject={"event": "delivery.dlq"}, condition="data.attempt >= 1", aggregate=every_time))
    fits_any_event(world).publish()
    world.receive_at("https://10.0.0.1")  # no tenant may go there: given up at once
    world.happen(61)
    work = ActionWork.of(world.environment, lambda: world.now)
    for _ in range(5):
        world.advance(minutes=1)
        work.deliver()
        world.settle()
    assert [(job.rule, job.state) for job in world.jobs()] == [("too_high", "dlq"), ("alarm", "dlq")]
    assert world.rows("select count(*) from platform.dead_letter") == [(2,)], "both are on record"
    assert world.rows("select count(*) from platform.event where type = 'barecount.delivery.dlq'") == [(1,)]
    kinds = [kind for (kind,) in world.rows(
        "select kind from platform.evidence where subject = 'ops' and kind like 'delivery.%'")]
    assert kinds == ["delivery.dlq", "delivery.dlq"]


def test_status_says_what_of_a_tenants_actions_waits_for_somebody(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make(settings, database, rule("lost", route=["nowhere"]), rule("asks", approval={"required": True}))
    world.happen(61)
    world.advance()
    with database.transaction() as connection:
        assert people.attention(connection) == [people.Attention("acme", 1, 1, 0, [])]
        queue.enqueue(connection, Delivery("globex", "k", "ops", Message("t", "x")), now=NOW)
        endpoints.disable(connection, "globex", "ops", "by the test", now=NOW)
        assert people.attention(connection)[1:] == [people.Attention("globex", 0, 0, 0, ["ops"])]
    status.show(world.environment, as_json=False)
    shown = capsys.readouterr().out
    assert "approve acme: 1 actions: `barecount actions jobs --tenant acme --state 'pending approval'`" in shown
    assert "failed actions acme: 1: `barecount actions jobs --tenant acme --state failed`" in shown
    assert "endpoints that take nothing globex: ops: `barecount actions endpoints list --tenant globex`" in shown
    status.show(world.environment, as_json=True)
    found = {row["tenant"]: row["actions"] for row in json.loads(capsys.readouterr().out)}
    assert (found["acme"]["failed"], found["globex"]["unwell"]) == (1, ["ops"])


def test_one_tenant_reaches_nothing_of_another(world: World) -> None:
    world.happen(61)
    world.happen(61, tenant="globex")
    world.advance()
    ours, theirs = sorted(world.jobs(), key=lambda job: job.tenant_id)
    assert [job.tenant_id for job in world.jobs(tenant_id="acme")] == ["acme"]
    assert ours.job_key != theirs.job_key and ours.correlation != theirs.correlation
    assert "globex" not in as_json([ours.draft, ours.message])
    with world.database.transaction() as connection:
        for call in (
            lambda: people.get(connection, theirs.job_id, "acme"),
            lambda: people.acknowledge(connection, theirs.job_id, by="eve", now=NOW, tenant_id="acme"),
            lambda: people.approve(connection, theirs.job_id, by="eve", approve=True, reason="x", now=NOW,
                                 tenant_id="acme"),
            lambda: people.retry(connection, world.declarations, theirs.job_id, by="eve", now=NOW, tenant_id="acme"),
        ):
            with pytest.raises(BareCountError, match=f"no job {theirs.job_id} of tenant acme"):
                call()
    assert world.rows("select distinct d.tenant_id = j.tenant_id from platform.delivery d join platform.action_job j "
                      "on d.origin = 'action_job:' || j.job_id") == [(True,)]


# History -----------------------------------------------------------------------------------------------------


def published_dso(world: World, tenant: str, values: list[float | None]) -> None:
    """A first published version of dso for one business unit, a value per month from 2025-01 on."""
    contract = world.declarations.contract("order_to_cash.dso", "activation")
    with world.database.transaction() as connection:
        published_store.ensure(connection, "dso", contract.column_types)
        for number, value in enumerate(values):
            start = dt.date(2025 + number // 12, number % 12 + 1, 1)
            fetch(connection, "insert into published.snapshot__dso (version, tenant_id, grain, period, period_start, "
                              "business_unit, value) values (1, $1, 'month', $2, $3, 'north', $4::numeric)",
                  (tenant, start.isoformat()[:7], start, value))


def test_history_and_score_come_from_the_publication_the_event_tells_of(settings: Settings, database: Database) -> None:
    spec: dict[str, Any] = {"condition": "score > 3.5 && change > 5.0", "history": {"periods": 3},
                            "anomaly": {"periods": 12, "least": 5}}
    world = make(settings, database, rule(**spec))
    values = [50, 51, 49, 52, 50, 51, 48, 50, 52, 49, 51, 50, 70]
    published_dso(world, "acme", [*values, 90])
    published_dso(world, "globex", [1000.0] * 14)
    world.happen("70", period="2026-01", period_start="2026-01-01")
    world.happen("50", period="2025-12", period_start="2025-12-01")
    world.advance()
    (job,) = world.jobs()
    facts = job.draft["occurrences"][0]["facts"]
    assert (float(facts["prior"]), float(facts["change"]), float(facts["mean"])) == (50, 20, 50)
    assert float(facts["deviation"]) == pytest.approx(1.0)
    assert float(facts["expected"]) == 50.0, "the median of the twelve months before; the month after is not in it"
    assert float(facts["score"]) == pytest.approx(20 / 1.4826)
    assert job.message is not None and "Expected 50.00, score 13.5." in job.message["text"]


def test_a_seasonal_window_takes_the_same_place_of_each_season(settings: Settings, database: Database) -> None:
    world = make(settings, database, rule(condition="score > 3.5", anomaly={"periods": 3, "season": 3, "least": 3}))
    published_dso(world, "acme", [100, 1, 1, 101, 1, 1, 99, 1, 1, 100, 1, 30])
    world.happen("100", period="2025-10", period_start="2025-10-01")
    world.happen("30", period="2025-12", period_start="2025-12-01")
    with database.connect(autocommit=True) as connection:
        from resources.action import history

        signals = history.signals_of(events.read(connection, events.Watermark())[0])
        found = history.with_history(connection, world.book, world.declarations.kpis, [
            s for s in signals if s.type == "barecount.kpi.changed"])
    by_period = {signal.period: signal.series_facts["too_high"] for signal in found}
    assert by_period["2025-10"].expected == 100 and by_period["2025-10"].score == 0
    assert (by_period["2025-12"].expected, by_period["2025-12"].score) == (1, None), "a window that does not vary"


# Templates ---------------------------------------------------------------------------------------------------


def test_publishing_needs_a_dry_run_of_exactly_this_content(settings: Settings, database: Database) -> None:
    world = World.make(settings, database)
    template = world.declarations.action_template("kpi_alert")
    samples = templates.samples(settings.project_dir, "kpi_alert")
    run = templates.dry_run(template, samples, templates.example_parameters(template))
    other = template.model_copy(update={"metadata": template.metadata.model_copy(update={"title": "another"})})
    other = other.with_hash("")
    with database.transaction() as connection:
        templates.record_dry_run(connection, "acme", run, NOW)
        templates.record_dry_run(connection, "acme", run, NOW)
        for tenant, found in (("acme", other), ("globex", template)):
            with pytest.raises(BareCountError) as untested:
                templates.submit(connection, tenant, found, run.samples_sha256, "ann", NOW)
            assert untested.value.code is ErrorCode.TEMPLATE_UNTESTED
        version = templates.submit(connection, "acme", template, run.samples_sha256, "ann", NOW)
        assert (version.state, templates.submit(connection, "acme", template, "x", "eve", NOW)) == (
            "in review", version)
        templates.record_dry_run(connection, "acme", templates.dry_run(
            other, samples, templates.example_parameters(other)), NOW)
        with pytest.raises(BareCountError) as changed:
            templates.submit(connection, "acme", other, run.samples_sha256, "ann", NOW)
        assert changed.value.code is ErrorCode.TEMPLATE_IMMUTABLE


def test_a_changed_or_unsigned_template_is_not_used(world: World) -> None:
    tampering = {
        "update platform.action_template set document = document || '{\"kind\": \"x\"}'": "its digest",
        "update platform.action_template set note = replace(note, '1.0.0', '1.0.1')": "another version",
        "update platform.action_template set note = replace(note, '— barecount/acme ', '— barecount/evil ')":
            "not signed by a key",
    }  # fmt: skip
    for statement, problem in tampering.items():
        with world.database.connect() as connection:
            templates.published(connection, "acme", "kpi_alert")
            fetch(connection, statement + " where tenant_id = 'acme'")
            with pytest.raises(BareCountError, match=problem) as broken:
                templates.published(connection, "acme", "kpi_alert")
            assert broken.value.code is ErrorCode.EVIDENCE_BROKEN
            connection.rollback()


def test_a_dry_run_tells_what_is_wrong_and_never_passes_then(world: World) -> None:
    template = world.declarations.action_template("kpi_alert")
    samples = templates.samples(world.settings.project_dir, "kpi_alert")
    wrong = templates.dry_run(template, samples, {"limit": "sixty", "advice": "x"})
    assert not wrong.passed and "parameters.limit" in wrong.results[0].problem
    body = {**template.spec.body, "title": "{{ data.gone }}"}
    broken = template.model_copy(update={"spec": template.spec.model_copy(update={"body": body})})
    run = templates.dry_run(broken, samples, templates.example_parameters(template))
    assert not run.passed and "gone" in run.results[0].problem
    assert not templates.dry_run(template, {}, {}).passed, "without a sample nothing is shown"


def test_a_deprecated_template_renders_nothing(world: World) -> None:
    with world.database.transaction() as connection:
        templates.deprecate(connection, "acme", "kpi_alert", "ann", NOW)
    world.happen(61)
    world.happen(61, tenant="globex")
    assert world.advance().jobs == {"failed": 1, "queued": 1}
