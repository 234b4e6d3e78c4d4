"""Everything declared, read and held against itself.

`check` reads every file under `contracts/` and the dbt models' YAML, and reports every error at once: within
a file, and across files. `load` gives the declarations when there is none. Both work offline: no database,
no network, no dbt.

A file that is broken in itself is still known by its name, so that one mistake is not reported again by
every file that refers to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from resources.data_utilities.calendar import CalendarSettings, check_country
from resources.data_utilities.fiscal import FiscalSettings
from resources.governance.actions import ActionRule, ActionTemplate, read_sample, rule_problems
from resources.governance.contracts import Column, Contract, physical_type, read_contract
from resources.governance.decision_points import ManifestRegistration, manifest_facts
from resources.governance.endpoints import Endpoint
from resources.governance.kpis import Kpi
from resources.governance.manifests import Pipeline
from resources.governance.modes import LAYERS, Layer
from resources.governance.obligations import Obligation
from resources.governance.policy_files import Policy, condition_problems
from resources.governance.sources import Source
from resources.host import runner_catalog
from resources.host.tenants import Tenant
from resources.runtime.declared import Document, did_you_mean, listed, read_model
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.yaml_source import FieldPath, Finding, YamlSource, read_yaml, shown

GDP_PLATFORM_COLUMNS: Mapping[str, str] = MappingProxyType({
    "tenant_id": "text",
    "row_hash": "bytea",
    "row_version": "integer",
    "valid_from_run": "bigint",
    "valid_to_run": "bigint",
})  # fmt: skip
"""Columns the platform's dbt macros add to every GDP; contracts do not list them."""

KPI_COLUMNS_BEFORE: Mapping[str, str] = MappingProxyType({
    "tenant_id": "text",
    "grain": "text",
    "period": "text",
    "period_start": "date",
    "fiscal_year": "integer",
    "fiscal_period": "integer",
})  # fmt: skip
KPI_COLUMNS_AFTER: Mapping[str, str] = MappingProxyType({
    "value": "numeric",
    "numerator": "numeric",
    "denominator": "numeric",
    "source_rows": "bigint",
    "kpi_version": "text",
})  # fmt: skip
"""Columns of every KPI table; the KPI's dimensions, all text, stand between."""
KPI_COLUMNS = frozenset({*KPI_COLUMNS_BEFORE, *KPI_COLUMNS_AFTER})


@dataclass(frozen=True)
class Declarations:
    """The declared platform, free of errors.

    Attributes:
        project_dir: folder that holds `contracts/` and `dbt_project/`.
        tenants, pipelines, kpis: by id or name, in order of name.
        contracts: by dataset and layer.
        action_templates, action_rules: by name, in order of name.
        endpoints: by tenant and name.
        policies: by name, whatever their status.
        obligations: by name, in order of name.
    """

    project_dir: Path
    tenants: Mapping[str, Tenant]
    pipelines: Mapping[str, Pipeline]
    kpis: Mapping[str, Kpi]
    contracts: Mapping[tuple[str, Layer], Contract]
    policies: Mapping[str, Policy]
    action_templates: Mapping[str, ActionTemplate] = field(default_factory=dict)
    action_rules: Mapping[str, ActionRule] = field(default_factory=dict)
    endpoints: Mapping[tuple[str, str], Endpoint] = field(default_factory=dict)
    obligations: Mapping[str, Obligation] = field(default_factory=dict)

    def tenant(self, tenant_id: str) -> Tenant:
        """Raises BareCountError declaration.unknown for an id that no file declares."""
        return _known("tenant", tenant_id, self.tenants)

    def pipeline(self, name: str) -> Pipeline:
        """Raises BareCountError declaration.unknown for a name that no manifest has."""
        return _known("pipeline", name, self.pipelines)

    def kpi(self, name: str) -> Kpi:
        """Raises BareCountError declaration.unknown for a name that no specification has."""
        return _known("KPI", name, self.kpis)

    def policy(self, name: str) -> Policy:
        """Raises BareCountError declaration.unknown for a name that no policy has."""
        return _known("policy", name, self.policies)

    def contract(self, dataset: str, layer: str) -> Contract:
        """Raises BareCountError declaration.unknown for a dataset without a contract at that layer."""
        layers = {at: contract for (known, at), contract in self.contracts.items() if known == dataset}
        if not layers:
            return _known("dataset", dataset, {known: contract for (known, _), contract in self.contracts.items()})
        return _known(f"layer of {dataset}", layer, layers)

    def action_template(self, name: str) -> ActionTemplate:
        """Raises BareCountError declaration.unknown for a name that no file declares."""
        return _known("action template", name, self.action_templates)

    def action_rule(self, name: str) -> ActionRule:
        """Raises BareCountError declaration.unknown for a name that no file declares."""
        return _known("action rule", name, self.action_rules)

    def endpoint(self, tenant_id: str, name: str) -> Endpoint:
        """Raises BareCountError declaration.unknown for a name that the tenant has not declared."""
        own = {known: endpoint for (tenant, known), endpoint in self.endpoints.items() if tenant == tenant_id}
        return _known(f"endpoint of {tenant_id}", name, own)

    def effective(self, pipeline: str, tenant_id: str) -> Pipeline:
        """The manifest with the tenant's overrides; its `hash` stays that of the file.

        Raises BareCountError declaration.unknown also for a tenant that the pipeline does not serve.
        """
        manifest, tenant = self.pipeline(pipeline), self.tenant(tenant_id)
        if tenant_id not in manifest.spec.tenants:
            raise BareCountError(
                ErrorCode.DECLARATION_UNKNOWN,
                f"pipeline {pipeline} does not serve tenant {tenant_id}; its tenants are"
                f" {listed(manifest.spec.tenants)}",
                hint=f"name one of them, or add {tenant_id} to spec.tenants of contracts/pipelines/{pipeline}.yaml",
            )
        return manifest.overridden(tenant.spec.overrides.get(pipeline))

    def contracts_of(self, pipeline: str) -> list[Contract]:
        """Every contract of what a pipeline reads and writes."""
        spec = self.pipeline(pipeline).spec
        keys = [(source.dataset, layer) for source in spec.sources for layer in ("extraction", "raw")]
        keys += [(f"{pipeline}.{model}", "gold") for model in spec.transforms.gdp]
        keys += [(f"{pipeline}.{name}", "activation") for name in spec.kpis]
        return [self.contract(dataset, layer) for dataset, layer in keys]

    def manifest_facts(self, pipeline: str, tenant_id: str) -> ManifestRegistration:
        """What the registration of a manifest for a tenant is decided from."""
        manifest = self.effective(pipeline, tenant_id)
        kpis = [(self.kpi(name), self.contract(f"{pipeline}.{name}", "activation")) for name in manifest.spec.kpis]
        return manifest_facts(manifest, tenant_id, self.contracts_of(pipeline), kpis)

    def calendar(self, tenant_id: str) -> CalendarSettings:
        """The tenant's calendar, as the calendar service takes it."""
        calendar = self.tenant(tenant_id).spec.calendar
        return CalendarSettings(
            country=calendar.country,
            subdivision=calendar.subdivision,
            weekend=calendar.weekend,
            start=calendar.range.start,
            end=calendar.range.end,
            fiscal=FiscalSettings(**calendar.fiscal.model_dump()),
        )


