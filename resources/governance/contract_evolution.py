"""Contracts that follow a drift: what the documents of a dataset look like once a change is accepted.

Pure: documents and changes go in, new documents come out; which version they get is the registry's matter. A change
touches nothing but the property it is about, and never tightens a contract.

| class | extraction and raw contract |
| --- | --- |
| `field_added` | an optional property more, `confidential` until reviewed; of one under another name, an alias |
| `field_missing`, `nullability` | the property is no longer required |
| `type_changed` | the property has the new type; bounds, patterns, formats and lists of valid values go |
| `enum_grown` | the new values are valid (raw) |
| `semantic_hint` | the property's unit or format is the source's |
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from resources.governance.contracts import Layer
from resources.governance.drift import Change, DriftClass, kind_of

_LOGICAL = {"text": "string", "integer": "integer", "decimal": "number", "float": "number", "boolean": "boolean",
            "date": "date", "timestamp": "timestamp", "instant": "timestamp", "nested": "object"}


def evolved(
    document: Mapping[str, Any], layer: Layer, changes: Sequence[Change], types: Mapping[str, str], note: str
) -> dict[str, Any]:
    """A contract's document after the changes; its version number is still the old one.

    Args:
        types: contract types of added fields and changed types, by the source's name of the field.
        note: whence the change, for descriptions: `drift 3 of 2026-05-14`.
    """
    result = copy.deepcopy(dict(document))
    properties: list[dict[str, Any]] = result["schema"][0]["properties"]
    for change in changes:
        if change.kind is DriftClass.FIELD_ADDED and not change.declared:
            properties.append(_added(change, types[change.field], [p["name"] for p in properties], note))
            continue
        name = change.declared if change.kind is DriftClass.FIELD_ADDED else change.field
        found = next((p for p in properties if p.get("physicalName", p["name"]) == name), None)
        if found is not None:
            _follow(found, layer, change, types)
    return result


def column_name(source_name: str) -> str:
    """A source's field name as a column name: `DiscountPct` becomes `discount_pct`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", source_name.strip())
    snake = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")[:60]
    return snake if snake[:1].isalpha() else f"c_{snake}"


def _added(change: Change, physical_type: str, taken: Sequence[str], note: str) -> dict[str, Any]:
    name = column_name(change.field)
    while name in taken:
        name += "_2"
    return {
        "name": name,
        "physicalName": change.field,
        "logicalType": _logical(change, physical_type),
        "physicalType": physical_type,
        "classification": "confidential",
        "description": f"{change.field} as the source has it since {note}. To be reviewed: meaning, classification.",
    }


def _logical(change: Change, physical_type: str) -> str:
    listed = re.match(r"json array\Z|(large_|fixed_size_)?list|_|.*\[\]\Z", change.found.lower())
    return "array" if physical_type == "json" and listed else _LOGICAL[kind_of(physical_type)]


def _follow(declared: dict[str, Any], layer: Layer, change: Change, types: Mapping[str, str]) -> None:
    match change.kind:
        case DriftClass.FIELD_ADDED if layer == "extraction":
            custom = declared.setdefault("customProperties", [])
            aliases = next((item for item in custom if item["property"] == "aliases"), None)
            if aliases is None:
                custom.append({"property": "aliases", "value": [change.field]})
            else:
                aliases["value"] = [*aliases["value"], change.field]
        case DriftClass.FIELD_MISSING | DriftClass.NULLABILITY:
            declared.pop("required", None)
            _drop_rules(declared, "nullValues")
        case DriftClass.TYPE_CHANGED:
            declared["physicalType"] = types[change.field]
            declared["logicalType"] = _logical(change, types[change.field])
            declared.pop("logicalTypeOptions", None)
            _drop_rules(declared, "invalidValues")
        case DriftClass.ENUM_GROWN if layer == "raw":
            for rule in declared.get("quality", []):
                values = rule.get("arguments", {}).get("validValues")
                if values is not None:
                    kind = kind_of(declared["physicalType"])
                    values += [int(value) if kind == "integer" else value for value in change.values]
        case DriftClass.SEMANTIC_HINT if change.hint == "format":
            declared.setdefault("logicalTypeOptions", {})["format"] = change.found
        case DriftClass.SEMANTIC_HINT:
            for item in declared.get("customProperties", []):
                if item["property"] == change.hint:
                    item["value"] = change.found


def _drop_rules(declared: dict[str, Any], metric: str) -> None:
    rules = [rule for rule in declared.get("quality", []) if rule.get("metric") != metric]
    declared.pop("quality", None)
    if rules:
        declared["quality"] = rules
