"""dbt, in this process: parsed once, then run with the variables of one stage.

dbt keeps global state, so invocations are serialised. The parsed manifest is reused between them: models read their
variables when they are executed, never when they are parsed, which is what makes that safe.

dbt runs models in PostgreSQL alone. For another engine it compiles them (`plan`), then versions and tests the rows
which that engine computed (`merge`): see `engines`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict

from barecount_assets.stages.environment import StageEnvironment
from resources.governance.definitions import CompiledModel, source_sha256
from resources.runners.facade import Progress
from resources.runtime.database import PLATFORM_ROLE, lost_connection, unavailable_as_error
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings, code_version

if TYPE_CHECKING:
    from dbt.cli.main import dbtRunner

_lock = threading.Lock()
_manifests: dict[tuple[str, str], Any] = {}
_ahead: dict[Path, subprocess.Popen[bytes]] = {}
WAREHOUSE = "postgres"
_CONNECTION = ("DBT_HOST", "DBT_PORT", "DBT_USER", "DBT_PASSWORD", "DBT_DBNAME", "PGOPTIONS")  # see profiles.yml
_COMPUTED = "{{ computed_rows() }}"
_COMPILE = ("compile", "--no-introspect", "--no-populate-cache", "--indirect-selection", "empty")
_LOST = ("server closed the connection", "connection to server", "terminating connection", "Connection refused",
         "could not connect", "connection already closed", "the database system is")


@dataclass(frozen=True)
class NodeResult:
    """What one model or test did: dbt's own status, message and seconds; `model` is the model a test is about."""

    name: str
    kind: str
    model: str
    status: str
    message: str
    failures: int
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status in {"success", "pass", "warn", "skipped"}


@dataclass(frozen=True)
class Relation:
    """A table or view that a model reads, by schema and name."""

    schema: str
    name: str


@dataclass(frozen=True)
class PlannedModel:
    """A model, compiled for an engine.

    Attributes:
        sql: a select of its rows, in the engine's dialect.
        columns: (name, declared PostgreSQL type), in order.
        reads: the relations that the select reads.
    """

    name: str
    schema: str
    sql: str
    columns: tuple[tuple[str, str], ...]
    reads: tuple[Relation, ...]


def parse_ahead(settings: Settings) -> None:
    """Let another process parse the project meanwhile, when nobody has yet: to read what it leaves takes a moment.

    Parsing is the longest thing a first run does, and sources can be read without it.
    """
    folder = _target_path(settings, WAREHOUSE)
    is_parsed = (code_version(settings.project_dir), WAREHOUSE) in _manifests
    if not is_parsed and folder not in _ahead and not (folder / "partial_parse.msgpack").exists():
        _ahead[folder] = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={
                **os.environ, "BARECOUNT_PROJECT_DIR": str(settings.project_dir),
                "BARECOUNT_DATA_DIR": str(settings.data_dir)})


@cache
def import_ahead() -> None:
    """Import dbt in a thread, once: who needs it waits for it as for any import."""
    threading.Thread(target=_import_quietly, name="dbt-import").start()


def _import_quietly() -> None:
    """A command may end while this imports; what fails here fails again, and is told, where somebody needs it."""
    with suppress(Exception):
        _library()


def build(
    environment: StageEnvironment, select: Sequence[str], variables: Mapping[str, Any], progress: Progress,
    scratch: str | None = None,
) -> list[NodeResult]:
    """Run the selected models and their data tests.

    With `scratch` every model, the register of batches and the calendar are those of that schema, and no test runs.

    Raises:
        BareCountError: transform.failed with the first failing node; database.unavailable when the server went away.
    """
    with _lock, _profile(environment):
        manifest = _parsed(environment.settings)
        if scratch is not None:
            _relocate(manifest, scratch)
        verb = ["run"] if scratch else ["build", "--exclude-resource-type", "unit_test"]
        return _run(environment.settings, manifest, verb, select, variables, progress)


def merge(
    environment: StageEnvironment, select: Sequence[str], variables: Mapping[str, Any], progress: Progress,
    tests_of: Sequence[str] = (),
) -> list[NodeResult]:
    """Run the selected models with the rows an engine computed in place of their own SQL, and the data tests of others.

    Raises:
        BareCountError: as `build`.
    """
    with _lock, _profile(environment):
        manifest = _parsed(environment.settings, computed=True)
        if not tests_of:
            return _run(environment.settings, manifest, ["run"], select, variables, progress)
        return _run(environment.settings, manifest, ["build", "--exclude-resource-type", "unit_test"],
                    [*select, *_tests_of(manifest, tests_of)], variables, progress)


