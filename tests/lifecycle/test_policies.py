"""A run that needs approval waits without a slot and resumes when somebody else approves, from every side."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from barecount_assets import keys, partitions
from barecount_assets.approved_work import approved_work, command_of
from barecount_assets.definitions import build_defs
from barecount_assets.instance import open_instance
from barecount_assets.runner import Runner
from resources.governance import approvals, declarations
from tests.dev import developing
from tests.lifecycle.conftest import (
    FIRST_DAY,
    LAST_DAY,
    PROJECT,
    Books,
    Project,
    three_months,
    unchanged_environment,
)

RUN = ("run", "order_to_cash", "--from", "2026-01-02", "--to", "2026-03-31")


class Waiting:
    """A project whose pipeline runs on xlarge runners."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def run(self, tenant: str, who: str = "ann") -> tuple[int, Any]:
        result = self.project.command(*RUN, "--tenant", tenant, "--as", who, "--json")
        return result.exit_code, json.loads(result.stdout)[0]

    def command(self, *arguments: str, exit_code: int = 0) -> Any:
        result = self.project.command(*arguments, "--json")
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def wait_for(self, statement: str) -> None:
        """Until a statement says so."""
        deadline = time.monotonic() + 180
        while not self.project.value(statement):
            assert time.monotonic() < deadline, f"in vain: {statement}"
            time.sleep(0.5)

    def work(self, request: dg.RunRequest) -> None:
        """What the daemon does with a request for the job of approved work."""
        with unchanged_environment(), open_instance(self.project.settings, self.project.database) as instance:
            os.environ.update(self.project.variables)
            assert approved_work.execute_in_process(instance=instance, tags=dict(request.tags)).success

    def job(self) -> Any:
        definitions = build_defs(self.project.settings.project_dir, {"runner": Runner(self.project.environment)})
        return definitions.get_repository_def(), definitions.resolve_job_def("order_to_cash")

    def asked_to_start(self) -> list[dg.RunRequest]:
        """What the approval sensor would start now."""
        with unchanged_environment(), open_instance(self.project.settings, self.project.database) as instance:
            os.environ.update(self.project.variables)
            context = dg.build_sensor_context(instance=instance)
            repository, _ = self.job()
            return list(repository.get_sensor_def("approval_sensor").evaluate_tick(context).run_requests or ())

    def execute(self, tags: dict[str, str]) -> dg.ExecuteInProcessResult:
        """What the daemon does with a request."""
        with unchanged_environment(), open_instance(self.project.settings, self.project.database) as instance:
            return self.job()[1].execute_in_process(
                instance=instance, tags=tags, raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})


@pytest.fixture(scope="module")
def waiting(new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waiting]:
    root: Path = tmp_path_factory.mktemp("xlarge")
    for folder in ("contracts", "dbt_project"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("target", "logs"))
    manifest = root / "contracts" / "pipelines" / "order_to_cash.yaml"
    manifest.write_text(manifest.read_text().replace("size: medium", "size: xlarge"))
    assert declarations.check(root) == []
    project = new_project(root)
    three_months(Books(project.folder("acme")))
    three_months(Books(project.folder("globex"), "EUR"))
    yield Waiting(project)


def test_the_command_refuses_names_the_approval_and_leaves_nothing_behind(waiting: Waiting) -> None:
    code, document = waiting.run("acme")
    error = document["error"]
    assert (code, error["code"]) == (1, "approval.required")
    assert f"waits for approval {error['details']['approvals'][0]}" in error["message"]
    assert "continues by itself" in error["hint"]
    assert waiting.run("acme")[1]["error"]["details"]["approvals"] == error["details"]["approvals"]
    assert waiting.project.value("select count(*) from platform.raw_batch") == 0
    assert waiting.project.value("select count(*) from platform.policy_decision where point = 'run_start'") == 1
    assert waiting.project.value("select count(*) from dagster.runs") == 0, "no slot, not even a run"
    (row,) = [row for row in waiting.command("status") if row["tenant"] == "acme"]
    assert row["approvals"] == error["details"]["approvals"]


def test_an_approved_run_is_started_by_the_daemon_once(waiting: Waiting, tmp_path: Path) -> None:
    (request,) = waiting.command("approvals", "list", "--tenant", "acme")
    number = str(request["approval_id"])
    refused = waiting.command("approvals", "approve", number, "--reason", "mine", "--as", "ann", exit_code=1)
    assert refused["error"]["code"] == "approval.refused"
    assert waiting.asked_to_start() == []
    approved = waiting.command("approvals", "approve", number, "--reason", "year's end", "--as", "bob")
    assert approved["state"] == "approved"
    (wanted,) = waiting.asked_to_start()
    assert (wanted.run_key, wanted.job_name) == (f"approval-{number}", "order_to_cash")
    with developing(waiting.project.variables, tmp_path / "dev.log", "approval_sensor"):
        waiting.wait_for("select count(*) = 1 from dagster.runs where status = 'SUCCESS'")
    assert waiting.project.versions("acme") == {"revenue": 1, "dso": 1, "overdue_ratio": 1}
    assert waiting.project.rows(
        "select r.pipeline_name, t.value from dagster.runs r join dagster.run_tags t using (run_id) "
        "where t.key = $1", keys.APPROVAL_TAG) == [("order_to_cash", number)]
    assert waiting.asked_to_start() == []
    code, document = waiting.run("acme")
    assert (code, document["changed"]) == (0, False)


