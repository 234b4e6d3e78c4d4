"""Events reach other systems at least once, in order per key, under ids that never change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from resources.action import relays
from resources.runtime import events
from resources.runtime.database import Database, fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.events import Event
from resources.security.egress import EgressDenied, EgressPolicy, Opening
from tests.integration.action.receivers import Received, Reply, serving

LOCAL = EgressPolicy((Opening("127.0.0.1", plaintext=True),))


@pytest.fixture
def outbox(database: Database) -> Database:
    """25 events of two tenants."""
    with database.transaction() as connection:
        for tenant in ("acme", "globex"):
            fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (tenant,))
        for number in range(25):
            tenant = ("acme", "globex")[number % 2]
            events.append(connection, Event(tenant, "kpi.changed", "days sales", str(number), {"number": number}))
    return database


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "eu-west-2"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        yield


def ids(database: Database) -> list[str]:
    with database.connect(autocommit=True) as connection:
        return [i for (i,) in fetch(connection, "select event_id from platform.event order by position")]


def drained(queue_url: str) -> list[dict[str, Any]]:
    """Everything in an SQS queue, in the order it comes."""
    client, found = boto3.client("sqs"), []
    while messages := client.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=10, AttributeNames=["All"]).get("Messages"):
        for message in messages:
            found.append(message)
            client.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
    return found


def fifo_queue(name: str = "events.fifo") -> str:
    return boto3.client("sqs").create_queue(QueueName=name, Attributes={"FifoQueue": "true"})["QueueUrl"]


def test_an_sqs_queue_gets_each_event_once_in_the_order_of_its_key(outbox: Database, aws: None) -> None:
    url = fifo_queue()
    target = relays.target_of(f"sqs:{url}", lambda tenant: EgressPolicy())
    assert relays.relay(outbox, target, "audit") == 25 and relays.relay(outbox, target, "audit") == 0
    with outbox.transaction() as connection:
        fetch(connection, "delete from platform.event_reader")  # its memory is lost: it sends everything again
    assert relays.relay(outbox, target, "audit") == 25
    messages = drained(url)
    bodies = [json.loads(message["Body"]) for message in messages]
    assert sorted(body["id"] for body in bodies) == sorted(ids(outbox)), "the queue removes what is sent again"
    assert {m["Attributes"]["MessageDeduplicationId"] for m in messages} == set(ids(outbox))
    for tenant in ("acme", "globex"):
        numbers = [body["data"]["number"] for body in bodies if body["tenant"] == tenant]
        assert numbers == sorted(numbers)
    assert len({m["Attributes"]["MessageGroupId"] for m in messages}) == 2


def test_an_sns_topic_and_an_eventbridge_bus_get_the_envelopes(outbox: Database, aws: None) -> None:
    url = fifo_queue("copy.fifo")
    sns, bridge = boto3.client("sns"), boto3.client("events")
    topic = sns.create_topic(Name="events.fifo", Attributes={"FifoTopic": "true"})["TopicArn"]
    queue_arn = "arn:aws:sqs:eu-west-2:123456789012:copy.fifo"
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue_arn, Attributes={"RawMessageDelivery": "true"})
    assert relays.relay(outbox, relays.target_of(f"sns:{topic}", lambda tenant: LOCAL), "sns", tenant_id="acme") == 13
    assert {json.loads(message["Body"])["tenant"] for message in drained(url)} == {"acme"}

    bridge.create_event_bus(Name="numbers")
    bridge.put_rule(Name="all", EventBusName="numbers", EventPattern=json.dumps({"source": ["barecount"]}))
    plain = boto3.client("sqs").create_queue(QueueName="plain")["QueueUrl"]
    bridge.put_targets(Rule="all", EventBusName="numbers", Targets=[
        {"Id": "1", "Arn": "arn:aws:sqs:eu-west-2:123456789012:plain"}])
    assert relays.relay(outbox, relays.target_of("eventbridge:numbers", lambda tenant: LOCAL), "bridge") == 25
    details = [json.loads(message["Body"]) for message in drained(plain)]
    assert sorted(found["detail"]["id"] for found in details) == sorted(ids(outbox))
    assert {found["detail-type"] for found in details} == {"barecount.kpi.changed"}


def test_a_missing_queue_is_told_and_nothing_is_skipped(outbox: Database, aws: None) -> None:
    gone = relays.target_of("sqs:https://sqs.eu-west-2.amazonaws.com/123456789012/gone.fifo", lambda tenant: LOCAL)
    with pytest.raises(BareCountError) as failed:
        relays.relay(outbox, gone, "audit")
    assert failed.value.code is ErrorCode.RELAY_FAILED and failed.value.retryable
    assert relays.relay(outbox, relays.target_of(f"sqs:{fifo_queue()}", lambda tenant: LOCAL), "audit") == 25


def test_a_webhook_gets_cloudevents_and_is_asked_again_after_a_failure(outbox: Database) -> None:
    answers = iter([200] * 7 + [500])

    def reply(request: Received) -> Reply:
        return Reply(next(answers, 200))

    with serving(reply) as server:
        target = relays.target_of(f"{server.url}/events", lambda tenant: LOCAL)
        with pytest.raises(BareCountError, match="answered 500"):
            relays.relay(outbox, target, "hook")
        assert relays.relay(outbox, target, "hook") == 25, "nothing was taken for sent"
        taken = [request.document["id"] for request in server.received[8:]]
        assert taken == ids(outbox)
        first = server.received[0]
        assert first.headers["content-type"].startswith("application/cloudevents+json")
        assert first.headers["idempotency-key"] == first.document["id"]
        with outbox.connect(autocommit=True) as connection:
            middle = fetch(connection, "select position from platform.event order by position offset 20 limit 1")[0][0]
        again = relays.replay(outbox, target, lambda c: events.at_position(c, middle), lambda e: e.position >= middle)
        assert again == 5 and [r.document["id"] for r in server.received[-5:]] == ids(outbox)[-5:]


def test_a_webhook_inside_the_network_is_not_reached_unless_the_tenant_allows_it(outbox: Database) -> None:
    with serving() as server:
        with pytest.raises(EgressDenied):
            relays.relay(outbox, relays.target_of(server.url, lambda tenant: EgressPolicy()), "hook")
        assert server.received == []


def test_none_sends_nothing_and_other_words_are_refused(outbox: Database) -> None:
    relays.relay(outbox, relays.target_of("none", lambda tenant: LOCAL), "none")
    for text in ("kafka:topic", "sqs:", "ftp://x", ""):
        with pytest.raises(BareCountError, match="names no target"):
            relays.target_of(text, lambda tenant: LOCAL)
