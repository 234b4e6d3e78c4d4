"""The first version of a pipeline, written from a sample of its source.

`plan` looks at a folder of CSV, JSON Lines or Parquet files and proposes every file a pipeline needs: tenant, contracts
of each layer, a GDP model, a KPI model, the KPI's specification and the manifest. Types are guessed here, once, for a
person to review; the platform itself never guesses.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from barecount_assets.stages.ingestion.connectors.files import partition_date_of
from resources.data_utilities.time_zones import rules_of
from resources.governance import name_dates
from resources.governance.contract_evolution import column_name
from resources.governance.manifests import MAX_REFUSED
from resources.runtime.errors import BareCountError, ErrorCode

_SAMPLE_ROWS = 10_000
_FORMATS = {"csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}  # by ending
_DECIMAL = "numeric(18,6)"
_GDP_COLUMNS = (
    ("tenant_id", "text", "Tenant that owns the row."),
    ("row_hash", "bytea", "SHA-256 over the business columns."),
    ("row_version", "integer", "Number of this version of the row, from 1."),
    ("valid_from_run", "bigint", "Run that opened this version."),
    ("valid_to_run", "bigint", "Run that closed this version; null while it is the head."),
)


@dataclass(frozen=True)
class Request:
    """What to scaffold: column arguments are names as the source has them; `time_zone` is a new tenant's, `file_name`
    the manifest's glob.
    """

    pipeline: str
    path: Path
    entity: str
    key: str
    date: str
    measure: str
    dimension: str | None
    tenant: str
    owner: str
    delimiter: str = ","
    time_zone: str | None = None
    file_name: str | None = None


@dataclass(frozen=True)
class Field:
    """A column of the source: its names there and here, its proposed type; `listed`: JSON that is always a list."""

    source_name: str
    name: str
    kind: str
    listed: bool = False

    @property
    def logical_type(self) -> str:
        if self.kind == "json":
            return "array" if self.listed else "object"
        if self.kind.startswith("numeric") or self.kind == "double precision":
            return "number"
        return {"bigint": "integer", "text": "string", "timestamptz": "timestamp"}.get(self.kind, self.kind)


def plan(project: Path, request: Request) -> dict[Path, str]:
    """Files to write, by path relative to the project.

    Raises:
        BareCountError: source.not_found, source.malformed, declaration.unknown for a column the source does not have,
            store.conflict when a file exists already, usage for a time zone that the tenant, who has one, is not in.
    """
    _require_new(project, request)
    files = _files(request.path)
    fields = _fields(files[0], request.delimiter)
    chosen = {role: _field(fields, column) for role, column in
              (("key", request.key), ("date", request.date), ("measure", request.measure))}
    dimension = _field(fields, request.dimension) if request.dimension else None
    draft = _Draft(request, fields, chosen["key"], chosen["date"], chosen["measure"], dimension, files)
    _require_types(draft)
    contents = dict(draft.files())
    contents = {p: t for p, t in contents.items() if p.parts[1] != "tenants" or not (project / p).exists()}
    if existing := sorted(str(path) for path in contents if (project / path).exists()):
        raise BareCountError(
            ErrorCode.STORE_CONFLICT, f"{', '.join(existing)} exist already; nothing was written",
            hint="choose another pipeline name, or edit the files that are there",
        )
    return contents


def write(project: Path, contents: Mapping[Path, str]) -> None:
    """Write the planned files."""
    for path, text in contents.items():
        target = project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _files(path: Path) -> list[Path]:
    found = [path]
    if path.is_dir():
        by_format = [sorted(path.glob(f"*.{ending}")) for ending in _FORMATS]
        found = next((files for files in by_format if files), [])
    if not found or not found[0].is_file():
        endings = ", ".join(f"*.{ending}" for ending in _FORMATS)
        raise BareCountError(ErrorCode.SOURCE_NOT_FOUND, f"no file of {endings} at {path}",
                             hint="name a folder with such files, or one file")
    return found


def _format_of(file: Path) -> str:
    """The format by the file's ending; CSV for one that says nothing."""
    return _FORMATS.get(file.suffix.removeprefix(".").lower(), "csv")


