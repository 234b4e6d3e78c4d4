"""The demo's last step: a KPI that crossed its limit reaches a webhook, a mailbox and a ticket system, with receipts.

Everything is as it would be outside the demo: the template is tried, approved by somebody else than its author and
signed; endpoints are registered and verified; the rule decides; a worker delivers. Only the receivers are local, and
the worker may reach the loopback address.
"""

from __future__ import annotations

import base64
import datetime as dt
import secrets as random_source
from typing import TYPE_CHECKING, Any

from barecount_assets.action_work import ActionWork
from barecount_assets.cli import output
from barecount_assets.cli.demo_receivers import PROJECT, TOKEN, Received, Receivers, listening
from barecount_assets.stages.environment import StageEnvironment
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from resources.action.delivery.queue import ReceiptRow
    from resources.action.people import JobRow
    from resources.security.egress import EgressPolicy
    from resources.trust.secrets import Secrets

TENANT = "globex"
RULE, TEMPLATE = "dso_above_limit", "kpi_alert"
_AUTHOR, _APPROVER = "ingrid.solheim@finance.example", "marco.bianchi@finance.example"
_SECRET = "demo_desk"


def story(environment: StageEnvironment, *, quiet: bool) -> bool:
    """Let the rule decide about what was published, and deliver; True when every job is completed.

    Done already, it shows the receipts that are on record.
    """
    jobs = _jobs(environment)
    received = None
    if not jobs or any(job.state != "completed" for job in jobs):
        received = _deliver(environment)
        jobs = _jobs(environment)
    if not quiet:
        _show(jobs, _receipts(environment, jobs), received)
    return bool(jobs) and all(job.state == "completed" for job in jobs)


def _deliver(environment: StageEnvironment) -> Received:
    from resources.action.delivery.worker import Worker
    from resources.trust.secrets import Secrets

    signing = "whsec_" + base64.b64encode(random_source.token_bytes(32)).decode()
    secrets = Secrets.of(environment.settings.data_dir, environment.database)
    secrets.keep(TENANT, _SECRET, {"signing": signing, "token": TOKEN})
    _publish_template(environment)
    with listening(signing) as receivers:
        _register(environment, secrets, receivers)
        work = ActionWork.of(environment)
        work.evaluate()
        work.enqueue()
        with Worker(environment.database, secrets, _loopback) as worker:
            worker.run_once(work.now())
        work.settle()
        return receivers.received


def _publish_template(environment: StageEnvironment) -> None:
    from resources.action import templates
    from resources.governance import approvals
    from resources.trust.signing import KeyStore

    keys = KeyStore.of(environment.settings.data_dir, environment.database)
    template = environment.declarations.action_template(TEMPLATE)
    run = templates.dry_run(template, templates.samples(environment.settings.project_dir, TEMPLATE),
                            templates.example_parameters(template))
    now = dt.datetime.now(dt.UTC)
    with environment.database.transaction() as connection:
        templates.record_dry_run(connection, TENANT, run, now)

    def ask() -> None:
        templates.request_publication(
            environment.database, keys, environment.declarations, TENANT, TEMPLATE, _AUTHOR, now)

    try:
        ask()
    except BareCountError as error:
        if error.code is not ErrorCode.APPROVAL_REQUIRED:
            raise
        with environment.database.transaction() as connection:
            for request in approvals.listed(connection, now, tenant_id=TENANT):
                if request.subject.startswith(f"template {TEMPLATE} "):
                    approvals.answer(connection, request.approval_id, approve=True, by=_APPROVER,
                                     reason="says what a collector needs to know", now=now)
        ask()


def _register(environment: StageEnvironment, secrets: Secrets, receivers: Receivers) -> None:
    """The three endpoints of the rule's route, each verified by its own receiver."""
    from resources.action.delivery import endpoints, verification
    from resources.action.delivery.adapters.base import Network
    from resources.action.delivery.worker import Sender
    from resources.governance.endpoints import Endpoint

    now = dt.datetime.now(dt.UTC)
    targets: dict[str, dict[str, Any]] = {
        "finance_webhook": {"adapter": "webhook", "url": f"{receivers.http_url}/hooks",
                            "signing": f"secret://{_SECRET}#signing"},
        "finance_mail": {"adapter": "email", "host": "127.0.0.1", "port": receivers.smtp_port, "security": "none",
                         "sender": "barecount@finance.example", "recipients": [_AUTHOR]},
        "finance_tickets": {"adapter": "jira", "url": receivers.http_url, "project": PROJECT,
                            "token": f"secret://{_SECRET}#token", "deployment": "data_center"},
    }
    network = Network.open()
    sender = Sender(environment.database, secrets, _loopback, network)
    try:
        for name, target in targets.items():
            declared = Endpoint.model_validate({
                "apiVersion": "barecount/v1", "kind": "Endpoint",
                "metadata": {"name": name, "tenant": TENANT, "description": "a receiver of the demo"},
                "spec": {"target": target}}, strict=False)
            with environment.database.transaction() as connection:
                endpoints.register(
                    connection, declared, lambda _: secrets.provider.current_version(TENANT, _SECRET), now=now)
            answer = verification.challenge(environment.database, sender, TENANT, name, now=now)
            if not answer.confirmed:
                verification.confirm(environment.database, TENANT, name, receivers.received.code, now=now)
    finally:
        network.close()


def _loopback(tenant_id: str) -> EgressPolicy:
    from resources.security.egress import EgressPolicy, Opening

    return EgressPolicy((Opening("127.0.0.1", plaintext=True),))


def _jobs(environment: StageEnvironment) -> list[JobRow]:
    from resources.action import people

    with environment.database.connect(autocommit=True) as connection:
        return [job for job in people.listed(connection, tenant_id=TENANT) if job.rule == RULE]


def _receipts(environment: StageEnvironment, jobs: list[JobRow]) -> list[ReceiptRow]:
    from resources.action.delivery import queue

    keys = {job.job_key for job in jobs}
    with environment.database.connect(autocommit=True) as connection:
        found = queue.receipts(connection, tenant_id=TENANT, limit=100)
    return [receipt for receipt in reversed(found) if any(receipt.delivery_key.startswith(key) for key in keys)]


def _show(jobs: list[JobRow], receipts: list[ReceiptRow], received: Received | None) -> None:
    console = output.console()
    console.print(f"\n[bold]{TENANT}[/]  a KPI that moved makes something happen: rule {RULE}")
    for job in jobs:
        title = job.message["title"] if job.message else job.reason
        console.print(f"job {job.job_id} {job.state}: {title}", soft_wrap=True)
    if received is not None:
        for key, body in received.webhooks.items():
            console.print(f"  webhook  {key}: signature verified, {body['kind']} of {body['subject']} for "
                          f"{body['period']}", soft_wrap=True)
        for mail in received.mails:
            console.print(f"  e-mail   to {mail['To']}: {mail['Subject']}", soft_wrap=True)
        for ticket in received.tickets.values():
            console.print(f"  ticket   {ticket['key']} {ticket['fields']['status']['name']}: "
                          f"{ticket['fields']['summary']}", soft_wrap=True)
    console.print(output.table(
        "\nReceipts", ("endpoint", "attempt", "result", "status", "ms", "signed by", "evidence"),
        [(r.endpoint, r.attempt, r.outcome, r.status or "-", f"{r.latency_ms or 0:.0f}", r.signature_key_id or "-",
          r.evidence_seq) for r in receipts], right=(1, 3, 4, 6)))
