"""Column lineage: for every column of an asset, the columns, constants and run variables its value comes from.

Read from compiled SQL by sqlglot with the schema of the contracts. A column that cannot be resolved is a finding; an
empty list never stands for "unknown".

Words are those of OpenLineage's column lineage facet. A dependency is DIRECT (the value is computed from it: IDENTITY,
TRANSFORMATION, AGGREGATION) or INDIRECT (it decides about the value: CONDITIONAL, WINDOW; or about the row: JOIN,
FILTER, GROUP_BY, SORT). It is masked when the value cannot be had back: a count, a hash.

Every asset has a column `*`: which rows there are. Counts depend on it, and it depends on `*` of what is read and on
the columns that join, filter and group.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlglot import exp
    from sqlglot.optimizer.scope import Scope

    from resources.governance.declarations import Declarations

FORMAT = 1  # of what is written by `to_json`; part of every fingerprint
DIRECT, INDIRECT = "DIRECT", "INDIRECT"
ROWS = "*"
CONSTANT, VARIABLE = "constant", "variable"
"""Assets that stand for values of the code itself and for what a run is given."""

RAW_STAMPS: Mapping[str, str] = {
    "_tenant_id": "text", "_batch_id": "bigint", "_row_number": "bigint", "_extra": "text",
}  # fmt: skip
REGISTER = "platform.counted_batch"
_REGISTER_COLUMNS: Mapping[str, str] = {
    "batch_id": "bigint", "tenant_id": "text", "dataset": "text", "source_id": "text", "partition_date": "date",
    "is_current": "boolean", "delivery_order": "text",
}  # fmt: skip
CALENDAR = "gdp.calendar"
_RANK = ("IDENTITY", "TRANSFORMATION", "AGGREGATION")
_RUN_NUMBER = 4611686018427387001  # no constant of a model; stands for the run's number in compiled SQL
_MARK = "run variable: "


@dataclass(frozen=True, order=True)
class Dependency:
    """One thing a column comes from. `asset` is `<layer>.<name>`, `constant` or `variable`."""

    asset: str
    column: str
    kind: str = DIRECT
    subtype: str = "IDENTITY"
    masked: bool = False

    @property
    def name(self) -> str:
        return f"{self.asset}.{self.column}"


@dataclass(frozen=True, order=True)
class Unresolved:
    """A column of which it is not known where it comes from."""

    asset: str
    column: str
    message: str

    def __str__(self) -> str:
        return f"{self.asset}.{self.column}: {self.message}"


@dataclass(frozen=True)
class AssetLineage:
    """Where the columns of one asset come from, `*` among them.

    Attributes:
        made_by: the job, `<pipeline>.<stage>[.<source>]`.
    """

    asset: str
    made_by: str
    columns: Mapping[str, tuple[Dependency, ...]]

    @property
    def reads(self) -> tuple[str, ...]:
        """Assets whose rows it is made of, in order of name."""
        return tuple(sorted({d.asset for d in self.columns.get(ROWS, ()) if d.column == ROWS}))


@dataclass(frozen=True)
class ProjectLineage:
    """Lineage of everything a project declares.

    Attributes:
        fingerprint: digest of all it was made from (see `fingerprint`).
        assets: by name.
    """

    fingerprint: str
    assets: Mapping[str, AssetLineage]
    unresolved: tuple[Unresolved, ...] = field(default=())

    def of_job(self, job: str) -> list[AssetLineage]:
        """What a job makes, in order of name."""
        return [lineage for _, lineage in sorted(self.assets.items()) if lineage.made_by == job]

    def upstream(self, asset: str, column: str) -> Iterator[Dependency]:
        """Everything a column comes from, near and far, each once per way of depending; not itself."""
        seen: set[tuple[str, str]] = {(asset, column)}
        waiting = [(asset, column)]
        while waiting:
            lineage_of, name = waiting.pop()
            lineage = self.assets.get(lineage_of)
            for dependency in lineage.columns.get(name, ()) if lineage else ():
                yield dependency
                if (dependency.asset, dependency.column) not in seen:
                    seen.add((dependency.asset, dependency.column))
                    waiting.append((dependency.asset, dependency.column))

    def to_json(self) -> dict[str, Any]:
        """Plain data, in a fixed order."""
        return {
            "fingerprint": self.fingerprint,
            "assets": {
                name: {
                    "made_by": lineage.made_by,
                    "columns": {
                        column: [" ".join(_words(d)) for d in found] for column, found in lineage.columns.items()
                    },
                }
                for name, lineage in sorted(self.assets.items())
            },
            "unresolved": [[u.asset, u.column, u.message] for u in self.unresolved],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ProjectLineage:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        assets = {
            name: AssetLineage(
                name, entry["made_by"],
                {column: tuple(_dependency(text) for text in found) for column, found in entry["columns"].items()},
            )
            for name, entry in document["assets"].items()
        }
        return cls(document["fingerprint"], assets, tuple(Unresolved(*item) for item in document["unresolved"]))


def _words(dependency: Dependency) -> tuple[str, ...]:
    masked = ("MASKED",) if dependency.masked else ()
    return (dependency.kind, dependency.subtype, *masked, dependency.name)


def _dependency(text: str) -> Dependency:
    kind, subtype, rest = text.split(" ", 2)
    masked = rest.startswith("MASKED ")
    name = rest.removeprefix("MASKED ")
    if name.split(".", 1)[0] in (CONSTANT, VARIABLE):
        asset, _, column = name.partition(".")
    else:
        asset, _, column = name.rpartition(".")
    return Dependency(asset, column, kind, subtype, masked)


# --- of a project ------------------------------------------------------------------------------------------------


def run_variables(kpis: Iterable[str], sources: Mapping[str, Any]) -> dict[str, Any]:
    """Variables to compile the dbt project with: all keys and periods, and every value a name that is found again.

    `sources` is what models must know of sources, by dataset, as a run tells them. With `scope: all` a model's SQL
    holds everything its values come from; narrower scopes only leave rows out.
    """
    return {
        "tenant": f"{_MARK}tenant", "run_id": _RUN_NUMBER, "scope": "all", "batches": [], "kpi_periods": "all",
        "currency": f"{_MARK}currency", "time_zone": f"{_MARK}time_zone", "sources": dict(sources),
        "kpi_versions": {kpi: f"{_MARK}kpi_versions.{kpi}" for kpi in kpis},
    }


def fingerprint(declarations: Declarations) -> str:
    """SHA-256 (hex) of all that the lineage of models depends on: the dbt project, contracts' columns, the manifests.

    Columns of raw data do not count: models go on reading those they read when there are more (see `with_raw`).

    Raises FileNotFoundError for a project without dbt_project/dbt_project.yml.
    """
    digest = hashlib.sha256(f"column lineage {FORMAT}\n".encode())
    project = declarations.project_dir / "dbt_project"
    folders = (project / "models", project / "macros")
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".sql", ".yml", ".yaml")]
    for path in sorted([*sources, project / "dbt_project.yml"]):
        digest.update(path.relative_to(project).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    columns = {
        f"{dataset} {layer}": [[c.name, c.source_name, c.physical_type] for c in contract.columns]
        for (dataset, layer), contract in sorted(declarations.contracts.items()) if layer in ("gold", "activation")
    }
    pipelines = {
        name: [[[s.name, s.dataset, *filter(None, [s.for_models])] for s in manifest.spec.sources],
               manifest.spec.transforms.gdp, manifest.spec.kpis]
        for name, manifest in sorted(declarations.pipelines.items())
    }
    digest.update(json.dumps([columns, pipelines], sort_keys=True).encode())
    return digest.hexdigest()


def of_project(declarations: Declarations, compiled: Mapping[str, str]) -> ProjectLineage:
    """Lineage of every asset of every pipeline, from the compiled SQL of its models by name."""
    from resources.data_utilities.calendar import calendar_schema
    from resources.governance.declarations import GDP_PLATFORM_COLUMNS

    schema = _schema(declarations, calendar_schema().names)
    assets: dict[str, AssetLineage] = {}
    unresolved: list[Unresolved] = []
    for manifest in declarations.pipelines.values():
        for source in manifest.spec.sources:
            assets[f"raw.{source.dataset}"] = _ingested(declarations, manifest.name, source.name, source.dataset)
        models = [
            *((f"gdp.{name}", "normalization", name, f"{manifest.name}.{name}", "gold")
              for name in manifest.spec.transforms.gdp),
            *((f"kpi.{name}", "kpi_build", name, f"{manifest.name}.{name}", "activation")
              for name in manifest.spec.kpis),
        ]
        for asset, stage, model, dataset, layer in models:
            names = [*declarations.contract(dataset, layer).column_names,
                     *(GDP_PLATFORM_COLUMNS if layer == "gold" else ())]
            found, problems = of_model(asset, compiled.get(model), schema, names)
            assets[asset] = AssetLineage(asset, f"{manifest.name}.{stage}", found)
            unresolved += problems
        for kpi in manifest.spec.kpis:
            names = declarations.contract(f"{manifest.name}.{kpi}", "activation").column_names
            same = {name: (Dependency(f"kpi.{kpi}", name),) for name in names}
            rows = {ROWS: (Dependency(f"kpi.{kpi}", ROWS, INDIRECT, "ROWS"),)}
            assets[f"published.{kpi}"] = AssetLineage(f"published.{kpi}", f"{manifest.name}.publish", {**same, **rows})
    return ProjectLineage(fingerprint(declarations), assets, tuple(sorted(unresolved)))


def with_raw(lineage: ProjectLineage, declarations: Declarations) -> ProjectLineage | None:
    """The lineage with the raw columns declared now; None when a model reads one that is not there any more."""
    raw = {
        f"raw.{source.dataset}": _ingested(declarations, manifest.name, source.name, source.dataset)
        for manifest in declarations.pipelines.values() for source in manifest.spec.sources
    }
    known = {name: {*asset.columns, *RAW_STAMPS} for name, asset in raw.items()}
    read = (d for asset in lineage.assets.values() for found in asset.columns.values() for d in found)
    if any(d.asset in known and d.column not in known[d.asset] for d in read):
        return None
    return replace(lineage, assets={**lineage.assets, **raw})


def _ingested(declarations: Declarations, pipeline: str, source: str, dataset: str) -> AssetLineage:
    """A raw dataset: each column is parsed from the field of the source that its contract names."""
    contract = declarations.contract(dataset, "raw")
    columns = {
        column.name: (Dependency(f"source.{dataset}", column.source_name, DIRECT, "TRANSFORMATION"),)
        for column in contract.columns
    }
    columns[ROWS] = (Dependency(f"source.{dataset}", ROWS, INDIRECT, "ROWS"),)
    return AssetLineage(f"raw.{dataset}", f"{pipeline}.ingestion.{source}", columns)


def _schema(declarations: Declarations, calendar: Sequence[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Columns of every relation that a model may read, by schema and table, as sqlglot takes them."""
    from resources.governance.declarations import GDP_PLATFORM_COLUMNS

    schema: dict[str, dict[str, dict[str, str]]] = {
        "raw": {}, "gdp": {"calendar": dict.fromkeys(calendar, "text")}, "kpi": {},
        "platform": {REGISTER.partition(".")[2]: dict(_REGISTER_COLUMNS)},
    }
    for manifest in declarations.pipelines.values():
        for source in manifest.spec.sources:
            columns = dict(declarations.contract(source.dataset, "raw").column_types)
            schema["raw"][source.dataset.replace(".", "__")] = {**columns, **RAW_STAMPS}
        for model in manifest.spec.transforms.gdp:
            columns = dict(declarations.contract(f"{manifest.name}.{model}", "gold").column_types)
            schema["gdp"][model] = {**columns, **GDP_PLATFORM_COLUMNS}
        for kpi in manifest.spec.kpis:
            schema["kpi"][kpi] = dict(declarations.contract(f"{manifest.name}.{kpi}", "activation").column_types)
    return schema


