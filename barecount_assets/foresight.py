"""What can be known before a run.

`barecount check` refuses a definition that changed under its version, and a model that would break an obligation that
blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from barecount_assets import project_definitions, project_lineage
from resources.governance import definitions, lineage_lock, obligation_judge
from resources.governance.declarations import Declarations
from resources.governance.obligation_judge import Facts, Outcome, Violation
from resources.runtime.settings import Settings, stage_code_version
from resources.runtime.yaml_source import Finding


@dataclass(frozen=True)
class Foreseen:
    """What can be known before a run.

    Attributes:
        findings: what would be refused: changed definitions, violations that would block a publication.
        warnings: violations that would not, columns of which it is not known where they come from, and definitions
            that the next run compares with those before.
    """

    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def foresee(settings: Settings, declarations: Declarations) -> Foreseen:
    """Judge definitions and obligations by what is declared.

    Compiles the models when `contracts/definitions.json` or `contracts/lineage.json` is not current.

    Raises:
        BareCountError: transform.failed when dbt cannot read the project.
    """
    found = Foreseen()
    _judge_definitions(settings, declarations, found)
    if declarations.obligations:
        _judge_obligations(settings, declarations, found)
    return found


def _judge_definitions(settings: Settings, declarations: Declarations, found: Foreseen) -> None:
    """Against the file beside the contracts, and what the data folder knows of the database."""
    on_file = definitions.read(settings.project_dir / definitions.PLACE)
    bound = [*(on_file.bound if on_file else ()),
             *definitions.read_bound(project_definitions.bound_place(settings))]
    if not bound:
        return
    declared = list(project_definitions.of_project(settings, declarations).values())
    for pipeline in declarations.pipelines:
        own = [definition for definition in declared if definition.pipeline == pipeline]
        known = [version for version in bound if version.pipeline == pipeline]
        for change in definitions.changed(declarations, own, known, stage_code_version()):
            if change.cause is None:
                found.findings.append(Finding(
                    _file_of(declarations, pipeline, f"{change.definition.kind}.{change.definition.name}"), 1, "",
                    change.definition.version, "a new version", f"{change.message}: {change.remedy}"))
            else:
                found.warnings.append(f"{change.message}; the next run compares the values of both")
    if on_file is not None and not project_definitions.is_locked(settings, declarations):
        found.warnings.append(f"{definitions.PLACE} is not that of the models: run `barecount definitions lock`")


def _judge_obligations(settings: Settings, declarations: Declarations, found: Foreseen) -> None:
    project = project_lineage.of_project(settings, declarations)
    found.warnings.extend(f"lineage: {problem}" for problem in project.unresolved)
    path = settings.project_dir / lineage_lock.PLACE
    if path.exists() and lineage_lock.read(path, project.fingerprint) is None:
        found.warnings.append(f"{lineage_lock.PLACE} is not that of the models: run `barecount lineage compile`")
    for pipeline in declarations.pipelines:
        facts = Facts(declarations, pipeline, project)
        for outcome in obligation_judge.judge(declarations.obligations.values(), facts):
            if outcome.status == "warn":
                found.warnings.append(f"{outcome.obligation.name}: {pipeline}: {outcome.summary}")
            elif outcome.blocks:
                found.findings.extend(
                    _finding(declarations, pipeline, outcome, violation) for violation in outcome.violations)


def _finding(declarations: Declarations, pipeline: str, outcome: Outcome, violation: Violation) -> Finding:
    return Finding(
        _file_of(declarations, pipeline, violation.asset), 1, violation.column or violation.asset,
        " -> ".join(violation.path), outcome.obligation.metadata.title,
        f"breaks the obligation {outcome.obligation.name}: {violation.message}",
    )


def _file_of(declarations: Declarations, pipeline: str, asset: str) -> str:
    """The file that has to change: the model that makes the asset, or the manifest."""
    models = declarations.project_dir / "dbt_project" / "models"
    model = next(iter(sorted(models.rglob(f"{asset.rpartition('.')[2]}.sql"))), None) if asset else None
    return model.relative_to(declarations.project_dir).as_posix() if model else f"contracts/pipelines/{pipeline}.yaml"
