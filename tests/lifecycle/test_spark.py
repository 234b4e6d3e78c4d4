"""The same pipeline on a Spark cluster: a master and two workers, each a process of its own on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from resources.runners.stage import Stage
from tests.lifecycle.conftest import Books, Project, unchanged_environment
from tests.lifecycle.test_engines import (
    FIRST,
    LAST,
    RETAIL_DAYS,
    SHARED_DATA,
    Site,
    content,
    declare_engine,
    dt,
    first_delivery,
    left_behind,
    on_engine,
)

__all__ = ["on_engine"]  # a fixture

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None,
                       reason="pyspark is not installed: `make test-spark` installs it and runs this file"),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17, and there is no java here"),
]


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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the master of a cluster that Spark is configured to use."""
    processes = [_started("Master", "--port", "0")]
    try:
        master = _said(processes[0], r"Starting Spark master at (spark://\S+)")[1]
        for _ in range(2):
            work = tmp_path_factory.mktemp("worker")
            processes.append(_started("Worker", "--cores", "1", "--memory", "1g", "--work-dir", str(work), master))
        for worker in processes[1:]:
            _said(worker, "Successfully registered with master")
        configuration = tmp_path_factory.mktemp("spark")
        (configuration / "spark-defaults.conf").write_text(
            f"spark.master {master}\nspark.driver.host 127.0.0.1\nspark.driver.bindAddress 127.0.0.1\n"
            "spark.executor.memory 640m\nspark.driver.memory 1g\nspark.sql.shuffle.partitions 2\n")
        with unchanged_environment():
            os.environ["SPARK_CONF_DIR"] = str(configuration)
            yield master
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def spark(on_engine: Callable[[str], Project], cluster: str) -> tuple[Site, dict[tuple[str, str], dict[str, str]]]:
    """What PostgreSQL made of some deliveries, and a site on which Spark then computed everything again."""
    site = Site("spark", on_engine("postgres"), {})
    first_delivery(Books(site.project.folder("acme")))
    expected = {}
    for engine in ("postgres", "spark"):
        declare_engine(site.project.settings.project_dir, engine)
        site.bring_up("order_to_cash", "acme", FIRST, LAST)
        expected[engine, "order_to_cash"] = content(site, "order_to_cash", "acme")
        if (SHARED_DATA / "online-retail").is_dir():
            start, end = map(dt.date.fromisoformat, (RETAIL_DAYS[0], RETAIL_DAYS[-1]))
            site.bring_up("online_retail", "retail_uk", start, end, invoices=SHARED_DATA / "online-retail" / "by-day")
            expected[engine, "online_retail"] = content(site, "online_retail", "retail_uk")
    return site, expected


@pytest.mark.parametrize(
    ("pipeline", "tenant"), [("order_to_cash", "acme"), ("online_retail", "retail_uk")])
def test_a_cluster_gives_the_content_hashes_that_postgresql_gave(
    spark: tuple[Site, dict[tuple[str, str], dict[str, str]]], pipeline: str, tenant: str
) -> None:
    site, found = spark
    if ("spark", pipeline) not in found:
        pytest.skip("the real data is not there; set BARECOUNT_SHARED_DATA")
    assert len(found["postgres", pipeline]) == {"order_to_cash": 6, "online_retail": 9}[pipeline]
    assert found["spark", pipeline] == found["postgres", pipeline]
    done = site.receipts[tenant, 2]
    assert done[Stage.NORMALIZATION].facts["engine"] == done[Stage.KPI_BUILD].facts["engine"] == "spark"
    assert {(o.facts["versions_added"], o.facts["versions_closed"]) for o in done[Stage.NORMALIZATION].outputs} == {
        (0, 0)}


def test_nothing_of_spark_is_left_behind(spark: tuple[Site, dict[tuple[str, str], dict[str, str]]]) -> None:
    assert left_behind(spark[0].project) == ([], [])
