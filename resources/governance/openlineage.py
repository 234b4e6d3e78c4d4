"""OpenLineage run events of stage runs.

Format: https://openlineage.io/spec/2-0-2/OpenLineage.json and the facets' own schemas, whose versions are in `_FACETS`.
Namespaces are `barecount/<tenant>` for jobs and `barecount://<tenant>` for datasets, so that tenants never share one. A
dataset's name is that of the asset, `<layer>.<name>`. An event's id derives from its run and type: the same event has
the same id however often it is sent.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resources.governance.column_lineage import CONSTANT, DIRECT, ROWS, VARIABLE, Dependency
from resources.runtime.settings import SOFTWARE_VERSION

START, COMPLETE, FAIL, ABORT = "START", "COMPLETE", "FAIL", "ABORT"
PRODUCER = f"urn:barecount:platform:{SOFTWARE_VERSION}"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:barecount:openlineage")
_FACETS: Mapping[str, str] = {
    "schema": "1-2-0/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet",
    "columnLineage": "1-2-0/ColumnLineageDatasetFacet.json#/$defs/ColumnLineageDatasetFacet",
    "dataQualityAssertions": "1-1-0/DataQualityAssertionsDatasetFacet.json#/$defs/DataQualityAssertionsDatasetFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
    "ownership": "1-0-1/OwnershipDatasetFacet.json#/$defs/OwnershipDatasetFacet",
    "tags": "1-0-0/TagsDatasetFacet.json#/$defs/TagsDatasetFacet",
    "inputStatistics": "1-0-0/InputStatisticsInputDatasetFacet.json#/$defs/InputStatisticsInputDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet.json#/$defs/OutputStatisticsOutputDatasetFacet",
    "jobType": "2-0-4/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
    "jobOwnership": "1-0-1/OwnershipJobFacet.json#/$defs/OwnershipJobFacet",
    "nominalTime": "1-0-1/NominalTimeRunFacet.json#/$defs/NominalTimeRunFacet",
    "errorMessage": "1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
}


@dataclass(frozen=True)
class Field:
    """A column of a dataset, as its contract describes it."""

    name: str
    type: str
    description: str = ""
    classification: str = ""


@dataclass(frozen=True)
class Assertion:
    """A check that was made of a dataset."""

    name: str
    success: bool
    blocking: bool
    summary: str


@dataclass(frozen=True)
class Dataset:
    """An input or output of a run.

    Attributes:
        asset: `<layer>.<name>`.
        rows: None when nobody counted.
        version: digest of the content, None when it is not known.
        lineage: dependencies by column, `*` for the rows; None for inputs.
        unresolved: by column, why it is not known where it comes from.
    """

    asset: str
    rows: int | None = None
    version: str | None = None
    fields: tuple[Field, ...] = ()
    owners: tuple[str, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    lineage: Mapping[str, Sequence[Dependency]] | None = None
    unresolved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What runs: a stage of a pipeline, for ingestion of one source."""

    tenant_id: str
    pipeline: str
    stage: str
    source: str | None
    owners: tuple[str, ...]

    @property
    def name(self) -> str:
        return ".".join(filter(None, (self.pipeline, self.stage, self.source)))


@dataclass(frozen=True)
class Run:
    """One attempt at a piece of work.

    Attributes:
        window: inclusive ISO dates the work is about, if it is about days.
    """

    job: Job
    run_token: str
    attempt: int
    code_version: str
    window: tuple[str, str] | None = None

    @property
    def id(self) -> uuid.UUID:
        """UUID (version 5) of tenant, job, run token and attempt."""
        return uuid.uuid5(
            _NAMESPACE, "\0".join((self.job.tenant_id, self.job.name, self.run_token, str(self.attempt)))
        )

    def event_id(self, kind: str) -> uuid.UUID:
        """The same for the same event."""
        return uuid.uuid5(self.id, kind)


def event(
    kind: str, run: Run, inputs: Iterable[Dataset] = (), outputs: Iterable[Dataset] = (), *,
    evidence_seq: int | None = None, error: str | None = None,
) -> dict[str, Any]:
    """The event without `eventTime`: see `at`.

    Args:
        kind: START, COMPLETE, FAIL or ABORT.
        evidence_seq: number of the ledger entry that proves what the event says.
    """
    tenant = run.job.tenant_id
    return {
        "eventType": kind,
        "producer": PRODUCER,
        "schemaURL": f"{SCHEMA}#/$defs/RunEvent",
        "run": {"runId": str(run.id), "facets": _run_facets(kind, run, evidence_seq, error)},
        "job": {
            "namespace": f"barecount/{tenant}", "name": run.job.name,
            "facets": {
                "jobType": _facet("jobType", processingType="BATCH", integration="BARECOUNT",
                                  jobType=run.job.stage.upper()),
                "ownership": _facet("jobOwnership", owners=_owners(run.job.owners)),
            },
        },
        "inputs": [_input(tenant, dataset) for dataset in inputs],
        "outputs": [_output(tenant, dataset) for dataset in outputs],
    }


