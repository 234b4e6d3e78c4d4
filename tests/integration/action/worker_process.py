"""A worker in a process of its own, which a test may kill at any moment."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

from resources.action.delivery.worker import Worker
from resources.runtime.database import Database
from resources.security.egress import EgressPolicy, Opening
from resources.trust.secrets import LocalSecrets, Secrets


def work(url: str, data_dir: str, lease_seconds: float) -> None:
    """Deliver until killed."""
    database = Database(url, is_embedded=True)
    policy = EgressPolicy((Opening("127.0.0.1", plaintext=True),))
    secrets = Secrets(LocalSecrets.of(Path(data_dir)), database)
    with Worker(database, secrets, lambda tenant: policy, lease=dt.timedelta(seconds=lease_seconds),
                threads=6) as worker:
        worker.run(lambda: dt.datetime.now(dt.UTC), threading.Event())
