"""Policies as declared: one file per policy, `contracts/policies/<name>.yaml`, one version in it.

A version never changes: the database remembers the rules of every version that was ever asked, and refuses others
under its number. Status is no part of a version: draft rules are checked and not asked, archived ones are history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import Field, StringConstraints, field_validator

from resources.governance import policy_conditions as conditions
from resources.governance.decision_points import POINTS, Facts
from resources.governance.manifests import once
from resources.runtime.declared import (
    Declared,
    DeclaredDocument,
    Name,
    OwnedMetadata,
    Text,
    canonical_hash,
    did_you_mean,
    listed,
    refusal,
)
from resources.runtime.yaml_source import FieldPath

Effect = Literal["allow", "warn", "require_approval", "deny"]
EFFECTS: tuple[Effect, ...] = ("allow", "warn", "require_approval", "deny")
"""From the mildest to the strictest."""

RuleId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
DatasetOrNamespace = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,39}(\.[a-z][a-z0-9_]{1,39})?$")]


class Scope(Declared):
    """What a policy is bound to; a part that is left out, or empty, does not narrow it.

    `schemas` are datasets (`namespace.name`) or whole namespaces; `workflows` are pipelines.
    """

    tenants: tuple[Name, ...] = ()
    schemas: tuple[DatasetOrNamespace, ...] = ()
    workflows: tuple[Name, ...] = ()

    def covers(self, facts: Facts) -> bool:
        """Whether these facts are within the scope."""
        if self.tenants and facts.tenant not in self.tenants:
            return False
        if self.workflows and facts.pipeline not in self.workflows:
            return False
        if not self.schemas:
            return True
        return any(name in self.schemas or name.partition(".")[0] in self.schemas for name in facts.datasets)


class Approval(Declared):
    """How long a request for approval waits for an answer, and how long a granted one counts."""

    request_hours: int = Field(default=72, ge=1, le=24 * 90)
    valid_hours: int = Field(default=24, ge=1, le=24 * 90)


class Rule(Declared):
    """When `condition` holds, `effect` applies, and `message` says why and what to do."""

    id: RuleId
    condition: Annotated[str, StringConstraints(min_length=1, max_length=conditions.MAX_LENGTH)]
    effect: Effect
    message: Text


class PolicySpec(Declared):
    """Where a policy is asked and what it answers.

    A mandatory policy must be active: where it is missing, everything in its scope is denied.
    """

    status: Literal["draft", "active", "archived"]
    point: str
    mandatory: bool = False
    scope: Scope = Scope()
    approval: Approval = Approval()
    rules: tuple[Rule, ...] = Field(min_length=1)

    @field_validator("point")
    @classmethod
    def _is_known(cls, point: str) -> str:
        if point not in POINTS:
            raise refusal("unknown decision point" + did_you_mean(point, POINTS), allowed=listed(POINTS))
        return point

    @field_validator("rules")
    @classmethod
    def _ids_once(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        once([rule.id for rule in rules], part="id")
        return rules


class Policy(DeclaredDocument):
    """A policy in one version."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["Policy"]
    metadata: OwnedMetadata
    spec: PolicySpec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def version(self) -> str:
        return self.metadata.version

    @property
    def active(self) -> bool:
        return self.spec.status == "active"

    @property
    def document(self) -> dict[str, Any]:
        """The version without its status, as JSON carries it."""
        document = self.model_dump(mode="json", by_alias=True)
        del document["spec"]["status"]
        return document

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON of `document`: what a version may never change."""
        return canonical_hash(self.document)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Policy:
        """The active policy of a stored `document`."""
        return cls.model_validate_json(rfc8785.dumps({**document, "spec": {**document["spec"], "status": "active"}}))


def condition_problems(policy: Policy) -> Iterator[tuple[FieldPath, conditions.Problem]]:
    """Every condition that is no CEL, names an unknown variable or has a wrong type, with its place."""
    types = POINTS[policy.spec.point].types()
    for index, rule in enumerate(policy.spec.rules):
        if problem := conditions.check(rule.condition, types):
            yield ("spec", "rules", index, "condition"), problem
