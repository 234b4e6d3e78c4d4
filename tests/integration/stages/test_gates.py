"""The library of the gates takes seconds to import: it can be had while the database computes, once."""

from __future__ import annotations

import subprocess
import sys

_AHEAD = """
import sys, threading
from barecount_assets.stages import gates
assert "great_expectations" not in sys.modules
for _ in range(3):
    gates.import_ahead()
importing = [thread for thread in threading.enumerate() if thread.name == "gates-import"]
assert not any(thread.daemon for thread in importing), "one that is cut off in an import takes the process with it"
import great_expectations
print(len(importing), hasattr(great_expectations, "ExpectationSuite"))
"""


def test_it_is_imported_once_and_waited_for_as_any_import() -> None:
    done = subprocess.run([sys.executable, "-c", _AHEAD], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("1 True", 0), done.stderr
