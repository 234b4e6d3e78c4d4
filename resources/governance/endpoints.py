"""Endpoints as declared: where actions of a tenant may be delivered, how, and with which secrets.

One file per endpoint, `contracts/actions/endpoints/<tenant>/<name>.yaml`. Secrets are references
(`secret://name#field`) into the tenant's secret store; a value in a declaration is a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from resources.runtime.declared import SECRET_REFERENCE, Declared, DeclaredDocument, Email, Name, Text, refusal


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.password:
        raise refusal("not a URL that can be delivered to", allowed="https://host[:port]/path, without a login")
    return url


SecretRef = Annotated[str, StringConstraints(pattern=f"^{SECRET_REFERENCE}$")]
"""`secret://name#field`; without a field, `value`."""

Url = Annotated[str, AfterValidator(_url)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?$")]


class WebhookEndpoint(Declared):
    """A receiver of signed HTTP requests, as Standard Webhooks has them.

    The signing secret is `whsec_<base64>` (v1, HMAC-SHA256) or `whsk_<base64>` (v1a, Ed25519).
    """

    adapter: Literal["webhook"]
    url: Url
    signing: SecretRef
    headers: dict[HeaderName, Text] = Field(default_factory=dict)
    authorization: SecretRef | None = None


class SlackEndpoint(Declared):
    """A Slack channel: by an incoming webhook (its URL is the secret), or by the Web API with a bot's token."""

    adapter: Literal["slack"]
    webhook_url: SecretRef | None = None
    token: SecretRef | None = None
    channel: Text | None = None
    api_url: Url = "https://slack.com/api"

    @model_validator(mode="after")
    def _one_way(self) -> SlackEndpoint:
        if (self.webhook_url is None) == (self.token is None):
            raise refusal("reaches Slack in no way, or in two", allowed="webhook_url, or token and channel")
        if self.token is not None and self.channel is None:
            raise refusal("a token needs a channel", allowed="channel: '#name' or an id")
        return self


class EmailEndpoint(Declared):
    """Mailboxes, through an SMTP server."""

    adapter: Literal["email"]
    host: Host
    port: int = Field(default=587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: Text | None = None
    password: SecretRef | None = None
    sender: Email
    recipients: tuple[Email, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _login_is_whole(self) -> EmailEndpoint:
        if (self.username is None) != (self.password is None):
            raise refusal("half a login", allowed="username and password, or neither")
        if self.password is not None and self.security == "none":
            raise refusal("a password would go over the network in the open", allowed="security: starttls or tls")
        return self


class JiraEndpoint(Declared):
    """A Jira project. Issues are found again by a label, or by a text field where one is named.

    With a `user` the token is an API token of Jira Cloud, without one a personal access token. `priorities`: whether
    issues get one; not every project has the field.
    """

    adapter: Literal["jira"]
    url: Url
    project: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{1,9}$")]
    issue_type: Text = "Task"
    user: Email | None = None
    token: SecretRef
    correlation_field: Annotated[str, StringConstraints(pattern=r"^customfield_[0-9]+$")] | None = None
    close_transition: Text = "Done"
    deployment: Literal["cloud", "data_center"] = "cloud"
    priorities: bool = True


class ServiceNowEndpoint(Declared):
    """A ServiceNow table, found again by `correlation_id`."""

    adapter: Literal["servicenow"]
    url: Url
    table: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,79}$")] = "incident"
    username: Text
    password: SecretRef
    close_state: Text = "6"
    close_code: Text = "Resolved by request"


class AppriseEndpoint(Declared):
    """Any service that Apprise knows; its URL holds tokens and is a secret."""

    adapter: Literal["apprise"]
    url: SecretRef


Target = Annotated[
    WebhookEndpoint | SlackEndpoint | EmailEndpoint | JiraEndpoint | ServiceNowEndpoint | AppriseEndpoint,
    Field(discriminator="adapter"),
]


class Rate(Declared):
    """A token bucket: so many a second on average, so many at once."""

    per_second: float = Field(default=20.0, gt=0, le=10_000)
    burst: int = Field(default=100, ge=1, le=100_000)


class EndpointMetadata(Declared):
    """Identity of an endpoint."""

    name: Name
    tenant: Name
    description: Text


class EndpointSpec(Declared):
    """What an endpoint consists of.

    `order`: fifo holds back what comes later until what came first is delivered or given up. Ticket systems are fifo
    unless declared otherwise, so that a ticket is opened before it is closed.
    """

    target: Target
    rate: Rate = Field(default_factory=Rate)
    order: Literal["fifo", "any"] | None = None


class Endpoint(DeclaredDocument):
    """A place that actions of one tenant are delivered to."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["Endpoint"]
    metadata: EndpointMetadata
    spec: EndpointSpec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def tenant_id(self) -> str:
        return self.metadata.tenant

    @property
    def is_fifo(self) -> bool:
        default = "fifo" if self.spec.target.adapter in ("jira", "servicenow") else "any"
        return (self.spec.order or default) == "fifo"

    @property
    def secrets(self) -> Mapping[str, str]:
        """References by what they are for: signing, authorization, token, password, url, webhook_url."""
        target = self.spec.target
        return {
            purpose: reference
            for purpose in ("signing", "authorization", "token", "password", "webhook_url", "url")
            if (reference := getattr(target, purpose, None)) and str(reference).startswith("secret://")
        }