def _fields(file: Path, delimiter: str) -> list[Field]:
    """Columns and proposed types of a file's first rows."""
    fields = {"csv": _csv_fields, "jsonl": _jsonl_fields, "parquet": _parquet_fields}[_format_of(file)](file, delimiter)
    if not fields:
        raise BareCountError(ErrorCode.SOURCE_MALFORMED, f"{file.name} names no field",
                             hint="name a file with records, or write the declarations by hand")
    return fields


def _csv_fields(file: Path, delimiter: str) -> list[Field]:
    import pyarrow as pa
    from pyarrow import csv

    try:
        with csv.open_csv(
            file, parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(strings_can_be_null=True),
        ) as reader:
            batch = reader.read_next_batch().slice(0, _SAMPLE_ROWS)
    except (pa.ArrowInvalid, StopIteration) as error:
        raise BareCountError(ErrorCode.SOURCE_MALFORMED, f"{file.name} cannot be read as CSV: {error}",
                             hint="give the right --delimiter, or write the files by hand") from error
    return [Field(column, column_name(column), _kind(batch.column(i))) for i, column in enumerate(batch.schema.names)]


def _jsonl_fields(file: Path, delimiter: str) -> list[Field]:
    """Members of the first objects. What is nested is JSON, as is what is of several kinds."""
    from itertools import islice

    from barecount_assets.stages.ingestion.json_texts import Refused, strict_object

    values: dict[str, list[Any]] = {}
    with file.open("rb") as lines:
        for line in islice((line for line in lines if line.strip()), _SAMPLE_ROWS):
            try:
                for name, value in strict_object(line.strip()).items():
                    values.setdefault(name, []).append(value)
            except Refused as error:
                raise BareCountError(ErrorCode.SOURCE_MALFORMED, f"{file.name} cannot be read as JSON Lines: "
                                     f"{error.args[1]}", hint="one JSON object a line") from error
    return [Field(name, column_name(name), _kind_of_json(found), {*map(type, found)} <= {list, type(None)})
            for name, found in values.items()]


def _kind_of_json(values: list[Any]) -> str:
    import pyarrow as pa

    from barecount_assets.stages.ingestion.json_texts import Number
    from barecount_assets.stages.ingestion.relanding import infer_type

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds in ({str}, {Number}):
        kind = infer_type(iter([pa.array([None if value is None else str(value) for value in values], pa.string())]))
        if kinds == {Number}:
            return "double precision" if kind == "text" else kind
        return kind if kind in ("date", "timestamp", "timestamptz") else "text"
    return "json" if kinds else "text"


def _parquet_fields(file: Path, delimiter: str) -> list[Field]:
    import pyarrow as pa
    from pyarrow import parquet

    from resources.governance.drift import physical_type_of

    try:
        schema = parquet.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise BareCountError(ErrorCode.SOURCE_MALFORMED, f"{file.name} cannot be read as Parquet: {error}",
                             hint="name a complete file, or write the declarations by hand") from error
    return [Field(field.name, column_name(field.name), physical_type_of(str(field.type)) or "text") for field in schema]


def _kind(values: Any) -> str:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_integer(kind):
        return "bigint"
    if pa.types.is_floating(kind):
        digits = pc.max(
            pc.utf8_length(pc.replace_substring_regex(pc.cast(values, pa.string()), r"^[^.]*\.?", ""))
        ).as_py()
        return f"numeric(18,{max(2, min(digits or 0, 9))})"
    if pa.types.is_date(kind):
        return "date"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    return "boolean" if pa.types.is_boolean(kind) else "text"