Model = TypeVar("Model")


def _known(what: str, name: str, declared: Mapping[str, Model]) -> Model:
    if name not in declared:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"unknown {what} {name!r}; declared are {listed(declared)}",
            hint=did_you_mean(name, declared).removeprefix("; ") or f"name one of them, or declare the {what}",
            details={"known": list(declared)},
        )
    return declared[name]


def load(project_dir: Path) -> Declarations:
    """Everything declared under `project_dir`.

    Raises BareCountError declaration.invalid listing every finding of `check` when there is any.
    """
    declarations, findings = read(project_dir)
    if findings:
        count = "1 error" if len(findings) == 1 else f"{len(findings)} errors"
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID,
            "\n".join([f"{count} in what is declared", *map(str, findings)]),
            hint="correct the files named; `barecount check` shows this list again",
            details={"findings": [vars(finding) for finding in findings]},
        )
    return declarations


def check(project_dir: Path) -> list[Finding]:
    """Every error in what is declared under `project_dir`, by file and line; empty when all is well."""
    return read(project_dir)[1]


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas for editors, by the kind of document they describe."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {model.__name__: dialect | model.model_json_schema() for model in _DOCUMENTS}


_DOCUMENTS = (
    Tenant, Pipeline, Kpi, Policy, ActionTemplate, ActionRule, Endpoint, Obligation, runner_catalog.RunnerSizes,
    runner_catalog.Environment,
)  # fmt: skip


