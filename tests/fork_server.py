"""Processes that start in milliseconds, from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest

from tests.conftest import PROJECT


def having_imported(module: str) -> ForkServerContext:
    """A context whose processes are forked with a module imported.

    The standard library keeps one server per process, which goes on with what it was first told to import: one that was
    told something else is replaced.
    """
    server = forkserver._forkserver
    if server._forkserver_pid is not None and server._preload_modules != [module]:
        server._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT), prepend=os.pathsep)
        patch.setenv("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # who is killed cleans nothing up
        forkserver.ensure_running()
    return context
