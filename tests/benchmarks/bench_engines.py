"""The engines side by side: TPC-H lineitem from its file to a published KPI.

    python -m tests.benchmarks.bench_engines [--scale 1] [--only duckdb] [--json]

What is raw is the same for all engines, and lands once. Then each engine works in a process of its own, on a copy of
the database, on one embedded server with the settings the platform ships; Spark on a cluster of a master and one
worker, then of a master and two, with one core each. Seconds are those of the stages, without starting Python or a
cluster; `memory` is the most that the process and its children had in memory, a cluster included, PostgreSQL excluded;
`server` is PostgreSQL's processor time. Exits with 1 when content hashes differ.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from barecount_assets.stages import engines
from barecount_assets.stages.dbt import WAREHOUSE
from resources.runtime.settings import Settings
from tests.benchmarks import data
from tests.benchmarks.measuring import Server, remove, sampled, server_cpu_seconds, server_in
from tests.spark_cluster import cluster

CONTENDERS = {name: (engine, workers) for name, engine, workers in (
    ("postgres", "postgres", 0), ("duckdb", "duckdb", 0), ("spark-1", "spark", 1), ("spark-2", "spark", 2))
    if engines.installed(engine)}
SPARK_MEMORY_MB = 3_072
WINDOW = ("1992-01-01", "1998-12-31")
RAW = "raw"
STAGES = ("calendar", "normalization", "kpi_build", "publish")
COLUMNS = {"raw": "ingestion", "gdp": "normalization", "kpi": "kpi_build", "published": "publish"}


@dataclass(frozen=True)
class Outcome:
    """What the landing of what is raw, or then an engine, took.

    Attributes:
        contender: the engine, Spark's with its number of workers; or `raw`.
        rows: of lineitem, that landed.
        seconds: of each stage.
        hashes: content hash of every GDP and KPI.
        peak_bytes: most memory of the process and its children.
        server_seconds: processor time of PostgreSQL.
    """

    contender: str
    rows: int
    seconds: dict[str, float]
    hashes: dict[str, str]
    peak_bytes: int = 0
    server_seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when engines disagree."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_engines", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="TPC-H scale factor (default 1: 6,001,215 rows)")
    parser.add_argument("--only", action="append", choices=tuple(CONTENDERS), help="this one; repeatable")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.task:
        print(json.dumps(asdict(_work(json.loads(asked.task)))))
        return 0
    folder = Settings.from_environment().data_dir / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = data.prepare(folder / "data", asked.scale)
    work, outcomes = folder / "work", []
    remove(work)
    shutil.copytree(inputs.project, work / "project")
    try:
        with server_in(folder / "server") as server, server.database() as landed:
            for contender in (RAW, *(asked.only or CONTENDERS)):
                with server.database(like=landed) if contender != RAW else nullcontext(landed) as url:
                    outcomes.append(_measured(contender, server, url, inputs, work))
                print(f"{contender}: {sum(outcomes[-1].seconds.values()):.1f} s", file=sys.stderr, flush=True)
    finally:
        remove(work)
    raw, *outcomes = outcomes
    same = all(outcome.hashes == outcomes[0].hashes for outcome in outcomes)
    if asked.json:
        document = {"scale": asked.scale, "same": same, "raw": asdict(raw), "engines": [asdict(o) for o in outcomes]}
        print(json.dumps(document, indent=2))
    else:
        _print(asked.scale, raw, outcomes, same)
    return int(not same)


def _measured(contender: str, server: Server, url: str, inputs: data.Inputs, work: Path) -> Outcome:
    manifest = work / "project" / "contracts" / "pipelines" / "tpch.yaml"
    engine, _ = CONTENDERS.get(contender, (WAREHOUSE, 0))
    manifest.write_text(re.sub("engine: [a-z]+", f"engine: {engine}", manifest.read_text()))
    postmaster = psutil.Process(server.postmaster)
    task = {"contender": contender, "url": url, "work": str(work), "lineitem": inputs.lineitem}
    before = server_cpu_seconds(postmaster)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.bench_engines", "--task", json.dumps(task)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child, sampled(child.pid) as peak:
        output, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{contender} failed:\n{errors[-4000:]}")
    return Outcome(**{**json.loads(output.splitlines()[-1]), "peak_bytes": peak[0],
                      "server_seconds": server_cpu_seconds(postmaster) - before})


def _work(task: dict[str, str]) -> Outcome:
    """The stages of one contender, in this process."""
    with ExitStack() as stack:
        _, workers = CONTENDERS.get(task["contender"], (WAREHOUSE, 0))
        if workers:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=task["work"])))
            os.environ["SPARK_CONF_DIR"] = str(
                stack.enter_context(cluster(folder, workers=workers, memory_mb=SPARK_MEMORY_MB)))
        return _stages(task)


def _stages(task: dict[str, str]) -> Outcome:
    from barecount_assets.stages import execute
    from barecount_assets.stages.environment import StageEnvironment
    from resources.governance.declarations import load
    from resources.runners.stage import Placement, Stage, StageSpec
    from resources.runtime.database import Database

    work = Path(task["work"])
    settings = Settings(work / "project", work / "data", str(work / "raw"), task["url"])
    environment = StageEnvironment(settings, Database(task["url"], is_embedded=True), load(work / "project"))
    with environment.database.transaction() as connection:
        environment.register_tenant(connection, "bench")
    placement = Placement("serverless", "medium", "public_vpc_egress")
    seconds, hashes, rows = {}, {}, 0
    for stage in map(Stage, ("ingestion",) if task["contender"] == RAW else STAGES):
        source = {"source": "lineitem", "window": WINDOW, "source_paths": {"lineitem": task["lineitem"]}}
        spec = StageSpec(stage, "bench", "tpch", placement, **(source if stage is Stage.INGESTION else {}))
        start = time.perf_counter()
        receipt = execute(spec, lambda *_: None, environment)
        seconds[stage.value] = time.perf_counter() - start
        rows = receipt.counts.get("accepted", rows)
        if stage in (Stage.NORMALIZATION, Stage.KPI_BUILD):
            hashes.update({output.name: output.content_sha256 for output in receipt.outputs})
    return Outcome(task["contender"], rows, seconds, hashes)


def _print(scale: float, raw: Outcome, outcomes: Sequence[Outcome], same: bool) -> None:
    print(f"TPC-H scale {scale:g}, lineitem {raw.rows:,} rows; seconds\n")
    print(f"{'':10}" + "".join(f"{name:>11}" for name in COLUMNS) + f"{'all':>9}{'memory MB':>11}{'server':>9}")
    for outcome in (raw, *outcomes):
        parts = "".join(f"{outcome.seconds[stage]:>11.1f}" if stage in outcome.seconds else f"{'':11}"
                        for stage in COLUMNS.values())
        print(f"{outcome.contender:10}{parts}{sum(outcome.seconds.values()):>9.1f}{outcome.peak_bytes >> 20:>11,}"
              f"{outcome.server_seconds:>9.1f}")
    print(f"\ncontent hashes of every GDP and KPI: {'the same' if same else 'DIFFERENT'}")
    for name in outcomes[0].hashes:
        found = dict.fromkeys(outcome.hashes[name] for outcome in outcomes)
        print(f"  {name}: {', '.join(found)}")


if __name__ == "__main__":
    sys.exit(main())
