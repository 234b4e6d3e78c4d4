"""Data contracts: Open Data Contract Standard 3.1 documents, read into what the platform acts on.

A document is first held against the standard's own JSON Schema (it comes with the
`open-data-contract-standard` package), then against what this platform needs of it: one schema object whose
properties are typed, described and classified, an owner, and rules that it can prove. A rule it cannot
execute is refused, not skipped.

What becomes of a rule: those that speak of a single row (`required`, `logicalTypeOptions`, `nullValues` and
`invalidValues` that must be 0) end up in the `Column`, where ingestion turns them into one mask; those that
speak of the whole dataset (`duplicateValues`, `rowCount`, thresholds) are `Contract.rules`.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, get_args

import rfc8785

from resources.data_utilities import time_zones
from resources.governance.modes import DEFAULT_MODES, Layer, Mode
from resources.host.runner_catalog import Classification
from resources.runtime.declared import canonical_hash, did_you_mean, listed
from resources.runtime.yaml_source import FieldPath, Finding, YamlSource, shown

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

API_VERSION = "v3.1.0"
DEPRECATION_DAYS = 90
STATUSES = ("proposed", "draft", "active", "deprecated", "retired")
CLASSIFICATIONS: tuple[Classification, ...] = get_args(Classification)
PHYSICAL_TYPES = (
    "text", "bigint", "integer", "smallint", "numeric(p,s)", "date", "timestamp", "timestamptz", "boolean",
    "double precision", "json",
)  # fmt: skip
_SYNONYMS = {"timestamp with time zone": "timestamptz", "timestamp without time zone": "timestamp"}

_LOGICAL_TYPES: Mapping[str, tuple[str, ...]] = {  # of a physical type
    "text": ("string",),
    "bigint": ("integer",),
    "integer": ("integer",),
    "smallint": ("integer",),
    "numeric": ("number",),
    "date": ("date",),
    "timestamp": ("timestamp",),
    "timestamptz": ("timestamp",),
    "boolean": ("boolean",),
    "double precision": ("number",),
    "json": ("object", "array"),
}
NESTED_LAYERS: tuple[Layer, ...] = ("extraction", "raw")
"""Where a column may be JSON. GDPs and publications have columns of their own for what is within."""

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OPTIONS: Mapping[str, tuple[str, ...]] = {  # that are executed, of a logical type
    "string": ("minLength", "maxLength", "pattern"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "date": (*_BOUNDS, "format"),
    "timestamp": (*_BOUNDS, "format", "timezone", "defaultTimezone"),
    "boolean": (),
    "object": (),
    "array": (),
}
_RULES_OF_PARTS = ("required", "unique", "primaryKey", "quality", "logicalTypeOptions")
_METRICS = ("nullValues", "invalidValues", "duplicateValues", "rowCount")
_COLUMN_ARGUMENTS: Mapping[str, tuple[str, ...]] = {"invalidValues": ("validValues", "pattern")}
_TABLE_ARGUMENTS: Mapping[str, tuple[str, ...]] = {"duplicateValues": ("properties",)}
_OPERATORS = (
    "mustBe", "mustNotBe", "mustBeGreaterThan", "mustBeGreaterOrEqualTo",
    "mustBeLessThan", "mustBeLessOrEqualTo", "mustBeBetween", "mustNotBeBetween",
)  # fmt: skip
_COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z", re.ASCII)
_VERSION = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}\Z", re.ASCII)
_APPLIES = re.compile(r"(?:all|from (?P<day>\d{4}-\d{2}-\d{2}))\Z", re.ASCII)
_APPLIES_ALLOWED = "all, or from a day, e.g. from 2026-05-04"
_NUMERIC = re.compile(r"numeric\(([0-9]{1,2}),([0-9]{1,2})\)\Z", re.ASCII)
_NOT_LINEAR = re.compile(r"\(\?<?[=!]|\\[1-9]")


@dataclass(frozen=True)
class Rule:
    """A rule about a whole dataset: a count that must keep within bounds.

    Attributes:
        metric: what is counted: `nullValues`, `invalidValues`, `duplicateValues` or `rowCount`.
        columns: the columns it is counted over; empty: the whole row.
        operator: how the count is compared, in ODCS's words, e.g. `mustBeLessThan`.
        bounds: one number, or two for `mustBeBetween` and `mustNotBeBetween` (both inclusive).
        unit: `rows`, or `percent` of all rows.
        valid_values: of `invalidValues`: what counts as valid, or None.
        pattern: of `invalidValues`: what valid values match from end to end, or None.
        description: the rule in words.
    """

    metric: str
    columns: tuple[str, ...]
    operator: str
    bounds: tuple[float, ...]
    unit: str = "rows"
    valid_values: tuple[Any, ...] | None = None
    pattern: str | None = None
    description: str = ""

    @property
    def no_row_may_break_it(self) -> bool:
        """True when refusing single rows keeps the rule: a count of faulty rows that must be 0."""
        none = self.operator in ("mustBe", "mustBeLessOrEqualTo") and self.bounds == (0,)
        fewer_than_one = self.operator == "mustBeLessThan" and self.bounds == (1,) and self.unit == "rows"
        return self.metric in ("nullValues", "invalidValues") and (none or fewer_than_one)

    def holds(self, measured: float) -> bool:
        """Whether a measured count (or percentage, see `unit`) keeps the rule."""
        low, high = self.bounds[0], self.bounds[-1]
        return {
            "mustBe": measured == low,
            "mustNotBe": measured != low,
            "mustBeGreaterThan": measured > low,
            "mustBeGreaterOrEqualTo": measured >= low,
            "mustBeLessThan": measured < low,
            "mustBeLessOrEqualTo": measured <= low,
            "mustBeBetween": low <= measured <= high,
            "mustNotBeBetween": not low <= measured <= high,
        }[self.operator]


@dataclass(frozen=True)
class Column:
    """One property of a contract.

    Attributes:
        name: column name in the platform, snake_case.
        source_name: the field's name at the source (`physicalName`), else `name`.
        physical_type: normalised PostgreSQL type, see `physical_type`.
        logical_type: ODCS logical type.
        required: no row may be without a value.
        unique: no two rows may have the same value.
        primary_key: part of the key that identifies a row.
        classification: one of `CLASSIFICATIONS`.
        tags: what else it is marked as, e.g. `pii`.
        description: meaning, in words.
        options: what every value must keep, under ODCS's names: `minimum`, `maximum`, `exclusiveMinimum`,
            `exclusiveMaximum` (int, Decimal, float, date or datetime, as the type needs), `minLength`,
            `maxLength`, `pattern` (matches the whole value); `format`, the JDK pattern dates are written in
            at the source; `timezone`, whether they are instants; and `defaultTimezone`, see `time_zone`.
        valid_values: every value must be one of these; None: any.
        default: what a value becomes that the source does not give (custom property `default`, extraction only).
        unit: what one of a number is (custom property `unit`), e.g. `EUR` or `days`; None: not said.
        aliases: other names the source may have the field under (custom property `aliases`, extraction only).
    """

    name: str
    source_name: str
    physical_type: str
    logical_type: str
    required: bool
    unique: bool
    primary_key: bool
    classification: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    valid_values: tuple[Any, ...] | None = None
    default: Any = None
    tags: tuple[str, ...] = ()
    unit: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def is_json(self) -> bool:
        """Whether values are JSON: objects, arrays, whatever is nested."""
        return self.physical_type == "json"

    @property
    def stored_type(self) -> str:
        """The PostgreSQL type it is stored in: JSON is kept as its text, which compares, hashes and copies as such."""
        return "text" if self.is_json else self.physical_type

    @property
    def strptime_format(self) -> str | None:
        """`options["format"]` for strptime; None: ISO 8601."""
        pattern = self.options.get("format")
        return None if pattern is None else strptime_of(pattern)

    @property
    def is_instant(self) -> bool:
        """Whether values are points in time, which every place shows on its own clock."""
        return self.physical_type == "timestamptz"

    @property
    def time_zone(self) -> str | None:
        """`options["defaultTimezone"]`: on whose clock times without an offset are read, and instants are shown
        where the column itself is no instant; None: not said.
        """
        return self.options.get("defaultTimezone")


@dataclass(frozen=True)
class Contract:
    """One version of the contract of one dataset at one layer.

    Attributes:
        dataset: `<namespace>.<name>`.
        layer: one of `modes.LAYERS`.
        version: semantic version.
        hash: SHA-256 (hex) of the document's canonical JSON (RFC 8785).
        title, description: what the dataset is, in words.
        status: one of `STATUSES`.
        owner, steward: email addresses; a contract may go without a steward.
        columns: in the order of the document.
        rules: what the whole dataset must keep.
        retention_days: days the data is kept, None when the contract does not say.
        tags: what the dataset is marked as, words or `key:value`.
        mode: what a new version must be to those before it: custom property `compatibility`, else the layer's default.
        deprecation_days: days the version stays readable after a newer one replaced it: SLA property
            `deprecationWindow`, else `DEPRECATION_DAYS`.
        applies_from: first day (of the partition, else of landing) that the rules of a raw contract are for: custom
            property `applies: from DATE`; None: all that has landed.
        document: the document as parsed, JSON-serialisable.
    """

    dataset: str
    layer: Layer
    version: str
    hash: str
    title: str
    description: str
    status: str
    owner: str
    steward: str | None
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    retention_days: int | None = None
    tags: tuple[str, ...] = ()
    mode: Mode = Mode.NONE
    deprecation_days: int = DEPRECATION_DAYS
    applies_from: dt.date | None = None
    document: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False, repr=False)

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Names of the columns that identify a row; empty where nothing does."""
        return tuple(column.name for column in self.columns if column.primary_key)

    @property
    def column_types(self) -> list[tuple[str, str]]:
        """(name, PostgreSQL type) of the columns, in order."""
        return [(column.name, column.stored_type) for column in self.columns]

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def required_columns(self) -> frozenset[str]:
        """Names of the columns that no row may be without."""
        return frozenset(column.name for column in self.columns if column.required or column.primary_key)

    def column(self, name: str) -> Column | None:
        """The column of that name, or None."""
        return next((column for column in self.columns if column.name == name), None)


