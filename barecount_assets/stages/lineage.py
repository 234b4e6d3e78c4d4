"""What stages tell about lineage: the run that begins, what it leaves, how it ends.

A stage calls `begin` when it starts to work; whoever records its end calls `complete` in the same transaction; the
entry point of the stages is `watched` for errors. In between, the open run belongs to the context the stage runs in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psycopg

from barecount_assets import project_lineage
from resources.governance import lineage_store
from resources.governance.column_lineage import CALENDAR, AssetLineage, ProjectLineage
from resources.governance.contracts import Contract
from resources.governance.declarations import Declarations
from resources.governance.lineage_store import AssetFacts
from resources.governance.openlineage import Assertion, Dataset, Field, Job, Run
from resources.runners.stage import CheckOutcome, Output, Stage, StageReceipt, StageSpec
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment

_LAYERS = {Stage.INGESTION: "raw", Stage.CALENDAR: "gdp", Stage.NORMALIZATION: "gdp", Stage.KPI_BUILD: "kpi",
           Stage.PUBLISH: "published"}
_CONTRACT_LAYERS = {"source": "extraction", "raw": "raw", "gdp": "gold", "kpi": "activation",
                    "published": "activation"}


@dataclass(frozen=True)
class _Open:
    """The run that is at work; `run` is None while it is not on record: what it reads tells its token in the end."""

    environment: StageEnvironment
    job: Job
    token: str
    window: tuple[str, str] | None
    run: Run | None
    project: ProjectLineage
    inputs: tuple[Dataset, ...]

    def begun(self, connection: psycopg.Connection, token: str) -> Run | None:
        """The run, on record; None when this work was completed before."""
        if self.run is not None:
            return self.run
        return lineage_store.begin(
            connection, self.job, token, self.environment.code_version, self.window, self.inputs)


_open: ContextVar[_Open | None] = ContextVar("open lineage run", default=None)


def begin(
    environment: StageEnvironment, connection: psycopg.Connection, spec: StageSpec, token: str,
    inputs: Sequence[Dataset] = (), *, told_by_content: bool = False,
) -> None:
    """Put on record that a stage starts to work. The caller holds its lock, and no transaction.

    With `told_by_content` only what is read will tell the token of work that succeeds: its start goes on record with
    its end, and under `token` if it fails.

    Raises:
        BareCountError: transform.failed when the models must be compiled and dbt cannot read them.
    """
    declarations = environment.declarations
    manifest = declarations.pipeline(spec.pipeline)
    owners = tuple(person.email for person in manifest.metadata.owners)
    job = Job(spec.tenant_id, spec.pipeline, spec.stage.value, spec.source, owners)
    # Only what dbt builds needs compiled SQL, and there dbt is at work anyway.
    models = spec.stage in (Stage.NORMALIZATION, Stage.KPI_BUILD)
    project = project_lineage.of_project(environment.settings, declarations, may_compile=models)
    described = tuple(_described(declarations, spec.pipeline, dataset) for dataset in inputs)
    at = _Open(environment, job, token, spec.window, None, project, described)
    if told_by_content:
        _open.set(at)
    else:
        run = at.begun(connection, token)
        _open.set(None if run is None else replace(at, run=run))


def complete(
    connection: psycopg.Connection, receipt: StageReceipt, evidence_seq: int, inputs: Sequence[Dataset] | None = None
) -> None:
    """Put the end of the open run on record, in the caller's transaction. `inputs` replace those it began with."""
    at = _open.get()
    run = at and at.begun(connection, receipt.run_token)
    if at is None or run is None:
        return
    declarations, pipeline = at.environment.declarations, receipt.pipeline
    made = {lineage.asset: lineage for lineage in at.project.of_job(run.job.name)}
    outputs = [
        _described(declarations, pipeline, _output(receipt, output, made, at.project)) for output in receipt.outputs
    ]
    read = at.inputs if inputs is None else tuple(_described(declarations, pipeline, found) for found in inputs)
    lineage_store.complete(
        connection, run, evidence_seq, read, outputs,
        [_facts(declarations, pipeline, dataset) for dataset in (*read, *outputs)],
        [made[dataset.asset] for dataset in outputs if dataset.asset in made],
    )


