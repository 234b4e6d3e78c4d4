"""Adapters: how a message reaches one kind of system. One module each; `base.py` says what an adapter is.

To add one: a model of its target in resources/governance/endpoints.py, a class with `deliver` and `challenge` here, and
a line in `adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping

from resources.action.delivery.adapters.base import Adapter, Network


def adapters(network: Network) -> Mapping[str, Adapter]:
    """Every adapter by its name in declarations."""
    from resources.action.delivery.adapters.apprise import AppriseAdapter
    from resources.action.delivery.adapters.email import EmailAdapter
    from resources.action.delivery.adapters.jira import JiraAdapter
    from resources.action.delivery.adapters.servicenow import ServiceNowAdapter
    from resources.action.delivery.adapters.slack import SlackAdapter
    from resources.action.delivery.adapters.webhook import WebhookAdapter

    return {
        "webhook": WebhookAdapter(network), "slack": SlackAdapter(network), "email": EmailAdapter(network),
        "jira": JiraAdapter(network), "servicenow": ServiceNowAdapter(network), "apprise": AppriseAdapter(network),
    }