# --- types and formats ------------------------------------------------------------------------------------


def physical_type(declared: str) -> str:
    """The normalised form of a PostgreSQL type: lower case, no spaces within `numeric(p,s)`.

    One of `PHYSICAL_TYPES`, with 1 <= p <= 38 and 0 <= s <= p: what Arrow and Parquet carry without loss.
    Raises ValueError for any other type, with what is allowed.
    """
    text = " ".join(declared.lower().split())
    text = _SYNONYMS.get(text, text)
    if text in _LOGICAL_TYPES and text != "numeric":
        return text
    match = _NUMERIC.match(text.replace(" ", ""))
    if match and 1 <= int(match[1]) <= 38 and int(match[2]) <= int(match[1]):
        return f"numeric({int(match[1])},{int(match[2])})"
    raise ValueError(", ".join(PHYSICAL_TYPES) + " with 1 <= p <= 38 and s <= p")


_FORMAT_LETTERS = {
    "yyyy": "%Y", "uuuu": "%Y", "MM": "%m", "dd": "%d", "DDD": "%j", "HH": "%H", "mm": "%M", "ss": "%S",
    "S": "%f", "SS": "%f", "SSS": "%f", "SSSSSS": "%f", "X": "%z", "XX": "%z", "XXX": "%z",
}  # fmt: skip
_FORMAT_TOKEN = re.compile(r"'(?P<quoted>(?:[^']|'')*)'|(?P<letters>([A-Za-z])\3*)|(?P<other>[^A-Za-z'])")
FORMATS_ALLOWED = "yyyy, MM, dd, DDD, HH, mm, ss, S to SSS and SSSSSS, X to XXX, and text in single quotes"


