"""Drift: how what a source has differs from what its contracts declare, and which differences stop the lifecycle.

Pure: an observed schema and what was seen in the refused rows go in, changes come out. Where decisions are kept is
`drift_register`'s matter, how a contract follows a change `contract_evolution`'s.

| class | blocks when | only noted when |
| --- | --- | --- |
| `field_added` | always: nobody has said what it is | |
| `field_missing` | a contract requires it | it is optional, or fewer than 10 JSON objects lack it |
| `type_changed` | another type is stated and values were refused for it, or all of 10 or more | every value fits |
| `order_changed` | never: fields are matched by name | names come in another order than declared |
| `enum_grown` | a value outside `validValues` was refused | |
| `nullability` | a required field is null and the source says it may be, or all of 10 or more are | none is null |
| `semantic_hint` | unit or format are declared on both sides and differ | only the source says one |
| `delivery_shrunk` | a complete delivery lacks more than its source's `max_shrink` | |

A field that is added where another is missing whose name differs in case, blanks or marks only, is that one under
another name: the added field says so (`declared`), and the missing one says nothing. The last class is no matter of a
schema, and not found here: whether a delivery shrank is known once all of it has landed.
"""

from __future__ import annotations

import enum
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from resources.governance.contracts import Column, Contract
from resources.runtime.declared import canonical_hash

LEAST_EVIDENCE = 10
"""Rows from which on "every value is refused" speaks of the source and not of a few bad records."""


class DriftClass(enum.StrEnum):
    """What kind of difference it is."""

    FIELD_ADDED = "field_added"
    FIELD_MISSING = "field_missing"
    TYPE_CHANGED = "type_changed"
    ORDER_CHANGED = "order_changed"
    ENUM_GROWN = "enum_grown"
    NULLABILITY = "nullability"
    SEMANTIC_HINT = "semantic_hint"
    DELIVERY_SHRUNK = "delivery_shrunk"


@dataclass(frozen=True)
class ObservedSchema:
    """What the source itself says it has.

    Attributes:
        names: its fields, in order; empty when it names none.
        types: their types in the source's own words, None where the format carries none. JSON: the kinds of value
            that were met, joined by `|`.
        nullable: whether the source says that values may be missing; None where it does not say.
        hints: per field, what the source says a value means: pairs of `unit` or `format` and its text.
        ordered: whether order means anything: members of a JSON object have none.
        sampled: of how many records names and types were gathered; None when the source states them.
    """

    names: tuple[str, ...]
    types: tuple[str, ...] | None = None
    nullable: tuple[bool | None, ...] | None = None
    hints: tuple[tuple[tuple[str, str], ...], ...] | None = None
    ordered: bool = True
    sampled: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ObservedSchema:
        """Inverse of `to_json`, also after JSON made lists of its tuples."""
        hints = document["hints"]
        return cls(
            names=tuple(document["names"]),
            types=None if document["types"] is None else tuple(document["types"]),
            nullable=None if document["nullable"] is None else tuple(document["nullable"]),
            hints=None if hints is None else tuple(tuple((k, v) for k, v in pairs) for pairs in hints),
            ordered=document["ordered"],
            sampled=document["sampled"],
        )


