"""The action catalog: template versions that were tried, approved, signed, and can no longer change.

A template is declared in `contracts/actions/templates`; its content address is the SHA-256 of its canonical JSON. For a
tenant it goes through four states: draft (declared, and not submitted in this content), in review (submitted, waits for
an approval), published (jobs are rendered from it), deprecated (another version followed, or it was withdrawn).

Submitting needs a dry run that passed with exactly this content and exactly these sample events. Publishing signs
`barecount/<tenant>/templates`, name, version, digest and digest of the samples with the tenant's key, as a C2SP note;
the engine checks that signature, and the digest of the content, before it renders.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from resources.action.model import JobDraft, JobState, Occurrence, SeriesFacts, Signal
from resources.governance import policies
from resources.governance.actions import ActionTemplate, read_sample, samples_folder
from resources.governance.decision_points import TemplatePublication
from resources.governance.declarations import Declarations
from resources.runtime import events, sandbox
from resources.runtime.database import Database, as_json, fetch, fetch_dicts
from resources.runtime.declared import canonical_hash
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import checkpoints, ledger
from resources.trust.signing import KeyStore
from resources.trust.verify import Malformed, Note

_ORIGIN = "barecount/{tenant}/templates"
MAX_TITLE = 250


@dataclass(frozen=True)
class Rendered:
    """A body filled in. `title` and `text` are what people read; `data` all of it, as webhooks get it."""

    title: str
    text: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class SampleResult:
    """What one sample event rendered to, or why it did not."""

    sample: str
    body: str
    rendered: Rendered | None
    problem: str = ""


@dataclass(frozen=True)
class DryRun:
    """A template rendered against its sample events."""

    template: str
    digest: str
    samples_sha256: str
    results: tuple[SampleResult, ...]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.rendered is not None for result in self.results)


@dataclass(frozen=True)
class TemplateVersion:
    """A version on record for a tenant."""

    tenant_id: str
    name: str
    digest: str
    version: str
    document: Mapping[str, Any]
    samples_sha256: str
    state: str
    submitted_by: str
    submitted_at: dt.datetime
    published_at: dt.datetime | None
    note: str | None


# --- rendering --------------------------------------------------------------------------------------------


def render(template: ActionTemplate, job: JobDraft, rule_title: str) -> Rendered:
    """Fill a template in for a job.

    Raises:
        sandbox.Refused: when the body cannot be rendered, or renders to something its kind does not take.
    """
    body = template.spec.body
    if job.kind == "recovery" and template.spec.recovery is not None:
        body = template.spec.recovery
    return _checked(template, sandbox.render_all(body, _context(job, rule_title)))


def _context(job: JobDraft, rule_title: str) -> dict[str, Any]:
    newest = job.occurrences[-1]
    return {
        "event": newest.envelope, "data": newest.envelope.get("data") or {}, "facts": newest.facts,
        "events": [occurrence.envelope for occurrence in job.occurrences], "tenant": job.tenant_id,
        "parameters": job.parameters, "rule": {"name": job.rule, "version": job.rule_version, "title": rule_title},
        "job": {"kind": job.kind, "severity": job.severity, "period": job.period, "dimensions": job.dimensions,
                "window": job.window, "count": len(job.occurrences), "correlation": job.correlation},
    }


def _checked(template: ActionTemplate, body: Mapping[str, Any]) -> Rendered:
    for name in ("title", "text", "operation"):
        if name in body and not str(body[name]).strip():
            raise sandbox.Refused(f"{name} is empty")
    title = " ".join(str(body.get("title") or body.get("operation") or template.metadata.title).split())
    if len(title) > MAX_TITLE:
        raise sandbox.Refused(f"the title has {len(title)} characters, allowed are {MAX_TITLE}")
    return Rendered(title, str(body.get("text") or title), dict(body))


# --- dry runs ---------------------------------------------------------------------------------------------


def samples(project_dir: Path, name: str) -> dict[str, Mapping[str, Any]]:
    """The sample events beside a template, by file name.

    Raises:
        BareCountError: declaration.invalid for a file that is no event.
    """
    found = {}
    for file in sorted(samples_folder(project_dir, name).glob("*.json")):
        try:
            found[file.name] = read_sample(file)
        except ValueError as error:
            raise BareCountError(ErrorCode.DECLARATION_INVALID, f"{file.name} {error}",
                                 hint="`barecount check` lists everything that is wrong") from error
    return found


def dry_run(
    template: ActionTemplate, events_by_name: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Any]
) -> DryRun:
    """Render a template's bodies against events; nothing is sent and nothing is stored.

    Args:
        parameters: as a rule would give them; its schema decides whether they are taken.
    """
    results = []
    problems = template.parameter_problems(parameters)
    bodies = ["body", *(["recovery"] if template.spec.recovery is not None else [])]
    for name, envelope in events_by_name.items():
        for body in bodies:
            if problems:
                where = ".".join(("parameters", *map(str, problems[0][0])))
                results.append(SampleResult(name, body, None, f"{where}: {problems[0][1]}"))
                continue
            job = _sample_job(template, envelope, parameters, body)
            try:
                results.append(SampleResult(name, body, render(template, job, "Title of the rule")))
            except sandbox.Refused as refused:
                results.append(SampleResult(name, body, None, f"line {refused.line}: {refused}"))
    return DryRun(template.name, template.hash, canonical_hash(dict(events_by_name)), tuple(results))


def example_parameters(template: ActionTemplate) -> dict[str, Any]:
    """Parameters that the schema takes: defaults, or the plainest value of each required type."""
    plain = {"string": "text", "number": 1.5, "integer": 1, "boolean": True, "array": [], "object": {}}
    properties = template.spec.parameters.get("properties") or {}
    required = template.spec.parameters.get("required") or ()
    found = {}
    for name, schema in properties.items():
        if "default" in schema:
            found[name] = schema["default"]
        elif "enum" in schema:
            found[name] = schema["enum"][0]
        elif name in required:
            found[name] = schema.get("minimum", plain.get(schema.get("type", "string")))
    return found


def _sample_job(
    template: ActionTemplate, envelope: Mapping[str, Any], parameters: Mapping[str, Any], body: str
) -> JobDraft:
    from resources.action.values import facts_of

    at = dt.datetime.fromisoformat(envelope["time"])
    signal = Signal(0, envelope["id"], envelope["tenant"], envelope["type"], envelope["subject"], at, envelope)
    occurrence = Occurrence(signal.event_id, 0, signal.series, signal.period, envelope,
                            facts_of(signal, SeriesFacts()), signal.labels)
    return JobDraft(
        signal.tenant_id, "sample", template.metadata.version, "recovery" if body == "recovery" else "alert",
        signal.subject, signal.dimensions, signal.period, "episode 0", "warning", template.name, parameters,
        ("sample",), "sample", (occurrence,), JobState.QUEUED)


# --- the catalog ------------------------------------------------------------------------------------------


def record_dry_run(connection: psycopg.Connection, tenant_id: str, run: DryRun, now: dt.datetime) -> None:
    """Put a dry run that passed on record, in the caller's transaction; once per content and samples."""
    key = (tenant_id, run.template, run.digest, run.samples_sha256)
    if fetch(connection, _DRY_RUN, key):
        return
    facts = {"digest": run.digest, "samples_sha256": run.samples_sha256, "samples": len(run.results)}
    seq = ledger.append(connection, ledger.Entry(
        tenant_id, "template.dry_run_passed", run.template, f"{run.digest[:32]}-{run.samples_sha256[:32]}", facts))
    fetch(connection, "insert into platform.action_dry_run values ($1, $2, $3, $4, $5::int, $6, $7::bigint)",
          (*key, len(run.results), now, seq))