def strptime_of(pattern: str) -> str:
    """A JDK DateTimeFormatter pattern (the form of ODCS's `format`) as a strptime format.

    Only fields that mean the same to every reader: no names of months, days or zones, no two-digit years, no
    one-digit forms. X to XXX is Z or an offset from UTC. Raises ValueError naming the part that is not.
    """
    result, position = "", 0
    while position < len(pattern):
        token = _FORMAT_TOKEN.match(pattern, position)
        if token is None:
            raise ValueError("a quote that is not closed")
        position = token.end()
        if token["letters"]:
            if token["letters"] not in _FORMAT_LETTERS:
                raise ValueError(f"'{token['letters']}' in the format")
            result += _FORMAT_LETTERS[token["letters"]]
        elif token["other"]:
            result += token["other"].replace("%", "%%")
        else:
            result += (token["quoted"].replace("''", "'") or "'").replace("%", "%%")
    return result


# --- reading ----------------------------------------------------------------------------------------------


_conforming: set[str] = set()
"""Digests of documents that keep the standard's JSON Schema: judging one takes longer than all else."""


def read_contract(source: YamlSource, dataset: str, layer: Layer) -> tuple[Contract | None, list[Finding]]:
    """Read the contract that the file's place says is `dataset`'s at `layer`: it, or everything wrong with it."""
    try:
        digest = canonical_hash(source.document)
    except rfc8785.CanonicalizationError as error:
        return None, [source.finding((), f"the document has no canonical JSON: {error}")]
    if digest not in _conforming:
        findings = schema_findings(source)
        if findings:
            return None, findings
        _conforming.add(digest)
    reader = _Reader(source, dataset, layer)
    contract = reader.contract(digest)
    return (None, reader.findings) if reader.findings else (contract, [])