@dataclass(frozen=True)
class SeenInRows:
    """What the refused rows of a unit show, by column name.

    Attributes:
        records: records of the unit.
        wrong_type: records whose value is not of the contract's type.
        missing: records without a required value.
        new_values: values outside `validValues`, as text, sorted.
    """

    records: int = 0
    wrong_type: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    new_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        field: the source's name of the field; the names in their order for `order_changed`.
        blocking: whether the partition waits for a decision.
        declared: what the contract says, in words; empty when it says nothing. Of `field_added`, the missing field
            that it is under another name.
        found: what the source has, in words, without counts: the same drift is found in the same words.
        values: of `enum_grown`, the new values; of `delivery_shrunk`, the digests of its contents.
        hint: of `semantic_hint`, `unit` or `format`.
    """

    kind: DriftClass
    field: str
    blocking: bool
    declared: str = ""
    found: str = ""
    values: tuple[str, ...] = ()
    hint: str = ""

    def __str__(self) -> str:
        wording = _RENAMED if self.kind is DriftClass.FIELD_ADDED and self.declared else _WORDING[self.kind]
        return wording.format(
            field=self.field, declared=self.declared, found=self.found, hint=self.hint, values=", ".join(self.values)
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.value, "text": str(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Change:
        """Inverse of `to_json`."""
        given = {name: value for name, value in document.items() if name != "text"}
        return cls(**{**given, "kind": DriftClass(document["kind"]), "values": tuple(document["values"])})


_WORDING = {
    DriftClass.FIELD_ADDED: "field {field} was added",
    DriftClass.FIELD_MISSING: "field {field} is missing ({declared})",
    DriftClass.TYPE_CHANGED: "type of {field} changed from {declared} to {found}",
    DriftClass.ORDER_CHANGED: "fields come in another order: {field}",
    DriftClass.ENUM_GROWN: "{field} has new values {values} (allowed: {declared})",
    DriftClass.NULLABILITY: "{field}: {found}, the contract says {declared}",
    DriftClass.SEMANTIC_HINT: "{hint} of {field} is {found}, the contract says {declared}",
    DriftClass.DELIVERY_SHRUNK: "{field} delivers {found} records; declared are {declared} before",
}
_RENAMED = "field {declared} comes under the name {field}"


def classify(
    observed: ObservedSchema, seen: SeenInRows, extraction: Contract, raw: Contract
) -> tuple[Change, ...]:
    """Every difference between a unit and the contracts in force, in the order of the classes, then of fields."""
    observed = _under_declared_names(observed, extraction)
    given = {c.name for c in extraction.columns if c.default is not None}  # what is missing has a value
    required = {c.name for c in (*extraction.columns, *raw.columns) if c.required} - given
    changes = [
        *_fields(observed, extraction, required),
        *_types(observed, seen, extraction),
        *_order(observed, extraction),
        *_enums(seen, raw),
        *_nullability(observed, seen, extraction, required),
        *_hints(observed, extraction),
    ]
    order = list(DriftClass)
    return tuple(sorted(changes, key=lambda change: (order.index(change.kind), change.field, change.hint)))


def fingerprint(dataset: str, contracts: Sequence[str], changes: Sequence[Change]) -> str:
    """SHA-256 (hex) of what has to be decided: the blocking changes against these contracts (their hashes).

    The same drift in another batch has the same fingerprint; noted changes and counts are no part of it.
    """
    decided = [
        [change.kind.value, change.field, change.found, list(change.values), change.hint]
        for change in changes if change.blocking
    ]
    return canonical_hash([dataset, list(contracts), decided])


def still_blocking(change: Change, extraction: Contract, raw: Contract) -> bool:
    """Whether a change that was found earlier is still one under the contracts now in force."""
    column = _by_source(extraction).get(change.field)
    raw_column = None if column is None else raw.column(column.name)
    match change.kind:
        case DriftClass.FIELD_ADDED:
            return column is None and not any(change.field in other.aliases for other in extraction.columns)
        case DriftClass.FIELD_MISSING | DriftClass.NULLABILITY:
            is_required = column is not None and (column.required or bool(raw_column and raw_column.required))
            return is_required and column is not None and column.default is None
        case DriftClass.TYPE_CHANGED:
            if column is None or column.physical_type != change.declared:
                return False
            has_zone = column.is_instant and column.time_zone is not None
            return not (has_zone and (change.found == _NO_INSTANTS or _fits(change.found, column)))
        case DriftClass.ENUM_GROWN:
            allowed = None if raw_column is None else raw_column.valid_values
            return allowed is not None and not set(change.values) <= set(map(str, allowed))
        case DriftClass.SEMANTIC_HINT:
            return column is not None and _declared_hint(column, change.hint) not in (None, change.found)
        case DriftClass.DELIVERY_SHRUNK:
            return True  # no contract can declare it
    return False


def summary(changes: Sequence[Change], *, blocking_only: bool = True) -> str:
    """The changes in words, on one line."""
    return "; ".join(str(change) for change in changes if change.blocking or not blocking_only)


# --- the classes --------------------------------------------------------------------------------------------


def _by_source(extraction: Contract) -> dict[str, Column]:
    return {column.source_name: column for column in extraction.columns}


def _under_declared_names(observed: ObservedSchema, extraction: Contract) -> ObservedSchema:
    """The schema with a field's declared name where the source has it under an alias only."""
    called = {}
    for column in extraction.columns:
        names = [name for name in (column.source_name, *column.aliases) if name in observed.names]
        if names:
            called[names[0]] = column.source_name
    return replace(observed, names=tuple(called.get(name, name) for name in observed.names))


