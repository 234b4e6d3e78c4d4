"""Evidence: appending, signing, proving, verifying and exporting, on an embedded server of its own.

    python -m tests.benchmarks.bench_evidence [--entries 1000000] [--json]

Prints seconds and rates. Targets: 2,900 entries appended a second by one process; a million entries verified within a
minute. Entries look like those of a gate: some 450 bytes.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resources.runtime import embedded, migrations
from resources.runtime.database import Database, fetch
from resources.trust import bundle, checkpoints, ledger
from resources.trust.signing import KeyStore
from resources.trust.verify import verify_bundle

TENANT = "acme"
BATCH = 5_000
SINGLE = 2_000


def entry(number: int) -> ledger.Entry:
    """The evidence of a gate."""
    return ledger.Entry(TENANT, "gate.passed", f"net_sales/reconciliation_{number}", "0f3c1d7a9b2e4d51", {
        "pipeline": "online_retail", "gate": "reconciliation", "kpi": "net_sales", "summary": "304 days reconciled",
        "compared": 304, "different": 0, "largest_difference": "0.00", "tolerance": "0.01",
        "system_of_record": "online_retail.control_totals", "contract_version": "1.0.0", "number": number})


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def run(entries: int) -> dict[str, Any]:
    """Measure on `entries` entries; returns seconds, rates and the greatest memory of this process."""
    folder = Path(tempfile.mkdtemp(prefix="bc-bench-"))
    folder.chmod(0o755)
    try:
        url = embedded.start(folder)
        migrations.upgrade(url)
        database = Database(url, is_embedded=True)
        return _measure(database, KeyStore.of(folder, database), folder, entries)
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _measure(database: Database, keys: KeyStore, folder: Path, entries: int) -> dict[str, Any]:
    with database.transaction() as connection:
        fetch(connection, "select platform.register_tenant($1, $1, 'h')", (TENANT,))

    def one_by_one() -> None:
        for number in range(SINGLE):
            with database_connection.transaction():
                ledger.append(database_connection, entry(number))

    def batched() -> None:
        for start in range(SINGLE, entries, BATCH):
            with database_connection.transaction():
                ledger.append_many(
                    database_connection, [entry(number) for number in range(start, min(start + BATCH, entries))])

    with database.connect(autocommit=True) as database_connection:
        single, _ = timed(one_by_one)
        batch, _ = timed(batched)
        signing, first = timed(lambda: checkpoints.create(database, keys, TENANT))
        with database_connection.transaction():
            ledger.append_many(database_connection, [entry(number) for number in range(entries, entries + 100)])
        signing_again, _ = timed(lambda: checkpoints.create(database, keys, TENANT))
        proving, proof = timed(lambda: checkpoints.prove(database_connection, TENANT, entries // 2))
        assert proof.holds
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verifying, result = timed(lambda: checkpoints.verify(
            database_connection, TENANT, [checkpoints.Witness("kept", first.checkpoint.raw)]))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert result.intact and result.entries == entries + 101, result.findings
    path = folder / "bundle.zip"
    exporting, written = timed(lambda: bundle.export(database, keys, TENANT, path, bundle.Selection()))
    checking, checked = timed(lambda: verify_bundle(path, [first.key], [first.checkpoint]))
    assert checked.ok and checked.facts["entries"] == result.entries, checked.problems
    appended = entries - SINGLE
    return {
        "entries": entries,
        "append_one_transaction_each": {"entries": SINGLE, "seconds": single, "entries_per_second": SINGLE / single},
        "append_batched": {"entries": appended, "seconds": batch, "entries_per_second": appended / batch},
        "first_checkpoint_over_everything_seconds": signing,
        "next_checkpoint_after_100_entries_seconds": signing_again,
        "inclusion_proof_seconds": proving,
        "verify": {"entries": result.entries, "seconds": verifying, "entries_per_second": result.entries / verifying,
                   "memory_growth_mb": (after - before) / 1024},
        "export": {"entries": written.entries, "seconds": exporting, "megabytes": written.size / 1e6},
        "verify_bundle": {"entries": written.entries, "seconds": checking,
                          "entries_per_second": written.entries / checking},
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_evidence", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="size of the ledger")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = run(max(options.entries, SINGLE + 1))
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        facts = value if isinstance(value, dict) else {"": value}
        print(f"{name.replace('_', ' '):45}", "  ".join(
            f"{fact:,.3f} {key.replace('_', ' ')}".strip() if isinstance(fact, float) else
            f"{fact:,} {key.replace('_', ' ')}".strip() for key, fact in facts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