# --- of one model ------------------------------------------------------------------------------------------------


def of_model(
    asset: str, compiled: str | None, schema: Mapping[str, Mapping[str, Mapping[str, str]]], names: Iterable[str]
) -> tuple[dict[str, tuple[Dependency, ...]], list[Unresolved]]:
    """Dependencies of the columns `names` of a model and of its rows, and those columns that cannot be resolved."""
    if compiled is None:
        return {}, [Unresolved(asset, ROWS, "dbt does not compile the model")]
    import sqlglot
    from sqlglot.errors import SqlglotError
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    try:
        expression = qualify(
            sqlglot.parse_one(compiled, read="postgres"), dialect="postgres", schema=dict(schema),  # type: ignore[arg-type]
            validate_qualify_columns=False, quote_identifiers=False,
        )
        scope = build_scope(expression)
    except SqlglotError as error:
        first = str(error).strip().splitlines()[0]
        return {}, [Unresolved(asset, ROWS, f"its SQL cannot be read: {first}")]
    if scope is None:
        return {}, [Unresolved(asset, ROWS, "its SQL is not a query")]
    reader = _Reader()
    columns = reader.columns(scope)
    found: dict[str, tuple[Dependency, ...]] = {}
    unresolved: list[Unresolved] = []
    for name in names:
        if name not in columns:
            unresolved.append(Unresolved(asset, name, "the model's SQL has no such column"))
            continue
        result = columns[name]
        found[name] = _merged(result.dependencies)
        problems = result.problems or ([] if found[name] else ["nothing its value comes from could be found"])
        unresolved += [Unresolved(asset, name, problem) for problem in sorted(set(problems))]
    rows = reader.rows(scope)
    found[ROWS] = _merged(rows.dependencies)
    unresolved += [Unresolved(asset, ROWS, problem) for problem in sorted(set(rows.problems))]
    return found, unresolved


