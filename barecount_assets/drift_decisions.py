"""What a steward decides about drift: a new version of the contracts, or no.

A decision is one transaction of the database: the drift's row is locked, new contract versions are registered and
current, decision, evidence and event are written. What follows from it (reading the batches again, letting partitions
go on) is the next run's work.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from barecount_assets.drift_proposals import Candidate, candidates, read_candidate
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import drift_register, registry
from resources.governance.drift_register import Drift, Verdict
from resources.governance.manifests import OnDrift
from resources.runtime.errors import BareCountError, ErrorCode

CAUSE = "drift"


@dataclass(frozen=True)
class Acceptance:
    """An accepted drift: its candidates are current, and lie at `files` for review."""

    drift: Drift
    candidates: tuple[Candidate, ...]
    files: tuple[Path, ...]


def accept(
    environment: StageEnvironment, drift_id: int, *, by: str, reason: str, now: dt.datetime, write: bool = False
) -> Acceptance:
    """Declare what drifted: new contract versions, registered and current at once, if the policies allow it.

    Args:
        write: put the documents into `contracts/` itself instead of the review folder in the data folder.

    Raises:
        BareCountError: declaration.unknown, declaration.invalid, contract.drift_decided;
            contract.drift_unacceptable where no contract would let the waiting batches pass; policy.denied,
            approval.required, which stay on record.
    """
    _require_words(by, reason)
    _ask_policies(environment, drift_id, by, now)
    with environment.database.connect(autocommit=True) as connection, connection.transaction():
        drift = drift_register.locked(connection, drift_id)
        made = candidates(environment, drift)
        for candidate in made:
            if candidate.changed:
                registry.register(
                    connection, environment.declarations, drift.dataset, candidate.layer, candidate.document, who=by,
                    reason=f"drift {drift_id}: {reason}", cause=CAUSE, now=now,
                )
        decided = drift_register.decide(
            connection, drift_id, "accepted", by=by, reason=reason, now=now,
            versions=(made[0].version, made[1].version) if made else None,
        )
    settings = environment.settings
    folder = settings.project_dir / "contracts" if write else settings.data_dir / "contracts" / "review"
    return Acceptance(decided, made, tuple(_write(folder, candidate) for candidate in made if candidate.changed))


def _ask_policies(environment: StageEnvironment, drift_id: int, by: str, now: dt.datetime) -> None:
    """Ask about the versions an acceptance would register, apart from its transaction: a refusal stays on record."""
    with environment.database.connect(autocommit=True) as connection:
        with connection.transaction():
            drift = drift_register.locked(connection, drift_id)
        changed = [candidate for candidate in candidates(environment, drift) if candidate.changed]
        if not changed:
            return
        contracts = [read_candidate(candidate.document, drift, candidate.layer) for candidate in changed]
        steps = [registry.candidate_step(connection, environment.declarations, contract) for contract in contracts]
        registry.require_allowed(connection, environment.declarations, steps, by, now, origin=CAUSE)


def reject(environment: StageEnvironment, drift_id: int, *, by: str, reason: str, now: dt.datetime) -> Drift:
    """Refuse what drifted, by the manifest's `on_drift`: its part goes into quarantine, or its batches stay out.

    Raises:
        BareCountError: declaration.unknown, contract.drift_decided.
    """
    _require_words(by, reason)
    with environment.database.connect(autocommit=True) as connection, connection.transaction():
        drift = drift_register.locked(connection, drift_id)
        policy = environment.declarations.effective(drift.pipeline, drift.tenant_id).spec.on_drift
        return drift_register.decide(
            connection, drift_id, verdict_of(drift, policy), by=by, reason=reason, now=now,
            policy=policy.model_dump(),
        )


def verdict_of(drift: Drift, policy: OnDrift) -> Verdict:
    """What a rejection comes to: the strictest of what the policy says of the drift's classes.

    A delivery that shrank stays out whole: it has no drifted part.
    """
    if drift.of_delivery:
        return "held"
    said = {getattr(policy, change.kind.value) for change in drift.blocking}
    return "held" if "hold_batch" in said else "rejected"


def _require_words(by: str, reason: str) -> None:
    if not by.strip() or not reason.strip():
        raise BareCountError(ErrorCode.USAGE, "a decision needs a person and a reason",
                             hint="give --reason WHY, and --by WHO where it is not the user of this machine")


def _write(folder: Path, candidate: Candidate) -> Path:
    namespace, _, name = candidate.dataset.partition(".")
    path = folder / "datasets" / namespace / name / f"{candidate.layer}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(candidate.text, encoding="utf-8")
    return path
