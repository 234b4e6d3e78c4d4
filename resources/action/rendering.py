"""From a decided job to the message that is sent: the tenant's published template, rendered, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import psycopg

from resources.action import templates
from resources.action.delivery.model import Message
from resources.action.model import JobDraft, JobState
from resources.governance.actions import ActionTemplate
from resources.governance.declarations import Declarations
from resources.runtime import sandbox
from resources.runtime.errors import BareCountError


@dataclass(frozen=True)
class Settled:
    """A job with its rendered message, or with the reason why it has none."""

    draft: JobDraft
    message: Message | None
    digest: str | None


class Renderer:
    """Renders jobs from published templates; each template is verified once per transaction."""

    def __init__(self, connection: psycopg.Connection, declarations: Declarations) -> None:
        self._connection, self._declarations = connection, declarations
        self._templates: dict[tuple[str, str], ActionTemplate | BareCountError] = {}

    def settle(self, job: JobDraft) -> Settled:
        """Render a job's message; a job that cannot be rendered fails with the reason."""
        template = self._template(job.tenant_id, job.template)
        if isinstance(template, BareCountError):
            if job.state is JobState.SUPPRESSED:
                return Settled(job, None, None)
            hint = f"; {template.hint}" if template.hint else ""
            return Settled(replace(job, state=JobState.FAILED, reason=f"{template.message}{hint}"), None, None)
        rule = self._declarations.action_rules.get(job.rule)
        try:
            rendered = templates.render(template, job, rule.metadata.title if rule else job.rule)
        except sandbox.Refused as refused:
            reason = f"template {job.template} {template.metadata.version} cannot be rendered: {refused}"
            return Settled(replace(job, state=JobState.FAILED, reason=reason), None, template.hash)
        return Settled(job, _message(job, template, rendered), template.hash)

    def _template(self, tenant_id: str, name: str) -> ActionTemplate | BareCountError:
        key = (tenant_id, name)
        if key not in self._templates:
            try:
                self._templates[key] = templates.published(self._connection, tenant_id, name)
            except BareCountError as error:
                self._templates[key] = error
        return self._templates[key]


def _message(job: JobDraft, template: ActionTemplate, rendered: templates.Rendered) -> Message:
    step = "close" if job.kind == "recovery" else "open" if job.first and job.kind == "alert" else "comment"
    newest = job.occurrences[-1]
    data = {
        **rendered.data, "kind": job.kind, "rule": job.rule, "rule_version": job.rule_version, "job": job.key,
        "tenant": job.tenant_id, "severity": job.severity, "subject": job.subject, "dimensions": job.dimensions,
        "period": job.period, "facts": newest.facts,
        "events": [occurrence.event_id for occurrence in job.occurrences],
        "evidence": newest.envelope.get("evidence"),
    }
    native = rendered.data.get("native")
    html = rendered.data.get("html")
    return Message(
        title=rendered.title, text=rendered.text, data=data, html=html if isinstance(html, str) else None,
        severity=job.severity, step=step, correlation=job.correlation,  # type: ignore[arg-type]
        native=native if isinstance(native, Mapping) else {})