@contextmanager
def watched() -> Iterator[None]:
    """Around a stage: a run that it leaves open by an error ends with FAIL, one that somebody stopped with ABORT.

    Best effort: without the database nothing can be said, and a stage that lost it is like one that was killed. Its run
    stays open, and the next attempt goes on with it.
    """
    token = _open.set(None)
    try:
        yield
    except BaseException as error:
        at = _open.get()
        if at is not None and not _is_lost_database(error):
            try:
                with at.environment.database.connect(autocommit=True) as connection:
                    run = at.begun(connection, at.token)
                    if run is not None:
                        lineage_store.fail(connection, run, _message(error), aborted=not isinstance(error, Exception))
            except (BareCountError, psycopg.Error):
                logs.get_logger("lineage").log(logging.WARNING, "the end of a run could not be put on record",
                                               exc_info=True)
        raise
    finally:
        _open.reset(token)


def _is_lost_database(error: BaseException) -> bool:
    return isinstance(error, BareCountError) and error.code is ErrorCode.DATABASE_UNAVAILABLE


def _message(error: BaseException) -> str:
    return f"[{error.code.value}] {error.message}" if isinstance(error, BareCountError) else type(error).__name__


# --- datasets ----------------------------------------------------------------------------------------------------


def inputs_of(layer: str, outputs: Iterable[Output], checks: Sequence[CheckOutcome] = ()) -> list[Dataset]:
    """What an earlier stage left, as what the next one reads."""
    return [
        Dataset(f"{layer}.{output.name}", output.rows, output.content_sha256, assertions=_assertions(output, checks))
        for output in outputs
    ]


def _output(
    receipt: StageReceipt, output: Output, made: Mapping[str, AssetLineage], project: ProjectLineage
) -> Dataset:
    asset = f"{_LAYERS[receipt.stage]}.{output.name}"
    return Dataset(
        asset, output.rows, output.content_sha256, assertions=_assertions(output, receipt.checks),
        lineage=made[asset].columns if asset in made else None,
        unresolved={u.column: u.message for u in project.unresolved if u.asset == asset},
    )


def _assertions(output: Output, checks: Sequence[CheckOutcome]) -> tuple[Assertion, ...]:
    return tuple(Assertion(c.name, c.passed, c.blocking, c.summary) for c in checks if c.asset == output.name)


def _described(declarations: Declarations, pipeline: str, dataset: Dataset) -> Dataset:
    """With the columns and the owner of its contract."""
    contract = contract_of(declarations, pipeline, dataset.asset)
    if contract is None:
        return dataset
    named: Callable[[str, str], str] = (
        (lambda _, source: source) if dataset.asset.startswith("source.") else (lambda name, _: name)
    )
    fields = tuple(
        Field(named(c.name, c.source_name), c.physical_type, c.description, c.classification) for c in contract.columns
    )
    return replace(dataset, fields=fields, owners=(contract.owner,))


def contract_of(declarations: Declarations, pipeline: str, asset: str) -> Contract | None:
    """The contract of an asset of a pipeline; None for what has none: the calendar."""
    layer, _, name = asset.partition(".")
    if asset == CALENDAR:
        return None
    dataset = name if layer in ("source", "raw") else f"{pipeline}.{name}"
    return declarations.contract(dataset, _CONTRACT_LAYERS[layer])


def _facts(declarations: Declarations, pipeline: str, dataset: Dataset) -> AssetFacts:
    manifest = declarations.pipeline(pipeline)
    contract = contract_of(declarations, pipeline, dataset.asset)
    owners = dataset.owners or tuple(person.email for person in manifest.metadata.owners)
    return AssetFacts(dataset.asset, owners, dict(manifest.metadata.tags), contract and contract.version,
                      contract and contract.hash)
