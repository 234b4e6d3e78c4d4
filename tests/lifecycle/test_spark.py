"""The same pipeline on a Spark cluster: a master and two workers, each a process of its own on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator

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
from tests.spark_cluster import cluster

__all__ = ["on_engine"]  # a fixture

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None,
                       reason="pyspark is not installed: `make test-spark` installs it and runs this file"),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17, and there is no java here"),
]


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster that Spark is configured to use."""
    with cluster(tmp_path_factory.mktemp("spark"), workers=2, memory_mb=640) as configuration, unchanged_environment():
        os.environ["SPARK_CONF_DIR"] = str(configuration)
        yield


@pytest.fixture(scope="module")
def spark(on_engine: Callable[[str], Project], two_workers: None) -> tuple[Site, dict[tuple[str, str], dict[str, str]]]:
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
