"""What must happen around deliveries: a receiver proves that it wants any, a rotated secret reaches its endpoints."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from resources.action.delivery import endpoints
from resources.action.delivery.adapters.base import Challenge
from resources.action.delivery.worker import Sender
from resources.runtime.database import Database
from resources.trust.secrets import Secrets


def challenge(database: Database, sender: Sender, tenant_id: str, name: str, *, now: dt.datetime) -> Challenge:
    """Send a challenge. A receiver that answers by itself is verified at once; of others, somebody must give the code
    back with `confirm`.

    Raises:
        BareCountError: delivery.unverified when the receiver does not answer as it should; declaration.unknown.
    """
    with database.transaction() as connection:
        code = endpoints.new_challenge(connection, tenant_id, name, now=now)
        row = endpoints.get(connection, tenant_id, name)
    answered = sender.challenge(row, code, now)
    if answered.confirmed:
        with database.transaction() as connection:
            endpoints.verified(connection, tenant_id, name, now=now, code=code, how=answered.how)
    return answered


def confirm(database: Database, tenant_id: str, name: str, code: str, *, now: dt.datetime) -> None:
    """Give back the code that the receiver was sent.

    Raises:
        BareCountError: delivery.unverified for a code that is wrong or too old.
    """
    with database.transaction() as connection:
        endpoints.verified(connection, tenant_id, name, now=now, code=code, how="somebody gave the code back")


def rotate(
    database: Database, secrets: Secrets, tenant_id: str, name: str, fields: Mapping[str, str], *, now: dt.datetime
) -> tuple[str, list[str]]:
    """Keep a new version of a secret, and let the tenant's endpoints use it; returns the version and their names.

    For a day, webhooks are signed with both versions.
    """
    version = secrets.keep(tenant_id, name, fields)
    with database.transaction() as connection:
        return version, endpoints.rotated(connection, tenant_id, name, version, now=now)
