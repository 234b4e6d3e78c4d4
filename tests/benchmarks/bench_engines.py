"""The engines side by side: TPC-H lineitem from its file to a published KPI.

    python -m tests.benchmarks.bench_engines [--scale 1] [--only duckdb] [--json]

Each engine works in a process of its own, on a database and a raw store of its own, on one embedded server with the
settings the platform ships; Spark on a cluster of a master and one worker, then of a master and two, with one core
each. Seconds are those of the stages, without starting Python or a cluster; `memory` is the most that the process and
its children had in memory, a cluster included, PostgreSQL excluded; `server` is PostgreSQL's processor time. Exits with
1 when content hashes differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from barecount_assets.stages import engines
from resources.runtime.settings import Settings
from tests.benchmarks import data
from tests.benchmarks.measuring import Server, remove, sampled, server_cpu_seconds, server_in
from tests.spark_cluster import cluster

CONTENDERS = {name: (engine, workers) for name, engine, workers in (
    ("postgres", "postgres", 0), ("duckdb", "duckdb", 0), ("spark-1", "spark", 1), ("spark-2", "spark", 2))
    if engines.installed(engine)}
SPARK_MEMORY_MB = 3_072
WINDOW = ("1992-01-01", "1998-12-31")
STAGES = ("ingestion", "calendar", "normalization", "kpi_build", "publish")
COLUMNS = {"raw": ("ingestion",), "gdp": ("normalization",), "kpi": ("kpi_build",), "published": ("publish",)}


@dataclass(frozen=True)
class Outcome:
    """What an engine took.

    Attributes:
        contender: the engine; Spark's with its number of workers.
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
    outcomes = []
    with server_in(folder / "server") as server:
        for contender in asked.only or CONTENDERS:
            outcomes.append(_measured(contender, server, inputs, folder / "work"))
            print(f"{contender}: {sum(outcomes[-1].seconds.values()):.1f} s", file=sys.stderr, flush=True)
    same = all(outcome.hashes == outcomes[0].hashes for outcome in outcomes)
    if asked.json:
        print(json.dumps({"scale": asked.scale, "same": same, "engines": [asdict(o) for o in outcomes]}, indent=2))
    else:
        _print(asked.scale, outcomes, same)
    return int(not same)


def _measured(contender: str, server: Server, inputs: data.Inputs, work: Path) -> Outcome:
    remove(work)
    project = work / "project"
    shutil.copytree(inputs.project, project)
    manifest = project / "contracts" / "pipelines" / "tpch.yaml"
    manifest.write_text(manifest.read_text().replace(
        "engine: postgres", f"engine: {CONTENDERS[contender][0]}"))
    postmaster = psutil.Process(server.postmaster)
    try:
        with server.database() as url:
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
    finally:
        remove(work)


def _work(task: dict[str, str]) -> Outcome:
    """The stages of one contender, in this process."""
    with ExitStack() as stack:
        if workers := CONTENDERS[task["contender"]][1]:
            folder = Path(task["work"]) / "cluster"
            folder.mkdir()
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
    for stage in map(Stage, STAGES):
        source = {"source": "lineitem", "window": WINDOW, "source_paths": {"lineitem": task["lineitem"]}}
        spec = StageSpec(stage, "bench", "tpch", placement, **(source if stage is Stage.INGESTION else {}))
        start = time.perf_counter()
        receipt = execute(spec, lambda *_: None, environment)
        seconds[stage.value] = time.perf_counter() - start
        rows = receipt.counts.get("accepted", rows)
        if stage in (Stage.NORMALIZATION, Stage.KPI_BUILD):
            hashes.update({output.name: output.content_sha256 for output in receipt.outputs})
    return Outcome(task["contender"], rows, seconds, hashes)


def _print(scale: float, outcomes: Sequence[Outcome], same: bool) -> None:
    print(f"TPC-H scale {scale:g}, lineitem {outcomes[0].rows:,} rows; seconds\n")
    print(f"{'':10}" + "".join(f"{name:>11}" for name in COLUMNS) + f"{'all':>9}{'memory MB':>11}{'server':>9}")
    for outcome in outcomes:
        parts = [sum(outcome.seconds[stage] for stage in stages) for stages in COLUMNS.values()]
        print(f"{outcome.contender:10}" + "".join(f"{part:>11.1f}" for part in parts)
              + f"{sum(outcome.seconds.values()):>9.1f}{outcome.peak_bytes >> 20:>11,}{outcome.server_seconds:>9.1f}")
    print(f"\ncontent hashes of every GDP and KPI: {'the same' if same else 'DIFFERENT'}")
    for name in outcomes[0].hashes:
        found = dict.fromkeys(outcome.hashes[name] for outcome in outcomes)
        print(f"  {name}: {', '.join(found)}")


if __name__ == "__main__":
    sys.exit(main())
