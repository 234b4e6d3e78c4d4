"""Subprocess: the stage is a process of its own on this machine, which speaks Dagster Pipes over files."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resources.host.runner_catalog import Environment, Subprocess
from resources.runners import pipes
from resources.runners.payload import PARENT_VARIABLE, Execute
from resources.runners.stage import StageReceipt
from resources.runners.work import Progress, Work


@dataclass(frozen=True)
class SubprocessBackend:
    """Starts the payload with this Python. An interrupted run interrupts it, a killed one takes it along."""

    name: str = "subprocess"

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt:
        import dagster as dg

        with tempfile.TemporaryDirectory(prefix="barecount-stage-") as folder:
            output = Path(folder) / "output.log"
            run_spec = replace(work.run_spec, output_path=str(output))
            progress(f"{work.spec.stage} as a process of its own", 0, 0)
            variables = {**work.variables, PARENT_VARIABLE: str(os.getpid())}
            return pipes.receipt_of(
                lambda: dg.PipesSubprocessClient(env=variables).run(
                    context=context, command=[sys.executable, "-m", "barecount_assets.stages", run_spec.text()]),
                work, where="the process", last_words=lambda: pipes.tail(output),
            )


def build(declared: Subprocess, environment: Environment, execute: Execute) -> SubprocessBackend:
    return SubprocessBackend()


