"""dbt, in this process: parsed once, then run with the variables of one stage.

dbt keeps global state, so invocations are serialised. The parsed manifest is reused between them: models read their
variables when they are executed, never when they are parsed, which is what makes that safe.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from barecount_assets.stages.environment import StageEnvironment
from resources.runners.facade import Progress
from resources.runtime.database import PLATFORM_ROLE, lost_connection
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings, code_version

_lock = threading.Lock()
_manifests: dict[tuple[str, str, str], Any] = {}
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


def build(
    environment: StageEnvironment, select: Sequence[str], variables: Mapping[str, Any], progress: Progress,
    scratch: str | None = None,
) -> list[NodeResult]:
    """Run the selected models and their data tests.

    With `scratch` every model, the register of batches and the calendar are those of that schema, and no test runs.
    The environment must then have a data folder of its own: the parsed manifest is kept by it.

    Raises:
        BareCountError: transform.failed with the first failing node; database.unavailable when the server went away.
    """
    from dbt.cli.main import dbtRunner

    with _lock, _profile(environment):
        manifest = _parsed(environment.settings)
        if scratch is not None:
            _relocate(manifest, scratch)
        watcher = _Watcher(progress)
        runner = dbtRunner(manifest=manifest, callbacks=[watcher])
        verb = ["run"] if scratch else ["build", "--exclude-resource-type", "unit_test"]
        outcome = runner.invoke(
            [*verb, *_flags(environment.settings), "--select", *select, "--vars", json.dumps(variables)]
        )
    if outcome.exception is not None:
        raise _failure("dbt", str(outcome.exception))
    # Nodes finish in any order on dbt's threads; a receipt of the same work must be the same.
    results = sorted((_node_result(result) for result in outcome.result), key=lambda r: (r.kind, r.name))
    # A skipped node only follows from one that failed: name the cause, not the consequence.
    failed = next((r for r in results if not r.passed), None)
    if failed is not None:
        raise _failure(f"{failed.kind} {failed.name}", failed.message or failed.status)
    return results


def compiled(settings: Settings, variables: Mapping[str, Any]) -> dict[str, str]:
    """Compiled SQL of every model, by name, without those that do not compile. Needs no database.

    Raises:
        BareCountError: transform.failed when dbt cannot read the project.
    """
    from dbt.cli.main import dbtRunner

    with _lock:
        outcome = dbtRunner(manifest=_parsed(settings)).invoke(
            ["compile", *_flags(settings), "--no-introspect", "--no-populate-cache",
             "--select", "resource_type:model", "--indirect-selection", "empty", "--vars", json.dumps(variables)]
        )
    if outcome.exception is not None and outcome.result is None:
        raise _failure("dbt compile", str(outcome.exception))
    return {r.node.name: r.node.compiled_code for r in outcome.result if r.node.compiled_code is not None}


def _flags(settings: Settings) -> list[str]:
    project = str(settings.project_dir / "dbt_project")
    data = settings.data_dir
    return [
        "--project-dir",
        project,
        "--profiles-dir",
        project,
        "--target-path",
        str(data / "dbt"),
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


def _parsed(settings: Settings) -> Any:
    from dbt.cli.main import dbtRunner

    # The database is part of what is parsed; compiling without one must not leave its manifest to a build.
    key = (str(settings.data_dir), code_version(settings.project_dir), os.environ.get("DBT_DBNAME", ""))
    if key not in _manifests:
        outcome = dbtRunner().invoke(["parse", *_flags(settings)])
        if outcome.exception is not None or not outcome.success:
            raise _failure("dbt parse", str(outcome.exception))
        _manifests[key] = outcome.result
    return _manifests[key]


def _relocate(manifest: Any, schema: str) -> None:
    """Let a parsed project work in another schema; of its sources only the raw tables stay where they are."""
    for node in (*manifest.nodes.values(), *manifest.sources.values()):
        if node.resource_type in ("model", "source") and node.schema != "raw":
            node.relation_name = (node.relation_name or "").replace(f'"{node.schema}"', f'"{schema}"') or None
            node.schema = schema


@contextmanager
def _profile(environment: StageEnvironment) -> Iterator[None]:
    """dbt reads its connection from the environment; it is restored afterwards.

    The role is given to libpq: a `SET ROLE` of dbt's would be lost with the first rolled back transaction.
    """
    parts = conninfo_to_dict(environment.database.admin_url)
    wanted = {
        "DBT_HOST": parts.get("host", "localhost"), "DBT_PORT": str(parts.get("port", 5432)),
        "DBT_USER": parts.get("user", "postgres"), "DBT_PASSWORD": parts.get("password", ""),
        "DBT_DBNAME": parts.get("dbname", "postgres"), "PGOPTIONS": f"-crole={PLATFORM_ROLE}",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: str(value) for name, value in wanted.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
