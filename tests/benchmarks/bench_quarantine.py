"""Quarantine: one batch of refused records only, written, exported, and replayed with one field set in each.

    python -m tests.benchmarks.bench_quarantine [--records 600000] [--json]

Prints seconds, rates and this process's greatest memory after each step, on an embedded server of its own. Targets: the
whole within minutes, and memory that does not grow with the records.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.ingestion import edited_records
from barecount_assets.stages.ingestion.replay import ReplayRequest, replay
from resources.governance import declarations
from resources.runners.stage import Placement, Stage, StageSpec, iso_window
from resources.runtime import embedded, migrations
from resources.runtime.database import Database, fetch
from resources.runtime.settings import Settings
from resources.storage import quarantine_store
from resources.storage.quarantine_store import Selection

PROJECT = Path(__file__).resolve().parents[2]
HEADER = ("InvoiceID;CustomerID;CustomerName;BusinessUnit;InvoiceDate;DueDate;Currency;NetAmount;TaxAmount;GrossAmount;"
          "LastModified\n")
DAY = dt.date(2026, 1, 5)


def run(records: int) -> dict[str, Any]:
    """Measure on `records` refused records; returns seconds, rates and memory by step."""
    folder = Path(tempfile.mkdtemp(prefix="bc-bench-"))
    folder.chmod(0o755)
    try:
        url = embedded.start(folder)
        migrations.upgrade(url)
        settings = Settings(PROJECT, folder, str(folder / "raw"), None)
        environment = StageEnvironment(settings, Database(url, is_embedded=True), declarations.load(PROJECT))
        return _measure(environment, folder, records)
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _measure(environment: StageEnvironment, folder: Path, records: int) -> dict[str, Any]:
    source = folder / "erp"
    source.mkdir()
    with (source / f"invoices_{DAY}.csv").open("w", encoding="windows-1252") as file:
        file.write(HEADER)
        file.writelines(f"R{number};C{number % 997};Firm {number % 997};NORD;{DAY};2026-01-19;GBP;100.00;20.00;120.00;"
                        f"{DAY} 12:00:00\n" for number in range(records))
    spec = StageSpec(
        Stage.INGESTION, "acme", "order_to_cash", Placement("container", "medium", "private_vpc"), "invoices",
        iso_window(DAY, DAY), {"invoices": str(source)})
    selection = Selection(state="open")
    found: dict[str, Any] = {"records": records}

    def step(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        found[name] = {"seconds": round(seconds, 1), "records_per_second": round(records / seconds),
                       "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
        return result

    step("refused", lambda: execute(spec, lambda *_: None, environment))
    step("exported", lambda: _export(environment, selection, folder / "refused.parquet"))
    (done,) = step("replayed", lambda: replay(environment, ReplayRequest(
        selection, "bench", "the ERP's German names", {"BusinessUnit": "NORTH"}), lambda *_: None))
    assert (done.replayed, done.refused_again, done.unchanged) == (records, 0, 0), done
    again = step("replayed_again", lambda: replay(environment, ReplayRequest(
        selection, "bench", None, {"BusinessUnit": "NORTH"}), lambda *_: None))
    assert again == []
    with environment.database.connect(autocommit=True) as connection:
        assert fetch(connection, "select count(*) from raw.order_to_cash__invoices") == [(records,)]
        assert fetch(connection, "select state, count(*) from platform.quarantine_record group by 1") == [
            ("replayed", records)]
    return found


def _export(environment: StageEnvironment, selection: Selection, path: Path) -> None:
    with environment.database.connect(autocommit=True) as connection:
        edited_records.export(quarantine_store.stream(connection, selection), path, lambda record: "windows-1252")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_quarantine", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=600_000, help="refused records of the one batch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = run(options.records)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        facts = value if isinstance(value, dict) else {"": value}
        print(f"{name.replace('_', ' '):20}",
              "  ".join(f"{fact:,} {key.replace('_', ' ')}" for key, fact in facts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