def _bare(name: str) -> str:
    """A name without what writers change unasked: case, blanks, marks."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _renamed(observed: ObservedSchema, declared: Mapping[str, Column]) -> dict[str, str]:
    """Fields that come under another name: the name they have, and the declared one. Only where one fits one."""
    added, missing = defaultdict(list), defaultdict(list)
    for name in observed.names:
        if name not in declared:
            added[_bare(name)].append(name)
    for name in declared:
        if name not in observed.names:
            missing[_bare(name)].append(name)
    return {names[0]: missing[bare][0] for bare, names in added.items()
            if bare and len(names) == 1 and len(missing[bare]) == 1}


def _fields(observed: ObservedSchema, extraction: Contract, required: set[str]) -> Iterator[Change]:
    if not observed.names:  # an empty unit, or one whose fields have positions and no names
        return
    declared = _by_source(extraction)
    types = dict(zip(observed.names, observed.types or (), strict=False))
    renamed = _renamed(observed, declared)
    for name in observed.names:
        if name not in declared:
            yield Change(DriftClass.FIELD_ADDED, name, True, renamed.get(name, ""), types.get(name, ""))
    enough = observed.sampled is None or observed.sampled >= LEAST_EVIDENCE
    for name, column in declared.items():
        if name not in observed.names and name not in renamed.values():
            is_required = column.name in required
            words = "required" if is_required else "optional"
            yield Change(DriftClass.FIELD_MISSING, name, is_required and enough, declared=words)


def _types(observed: ObservedSchema, seen: SeenInRows, extraction: Contract) -> Iterator[Change]:
    stated = dict(zip(observed.names, observed.types or (), strict=False))
    for column in extraction.columns:
        found = stated.get(column.source_name)
        every_value = seen.records >= LEAST_EVIDENCE and seen.wrong_type.get(column.name) == seen.records
        if found is not None and not _fits(found, column):
            refused = seen.wrong_type.get(column.name, 0) > 0
            yield Change(DriftClass.TYPE_CHANGED, column.source_name, refused, column.physical_type, found)
        elif every_value:
            words = "values that are none of that type"
            if column.is_instant and column.time_zone is None:
                words = _NO_INSTANTS
            yield Change(DriftClass.TYPE_CHANGED, column.source_name, True, column.physical_type, words)


def _order(observed: ObservedSchema, extraction: Contract) -> Iterator[Change]:
    declared = [c.source_name for c in extraction.columns if c.source_name in observed.names]
    found = [name for name in observed.names if name in declared]
    if observed.ordered and found != declared:
        yield Change(DriftClass.ORDER_CHANGED, ", ".join(found), False, ", ".join(declared))


def _enums(seen: SeenInRows, raw: Contract) -> Iterator[Change]:
    for column in raw.columns:
        values = seen.new_values.get(column.name)
        if values:
            allowed = ", ".join(map(str, column.valid_values or ()))
            found = json.dumps(list(values), ensure_ascii=False)
            yield Change(DriftClass.ENUM_GROWN, column.source_name, True, allowed, found, values)


def _nullability(
    observed: ObservedSchema, seen: SeenInRows, extraction: Contract, required: set[str]
) -> Iterator[Change]:
    stated = dict(zip(observed.names, observed.nullable or (), strict=False))
    for column in extraction.columns:
        if observed.names and column.source_name not in observed.names:
            continue  # missing says it all
        nullable, missing = stated.get(column.source_name), seen.missing.get(column.name, 0)
        if column.name in required:
            all_null = seen.records >= LEAST_EVIDENCE and missing == seen.records
            if nullable or all_null:
                words = "the source says it may be null" if nullable else "every value is null"
                yield Change(DriftClass.NULLABILITY, column.source_name, missing > 0, "it is required", words)
        elif nullable is False:
            yield Change(DriftClass.NULLABILITY, column.source_name, False, "it is optional", "it is never null")


def _hints(observed: ObservedSchema, extraction: Contract) -> Iterator[Change]:
    declared = _by_source(extraction)
    for name, pairs in zip(observed.names, observed.hints or (), strict=False):
        column = declared.get(name)
        if column is None:
            continue
        for hint, found in sorted(pairs):
            expected = _declared_hint(column, hint)
            if expected != found:
                yield Change(
                    DriftClass.SEMANTIC_HINT, name, expected is not None, expected or "nothing", found, hint=hint)


def _declared_hint(column: Column, hint: str) -> str | None:
    return column.unit if hint == "unit" else column.options.get("format")


# --- types by kind ------------------------------------------------------------------------------------------

_KINDS: Sequence[tuple[str, str]] = (  # first match of the lower-cased name, from its beginning
    (r"(u?int\d*|(big|small|tiny|medium)?int(eger)?|serial|oid)\b", "integer"),
    (r"(json )?null\Z", "null"),
    (r"(jsonb?\Z|json (object|array)|(struct|map|list|large_list|fixed_size_list|list_view|array)\b|_|"
     r"extension<arrow\.json|.*\[\]\Z)", "nested"),
    (r"(numeric|decimal\w*|money)\b", "decimal"),
    (r"(float\w*|double|real|halffloat)\b", "float"),
    (r"bool", "boolean"),
    (r"(timestamptz|(timestamp|time stamp).* with (local )?time zone|timestamp\[\w+, tz=|datetimeoffset)", "instant"),
    (r"(timestamp|datetime)", "timestamp"),
    (r"date(32|64)?(\[|\Z)", "date"),
    (r"(text|string|large_string|varchar|n?char|bpchar|name|character|clob|citext|dictionary<values=string)", "text"),
    (r"json number", "number"),
    (r"json string", "string"),
    (r"json boolean", "boolean"),
)
_HOLDS: Mapping[str, frozenset[str]] = {  # kinds of which a declared kind may hold every value
    "text": frozenset({"text", "string", "other"}),
    "integer": frozenset({"integer", "number"}),
    "decimal": frozenset({"integer", "decimal", "number"}),
    "float": frozenset({"integer", "decimal", "float", "number"}),
    "boolean": frozenset({"boolean"}),
    "date": frozenset({"date", "string"}),
    "timestamp": frozenset({"timestamp", "date", "string", "instant"}),  # an instant, on the clock of the zone declared
    "instant": frozenset({"instant", "string"}),
    "nested": frozenset({"nested", "text", "string", "number", "boolean"}),
}
_NO_INSTANTS = "values without an offset, or none of that type"
_PHYSICAL = {"text": "text", "integer": "bigint", "float": "double precision", "boolean": "boolean", "date": "date",
             "timestamp": "timestamp", "instant": "timestamptz", "nested": "json"}


def kind_of(type_name: str) -> str:
    """The kind of a type, in the words of Arrow, PostgreSQL, SQLAlchemy or JSON; `other` for one nobody declares."""
    lowered = type_name.lower()
    return next((kind for pattern, kind in _KINDS if re.match(pattern, lowered)), "other")


def physical_type_of(type_name: str) -> str | None:
    """The contract type for values of a stated type; None when only the values can tell."""
    numeric = re.match(r"(?:decimal\d*|numeric)\((\d+), ?(\d+)\)", type_name.lower())
    if numeric and int(numeric[1]) <= 38 and int(numeric[2]) <= int(numeric[1]):
        return f"numeric({numeric[1]},{numeric[2]})"
    if type_name == "JSON number":
        return "numeric(38,9)"
    return _PHYSICAL.get(kind_of(type_name)) if "|" not in type_name else None


def _fits(found: str, column: Column) -> bool:
    holds = _HOLDS[kind_of(column.physical_type)]
    if column.is_instant and column.time_zone is not None:
        holds |= {"timestamp", "date"}
    kinds = {kind_of(part) for part in found.split("|")}
    return kinds == {"null"} or not kinds.isdisjoint(holds)
