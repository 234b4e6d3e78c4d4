"""Whatever happens to the shipped files, checking them ends in findings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.governance.actions import ActionRule, ActionTemplate
from resources.governance.contracts import read_contract
from resources.governance.declarations import check
from resources.governance.endpoints import Endpoint
from resources.governance.kpis import Kpi
from resources.governance.manifests import Pipeline
from resources.governance.modes import LAYERS
from resources.governance.obligations import Obligation
from resources.governance.policy_files import Policy, condition_problems
from resources.host.runner_catalog import RunnerSizes
from resources.host.tenants import Tenant
from resources.runtime.declared import read_model
from resources.runtime.yaml_source import Finding, parse_yaml

CONTRACTS = Path(__file__).parents[3] / "contracts"
ENDPOINT = """
apiVersion: barecount/v1
kind: Endpoint
metadata: {name: ops, tenant: acme, description: the operations desk}
spec:
  target: {adapter: webhook, url: "https://hooks.example/barecount", signing: "secret://ops#signing"}
"""
NOT_SHIPPED = {CONTRACTS / "actions" / "endpoints" / "ops.yaml": ENDPOINT}  # endpoints are a customer's own
FILES = [*sorted(CONTRACTS.rglob("*.yaml")), *NOT_SHIPPED]
MODELS = {"tenants": Tenant, "pipelines": Pipeline, "kpis": Kpi, "actions/templates": ActionTemplate,
          "actions/rules": ActionRule, "actions/endpoints": Endpoint, "policies": Policy, "obligations": Obligation,
          "platform": RunnerSizes}

_NOISE = st.sampled_from(
    [
        "", ":", ": ", "-", "- ", "{", "}", "[", "]", '"', "'", "#", "&a", "*a", "!x", "\t", "\n", "\n  ", "\0", "|",
        "null", "true", "1", "-1", "0.5", "1e400", "99999999999999999999", "2024-02-30", "é", "\u2028", "<<: ", "? ",
        "{date}", "${env:", "%", "\\", "(", "numeric(99,1)", "\ud7ff", "\x7f", "💶",
    ]
)  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", " ", "online_retail", "invoices", "{date}", "{sources.invoices}", "(", "2024-13-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abname_", max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def whole(file: Path) -> str:
    """The undamaged text."""
    return NOT_SHIPPED.get(file) or file.read_text(encoding="utf-8")


def read(file: Path, text: str) -> list[Finding]:
    """What reading one file finds when it holds `text`."""
    parts = file.relative_to(CONTRACTS).parts
    source, findings = parse_yaml(text, file.name)
    if source is None:
        return findings
    if parts[0] == "datasets":
        layer = next(layer for layer in LAYERS if layer == file.stem)
        return findings + read_contract(source, f"{parts[1]}.{parts[2]}", layer)[1]
    place = file.relative_to(CONTRACTS).as_posix()
    document, wrong = read_model(next(MODELS[kind] for kind in MODELS if place.startswith(f"{kind}/")), source)
    if isinstance(document, Policy):
        wrong += [source.finding(path, problem.message) for path, problem in condition_problems(document)]
    return findings + wrong


@st.composite
def damaged_texts(draw: st.DrawFn) -> tuple[Path, str]:
    """A shipped file with a few spans of its text cut out, doubled or written over."""
    file = draw(st.sampled_from(FILES))
    text = whole(file)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = text[:start] + draw(_NOISE | st.just(text[start:end] * 2)) + text[end:]
    return file, text


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, child in children for inner in paths_in(child, (*path, key)))]


@st.composite
def damaged_documents(draw: st.DrawFn) -> tuple[Path, str]:
    """A shipped file in which a few values are others, gone, or under another key."""
    file = draw(st.sampled_from(FILES))
    source, _ = parse_yaml(whole(file), file.name)
    assert source is not None
    document = json.loads(json.dumps(source.document))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths_in(document)))
        if not path:
            continue
        parent = document
        for step in path[:-1]:
            parent = parent[step]
        value = parent.pop(path[-1])
        match draw(st.sampled_from(["replace", "remove", "rename"])):
            case "replace":
                value = draw(_VALUES)
            case "remove":
                continue
        if isinstance(parent, list):
            parent.insert(path[-1], value)
        else:
            parent[draw(st.sampled_from([path[-1], "nmae", ""]))] = value
    return file, json.dumps(document, ensure_ascii=False)


@given(damaged=damaged_texts() | damaged_documents())
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_file_is_read_without_an_exception(damaged: tuple[Path, str]):
    for finding in read(*damaged):
        assert finding.file == damaged[0].name and finding.line >= 1 and finding.message
        str(finding)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONTRACTS).as_posix())
def test_every_kind_of_file_is_found_sound_and_a_wrong_field_is_named_with_its_line(file: Path):
    assert read(file, whole(file)) == []
    source, _ = parse_yaml(whole(file), file.name)
    assert source is not None
    key = next(iter(source.document))
    lines = whole(file).splitlines()
    wrong = next(number for number, line in enumerate(lines, start=1) if line.startswith(f"{key}:"))
    lines[wrong - 1] = f"{key}: [wrong]"
    found = [f for f in read(file, "\n".join(lines)) if (f.line, f.field) == (wrong, key)]
    assert found and found[0].file == file.name and found[0].message


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped declarations and dbt models, to be damaged."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("contracts", "dbt_project"):
        shutil.copytree(CONTRACTS.parent / folder, root / folder, ignore=shutil.ignore_patterns("target", "logs"))
    return root


@given(damages=st.lists(damaged_documents() | damaged_texts(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck))
def test_a_damaged_project_is_checked_without_an_exception(copied: Path, damages: list[tuple[Path, str]]):
    files = {copied / "contracts" / file.relative_to(CONTRACTS): (file, text) for file, text in damages}
    try:
        for copy, (_, text) in files.items():
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(text, encoding="utf-8")
        for finding in check(copied):
            str(finding)
    finally:
        for copy, (file, _) in files.items():
            copy.write_text(whole(file), encoding="utf-8")


@given(data=st.data())
@settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
def test_damaged_dbt_yaml_is_checked_without_an_exception(copied: Path, data: st.DataObject):
    file = data.draw(st.sampled_from(sorted((copied / "dbt_project").rglob("*.yml"))))
    text = file.read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text)))
    try:
        rest = text[start + data.draw(st.integers(0, 20)) :]
        file.write_text(text[:start] + data.draw(_NOISE) + rest, encoding="utf-8")
        check(copied)
    finally:
        file.write_text(text, encoding="utf-8")
