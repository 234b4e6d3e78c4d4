"""From a declared source to the connector that reads it and the schema it must parse to."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from barecount_assets.stages.ingestion.records import Connector, ExtractorSchema, Field
from resources.runners.stage import StageSpec
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment
    from barecount_assets.stages.ingestion.connectors.references import Lookup
    from resources.governance.contracts import Column, Contract
    from resources.governance.manifests import Pipeline
    from resources.governance.sources import AnySource, FileSource, Source

_ARROW_TYPES = {
    "text": pa.string(),
    "bigint": pa.int64(),
    "integer": pa.int32(),
    "smallint": pa.int16(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "boolean": pa.bool_(),
    "double precision": pa.float64(),
    "json": pa.string(),
}


def extractor_schema(contract: Contract, time_zone: str, source: Source) -> ExtractorSchema:
    """The extraction contract's fields, as connectors need them.

    A record that says that something is gone may say no more than its key: where a source has such records, what is
    required is asked of the others only, once they are told apart (`ContractRules`).

    Args:
        time_zone: the tenant's: on its clock instants are shown that arrive where a time without a zone, or a date, is
            declared, unless the contract names another. What instant a time without an offset is, the contract says.
    """
    return ExtractorSchema(
        tuple(
            Field(
                name=column.name,
                source_name=column.source_name,
                type=arrow_type(column.physical_type),
                required=column.required and not source.marks_deletions,
                format=column.strptime_format,
                default=column.default,
                time_zone=_clock(column, time_zone),
                json=column.is_json,
                names=(column.source_name, *column.aliases) if column.aliases else (),
            )
            for column in contract.columns
        )
    )


def _clock(column: Column, of_tenant: str) -> str | None:
    if column.is_instant:
        return column.time_zone
    return (column.time_zone or of_tenant) if column.physical_type in ("date", "timestamp") else None


def required_of_states(extraction: Contract, source: Source) -> list[str]:
    """Columns that the extraction contract requires and its schema cannot, as deletions lack them."""
    return [column.name for column in extraction.columns if column.required] if source.marks_deletions else []


def arrow_type(physical_type: str) -> pa.DataType:
    """Arrow type of a contract's physical type; `numeric(p,s)` becomes decimal128(p, s)."""
    if physical_type.startswith("numeric("):
        precision, scale = physical_type.removeprefix("numeric(").removesuffix(")").split(",")
        return pa.decimal128(int(precision), int(scale))
    return _ARROW_TYPES[physical_type]


def resolve_path(manifest: Pipeline, source: FileSource, spec: StageSpec, settings: Settings) -> str:
    """Path of a file source: the one given for this run, else the manifest's template filled in.

    Placeholders: {project_dir}, {data_dir}, {tenant}, {sources.<name>} for another source's path.

    Raises:
        BareCountError: source.not_found when the manifest leaves the path open and none was given.
    """
    given = spec.source_paths.get(source.name)
    if given is not None:
        return given
    if source.path is None:
        raise BareCountError(
            ErrorCode.SOURCE_NOT_FOUND,
            f"pipeline {spec.pipeline} declares no path for source {source.name!r}",
            hint=f"say where it is: --source {source.name}=PATH",
        )
    values = {"project_dir": str(settings.project_dir), "data_dir": str(settings.data_dir), "tenant": spec.tenant_id}
    path = source.path
    for name, value in values.items():
        path = path.replace("{" + name + "}", value)
    for other in manifest.spec.sources:
        placeholder = "{sources." + other.name + "}"
        if placeholder in path:
            path = path.replace(placeholder, resolve_path(manifest, other, spec, settings))
    if "://" in path:
        return path
    base = settings.project_dir if not Path(path).is_absolute() else Path("/")
    return os.path.normpath(base / path)


def path_if_known(manifest: Pipeline, source: FileSource, spec: StageSpec, settings: Settings) -> str | None:
    """Path of a file source; None where neither the manifest nor this run says one."""
    return resolve_path(manifest, source, spec, settings) if source.path or source.name in spec.source_paths else None


def connector_for(
    manifest: Pipeline, source: AnySource, spec: StageSpec, environment: StageEnvironment
) -> Connector:
    """The connector of a source. Connectors are imported when used: each brings its own libraries."""
    if source.connector == "files":
        from barecount_assets.stages.ingestion.connectors.files import FilesConnector, file_format

        path = resolve_path(manifest, source, spec, environment.settings)
        return FilesConnector(path, source.file_name, file_format(source.format.model_dump()),
                              asks_about_dates=not source.dated and source.order is None)
    lookup = _lookup(source, spec, environment)
    if source.connector == "rest":
        from barecount_assets.stages.ingestion.connectors.rest import RestConnector

        return RestConnector(source, lookup=lookup)
    from barecount_assets.stages.ingestion.connectors.sql import SqlConnector

    return SqlConnector(source, lookup=lookup)


def _lookup(source: AnySource, spec: StageSpec, environment: StageEnvironment) -> Lookup:
    """The tenant's secrets, each read once, when it is first needed."""
    from barecount_assets.stages.ingestion.connectors.references import Lookup

    @functools.cache
    def secret(reference: str) -> str:
        from resources.trust.secrets import Secrets

        secrets = Secrets.of(environment.settings.data_dir, environment.database)
        return secrets.read(spec.tenant_id, reference, purpose=f"source {source.name} of {spec.pipeline}").value

    return Lookup(secret=secret)
