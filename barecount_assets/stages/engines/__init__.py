"""Engines: where the rows of GDPs and KPIs are computed.

PostgreSQL computes and versions in one: dbt runs the models there. Any other engine computes the rows of each model
from the raw store's objects and from the GDPs as they are in PostgreSQL by then, and no more: what it computed is
loaded into PostgreSQL by binary COPY, where dbt versions it, as it versions rows it computed itself. History,
quarantine, data tests, gates and evidence are therefore the same code on every engine, and so is what a crash leaves.

A model is computed after the models it reads have been versioned, because a run of few batches computes few keys: all
other rows a model reads are in PostgreSQL alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from barecount_assets.stages import dbt
from barecount_assets.stages.dbt import WAREHOUSE, NodeResult, PlannedModel, Relation
from barecount_assets.stages.environment import StageEnvironment, lock_key
from resources.runners.facade import Progress
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import computed_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from barecount_assets.stages.engines.inputs import Inputs


class Engine(Protocol):
    """An engine at work, with nothing to read yet."""

    def provide(self, relation: Relation, inputs: Inputs) -> None:
        """Make a relation readable under its name."""

    def compute(self, model: PlannedModel) -> pa.RecordBatchReader:
        """The rows of a model, in the types its columns declare; a plain `numeric` as it was computed."""


def build(
    environment: StageEnvironment, engine: str, tenant_id: str, pipeline: str, select: Sequence[str],
    variables: Mapping[str, Any], progress: Progress,
) -> list[NodeResult]:
    """Run models and their data tests, their rows computed by an engine. The caller holds the build lock.

    Raises:
        BareCountError: as `dbt.build`; store.corrupt when a raw object is not what was written; runner.unavailable
            when the engine is not installed.
    """
    if engine == WAREHOUSE:
        return dbt.build(environment, select, variables, progress)
    if not installed(engine):
        raise BareCountError(
            ErrorCode.RUNNER_UNAVAILABLE, f"the engine {engine} is not installed here: there is no {_PACKAGES[engine]}",
            hint="install what docs/engines.md says of it, or declare another engine in the manifest")
    levels = dbt.plan(environment.settings, engine, select, variables)
    total = sum(map(len, levels))
    results: list[NodeResult] = []
    done = 0
    with _opened(environment, engine, tenant_id, pipeline, variables) as (at_work, inputs):
        provided: set[Relation] = set()
        for level in levels:
            with computed_rows.forgotten(inputs.connection, [(model.schema, model.name) for model in level]):
                for model in level:
                    progress(f"{model.name} on {engine}", done, total)
                    with dbt.failing(f"model {model.name} on {engine}"):
                        _compute(at_work, inputs, model, provided)
                    done += 1
                results += dbt.merge(environment, [model.name for model in level], variables, progress,
                                     tests_of=select if level is levels[-1] else ())
    return sorted(results, key=lambda r: (r.kind, r.name))


def _compute(at_work: Engine, inputs: Inputs, model: PlannedModel, provided: set[Relation]) -> None:
    """Load the rows of a model, after making readable what it reads and nobody read before."""
    for relation in model.reads:
        if relation not in provided:
            at_work.provide(relation, inputs)
            provided.add(relation)
    computed_rows.replace(inputs.connection, model.schema, model.name, model.columns, at_work.compute(model))


def installed(engine: str) -> bool:
    """Whether an engine can be used here."""
    return engine == WAREHOUSE or importlib.util.find_spec(_PACKAGES[engine]) is not None


def identity(engine: str, connection: psycopg.Connection) -> dict[str, str]:
    """What evidence says of the engine that computed: its name and version."""
    if engine == WAREHOUSE:
        version = connection.info.parameter_status("server_version") or ""
    else:
        version = metadata.version(_PACKAGES[engine])
    return {"name": engine, "version": version}


_PACKAGES = {"duckdb": "duckdb", "spark": "pyspark"}


@contextmanager
def _opened(
    environment: StageEnvironment, engine: str, tenant_id: str, pipeline: str, variables: Mapping[str, Any]
) -> Iterator[tuple[Engine, Inputs]]:
    from barecount_assets.stages.engines.inputs import Inputs

    # The lock of tenant and pipeline makes the folder this run's: what a killed one left is removed.
    folder = environment.settings.data_dir / "engine" / f"{lock_key(tenant_id, pipeline) + 2**31:08x}"
    with Inputs.opened(environment, tenant_id, variables, folder) as inputs, _open(engine, inputs) as at_work:
        yield at_work, inputs


def _open(engine: str, inputs: Inputs) -> AbstractContextManager[Engine]:
    if engine == "spark":
        from barecount_assets.stages.engines import spark_engine

        return spark_engine.opened(inputs)
    from barecount_assets.stages.engines import duckdb_engine

    return duckdb_engine.opened(inputs)
