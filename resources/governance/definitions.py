"""Definitions: what the model of a GDP or KPI computes, known by a digest.

A definition is the model's compiled SQL, macros resolved and with a name in place of every run variable, its columns
and its key. White space, comments and the case of keywords make no other definition. A version of a KPI
(`metadata.version`) or of a GDP (that of its gold contract) stands for one definition from the moment a number of that
version is published: see `definition_register`.

`contracts/definitions.json` keeps the definitions beside what is declared, for reviews, and so that neither a check nor
a run has to compile the models: it counts for that while its fingerprint is that of the project. What it says of a
version counts always.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from resources.governance.declarations import Declarations
from resources.runtime.declared import canonical_hash
from resources.runtime.settings import stage_code_version

PLACE = "contracts/definitions.json"
Kind = Literal["gdp", "kpi"]
_FORMAT = 1  # of what a digest is taken of


@dataclass(frozen=True)
class CompiledModel:
    """A model as dbt compiles it: its SQL, the SHA-256 (hex) of its own file's text, its unique key."""

    sql: str
    source_sha256: str
    key: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """What a model computes.

    Attributes:
        version: the declared one.
        columns: (name, PostgreSQL type), in order.
        sql: compiled for PostgreSQL.
    """

    kind: Kind
    pipeline: str
    name: str
    version: str
    columns: tuple[tuple[str, str], ...]
    compiled: CompiledModel

    @cached_property
    def sha256(self) -> str:
        """The digest, hex."""
        return digest_of(self.document)

    @property
    def document(self) -> dict[str, Any]:
        """What is registered under the digest."""
        return {"kind": self.kind, "name": self.name, "columns": [list(column) for column in self.columns],
                "key": list(self.compiled.key), "sql": self.compiled.sql}

    @property
    def bound(self) -> BoundVersion:
        """The definition as its version stands for it once it is published."""
        return BoundVersion(self.pipeline, self.kind, self.name, self.version, self.sha256,
                            self.compiled.source_sha256, stage_code_version())

    @property
    def title(self) -> str:
        return f"{self.kind.upper()} {self.name}"

    @property
    def place_of_version(self) -> str:
        """Where a new version is declared."""
        if self.kind == "kpi":
            return f"metadata.version in contracts/kpis/{self.pipeline}/{self.name}.yaml"
        return f"version in contracts/datasets/{self.pipeline}/{self.name}/gold.yaml"


@dataclass(frozen=True)
class BoundVersion:
    """A version that stands for a definition.

    Attributes:
        source_sha256: of the model's own file when it was compiled.
        stage_code: version of the software that compiled it.
        tenant_id: for whom it was published; empty where it is only on file.
    """

    pipeline: str
    kind: Kind
    name: str
    version: str
    sha256: str
    source_sha256: str
    stage_code: str
    tenant_id: str = ""


Cause = Literal["followed", "upgraded"]


@dataclass(frozen=True)
class ChangedDefinition:
    """A definition that its declared version does not stand for.

    Attributes:
        before: the definition that the version stands for, the last one.
        cause: why it may still compute the same: the contract of a GDP it reads has a new version (followed), or other
            software compiles an untouched model (upgraded); None: it was edited.
    """

    definition: Definition
    before: BoundVersion
    cause: Cause | None

    @property
    def message(self) -> str:
        return (f"{self.definition.title} computes otherwise than its version {self.definition.version}, which is "
                "published")

    @property
    def remedy(self) -> str:
        return f"give it a new version: {self.definition.place_of_version}, now {self.definition.version}"


def of_declarations(
    declarations: Declarations, compiled: Mapping[str, CompiledModel]
) -> dict[tuple[str, str], Definition]:
    """The definitions of everything declared, by pipeline and name, without models that do not compile."""
    found: dict[tuple[str, str], Definition] = {}
    for manifest in declarations.pipelines.values():
        for kind, layer, names in (("gdp", "gold", manifest.spec.transforms.gdp),
                                   ("kpi", "activation", manifest.spec.kpis)):
            for name in names:
                contract = declarations.contract(f"{manifest.name}.{name}", layer)
                version = contract.version if kind == "gdp" else declarations.kpi(name).metadata.version
                if name in compiled:
                    found[manifest.name, name] = Definition(
                        kind, manifest.name, name, version, tuple(contract.column_types), compiled[name])
    return found