class _Reader:
    """Reads a document that keeps the standard's JSON Schema; collects what the platform cannot accept."""

    def __init__(self, source: YamlSource, dataset: str, layer: Layer) -> None:
        self.findings: list[Finding] = []
        self._source, self._dataset, self._layer = source, dataset, layer

    def contract(self, digest: str) -> Contract:
        document = self._source.document
        if document["apiVersion"] != API_VERSION:
            self._report(("apiVersion",), "unsupported version of the standard", document["apiVersion"], API_VERSION)
        if not _VERSION.match(document["version"]):
            self._report(("version",), "not a semantic version", document["version"], "e.g. 1.0.0")
        status = self._text(("status",))
        if status and status not in STATUSES:
            self._report(("status",), "unknown status", status, listed(STATUSES))
        self._identity()
        self._text(("id",))
        owner, steward = self._people()
        columns, rules = self._schema()
        return Contract(
            dataset=self._dataset,
            layer=self._layer,
            version=document["version"],
            hash=digest,
            title=self._text(("name",)),
            description=self._text(("description", "purpose")),
            status=status,
            owner=owner,
            steward=steward,
            columns=columns,
            rules=rules,
            retention_days=self._days("retention"),
            tags=tuple(document.get("tags", ())),
            mode=self._mode(),
            deprecation_days=self._days("deprecationWindow") or DEPRECATION_DAYS,
            applies_from=self._applies_from(),
            document=document,
        )

    def _identity(self) -> None:
        properties = self._source.document.get("customProperties", [])
        for name, expected in (("dataset", self._dataset), ("layer", self._layer)):
            indexes = [index for index, item in enumerate(properties) if item["property"] == name]
            if not indexes:
                self._report(("customProperties",), f"no custom property {name}", "", f"{name}: {expected}")
            for index in indexes:
                found = properties[index]["value"]
                if found != expected:
                    message = f"the {name} is not that of the file's folder and name"
                    self._report(("customProperties", index, "value"), message, found, expected)

    def _people(self) -> tuple[str, str | None]:
        """Owner and steward: team members by role."""
        team = self._source.document.get("team", {})
        members = team if isinstance(team, list) else team.get("members", [])
        people = {role: [m["username"] for m in members if m.get("role") == role] for role in ("owner", "steward")}
        if len(people["owner"]) != 1:
            allowed = "one team member with role owner"
            self._report(("team",), "a dataset has one owner", len(people["owner"]), allowed)
        return (people["owner"] or [""])[0], (people["steward"] or [None])[0]

    def _mode(self) -> Mode:
        for index, item in enumerate(self._source.document.get("customProperties", [])):
            if item["property"] == "compatibility":
                if item["value"] in list(Mode):
                    return Mode(item["value"])
                path = ("customProperties", index, "value")
                self._report(path, "unknown compatibility mode", item["value"], listed(Mode))
        return DEFAULT_MODES[self._layer]

    def _applies_from(self) -> dt.date | None:
        """The custom property `applies`: `all`, or `from` a day."""
        day: dt.date | None = None
        for index, item in enumerate(self._source.document.get("customProperties", [])):
            if item["property"] != "applies":
                continue
            place = ("customProperties", index, "value")
            match = _APPLIES.match(item["value"]) if isinstance(item["value"], str) else None
            if self._layer != "raw":
                self._report(place, f"not executed in a {self._layer} contract", item["value"],
                             "applies where records are judged: in the raw contract")
            elif match is None:
                self._report(place, "what the rules apply to", item["value"], _APPLIES_ALLOWED)
            elif match["day"]:
                try:
                    day = dt.date.fromisoformat(match["day"])
                except ValueError:
                    self._report(place, "not a day", match["day"], _APPLIES_ALLOWED)
        return day

    def _days(self, name: str) -> int | None:
        """An SLA property that is a time, in days; None where it is not declared."""
        factors = {"d": 1, "day": 1, "days": 1, "y": 365, "year": 365, "years": 365}
        for index, item in enumerate(self._source.document.get("slaProperties", [])):
            if item["property"] != name:
                continue
            value, unit = item["value"], item.get("unit")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                path = ("slaProperties", index, "value")
                self._report(path, f"not a time for {name}", value, "a whole number from 1")
            elif unit not in factors:
                self._report(("slaProperties", index, "unit"), "unknown unit", unit, listed(factors))
            else:
                return value * factors[unit]
        return None

    def _schema(self) -> tuple[tuple[Column, ...], tuple[Rule, ...]]:
        objects = self._source.document.get("schema", [])
        if len(objects) != 1:
            self._report(("schema",), "a contract is about one table", len(objects), "one schema object")
            return (), ()
        properties = objects[0].get("properties", [])
        if not properties:
            self._report(("schema", 0, "properties"), "no columns are declared", "", "at least one property")
        columns: list[Column] = []
        rules: list[Rule] = []
        for index, declared in enumerate(properties):
            path = ("schema", 0, "properties", index)
            if declared["name"] in [column.name for column in columns]:
                self._report((*path, "name"), "a second column of that name", declared["name"], "")
            column, column_rules = self._column(path, declared)
            columns.append(column)
            rules += column_rules
        self._check_source_names(columns)
        names = [column.name for column in columns]
        for index, declared in enumerate(objects[0].get("quality", [])):
            rule = self._rule(("schema", 0, "quality", index), declared, names)
            rules += [rule] if rule else []
        return tuple(columns), tuple(rules)

    def _check_source_names(self, columns: Sequence[Column]) -> None:
        """An alias is a further name of one field, so no other field's name."""
        owners = {column.source_name: column.name for column in columns}
        for index, column in enumerate(columns):
            for alias in column.aliases:
                if owners.setdefault(alias, column.name) != column.name or alias == column.source_name:
                    place = ("schema", 0, "properties", index, "customProperties")
                    self._report(place, "an alias that is a name already", alias, f"not that of {owners[alias]}")

    def _column(self, path: FieldPath, declared: dict[str, Any]) -> tuple[Column, list[Rule]]:
        name, logical = declared["name"], declared.get("logicalType", "")
        if "enum" in declared:  # of a later version of the standard, whose schema the package may bring
            allowed = "quality: the metric invalidValues with validValues"
            self._report((*path, "enum"), f"no part of {API_VERSION}", "", allowed)
        if not _COLUMN_NAME.match(name):
            self._report((*path, "name"), "not a column name", name, "snake_case, at most 63 characters")
        for key in ("description", "classification", "logicalType", "physicalType"):
            self._text((*path, key))
        classification = declared.get("classification", "")
        if classification and classification not in CLASSIFICATIONS:
            self._report((*path, "classification"), "unknown classification", classification, listed(CLASSIFICATIONS))
        physical = self._physical_type(path, declared.get("physicalType", ""), logical)
        options = self._options(path, declared.get("logicalTypeOptions", {}), logical, physical)
        self._check_clock(path, options, physical)
        required = declared.get("required", False)
        valid_values: tuple[Any, ...] | None = None
        rules: list[Rule] = []
        for index, item in enumerate(declared.get("quality", [])):
            place = (*path, "quality", index)
            rule = self._rule(place, item, [name], column=name, physical=physical)
            if rule is None:
                continue
            if not rule.no_row_may_break_it:
                rules.append(rule)
                continue
            required = required or rule.metric == "nullValues"
            if rule.pattern is not None:
                if options.get("pattern", rule.pattern) != rule.pattern:
                    self._report(place, "a second pattern for the column", rule.pattern, options["pattern"])
                options["pattern"] = rule.pattern
            if rule.valid_values is not None:
                if valid_values is not None:
                    self._report(place, "a second list of valid values for the column", "", "one list")
                valid_values = rule.valid_values
        column = Column(
            name=name,
            source_name=declared.get("physicalName", name),
            physical_type=physical,
            logical_type=logical,
            required=required,
            unique=declared.get("unique", False),
            primary_key=declared.get("primaryKey", False),
            classification=classification,
            tags=tuple(declared.get("tags", ())),
            description=declared.get("description", ""),
            options=options,
            valid_values=valid_values,
            default=self._default(path, declared, physical),
            unit=self._unit(path, declared),
            aliases=self._aliases(path, declared),
        )
        self._check_nested(path, declared)
        return column, rules

    def _check_nested(self, path: FieldPath, declared: Mapping[str, Any]) -> None:
        """What is said of the parts of a JSON column describes them; a rule for one of them would not be executed."""
        parts = [((*path, "properties", index), part) for index, part in enumerate(declared.get("properties", []))]
        if "items" in declared:
            parts.append(((*path, "items"), declared["items"]))
        for place, part in parts:
            for key in _RULES_OF_PARTS:
                if part.get(key):
                    self._report((*place, key), "not executed within a nested column", "", "a rule of a model's test")
            self._check_nested(place, part)

    def _aliases(self, path: FieldPath, declared: Mapping[str, Any]) -> tuple[str, ...]:
        for index, item in enumerate(declared.get("customProperties", [])):
            if item["property"] != "aliases":
                continue
            place, value = (*path, "customProperties", index, "value"), item["value"]
            if self._layer != "extraction":
                allowed = "names of fields where the source is read: in the extraction contract"
                self._report(place, f"not executed in a {self._layer} contract", value, allowed)
            elif not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
                self._report(place, "not a list of names", value, "e.g. [Airport_fee]")
            else:
                return tuple(value)
        return ()

    def _default(self, path: FieldPath, declared: dict[str, Any], physical: str) -> Any:
        for index, item in enumerate(declared.get("customProperties", [])):
            if item["property"] == "default":
                place = (*path, "customProperties", index, "value")
                if self._layer != "extraction":
                    allowed = "a default where the source is read: in the extraction contract"
                    self._report(place, f"not executed in a {self._layer} contract", item["value"], allowed)
                return self._value(place, item["value"], physical)
        return None

    def _unit(self, path: FieldPath, declared: dict[str, Any]) -> str | None:
        for index, item in enumerate(declared.get("customProperties", [])):
            if item["property"] == "unit":
                if not isinstance(item["value"], str) or not item["value"].strip():
                    self._report((*path, "customProperties", index, "value"), "not a unit", item["value"], "e.g. EUR")
                    return None
                return item["value"]
        return None

    def _physical_type(self, path: FieldPath, declared: str, logical: str) -> str:
        if not declared:
            return ""
        # A KPI's value has no scale of its own: the activation layer also takes numeric without one.
        if self._layer == "activation" and declared == "numeric":
            physical = declared
        else:
            try:
                physical = physical_type(declared)
            except ValueError as error:
                self._report((*path, "physicalType"), "unsupported type", declared, str(error))
                return ""
        if physical == "json" and self._layer not in NESTED_LAYERS:
            allowed_here = "a column for each part that matters; models take them out with json_field"
            self._report((*path, "physicalType"), f"no type of the {self._layer} layer", declared, allowed_here)
        allowed = _LOGICAL_TYPES[physical.partition("(")[0]]
        if logical and logical not in allowed:
            self._report((*path, "logicalType"), f"does not go with {physical}", logical, listed(allowed))
        return physical

    def _options(self, path: FieldPath, declared: dict[str, Any], logical: str, physical: str) -> dict[str, Any]:
        allowed = _OPTIONS.get(logical, ())
        result: dict[str, Any] = {}
        for key, value in declared.items():
            place = (*path, "logicalTypeOptions", key)
            if key not in allowed:
                self._report(place, f"not executed for {logical or 'this type'}", "", listed(allowed))
            elif key == "format":
                self._check_format(place, value, logical)
                result[key] = value
            elif key == "pattern":
                self._check_pattern(place, value)
                result[key] = value
            elif key in _BOUNDS:
                result[key] = self._value(place, value, physical)
            elif key == "defaultTimezone":
                self._check_time_zone(place, value)
                result[key] = value
            elif key == "timezone":
                result[key] = value
            else:
                result[key] = int(value)  # to JSON Schema, 1.0 is an integer too
        for low, high in (("minimum", "maximum"), ("minLength", "maxLength")):
            if result.get(low) is not None and result.get(high) is not None and result[low] > result[high]:
                allowed_values = f"{declared[low]} or more"
                self._report((*path, "logicalTypeOptions", high), f"below {low}", declared[high], allowed_values)
        return result

    def _check_format(self, place: FieldPath, pattern: str, logical: str) -> None:
        try:
            fields = set(re.findall(r"%([A-Za-z])", strptime_of(pattern).replace("%%", "")))
        except ValueError as error:
            self._report(place, f"not supported: {error}", pattern, FORMATS_ALLOWED)
            return
        day = fields >= set("Ymd") or fields >= set("Yj")
        clock = fields & set("HMSf")
        if not day or logical == "date" and (clock or "z" in fields) or logical == "timestamp" and "H" not in fields:
            allowed = "a year, a day and no time" if logical == "date" else "a year, a day and an hour"
            self._report(place, f"does not say what a {logical} is", pattern, allowed)

    def _check_time_zone(self, place: FieldPath, name: str) -> None:
        try:
            time_zones.rules_of(name)
        except ValueError:
            allowed = "a name of the IANA time zone database, e.g. Europe/London"
            self._report(place, "unknown time zone", name, allowed)

    def _check_clock(self, path: FieldPath, options: Mapping[str, Any], physical: str) -> None:
        """Where a property's word on zones, or its format, contradicts its type."""
        instant = physical == "timestamptz"
        place = (*path, "logicalTypeOptions")
        if options.get("timezone", instant) != instant:
            message = f"does not go with {physical}, which is {'an instant' if instant else 'a time without a zone'}"
            self._report((*place, "timezone"), message, options["timezone"], f"{str(instant).lower()}; or another type")
        try:
            has_offset = "%z" in strptime_of(options.get("format", "X"))
        except ValueError:  # reported as a format already
            return
        if instant and not has_offset and "defaultTimezone" not in options:
            message = "the format has no offset, so it does not say which instant is meant"
            self._report((*place, "format"), message, options["format"], "X, XX or XXX in it; or a defaultTimezone")

    def _check_pattern(self, place: FieldPath, pattern: str) -> None:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            self._report(place, f"not a regular expression: {error}", pattern, "")
            return
        if _NOT_LINEAR.search(pattern):
            self._report(place, "needs backtracking", pattern, "no look-around and no back-references")

    def _value(self, place: FieldPath, value: Any, physical: str) -> Any:
        """A bound or valid value in the type of its column."""
        try:
            converted = _converted(value, physical)
        except (ValueError, ArithmeticError):
            self._report(place, "not a value of the column's type", value, physical)
            return None
        return converted

    def _rule(
        self,
        path: FieldPath,
        declared: dict[str, Any],
        names: list[str],
        *,
        column: str | None = None,
        physical: str = "",
    ) -> Rule | None:
        """One quality rule, of a `column` of type `physical` or of the table; None for prose and refused ones."""
        kind = declared.get("type", "library")
        if kind == "text":
            return None
        if kind != "library":
            self._report((*path, "type"), "not executed", kind, "library, or text for prose")
            return None
        metric, arguments = declared.get("metric", ""), declared.get("arguments", {})
        if metric not in _METRICS:
            self._report((*path, "metric"), "not executed", metric, listed(_METRICS))
            return None
        if (metric == "rowCount") != (column is None) and metric != "duplicateValues":
            level = "of the table" if metric == "rowCount" else "of a column"
            self._report((*path, "metric"), f"a rule {level}", metric, f"it belongs to the quality {level}")
        takes = _TABLE_ARGUMENTS.get(metric, ()) if column is None else _COLUMN_ARGUMENTS.get(metric, ())
        for key in arguments:
            if key not in takes:
                message = f"not an argument of {metric}" + did_you_mean(key, takes)
                self._report((*path, "arguments", key), message, "", listed(takes))
        if metric == "invalidValues" and not any(key in arguments for key in takes):
            self._report((*path, "arguments"), "does not say what is valid", "", listed(takes))
        operator = next(key for key in _OPERATORS if key in declared)
        bounds = declared[operator] if isinstance(declared[operator], list) else [declared[operator]]
        if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in bounds):
            self._report((*path, operator), "not a number", declared[operator], "a number")
            return None
        unit = declared.get("unit", "rows")
        if unit not in ("rows", "percent"):
            self._report((*path, "unit"), "unknown unit", unit, "rows, percent")
        return Rule(
            metric=metric,
            columns=(column,) if column else self._properties(path, arguments, names),
            operator=operator,
            bounds=tuple(bounds),
            unit=unit,
            valid_values=self._valid_values(path, arguments, physical),
            pattern=self._pattern(path, arguments),
            description=declared.get("description", declared.get("name", "")),
        )

    def _properties(self, path: FieldPath, arguments: dict[str, Any], names: list[str]) -> tuple[str, ...]:
        listing = arguments.get("properties", [])
        place = (*path, "arguments", "properties")
        if not isinstance(listing, list):
            self._report(place, "not a list", listing, "a list of columns")
            return ()
        for index, name in enumerate(listing):
            if name not in names:
                hint = did_you_mean(name, names) if isinstance(name, str) else ""
                self._report((*place, index), "unknown column" + hint, name, listed(names))
        return tuple(name for name in listing if isinstance(name, str))

    def _valid_values(
        self, path: FieldPath, arguments: dict[str, Any], physical: str
    ) -> tuple[Any, ...] | None:
        values = arguments.get("validValues")
        if values is None:
            return None
        place = (*path, "arguments", "validValues")
        if not isinstance(values, list) or not values:
            self._report(place, "not a list of values", values, "a list")
            return ()
        return tuple(self._value((*place, index), value, physical) for index, value in enumerate(values))

    def _pattern(self, path: FieldPath, arguments: dict[str, Any]) -> str | None:
        pattern = arguments.get("pattern")
        if pattern is None:
            return None
        place = (*path, "arguments", "pattern")
        if not isinstance(pattern, str):
            self._report(place, "not text", pattern, "a regular expression; quote it")
            return None
        self._check_pattern(place, pattern)
        return pattern

    def _text(self, path: FieldPath) -> str:
        """Text that must be there and say something."""
        value: Any = self._source.document
        for step in path:
            value = value.get(step) if isinstance(value, dict) else value[step]
            if value is None:
                break
        if value is None:
            self._report(path, "required, but missing", "", "")
        elif not value.strip():
            self._report(path, "says nothing", value, "text")
        return value or ""

    def _report(self, path: FieldPath, message: str, found: object, allowed: str) -> None:
        text = "" if found == "" else shown(found)
        self.findings.append(self._source.finding(path, message, found=text, allowed=allowed))


