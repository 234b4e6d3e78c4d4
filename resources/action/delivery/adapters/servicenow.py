"""ServiceNow records, over the Table API
(https://www.servicenow.com/docs/bundle/yokohama-api-reference/page/integrate/inbound-rest/concept/c_TableAPI.html).

A record is found by its `correlation_id`. Comments are work notes, which are looked up in the journal table.

Guarantee: exactly one effect, see `tickets.py`.
"""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote, urlencode

from resources.action.delivery.adapters.base import Challenge, Dispatch, Network, json_body, json_of, unverified
from resources.action.delivery.adapters.tickets import Refused, Ticket, require_success, unreadable, work_on
from resources.action.delivery.model import Outcome
from resources.governance.endpoints import ServiceNowEndpoint
from resources.runtime.redaction import protect
from resources.security.http_client import Request, Response

_URGENCY = {"info": "3", "warning": "2", "critical": "1"}


class ServiceNowAdapter:
    """Delivers into ServiceNow records."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def deliver(self, dispatch: Dispatch[ServiceNowEndpoint]) -> Outcome:
        return work_on(_ServiceNow(self._network, dispatch), dispatch)

    def challenge(self, dispatch: Dispatch[ServiceNowEndpoint], code: str) -> Challenge:
        """The account must be able to read the table."""
        try:
            _ServiceNow(self._network, dispatch).rows(dispatch.target.table, "", "sys_id", 1)
        except Refused as refused:
            raise unverified(dispatch, refused.outcome.reason) from refused
        return Challenge(True, f"the account reads table {dispatch.target.table}")


class _ServiceNow:
    """ServiceNow, for one dispatch."""

    def __init__(self, network: Network, dispatch: Dispatch[ServiceNowEndpoint]) -> None:
        self._network, self._dispatch, self._target = network, dispatch, dispatch.target

    def find(self) -> list[Ticket]:
        query = f"correlation_id={self._dispatch.correlation_id}^ORDERBYDESCsys_created_on"
        return [
            Ticket(row["sys_id"], row["number"], row["active"] == "true", row.get("description", ""))
            for row in self.rows(self._target.table, query, "sys_id,number,active,description", 20)
        ]

    def create(self, mark: str) -> Ticket:
        message = self._dispatch.message
        made = self._result(self._call("POST", f"/{self._target.table}", {
            "short_description": message.title[:160], "description": f"{message.text}\n\n{mark}",
            "urgency": _URGENCY[message.severity], **message.native.get("servicenow", {}),
            "correlation_id": self._dispatch.correlation_id, "correlation_display": "BareCount"}))
        return Ticket(made["sys_id"], made["number"], True, mark)

    def update(self, ticket: Ticket) -> None:
        message = self._dispatch.message
        self._patch(ticket, {"short_description": message.title[:160], "urgency": _URGENCY[message.severity]})

    def comment(self, ticket: Ticket, text: str) -> None:
        self._patch(ticket, {"work_notes": text})

    def has_comment(self, ticket: Ticket, mark: str) -> bool:
        query = f"element_id={ticket.id}^element=work_notes^valueLIKE{mark}"
        return bool(self.rows("sys_journal_field", query, "sys_id", 1))

    def close(self, ticket: Ticket) -> None:
        self._patch(ticket, {"state": self._target.close_state, "close_code": self._target.close_code,
                             "close_notes": self._dispatch.message.title})

    def rows(self, table: str, query: str, fields: str, limit: int) -> list[dict[str, Any]]:
        """Rows of a table; raises `Refused`."""
        parameters = {"sysparm_query": query, "sysparm_fields": fields, "sysparm_limit": str(limit)}
        response = self._call("GET", f"/{table}?{urlencode(parameters, quote_via=quote)}")
        found = self._result(response)
        if not isinstance(found, list):
            raise unreadable(response)
        return found

    def _patch(self, ticket: Ticket, fields: dict[str, str]) -> None:
        self._call("PATCH", f"/{self._target.table}/{ticket.id}", fields)

    @staticmethod
    def _result(response: Response) -> Any:
        document = json_of(response)
        if not isinstance(document, dict) or "result" not in document:
            raise unreadable(response)
        return document["result"]

    def _call(self, method: str, path: str, document: Any = None) -> Response:
        password = self._dispatch.secret("password")
        login = base64.b64encode(f"{self._target.username}:{password}".encode()).decode()
        protect(login)  # a server that echoes the header must not get it into a receipt
        headers = {"Accept": "application/json", "Authorization": f"Basic {login}"}
        body = None
        if document is not None:
            body, headers["Content-Type"] = json_body(document), "application/json"
        url = f"{self._target.url.rstrip('/')}/api/now/table{path}"
        response = self._network.http.send(Request(method, url, headers, body), self._dispatch.policy)
        require_success(response, self._dispatch)
        return response
