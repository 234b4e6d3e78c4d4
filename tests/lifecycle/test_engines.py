"""Which engine computes is one line of a manifest; what is computed, kept, refused and published stays the same."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from barecount_assets import sample
from barecount_assets.definitions import build_defs
from barecount_assets.lifecycle import RunRequest, specs
from barecount_assets.stages import engines, execute
from resources.runners.stage import Stage, StageReceipt
from resources.runners.work import RunSpec
from resources.runtime.errors import BareCountError, ErrorCode
from tests.lifecycle.conftest import PROJECT, SHARED_DATA, Books, Project, unchanged_environment

ENGINES = ("postgres", "duckdb")
OTHERS = ENGINES[1:]


def declare_engine(folder: Path, engine: str) -> None:
    """Change the one line in every manifest of a project."""
    for path in (folder / "contracts" / "pipelines").glob("*.yaml"):
        lines = path.read_text().splitlines(keepends=True)
        (at,) = [number for number, line in enumerate(lines) if line.lstrip().startswith("engine:")]
        lines[at] = f"    engine: {engine}\n"
        path.write_text("".join(lines))


@pytest.fixture(scope="session")
def on_engine(
    new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Project]:
    """Makes empty projects, as shipped but for the engine. What dbt parsed for one serves the next."""
    parsed: dict[str, Path] = {}

    def make(engine: str) -> Project:
        folder = tmp_path_factory.mktemp(engine)
        for part in ("contracts", "dbt_project", "deploy"):
            shutil.copytree(PROJECT / part, folder / part, ignore=shutil.ignore_patterns("target", "logs"))
        declare_engine(folder, engine)
        project = new_project(folder)
        data = project.settings.data_dir
        if engine in parsed and parsed[engine].exists():
            shutil.copytree(parsed[engine], data / f"dbt-{engine}")
        parsed.setdefault(engine, data / f"dbt-{engine}")
        return project

    return make


@dataclass(frozen=True)
class Site:
    """A project on one engine, and the receipts of what ran in it, by tenant and occasion."""

    engine: str
    project: Project
    receipts: dict[tuple[str, int], dict[Stage, StageReceipt]]

    def bring_up(self, pipeline: str, tenant: str, start: dt.date, end: dt.date, **paths: Path) -> None:
        """Run the stages of a pipeline, as a run does, one after the other."""
        environment = self.project.environment
        with environment.database.transaction() as connection:
            environment.register_tenant(connection, tenant)
        request = RunRequest(pipeline, tenant, start, end, {name: str(path) for name, path in paths.items()})
        stages = specs(environment.declarations.pipeline(pipeline), request)
        with unchanged_environment():
            done = {spec.stage: execute(spec, lambda *_: None, environment) for spec in stages}
        self.receipts[tenant, 1 + sum(key[0] == tenant for key in self.receipts)] = done

    def histories(self, pipeline: str, tenant: str) -> dict[str, list[tuple]]:
        """Every version of every row of the GDPs, with runs counted from 1 instead of by their numbers."""
        runs = [run for (run,) in self.project.rows(
            "select run_id from platform.stage_run where tenant_id = $1 and pipeline = $2 "
            "and stage = 'normalization' order by evidence_seq", tenant, pipeline)]
        return {
            model: self.project.rows(
                f"select row_hash, row_version, array_position($2::bigint[], valid_from_run), "
                f"array_position($2::bigint[], valid_to_run) from gdp.{model} where tenant_id = $1 order by 1, 2",
                tenant, runs)
            for model in self.project.environment.declarations.pipeline(pipeline).spec.transforms.gdp
        }

    def series(self, pipeline: str, tenant: str) -> dict[str, list[tuple]]:
        """Every value of the published KPIs, as text."""
        return {
            kpi: self.project.rows(
                f"select to_jsonb(p) - 'version' - 'published_at' from published.{kpi} p where tenant_id = $1 "
                "order by grain, period, to_jsonb(p)::text", tenant)
            for kpi in self.project.environment.declarations.pipeline(pipeline).spec.kpis
        }

    def refused(self, tenant: str) -> list[tuple]:
        """What normalization put into quarantine."""
        return self.project.rows(
            "select dataset, source_id, row_number, field, reason, message, payload from platform.quarantine "
            "where tenant_id = $1 and stage = 'normalization' order by 1, 2, 3, 4, 5", tenant)


BLANK = "\u00a0"  # white space that `trim` of some engines takes and of others does not
FIRST, LAST = dt.date(2026, 1, 2), dt.date(2026, 3, 31)
RETAIL_DAYS = ("2010-12-01", "2010-12-02")


def first_delivery(books: Books) -> None:
    """Names and keys that engines order, trim, measure and compare differently when they are let."""
    books.customers("2026-01-05", "C1", "c1", "Ç2", "😀")
    books.invoices(
        "2026-01-05", ("I1", "C1", "NORTH", "2026-01-05", "100.05"), ("I2", "Ç2", "SOUTH", "2026-01-05", "0.01"),
        ("i2", f"C9{BLANK}", "ONLINE", "2026-01-31", "33.33"), ("I3", f"C9{BLANK}", "NORTH", "2026-01-31", "66.67"))
    books.invoices(
        "2026-02-03", ("F1", "C1", "NORTH", "2026-02-03", 1000), ("F2", "Ç2", "SOUTH", "2026-02-03", "2000.05"),
        ("F3", "c1", "ONLINE", "2026-02-03", 3000))
    books.payments(
        "2026-01-20", ("P1", "I1", "2026-01-20", "60"), ("P2", "I1", "2026-02-20", "70"), ("P3", "I0", "2026-01-20", 1),
        ("p3", "I3", "2026-02-28", "0.01"))


def second_delivery(books: Books) -> None:
    """A file in place of an older one, late records, rows that vanish, and a customer who becomes known."""
    books.customers("2026-02-02", f"C9{BLANK}", "C1")
    books.invoices("2026-01-05", ("I1", "C1", "NORTH", "2026-01-05", "100.06"), ("i2", "c1", "ONLINE", "2026-01-31", 3))
    books.invoices(
        "2026-03-03", ("I4", "C1", "SOUTH", "2026-03-03", "999.99"), ("M1", "C1", "NORTH", "2026-03-03", "4000.10"),
        ("M2", "c1", "ONLINE", "2026-03-03", "500.33"))
    books.payments("2026-03-17", ("P4", "I4", "2026-03-17", "1199.99"), ("P5", "I4", "2026-03-18", "7"))


@pytest.fixture(scope="module")
def sites(on_engine: Callable[[str], Project]) -> dict[str, Site]:
    """The same deliveries of three tenants, on every engine."""
    made = {engine: Site(engine, on_engine(engine), {}) for engine in ENGINES}
    for site in made.values():
        books = Books(site.project.folder("acme"))
        first_delivery(books)
        site.bring_up("order_to_cash", "acme", FIRST, LAST)
        second_delivery(books)
        site.bring_up("order_to_cash", "acme", FIRST, LAST)
        truth = sample.write_sample(site.project.folder("globex"), "globex", invoices=300, business_days=40)
        site.bring_up("order_to_cash", "globex", truth.start, truth.end)
        if (SHARED_DATA / "online-retail").is_dir():
            start, end = map(dt.date.fromisoformat, (RETAIL_DAYS[0], RETAIL_DAYS[-1]))
            site.bring_up("online_retail", "retail_uk", start, end, invoices=SHARED_DATA / "online-retail" / "by-day")
    return made


def content(site: Site, pipeline: str, tenant: str) -> dict[str, str]:
    """Content hash of everything that the stages computed and published."""
    return {**site.project.gdp_hashes(pipeline, tenant), **site.project.publication_hashes(tenant)}


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize(
    ("pipeline", "tenant"), [("order_to_cash", "acme"), ("order_to_cash", "globex"), ("online_retail", "retail_uk")])
def test_every_gdp_and_kpi_has_the_same_content_hash(
    sites: dict[str, Site], engine: str, pipeline: str, tenant: str
) -> None:
    if (tenant, 1) not in sites[engine].receipts:
        pytest.skip("the real data is not there; set BARECOUNT_SHARED_DATA")
    assert sites[engine].series(pipeline, tenant) == sites["postgres"].series(pipeline, tenant)
    hashes = content(sites["postgres"], pipeline, tenant)
    assert len(hashes) == {"order_to_cash": 6, "online_retail": 9}[pipeline]
    assert content(sites[engine], pipeline, tenant) == hashes


@pytest.mark.parametrize("engine", OTHERS)
def test_history_has_the_same_versions_opened_and_closed_by_the_same_runs(sites: dict[str, Site], engine: str) -> None:
    expected = sites["postgres"].histories("order_to_cash", "acme")
    assert any(closed for rows in expected.values() for *_, closed in rows), "the second delivery closed versions"
    assert sites[engine].histories("order_to_cash", "acme") == expected
    scopes = [sites[engine].receipts["acme", n][Stage.NORMALIZATION].facts["scope"] for n in (1, 2)]
    assert scopes == ["all", "changed"]


@pytest.mark.parametrize("engine", OTHERS)
def test_the_same_records_are_refused_whole_and_for_the_same_reason(sites: dict[str, Site], engine: str) -> None:
    for tenant in ("acme", "globex"):
        expected = sites["postgres"].refused(tenant)
        assert expected
        assert sites[engine].refused(tenant) == expected


@pytest.mark.parametrize("engine", OTHERS)
def test_the_same_data_tests_and_gates_are_decided(sites: dict[str, Site], engine: str) -> None:
    for stage in (Stage.NORMALIZATION, Stage.KPI_BUILD):
        expected, found = (
            {(check.name, check.asset, check.passed) for check in sites[name].receipts["acme", 2][stage].checks}
            for name in ("postgres", engine))
        assert found == expected and len(found) > 5


@pytest.mark.parametrize("engine", ENGINES)
def test_receipts_and_evidence_name_the_engine(sites: dict[str, Site], engine: str) -> None:
    site = sites[engine]
    for stage in (Stage.NORMALIZATION, Stage.KPI_BUILD):
        assert site.receipts["acme", 1][stage].facts["engine"] == engine
        bodies = site.project.rows("select body from platform.evidence where kind = $1", f"{stage}.finished")
        named = [json.loads(body)["payload"]["engine"] for (body,) in bodies]
        assert {entry["name"] for entry in named} == {engine} and all(entry["version"] for entry in named)


@pytest.mark.parametrize("engine", ENGINES)
def test_assets_show_the_engine_that_computes_them_beside_the_database_that_keeps_them(
    sites: dict[str, Site], engine: str
) -> None:
    specs_of = build_defs(sites[engine].project.settings.project_dir).resolve_all_asset_specs()
    kinds = {frozenset(spec.kinds) for spec in specs_of if spec.key.path[0] in ("gdp", "kpi") and "dbt" in spec.kinds}
    assert kinds == {frozenset({"dbt", "postgres", engine})}


@pytest.mark.parametrize("engine", OTHERS)
def test_nothing_of_an_engine_is_left_behind(sites: dict[str, Site], engine: str) -> None:
    assert left_behind(sites[engine].project) == ([], [])


def left_behind(project: Project) -> tuple[list[tuple], list[Path]]:
    folder = project.settings.data_dir / "engine"
    return (project.rows("select schemaname, tablename from pg_tables where tablename like '%\\_\\_computed'"),
            list(folder.iterdir()) if folder.is_dir() else [])


@pytest.mark.parametrize("engine", OTHERS)
def test_a_changed_raw_object_stops_the_engine_and_nothing_is_versioned(sites: dict[str, Site], engine: str) -> None:
    site = sites[engine]
    before = content(site, "order_to_cash", "acme")
    (key,) = site.project.rows(
        "select object_key from platform.raw_batch where tenant_id = 'acme' and is_current "
        "and dataset = 'order_to_cash.payments' order by batch_id limit 1")[0]
    stored = Path(site.project.settings.raw_store) / key
    kept = stored.read_bytes()
    books = Books(site.project.folder("acme"))
    books.payments("2026-03-19", ("P6", "I4", "2026-03-19", "1"))
    stored.chmod(0o644)
    stored.write_bytes(kept[:-1] + b"?")
    try:
        with pytest.raises(BareCountError) as refusal:
            site.bring_up("order_to_cash", "acme", FIRST, LAST)
    finally:
        stored.write_bytes(kept)
    assert refusal.value.code is ErrorCode.STORE_CORRUPT and key in refusal.value.message
    assert content(site, "order_to_cash", "acme") == before
    assert left_behind(site.project) == ([], [])


@pytest.mark.parametrize("engine", OTHERS)
def test_a_run_killed_while_rows_are_merged_is_as_if_it_had_not_been(sites: dict[str, Site], engine: str) -> None:
    for name in ("postgres", engine):
        books = Books(sites[name].project.folder("acme"))
        books.invoices("2026-03-20", ("I5", "C1", "NORTH", "2026-03-20", "10"), ("I6", "Ç2", "ONLINE", "2026-03-20", 5))
        books.payments("2026-03-19", ("P6", "I4", "2026-03-19", "1"))
    site = sites[engine]
    environment = site.project.environment
    *ingestion, normalization, _, _ = specs(
        environment.declarations.pipeline("order_to_cash"), RunRequest("order_to_cash", "acme", FIRST, LAST))
    for spec in ingestion:
        execute(spec, lambda *_: None, environment)
    child = subprocess.Popen(
        [sys.executable, "-m", "barecount_assets.stages", RunSpec(normalization, {"backend": "killed"}, 600).text()],
        env={**os.environ, **site.project.variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        if left_behind(site.project)[0]:
            child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.1)
    assert child.returncode == -signal.SIGKILL
    assert left_behind(site.project) != ([], [])
    for name in ("postgres", engine):
        sites[name].bring_up("order_to_cash", "acme", FIRST, LAST)
    assert content(site, "order_to_cash", "acme") == content(sites["postgres"], "order_to_cash", "acme")
    assert left_behind(site.project) == ([], [])


@pytest.mark.skipif(engines.installed("spark"), reason="every engine is installed")
def test_an_engine_that_is_not_installed_is_refused_and_nothing_changes(sites: dict[str, Site]) -> None:
    site = sites["postgres"]
    before = content(site, "order_to_cash", "acme")
    declare_engine(site.project.settings.project_dir, "spark")
    with pytest.raises(BareCountError) as refusal:
        site.bring_up("order_to_cash", "acme", FIRST, LAST)
    assert refusal.value.code is ErrorCode.RUNNER_UNAVAILABLE and "pyspark" in refusal.value.message
    assert content(site, "order_to_cash", "acme") == before


def test_another_engine_takes_over_without_a_new_version_of_anything(sites: dict[str, Site]) -> None:
    site = sites["postgres"]
    before = site.project.versions("acme"), content(site, "order_to_cash", "acme")
    declare_engine(site.project.settings.project_dir, "duckdb")
    site.bring_up("order_to_cash", "acme", FIRST, LAST)
    done = site.receipts["acme", max(number for tenant, number in site.receipts if tenant == "acme")]
    assert done[Stage.NORMALIZATION].facts["engine"] == "duckdb"
    assert {(o.facts["versions_added"], o.facts["versions_closed"]) for o in done[Stage.NORMALIZATION].outputs} == {
        (0, 0)}
    assert (site.project.versions("acme"), content(site, "order_to_cash", "acme")) == before
