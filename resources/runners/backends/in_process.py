"""In process: the stage is a call. Its size's limits are not enforced: the process is the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resources.host.runner_catalog import Environment, InProcess
from resources.runners import identity
from resources.runners.payload import Execute
from resources.runners.stage import StageReceipt
from resources.runners.work import Progress, Work


@dataclass(frozen=True)
class InProcessBackend:
    """Runs the stage in this process."""

    execute: Execute
    name: str = "in_process"

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt:
        with identity.running_as({**work.identity, **identity.software(), **identity.machine()}):
            return self.execute(work.spec, progress)


def build(declared: InProcess, environment: Environment, execute: Execute) -> InProcessBackend:
    return InProcessBackend(execute)
