"""What takes seconds to load, loaded while a run is still reading its sources.

Loading is Python, reading is mostly waiting for files and PostgreSQL: side by side they take hardly longer than one.
Only for work in the process of the run; whoever needs something of it meanwhile waits for it as for any import.
"""

from __future__ import annotations

import threading
from importlib import import_module

from barecount_assets.stages import dbt
from barecount_assets.stages.environment import StageEnvironment
from resources.runtime import logs

_begun = threading.Event()


def begin(environment: StageEnvironment) -> None:
    """Load dbt, the dbt project and Great Expectations in the background, once in a process."""
    if not _begun.is_set():
        _begun.set()
        threading.Thread(target=_load, args=(environment,), name="load-ahead", daemon=True).start()


def _load(environment: StageEnvironment) -> None:
    try:
        dbt.prepare(environment.settings)
        import_module("barecount_assets.stages.gates").load()
    except Exception as error:  # the stage that needs it meets the same, and says so
        logs.get_logger("stages").warning("could not load ahead: %s", error)
