"""The one way to run a stage: a specification goes in, a receipt comes out.

Which backend does the work is the deployment's business: the environment maps classes to backends. A class, size or
network profile that it does not have is an error, never a fallback.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from resources.host.runner_catalog import Environment, RunnerSizes
from resources.runners import backends
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
    """

    environment: Environment
    sizes: RunnerSizes
    execute: Execute
    variables: Mapping[str, str] = field(default_factory=dict)
    _backends: dict[str, Backend] = field(default_factory=dict, init=False, repr=False)

    def plan(self, spec: StageSpec, occasion: str = "") -> Work:
        """What would be run where. Starts nothing.

        Args:
            occasion: the Dagster run that asks; resources made for the work carry a token of it.

        Raises:
            BareCountError: runner.unknown for a class, size or network profile the environment does not have.
        """
        placement = spec.placement
        declared = self.environment.backend_of(placement.runner_class)
        network = self.environment.network_of(placement.network_profile)
        size = self.sizes.size(declared.backend, placement.size)
        return Work(
            spec=spec, identity=self._identity(placement, declared.backend), size=size, network=network,
            tags={
                **self.environment.spec.tags, "tenant": spec.tenant_id, "pipeline": spec.pipeline,
                "stage": spec.stage.value, "run_token": work_token(spec, occasion),
            },
            variables=self.variables,
        )

    def run(
        self, spec: StageSpec, progress: Progress | None = None, context: Any = None, occasion: str = ""
    ) -> StageReceipt:
        """Run a stage to its end.

        Args:
            context: the Dagster context of the step that asks; work outside of this process needs it.

        Raises:
            BareCountError: runner.unknown, see `plan`; runner.lost, runner.timeout; what the stage raises, as internal
                if it is nothing the platform foresaw.
        """
        work = self.plan(spec, occasion)
        log = logs.get_logger("runners")
        with logs.bound(tenant=spec.tenant_id, pipeline=spec.pipeline, stage=spec.stage.value, source=spec.source):
            started = time.perf_counter()
            try:
                receipt = self._backend(spec.placement.runner_class).run(work, progress or _silent, context)
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

    def _backend(self, runner_class: str) -> Backend:
        if runner_class not in self._backends:
            declared = self.environment.backend_of(runner_class)
            self._backends[runner_class] = backends.build(declared, self.environment, self.execute)
        return self._backends[runner_class]

    def _identity(self, placement: Placement, backend: str) -> dict[str, str]:
        return {
            "class": placement.runner_class, "size": placement.size, "network_profile": placement.network_profile,
            "backend": backend, "environment": self.environment.name,
        }


def _silent(message: str, done: int, total: int) -> None:
    return None
