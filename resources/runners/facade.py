"""The one way to run a stage: a specification goes in, a receipt comes out.

Which backend does the work is the deployment's business: the environment maps classes to backends. A class, size or
network profile that it does not have is an error, never a fallback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resources.host.runner_catalog import AnyBackend, Environment, RunnerSizes
from resources.runners import backends
from resources.runners.bounds import Bounds
from resources.runners.payload import Execute
from resources.runners.stage import Placement, StageReceipt, StageSpec
from resources.runners.work import Backend, Progress, Work, work_token
from resources.runtime import logs
from resources.runtime.errors import BareCountError, unexpected


@dataclass(frozen=True)
class RunnerFacade:
    """Runs stages in an environment and stamps every receipt with who did the work.

    Attributes:
        environment, sizes: what classes, network profiles and sizes are here.
        execute: the payload's entry point, for work in this process.
        variables: environment variables with which a payload elsewhere finds project, stores and database.
        bounds: where a stage's tenant and data may be; without it, anywhere.
    """

    environment: Environment
    sizes: RunnerSizes
    execute: Execute
    variables: Mapping[str, str] = field(default_factory=dict)
    bounds: Callable[[StageSpec], Bounds] | None = None
    _backends: dict[AnyBackend, Backend] = field(default_factory=dict, init=False, repr=False)

    def plan(self, spec: StageSpec, occasion: str = "") -> Work:
        """What would be run where. Starts nothing.

        Args:
            occasion: the Dagster run that asks; resources made for the work carry a token of it.

        Raises:
            BareCountError: runner.unknown for a class, size or network profile the environment does not have;
                runner.not_allowed for a place where the tenant or its data may not be.
        """
        placement = spec.placement
        declared = self.environment.backend_on(placement.runner_class, placement.network_profile)
        network = self.environment.network_of(placement.network_profile)
        size = self.sizes.size(declared.backend, placement.size)
        if self.bounds is not None:
            self.bounds(spec).check(spec, network, self.environment)
        tags = {**self.environment.spec.tags, "tenant": spec.tenant_id, "pipeline": spec.pipeline,
                "stage": spec.stage.value}
        return Work(
            spec=spec, identity=self._identity(placement, declared.backend, tags), size=size, network=network,
            tags={**tags, "run_token": work_token(spec, occasion)}, variables=self.variables,
        )

    def run(
        self, spec: StageSpec, progress: Progress | None = None, context: Any = None, occasion: str = "",
        decisions: Sequence[int] = (),
    ) -> StageReceipt:
        """Run a stage to its end.

        Args:
            context: the Dagster context of the step that asks; work outside of this process needs it.
            decisions: of policies, that let the run start; evidence names them.

        Raises:
            BareCountError: runner.unknown, runner.not_allowed, see `plan`; runner.lost, runner.timeout; what the stage
                raises, as internal if it is nothing the platform foresaw.
        """
        work = self.plan(spec, occasion)
        if decisions:
            work = replace(work, identity={**work.identity, "policy_decisions": ", ".join(map(str, decisions))})
        log = logs.get_logger("runners")
        with logs.bound(tenant=spec.tenant_id, pipeline=spec.pipeline, stage=spec.stage.value, source=spec.source):
            started = time.perf_counter()
            try:
                receipt = self._backend(spec.placement).run(work, progress or _silent, context)
            except BareCountError:
                log.exception("stage failed")
                raise
            except Exception as cause:
                error = unexpected(cause)
                log.exception("stage failed", extra={"fields": {"correlation_id": error.correlation_id}})
                raise error from cause
            seconds = time.perf_counter() - started
            with logs.bound(run_token=receipt.run_token):
                log.info("stage finished", extra={"fields": {"counts": dict(receipt.counts), "seconds": seconds}})
        return replace(receipt, seconds=seconds, runner=dict(receipt.runner or work.identity))

    def _backend(self, placement: Placement) -> Backend:
        declared = self.environment.backend_on(placement.runner_class, placement.network_profile)
        if declared not in self._backends:
            self._backends[declared] = backends.build(declared, self.environment, self.execute)
        return self._backends[declared]

    def _identity(self, placement: Placement, backend: str, tags: Mapping[str, str]) -> dict[str, str]:
        return {
            "class": placement.runner_class, "size": placement.size, "network_profile": placement.network_profile,
            "backend": backend, "environment": self.environment.name,
            "cost_tags": ", ".join(f"{name}={value}" for name, value in sorted(tags.items())),
        }


def _silent(message: str, done: int, total: int) -> None:
    return None