@dataclass
class _Found:
    """What an expression comes from, and what is in it that cannot be resolved."""

    dependencies: list[Dependency] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: _Found, kind: str = DIRECT, subtype: str = "IDENTITY", *, masked: bool = False) -> None:
        """Take in what a part comes from, as seen from outside of it."""
        self.dependencies += [_through(d, kind, subtype, masked) for d in other.dependencies]
        self.problems += other.problems


def _through(inner: Dependency, kind: str, subtype: str, masked: bool) -> Dependency:
    """A dependency seen through an expression around it."""
    if kind == INDIRECT:
        return Dependency(inner.asset, inner.column, INDIRECT, subtype, inner.masked or masked)
    if inner.kind == INDIRECT:
        return Dependency(inner.asset, inner.column, INDIRECT, inner.subtype, inner.masked or masked)
    strongest = max(inner.subtype, subtype, key=_RANK.index)
    return Dependency(inner.asset, inner.column, DIRECT, strongest, inner.masked or masked)


def _merged(dependencies: Iterable[Dependency]) -> tuple[Dependency, ...]:
    """Each once, in a fixed order; what shows the value itself makes what masks it superfluous."""
    plain = set(dependencies)
    kept = {d for d in plain if not (d.masked and any(
        not o.masked and (o.asset, o.column, o.kind) == (d.asset, d.column, d.kind) for o in plain))}
    return tuple(sorted(kept))