def changed(
    declarations: Declarations, definitions: Sequence[Definition], bound: Sequence[BoundVersion], stage_code: str
) -> list[ChangedDefinition]:
    """Definitions whose version stands for other ones.

    Args:
        definitions: of one pipeline.
        bound: what is known of its versions, oldest first.
    """
    known: dict[tuple[str, str], list[BoundVersion]] = {}
    for version in bound:
        known.setdefault((version.kind, version.name), []).append(version)
    declared = {d.name: d.version for d in definitions if d.kind == "gdp"}
    renewed = {name for name, version in declared.items()
               if version not in {b.version for b in known.get(("gdp", name), ())}}
    found = []
    for definition in definitions:
        same = [b for b in known.get((definition.kind, definition.name), ()) if b.version == definition.version]
        if not same or definition.sha256 in {b.sha256 for b in same}:
            continue
        before = same[-1]
        cause: Cause | None = None
        if definition.kind == "kpi" and renewed & {
                d.gdp for d in declarations.kpi(definition.name).spec.depends_on}:
            cause = "followed"
        elif before.source_sha256 == definition.compiled.source_sha256 and before.stage_code != stage_code:
            cause = "upgraded"
        found.append(ChangedDefinition(definition, before, cause))
    return found


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what a definition says, see `Definition.document`; its name does not count."""
    return canonical_hash([_FORMAT, document["kind"], document["columns"], document["key"],
                           list(tokens(document["sql"]))])


# --- text --------------------------------------------------------------------------------------------------------


def tokens(sql: str) -> Iterator[str]:
    """The words and signs of an SQL text, without comments; words outside of quotes in lower case."""
    for match in _TOKEN.finditer(sql):
        if match.lastgroup == "quoted":
            yield match[0]
        elif match.lastgroup != "nothing":
            yield match[0].lower()


def source_sha256(text: str) -> str:
    """SHA-256 (hex) of a model's file, comments and white space aside."""
    return hashlib.sha256("\0".join(tokens(_TEMPLATE_COMMENT.sub(" ", text))).encode()).hexdigest()


_TEMPLATE_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<nothing>\s+|--[^\n]*|/\*.*?\*/)"""
    r"""|(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$)"""
    r"""|(?P<word>\w+)|(?P<sign>.)""", re.DOTALL)


# --- the file ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DefinitionFile:
    """Definitions that were written down.

    Attributes:
        fingerprint: digest of the project they were compiled from.
        compiled: models by name.
        bound: what the versions stand for.
    """

    fingerprint: str
    compiled: Mapping[str, CompiledModel]
    bound: Sequence[BoundVersion]


def read(path: Path) -> DefinitionFile | None:
    """What the file holds, None when there is none that can be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries = document["definitions"]
        return DefinitionFile(
            document["fingerprint"],
            {e["name"]: CompiledModel("\n".join(e["sql"]), e["source_sha256"], tuple(e["key"])) for e in entries},
            [BoundVersion(e["pipeline"], e["kind"], e["name"], e["version"], e["sha256"], e["source_sha256"],
                          document["stage_code"]) for e in entries])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, fingerprint: str, stage_code: str, definitions: Sequence[Definition]) -> None:
    """Replace the file as a whole."""
    entries = [{
        "pipeline": d.pipeline, "kind": d.kind, "name": d.name, "version": d.version, "sha256": d.sha256,
        "source_sha256": d.compiled.source_sha256, "key": list(d.compiled.key), "sql": d.compiled.sql.split("\n"),
    } for d in sorted(definitions, key=lambda d: (d.pipeline, d.kind, d.name))]
    replace_file(path, {"fingerprint": fingerprint, "stage_code": stage_code, "definitions": entries})


def read_bound(path: Path) -> list[BoundVersion]:
    """What versions stood for in the database when the file was written; nothing when there is none."""
    try:
        return [BoundVersion(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def replace_file(path: Path, document: Any) -> None:
    """Write JSON in place of what a file holds, as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