def _field(fields: list[Field], wanted: str) -> Field:
    for field in fields:
        if wanted in (field.source_name, field.name):
            return field
    raise BareCountError(
        ErrorCode.DECLARATION_UNKNOWN,
        f"the source has no column {wanted!r}, allowed: {', '.join(field.source_name for field in fields)}",
        hint="column names are those of the file's header",
    )


def _require_new(project: Path, request: Request) -> None:
    """A time zone is said of a tenant that is declared here, and be one that there is."""
    if request.time_zone is None:
        return
    declared = Path("contracts") / "tenants" / f"{request.tenant}.yaml"
    if (project / declared).exists():
        raise BareCountError(ErrorCode.USAGE, f"{declared} exists already, and says in which time zone the tenant is",
                             hint="leave --timezone out, or change spec.timezone there")
    try:
        rules_of(request.time_zone)
    except ValueError as error:
        raise BareCountError(ErrorCode.USAGE, f"--timezone: {error}",
                             hint="give a name such as Europe/London or America/New_York") from error


def _require_types(draft: _Draft) -> None:
    if draft.date.kind not in {"date", "timestamp", "timestamptz"}:
        raise BareCountError(ErrorCode.SOURCE_MALFORMED,
                             f"column {draft.date.source_name} is {draft.date.kind}, a date or timestamp is needed",
                             hint="ISO 8601 dates are recognised; other formats are declared by hand")
    if not (draft.measure.kind.startswith("numeric") or draft.measure.kind in ("bigint", "double precision")):
        raise BareCountError(ErrorCode.SOURCE_MALFORMED,
                             f"column {draft.measure.source_name} is {draft.measure.kind}, a number is needed",
                             hint="choose another --measure")