class _Reader:
    """Resolves the columns of the scopes of one query, each once."""

    def __init__(self) -> None:
        self._columns: dict[int, dict[str, _Found]] = {}
        self._rows: dict[int, _Found] = {}

    def columns(self, scope: Scope) -> dict[str, _Found]:
        """What each output column of a scope comes from."""
        if id(scope) not in self._columns:
            self._columns[id(scope)] = {}  # a recursive query finds its own start empty
            self._columns[id(scope)] = self._resolved(scope)
        return self._columns[id(scope)]

    def rows(self, scope: Scope) -> _Found:
        """What decides which rows a scope has."""
        if id(scope) not in self._rows:
            self._rows[id(scope)] = _Found()
            self._rows[id(scope)] = self._rows_of(scope)
        return self._rows[id(scope)]

    def _resolved(self, scope: Scope) -> dict[str, _Found]:
        if scope.set_operation_scopes:
            branches = [list(self.columns(branch).items()) for branch in scope.set_operation_scopes]
            merged: dict[str, _Found] = {}
            for position, (name, _) in enumerate(branches[0]):
                merged[name] = _Found()
                for branch in branches:
                    if position < len(branch):
                        merged[name].add(branch[position][1])
            return merged
        return {
            projection.alias_or_name: self._of(projection, scope) for projection in scope.expression.selects
        }

    def _rows_of(self, scope: Scope) -> _Found:
        from sqlglot import exp

        found = _Found()
        if scope.set_operation_scopes:
            for branch in scope.set_operation_scopes:
                found.add(self.rows(branch))
            return found
        for _, (_, source) in scope.selected_sources.items():
            found.add(self._rows_of_source(source))
        select = scope.expression
        for join in select.args.get("joins") or ():
            self._indirect(found, join.args.get("on"), "JOIN", scope)
            for column in join.args.get("using") or ():
                self._indirect(found, column, "JOIN", scope)
        for key in ("where", "having", "qualify"):
            self._indirect(found, select.args.get(key), "FILTER", scope)
        for key, subtype in (("group", "GROUP_BY"), ("distinct", "GROUP_BY"), ("order", "SORT")):
            part = select.args.get(key)
            if isinstance(part, exp.Distinct) and part.args.get("on") is None:
                continue
            self._indirect(found, part, subtype, scope)
        return found

    def _rows_of_source(self, source: Any) -> _Found:
        from sqlglot import exp

        if isinstance(source, exp.Table):
            return _Found([Dependency(_asset(source), ROWS, INDIRECT, "ROWS")])
        return self.rows(source)

    def _indirect(self, found: _Found, part: exp.Expr | None, subtype: str, scope: Scope) -> None:
        """Take in columns of a clause; its constants say nothing about where a value comes from."""
        if part is None:
            return
        inner = self._of(part, scope)
        kept = [d for d in inner.dependencies if d.asset != CONSTANT]
        found.add(_Found(kept, inner.problems), INDIRECT, subtype)

    def _of(self, node: exp.Expr, scope: Scope) -> _Found:
        """What an expression comes from."""
        from sqlglot import exp

        found = _Found()
        if isinstance(node, exp.Alias | exp.Paren | exp.Cast | exp.Collate | exp.Distinct | exp.Ordered | exp.Where
                      | exp.Having):
            subtype = "TRANSFORMATION" if isinstance(node, exp.Cast) and not _is_constant(node) else "IDENTITY"
            for part in _parts(node, "this", "expressions", "on"):
                found.add(self._of(part, scope), DIRECT, subtype)
        elif isinstance(node, exp.Column):
            found.add(self._column(node, scope))
        elif isinstance(node, exp.Literal | exp.Boolean | exp.Null | exp.Interval):
            found.dependencies.append(_constant(node))
        elif isinstance(node, exp.Case):
            self._indirect(found, node.this, "CONDITIONAL", scope)
            for branch in node.args.get("ifs") or ():
                self._indirect(found, branch.this, "CONDITIONAL", scope)
                found.add(self._of(branch.args["true"], scope), DIRECT, "TRANSFORMATION")
            for part in _parts(node, "default"):
                found.add(self._of(part, scope), DIRECT, "TRANSFORMATION")
        elif isinstance(node, exp.Coalesce):
            for part in _parts(node, "this", "expressions"):
                found.add(self._of(part, scope), DIRECT, "TRANSFORMATION")
        elif isinstance(node, exp.Filter):
            found.add(self._of(node.this, scope))
            self._indirect(found, node.expression, "CONDITIONAL", scope)
        elif isinstance(node, exp.Window):
            self._window(found, node, scope)
        elif isinstance(node, exp.Count):
            self._count(found, node, scope)
        elif isinstance(node, exp.Exists | exp.Subquery | exp.Select | exp.SetOperation):
            self._subquery(found, node, scope)
        elif type(node).__name__ in _OF_THE_MOMENT:
            found.problems.append(f"{node.sql('postgres')} gives another value every time")
        else:
            self._function(found, node, scope)
        return found

    def _function(self, found: _Found, node: exp.Expr, scope: Scope) -> None:
        """A function or an operator: its columns count, its constants only when there is nothing else."""
        from sqlglot import exp

        aggregate = isinstance(node, exp.AggFunc)
        masked = type(node).__name__ in _HASHES or (isinstance(node, exp.Anonymous) and node.name.lower() in _HASHES)
        subtype = "AGGREGATION" if aggregate else "TRANSFORMATION"
        literals = False
        for part in node.iter_expressions():
            if isinstance(part, exp.DataType | exp.Identifier | exp.Var):
                continue
            if _is_constant(part):
                literals = True
                continue
            found.add(self._of(part, scope), DIRECT, subtype, masked=masked)
        if literals and not found.dependencies and not found.problems:
            found.dependencies.append(_constant(node))

    def _window(self, found: _Found, node: exp.Window, scope: Scope) -> None:
        found.add(self._of(node.this, scope))
        named = {w.name: w for w in scope.expression.args.get("windows") or ()}
        for window in (node, named.get(node.alias)):
            for part in (*(window.args.get("partition_by") or ()), window.args.get("order")) if window else ():
                self._indirect(found, part, "WINDOW", scope)

    def _count(self, found: _Found, node: exp.Count, scope: Scope) -> None:
        from sqlglot import exp

        counted = [part for part in _parts(node, "this", "expressions") if not isinstance(part, exp.Star)]
        for part in counted:
            found.add(self._of(part, scope), DIRECT, "AGGREGATION", masked=True)
        if not counted:
            for _, (_, source) in scope.selected_sources.items():
                rows = [d for d in self._rows_of_source(source).dependencies if d.column == ROWS]
                found.dependencies += [Dependency(d.asset, ROWS, DIRECT, "AGGREGATION", True) for d in rows]

    def _subquery(self, found: _Found, node: exp.Expr, scope: Scope) -> None:
        """A query inside an expression: its value, and what decides about its rows."""
        from sqlglot import exp

        query = node.this if isinstance(node, exp.Exists | exp.Subquery) else node
        inner = next((s for s in scope.subquery_scopes if s.expression is query), None)
        if inner is None:
            found.problems.append(f"{node.sql('postgres')[:80]} cannot be resolved")
            return
        if not isinstance(node, exp.Exists):
            for column in self.columns(inner).values():
                found.add(column, DIRECT, "TRANSFORMATION")
        found.add(self.rows(inner), INDIRECT, "CONDITIONAL")

    def _column(self, column: exp.Column, scope: Scope) -> _Found:
        from sqlglot import exp

        if not column.table:
            return _Found(problems=[f"column {column.name} is of no relation that is known"])
        at: Scope | None = scope
        while at is not None and column.table not in at.sources:
            at = at.parent  # a correlated query reads the relations around it
        if at is None:
            return _Found(problems=[f"{column.table}.{column.name} is of no relation in reach"])
        source = at.sources[column.table]
        if isinstance(source, exp.Table):
            return _Found([Dependency(_asset(source), column.name)])
        inner = self.columns(source)
        if column.name not in inner:
            if id(source) in self._columns and not inner:
                return _Found()  # the recursive branch of a query: its start says where the column comes from
            return _Found(problems=[f"{column.table} has no column {column.name}"])
        return inner[column.name]


