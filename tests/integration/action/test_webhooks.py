"""Webhooks reach receivers that check signatures, and survive those that misbehave."""

from __future__ import annotations

import base64
import datetime as dt
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import standardwebhooks

from resources.action.delivery import claims, dead_letters, endpoints, queue, schedule, verification
from resources.action.delivery.adapters import webhook
from resources.action.delivery.adapters.base import Network
from resources.action.delivery.model import Delivery, Message
from resources.action.delivery.worker import Sender
from resources.runtime import events
from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError
from resources.security.egress import EgressPolicy, Opening
from resources.trust import ledger
from tests.integration.action import receivers
from tests.integration.action.conftest import LOCAL, SIGNING, START, Desk
from tests.integration.action.receivers import Received, Reply, serving


def answering(status: int, body: bytes = b"", **headers: str) -> Callable[[Received], Reply]:
    return lambda request: Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_webhook_is_signed_and_leaves_a_receipt(desk: Desk) -> None:
    with serving(answering(200, b"thank you")) as server:
        desk.webhook(f"{server.url}/in")
        desk.queue("job-1", data={"kpi": "dso", "value": "61.4"})
        desk.now = dt.datetime.now(dt.UTC)  # standardwebhooks looks at the clock
        assert desk.work().completed == 1
    [request] = server.received
    document = standardwebhooks.Webhook(SIGNING).verify(request.body, request.headers)
    assert document == {"kpi": "dso", "value": "61.4"}
    assert not webhook.verify([SIGNING], request.headers, request.body + b" ", desk.now)
    [receipt] = desk.receipts("job-1")
    assert (receipt.outcome, receipt.status, receipt.response_excerpt) == ("completed", 200, "thank you")
    assert receipt.signature_key_id == webhook.key_id(SIGNING) and receipt.latency_ms is not None
    assert desk.delivery("job-1").state == "completed"


def test_what_was_delivered_is_on_record(desk: Desk) -> None:
    with serving() as server:
        desk.webhook(server.url)
        desk.queue("a", "b", "c")
        desk.work()
    with desk.database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, "acme").intact
        found, _ = events.read(connection, events.Watermark(), types=["delivery.completed"])
    assert sorted(event.envelope["data"]["delivery_key"] for event in found) == ["a", "b", "c"]
    assert {event.envelope["evidence"] for event in found} == {one.evidence_seq for one in desk.receipts()}


def test_an_ed25519_key_signs_and_its_public_half_verifies(desk: Desk) -> None:
    private = webhook.new_secret(asymmetric=True)
    desk.secrets.keep("acme", "ops", {"signing": private})
    with serving() as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        desk.work()
    [request] = server.received
    assert request.headers["webhook-signature"].startswith("v1a,")
    assert webhook.verify([webhook.public_key(private)], request.headers, request.body, desk.now)
    other = webhook.public_key(webhook.new_secret(asymmetric=True))
    assert not webhook.verify([other], request.headers, request.body, desk.now)


def test_for_a_day_after_a_rotation_both_secrets_sign(desk: Desk) -> None:
    fresh = webhook.new_secret()
    with serving() as server:
        desk.webhook(server.url)
        version, used_by = verification.rotate(
            desk.database, desk.secrets, "acme", "ops", {"signing": fresh}, now=desk.now)
        assert (version, used_by) == ("2", ["ops"])
        for hours in (1, 24):
            desk.later(hours=hours)
            desk.queue(f"job-{hours}")
            desk.work()
    during, after = server.received
    assert len(during.headers["webhook-signature"].split()) == 2
    for secret in (SIGNING, fresh):
        assert webhook.verify([secret], during.headers, during.body, START + dt.timedelta(hours=1))
    assert not webhook.verify([SIGNING], after.headers, after.body, desk.now)
    assert webhook.verify([fresh], after.headers, after.body, desk.now)
    assert desk.receipts("job-1")[0].signature_key_id == f"{webhook.key_id(fresh)} {webhook.key_id(SIGNING)}"


def test_the_whole_schedule_ends_in_the_dlq_and_a_replay_delivers_with_the_same_id(desk: Desk) -> None:
    status = 500
    with serving(lambda request: Reply(status)) as server:
        desk.webhook(server.url)
        [delivery_id] = desk.queue("job-1")
        for attempt in range(1, schedule.ATTEMPTS + 1):
            assert desk.work().attempts == 1
            wait = schedule.wait_after("job-1", attempt)
            if wait is None:
                break
            assert desk.delivery("job-1").next_attempt_at == desk.now + wait
            desk.now += wait - dt.timedelta(microseconds=1)
            assert desk.work().attempts == 0
            desk.now += dt.timedelta(microseconds=1)
        assert desk.delivery("job-1").state == "dlq" and desk.state().health == "blocked"
        assert [one.outcome for one in desk.receipts("job-1")] == ["failed"] * 9 + ["dlq"]

        status = 200
        desk.later(hours=2)
        with desk.database.transaction() as connection:
            [letter] = dead_letters.replay(
                connection, "acme", dead_letters.Selection(deliveries=(str(delivery_id),)), requested_by="op",
                now=desk.now)
            assert dead_letters.listed(connection, "acme", dead_letters.Selection()) == []
        assert desk.work().completed == 1
    assert letter.reason == "HTTP 500" and desk.state().health == "healthy"
    assert len({request.headers["webhook-id"] for request in server.received}) == 1
    assert len(server.received) == schedule.ATTEMPTS + 1