def submit(
    connection: psycopg.Connection, tenant_id: str, template: ActionTemplate, samples_sha256: str, by: str,
    now: dt.datetime,
) -> TemplateVersion:
    """Put a version up for review, in the caller's transaction; one that is on record already is answered as it is.

    Raises:
        BareCountError: template.untested without a dry run that passed of exactly this content and these samples;
            template.immutable when the version number stands for another content.
    """
    known = {version.digest: version for version in versions(connection, tenant_id, template.name)}
    if template.hash in known:
        return known[template.hash]
    if not fetch(connection, _DRY_RUN, (tenant_id, template.name, template.hash, samples_sha256)):
        raise BareCountError(
            ErrorCode.TEMPLATE_UNTESTED,
            f"template {template.name} {template.metadata.version} has no dry run that passed for tenant {tenant_id}, "
            f"with the content {template.hash[:12]} and the sample events as they are now",
            hint=f"barecount actions templates dry-run {template.name} --tenant {tenant_id}",
        )
    taken = next((v for v in known.values() if v.version == template.metadata.version), None)
    if taken is not None:
        raise BareCountError(
            ErrorCode.TEMPLATE_IMMUTABLE,
            f"version {taken.version} of template {template.name} is on record with another content: "
            f"{taken.digest[:12]}, declared is {template.hash[:12]}",
            hint="raise metadata.version: a version never changes",
        )
    facts = {"digest": template.hash, "version": template.metadata.version, "samples_sha256": samples_sha256, "by": by}
    seq = ledger.append(connection, ledger.Entry(
        tenant_id, "template.submitted", template.name, template.hash, facts))
    document = template.model_dump(mode="json", by_alias=True, exclude_unset=True)
    fetch(connection, _SUBMIT, (tenant_id, template.name, template.hash, template.metadata.version, as_json(document),
                                samples_sha256, by, now, seq))
    return versions(connection, tenant_id, template.name, digest=template.hash)[0]