_HASHES = frozenset((
    "SHA", "SHA2", "SHA2Digest", "SHA1Digest", "MD5", "MD5Digest", "StandardHash", "sha224", "sha256", "sha384",
    "sha512",
))
_OF_THE_MOMENT = frozenset((
    "CurrentDate", "CurrentTime", "CurrentTimestamp", "CurrentDatetime", "CurrentUser", "Localtime", "Localtimestamp",
    "Rand", "Randn", "Uuid",
))


def _parts(node: exp.Expr, *names: str) -> list[exp.Expr]:
    parts: list[exp.Expr] = []
    for name in names:
        value = node.args.get(name)
        parts += value if isinstance(value, list) else [value] if value is not None else []
    return parts


def _is_constant(node: exp.Expr) -> bool:
    """A literal, perhaps cast, that is not a value the run is given."""
    from sqlglot import exp

    while isinstance(node, exp.Cast | exp.Paren | exp.Neg | exp.Collate):
        node = node.this
    return isinstance(node, exp.Literal | exp.Boolean | exp.Null | exp.Interval) and _constant(node).asset == CONSTANT


def _constant(node: exp.Expr) -> Dependency:
    """A value that stands in the code, or what a run is given in its place."""
    text = node.sql("postgres")
    if text.startswith(f"'{_MARK}"):
        return Dependency(VARIABLE, text.strip("'").removeprefix(_MARK))
    if text == str(_RUN_NUMBER):
        return Dependency(VARIABLE, "run_id")
    return Dependency(CONSTANT, text)


def _asset(table: exp.Table) -> str:
    if table.db == "raw":
        return f"raw.{table.name.replace('__', '.', 1)}"
    return f"{table.db}.{table.name}" if table.db else table.name