def _converted(value: Any, physical: str) -> Any:
    """A JSON value as the type of a column; raises ValueError or ArithmeticError when it is none."""
    if not physical:  # the type itself was refused
        return value
    kind = physical.partition("(")[0]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "text" and isinstance(value, str) or kind == "boolean" and isinstance(value, bool):
        return value
    if kind in ("bigint", "integer", "smallint") and number and value == int(value):
        return int(value)
    if kind == "numeric" and number:
        return Decimal(str(value))
    if kind == "double precision" and number:
        return float(value)
    if kind == "date" and isinstance(value, str):
        return dt.date.fromisoformat(value)
    if kind in ("timestamp", "timestamptz") and isinstance(value, str):
        parsed = dt.datetime.fromisoformat(value)
        if (parsed.tzinfo is not None) != (kind == "timestamptz"):
            raise ValueError("a timestamp has no zone, and a timestamptz has one")
        return parsed if parsed.tzinfo is None else parsed.astimezone(dt.UTC)
    raise ValueError(f"not a {physical}")


# --- the standard's JSON Schema ---------------------------------------------------------------------------


def schema_findings(source: YamlSource) -> list[Finding]:
    """What the standard's JSON Schema says against a document."""
    found: dict[tuple[FieldPath, str], Finding] = {}
    for error in _validator().iter_errors(source.document):
        for path, message, value, allowed in _explained(error):
            finding = source.finding(path, message, found=value, allowed=allowed)
            found.setdefault((path, message), finding)
    return list(found.values())