def plan(
    settings: Settings, target: str, select: Sequence[str], variables: Mapping[str, Any]
) -> list[list[PlannedModel]]:
    """The selected models, compiled for a target, in an order in which each is after those it reads.

    Models of one inner list do not read each other. Needs no database.

    Raises:
        BareCountError: transform.failed when a model does not compile.
    """
    with _lock:
        outcome = _invoke([*_COMPILE, *_flags(settings, target), "--select", *select, "--vars", json.dumps(variables)],
                          manifest := _parsed(settings, target))
    if outcome.exception is not None:
        raise _failure("dbt compile", str(outcome.exception))
    models = {}
    for result in outcome.result:
        if result.node.compiled_code is None or str(result.status) == "error":
            raise _failure(f"model {result.node.name} on {target}", result.message or "it does not compile")
        models[result.node.unique_id] = result.node
    order = TopologicalSorter({key: models.keys() & set(node.depends_on.nodes) for key, node in models.items()})
    order.prepare()
    levels = []
    while ready := sorted(order.get_ready()):
        levels.append([_planned(manifest, models[key]) for key in ready])
        order.done(*ready)
    return levels


def compiled(settings: Settings, variables: Mapping[str, Any]) -> dict[str, CompiledModel]:
    """Every model, compiled, by name, without those that do not compile. Needs no database, and names none.

    Raises:
        BareCountError: transform.failed when dbt cannot read the project.
    """
    with _lock:
        outcome = _invoke([*_COMPILE, *_flags(settings), "--select", "resource_type:model",
                           "--vars", json.dumps(variables)], _parsed(settings))
    if outcome.exception is not None and outcome.result is None:
        raise _failure("dbt compile", str(outcome.exception))
    return {r.node.name: _compiled(r.node) for r in outcome.result if r.node.compiled_code is not None}


def _compiled(node: Any) -> CompiledModel:
    key = node.config.get("unique_key") or ()
    return CompiledModel(node.compiled_code.replace(f'"{node.database}".', ""), source_sha256(node.raw_code),
                         (key,) if isinstance(key, str) else tuple(key))


def _run(
    settings: Settings, manifest: Any, verb: Sequence[str], select: Sequence[str], variables: Mapping[str, Any],
    progress: Progress,
) -> list[NodeResult]:
    outcome = _invoke([*verb, *_flags(settings), "--select", *select, "--vars", json.dumps(variables)], manifest,
                      _Watcher(progress))
    if outcome.exception is not None:
        raise _failure("dbt", str(outcome.exception))
    # Nodes finish in any order on dbt's threads; a receipt of the same work must be the same.
    results = sorted((_node_result(result) for result in outcome.result), key=lambda r: (r.kind, r.name))
    # A skipped node only follows from one that failed: name the cause, not the consequence.
    failed = next((r for r in results if not r.passed), None)
    if failed is not None:
        raise _failure(f"{failed.kind} {failed.name}", failed.message or failed.status)
    return results


def _library() -> type[dbtRunner]:
    from dbt.cli.main import dbtRunner
    from dbt_common.behavior_flags import BehaviorFlagRendered

    # For a message that nobody sees, dbt reads the source lines of its whole call stack, once for each of its flags, in
    # every invocation: below Dagster that takes longer than all the models do.
    BehaviorFlagRendered._default_source = staticmethod(lambda: "dbt.adapters")
    return dbtRunner


def _invoke(words: Sequence[str], manifest: Any = None, *callbacks: Callable[[Any], None]) -> Any:
    return _library()(manifest=manifest, callbacks=list(callbacks)).invoke(list(words))


def _tests_of(manifest: Any, models: Sequence[str]) -> list[str]:
    """Names of the data tests that look at any of the models."""
    wanted = {key for key, node in manifest.nodes.items() if node.resource_type == "model" and node.name in models}
    return sorted(node.name for node in manifest.nodes.values()
                  if node.resource_type == "test" and wanted & set(node.depends_on.nodes))


def _planned(manifest: Any, node: Any) -> PlannedModel:
    inputs = [manifest.sources.get(key) or manifest.nodes[key] for key in node.depends_on.nodes]
    return PlannedModel(
        node.name, node.schema, node.compiled_code,
        tuple((column.name, column.data_type) for column in node.columns.values()),
        tuple(sorted({Relation(i.schema, i.identifier) for i in inputs}, key=lambda r: (r.schema, r.name))))


