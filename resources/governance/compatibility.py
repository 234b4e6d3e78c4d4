"""Compatibility of two versions of a contract, decided by the contracts alone: no database, no files.

Data is written under one version and read under another. *Backward*: who reads by the new version can read what was
written under the old one. *Forward*: who reads by the old version can read what is written under the new one. *Full*:
both. A change that is not backward breaks producers, who still write the old version; one that is not forward breaks
consumers, who still read by the old one.

Every rule is one question, `reads(reader, writer)`, asked twice with the sides swapped; so swapping two versions swaps
backward and forward. The rules in words, and where and why they differ from Avro's: docs/contracts.md.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from resources.governance.contracts import CLASSIFICATIONS, Column, Contract, Rule
from resources.governance.modes import Mode
from resources.runtime.yaml_source import shown


@dataclass(frozen=True)
class Change:
    """One difference between two versions.

    Attributes:
        kind: what differs, `noun.verb` or the name of the aspect: `field.added`, `field.removed`, `field.renamed`,
            `type`, `required`, `values`, `key`, `classification`, `rule.added`, ...
        field: the column, empty for the whole dataset.
        message: the difference in words.
        breaks_backward: the new version cannot read what was written under the old one (producers must move first).
        breaks_forward: the old version cannot read what is written under the new one (consumers must move first).
    """

    kind: str
    field: str
    message: str
    breaks_backward: bool = False
    breaks_forward: bool = False

    @property
    def breaks(self) -> str:
        """Whom it breaks: `producers`, `consumers`, both, or nobody (empty)."""
        sides = (("producers", self.breaks_backward), ("consumers", self.breaks_forward))
        return " and ".join(side for side, broken in sides if broken)


@dataclass(frozen=True)
class Comparison:
    """All differences between two versions."""

    changes: tuple[Change, ...]

    @property
    def backward(self) -> bool:
        return not any(change.breaks_backward for change in self.changes)

    @property
    def forward(self) -> bool:
        return not any(change.breaks_forward for change in self.changes)

    @property
    def level(self) -> Mode:
        """The strongest of full, backward, forward and none that holds."""
        if self.backward:
            return Mode.FULL if self.forward else Mode.BACKWARD
        return Mode.FORWARD if self.forward else Mode.NONE

    def satisfies(self, mode: Mode) -> bool:
        return (self.backward or not mode.backward) and (self.forward or not mode.forward)

    def breaking(self, mode: Mode) -> tuple[Change, ...]:
        """The changes that keep it from satisfying a mode."""
        return tuple(
            change for change in self.changes
            if mode.backward and change.breaks_backward or mode.forward and change.breaks_forward
        )


@dataclass(frozen=True)
class Verdict:
    """A candidate held against registered versions in one mode.

    Attributes:
        comparisons: (version, comparison) of each version it was held against, oldest first; empty for a first version.
    """

    mode: Mode
    comparisons: tuple[tuple[str, Comparison], ...]

    @property
    def compatible(self) -> bool:
        return all(comparison.satisfies(self.mode) for _, comparison in self.comparisons)

    @property
    def breaking(self) -> tuple[tuple[str, Change], ...]:
        """(version, change) of everything that breaks the mode."""
        return tuple(
            (version, change) for version, comparison in self.comparisons for change in comparison.breaking(self.mode)
        )


def judge(candidate: Contract, versions: Sequence[Contract], mode: Mode) -> Verdict:
    """Hold a candidate against the last of `versions` (oldest first), or against all when the mode is transitive."""
    against = versions if mode.transitive else versions[-1:]
    return Verdict(mode, tuple((version.version, compare(version, candidate)) for version in against))


def compare(old: Contract, new: Contract) -> Comparison:
    """All differences between two versions of one dataset at one layer."""
    return Comparison((*_fields(old, new), *_key(old, new), *_rules(old, new), *_about(old, new)))


def next_version(version: str, comparison: Comparison, mode: Mode) -> str:
    """The version that a change of `version` deserves: major when it breaks the mode, patch for words alone."""
    major, minor, patch = version_key(version)
    if not comparison.satisfies(mode):
        return f"{major + 1}.0.0"
    if any(change.kind not in _WORDS for change in comparison.changes):
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"


def version_key(version: str) -> tuple[int, int, int]:
    """A semantic version as numbers, to be ordered by."""
    major, minor, patch = (int(part) for part in version.split("."))
    return major, minor, patch


# --- fields -----------------------------------------------------------------------------------------------

_SQL_LAYERS = ("gold", "activation")


def _fields(old: Contract, new: Contract) -> Iterator[Change]:
    gone = [column for column in old.columns if new.column(column.name) is None]
    come = [column for column in new.columns if old.column(column.name) is None]
    renamed = {
        column.name: successor for column in gone for successor in come if successor.source_name == column.source_name
    }
    successors = {column.name for column in renamed.values()}
    for column in gone:
        if column.name in renamed:
            message = f"{column.name} is now called {renamed[column.name].name}"
            yield Change("field.renamed", column.name, message, True, True)
        else:
            broken = _needed(column, old)
            yield Change("field.removed", column.name, f"{_described(column)} was removed", breaks_forward=broken)
    for column in come:
        if column.name not in successors:
            broken = _needed(column, new)
            yield Change("field.added", column.name, f"{_described(column)} was added", breaks_backward=broken)
    for column in old.columns:
        successor = new.column(column.name) or renamed.get(column.name)
        if successor is not None:
            yield from _aspects(column, successor, old.layer)
    names = [column.name for column in old.columns if new.column(column.name)]
    order = [column.name for column in new.columns if old.column(column.name)]
    if names != order:
        yield Change("order", "", f"fields come in another order: {', '.join(order)}")


def _needed(column: Column, reader: Contract) -> bool:
    """Whether a reader cannot do without a field that the data lacks.

    An optional one reads as null, one with a default as that. But consumers of GDPs and publications name their columns
    in SQL, where a column that is not there is an error.
    """
    return column.required and column.default is None or reader.layer in _SQL_LAYERS


def _described(column: Column) -> str:
    return f"{'required' if column.required else 'optional'} {column.name} ({column.physical_type})"


# --- aspects of a field -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Aspect:
    """One thing a column declares.

    Attributes:
        value: what the column declares, to be compared and shown.
        reads: whether data of the writer's column can be read by the reader's.
        layers: where it matters to readers; elsewhere a difference is only noted.
    """

    value: Callable[[Column], Any]
    reads: Callable[[Column, Column], bool]
    layers: tuple[str, ...] = ("extraction", "raw", "gold", "activation")


def _option(name: str) -> Callable[[Column], Any]:
    return lambda column: column.options.get(name)


def _aspects(old: Column, new: Column, layer: str) -> Iterator[Change]:
    for kind, aspect in _ASPECTS.items():
        before, after = aspect.value(old), aspect.value(new)
        if before == after:
            continue
        matters = layer in aspect.layers
        yield Change(
            kind, new.name, f"{new.name}: {kind} was {_word(before)}, is {_word(after)}",
            breaks_backward=matters and not aspect.reads(new, old),
            breaks_forward=matters and not aspect.reads(old, new),
        )


def _word(value: Any) -> str:
    return "not declared" if value is None else value if isinstance(value, str) else shown(value)


_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)\Z")
_INTEGERS = ("smallint", "integer", "bigint")
_DIGITS = {"smallint": 5, "integer": 10, "bigint": 19}
_WIDENINGS = {("smallint", "double precision"), ("integer", "double precision"), ("date", "timestamp")}


def widens(narrow: str, wide: str) -> bool:
    """Whether every value of one physical type is exactly a value of another.

    A bigint is not: a double precision number holds 53 bits of it.
    """
    if narrow == wide or (narrow, wide) in _WIDENINGS:
        return True
    if narrow in _INTEGERS and wide in _INTEGERS:
        return _INTEGERS.index(narrow) < _INTEGERS.index(wide)
    if wide == "numeric":
        return narrow in _INTEGERS or _NUMERIC.match(narrow) is not None
    into = _NUMERIC.match(wide)
    if into is None:
        return False
    precision, scale = int(into[1]), int(into[2])
    if narrow in _INTEGERS:
        return precision - scale >= _DIGITS[narrow]
    of = _NUMERIC.match(narrow)
    return of is not None and scale >= int(of[2]) and precision - scale >= int(of[1]) - int(of[2])


def _values_read(reader: Column, writer: Column) -> bool:
    if reader.valid_values is None:
        return True
    return writer.valid_values is not None and set(writer.valid_values) <= set(reader.valid_values)


def _bound_read(names: tuple[str, str], sign: int) -> Callable[[Column, Column], bool]:
    """Whether the reader's bound is not the tighter one.

    `names`: the inclusive and the exclusive option, of which a column's tighter one counts; `sign` 1: lower, -1: upper.
    """

    def tightest(column: Column) -> tuple[Any, bool] | None:
        declared = [(_moment(column.options[name]), name == names[1]) for name in names if name in column.options]
        if len(declared) == 2 and declared[0][0] != declared[1][0]:
            return max(declared) if sign > 0 else min(declared)
        return declared[-1] if declared else None

    def reads(reader: Column, writer: Column) -> bool:
        ours, theirs = tightest(reader), tightest(writer)
        if ours is None:
            return True
        if theirs is None:
            return False
        try:
            if ours[0] == theirs[0]:
                return theirs[1] or not ours[1]
            return theirs[0] > ours[0] if sign > 0 else theirs[0] < ours[0]
        except TypeError:  # a date against a number: the types differ, which is a change of its own
            return False

    return reads


def _length_read(name: str, sign: int) -> Callable[[Column, Column], bool]:
    def reads(reader: Column, writer: Column) -> bool:
        ours, theirs = reader.options.get(name), writer.options.get(name)
        return ours is None or theirs is not None and sign * theirs >= sign * ours

    return reads


def _moment(value: Any) -> Any:
    """A date as the timestamp it widens to."""
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return dt.datetime(value.year, value.month, value.day)
    return value


def _pattern_read(reader: Column, writer: Column) -> bool:
    """Whether one pattern matches less than another is not decidable in general: a different one may."""
    pattern = reader.options.get("pattern")
    return pattern is None or pattern == writer.options.get("pattern")


def _rank(classification: str) -> int:
    return CLASSIFICATIONS.index(classification)


_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_ASPECTS: Mapping[str, _Aspect] = {
    "type": _Aspect(
        lambda c: c.physical_type, lambda reader, writer: widens(writer.physical_type, reader.physical_type)
    ),
    "required": _Aspect(
        lambda c: c.required,
        lambda reader, writer: writer.required or not reader.required or reader.default is not None,
    ),
    "default": _Aspect(lambda c: c.default, lambda reader, writer: True),
    "unique": _Aspect(lambda c: c.unique, lambda reader, writer: writer.unique or not reader.unique),
    "classification": _Aspect(
        # who handles data as internal must not be handed confidential data
        lambda c: c.classification, lambda reader, writer: _rank(reader.classification) >= _rank(writer.classification)
    ),
    "unit": _Aspect(lambda c: c.unit, lambda reader, writer: reader.unit in (None, writer.unit)),
    "values": _Aspect(lambda c: c.valid_values, _values_read),
    "minimum": _Aspect(_option("minimum"), _bound_read(_LOWER, 1)),
    "exclusiveMinimum": _Aspect(_option("exclusiveMinimum"), _bound_read(_LOWER, 1)),
    "maximum": _Aspect(_option("maximum"), _bound_read(_UPPER, -1)),
    "exclusiveMaximum": _Aspect(_option("exclusiveMaximum"), _bound_read(_UPPER, -1)),
    "minLength": _Aspect(_option("minLength"), _length_read("minLength", 1)),
    "maxLength": _Aspect(_option("maxLength"), _length_read("maxLength", -1)),
    "pattern": _Aspect(_option("pattern"), _pattern_read),
    # how a field is called and written matters where it is read from the source
    "physicalName": _Aspect(lambda c: c.source_name, lambda reader, writer: False, ("extraction",)),
    "format": _Aspect(_option("format"), lambda reader, writer: False, ("extraction",)),
    "defaultTimezone": _Aspect(_option("defaultTimezone"), lambda reader, writer: False, ("extraction",)),
    "description": _Aspect(lambda c: c.description, lambda reader, writer: True),
}


# --- the whole dataset ------------------------------------------------------------------------------------

_WORDS = ("description", "title", "owner", "steward", "status", "retention", "compatibility", "deprecationWindow")


def _key(old: Contract, new: Contract) -> Iterator[Change]:
    """Rows are told apart by the key: with another one they are other rows, to every reader."""
    if set(old.primary_key) != set(new.primary_key):
        names = [", ".join(contract.primary_key) or "none" for contract in (old, new)]
        yield Change("key", "", f"the key was {names[0]}, is {names[1]}", True, True)


def _rules(old: Contract, new: Contract) -> Iterator[Change]:
    before = [replace(rule, description="") for rule in old.rules]
    after = [replace(rule, description="") for rule in new.rules]
    for rule in before:
        if rule not in after:
            broken = not any(_implies(kept, rule) for kept in after)
            yield Change("rule.removed", ", ".join(rule.columns), f"the rule {_rule_text(rule)} was removed",
                         breaks_forward=broken)
    for rule in after:
        if rule not in before:
            broken = not any(_implies(kept, rule) for kept in before)
            yield Change("rule.added", ", ".join(rule.columns), f"the rule {_rule_text(rule)} was added",
                         breaks_backward=broken)


def _rule_text(rule: Rule) -> str:
    bounds = " and ".join(f"{bound:g}" for bound in rule.bounds)
    of = f" of {', '.join(rule.columns)}" if rule.columns else ""
    return f"{rule.metric}{of} {rule.operator} {bounds} {rule.unit}"


def _implies(kept: Rule, wanted: Rule) -> bool:
    """Whether data that keeps one rule keeps the other."""
    if kept == wanted:
        return True
    if replace(kept, operator="", bounds=()) != replace(wanted, operator="", bounds=()):
        return False
    inner, outer = _interval(kept), _interval(wanted)
    return inner is not None and outer is not None and outer[0] <= inner[0] and inner[1] <= outer[1]


def _interval(rule: Rule) -> tuple[tuple[float, int], tuple[float, int]] | None:
    """What a count may be, from and to; the second number is 1 just above the bound, -1 just below, 0 at it."""
    low, high, infinity = rule.bounds[0], rule.bounds[-1], float("inf")
    return {
        "mustBe": ((low, 0), (low, 0)),
        "mustBeGreaterThan": ((low, 1), (infinity, 0)),
        "mustBeGreaterOrEqualTo": ((low, 0), (infinity, 0)),
        "mustBeLessThan": ((-infinity, 0), (low, -1)),
        "mustBeLessOrEqualTo": ((-infinity, 0), (low, 0)),
        "mustBeBetween": ((low, 0), (high, 0)),
    }.get(rule.operator)


def _about(old: Contract, new: Contract) -> Iterator[Change]:
    """What the contract says of itself: noted, no reader's business."""
    for kind, attribute in (("title", "title"), ("description", "description"), ("status", "status"),
                            ("owner", "owner"), ("steward", "steward"), ("retention", "retention_days"),
                            ("compatibility", "mode"), ("deprecationWindow", "deprecation_days")):
        before, after = getattr(old, attribute), getattr(new, attribute)
        if before != after:
            yield Change(kind, "", f"{kind} was {_word(before)}, is {_word(after)}")