@lru_cache(maxsize=1)
def _validator() -> Validator:
    """The validator of ODCS documents. Made when first asked for: jsonschema is slow to import.

    `unevaluatedProperties` costs jsonschema most of its time: it judges every part of the schema again to learn
    which keys they describe. Where all keys of an object are described by parts that always apply, there is
    nothing to learn; only other objects (quality rules, say) are left to jsonschema.
    """
    from importlib.resources import files

    from jsonschema import Draft201909Validator, validators

    schema = json.loads(files("open_data_contract_standard").joinpath("schema.json").read_text(encoding="utf-8"))
    judge = Draft201909Validator.VALIDATORS["unevaluatedProperties"]
    always: dict[int, set[str]] = {}  # by identity of the subschema, which lives as long as the validator

    def unevaluated(validator: Any, rule: Any, instance: Any, subschema: Any) -> Iterator[ValidationError]:
        keys = always.get(id(subschema))
        if keys is None:
            keys = always[id(subschema)] = _keys_of(schema, subschema, conditional=False)
        if not isinstance(instance, dict) or not instance.keys() <= keys:
            yield from judge(validator, rule, instance, subschema)

    return validators.extend(Draft201909Validator, {"unevaluatedProperties": unevaluated})(schema)


def _explained(error: ValidationError) -> Iterator[tuple[FieldPath, str, str, str]]:
    """A schema error in words: path, message, found, allowed."""
    path, instance, rule = tuple(error.absolute_path), error.instance, error.validator_value
    if error.validator == "required":
        for key in rule:
            if key not in instance:
                yield (*path, key), "required, but missing", "", ""
    elif error.validator in ("additionalProperties", "unevaluatedProperties"):
        # unevaluatedProperties also names known keys, once any of them is wrong: only the unknown ones count.
        known = _keys_of(_validator().schema, error.schema)
        for key in instance:
            if key not in known:
                yield (*path, key), "unknown key" + did_you_mean(key, known), "", listed(sorted(known))
    elif error.validator in ("oneOf", "anyOf"):
        yield from _explained_choice(error)
    elif error.validator in ("enum", "const"):
        choices = [API_VERSION] if path == ("apiVersion",) else rule if error.validator == "enum" else [rule]
        allowed = listed(shown(value) for value in choices)
        yield path, "not one of the choices", shown(instance), allowed
    elif error.validator == "type":
        yield path, "has the wrong type", shown(instance), rule if isinstance(rule, str) else " or ".join(rule)
    elif error.validator == "pattern":
        yield path, "has the wrong form", shown(instance), f"text matching {rule}"
    else:
        yield path, "breaks the standard's schema", shown(instance), f"{error.validator}: {shown(rule)}"