def write_json_schemas(folder: Path) -> list[Path]:
    """Write `json_schemas` as `<folder>/<kind in lower case>.schema.json`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, schema in json_schemas().items():
        file = folder / f"{kind.lower()}.schema.json"
        file.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        files.append(file)
    return files


# --- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File(Generic[Model]):
    """A declared file: its text as read, and its model; either is None where the file is broken."""

    path: str
    source: YamlSource | None
    model: Model | None

    def finding(self, path: FieldPath, message: str, *, found: object = None, allowed: str = "") -> Finding:
        text = "" if found is None else shown(found)
        if self.source is None:
            return Finding(self.path, 1, "", text, allowed, message)
        return self.source.finding(path, message, found=text, allowed=allowed)


@dataclass
class _Everything:
    """All files by the name their place gives them, so that a broken file is known too."""

    tenants: dict[str, _File[Tenant]] = field(default_factory=dict)
    pipelines: dict[str, _File[Pipeline]] = field(default_factory=dict)
    kpis: dict[str, _File[Kpi]] = field(default_factory=dict)
    contracts: dict[tuple[str, Layer], _File[Contract]] = field(default_factory=dict)
    action_templates: dict[str, _File[ActionTemplate]] = field(default_factory=dict)
    action_rules: dict[str, _File[ActionRule]] = field(default_factory=dict)
    endpoints: dict[tuple[str, str], _File[Endpoint]] = field(default_factory=dict)
    policies: dict[str, _File[Policy]] = field(default_factory=dict)
    obligations: dict[str, _File[Obligation]] = field(default_factory=dict)
    gdp_sql: Mapping[str, Path] = field(default_factory=dict)
    kpi_sql: Mapping[str, Path] = field(default_factory=dict)
    dbt_models: dict[str, _DbtModel] = field(default_factory=dict)
    dbt_enforced: set[str] = field(default_factory=set)

    def contract(self, dataset: str, layer: Layer) -> Contract | None:
        file = self.contracts.get((dataset, layer))
        return file.model if file else None


def read(project_dir: Path) -> tuple[Declarations, list[Finding]]:
    """What is declared and free of errors in itself, and every finding of `check`."""
    reading = _Reading(project_dir)
    everything = reading.everything()
    findings = [*reading.findings, *_across(everything)]
    findings = sorted(set(findings), key=lambda f: (f.file, f.line, f.field, f.message))
    declarations = Declarations(
        project_dir=project_dir,
        tenants=_models(everything.tenants),
        pipelines=_models(everything.pipelines),
        kpis=_models(everything.kpis),
        contracts=_models(everything.contracts),
        action_templates=_models(everything.action_templates),
        action_rules=_models(everything.action_rules),
        endpoints=_models(everything.endpoints),
        policies=_models(everything.policies),
        obligations=_models(everything.obligations),
    )
    if not findings:
        findings = list(_refused_manifests(everything, declarations))
    return declarations, findings


def _refused_manifests(everything: _Everything, declarations: Declarations) -> Iterator[Finding]:
    """Manifests that policies would deny when they run; what needs approval is no error of a declaration."""
    if not declarations.policies:
        return
    from resources.governance.policy_evaluation import PolicySet, evaluate

    policies = PolicySet.of(declarations.policies)
    for name, file in everything.pipelines.items():
        for index, tenant in enumerate(declarations.pipeline(name).spec.tenants):
            verdict = evaluate(policies, declarations.manifest_facts(name, tenant))
            if verdict.effect == "deny":
                reasons = [f"{match.message} (policy {match.policy}, rule {match.rule})" for match in verdict.decisive]
                reasons += [f"policy {problem.policy}: {problem.message}" for problem in verdict.problems]
                yield file.finding(("spec", "tenants", index), "denied: " + "; ".join(reasons), found=tenant)


Key = TypeVar("Key", str, tuple[str, Layer], tuple[str, str])


def _models(files: Mapping[Key, _File[Model]]) -> Mapping[Key, Model]:
    return MappingProxyType({key: file.model for key, file in sorted(files.items()) if file.model is not None})


_PLACES = (
    "tenants/<id>.yaml",
    "pipelines/<name>.yaml",
    "kpis/<pipeline>/<kpi>.yaml",
    "datasets/<namespace>/<name>/<layer>.yaml",
    "actions/templates/<name>.yaml",
    "actions/rules/<name>.yaml",
    "actions/endpoints/<tenant>/<name>.yaml",
    "policies/<name>.yaml",
    "obligations/<name>.yaml",
)


class _Reading:
    """Reads the files, each by itself."""

    def __init__(self, project_dir: Path) -> None:
        self.findings: list[Finding] = []
        self._project = project_dir
        self._contracts = project_dir / "contracts"

    def everything(self) -> _Everything:
        result = _Everything()
        if not self._contracts.is_dir():
            message = "no such folder: nothing is declared"
            self.findings.append(Finding("contracts", 1, "", "", "a folder with " + ", ".join(_PLACES), message))
        for place in _PLACES:
            kind = place.partition("/<")[0]
            for file in _yaml_files(self._contracts / kind):
                parts = file.relative_to(self._contracts).parts
                if len(parts) != place.count("/") + 1 or file.suffix != ".yaml":
                    message = "not read: the file is not where it belongs"
                    self.findings.append(Finding(self._name(file), 1, "", "", f"contracts/{place}", message))
                    continue
                self._declared(result, kind, file, parts)
        self._dbt(result)
        self.findings += runner_catalog.findings(self._project)
        return result

    def _declared(self, result: _Everything, kind: str, file: Path, parts: tuple[str, ...]) -> None:
        name = file.stem
        match kind:
            case "tenants":
                result.tenants[name] = self._document(file, Tenant, ("metadata", "id"))
            case "pipelines":
                result.pipelines[name] = self._document(file, Pipeline, ("metadata", "name"))
            case "kpis":
                kpi = self._document(file, Kpi, ("metadata", "name"))
                first = result.kpis.setdefault(name, kpi)
                if first is not kpi:
                    self.findings.append(kpi.finding(("metadata", "name"), f"the name of {first.path}", found=name))
                if kpi.model and kpi.model.metadata.pipeline != parts[1]:
                    message = "the file lies in the folder of another pipeline"
                    found = kpi.model.metadata.pipeline
                    self.findings.append(kpi.finding(("metadata", "pipeline"), message, found=found, allowed=parts[1]))
            case "actions/endpoints":
                endpoint = self._document(file, Endpoint, ("metadata", "name"))
                result.endpoints[parts[2], name] = endpoint
                if endpoint.model and endpoint.model.tenant_id != parts[2]:
                    message = "the file lies in the folder of another tenant"
                    found = endpoint.model.tenant_id
                    self.findings.append(
                        endpoint.finding(("metadata", "tenant"), message, found=found, allowed=parts[2]))
            case "policies":
                result.policies[name] = self._document(file, Policy, ("metadata", "name"))
            case "obligations":
                result.obligations[name] = self._document(file, Obligation, ("metadata", "name"))
            case "datasets":
                self._contract(result, file, f"{parts[1]}.{parts[2]}")
            case "actions/templates":
                result.action_templates[name] = self._document(file, ActionTemplate, ("metadata", "name"))
                self._samples(file)
            case "actions/rules":
                result.action_rules[name] = self._document(file, ActionRule, ("metadata", "name"))

    def _samples(self, template: Path) -> None:
        """Sample events that lie beside a template."""
        for file in sorted(template.with_suffix(".events").glob("*.json")):
            try:
                read_sample(file)
            except ValueError as error:
                self.findings.append(Finding(self._name(file), 1, "", "", "a CloudEvents envelope", str(error)))

    def _document(self, file: Path, kind: type[Document], name: tuple[str, str]) -> _File[Document]:
        """One document; its name must be that of the file."""
        source, findings = read_yaml(file, self._name(file))
        self.findings += findings
        if source is None:
            return _File(self._name(file), None, None)
        model, findings = read_model(kind, source)
        self.findings += findings
        declared = _at(source.document, name)
        if isinstance(declared, str) and declared != file.stem:
            message = "not the name of the file"
            self.findings.append(source.finding(name, message, found=shown(declared), allowed=file.stem))
        return _File(self._name(file), source, model)

    def _contract(self, result: _Everything, file: Path, dataset: str) -> None:
        name = self._name(file)
        layer = next((layer for layer in LAYERS if layer == file.stem), None)
        if layer is None:
            message = "no such layer" + did_you_mean(file.stem, LAYERS)
            self.findings.append(Finding(name, 1, "", shown(file.stem), listed(LAYERS), message))
            return
        if not _DATASET.match(dataset):
            message = "the folders are not the name of a dataset"
            self.findings.append(Finding(name, 1, "", shown(dataset), f"text matching {_DATASET.pattern}", message))
        source, findings = read_yaml(file, name)
        self.findings += findings
        contract = None
        if source is not None:
            contract, findings = read_contract(source, dataset, layer)
            self.findings += findings
        result.contracts[dataset, layer] = _File(name, source, contract)

    def _dbt(self, result: _Everything) -> None:
        """The models dbt would build, and what their YAML says of them."""
        models = self._project / "dbt_project" / "models"
        result.gdp_sql = {file.stem: file for file in sorted((models / "gdp").rglob("*.sql"))}
        result.kpi_sql = {file.stem: file for file in sorted((models / "kpi").rglob("*.sql"))}
        config = self._dbt_config()
        for name, file in (*result.gdp_sql.items(), *result.kpi_sql.items()):
            if _enforced(config, file.relative_to(models).with_suffix("").parts):
                result.dbt_enforced.add(name)
        for file in _yaml_files(models):
            source, findings = read_yaml(file, self._name(file))
            self.findings += findings
            if source is None or not isinstance(source.document, dict):
                continue
            entries = source.document.get("models") or []
            if not isinstance(entries, list):
                self.findings.append(source.finding(("models",), "not a list", found=shown(entries)))
                continue
            for index, entry in enumerate(entries):
                model = _DbtModel(source, ("models", index), entry)
                if not isinstance(model.name, str):
                    self.findings.append(source.finding(("models", index), "a model without a name"))
                elif (first := result.dbt_models.setdefault(model.name, model)) is not model:
                    message = f"the model is described in {first.source.file} already"
                    self.findings.append(source.finding(("models", index, "name"), message, found=shown(model.name)))

    def _dbt_config(self) -> Any:
        """What dbt_project.yml configures for the project's models, by folder."""
        file = self._project / "dbt_project" / "dbt_project.yml"
        if not file.is_file():
            return None
        source, findings = read_yaml(file, self._name(file))
        self.findings += findings
        document = source.document if source else None
        name = _at(document, ("name",))
        return _at(document, ("models", name)) if isinstance(name, str) else None

    def _name(self, file: Path) -> str:
        return file.relative_to(self._project).as_posix()


