"""What a backend is given: a stage with the size, network and limits its environment makes of the placement."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from resources.host.runner_catalog import Network, Size
from resources.runners.stage import StageReceipt, StageSpec, run_token

Progress = Callable[[str, int, int], None]
"""Called with (what is being worked on, units done, units in all); total 0 when it is not known."""


@dataclass(frozen=True)
class Work:
    """A stage on its way to a backend.

    Attributes:
        spec: the stage.
        identity: what evidence will say about the runner.
        size: what the size is on this backend.
        network: what the network profile is in this environment.
        tags: for every resource that is made for the work: tenant, pipeline, stage, run token, and the environment's.
        variables: environment variables the payload needs to find the project, the stores and the database.
    """

    spec: StageSpec
    identity: Mapping[str, str]
    size: Size
    network: Network
    tags: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_spec(self) -> RunSpec:
        """What the payload is given."""
        return RunSpec(self.spec, self.identity, self.size.timeout_seconds)


@dataclass(frozen=True)
class RunSpec:
    """The argument of the payload's entry point, `python -m barecount_assets.stages RUN_SPEC`.

    Attributes:
        spec: the stage.
        identity: of the runner, as the one who starts it knows it; the payload adds what only it can know.
        timeout_seconds: after which the payload ends itself.
        output_path: file that receives what the payload prints; None leaves that where it goes.
    """

    spec: StageSpec
    identity: Mapping[str, str]
    timeout_seconds: int
    output_path: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_json(), sort_keys=True)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunSpec:
        """Inverse of `to_json`."""
        return cls(**{**document, "spec": StageSpec.from_json(document["spec"])})


class Backend(Protocol):
    """Does the work somewhere and returns the receipt.

    `context` is the Dagster context of the step that asks, over which a payload elsewhere speaks (Dagster Pipes).

    Raises BareCountError: what the stage raised; runner.lost for a payload that ended without a word; runner.timeout.
    """

    name: str

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt: ...


def work_token(spec: StageSpec, occasion: str) -> str:
    """Identity of a stage on one occasion (a Dagster run): restarts of it carry the same token."""
    return run_token(spec=spec.to_json(), occasion=occasion)
