"""Evaluating policies: facts go in, the strictest effect of the rules that hold comes out. Pure, and quick.

A condition that cannot be evaluated, and a mandatory policy that is not there, deny. Where no rule holds, the answer is
allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from resources.governance import policy_conditions as conditions
from resources.governance.decision_points import POINTS, Facts
from resources.governance.policy_files import EFFECTS, Effect, Policy, Rule, Scope
from resources.runtime.declared import canonical_hash


@dataclass(frozen=True)
class Match:
    """A rule that held."""

    policy: str
    version: str
    rule: str
    effect: Effect
    message: str


@dataclass(frozen=True)
class Problem:
    """Why a policy denied without a rule of its own: its condition failed (`rule`), or it is missing (no rule)."""

    policy: str
    rule: str
    message: str


@dataclass(frozen=True)
class AppliedPolicy:
    """A policy version that was asked."""

    policy: str
    version: str
    content_hash: str


@dataclass(frozen=True)
class Verdict:
    """Answer of the policies, with its reasons; `missing` are mandatory policies that were not there."""

    effect: Effect
    matched: tuple[Match, ...] = ()
    problems: tuple[Problem, ...] = ()
    applied: tuple[AppliedPolicy, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def decisive(self) -> tuple[Match, ...]:
        """The matches that the effect comes from."""
        return tuple(match for match in self.matched if match.effect == self.effect)


@dataclass(frozen=True)
class _CompiledRule:
    """A rule, and the match that it is whenever it holds."""

    rule: Rule
    match: Match
    condition: conditions.Condition | None
    broken: str = ""


@dataclass(frozen=True)
class _CompiledPolicy:
    policy: Policy
    scope: Scope
    applied: AppliedPolicy
    rules: tuple[_CompiledRule, ...]


@dataclass(frozen=True)
class PolicySet:
    """Policies made ready to be asked many times: conditions compiled once, policies sorted by decision point.

    Attributes:
        named: facts that a condition of a decision point names.
        mandatory_inactive: policies that must be asked and cannot be.
    """

    policies: tuple[Policy, ...]
    by_point: Mapping[str, tuple[_CompiledPolicy, ...]] = field(repr=False)
    named: Mapping[str, tuple[str, ...]] = field(repr=False)
    mandatory_inactive: tuple[Policy, ...] = ()

    @classmethod
    def of(cls, policies: Mapping[str, Policy] | Iterable[Policy]) -> PolicySet:
        """Of declared policies; the same policies are compiled only once per process."""
        listed = tuple(policies.values()) if isinstance(policies, Mapping) else tuple(policies)
        return _compiled(tuple(_ByIdentity(policy) for policy in listed))

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(policy.name for policy in self.policies)

    def fingerprint(self, point: str) -> str:
        """Changes with the policies of a decision point: part of occurrences that are decided again when they do."""
        return canonical_hash([item.applied.content_hash for item in self.by_point[point]])


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """A policy as a cache key: by what it says, not by comparing every field of it."""

    policy: Policy

    @cached_property
    def _identity(self) -> tuple[str, str]:
        return self.policy.content_hash, self.policy.spec.status

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self._identity == other._identity


@lru_cache(maxsize=64)
def _compiled(keys: tuple[_ByIdentity, ...]) -> PolicySet:
    policies = tuple(sorted((key.policy for key in keys), key=lambda policy: policy.name))
    by_point: dict[str, list[_CompiledPolicy]] = {point: [] for point in POINTS}
    for policy in policies:
        if policy.active:
            applied = AppliedPolicy(policy.name, policy.version, policy.content_hash)
            by_point[policy.spec.point].append(
                _CompiledPolicy(policy, policy.spec.scope, applied,
                                tuple(_compile(policy, rule) for rule in policy.spec.rules)))
    inactive = tuple(policy for policy in policies if policy.spec.mandatory and not policy.active)
    named = {point: _named(point, found) for point, found in by_point.items()}
    return PolicySet(policies, {point: tuple(found) for point, found in by_point.items()}, named, inactive)


def _named(point: str, policies: Iterable[_CompiledPolicy]) -> tuple[str, ...]:
    """Facts that a condition names: converting the others would take most of a decision's time."""
    names = {name for item in policies for rule in item.rules if rule.condition for name in rule.condition.names}
    return tuple(field.name for field in POINTS[point].fields() if field.name in names)


def _compile(policy: Policy, rule: Rule) -> _CompiledRule:
    match = Match(policy.name, policy.version, rule.id, rule.effect, rule.message)
    try:
        return _CompiledRule(rule, match, conditions.compile_condition(rule.condition))
    except conditions.ConditionError as error:
        return _CompiledRule(rule, match, None, str(error))


def evaluate(policies: PolicySet, facts: Facts, missing: Iterable[str] = ()) -> Verdict:
    """What the policies say to these facts.

    Args:
        missing: names of mandatory policies that must answer these facts and are not among `policies`.
    """
    matched: list[Match] = []
    absent = tuple(missing)
    if policies.mandatory_inactive:
        absent = (*(policy.name for policy in policies.mandatory_inactive if concerns(policy, facts)), *absent)
    problems = [Problem(name, "", f"mandatory policy {name} is missing or not active") for name in absent]
    asked = [item for item in policies.by_point[facts.point] if item.scope.covers(facts)]
    if asked:
        _ask(asked, facts, policies.named[facts.point], matched, problems)
    effect = "deny" if problems else max((match.effect for match in matched), key=EFFECTS.index, default=EFFECTS[0])
    return Verdict(effect, tuple(matched), tuple(problems), tuple(item.applied for item in asked), absent)


def concerns(policy: Policy, facts: Facts) -> bool:
    """Whether a policy, active or not, is about these facts."""
    return policy.spec.point == facts.point and policy.spec.scope.covers(facts)


def _ask(
    asked: list[_CompiledPolicy], facts: Facts, named: tuple[str, ...], matched: list[Match], problems: list[Problem]
) -> None:
    try:
        values = conditions.context(facts.values(named))
    except conditions.ConditionError as error:
        problems += [Problem(item.policy.name, item.rules[0].rule.id, str(error)) for item in asked]
        return
    for item in asked:
        for compiled in item.rules:
            try:
                if compiled.condition is None:
                    raise conditions.ConditionError(compiled.broken)
                if compiled.condition.holds(values):
                    matched.append(compiled.match)
            except conditions.ConditionError as error:
                problems.append(Problem(compiled.match.policy, compiled.match.rule, str(error)))