def ensure_key(database: Database, keys: KeyStore, tenant_id: str) -> None:
    """Make the tenant's signing key if it has none, in a transaction of its own; call it before `publish`."""
    with database.connect(autocommit=True) as connection:
        known = checkpoints.announcements(connection, tenant_id)
    if not known:
        checkpoints.create(database, keys, tenant_id)


def publish(
    connection: psycopg.Connection, keys: KeyStore, version: TemplateVersion, approved_by: str, now: dt.datetime
) -> TemplateVersion:
    """Sign a version and make it the published one, in the caller's transaction; the one before is deprecated.

    The decision that it may be published is the caller's: ask the policies first.

    Raises:
        BareCountError: access.denied when the tenant's private key is not here.
    """
    if version.state == "published":
        return version
    key = checkpoints.announcements(connection, version.tenant_id)[-1].key
    note = keys.sign(key, _signed_text(version)).decode()
    fetch(connection, "update platform.action_template set state = 'deprecated' "
                      "where tenant_id = $1 and name = $2 and state = 'published'", (version.tenant_id, version.name))
    facts = {"digest": version.digest, "version": version.version, "approved_by": approved_by, "key": key.id}
    token = f"{version.digest}-{now.isoformat()}"
    seq = ledger.append(connection, ledger.Entry(version.tenant_id, "template.published", version.name, token, facts))
    events.append(connection, events.Event(version.tenant_id, "template.published", version.name, token, facts,
                                           evidence_seq=seq))
    fetch(connection, _PUBLISH, (version.tenant_id, version.name, version.digest, now, note, seq))
    return versions(connection, version.tenant_id, version.name, digest=version.digest)[0]


def request_publication(
    database: Database, keys: KeyStore, declarations: Declarations, tenant_id: str, name: str, by: str, now: dt.datetime
) -> TemplateVersion:
    """Submit the declared content of a template and publish it, if the policies allow it; ask again once approved.

    Raises:
        BareCountError: template.untested, template.immutable; policy.denied; approval.required naming the request.
    """
    template = declarations.action_template(name)
    digest = canonical_hash(samples(declarations.project_dir, name))
    ensure_key(database, keys, tenant_id)
    with database.transaction() as connection:
        version = submit(connection, tenant_id, template, digest, by, now)
        if version.state == "published":
            return version
        current = next((v for v in versions(connection, tenant_id, name) if v.state == "published"), None)
        facts = TemplatePublication(
            tenant=tenant_id, template=name, version=version.version, digest=version.digest, kind=template.spec.kind,
            replaces=current.version if current else "")
        decision = policies.decide(
            connection, declarations.policies, facts, subject=f"template {name} {version.version}", requested_by=by,
            now=now)
    policies.require(decision)
    approval = decision.approval
    approved_by = approval.decided_by if isinstance(approval, policies.GrantedApproval) else "policy"
    with database.transaction() as connection:
        return publish(connection, keys, version, approved_by, now)


