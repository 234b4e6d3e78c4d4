"""The one way to run a stage: a specification goes in, a receipt comes out.

Which backend does the work is the deployment's business. A class that has no backend is an error, never a fallback.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from resources.runners.stage import StageReceipt, StageSpec
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode, unexpected
from resources.runtime.settings import SOFTWARE_VERSION

RUNNER_CLASSES = ("serverless", "container", "managed_etl", "dedicated_compute")

Progress = Callable[[str, int, int], None]
"""Called with (what is being worked on, units done, units in all); total 0 when it is not known."""


class Backend(Protocol):
    """Does the work somewhere and returns the receipt, or raises BareCountError."""

    name: str

    def run(self, spec: StageSpec, progress: Progress) -> StageReceipt: ...


@dataclass(frozen=True)
class InProcessBackend:
    """Runs the stage in this process. `execute` is the payload's entry point."""

    execute: Callable[[StageSpec, Progress], StageReceipt]
    name: str = "in_process"

    def run(self, spec: StageSpec, progress: Progress) -> StageReceipt:
        return self.execute(spec, progress)


@dataclass(frozen=True)
class RunnerFacade:
    """Maps runner classes to backends and stamps every receipt with who did the work."""

    backends: Mapping[str, Backend]

    @classmethod
    def on_one_machine(cls, execute: Callable[[StageSpec, Progress], StageReceipt]) -> RunnerFacade:
        """Every class is a call in this process."""
        backend = InProcessBackend(execute)
        return cls(dict.fromkeys(RUNNER_CLASSES, backend))

    def run(self, spec: StageSpec, progress: Progress | None = None) -> StageReceipt:
        """Run a stage to its end.

        Raises:
            BareCountError: runner.unknown for a class without a backend; what the stage raises, as internal if it is
                nothing the platform foresaw.
        """
        backend = self.backends.get(spec.placement.runner_class)
        if backend is None:
            raise BareCountError(
                ErrorCode.RUNNER_UNKNOWN,
                f"runner class {spec.placement.runner_class!r} has no backend here, "
                f"allowed: {', '.join(sorted(self.backends))}",
                hint="change runner.class in the manifest or the deployment's mapping",
            )
        log = logs.get_logger("runners")
        with logs.bound(tenant=spec.tenant_id, pipeline=spec.pipeline, stage=spec.stage.value, source=spec.source):
            started = time.perf_counter()
            try:
                receipt = backend.run(spec, progress or _silent)
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
        return replace(
            receipt,
            seconds=seconds,
            runner={
                "class": spec.placement.runner_class,
                "size": spec.placement.size,
                "network_profile": spec.placement.network_profile,
                "backend": backend.name,
                "software": SOFTWARE_VERSION,
                "python": platform.python_version(),
            },
        )


def _silent(message: str, done: int, total: int) -> None:
    return None