def _explained_choice(error: ValidationError) -> Iterator[tuple[FieldPath, str, str, str]]:
    """An error of oneOf or anyOf: explained by the branch whose type fits, where there is one such branch."""
    path = tuple(error.absolute_path)
    required = [key for branch in error.validator_value for key in branch.get("required", [])]
    if required and all("required" in branch for branch in error.validator_value):
        present = [key for key in required if key in error.instance]
        yield path, "exactly one of these is needed", listed(present), listed(required)
        return
    branches: dict[Any, list[ValidationError]] = {}
    for nested in error.context or ():
        branches.setdefault(nested.schema_path[0], []).append(nested)
    fitting = [
        errors for errors in branches.values() if not any(e.validator == "type" and not e.path for e in errors)
    ]
    if len(fitting) == 1:
        for nested in fitting[0]:
            yield from _explained(nested)
    else:
        types = [str(kind) for branch in error.validator_value for kind in _types_of(branch)]
        yield path, "fits none of the standard's forms", shown(error.instance), " or ".join(dict.fromkeys(types))


def _types_of(schema: Mapping[str, Any]) -> list[str]:
    kind = _resolved(_validator().schema, schema).get("type", [])
    return [kind] if isinstance(kind, str) else kind


def _resolved(root: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A subschema, or the definition in `root` it refers to."""
    target: Any = schema
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
    return target


def _keys_of(root: Mapping[str, Any], schema: Mapping[str, Any], *, conditional: bool = True) -> set[str]:
    """Keys of an object that its schema describes, with or without the parts that apply to some objects only."""
    keys = set(schema.get("properties", {}))
    parts = list(schema.get("allOf", []))
    if "$ref" in schema:
        parts.append(_resolved(root, schema))
    if conditional:
        parts += [*schema.get("anyOf", []), *schema.get("oneOf", [])]
        parts += [schema[word] for word in ("then", "else") if word in schema]
    return keys.union(*(_keys_of(root, part, conditional=conditional) for part in parts))