_DATASET = re.compile(r"[a-z][a-z0-9_]{1,39}\.[a-z][a-z0-9_]{1,39}\Z")


def _yaml_files(folder: Path) -> list[Path]:
    """YAML files below a folder, hidden ones left out, in order of path."""
    found = (path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml") and not path.is_dir())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _at(document: Any, path: FieldPath) -> Any:
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    return document


def _enforced(config: Any, steps: tuple[str, ...]) -> bool:
    """Whether dbt_project.yml enforces the contract of the model at `steps`: the deepest folder that says so."""
    enforced = False
    for step in (None, *steps):
        config = config if step is None else _at(config, (step,))
        for key in ("contract", "+contract"):
            declared = _at(config, (key, "enforced"))
            enforced = declared if isinstance(declared, bool) else enforced
    return enforced


# --- dbt's YAML -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DbtModel:
    """One entry of `models:` in a dbt YAML file."""

    source: YamlSource
    path: FieldPath
    entry: Any

    @property
    def name(self) -> Any:
        return _at(self.entry, ("name",))

    def columns(self, *, without: Iterable[str] = ()) -> list[_Listed]:
        """Its columns in order, less those of the platform."""
        columns = _at(self.entry, ("columns",))
        return [
            _Listed((*self.path, "columns", index), str(name), _dbt_type(column.get("data_type")), "data_type")
            for index, column in enumerate(columns if isinstance(columns, list) else [])
            if isinstance(column, dict) and (name := column.get("name")) not in without
        ]

    def findings(self, contract: Contract, platform: Mapping[str, str], *, enforced: bool) -> Iterator[Finding]:
        """Where it disagrees with the registered contract.

        `platform`: columns it has besides, by type; `enforced`: whether dbt_project.yml enforces its contract.
        """
        path: FieldPath = (*self.path, "config", "contract", "enforced")
        own = _at(self.entry, path[len(self.path) :])
        if (enforced if own is None else own) is not True:
            found = "" if own is None else shown(own)
            yield self.source.finding(path, "dbt does not enforce the model's contract", found=found, allowed="true")
        expected = [(column.name, column.physical_type) for column in contract.columns]
        yield from _differences(
            self.source, (*self.path, "columns"), self.columns(without=platform), expected,
            f"the {contract.layer} contract of {contract.dataset}",
        )  # fmt: skip
        present = {column.name: column for column in self.columns() if column.name in platform}
        for name, kind in platform.items():
            if name not in present:
                message = f"column {name}, which the platform needs, is missing"
                yield self.source.finding((*self.path, "columns"), message, allowed=f"{name} {kind}")
            elif present[name].kind != kind:
                path = (*present[name].path, "data_type")
                message = f"column {name} has another type than the platform's"
                yield self.source.finding(path, message, found=shown(present[name].kind), allowed=kind)


    def grain_findings(self, kpi: Kpi, specification: str) -> Iterator[Finding]:
        """Where the grains the model computes are not those the KPI's specification declares."""
        path: FieldPath = (*self.path, "config", "meta", "grains")
        computed = _at(self.entry, path[len(self.path) :])
        declared = [grain.model_dump(mode="json") for grain in kpi.spec.grains]
        if computed != declared:
            message = f"the model computes other grains than {specification} declares"
            yield self.source.finding(path, message, found=shown(computed), allowed=shown(declared, 400))


_TYPE_SYNONYMS = {
    "int": "integer", "int4": "integer", "int8": "bigint", "int2": "smallint", "bool": "boolean",
    "varchar": "text", "character varying": "text", "string": "text", "float8": "double precision",
}  # fmt: skip


def _dbt_type(declared: Any) -> str:
    """A `data_type` as contracts write it; types that contracts do not have stay as they are."""
    if not isinstance(declared, str):
        return ""
    text = " ".join(declared.lower().split())
    text = text.replace("decimal", "numeric", 1) if text.startswith("decimal") else text
    try:
        return physical_type(text)
    except ValueError:
        return _TYPE_SYNONYMS.get(text, text)


# --- columns against columns ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Listed:
    """A column as some file lists it: where, its name, its type, and the key that holds the type."""

    path: FieldPath
    name: str
    kind: str
    kind_key: str


def _of_contract(contract: Contract) -> list[_Listed]:
    return [
        _Listed(("schema", 0, "properties", index), column.name, column.physical_type, "physicalType")
        for index, column in enumerate(contract.columns)
    ]


def _differences(
    source: YamlSource, place: FieldPath, columns: list[_Listed], expected: list[tuple[str, str]], against: str
) -> Iterator[Finding]:
    """Where listed columns differ from the expected names and types: missing, extra, type, order."""
    types = dict(expected)
    names = [column.name for column in columns]
    for name, kind in expected:
        if name not in names:
            message = f"column {name} of {against} is missing"
            yield source.finding(place, message, found=listed(names), allowed=f"{name} {kind}")
    for column in columns:
        if column.name not in types:
            message = f"column is not in {against}" + did_you_mean(column.name, types)
            found, allowed = shown(column.name), listed(types)
            yield source.finding((*column.path, "name"), message, found=found, allowed=allowed)
        elif column.kind != types[column.name]:
            message = f"column {column.name} has another type in {against}"
            found = shown(column.kind) if column.kind else "no type"
            yield source.finding((*column.path, column.kind_key), message, found=found, allowed=types[column.name])
    common = [column for column in columns if column.name in types]
    order = [name for name, _ in expected if name in names]
    for column, name in zip(common, order, strict=False):
        if column.name != name:
            message = f"columns are in another order in {against}"
            found = shown(column.name)
            yield source.finding((*column.path, "name"), message, found=found, allowed=f"{name} here")
            return


# --- across files -----------------------------------------------------------------------------------------


def _across(everything: _Everything) -> Iterator[Finding]:
    """What is wrong between files that may each be right by themselves."""
    for file in everything.tenants.values():
        if file.model:
            yield from _tenant_findings(file, file.model, everything)
    for name, file in everything.pipelines.items():
        if file.model:
            yield from _pipeline_findings(name, file, file.model, everything)
    for kpi in everything.kpis.values():
        if kpi.model:
            yield from _kpi_findings(kpi, kpi.model, everything)
    for policy in everything.policies.values():
        if policy.model:
            yield from _policy_findings(policy, policy.model, everything)
    for obligation in everything.obligations.values():
        if obligation.model:
            yield from _obligation_findings(obligation, obligation.model, everything)
    yield from _contract_findings(everything)
    yield from _rule_findings(everything)
    for endpoint in everything.endpoints.values():
        if endpoint.model:
            yield from _endpoint_findings(endpoint, endpoint.model, everything)


def _rule_findings(everything: _Everything) -> Iterator[Finding]:
    """What is wrong between action rules and the KPIs, tenants, templates and rules they name."""
    rules = {name: file.model for name, file in everything.action_rules.items()}
    templates = {name: file.model for name, file in everything.action_templates.items()}
    kpis = {name: file.model for name, file in everything.kpis.items()}
    served = {name: file.model.spec.tenants for name, file in everything.pipelines.items() if file.model}
    for file in everything.action_rules.values():
        if file.model:
            for path, message, found, allowed in rule_problems(file.model, kpis, served, templates, rules):
                yield file.finding(path, message, found=found, allowed=allowed)


def _endpoint_findings(file: _File[Endpoint], endpoint: Endpoint, everything: _Everything) -> Iterator[Finding]:
    if endpoint.tenant_id not in everything.tenants:
        message = "unknown tenant" + did_you_mean(endpoint.tenant_id, everything.tenants)
        allowed = listed(everything.tenants)
        yield file.finding(("metadata", "tenant"), message, found=endpoint.tenant_id, allowed=allowed)
        return
    tenant = everything.tenants[endpoint.tenant_id].model
    plaintext = tenant is not None and any(opening.plaintext for opening in tenant.spec.egress)
    url = getattr(endpoint.spec.target, "url", "")
    security = getattr(endpoint.spec.target, "security", "")
    if not plaintext and (url.startswith("http:") or security == "none"):
        key, found = ("url", url) if url else ("security", security)
        allowed = f"TLS, or an opening with plaintext: true in spec.egress of tenant {endpoint.tenant_id}"
        yield file.finding(("spec", "target", key), "would be sent without TLS", found=found, allowed=allowed)


def _obligation_findings(
    file: _File[Obligation], obligation: Obligation, everything: _Everything
) -> Iterator[Finding]:
    scope = obligation.spec.scope
    for key, names, known in (("pipelines", scope.pipelines, everything.pipelines),
                              ("tenants", scope.tenants, everything.tenants)):
        for index, name in enumerate(names):
            if name not in known:
                message = f"unknown {key[:-1]}" + did_you_mean(name, known)
                yield file.finding(("spec", "scope", key, index), message, found=name, allowed=listed(known))


def _tenant_findings(file: _File[Tenant], tenant: Tenant, everything: _Everything) -> Iterator[Finding]:
    calendar = tenant.spec.calendar
    for key, subdivision in (("country", None), ("subdivision", calendar.subdivision)):
        try:
            check_country(calendar.country, subdivision)
        except BareCountError as error:
            yield file.finding(("spec", "calendar", key), error.message)
            break
    for name, override in tenant.spec.overrides.items():
        path = ("spec", "overrides", name)
        if name not in everything.pipelines:
            message = "unknown pipeline" + did_you_mean(name, everything.pipelines)
            yield file.finding(path, message, found=name, allowed=listed(everything.pipelines))
            continue
        pipeline = everything.pipelines[name].model
        if pipeline is None:
            continue
        if tenant.id not in pipeline.spec.tenants:
            message = "the pipeline does not serve this tenant"
            yield file.finding(path, message, found=name, allowed=f"pipelines with {tenant.id} in spec.tenants")
        if override.schedule is not None and pipeline.spec.schedule is None:
            yield file.finding((*path, "schedule"), f"pipeline {name} has no schedule that could be overridden")


def _pipeline_findings(
    name: str, file: _File[Pipeline], pipeline: Pipeline, everything: _Everything
) -> Iterator[Finding]:
    spec = pipeline.spec
    for index, tenant in enumerate(spec.tenants):
        if tenant not in everything.tenants:
            message = "unknown tenant" + did_you_mean(tenant, everything.tenants)
            yield file.finding(
                ("spec", "tenants", index), message, found=tenant, allowed=listed(everything.tenants)
            )
    others = [other for other in everything.pipelines.values() if other.model and other.path < file.path]
    for index, source in enumerate(spec.sources):
        path: FieldPath = ("spec", "sources", index, "dataset")
        yield from _missing_contracts(file, path, source.dataset, ("extraction", "raw"), everything)
        if contract := everything.contract(source.dataset, "raw"):
            yield from _deletion_findings(file, ("spec", "sources", index), source, contract)
        for other in others:
            if other.model and source.dataset in [s.dataset for s in other.model.spec.sources]:
                yield file.finding(path, f"the dataset is ingested by {other.path}", found=source.dataset)
    for index, gdp in enumerate(spec.transforms.gdp):
        path = ("spec", "transforms", "gdp", index)
        for other in others:
            if other.model and gdp in other.model.spec.transforms.gdp:
                yield file.finding(path, f"the model belongs to {other.path}", found=gdp)
        if gdp == "calendar":
            yield file.finding(path, "gdp.calendar is the platform's own table", found=gdp, allowed="another name")
        yield from _built(file, path, gdp, "gdp", everything.gdp_sql)
        yield from _missing_contracts(file, path, f"{name}.{gdp}", ("gold",), everything)
        contract = everything.contract(f"{name}.{gdp}", "gold")
        if gdp in everything.gdp_sql and contract:
            yield from _dbt_findings(file, path, gdp, contract, GDP_PLATFORM_COLUMNS, everything)
    for index, kpi in enumerate(spec.kpis):
        path = ("spec", "kpis", index)
        if kpi not in everything.kpis:
            message = "no such KPI is specified" + did_you_mean(kpi, everything.kpis)
            yield file.finding(path, message, found=kpi, allowed=f"contracts/kpis/{name}/{kpi}.yaml")
            continue
        yield from _built(file, path, kpi, "kpi", everything.kpi_sql)
        yield from _missing_contracts(file, path, f"{name}.{kpi}", ("activation",), everything)
        contract = everything.contract(f"{name}.{kpi}", "activation")
        if kpi in everything.kpi_sql and contract:
            yield from _dbt_findings(file, path, kpi, contract, {}, everything)


_MARKERS = {"text": str, "boolean": bool, "bigint": int, "integer": int, "smallint": int}
"""Types of columns that may mark a deletion, and of the values that do."""

_INSTANTS = ("date", "timestamp", "timestamptz")
"""Types of columns any value of which may mark a deletion."""

_SEQUENCES = (*_INSTANTS, "bigint", "integer", "smallint", "numeric", "double precision")
"""Types whose order is that of their values; of text it would be that of the alphabet: 10 before 9."""


def _deletion_findings(
    file: _File[Pipeline], path: FieldPath, source: Source, contract: Contract
) -> Iterator[Finding]:
    """Columns that say what is gone must be there, with a type that the values are of."""
    if source.deleted is not None:
        at = (*path, "deleted")
        kinds = tuple(_MARKERS) if source.deleted.values else _INSTANTS
        yield from _column_findings(file, (*at, "column"), source.deleted.column, contract, kinds)
        column = contract.column(source.deleted.column)
        wanted = column and _MARKERS.get(column.physical_type)
        for index, value in enumerate(source.deleted.values):
            if column and wanted and type(value) is not wanted:
                message = f"column {column.name} is {column.physical_type}"
                allowed = {str: "text, in quotes", bool: "true or false", int: "a whole number"}[wanted]
                yield file.finding((*at, "values", index), message, found=value, allowed=allowed)
    if source.operations is not None:
        at = (*path, "operations")
        yield from _column_findings(file, (*at, "column"), source.operations.column, contract, ("text",))
        if source.operations.sequence is not None:
            yield from _column_findings(file, (*at, "sequence"), source.operations.sequence, contract, _SEQUENCES)


def _built(
    file: _File[Pipeline], path: FieldPath, model: str, kind: str, built: Collection[str]
) -> Iterator[Finding]:
    if model not in built:
        message = "no dbt model builds it" + did_you_mean(model, built)
        yield file.finding(path, message, found=model, allowed=f"dbt_project/models/{kind}/**/{model}.sql")


def _missing_contracts(
    file: _File[Any], path: FieldPath, dataset: str, layers: Iterable[Layer], everything: _Everything
) -> Iterator[Finding]:
    for layer in layers:
        if (dataset, layer) not in everything.contracts:
            known = {known for known, at in everything.contracts if at == layer}
            message = f"no {layer} contract is registered" + did_you_mean(dataset, known)
            allowed = f"contracts/datasets/{dataset.replace('.', '/')}/{layer}.yaml"
            yield file.finding(path, message, found=dataset, allowed=allowed)


def _dbt_findings(
    file: _File[Pipeline], path: FieldPath, name: str, contract: Contract, platform: Mapping[str, str],
    everything: _Everything,
) -> Iterator[Finding]:  # fmt: skip
    model = everything.dbt_models.get(name)
    if model is None:
        allowed = "an entry of models: in a .yml file under dbt_project/models"
        yield file.finding(path, "the dbt model has no YAML contract", found=name, allowed=allowed)
    else:
        yield from model.findings(contract, platform, enforced=name in everything.dbt_enforced)


def _kpi_findings(file: _File[Kpi], kpi: Kpi, everything: _Everything) -> Iterator[Finding]:
    name = kpi.metadata.pipeline
    if name not in everything.pipelines:
        message = "unknown pipeline" + did_you_mean(name, everything.pipelines)
        yield file.finding(("metadata", "pipeline"), message, found=name, allowed=listed(everything.pipelines))
        return
    pipeline = everything.pipelines[name].model
    if pipeline is None:
        return
    manifest = f"contracts/pipelines/{name}.yaml"
    if kpi.name not in pipeline.spec.kpis:
        message = f"the KPI is not in spec.kpis of {manifest}"
        yield file.finding(("metadata", "name"), message, found=kpi.name, allowed=listed(pipeline.spec.kpis))
    if kpi.name in everything.gdp_sql:
        yield file.finding(("metadata", "name"), "a GDP's dbt model has the name", found=kpi.name)
    if kpi.spec.calendar and not pipeline.spec.transforms.calendar:
        message = f"the KPI needs the calendar, which {manifest} does not build"
        yield file.finding(("spec", "calendar"), message, found=True, allowed="spec.transforms.calendar: true there")
    gold = {
        dependency.gdp: everything.contract(f"{name}.{dependency.gdp}", "gold") for dependency in kpi.spec.depends_on
    }
    for index, dependency in enumerate(kpi.spec.depends_on):
        path: FieldPath = ("spec", "depends_on", index)
        if dependency.gdp not in pipeline.spec.transforms.gdp:
            message = f"no GDP of {manifest}" + did_you_mean(dependency.gdp, pipeline.spec.transforms.gdp)
            allowed = listed(pipeline.spec.transforms.gdp)
            yield file.finding((*path, "gdp"), message, found=dependency.gdp, allowed=allowed)
            continue
        if dependency.gdp not in everything.gdp_sql:
            message = "no dbt model builds it" + did_you_mean(dependency.gdp, everything.gdp_sql)
            allowed = f"dbt_project/models/gdp/**/{dependency.gdp}.sql"
            yield file.finding((*path, "gdp"), message, found=dependency.gdp, allowed=allowed)
        if contract := gold[dependency.gdp]:
            dates = ("date", "timestamp")
            yield from _column_findings(file, (*path, "date_column"), dependency.date_column, contract, dates)
    contracts = [contract for contract in gold.values() if contract]
    if len(contracts) == len(gold):
        columns = [column.name for contract in contracts for column in contract.columns]
        for i, grain in enumerate(kpi.spec.grains):
            for j, dimension in enumerate(grain.dimensions):
                if dimension not in columns:
                    message = "no column of a GDP the KPI depends on" + did_you_mean(dimension, columns)
                    path = ("spec", "grains", i, "dimensions", j)
                    yield file.finding(path, message, found=dimension, allowed=listed(dict.fromkeys(columns)))
    yield from _reconciliation_findings(file, kpi, pipeline, everything)
    if model := everything.dbt_models.get(kpi.name):
        yield from model.grain_findings(kpi, file.path)
    activation = everything.contracts.get((f"{name}.{kpi.name}", "activation"))
    if activation and activation.model and activation.source:
        dimensions = dict.fromkeys(kpi.dimensions, "text")
        expected = [*KPI_COLUMNS_BEFORE.items(), *dimensions.items(), *KPI_COLUMNS_AFTER.items()]
        columns_of = _of_contract(activation.model)
        place = ("schema", 0, "properties")
        yield from _differences(activation.source, place, columns_of, expected, f"the KPI table by {file.path}")


def _reconciliation_findings(
    file: _File[Kpi], kpi: Kpi, pipeline: Pipeline, everything: _Everything
) -> Iterator[Finding]:
    declared = kpi.spec.reconciliation
    if declared is None:
        return
    path: FieldPath = ("spec", "reconciliation")
    datasets = [source.dataset for source in pipeline.spec.sources]
    if declared.system_of_record not in datasets:
        message = f"no source of pipeline {pipeline.name}" + did_you_mean(declared.system_of_record, datasets)
        found = declared.system_of_record
        yield file.finding((*path, "system_of_record"), message, found=found, allowed=listed(datasets))
        return
    contract = everything.contract(declared.system_of_record, "raw")
    if contract:
        keys = ("text", "date")
        yield from _column_findings(file, (*path, "key", "source"), declared.key.source, contract, keys)
        numbers = ("numeric", "bigint", "integer", "smallint", "double precision")
        yield from _column_findings(file, (*path, "value"), declared.value, contract, numbers)


def _column_findings(
    file: _File[Any], path: FieldPath, name: str, contract: Contract, kinds: tuple[str, ...]
) -> Iterator[Finding]:
    """Nothing when the contract has the column with one of the types."""
    names = [column.name for column in contract.columns]
    column: Column | None = contract.column(name)
    if column is None:
        message = f"no column of the {contract.layer} contract of {contract.dataset}" + did_you_mean(name, names)
        yield file.finding(path, message, found=name, allowed=listed(names))
    elif column.physical_type.partition("(")[0] not in kinds:
        message = f"column {name} of {contract.dataset} has the wrong type"
        if column.is_instant and "date" in kinds:
            message += f": an instant has a day only in a zone, so give the GDP a date, {{{{ local_date('{name}') }}}}"
        yield file.finding(path, message, found=column.physical_type, allowed=listed(kinds))


def _policy_findings(file: _File[Policy], policy: Policy, everything: _Everything) -> Iterator[Finding]:
    for path, problem in condition_problems(policy):
        found = problem.found or None
        yield file.finding(path, problem.message, found=found, allowed=problem.allowed)
    if policy.spec.mandatory and not policy.active:
        message = "a mandatory policy must be active: everything in its scope would be denied"
        allowed = "active; or mandatory: false in a new version"
        yield file.finding(("spec", "status"), message, found=policy.spec.status, allowed=allowed)
    datasets = {dataset for dataset, _ in everything.contracts}
    known = {
        "tenants": set(everything.tenants), "workflows": set(everything.pipelines),
        "schemas": datasets | {dataset.partition(".")[0] for dataset in datasets},
    }
    for part, names in known.items():
        for index, name in enumerate(getattr(policy.spec.scope, part)):
            if name not in names:
                message = f"unknown {part.removesuffix('s')}" + did_you_mean(name, names)
                yield file.finding(("spec", "scope", part, index), message, found=name, allowed=listed(sorted(names)))


def _contract_findings(everything: _Everything) -> Iterator[Finding]:
    ids: dict[str, str] = {}
    for (dataset, layer), file in everything.contracts.items():
        if file.model is None or file.source is None:
            continue
        own = file.source.document["id"]
        first = ids.setdefault(own, file.path)
        if first != file.path:
            yield file.finding(("id",), f"the id of {first}", found=own, allowed="one of its own")
        extraction = everything.contract(dataset, "extraction")
        if layer != "raw" or extraction is None:
            continue
        against = f"the extraction contract of {dataset}"
        expected = [(column.name, column.physical_type) for column in extraction.columns]
        place = ("schema", 0, "properties")
        yield from _differences(file.source, place, _of_contract(file.model), expected, against)
        for index, column in enumerate(file.model.columns):
            extracted = extraction.column(column.name)
            if extracted and extracted.source_name != column.source_name:
                message = f"the field has another name in {against}"
                path = (*place, index, "physicalName")
                yield file.finding(path, message, found=column.source_name, allowed=extracted.source_name)