def test_a_run_of_dagster_fails_fast_with_the_same_error_and_the_command_takes_it_up(waiting: Waiting) -> None:
    result = waiting.execute(dict(partitions.range_tags("globex", FIRST_DAY, LAST_DAY)))
    failures = [event.step_failure_data.user_failure_data.metadata["error"].value
                for event in result.all_events if event.event_type_value == "STEP_FAILURE"
                and event.step_failure_data.user_failure_data]
    assert {failure["code"] for failure in failures} == {"approval.required"}
    assert [event.step_retry_data.error.to_string()[:3000] for event in result.all_events
            if event.event_type_value == "STEP_UP_FOR_RETRY"] == []
    assert waiting.project.value("select count(*) from platform.raw_batch where tenant_id = 'globex'") == 0
    (request,) = waiting.command("approvals", "list", "--tenant", "globex")
    assert request["requested_by"] == "dagster"
    waiting.command("approvals", "approve", str(request["approval_id"]), "--reason", "agreed", "--as", "bob")
    code, document = waiting.run("globex")
    assert code == 0, document
    assert waiting.project.versions("globex") == {"revenue": 1, "dso": 1, "overdue_ratio": 1}


def test_an_approved_backfill_goes_on_by_itself_once(waiting: Waiting) -> None:
    command = (*RUN, "--tenant", "acme", "--backfill", "--as", "ann")
    refused = waiting.command(*command, exit_code=1)["error"]
    (number,) = refused["details"]["approvals"]
    assert refused["code"] == "approval.required" and "continues by itself" in refused["hint"]
    assert waiting.asked_to_start() == []
    waiting.command("approvals", "approve", str(number), "--reason", "agreed with finance", "--as", "bob")
    (wanted,) = waiting.asked_to_start()
    assert (wanted.run_key, wanted.job_name) == (f"approval-{number}", "approved_work")
    waiting.work(wanted)
    assert waiting.project.rows("select kind from platform.evidence where kind like 'backfill.%' order by seq") == [
        ("backfill.started",), ("backfill.finished",)]
    assert waiting.project.rows("select requested_by, granularity from platform.backfill") == [("ann", "month")]
    assert waiting.asked_to_start() == []


def test_an_approved_replay_is_done_once_in_the_name_of_who_wanted_it(waiting: Waiting) -> None:
    policies = waiting.project.settings.project_dir / "contracts" / "policies"
    declared = (policies / "long_backfills.yaml").read_text().replace("name: long_backfills", "name: replays")
    (policies / "replays.yaml").write_text(
        declared.replace("point: backfill", "point: replay").replace("days > 31", "publishes"))
    token = waiting.project.value("select run_token from platform.stage_run where tenant_id = 'acme' "
                                  "and stage = 'publish'")
    refused = waiting.command("replay", token, "--current", "--publish", "--tenant", "acme", "--by", "ann", exit_code=1)
    (number,) = refused["error"]["details"]["approvals"]
    waiting.command("approvals", "approve", str(number), "--reason", "agreed", "--as", "bob")
    (wanted,) = waiting.asked_to_start()
    assert wanted.job_name == "approved_work" and wanted.tags["barecount/tenant"] == "acme"
    with waiting.project.database.connect(autocommit=True) as connection:
        approval = approvals.get(connection, number, dt.datetime.now(dt.UTC))
        assert command_of(approval) == ["replay", token, "--tenant", "acme", "--by", "ann", "--json", "--current",
                                        "--publish"]
        assert approvals.to_start(connection, dt.datetime.now(dt.UTC) + dt.timedelta(hours=49)) == [], "it has expired"
    waiting.work(wanted)
    assert waiting.project.rows("select replay_of, versions, replayed_by, published is not null "
                                "from platform.replay") == [(token, "current", "ann", True)]
    assert waiting.asked_to_start() == []
    (policies / "replays.yaml").unlink()


def test_decisions_are_listed_replayed_and_proven(waiting: Waiting) -> None:
    decided = waiting.command("policies", "decisions", "--point", "run_start", "--tenant", "acme")
    assert [item["effect"] for item in decided] == ["require_approval"]
    points = {item["point"] for item in waiting.command("policies", "decisions")}
    assert points == {"tenant_life", "manifest_registration", "contract_change", "run_start", "publication", "backfill",
                      "replay"}
    manifest = waiting.project.settings.project_dir / "contracts" / "policies" / "large_runners.yaml"
    manifest.write_text(manifest.read_text().replace("version: 1.0.0", "version: 1.1.0").replace(
        "runner_size == 'xlarge'\n      effect: require_approval", "runner_size == 'xlarge'\n      effect: deny"))
    replayed = waiting.command("policies", "replay", str(decided[0]["decision"]))
    assert replayed["same"] and replayed["now"]["effect"] == "require_approval"
    assert waiting.project.command("evidence", "verify").exit_code == 0
