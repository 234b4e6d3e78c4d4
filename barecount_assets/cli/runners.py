"""`barecount runners`: what would run where. Nothing here starts anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, settings
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    from resources.host.runner_catalog import Environment, RunnerSizes

app = typer.Typer(no_args_is_help=True, help="Runner classes, sizes and network profiles of an environment.")

In = Annotated[str | None, typer.Option("--environment", help="Name of a file of deploy/environments.")]


@command(app, "list")
def listed(environment: In = None, as_json: Json = False) -> None:
    """Runner classes of the environment: their backend, and what its sizes are."""
    declared, sizes = _catalog(environment)
    rows = [_class(declared, sizes, name) for name in declared.spec.classes]
    if as_json:
        output.print_json({"environment": declared.name, "classes": rows,
                           "networks": {k: v.model_dump() for k, v in declared.spec.networks.items()}})
        return
    typer.echo(f"environment {declared.name}: {declared.metadata.description}")
    output.console().print(output.table(
        None, ("class", "backend", "size", "vCPU", "memory MB", "at once", "timeout s", "flavor"),
        [(row["class"], row["backend"], name, size["vcpu"], size["memory_mb"], size["concurrency"],
          size["timeout_seconds"], size["flavor"] or "-") for row in rows for name, size in row["sizes"].items()],
        right=(3, 4, 5, 6)))
    kinds = {name: "by an agent" if network.queue else "public" if network.public else "private"
             for name, network in declared.spec.networks.items()}
    typer.echo("network profiles: " + ", ".join(f"{name} ({kind})" for name, kind in kinds.items()))


@command(app)
def show(
    runner_class: Annotated[str, typer.Argument(metavar="CLASS")], environment: In = None, as_json: Json = False,
) -> None:
    """One runner class: where its work goes in this environment."""
    declared, sizes = _catalog(environment)
    declared.backend_of(runner_class)
    found = _class(declared, sizes, runner_class)
    if as_json:
        output.print_json(found)
        return
    for name, value in found.items():
        if name != "sizes":
            typer.echo(f"{name:12} {value}")
    for name, size in found["sizes"].items():
        typer.echo(f"{name:12} " + ", ".join(f"{key} {value}" for key, value in size.items() if value is not None))


@command(app)
def test(
    runner_class: Annotated[str, typer.Argument(metavar="CLASS")],
    size: Annotated[str, typer.Option("--size")] = "medium",
    network_profile: Annotated[str, typer.Option("--network-profile")] = "private_vpc",
    pipeline: Annotated[str, typer.Option("--pipeline", help="Whose stages (default: the first).")] = "",
    tenant: Tenant = None,
    environment: In = None,
    as_json: Json = False,
) -> None:
    """A dry run: what a stage of this placement would be given, and what policies would say to it."""
    from resources.governance import declarations, policies
    from resources.governance.decision_points import RunStart, cost_class, highest_classification
    from resources.runners.bounds import Bounds
    from resources.runners.facade import RunnerFacade
    from resources.runners.stage import Placement, Stage, StageSpec

    found = Settings.from_environment()
    declared, sizes = _catalog(environment)
    known = declarations.load(found.project_dir)
    manifest = known.pipeline(pipeline or next(iter(known.pipelines)))
    owner = tenant or manifest.spec.tenants[0]
    known.effective(manifest.name, owner)
    spec = StageSpec(Stage.NORMALIZATION, owner, manifest.name, Placement(runner_class, size, network_profile))
    classification = highest_classification(known.contracts_of(manifest.name))
    bounds = Bounds(known.tenant(owner).spec.runners, classification)
    work = RunnerFacade(declared, sizes, _refuse).plan(spec, "dry run")
    outside = bounds.problems(spec, work.network, declared)
    facts = RunStart(
        tenant=owner, pipeline=manifest.name, runner_class=runner_class, runner_size=size,
        network_profile=network_profile, cost_class=cost_class(runner_class, size),
        classification=classification,
    )
    verdict = policies.evaluate(policies.PolicySet.of(known.policies), facts)
    answer = {
        "would_run": verdict.effect in ("allow", "warn") and not outside, "policy": verdict.effect,
        "because": [f"{match.policy}/{match.rule}: {match.message}" for match in verdict.matched]
        + [str(problem) for problem in verdict.problems] + outside,
        "backend": declared.backend_on(runner_class, network_profile).model_dump(), "identity": dict(work.identity),
        "size": work.size.model_dump(), "network": work.network.model_dump(),
        "tags": dict(work.tags), "payload": work.run_spec.to_json(),
    }
    if as_json:
        output.print_json(answer)
    else:
        why = "not allowed" if outside else verdict.effect
        typer.echo(f"{manifest.name} of {owner} in {declared.name}: "
                   + ("would run" if answer["would_run"] else f"would not run ({why})"))
        for reason in answer["because"]:
            typer.echo(f"  {reason}")
        for name in ("backend", "size", "network", "tags"):
            typer.echo(f"{name:12} " + ", ".join(f"{k} {v}" for k, v in answer[name].items() if v not in (None, ())))
    if not answer["would_run"]:
        raise typer.Exit(1)


def _catalog(environment: str | None) -> tuple[Environment, RunnerSizes]:
    from resources.host import runner_catalog

    found = settings()
    return (runner_catalog.read_environment(found.project_dir, environment or found.environment),
            runner_catalog.read_sizes(found.project_dir))


def _class(declared: Environment, sizes: RunnerSizes, name: str) -> dict[str, Any]:
    backend = declared.backend_of(name)
    from resources.host.runner_catalog import SIZES

    own = {key: value for key, value in backend.model_dump().items() if key != "backend"}
    return {"class": name, "backend": backend.backend, **own,
            "sizes": {name: sizes.size(backend.backend, name).model_dump() for name in SIZES}}


def _refuse(*_: object) -> Any:
    raise AssertionError("a dry run starts nothing")