def test_a_replay_can_name_a_time_or_a_watermark(desk: Desk) -> None:
    with serving(answering(200)):
        desk.policies["acme"] = EgressPolicy()  # refused, and so given up at once
        desk.webhook("http://127.0.0.1:1/in")
        for key in ("a", "b", "c"):
            desk.queue(key)
            desk.work()
            desk.later(hours=1)
    selections = (
        dead_letters.Selection(since=START + dt.timedelta(hours=1), until=START + dt.timedelta(hours=2)),
        dead_letters.Selection(after=1), dead_letters.Selection(deliveries=("a",)),
        dead_letters.Selection(endpoint="other"))
    with desk.database.transaction() as connection:
        found = [[one.delivery_key for one in dead_letters.listed(connection, "acme", each)] for each in selections]
        assert found == [["b"], ["b", "c"], ["a"], []]
        replayed = dead_letters.replay(connection, "acme", selections[1], requested_by="op", now=desk.now)
        assert [one.delivery_key for one in replayed] == ["b", "c"]
        with pytest.raises(BareCountError, match="no dead letter of tenant globex"):
            dead_letters.replay(connection, "globex", selections[2], requested_by="op", now=desk.now)
    assert [desk.delivery(key).state for key in ("a", "b", "c")] == ["dlq", "queued", "queued"]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_pauses_the_whole_endpoint(desk: Desk, status: int) -> None:
    with serving(answering(status, Retry_After="600")) as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        desk.work()
        desk.queue("job-2")
        desk.later(seconds=599)
        assert desk.work().attempts == 0  # also of the delivery that has never been tried
        server.reply = answering(200)
        desk.later(seconds=1)
        assert desk.work().completed == 2
    assert desk.receipts("job-1")[0].reason == f"HTTP {status}, retry after 600 s"


def test_410_disables_the_endpoint_and_what_is_queued_waits(desk: Desk) -> None:
    with serving(answering(410)) as server:
        desk.webhook(server.url, order="fifo")
        desk.queue("job-1", "job-2")
        desk.work()
        assert desk.state().state == "disabled" and len(server.received) == 1
        assert [desk.delivery(key).state for key in ("job-1", "job-2")] == ["dlq", "queued"]
        server.reply = answering(200)
        with desk.database.transaction() as connection:
            assert endpoints.enable(connection, "acme", "ops", now=desk.now) == "active"
        assert desk.work().completed == 1