def at(body: Mapping[str, Any], time: dt.datetime) -> dict[str, Any]:
    """The whole event, as it is sent."""
    return {"eventTime": time.astimezone(dt.UTC).isoformat(timespec="microseconds"), **body}


def _facet(name: str, /, **content: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": f"https://openlineage.io/spec/facets/{_FACETS[name]}", **content}


def _run_facets(kind: str, run: Run, evidence_seq: int | None, error: str | None) -> dict[str, Any]:
    facets: dict[str, Any] = {
        "processing_engine": _facet("processing_engine", name="barecount", version=SOFTWARE_VERSION),
        # No facet of the standard carries these; a custom one is prefixed and refers to the base schema.
        "barecount_run": {
            "_producer": PRODUCER, "_schemaURL": f"{SCHEMA}#/$defs/RunFacet",
            "eventId": str(run.event_id(kind)), "tenant": run.job.tenant_id, "runToken": run.run_token,
            "attempt": run.attempt, "codeVersion": run.code_version,
            **({} if evidence_seq is None else {"evidence": evidence_seq}),
        },
    }
    if run.window is not None:
        start, end = run.window
        facets["nominalTime"] = _facet(
            "nominalTime", nominalStartTime=f"{start}T00:00:00Z", nominalEndTime=f"{end}T23:59:59Z"
        )
    if error is not None:
        facets["errorMessage"] = _facet("errorMessage", message=error, programmingLanguage="Python")
    return facets


def _input(tenant: str, dataset: Dataset) -> dict[str, Any]:
    facets: dict[str, Any] = {}
    if dataset.rows is not None:
        facets["inputStatistics"] = _facet("inputStatistics", rowCount=dataset.rows)
    if dataset.assertions:
        facets["dataQualityAssertions"] = _assertions(dataset)
    return {**_dataset(tenant, dataset), "inputFacets": facets}


def _output(tenant: str, dataset: Dataset) -> dict[str, Any]:
    document = _dataset(tenant, dataset)
    if dataset.lineage is not None:
        document["facets"]["columnLineage"] = _column_lineage(tenant, dataset)
    if dataset.assertions:
        document["facets"]["dataQualityAssertions"] = _assertions(dataset)
    statistics = {} if dataset.rows is None else {"outputStatistics": _facet("outputStatistics", rowCount=dataset.rows)}
    return {**document, "outputFacets": statistics}


def _dataset(tenant: str, dataset: Dataset) -> dict[str, Any]:
    facets: dict[str, Any] = {}
    if dataset.fields:
        facets["schema"] = _facet("schema", fields=[
            {"name": f.name, "type": f.type, "description": f.description} for f in dataset.fields])
        tags = [{"key": "classification", "value": f.classification, "source": "CONTRACT", "field": f.name}
                for f in dataset.fields if f.classification]
        if tags:
            facets["tags"] = _facet("tags", tags=tags)
    if dataset.version is not None:
        facets["version"] = _facet("version", datasetVersion=dataset.version)
    if dataset.owners:
        facets["ownership"] = _facet("ownership", owners=_owners(dataset.owners))
    return {"namespace": _namespace(tenant), "name": dataset.asset, "facets": facets}


def _namespace(tenant: str) -> str:
    return f"barecount://{tenant}"


def _owners(owners: Iterable[str]) -> list[dict[str, str]]:
    return [{"name": owner, "type": "OWNER"} for owner in owners]


def _assertions(dataset: Dataset) -> dict[str, Any]:
    return _facet("dataQualityAssertions", assertions=[
        {"assertion": a.name, "name": a.name, "success": a.success, "severity": "error" if a.blocking else "warn",
         "actual": a.summary}
        for a in dataset.assertions])


def _column_lineage(tenant: str, dataset: Dataset) -> dict[str, Any]:
    """The facet. Constants, run variables and what is unknown are no fields: they stand beside `inputFields`."""
    assert dataset.lineage is not None
    fields: dict[str, Any] = {}
    for column in sorted({*dataset.lineage, *dataset.unresolved} - {ROWS}):
        found = dataset.lineage.get(column, ())
        entry: dict[str, Any] = {"inputFields": _input_fields(tenant, found)}
        for asset, key in ((CONSTANT, "constants"), (VARIABLE, "runVariables")):
            values = sorted({d.column for d in found if d.asset == asset and d.kind == DIRECT})
            if values:
                entry[key] = values
        if column in dataset.unresolved:
            entry["unresolved"] = dataset.unresolved[column]
        fields[column] = entry
    rows = [d for d in dataset.lineage.get(ROWS, ()) if d.column != ROWS]
    return _facet("columnLineage", fields=fields, dataset=_input_fields(tenant, rows))


def _input_fields(tenant: str, dependencies: Iterable[Dependency]) -> list[dict[str, Any]]:
    fields: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for d in dependencies:
        if d.asset not in (CONSTANT, VARIABLE):
            fields.setdefault((d.asset, d.column), []).append(
                {"type": d.kind, "subtype": d.subtype, "masking": d.masked})
    return [
        {"namespace": _namespace(tenant), "name": asset, "field": column, "transformations": transformations}
        for (asset, column), transformations in sorted(fields.items())
    ]
