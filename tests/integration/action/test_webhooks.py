"""Webhooks reach receivers that check signatures, and survive those that misbehave."""

from __future__ import annotations

import datetime as dt

import standardwebhooks

from resources.action.delivery.adapters import webhook
from tests.integration.action.conftest import SIGNING, Desk
from tests.integration.action.receivers import Reply, serving


def test_a_webhook_is_signed_and_leaves_a_receipt(desk: Desk) -> None:
    with serving(lambda request: Reply(200, b"thank you")) as server:
        desk.webhook(f"{server.url}/in")
        desk.queue("job-1", data={"kpi": "dso", "value": "61.4"})
        desk.now = dt.datetime.now(dt.UTC)  # standardwebhooks looks at the clock
        assert desk.work().completed == 1
    [request] = server.received
    document = standardwebhooks.Webhook(SIGNING).verify(request.body, request.headers)
    assert document == {"kpi": "dso", "value": "61.4"}
    [receipt] = desk.receipts("job-1")
    assert (receipt.outcome, receipt.status, receipt.response_excerpt) == ("completed", 200, "thank you")
    assert receipt.signature_key_id == webhook.key_id(SIGNING) and receipt.latency_ms is not None
    assert desk.delivery("job-1").state == "completed"
