"""`python -m barecount_assets.stages RUN_SPEC`: a stage as a process of its own, on every backend."""

from __future__ import annotations

import sys

from barecount_assets.stages import execute
from resources.runners import payload
from resources.runtime import logs
from resources.runtime.settings import Settings

if __name__ == "__main__":
    logs.configure(Settings.from_environment().data_dir)
    sys.exit(payload.main(sys.argv[1:], execute))
