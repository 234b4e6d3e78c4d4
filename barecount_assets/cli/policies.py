"""`barecount policies`: what is declared, what was decided and why, and the same decision made again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    from resources.governance.decision_points import Facts
    from resources.governance.policies import Decision, Replayed
    from resources.governance.policy_evaluation import Verdict

app = typer.Typer(no_args_is_help=True, help="Policies: rules, decisions, and decisions made again.")

Point = Annotated[str | None, typer.Option("--point", help="Only this decision point.")]
_COLOURS = {"allow": "green", "warn": "yellow", "require_approval": "yellow", "deny": "red"}


@command(app, "list")
def listed(point: Point = None, as_json: Json = False) -> None:
    """Every declared policy: where it is asked, for whom, with which effects."""
    from resources.governance import declarations

    found = [policy for policy in declarations.load(Settings.from_environment().project_dir).policies.values()
             if point in (None, policy.spec.point)]
    if as_json:
        output.print_json([policy.model_dump(mode="json", by_alias=True) | {"content_hash": policy.content_hash}
                           for policy in found])
        return
    output.console().print(output.table(
        None, ("policy", "version", "status", "asked at", "scope", "mandatory", "rules"),
        [(p.name, p.version, p.spec.status, p.spec.point, _scope(p.spec.scope.model_dump()),
          "yes" if p.spec.mandatory else "-", ", ".join(f"{rule.id}: {rule.effect}" for rule in p.spec.rules))
         for p in found]))


@command(app)
def show(name: Annotated[str, typer.Argument(help="Name of the policy.")], as_json: Json = False) -> None:
    """One policy with its rules, and the facts its conditions may name."""
    from rich.markup import escape

    from resources.governance import declarations
    from resources.governance.decision_points import POINTS

    policy = declarations.load(Settings.from_environment().project_dir).policy(name)
    fields = POINTS[policy.spec.point].fields()
    if as_json:
        output.print_json(policy.model_dump(mode="json", by_alias=True)
                          | {"content_hash": policy.content_hash, "facts": [asdict(item) for item in fields]})
        return
    console = output.console()
    console.print(f"[bold]{policy.name}[/] {policy.version} ({policy.spec.status}), asked at {policy.spec.point}: "
                  f"{POINTS[policy.spec.point].about}", soft_wrap=True)
    console.print(escape(policy.metadata.description), soft_wrap=True)
    for rule in policy.spec.rules:
        console.print(f"\n  [{_COLOURS[rule.effect]}]{rule.effect}[/] {rule.id}: {escape(rule.message)}\n"
                      f"      when {escape(rule.condition)}", soft_wrap=True)
    console.print(output.table("\nFacts", ("name", "type", "says"), [(f.name, f.type, f.meaning) for f in fields]))


@command(app)
def check(as_json: Json = False) -> None:
    """Errors in policies alone; `barecount check` shows those of everything declared."""
    from resources.governance import declarations

    findings = [finding for finding in declarations.check(Settings.from_environment().project_dir)
                if finding.file.startswith("contracts/policies/")]
    if as_json:
        output.print_json({"valid": not findings, "findings": [asdict(finding) for finding in findings]})
    for finding in () if as_json else findings:
        typer.echo(str(finding))
    if not as_json:
        typer.echo(f"{len(findings)} errors" if findings else "every policy is valid")
    if findings:
        raise typer.Exit(1)


@command(app, "try")
def attempt(
    point: Annotated[str, typer.Argument(help="Decision point.")],
    fact: Annotated[list[str] | None, typer.Option("--fact", help="NAME=VALUE; lists with commas. Repeatable.")] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant id.")] = "",
    as_json: Json = False,
) -> None:
    """What the declared policies would say to these facts; nothing is recorded, no database is needed."""
    from resources.governance import declarations
    from resources.governance.policy_evaluation import PolicySet, evaluate

    facts = _facts(point, {"tenant": tenant, **_pairs(fact or [])})
    policies = declarations.load(Settings.from_environment().project_dir).policies
    verdict = evaluate(PolicySet.of(policies), facts)
    if as_json:
        output.print_json({**asdict(verdict), "facts": facts.values()})
    else:
        _print_verdict(verdict)


@command(app)
def decisions(
    tenant: Tenant = None,
    point: Point = None,
    effect: Annotated[str | None, typer.Option("--effect", help="allow, warn, require_approval or deny.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Newest decisions to show.")] = 20,
    as_json: Json = False,
) -> None:
    """What was decided, newest first."""
    from resources.governance import policies

    with environment().database.connect(autocommit=True) as connection:
        found = policies.decisions(connection, tenant_id=tenant, point=point, effect=effect, limit=limit)
    if as_json:
        output.print_json([_to_json(decision) for decision in found])
        return
    output.console().print(output.table(
        None, ("decision", "at (UTC)", "tenant", "asked at", "about", "effect", "why"),
        [(d.decision_id, f"{d.decided_at:%Y-%m-%d %H:%M:%S}", d.question.facts.tenant, d.question.facts.point,
          d.question.subject, d.effect, "; ".join(_reasons(d.verdict)) or "no rule held") for d in found], right=(0,)))


@command(app)
def replay(
    number: Annotated[int, typer.Argument(metavar="DECISION", min=1, help="Number of the decision.")],
    as_json: Json = False,
) -> None:
    """Make a decision again from the rules and facts on record; exits 1 when the answer is another one."""
    from resources.governance import policies

    with environment().database.connect(autocommit=True) as connection:
        found = policies.replay(connection, number)
    if as_json:
        output.print_json({"same": found.same, "facts_intact": found.facts_intact, "rules_intact": found.rules_intact,
                           "recorded": _to_json(found.decision), "now": asdict(found.verdict)})
    else:
        _print_replay(found)
    if not found.same:
        raise typer.Exit(1)


def _print_replay(found: Replayed) -> None:
    from rich.markup import escape

    console, decision = output.console(), found.decision
    question = decision.question
    console.print(f"decision {decision.decision_id} of {decision.decided_at:%Y-%m-%d %H:%M:%S} UTC: "
                  f"{question.facts.point} of {escape(question.subject)} for {question.facts.tenant}, asked by "
                  f"{escape(question.requested_by)}", soft_wrap=True)
    console.print("policies   " + (", ".join(f"{item.policy} {item.version} ({item.content_hash[:12]})"
                                             for item in decision.verdict.applied) or "none applied"), soft_wrap=True)
    for name, value in decision.question.facts.values().items():
        console.print(f"  [dim]{name:<28}[/] {escape(str(value))}", soft_wrap=True)
    console.print("recorded")
    _print_verdict(decision.verdict)
    console.print("now")
    _print_verdict(found.verdict)
    console.print("[green]the same answer[/]" if found.same else "[red]ANOTHER ANSWER[/]: " + (
        "the facts on record were changed" if not found.facts_intact else
        "the rules on record were changed" if not found.rules_intact else "the evaluator decides differently"))


def _print_verdict(verdict: Verdict) -> None:
    from rich.markup import escape

    console = output.console()
    console.print(f"  [{_COLOURS[verdict.effect]}]{verdict.effect}[/]")
    for match in verdict.matched:
        console.print(f"    {match.effect}: {escape(match.message)} (policy {match.policy} {match.version}, "
                      f"rule {match.rule})", soft_wrap=True)
    for problem in verdict.problems:
        console.print(f"    deny: {escape(problem.message)} (policy {problem.policy}"
                      + (f", rule {problem.rule})" if problem.rule else ")"), soft_wrap=True)


def _reasons(verdict: Verdict) -> list[str]:
    return [match.message for match in verdict.decisive] + [problem.message for problem in verdict.problems]


def _to_json(decision: Decision) -> dict[str, Any]:
    question = decision.question
    return {
        "decision": decision.decision_id, "at": decision.decided_at, "tenant": question.facts.tenant,
        "point": question.facts.point, "subject": question.subject, "occurrence": question.occurrence,
        "requested_by": question.requested_by, "facts": question.facts.values(), "facts_hash": decision.facts_hash,
        "evidence": decision.evidence_seq, **asdict(decision.verdict),
    }


def _scope(parts: dict[str, Any]) -> str:
    return "; ".join(f"{name} {', '.join(value)}" for name, value in parts.items() if value) or "everything"


def _pairs(facts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in facts:
        name, separator, value = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def _facts(point: str, given: dict[str, str]) -> Facts:
    """Facts of a decision point from texts; what is not given has its default, or is empty."""
    from resources.governance.decision_points import POINTS

    if point not in POINTS:
        raise typer.BadParameter(f"{point!r} is no decision point, allowed: {', '.join(POINTS)}")
    kinds = {item.name: item.type for item in POINTS[point].fields()}
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise typer.BadParameter(f"{point} has no fact {', '.join(unknown)}, allowed: {', '.join(kinds)}")
    wanted = POINTS[point].required() | set(given)
    return POINTS[point](**{
        name: _value(name, kind, given.get(name, "")) for name, kind in kinds.items() if name in wanted
    })


def _value(name: str, kind: str, text: str) -> Any:
    if kind == "string":
        return text
    if kind == "bool":
        if text not in ("", "true", "false"):
            raise typer.BadParameter(f"{name} is {text!r}, allowed: true, false")
        return text == "true"
    if kind == "int":
        try:
            return int(text or 0)
        except ValueError:
            raise typer.BadParameter(f"{name} is {text!r}, allowed: a whole number") from None
    return tuple(part for part in text.split(",") if part)
