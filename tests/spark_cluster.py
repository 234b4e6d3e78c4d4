"""A Spark cluster on this machine: a master and workers, each a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_OVERHEAD_MB = 384


@contextmanager
def cluster(folder: Path, *, workers: int, memory_mb: int) -> Iterator[Path]:
    """A cluster whose workers have one core each; yields a value for SPARK_CONF_DIR that leads to it.

    Args:
        folder: for the workers' files and the configuration.
        workers: how many.
        memory_mb: of the heap of each worker's executor, and of the driver's.
    """
    processes = [_started("Master", "--port", "0")]
    try:
        master = _said(processes[0], r"Starting Spark master at (spark://\S+)")[1]
        for number in range(workers):
            processes.append(_started("Worker", "--cores", "1", "--memory", f"{memory_mb + _OVERHEAD_MB}m",
                                      "--work-dir", str(folder / f"worker-{number}"), master))
        for worker in processes[1:]:
            _said(worker, "Successfully registered with master")
        configuration = folder / "conf"
        configuration.mkdir(parents=True)
        (configuration / "spark-defaults.conf").write_text(
            f"spark.master {master}\nspark.driver.host 127.0.0.1\nspark.driver.bindAddress 127.0.0.1\n"
            f"spark.executor.memory {memory_mb}m\nspark.driver.memory {memory_mb}m\n"
            f"spark.sql.shuffle.partitions {workers}\n")
        yield configuration
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


def _started(role: str, *arguments: str) -> subprocess.Popen:
    import pyspark

    home = Path(pyspark.__file__).parent
    return subprocess.Popen(
        [home / "bin" / "spark-class", f"org.apache.spark.deploy.{role.lower()}.{role}", "--webui-port", "0",
         "--host", "127.0.0.1", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "SPARK_HOME": str(home)})


def _said(process: subprocess.Popen, pattern: str) -> re.Match[str]:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(pattern, line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the process
            return found
    raise AssertionError(f"the process ended with {process.wait()} before it said {pattern}")