@dataclass(frozen=True)
class _Draft:
    request: Request
    fields: list[Field]
    key: Field
    date: Field
    measure: Field
    dimension: Field | None
    sources: list[Path]

    @property
    def source(self) -> str:
        return f"{self.request.entity}s"

    @property
    def gdp(self) -> str:
        return f"{self.request.pipeline}_{self.request.entity}"

    @property
    def kpi(self) -> str:
        return f"{self.request.pipeline}_{self.measure.name}"

    @property
    def dataset(self) -> str:
        return f"{self.request.pipeline}.{self.source}"

    @property
    def gdp_fields(self) -> list[tuple[str, str, str]]:
        """(name, type, description) of the GDP's business columns: the source's, and the day of the date."""
        other = {
            "json": ("text", "as JSON; json_field takes parts out."),
            # Doubles have no one text on every engine; decimals have, and add up to the same sum in any order.
            "double precision": (_DECIMAL, "rounded to six decimals."),
        }
        own = []
        for f in self.fields:
            kind, said = other.get(f.kind, (f.kind, "as the source has it."))
            own.append((f.name, kind, f"{f.source_name} {said}"))
        where = ", where the tenant is" if self.date.kind == "timestamptz" else ""
        return [*own, ("business_date", "date", f"Day of {self.date.name}{where}.")]

    @property
    def grains(self) -> list[dict[str, Any]]:
        dimensions = [self.dimension.name] if self.dimension else []
        day = {
            "name": f"day_{self.dimension.name}" if self.dimension else "day",
            "period": "day",
            "dimensions": dimensions,
        }
        return [day, {"name": "month", "period": "month", "dimensions": []}]

    @property
    def kpi_fields(self) -> list[tuple[str, str, str]]:
        dimension = [(self.dimension.name, "text", "Dimension; null at the grain month.")] if self.dimension else []
        return [
            ("tenant_id", "text", "Tenant that owns the value."),
            ("grain", "text", "Series the value belongs to."),
            ("period", "text", "Day (2026-03-05) or month (2026-03) the value is for."),
            ("period_start", "date", "First day of the period."),
            ("fiscal_year", "integer", "Fiscal year in which the period begins."),
            ("fiscal_period", "integer", "Fiscal period in which the period begins."),
            *dimension,
            ("value", "numeric", f"Sum of {self.measure.name}."),
            ("numerator", "numeric", "The value."),
            ("denominator", "numeric", "Always 1."),
            ("source_rows", "bigint", "GDP rows behind the value."),
            ("kpi_version", "text", "Version of the KPI's specification."),
        ]

    def files(self) -> Iterator[tuple[Path, str]]:
        name, contracts = self.request.pipeline, Path("contracts")
        datasets = contracts / "datasets" / name
        yield contracts / "tenants" / f"{self.request.tenant}.yaml", _yaml(self._tenant())
        yield datasets / self.source / "extraction.yaml", _yaml(self._source_contract("extraction"))
        yield datasets / self.source / "raw.yaml", _yaml(self._source_contract("raw"))
        yield datasets / self.gdp / "gold.yaml", _yaml(self._contract(
            self.gdp, "gold", self.gdp_fields, {self.key.name}, f"gdp.{self.gdp}"))
        yield datasets / self.kpi / "activation.yaml", _yaml(self._contract(
            self.kpi, "activation", self.kpi_fields, {"tenant_id", "grain", "period"}, f"published.{self.kpi}"))
        yield contracts / "kpis" / name / f"{self.kpi}.yaml", _yaml(self._kpi())
        yield contracts / "pipelines" / f"{name}.yaml", _yaml(self._manifest())
        models = Path("dbt_project") / "models"
        yield models / "gdp" / name / f"{self.gdp}.sql", self._gdp_sql()
        yield models / "gdp" / name / f"{name}.yml", _yaml(self._gdp_yaml())
        yield models / "kpi" / name / f"{self.kpi}.sql", self._kpi_sql()
        yield models / "kpi" / name / f"{name}.yml", _yaml(self._kpi_yaml())

    def _owners(self) -> list[dict[str, str]]:
        return [{"name": self.request.owner.partition("@")[0], "email": self.request.owner, "role": "owner"}]

    def _tenant(self) -> dict[str, Any]:
        return {
            "apiVersion": "barecount/v1", "kind": "Tenant",
            "metadata": {"id": self.request.tenant, "name": self.request.tenant, "description": "To be described."},
            "spec": {
                "status": "active", "region": "eu-west-2", "currency": "GBP",
                "timezone": self.request.time_zone or "Europe/London",
                "calendar": {"country": "GB", "weekend": ["saturday", "sunday"],
                             "range": {"from": dt.date(2009, 1, 1), "to": dt.date(2030, 12, 31)},
                             "fiscal": {"pattern": "standard", "start_month": 1}},
                "contacts": self._contacts(),
            },
        }

    def _contacts(self) -> list[dict[str, str]]:
        return [{"role": "owner", **{k: v for k, v in self._owners()[0].items() if k != "role"}}]

    def _source_contract(self, layer: str) -> dict[str, Any]:
        properties = []
        for field in self.fields:
            declared: dict[str, Any] = {"name": field.name, "physicalName": field.source_name,
                                        "logicalType": field.logical_type, "physicalType": field.kind}
            if field in (self.key, self.date, self.measure):
                declared["required"] = True
            properties.append({**declared, "classification": "internal", "description": f"{field.source_name}."})
        return self._document(self.source, layer, properties, f"raw.{self.dataset.replace('.', '__')}")

    def _contract(
        self, name: str, layer: str, columns: list[tuple[str, str, str]], required: set[str], physical: str
    ) -> dict[str, Any]:
        properties = []
        for column, kind, text in columns:
            logical = Field("", "", kind).logical_type if kind != "integer" else "integer"
            declared = {"name": column, "logicalType": "number" if kind == "numeric" else logical, "physicalType": kind}
            if column in required:
                declared["required"] = True
            properties.append({**declared, "classification": "internal", "description": text})
        return self._document(name, layer, properties, physical)

    def _document(self, name: str, layer: str, properties: list[dict[str, Any]], physical: str) -> dict[str, Any]:
        dataset = f"{self.request.pipeline}.{name}"
        member = self._owners()[0]
        return {
            "apiVersion": "v3.1.0", "kind": "DataContract", "id": f"{dataset}.{layer}",
            "name": name.replace("_", " ").capitalize(), "version": "1.0.0", "status": "active",
            "domain": self.request.pipeline,
            "description": {"purpose": f"{name.replace('_', ' ').capitalize()} of {self.request.pipeline}."},
            "schema": [{"name": name, "physicalName": physical, "physicalType": "table", "logicalType": "object",
                        "properties": properties}],
            "team": {"name": self.request.pipeline, "members": [
                {"username": member["email"], "name": member["name"], "role": "owner"}]},
            "slaProperties": [{"property": "retention", "value": 2555, "unit": "d"}],
            "customProperties": [{"property": "dataset", "value": dataset}, {"property": "layer", "value": layer}],
        }

    def _kpi(self) -> dict[str, Any]:
        return {
            "apiVersion": "barecount/v1", "kind": "Kpi",
            "metadata": {
                "name": self.kpi, "pipeline": self.request.pipeline,
                "title": self.measure.name.replace("_", " ").capitalize(),
                "description": f"Sum of {self.measure.source_name} over every {self.request.entity}.",
                "version": "1.0.0", "owners": self._owners(),
            },
            "spec": {
                "unit": "currency", "formula": f"sum of {self.measure.name}", "grains": self.grains,
                "depends_on": [{"gdp": self.gdp, "date_column": "business_date", "effect": "period"}],
                "calendar": True, "thresholds": {"max_null_ratio": 0, "min_rows": 1},
            },
        }

    def _manifest(self) -> dict[str, Any]:
        source: dict[str, Any] = {"name": self.source, "dataset": self.dataset, "connector": "files"}
        start, named = dt.date(2020, 1, 1), self._dated_names()
        if named:
            source["file_name"], start = named
        if "{date" not in source.get("file_name", "") and any(
                name_dates.look_for_date(path.name) for path in self.sources):
            source["order"] = "landing"
        source["path"] = str(self.request.path.resolve())
        kind = _format_of(self.sources[0])
        source["format"] = {"type": kind, **({"delimiter": self.request.delimiter} if kind == "csv" else {})}
        return {
            "apiVersion": "barecount/v1", "kind": "Pipeline",
            "metadata": {
                "name": self.request.pipeline, "title": self.request.pipeline.replace("_", " ").capitalize(),
                "description": f"{self.source.capitalize()} to {self.measure.name} per day and month.",
                "version": "1.0.0", "owners": self._owners(), "tags": {"domain": self.request.pipeline},
            },
            "spec": {
                "tenants": [self.request.tenant], "partitions": {"start": start, "end": None}, "sources": [source],
                "transforms": {"engine": "postgres", "calendar": True, "gdp": [self.gdp]}, "kpis": [self.kpi],
                "publication": {"consumers": ["to be named"], "description": "To be described."},
                "runner": {"class": "serverless", "size": "medium", "network_profile": "private_vpc"},
                "slos": {"freshness": {"max_lag_hours": 26},
                         "completeness": {"max_refused": MAX_REFUSED, "on_breach": "hold"}},
                "retention": {"raw_class": "standard", "raw_days": 2555}, "alerts": {"route": [self.request.owner]},
            },
        }

    def _dated_names(self) -> tuple[str, dt.date] | None:
        """The glob that reads the dates in the names of the sample's files, and the first of them; None for no dates.

        Raises:
            BareCountError: usage when the names can be read in more than one way, or hold dates that no glob reads.
        """
        if not self.request.path.is_dir():
            return None
        names = [path.name for path in self.sources]
        if self.request.file_name:
            globs = [self.request.file_name]
        elif all(name_dates.look_for_date(name) is None for name in names):
            return None
        else:
            globs = name_dates.common_file_names(names)
        dated = "{date" in globs[0] if globs else False
        if len(globs) == 1 and not dated:
            return globs[0], dt.date(2020, 1, 1)
        days = [[partition_date_of(name, glob) for name in names] for glob in globs]
        readings = {tuple(dates): glob for dates, glob in zip(days, globs, strict=True)}
        first = min((day for dates in readings for day in dates if day is not None), default=None)
        if len(readings) != 1 or first is None:
            found = " or ".join(readings.values()) or "no one glob"
            raise BareCountError(
                ErrorCode.USAGE, f"the names of the files ({', '.join(names[:3])}) look as if they held dates, which "
                f"can be read by {found}", hint="say how: --file-name 'sales_{date:%d-%m-%Y}*.csv'; without {date} if "
                "they are none")
        return globs[0], first

    def _gdp_sql(self) -> str:
        columns = ",\n        ".join(f.name for f in self.fields)
        day = f"cast({self.date.name} as date)"
        if self.date.kind == "timestamptz":
            day = f"{{{{ local_date('{self.date.name}') }}}}"
        return f"""\
-- One row per {self.key.name}; where it was delivered more than once, the newest delivery counts.
with records as (
    select * from {{{{ current_records('{self.dataset}', where=in_scope('{self.key.name}')) }}}} as current_record
),

chosen as (
    select
        {columns},
        {day} as business_date
    from records
)

{{{{ versioned('chosen') }}}}
"""

    def _gdp_yaml(self) -> dict[str, Any]:
        columns = []
        for name, kind, text in [*self.gdp_fields, *_GDP_COLUMNS]:
            column: dict[str, Any] = {"name": name, "data_type": kind, "description": text}
            if name == self.key.name:
                column["data_tests"] = ["not_null"]
            columns.append(column)
        return {"sources": [{
            "name": self.request.pipeline, "description": f"Raw datasets of the pipeline {self.request.pipeline}.",
            "schema": "raw", "tables": [{"name": self.source, "identifier": self.dataset.replace(".", "__"),
                                         "description": f"{self.source.capitalize()} exactly as received."}],
        }], "models": [{
            "name": self.gdp, "description": f"One {self.request.entity} of {self.request.pipeline}.",
            "config": {"unique_key": self.key.name, "meta": {
                "scope": {"key": self.key.name, "from": [{"raw": self.dataset, "column": self.key.name}]},
                "records": {self.dataset: {"identity": self.key.name, "rules": []}}}},
            "columns": columns,
            "data_tests": [{"unique_head": {"arguments": {"columns": [self.key.name]}}}],
        }]}

    def _kpi_sql(self) -> str:
        dimension = f", {self.dimension.name}" if self.dimension else ""
        text = f", cast({self.dimension.name} as {{{{ dbt.type_string() }}}}) as {self.dimension.name}" \
            if self.dimension else ""
        return f"""\
with facts as (
    select business_date{text}, sum({self.measure.name}) as amount, count(*) as source_rows
    from {{{{ gdp_head('{self.gdp}') }}}} as gdp
    where {{{{ in_any_affected_period('{self.kpi}', 'business_date') }}}}
    group by business_date{dimension}
)

{{{{ kpi_series(
    '{self.kpi}',
    facts='facts',
    date_column='business_date',
    numerator='sum(amount)',
    source_rows='sum(source_rows)'
) }}}}
"""

    def _kpi_yaml(self) -> dict[str, Any]:
        return {"models": [{
            "name": self.kpi, "description": f"Sum of {self.measure.name} per day and month.",
            "config": {"meta": {"grains": self.grains}},
            "columns": [{"name": n, "data_type": k, "description": t} for n, k, t in self.kpi_fields],
            "data_tests": [{"unique_series_row": {"arguments": {
                "dimensions": [self.dimension.name] if self.dimension else []}}}],
        }]}


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
