"""Same inputs, same numbers: nothing is done twice, and what is done from scratch is the same to the byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from barecount_assets import lifecycle
from barecount_assets.lifecycle import RunOutcome, RunRequest
from barecount_assets.stages import execute
from resources.runners.stage import Stage
from tests.lifecycle.conftest import Project, Sales, published, receipt

STAGES = (Stage.CALENDAR, Stage.NORMALIZATION, Stage.KPI_BUILD, Stage.PUBLISH)


def test_running_again_does_no_work_and_publishes_nothing(sales: Sales) -> None:
    before = sales.project.state()
    for tenant, facts in sales.facts.items():
        again = sales.project.run("order_to_cash", tenant, facts.start, facts.end)
        assert (again.changed, again.error, again.dagster_run_id) == (False, None, None)
        tokens = {stage: receipt(again, stage).run_token for stage in STAGES}
        assert tokens == {stage: receipt(sales.outcomes[tenant], stage).run_token for stage in STAGES}
    assert sales.project.state() == before


def test_the_command_says_that_nothing_is_to_be_done(sales: Sales) -> None:
    facts = sales.facts["acme"]
    before = sales.project.state()
    for extra in ([], ["--dry-run"]):
        result = sales.project.command("run", "order_to_cash", "--tenant", "acme", "--from", facts.start.isoformat(),
                                       "--to", facts.end.isoformat(), *extra)
        assert result.exit_code == 0 and "up to date" in result.stdout, result.output
    assert sales.project.state() == before


def test_a_touched_file_with_the_same_content_is_the_same_file(sales: Sales) -> None:
    facts = sales.facts["acme"]
    before = sales.project.state()
    for path in sorted(sales.project.folder("acme").rglob("*_2026-01-*")):
        os.utime(path, (1, 1))
    assert not sales.project.run("order_to_cash", "acme", facts.start, facts.end).changed
    assert sales.project.state() == before


@dataclass(frozen=True)
class Again:
    """The same sources of acme in a second database, where everything came in another order."""

    project: Project
    outcome: RunOutcome


@pytest.fixture(scope="module")
def again(sales: Sales, new_project: Callable[..., Project]) -> Again:
    project, facts = new_project(), sales.facts["acme"]
    original, copy = sales.project.folder("acme"), project.folder("acme")
    files = sorted((path for path in original.rglob("*") if path.is_file()), reverse=True)
    for path in files:  # created last file first, by a source that knows no times
        target = copy / path.relative_to(original)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    # The second half of the days lands first, and the last source before the first.
    middle = facts.start + (facts.end - facts.start) / 2
    environment = project.environment
    manifest = environment.declarations.effective("order_to_cash", "acme")
    request = RunRequest("order_to_cash", "acme", middle, facts.end)
    late = [spec for spec in lifecycle.specs(manifest, request) if spec.stage is Stage.INGESTION]
    for spec in reversed(late):
        execute(spec, lambda *_: None, environment)
    outcome = project.run("order_to_cash", "acme", facts.start, facts.end)
    assert outcome.error is None, outcome.error
    return Again(project, outcome)


def batches(project: Project) -> list[tuple]:
    return project.rows(
        "select dataset, partition_date, content_sha256, object_sha256, quarantine_sha256, schema_hash, received, "
        "accepted, quarantined from platform.raw_batch where tenant_id = 'acme' order by 1, 2, 3")


def test_batches_landed_in_another_order(sales: Sales, again: Again) -> None:
    def order(project: Project) -> list[Any]:
        return [row[0] for row in project.rows(
            "select content_sha256 from platform.raw_batch where tenant_id = 'acme' order by batch_id")]

    assert sorted(order(again.project)) == sorted(order(sales.project)) and order(again.project) != order(sales.project)


def test_raw_objects_are_the_same_to_the_byte(sales: Sales, again: Again) -> None:
    assert batches(again.project) == batches(sales.project)


def test_gdps_kpis_and_publications_have_the_same_content(sales: Sales, again: Again) -> None:
    first, second = sales.project, again.project
    assert second.gdp_hashes("order_to_cash", "acme") == first.gdp_hashes("order_to_cash", "acme")
    assert second.publication_hashes("acme") == first.publication_hashes("acme")
    for stage in STAGES:
        outputs = [{o.name: (o.content_sha256, o.rows) for o in receipt(outcome, stage).outputs}
                   for outcome in (sales.outcomes["acme"], again.outcome)]
        assert outputs[0] == outputs[1], stage


def test_run_tokens_are_those_of_the_first_database(sales: Sales, again: Again) -> None:
    for stage in STAGES:
        assert receipt(again.outcome, stage).run_token == receipt(sales.outcomes["acme"], stage).run_token
    for source in ("invoices", "payments", "customers"):
        tokens = [receipt(outcome, Stage.INGESTION, source).run_token
                  for outcome in (sales.outcomes["acme"], again.outcome)]
        assert tokens[0] == tokens[1]


def test_the_same_refusals_are_quarantined(sales: Sales, again: Again) -> None:
    statement = (
        "select dataset, stage, source_id, row_number, field, reason, message, payload from platform.quarantine "
        "where tenant_id = 'acme' order by 1, 2, 3, 4, 5, 6")
    assert again.project.rows(statement) == sales.project.rows(statement)


def test_both_are_published_once(again: Again) -> None:
    assert set(published(again.outcome).values()) == {"published"}
    assert set(again.project.versions("acme").values()) == {1}
