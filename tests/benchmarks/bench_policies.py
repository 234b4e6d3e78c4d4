"""Policies: decisions evaluated in process, and recorded in batches with evidence and events.

    python -m tests.benchmarks.bench_policies [--decisions 200000] [--recorded 20000] [--json]

Prints seconds and rates. Target: 25,000 decisions a second evaluated by one process with every shipped policy of the
busiest decision point (run start), each decision from facts of its own.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from resources.governance import declarations
from resources.governance.decision_points import RunStart
from resources.governance.policies import Question, decide_all
from resources.governance.policy_evaluation import PolicySet, evaluate
from resources.runtime import embedded, migrations
from resources.runtime.database import Database, fetch

TARGET = 25_000
BATCH = 5_000
_SIZES = ("small", "medium", "large", "xlarge")
_PROFILES = ("private_vpc", "public_vpc_egress", "vpn")


def facts(number: int) -> RunStart:
    """Facts of one run, different from those of the next."""
    return RunStart(
        tenant="acme", pipeline="order_to_cash", datasets=("order_to_cash.invoices", "order_to_cash.payments"),
        runner_class="container", runner_size=_SIZES[number % 4], network_profile=_PROFILES[number % 3],
        classification="confidential", days=1 + number % 60, runs_today=number % 40, rows_today=number,
        quota_runs_per_day=24)


def run(decisions: int, recorded: int) -> dict[str, Any]:
    """Measure; returns seconds, rates and how often each effect came out."""
    policies = PolicySet.of(declarations.load(Path(__file__).resolve().parents[2]).policies)
    given = [facts(number) for number in range(decisions)]
    evaluate(policies, given[0])
    start = time.perf_counter()
    effects = [evaluate(policies, found).effect for found in given]
    evaluating = time.perf_counter() - start
    counts = {effect: effects.count(effect) for effect in sorted(set(effects))}
    assert set(counts) == {"allow", "deny", "require_approval"}, counts
    recording = _record(policies, recorded)
    return {
        "rules": sum(len(item.rules) for item in policies.by_point["run_start"]),
        "policies": len(policies.by_point["run_start"]), "effects": counts,
        "evaluate": {"decisions": decisions, "seconds": evaluating, "decisions_per_second": decisions / evaluating},
        "record_in_batches": {"decisions": recorded, "seconds": recording,
                              "decisions_per_second": recorded / recording},
        "target_decisions_per_second": TARGET, "reached": decisions / evaluating >= TARGET,
    }


def _record(policies: PolicySet, recorded: int) -> float:
    """Seconds to decide and record, on a server of its own: row, evidence and event of each decision."""
    folder = Path(tempfile.mkdtemp(prefix="bc-bench-"))
    folder.chmod(0o755)
    now = dt.datetime.now(dt.UTC)
    questions = [
        Question(replace(facts(number), runner_size="small"), f"order_to_cash run {number}", "bench")
        for number in range(recorded)
    ]
    try:
        url = embedded.start(folder)
        migrations.upgrade(url)
        database = Database(url, is_embedded=True)
        with database.transaction() as connection:
            fetch(connection, "select platform.register_tenant('acme', 'Acme', 'h')")
        start = time.perf_counter()
        for first in range(0, recorded, BATCH):
            with database.transaction() as connection:
                decide_all(connection, policies, questions[first : first + BATCH], now)
        return time.perf_counter() - start
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_policies", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=200_000, help="decisions to evaluate")
    parser.add_argument("--recorded", type=int, default=20_000, help="decisions to record")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = run(options.decisions, options.recorded)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name in ("evaluate", "record_in_batches"):
            print(f"{name.replace('_', ' '):20}", "  ".join(
                f"{key.replace('_', ' ')} {value:,.1f}" for key, value in found[name].items()))
        print(f"{found['policies']} policies, {found['rules']} rules, effects {found['effects']}")
    return 0 if found["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
