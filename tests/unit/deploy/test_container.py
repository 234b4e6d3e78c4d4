"""The image, compose and Dagster's settings refer to things that exist, and to each other rightly."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import barecount

PROJECT = Path(__file__).resolve().parents[3]
DOCKERFILE = (PROJECT / "deploy/Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((PROJECT / "deploy/compose.yaml").read_text(encoding="utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if name != "postgres"}


def copied() -> set[str]:
    """What the Dockerfile takes from the repository."""
    lines = re.sub(r"\\\n\s*", " ", DOCKERFILE).splitlines()
    found = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    return {path for paths in found for path in paths}


def test_the_image_copies_only_what_exists_and_its_ignore_file_lets_it_in() -> None:
    let_in = {line[1:] for line in (PROJECT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
              if line.startswith("!")}
    assert copied() == let_in
    assert [path for path in copied() if not (PROJECT / path).exists()] == []


def test_the_image_has_everything_the_package_and_the_project_are_made_of() -> None:
    tools = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]
    needed = {name.rstrip("*") for name in tools["setuptools"]["packages"]["find"]["include"]} | {
        "pyproject.toml", "README.md", "requirements.lock", "contracts", "dbt_project", "deploy/environments",
        "deploy/dagster.yaml", "deploy/workspace.yaml"}
    assert needed == copied()


def test_the_image_installs_with_hashes_and_runs_as_nobody_special() -> None:
    assert "--require-hashes --requirement requirements.lock" in DOCKERFILE
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users and users[-1] == "10001:10001"
    assert "awslambdaric==" in (PROJECT / "requirements.lock").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [
    shlex.join(argv) for argv in sorted(
        {tuple(service["command"]) for service in OURS.values()}
        | {tuple(service["healthcheck"]["test"][1:]) for service in OURS.values() if "healthcheck" in service})])
def test_commands_of_containers_are_verbs_of_the_command_line(command: str) -> None:
    program, *verbs = shlex.split(command)
    assert program == "barecount"
    assert barecount(*verbs, "--help").exit_code == 0


def test_services_wait_for_services_that_tell_whether_they_are_well() -> None:
    for name, service in COMPOSE["services"].items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in COMPOSE["services"], f"{name} depends on {other}"
            healthy = condition["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in COMPOSE["services"][other], f"{name} waits for {other} for ever"


def test_secrets_volumes_and_networks_of_services_are_declared_and_no_password_is_in_an_environment() -> None:
    for name, service in COMPOSE["services"].items():
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"]), name
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= set(COMPOSE["volumes"]), name
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        for variable, value in service.get("environment", {}).items():
            assert "PASSWORD" not in variable or variable.endswith("_FILE"), f"{name}: {variable}"
            if variable.endswith("_FILE"):
                assert Path(value).name in service["secrets"], f"{name} has no secret for {variable}"


def test_only_this_machine_reaches_what_is_published() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert published and all(port.startswith("127.0.0.1:") for port in published)


def test_the_build_and_the_environment_that_compose_names_exist() -> None:
    build = OURS["migrate"]["build"]
    assert (PROJECT / "deploy" / build["context"]).resolve() == PROJECT
    assert (PROJECT / build["dockerfile"]).is_file()
    environment = OURS["code-location"]["environment"]
    assert (PROJECT / "deploy/environments" / f"{environment['BARECOUNT_ENVIRONMENT']}.yaml").is_file()


def test_webserver_and_daemon_find_the_code_location_where_it_listens() -> None:
    from barecount_assets.cli import serve

    workspace = yaml.safe_load((PROJECT / serve.WORKSPACE).read_text(encoding="utf-8"))
    (location,) = (entry["grpc_server"] for entry in workspace["load_from"])
    assert location["host"] == {"env": serve.CODE_LOCATION_HOST}
    assert location["port"] == serve.CODE_LOCATION_PORT
    assert OURS["webserver"]["environment"][serve.CODE_LOCATION_HOST] in COMPOSE["services"]


def test_dagster_takes_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from barecount_assets.instance import instance_settings

    monkeypatch.setenv("BARECOUNT_CONCURRENT_RUNS", "7")
    settings = yaml.safe_load(instance_settings())
    assert settings["concurrency"]["runs"]["max_concurrent_runs"] == 7
    check = ("import sys, yaml; from dagster._config import validate_config; "
             "from dagster._core.instance.config import dagster_instance_config_schema, validate_concurrency_config; "
             "found = yaml.safe_load(sys.stdin); validate_concurrency_config(found); "
             "answer = validate_config(dagster_instance_config_schema(), found); "
             "sys.exit(str(answer.errors) if not answer.success else 0)")
    answer = subprocess.run([sys.executable, "-c", check], input=yaml.safe_dump(settings), text=True,
                            capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("wrong", ["0", "-1", "many"])
def test_a_number_of_runs_that_is_none_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from barecount_assets.instance import instance_settings
    from resources.runtime.errors import BareCountError

    monkeypatch.setenv("BARECOUNT_CONCURRENT_RUNS", wrong)
    with pytest.raises(BareCountError, match="a whole number from 1"):
        instance_settings()
