"""What can be known of obligations before a run: `barecount check` refuses a model that would break one that blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from barecount_assets import project_lineage
from resources.governance import lineage_lock, obligation_judge
from resources.governance.declarations import Declarations
from resources.governance.obligation_judge import Facts, Outcome, Violation
from resources.runtime.settings import Settings
from resources.runtime.yaml_source import Finding


@dataclass(frozen=True)
class Foreseen:
    """What can be known before a run.

    Attributes:
        findings: violations that would block a publication.
        warnings: those that would not, and columns of which it is not known where they come from.
    """

    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def foresee(settings: Settings, declarations: Declarations) -> Foreseen:
    """Judge every obligation by what is declared. Compiles the models when `contracts/lineage.json` is not current.

    Raises:
        BareCountError: transform.failed when dbt cannot read the project.
    """
    if not declarations.obligations:
        return Foreseen()
    project = project_lineage.of_project(settings, declarations)
    found = Foreseen(warnings=[f"lineage: {problem}" for problem in project.unresolved])
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
    return found


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
