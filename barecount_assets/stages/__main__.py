"""`python -m barecount_assets.stages RUN_SPEC`: a stage as a process of its own, on every backend; Glue's script."""

from __future__ import annotations

import sys

from barecount_assets.stages import execute
from resources.runners import payload
from resources.runtime import logs
from resources.runtime.settings import Settings

if __name__ == "__main__":
    arguments = payload.unnamed(sys.argv[1:])
    logs.configure(Settings.from_environment().data_dir)
    if code := payload.main(arguments, execute):  # Glue takes any exit from within a script for a failure, also with 0
        sys.exit(code)
