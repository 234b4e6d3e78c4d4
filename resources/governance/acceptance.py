"""What of a raw contract decides whether a record is accepted, and how two versions differ in it.

A new version may change words, owners or the rules about all rows together: none of that moves a record between
accepted and quarantined. What does is columns, their types, and the rules that single rows can break.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resources.governance.contracts import Column, Contract
from resources.runtime.declared import canonical_hash

_LOWEST, _HIGHEST = ("minimum", "exclusiveMinimum", "minLength"), ("maximum", "exclusiveMaximum", "maxLength")


def digest(contract: Contract) -> str:
    """SHA-256 (hex) of what decides acceptance: equal digests split every batch alike."""
    return canonical_hash([
        {"name": column.name, "type": column.physical_type, "required": column.required,
         "options": {name: str(value) for name, value in _rules(column).items()},
         "valid_values": column.valid_values and [str(value) for value in column.valid_values]}
        for column in sorted(contract.columns, key=lambda column: column.name)
    ])


def accepts_all_of(new: Contract, old: Contract) -> bool:
    """Whether every record that `old` accepts is sure to be accepted by `new`, whatever is in it.

    Only what can be seen without looking at records counts: False says that some may be refused.
    """
    before = {column.name: column for column in old.columns}
    return all(
        _is_free(column) if column.name not in before else _accepts_all_of(column, before[column.name])
        for column in new.columns
    )


def _accepts_all_of(new: Column, old: Column) -> bool:
    if new.physical_type != old.physical_type or (new.required and not old.required):
        return False
    if new.valid_values is not None and not set(old.valid_values or ()) <= set(new.valid_values):
        return False
    if new.valid_values is not None and old.valid_values is None:
        return False
    rules, earlier = _rules(new), _rules(old)
    return all(_is_implied(name, bound, earlier) for name, bound in rules.items())


def _is_implied(name: str, bound: Any, earlier: Mapping[str, Any]) -> bool:
    """Whether a bound holds wherever the same one did before, at least as tight."""
    if name not in earlier:
        return False
    if name in _LOWEST:
        return bool(earlier[name] >= bound)
    return bool(earlier[name] <= bound) if name in _HIGHEST else bool(earlier[name] == bound)


def _is_free(column: Column) -> bool:
    return not column.required and column.valid_values is None and not _rules(column)


def _rules(column: Column) -> dict[str, Any]:
    return {name: value for name, value in column.options.items() if name != "format" and value is not None}