@pytest.mark.parametrize("location", [
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://127.0.0.1:22/"])
def test_a_redirect_is_a_failure_and_is_not_followed(desk: Desk, location: str) -> None:
    with serving(answering(302, Location=location)) as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        assert desk.work().failed == 1
    assert len(server.received) == 1
    assert desk.receipts("job-1")[0].reason == "HTTP 302: redirects are not followed"


@pytest.mark.parametrize(("way", "reason"), [
    (receivers.resets, "Connection reset by peer"), (receivers.says_nothing, "did not answer within"),
    (receivers.drips, "did not answer within"), (receivers.talks_nonsense, "does not answer in HTTP"),
])
def test_a_receiver_that_misbehaves_costs_one_attempt_and_a_bounded_time(
    desk: Desk, way: Callable[[Any], None], reason: str
) -> None:
    desk.network = Network.open(timeout=0.4)
    with serving(lambda request: way) as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        assert desk.work().failed == 1
    [receipt] = desk.receipts("job-1")
    assert reason in receipt.reason and receipt.status is None


def test_a_body_without_end_is_cut(desk: Desk) -> None:
    with serving(lambda request: receivers.talks_without_end) as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        assert desk.work().completed == 1
    assert desk.receipts("job-1")[0].response_excerpt == "x" * 1_000


def test_a_certificate_must_be_trusted_and_name_the_host(desk: Desk, tmp_path: Path) -> None:
    server_side, public = receivers.certificate(tmp_path)
    wrong, _ = receivers.certificate(tmp_path, "elsewhere.example", "127.0.0.2")
    desk.policies["acme"] = EgressPolicy((Opening("127.0.0.1"),))
    trusting = Network.open(timeout=5.0, tls=ssl.create_default_context(cafile=str(public)))
    with serving(certificate=server_side) as right, serving(certificate=wrong) as other:
        desk.webhook(f"https://localhost:{right.port}/in")
        desk.webhook(f"https://localhost:{other.port}/in", name="other")
        desk.queue("unknown authority")
        desk.work()
        desk.network.close()
        desk.network = trusting
        desk.queue("good")
        desk.queue("wrong name", endpoint="other")
        desk.work()
    assert "no valid certificate" in desk.receipts("unknown authority")[0].reason
    assert "no valid certificate" in desk.receipts("wrong name")[0].reason
    assert desk.delivery("good").state == "completed"
    assert right.received[0].headers["host"] == f"localhost:{right.port}" and not other.received


def test_plaintext_is_not_spoken_unless_it_was_opened(desk: Desk) -> None:
    desk.policies["acme"] = EgressPolicy((Opening("127.0.0.1"),))
    with serving() as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        assert desk.work().dlq == 1
    assert not server.received and "TLS is required" in desk.receipts("job-1")[0].reason


def test_nothing_is_sent_before_the_receiver_answered_the_challenge(desk: Desk) -> None:
    def echo(request: Received) -> Reply:
        return Reply(200, request.body if "challenge" in request.document else b"")

    with serving(answering(200, b"ok")) as server:
        desk.webhook(server.url, verified=False)
        desk.queue("job-1")
        assert desk.work().attempts == 0 and desk.state().state == "unverified"
        sender = Sender(desk.database, desk.secrets, lambda tenant: LOCAL, desk.network)
        with pytest.raises(BareCountError, match="without the challenge"):
            verification.challenge(desk.database, sender, "acme", "ops", now=desk.now)
        assert desk.work().attempts == 0
        server.reply = echo
        assert verification.challenge(desk.database, sender, "acme", "ops", now=desk.now).confirmed
        assert desk.work().completed == 1


def test_an_endpoint_that_leads_elsewhere_must_be_verified_again(desk: Desk) -> None:
    desk.webhook("http://127.0.0.1:1/in")
    desk.webhook("http://127.0.0.1:1/in", verified=False, rate={"per_second": 5.0, "burst": 5})
    assert desk.state().state == "active"
    desk.webhook("http://127.0.0.1:2/in", verified=False)
    assert desk.state().state == "unverified" and desk.state().verified_at is None


def test_rates_of_an_endpoint_and_of_a_tenant_are_kept(desk: Desk) -> None:
    with serving():
        pass
    with serving() as server:
        desk.webhook(server.url, rate={"per_second": 2.0, "burst": 3})
        desk.webhook(server.url, name="other")
        desk.queue(*(f"job-{number}" for number in range(8)))
        assert desk.work().completed == 3
        desk.later(seconds=1)
        assert desk.work().completed == 2
        with desk.database.transaction() as connection:
            endpoints.limit_tenant(connection, "acme", 1.0, 1.0, now=desk.now)
        desk.queue("other-1", "other-2", endpoint="other")
        desk.later(seconds=1)
        assert desk.work().completed == 1
        desk.later(seconds=1)
        assert desk.work().completed == 1


def test_in_order_means_that_the_first_holds_back_the_others(desk: Desk) -> None:
    refused = {"a"}

    def reply(request: Received) -> Reply:
        return Reply(500 if request.document["n"] in refused else 200)

    with serving(reply) as server:
        desk.webhook(server.url, order="fifo")
        for key in ("a", "b", "c"):
            desk.queue(key, data={"n": key})
        desk.work()
        desk.later(seconds=3)
        desk.work()
        assert [request.document["n"] for request in server.received] == ["a"]
        refused.clear()
        desk.later(seconds=4)
        assert desk.work(threads=8).completed == 3
    assert [request.document["n"] for request in server.received] == ["a", "a", "b", "c"]


def test_a_noisy_endpoint_is_quarantined_and_the_others_go_on(desk: Desk) -> None:
    with serving(answering(500)) as noisy, serving() as quiet:
        desk.webhook(noisy.url, name="noisy")
        desk.webhook(quiet.url, name="quiet")
        desk.queue(*(f"n{number}" for number in range(60)), endpoint="noisy")
        desk.work(threads=4, per_endpoint=5)
        assert desk.state("noisy").health == "blocked" and len(noisy.received) < 20
        desk.queue(*(f"q{number}" for number in range(20)), endpoint="quiet")
        assert desk.work().completed == 20
        before = len(noisy.received)
        desk.later(minutes=1)
        desk.work()  # the circuit is tried out with one delivery, and opens again
        assert len(noisy.received) == before + 1
        noisy.reply = answering(200)
        desk.later(minutes=10)
        assert desk.work().failed == 0
    assert desk.state("noisy").health == "healthy"


def test_a_delivery_of_one_tenant_is_signed_with_its_own_secret_and_kept_from_the_other(desk: Desk) -> None:
    with serving() as server:
        desk.webhook(f"{server.url}/acme")
        desk.webhook(f"{server.url}/globex", tenant="globex")
        desk.queue("job-1")
        desk.queue("job-1", tenant="globex")
        assert desk.work().completed == 2
    by_path = {request.path: request for request in server.received}
    acme, globex = by_path["/acme"], by_path["/globex"]
    assert acme.headers["webhook-id"] != globex.headers["webhook-id"]
    assert webhook.verify([SIGNING], acme.headers, acme.body, desk.now)
    assert not webhook.verify([SIGNING], globex.headers, globex.body, desk.now)
    assert [one.tenant_id for one in desk.receipts("job-1", "globex")] == ["globex"]
    with pytest.raises(BareCountError, match="not kept"):
        desk.secrets.read("globex", "secret://only-of-acme", purpose="test")


def test_a_secret_that_is_missing_fails_the_attempt_and_not_the_worker(desk: Desk) -> None:
    with serving() as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        (desk.secrets.provider.folder / "acme" / "ops.json").unlink()
        assert desk.work().failed == 1
        desk.secrets.keep("acme", "ops", {"signing": SIGNING})
        desk.later(minutes=1)
        assert desk.work().completed == 1
    assert "is not kept" in desk.receipts("job-1")[0].reason


def test_an_attempt_whose_worker_was_lost_gets_a_receipt_and_is_made_again(desk: Desk) -> None:
    with serving() as server:
        desk.webhook(server.url)
        desk.queue("job-1")
        with desk.database.connect(autocommit=True) as connection:
            assert claims.claim(connection, "gone", desk.now, dt.timedelta(minutes=3), 10, {}, lambda place: 10)
        assert desk.work().attempts == 0
        desk.later(minutes=3)
        assert desk.work().completed == 1
    assert len(server.received) == 1
    assert [(one.attempt, one.outcome, one.worker == "gone") for one in desk.receipts("job-1")] == [
        (1, "lost", True), (2, "completed", False)]


def test_signing_agrees_with_the_reference_library() -> None:
    moment = dt.datetime(2026, 3, 2, 9, 0, tzinfo=dt.UTC)
    reference = standardwebhooks.Webhook(SIGNING).sign("msg_1", moment, "{}")
    assert webhook.sign(SIGNING, "msg_1", int(moment.timestamp()), b"{}") == reference


@pytest.mark.parametrize("value", ["hunter2", "whsec_!", "whsec_" + base64.b64encode(b"short").decode(), "whsk_AAAA"])
def test_what_is_no_signing_secret_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(BareCountError, match="not a signing secret") as refused:
        webhook.sign(value, "msg_1", 0, b"")
    assert value not in str(refused.value)


def test_the_health_of_an_endpoint_that_only_quiet_deliveries_met_is_on_record_and_no_event(desk: Desk) -> None:
    with serving(answering(500)) as server:
        desk.webhook(server.url)
        content = Message("an endpoint is not well", "see `barecount actions endpoints list`")
        with desk.database.transaction() as connection:
            told = fetch(connection, "select count(*) from platform.event")
            alarms = [Delivery("acme", f"alarm-{number}", "ops", content, is_quiet=True) for number in range(4)]
            queue.enqueue(connection, *alarms, now=desk.now)
        desk.work()
    assert desk.state().health == "degraded"
    with desk.database.connect(autocommit=True) as connection:
        assert fetch(connection, "select count(*) from platform.evidence where kind = 'endpoint.degraded'") == [(1,)]
        assert fetch(connection, "select count(*) from platform.event") == told


def test_what_was_claimed_and_not_sent_is_due_as_before_and_costs_no_attempt_and_no_token(desk: Desk) -> None:
    desk.webhook("https://hooks.acme.example/in", rate={"per_second": 1.0, "burst": 10})
    desk.queue(*(f"k{number}" for number in range(6)))
    with desk.database.connect(autocommit=True) as connection:
        taken = claims.claim(connection, "w1", desk.now, dt.timedelta(minutes=3), 6, {}, lambda place: 6)
        assert (len(taken), _tokens(connection)) == (6, 4.0)
        claims.give_back(connection, "other", taken)
        assert desk.delivery("k0").state == "running", "only its own"
        claims.give_back(connection, "w1", taken)
        row = desk.delivery("k0")
        assert (row.state, row.attempts, row.next_attempt_at, _tokens(connection)) == ("queued", 0, desk.now, 10.0)


def _tokens(connection: psycopg.Connection) -> float:
    return fetch(connection, "select tokens from platform.endpoint")[0][0]
