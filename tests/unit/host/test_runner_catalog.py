"""Environments and sizes: what is declared is used, what is not is refused, and nothing falls back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import pytest

from resources.host import runner_catalog
from resources.host.runner_catalog import SIZES, BackendName, NetworkProfile, RunnerClassName
from resources.runtime.errors import BareCountError, ErrorCode
from tests.conftest import PROJECT

LOCAL = "deploy/environments/local.yaml"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for part in ("deploy/environments", "contracts/platform"):
        shutil.copytree(PROJECT / part, tmp_path / part)
    return tmp_path


def test_the_shipped_files_are_valid() -> None:
    assert runner_catalog.findings(PROJECT) == []
    assert {"local", "local-processes", "aws-dev", "aws-prod"} <= set(runner_catalog.environment_names(PROJECT))


@pytest.mark.parametrize("name", ["local", "local-processes", "aws-dev", "aws-prod"])
def test_every_class_has_a_backend_with_every_size(name: str) -> None:
    environment, sizes = runner_catalog.read_environment(PROJECT, name), runner_catalog.read_sizes(PROJECT)
    for runner_class in get_args(RunnerClassName):
        backend = environment.backend_of(runner_class).backend
        assert backend in get_args(BackendName)
        for size in SIZES:
            assert sizes.size(backend, size).timeout_seconds > 0


def test_lambda_never_promises_more_than_fifteen_minutes() -> None:
    sizes = runner_catalog.read_sizes(PROJECT)
    assert max(sizes.size("lambda", size).timeout_seconds for size in SIZES) == 900


@pytest.mark.parametrize("what", ["environment", "class", "size", "backend", "profile"])
def test_what_is_not_declared_is_refused_with_what_is(what: str) -> None:
    environment, sizes = runner_catalog.read_environment(PROJECT, "local"), runner_catalog.read_sizes(PROJECT)
    with pytest.raises(BareCountError) as refused:
        {
            "environment": lambda: runner_catalog.read_environment(PROJECT, "aws-moon"),
            "class": lambda: environment.backend_of("mainframe"),
            "size": lambda: sizes.size("fargate", "huge"),
            "backend": lambda: sizes.size("mainframe", "small"),
            "profile": lambda: environment.network_of("on_premise_agent"),
        }[what]()
    assert refused.value.code is ErrorCode.RUNNER_UNKNOWN
    assert "allowed: " in refused.value.message and refused.value.hint


@pytest.mark.parametrize(("old", "new", "field", "message"), [
    ("name: local\n", "name: elsewhere\n", "metadata.name", "not the name of the file"),
    ("{backend: subprocess}", "{backend: mainframe}", "spec.classes.dedicated_compute", ""),
    ("{public: true}", "{public: perhaps}", "spec.networks.public_vpc_egress.public", ""),
    ("{backend: subprocess}", "{backend: glue, job: stage}", "spec", "glue needs region"),
    ("description:", "descripton:", "metadata.descripton", ""),
])
def test_a_wrong_environment_is_a_finding_with_file_line_and_field(
    project: Path, old: str, new: str, field: str, message: str
) -> None:
    path = project / LOCAL
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    found = runner_catalog.findings(project)
    assert any(
        f.file == LOCAL and f.line > 0 and f.field.startswith(field) and message in f.message for f in found), found


def test_a_catalog_without_a_size_is_a_finding(project: Path) -> None:
    path = project / runner_catalog.SIZES_FILE
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "xlarge: {vcpu: 5.79" not in line))
    (finding,) = runner_catalog.findings(project)
    assert finding.field == "spec.backends.lambda" and "no size xlarge" in finding.message


def test_a_project_without_these_files_uses_the_shipped_ones(tmp_path: Path) -> None:
    assert runner_catalog.read_environment(tmp_path, "local").name == "local"
    assert {p for p in get_args(NetworkProfile) if p != "on_premise_agent"} == set(
        runner_catalog.read_environment(tmp_path, "local").spec.networks)