def deprecate(connection: psycopg.Connection, tenant_id: str, name: str, by: str, now: dt.datetime) -> None:
    """Withdraw the published version, in the caller's transaction: jobs of its rules fail until another is published.

    Raises:
        BareCountError: declaration.unknown when none is published.
    """
    found = next((v for v in versions(connection, tenant_id, name) if v.state == "published"), None)
    if found is None:
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"template {name} is not published for tenant {tenant_id}",
                             hint="`barecount actions templates list` shows what is")
    token = f"{found.digest}-{now.isoformat()}"
    facts = {"digest": found.digest, "version": found.version, "by": by}
    seq = ledger.append(connection, ledger.Entry(tenant_id, "template.deprecated", name, token, facts))
    events.append(connection, events.Event(tenant_id, "template.deprecated", name, token, facts, evidence_seq=seq))
    fetch(connection, "update platform.action_template set state = 'deprecated', evidence_seq = $4::bigint "
                      "where tenant_id = $1 and name = $2 and digest = $3", (tenant_id, name, found.digest, seq))


def versions(
    connection: psycopg.Connection, tenant_id: str | None = None, name: str | None = None, *, digest: str | None = None
) -> list[TemplateVersion]:
    """Versions on record, the newest first."""
    return [TemplateVersion(**row) for row in fetch_dicts(connection, _VERSIONS, (tenant_id, name, digest))]


def published(connection: psycopg.Connection, tenant_id: str, name: str) -> ActionTemplate:
    """The template that jobs of a tenant are rendered from, its content and signature verified.

    Raises:
        BareCountError: template.unpublished; evidence.broken when content or signature are not what was published.
    """
    found = next((v for v in versions(connection, tenant_id, name) if v.state == "published"), None)
    if found is None:
        raise BareCountError(
            ErrorCode.TEMPLATE_UNPUBLISHED, f"template {name} is not published for tenant {tenant_id}",
            hint=f"barecount actions templates publish {name} --tenant {tenant_id}",
        )
    if problem := _signature_problem(connection, found):
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN, f"template {name} {found.version} of tenant {tenant_id} is not used: {problem}",
            hint="somebody changed the database: see `barecount evidence verify`, then publish a new version",
        )
    return ActionTemplate.model_validate_json(as_json(found.document)).with_hash(found.digest)


def _signature_problem(connection: psycopg.Connection, version: TemplateVersion) -> str | None:
    if canonical_hash(version.document) != version.digest:
        return "its content does not have its digest"
    try:
        note = Note.parse((version.note or "").encode())
    except Malformed as error:
        return f"its signature cannot be read ({error})"
    if note.text != _signed_text(version):
        return "its signature is for another version"
    if not any(known.key.signed(note) for known in checkpoints.announcements(connection, version.tenant_id)):
        return "it is not signed by a key of the tenant"
    return None


def _signed_text(version: TemplateVersion) -> str:
    return "\n".join((_ORIGIN.format(tenant=version.tenant_id), version.name, version.version, version.digest,
                      version.samples_sha256, ""))


def state_of(template: ActionTemplate, on_record: Sequence[TemplateVersion]) -> str:
    """State of the declared content: draft, in review, published or deprecated."""
    return next((version.state for version in on_record if version.digest == template.hash), "draft")


_DRY_RUN = """
select 1 from platform.action_dry_run where tenant_id = $1 and name = $2 and digest = $3 and samples_sha256 = $4
"""
_SUBMIT = """
insert into platform.action_template (
    tenant_id, name, digest, version, document, samples_sha256, state, submitted_by, submitted_at, evidence_seq)
values ($1, $2, $3, $4, $5::text::jsonb, $6, 'in review', $7, $8, $9::bigint)
"""
_PUBLISH = """
update platform.action_template set state = 'published', published_at = $4, note = $5, evidence_seq = $6::bigint
where tenant_id = $1 and name = $2 and digest = $3
"""
_VERSIONS = """
select tenant_id, name, digest, version, document, samples_sha256, state, submitted_by, submitted_at, published_at, note
from platform.action_template
where ($1::text is null or tenant_id = $1) and ($2::text is null or name = $2) and ($3::text is null or digest = $3)
order by tenant_id, name, submitted_at desc, version desc
"""
