"""Ingestion, side by side with what else could load the same rows: `python -m tests.benchmarks [--scale 1] [--json]`.

What is measured, in one run, into one embedded PostgreSQL with the settings the platform ships:

- `ingestion`: TPC-H lineitem, one Parquet file, through the whole ingestion stage as a run does it: checksum of the
  source, extraction contract, a raw contract with 37 rules as pandera checks, raw store (Parquet, zstd, SHA-256,
  fsync), raw table with its stamps, evidence, receipt;
- `dlt`: the same file as Arrow batches through dlt into a table, with what dlt uses by itself (INSERT statements);
- `dlt, parquet`: the same, told to use its fast way (ADBC), with files and workers for all cores;
- `adbc`: `adbc_ingest` of the file's columns and nothing else, for orientation;
- `copy`: the limit: the server reads the same rows from a file of its own by binary COPY into a logged table;
- `csv, one file` and `csv, many files`: invoice lines shaped like the online retail data through the ingestion stage,
  as one file and as one file per day.

Every contender works in a process of its own, with its libraries imported and its connection's database empty before
the clock starts. Rounds interleave the contenders, so that what else the machine does hits all of them; figures are
medians over the rounds, and a round to warm up comes first. Memory is the peak of the resident memory of the process
and its children, PostgreSQL excluded. CPU seconds are those of the process and its children, and, apart, of the server:
they say more than wall time where a machine is shared; `taken` is how many cores everybody else used meanwhile. On a
machine that is not quiet the ratios are not worth much: what needs both cores suffers most.

Data is generated once, into `benchmarks/` below the data folder; the server's folder lies there too and is made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from resources.runtime.settings import Settings
from tests.benchmarks import data
from tests.benchmarks.measuring import Measured, Server, measure, remove, server_in

AIMS = (
    ("ingestion", "dlt", "rows_per_second", 6.0),
    ("ingestion", "copy", "rows_per_second", 0.5),
)
MEMORY_AIM = 600 * 2**20
CONTENDERS = ("ingestion", "dlt, parquet", "adbc", "copy", "csv, one file", "csv, many files")
SLOW = ("dlt",)
"""Contenders of a single round: two minutes each at scale factor 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and exit with 1 when an aim is missed at scale factor 1 or above."""
    asked = _parser().parse_args(arguments)
    folder = Settings.from_environment().data_dir / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = data.prepare(folder / "data", asked.scale)
    chosen = [name for name in (*CONTENDERS, *SLOW) if not asked.only or name in asked.only]
    measured: dict[str, list[Measured]] = {name: [] for name in chosen}
    with server_in(folder / "server") as server:
        for round_ in range(-asked.warm_up, asked.rounds):
            for name in chosen:
                if name in SLOW and round_ != asked.rounds - 1:
                    continue
                result = _measure(name, server, inputs, folder / "work")
                _say(f"{'warm-up' if round_ < 0 else f'round {round_ + 1}'}: {name} {result.seconds:.1f} s")
                if round_ >= 0:
                    measured[name].append(result)
    medians = {name: _median(results) for name, results in measured.items()}
    aims = _aims(medians)
    if asked.json:
        print(json.dumps(_document(asked, inputs, measured, medians, aims), indent=2))
    else:
        _print_table(asked, inputs, medians, aims)
    return int(asked.scale >= 1 and not all(aim["met"] for aim in aims))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="TPC-H scale factor (default 1: 6,001,215 rows)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default 3)")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before them that do not (default 1)")
    parser.add_argument("--only", action="append", choices=(*CONTENDERS, *SLOW), help="this contender; repeatable")
    parser.add_argument("--json", action="store_true", help="print every measurement as JSON")
    return parser


def _measure(name: str, server: Server, inputs: data.Inputs, work: Path) -> Measured:
    """One contender, once, with a folder and a database of its own that are gone afterwards."""
    remove(work)  # a run that was killed left it
    work.mkdir()
    try:
        with server.database() as url:
            task = {"contender": name, "url": url, "work": str(work), "inputs": inputs.to_json()}
            return measure(task, server)
    finally:
        remove(work)


def _median(results: Sequence[Measured]) -> Measured:
    """Medians, each figure by itself."""
    rows = [asdict(result) for result in results]
    return Measured(**{key: type(rows[0][key])(statistics.median(row[key] for row in rows)) for key in rows[0]})


def _aims(medians: dict[str, Measured]) -> list[dict[str, object]]:
    aims: list[dict[str, object]] = []
    for ours, theirs, figure, wanted in AIMS:
        if ours in medians and theirs in medians:
            ratio = getattr(medians[ours], figure) / getattr(medians[theirs], figure)
            aims.append({"aim": f"{ours} >= {wanted:g} x {theirs}", "found": round(ratio, 2), "met": ratio >= wanted})
    if "ingestion" in medians:
        peak = medians["ingestion"].peak_bytes
        aims.append({"aim": f"peak memory of ingestion < {MEMORY_AIM >> 20} MB", "found": peak >> 20,
                     "met": peak < MEMORY_AIM})
    return aims


def _machine() -> dict[str, object]:
    """Cores this process may use, memory in GB, and the load of the last five minutes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "load": round(psutil.getloadavg()[1], 1)}


def _document(
    asked: argparse.Namespace, inputs: data.Inputs, measured: dict[str, list[Measured]], medians: dict[str, Measured],
    aims: list[dict[str, object]],
) -> dict[str, object]:
    return {
        "machine": _machine(), "scale": asked.scale, "lineitem_rows": inputs.lineitem_rows,
        "medians": {name: {**asdict(m), "rows_per_second": round(m.rows_per_second)} for name, m in medians.items()},
        "rounds": {name: [asdict(result) for result in results] for name, results in measured.items()},
        "aims": aims,
    }


def _print_table(
    asked: argparse.Namespace, inputs: data.Inputs, medians: dict[str, Measured], aims: list[dict[str, object]]
) -> None:
    machine = _machine()
    print(f"{machine['cores']} cores, {machine['memory_gb']} GB, load {machine['load']}; TPC-H scale {asked.scale:g}, "
          f"lineitem {inputs.lineitem_rows:,} rows; medians of {asked.rounds} rounds (dlt: 1)\n")
    print(f"{'':16}{'rows':>11}{'seconds':>9}{'rows/s':>11}{'cpu s':>8}{'server':>8}{'peak MB':>9}"
          f"{'taken':>7}{'x dlt':>8}{'x copy':>8}")
    for name, m in medians.items():
        comparable = name in ("ingestion", "dlt", "dlt, parquet", "adbc", "copy")
        ratios = [f"{m.rows_per_second / medians[other].rows_per_second:.2f}" if comparable and other in medians else ""
                  for other in ("dlt", "copy")]
        peak = "" if name == "copy" else f"{m.peak_bytes >> 20:,}"  # its rows never pass through its process
        print(f"{name:16}{m.rows:>11,}{m.seconds:>9.1f}{m.rows_per_second:>11,.0f}{m.cpu_seconds:>8.1f}"
              f"{m.server_cpu_seconds:>8.1f}{peak:>9}{m.cores_taken:>7.1f}{ratios[0]:>8}{ratios[1]:>8}")
    print()
    for aim in aims:
        print(f"{'met   ' if aim['met'] else 'missed'}  {aim['aim']}: {aim['found']}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