def _flags(settings: Settings, target: str = WAREHOUSE) -> list[str]:
    project = str(settings.project_dir / "dbt_project")
    data = settings.data_dir
    return [
        "--project-dir",
        project,
        "--profiles-dir",
        project,
        "--target",
        target,
        "--target-path",
        str(_target_path(settings, target)),
        "--log-path",
        str(data / "logs"),
        "--quiet",
        "--log-level",
        "none",
        "--log-level-file",
        "info",
        "--no-use-colors",
        "--no-print",
        "--no-write-json",
        "--no-version-check",
        "--no-send-anonymous-usage-stats",
    ]


def _target_path(settings: Settings, target: str) -> Path:
    return settings.data_dir / ("dbt" if target == WAREHOUSE else f"dbt-{target}")


def _parsed(settings: Settings, target: str = WAREHOUSE, *, computed: bool = False) -> Any:
    """The parsed project, for its user to change; with `computed` every model selects the rows an engine computed.

    Parsing takes seconds, and what is parsed is the same for every database: it is done without one, kept by the
    process and, as dbt's partial parse, in the data folder. Each use gets a copy in the database of the profile.
    """
    key = (code_version(settings.project_dir), target)
    if key not in _manifests:
        if (parsing := _ahead.get(_target_path(settings, target))) is not None:
            parsing.wait()  # if it came to nothing, the same error is told here
        with _variables({name: None for name in _CONNECTION}):
            outcome = _invoke(["parse", *_flags(settings, target)])
        if outcome.exception is not None or not outcome.success:
            raise _failure("dbt parse", str(outcome.exception))
        _manifests[key] = outcome.result
    manifest = _manifests[key].deepcopy()
    if database := os.environ.get("DBT_DBNAME"):
        for node in (*manifest.nodes.values(), *manifest.sources.values()):
            if node.relation_name:
                node.relation_name = node.relation_name.replace(f'"{node.database}"', f'"{database}"', 1)
            node.database = database
    if computed:
        for node in manifest.nodes.values():
            if node.resource_type == "model":
                node.raw_code = _COMPUTED
    return manifest


def _relocate(manifest: Any, schema: str) -> None:
    """Let a parsed project work in another schema; of its sources only the raw tables stay where they are."""
    for node in (*manifest.nodes.values(), *manifest.sources.values()):
        if node.resource_type in ("model", "source") and node.schema != "raw":
            node.relation_name = (node.relation_name or "").replace(f'"{node.schema}"', f'"{schema}"') or None
            node.schema = schema


def _profile(environment: StageEnvironment) -> AbstractContextManager[None]:
    """dbt reads its connection from the environment; it is restored afterwards.

    The role is given to libpq: a `SET ROLE` of dbt's would be lost with the first rolled back transaction.
    """
    parts = conninfo_to_dict(environment.database.admin_url)
    found = (parts.get("host", "localhost"), parts.get("port", 5432), parts.get("user", "postgres"),
             parts.get("password", ""), parts.get("dbname", "postgres"), f"-crole={PLATFORM_ROLE}")
    return _variables({name: str(value) for name, value in zip(_CONNECTION, found, strict=True)})


@contextmanager
def _variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment, or remove those that are None; afterwards they are as before."""
    before = {name: os.environ.get(name) for name in wanted}

    def apply(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    apply(wanted)
    try:
        yield
    finally:
        apply(before)


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Whatever goes wrong inside, as the failure of a model.

    Raises:
        BareCountError: transform.failed; an error that is one already as it is; a lost database as itself.
    """
    try:
        with unavailable_as_error():
            yield
    except BareCountError:
        raise
    except Exception as error:
        raise _failure(what, str(error)) from error


class _Watcher:
    """Turns dbt's own events into progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, event: Any) -> None:
        if event.info.name == "LogStartLine":
            self._progress(event.data.node_info.node_name, event.data.index - 1, event.data.total)


def _node_result(result: Any) -> NodeResult:
    node = result.node
    attached = getattr(node, "attached_node", None) or ""
    return NodeResult(
        name=node.name, kind=str(node.resource_type.value), model=attached.rpartition(".")[2] or node.name,
        status=str(result.status.value if hasattr(result.status, "value") else result.status),
        message=result.message or "", failures=result.failures or 0, seconds=result.execution_time,
    )


def _failure(what: str, message: str) -> BareCountError:
    if any(sign in message for sign in _LOST):
        return lost_connection(RuntimeError(message))
    lines = " ".join(line.strip() for line in message.strip().splitlines() if line.strip())
    return BareCountError(
        ErrorCode.TRANSFORM_FAILED, f"{what} failed: {lines[:600]}",
        hint="nothing was committed; fix the model or the data and run again",
    )


if __name__ == "__main__":
    _parsed(Settings.from_environment())
