"""Delivery: signed webhooks to a receiver of its own process, by one worker, on an embedded server of its own.

    python -m tests.benchmarks.bench_delivery [--deliveries 8000] [--json]

Every delivery is claimed, signed, sent, answered, and recorded with receipt, evidence and event, all chained. Prints
deliveries a second and how the worker's processor time is spent. Target: 800 a second.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from resources.action.delivery import endpoints, queue
from resources.action.delivery.adapters.webhook import new_secret
from resources.action.delivery.model import Delivery, Message
from resources.action.delivery.worker import Worker
from resources.governance.endpoints import Endpoint
from resources.runtime import embedded, migrations
from resources.runtime.database import Database, fetch
from resources.security.egress import EgressPolicy, Opening
from resources.trust import ledger
from resources.trust.secrets import LocalSecrets, Secrets

TENANT = "acme"
EVENT = {
    "specversion": "1.0", "type": "barecount.kpi.changed", "source": "/barecount/acme/order_to_cash",
    "subject": "order_to_cash.dso", "tenant": TENANT, "data": {
        "kpi": "dso", "version": "1.0.0", "period": "2026-03", "grain": "month", "dimensions": {"segment": "Large"},
        "value": "61.4183", "previous": "44.0127", "threshold_state": "breached", "publication_version": 17}}


class _Receiver(asyncio.Protocol):
    """Answers every request with 200, and counts webhook ids."""

    seen: set[bytes] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = dict(line.split(b": ", 1) for line in self._buffer[:end].split(b"\r\n")[1:])
            length = int({name.lower(): value for name, value in head.items()}[b"content-length"])
            if len(self._buffer) < end + 4 + length:
                return
            self.seen.add(head[b"webhook-id"])
            self._buffer = self._buffer[end + 4 + length:]
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def _receive(pipe: Connection) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Receiver, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.recv)
        pipe.send(len(_Receiver.seen))

    asyncio.run(serve())


def run(deliveries: int) -> dict[str, Any]:
    """Measure; returns rates and seconds."""
    folder = Path(tempfile.mkdtemp(prefix="bc-bench-"))
    folder.chmod(0o755)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    receiver = multiprocessing.get_context("spawn").Process(target=_receive, args=(theirs,))
    receiver.start()
    try:
        url = embedded.start(folder)
        migrations.upgrade(url)
        database = Database(url, is_embedded=True)
        secrets = _prepare(database, folder, ours.recv(), deliveries)
        found = _measure(database, secrets, deliveries)
        ours.send("end")
        found["distinct_webhooks_received"] = ours.recv()
        assert found["distinct_webhooks_received"] == deliveries, found
        return found
    finally:
        receiver.terminate()
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(database: Database, folder: Path, port: int, deliveries: int) -> Secrets:
    now = dt.datetime.now(dt.UTC)
    secrets = Secrets(LocalSecrets.of(folder / "data"), database)
    with database.transaction() as connection:
        fetch(connection, "select platform.register_tenant($1, $1, 'h')", (TENANT,))
    secrets.keep(TENANT, "hook", {"signing": new_secret()})
    declared = Endpoint.model_validate({
        "apiVersion": "barecount/v1", "kind": "Endpoint",
        "metadata": {"name": "hook", "tenant": TENANT, "description": "the benchmark"},
        "spec": {"target": {"adapter": "webhook", "url": f"http://127.0.0.1:{port}/in", "signing": "secret://hook#signing"},
                 "rate": {"per_second": 10_000.0, "burst": 100_000}}})
    with database.transaction() as connection:
        endpoints.register(connection, declared, lambda reference: "1", now=now)
        endpoints.verified(connection, TENANT, "hook", now=now, code=None, how="by the benchmark")
    for start in range(0, deliveries, 1_000):
        with database.transaction() as connection:
            queue.enqueue(connection, *(
                Delivery(TENANT, f"job-{number}", "hook", Message("DSO is 61 days", "above 45", EVENT))
                for number in range(start, min(start + 1_000, deliveries))), now=now)
    return secrets


def _measure(database: Database, secrets: Secrets, deliveries: int) -> dict[str, Any]:
    policy = EgressPolicy((Opening("127.0.0.1", plaintext=True),))
    with Worker(database, secrets, lambda tenant: policy) as worker:
        before, start = os.times(), time.perf_counter()
        report = worker.run_once(dt.datetime.now(dt.UTC), deliveries)
        seconds, after = time.perf_counter() - start, os.times()
    assert report.completed == deliveries, report
    with database.connect(autocommit=True) as connection:
        assert ledger.verify(connection, TENANT).intact
        half, most = fetch(connection, _LATENCIES)[0]
    used = after.user + after.system - before.user - before.system
    return {"deliveries": deliveries, "seconds": seconds, "deliveries_per_second": deliveries / seconds,
            "worker_processor_ms_per_delivery": used / deliveries * 1000,
            "deliveries_per_processor_second": deliveries / used, "request_ms_p50": half, "request_ms_p95": most,
            "load_average": os.getloadavg()[0]}


_LATENCIES = """
select percentile_cont(0.5) within group (order by latency_ms), percentile_cont(0.95) within group (order by latency_ms)
from platform.receipt
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_delivery", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=8_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = run(options.deliveries)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):40} {value:,.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
