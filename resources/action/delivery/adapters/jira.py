"""Jira issues, over REST API 2 (Cloud: https://developer.atlassian.com/cloud/jira/platform/rest/v2/, Data Center: the
same but for the search).

An issue is found by a label, or by a text field where the declaration names one. Jira's search may lag behind its
writes by seconds; a lost attempt is tried again after the lease of its worker, which is longer.

Guarantee: exactly one effect, see `tickets.py`.
"""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote, urlencode

from resources.action.delivery.adapters.base import Challenge, Dispatch, Network, json_body, json_of, unverified
from resources.action.delivery.adapters.tickets import Refused, Ticket, require_success, unreadable, work_on
from resources.action.delivery.model import Outcome, Result
from resources.governance.endpoints import JiraEndpoint
from resources.runtime.redaction import protect
from resources.security.http_client import Request, Response

_PRIORITY = {"info": "Low", "warning": "Medium", "critical": "High"}


class JiraAdapter:
    """Delivers into Jira issues."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def deliver(self, dispatch: Dispatch[JiraEndpoint]) -> Outcome:
        return work_on(_Jira(self._network, dispatch), dispatch)

    def challenge(self, dispatch: Dispatch[JiraEndpoint], code: str) -> Challenge:
        """The account must exist and see the project."""
        jira = _Jira(self._network, dispatch)
        try:
            jira.call("GET", "/myself")
            jira.call("GET", f"/project/{dispatch.target.project}")
        except Refused as refused:
            raise unverified(dispatch, refused.outcome.reason) from refused
        return Challenge(True, f"the account sees project {dispatch.target.project}")


class _Jira:
    """Jira, for one dispatch."""

    def __init__(self, network: Network, dispatch: Dispatch[JiraEndpoint]) -> None:
        self._network, self._dispatch, self._target = network, dispatch, dispatch.target

    def find(self) -> list[Ticket]:
        correlation, field = self._dispatch.correlation_id, self._target.correlation_field
        where = f'cf[{field.removeprefix("customfield_")}] ~ "{correlation}"' if field else f'labels = "{correlation}"'
        query = {"jql": f'project = "{self._target.project}" AND {where} ORDER BY created DESC',
                 "fields": "status,description", "maxResults": "20"}
        search = "/search/jql" if self._target.deployment == "cloud" else "/search"
        response = self.call("GET", f"{search}?{urlencode(query, quote_via=quote)}")
        found = json_of(response)
        try:
            return [self._ticket(issue) for issue in found["issues"]]
        except (KeyError, TypeError) as error:
            raise unreadable(response) from error

    def create(self, mark: str) -> Ticket:
        message = self._dispatch.message
        fields: dict[str, Any] = {
            "project": {"key": self._target.project}, "issuetype": {"name": self._target.issue_type},
            "summary": message.title[:255], "description": f"{message.text}\n\n{mark}",
            **message.native.get("jira", {}),
        }
        if self._target.priorities:
            fields.setdefault("priority", {"name": _PRIORITY[message.severity]})
        if self._target.correlation_field:
            fields[self._target.correlation_field] = self._dispatch.correlation_id
        else:
            fields["labels"] = [*fields.get("labels", []), self._dispatch.correlation_id]
        response = self.call("POST", "/issue", {"fields": fields})
        made = json_of(response)
        try:
            return Ticket(made["id"], made["key"], True, mark)
        except (KeyError, TypeError) as error:
            raise unreadable(response) from error

    def update(self, ticket: Ticket) -> None:
        fields: dict[str, Any] = {"summary": self._dispatch.message.title[:255]}
        if self._target.priorities:
            fields["priority"] = {"name": _PRIORITY[self._dispatch.message.severity]}
        self.call("PUT", f"/issue/{ticket.id}", {"fields": fields})

    def comment(self, ticket: Ticket, text: str) -> None:
        self.call("POST", f"/issue/{ticket.id}/comment", {"body": text})

    def has_comment(self, ticket: Ticket, mark: str) -> bool:
        response = self.call("GET", f"/issue/{ticket.id}/comment?orderBy=-created&maxResults=50")
        found = json_of(response)
        try:
            return any(mark in str(comment["body"]) for comment in found["comments"])
        except (KeyError, TypeError) as error:
            raise unreadable(response) from error

    def close(self, ticket: Ticket) -> None:
        response = self.call("GET", f"/issue/{ticket.id}/transitions")
        found = json_of(response)
        try:
            offered = {name: one["id"] for one in found["transitions"] for name in (one["to"]["name"], one["name"])}
        except (KeyError, TypeError) as error:
            raise unreadable(response) from error
        wanted = self._target.close_transition
        if wanted not in offered:
            names = ", ".join(sorted(offered)) or "none"
            raise Refused(Outcome(Result.REJECTED, f"{ticket.name} has no transition {wanted!r}; it offers {names}",
                                  response.status, external_id=ticket.name))
        self.call("POST", f"/issue/{ticket.id}/transitions", {"transition": {"id": offered[wanted]}})

    def call(self, method: str, path: str, document: Any = None) -> Response:
        """One request to the interface; raises `Refused` for anything but 2xx."""
        token = self._dispatch.secret("token")
        if self._target.user is not None:
            login = "Basic " + base64.b64encode(f"{self._target.user}:{token}".encode()).decode()
        else:
            login = f"Bearer {token}"
        protect(login.partition(" ")[2])  # a server that echoes the header must not get it into a receipt
        headers = {"Accept": "application/json", "Authorization": login}
        body = None
        if document is not None:
            body, headers["Content-Type"] = json_body(document), "application/json"
        url = f"{self._target.url.rstrip('/')}/rest/api/2{path}"
        response = self._network.http.send(Request(method, url, headers, body), self._dispatch.policy)
        require_success(response, self._dispatch)
        return response

    @staticmethod
    def _ticket(issue: dict[str, Any]) -> Ticket:
        fields = issue["fields"]
        is_open = fields["status"]["statusCategory"]["key"] != "done"
        return Ticket(issue["id"], issue["key"], is_open, str(fields.get("description") or ""))
