"""Conditions over events: CEL, compiled once, evaluated over a small mapping of values.

Language: https://cel.dev. CEL has no decimals and converts nothing silently: KPI values are passed as doubles, so write
`value > 60.0` and compare money exactly through the scaled integers (`value_scaled`: the value times 1,000,000).

A condition over something that is not there (no previous value, too short a history) does not hold; `Outcome.reason`
says what was missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from typing import Any

FUNCTIONS = ("size", "startsWith", "endsWith", "contains", "matches", "double", "int", "string", "abs", "timestamp",
             "duration", "getFullYear", "getMonth", "getDayOfMonth", "getDayOfWeek", "getHours")
"""Functions a condition may call, besides operators, `has` and the macros `all`, `exists`, `exists_one`, `map`,
`filter`."""

_MACRO_NAME = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")
_MAX_LENGTH = 2_000


@dataclass(frozen=True)
class Outcome:
    """Whether a condition holds; when it could not be decided, `holds` is False and `reason` says why.

    `missing` is True when the reason is that a value is not there, which is no error of the condition.
    """

    holds: bool
    reason: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Condition:
    """A compiled condition. `variables` are the names it reads."""

    expression: str
    variables: frozenset[str]
    functions: frozenset[str]
    program: Any = field(repr=False, compare=False)

    def evaluate(self, values: Mapping[str, Any]) -> Outcome:
        """Whether it holds for these values; never raises."""
        context: dict[str, Any] = {name: values.get(name) for name in self.variables}
        if "abs" in self.functions:
            context["abs"] = abs
        try:
            found = self.program.execute(context)
        except Exception as error:  # noqa: BLE001 - a condition must not stop the events behind this one
            absent = sorted(name for name in self.variables if values.get(name) is None)
            if absent:
                return Outcome(False, f"there is no {', no '.join(absent)}", missing=True)
            if isinstance(error, KeyError):
                return Outcome(False, f"there is no {error.args[0]}", missing=True)
            return Outcome(False, f"cannot be decided: {_first_line(error)}")
        if not isinstance(found, bool):
            return Outcome(False, f"is no condition: its value is {found!r}")
        return _HOLDS if found else _HOLDS_NOT


_HOLDS, _HOLDS_NOT = Outcome(True), Outcome(False)


def compile_condition(expression: str) -> Condition:
    """Raises ValueError for a text that is no CEL expression, or calls what it may not."""
    if len(expression) > _MAX_LENGTH:
        raise ValueError(f"{len(expression)} characters long, allowed are {_MAX_LENGTH}")
    program = _program(expression)
    own = set(_MACRO_NAME.findall(expression))
    functions = frozenset(name for name in program.functions() if name[:1] not in "_@!-")
    unknown = sorted(functions - set(FUNCTIONS))
    if unknown:
        raise ValueError(f"calls {', '.join(unknown)}; allowed are {', '.join(FUNCTIONS)}")
    return Condition(expression, frozenset(program.variables()) - own, functions, program)


def problem(expression: str, known: Mapping[str, Any]) -> str | None:
    """What is wrong with a condition over variables of these names and example values; None when nothing is."""
    try:
        condition = compile_condition(expression)
    except ValueError as error:
        return _first_line(error)
    unknown = sorted(condition.variables - set(known))
    if unknown:
        return f"reads {', '.join(unknown)}, which is not there"
    outcome = condition.evaluate(known)
    return outcome.reason if outcome.reason and not outcome.missing else None


@lru_cache(maxsize=4_096)
def _program(expression: str) -> Any:
    return evaluator().compile(expression)


@lru_cache(maxsize=1)
def evaluator() -> Any:
    """The library's extension module by itself: the package also imports its own command line, half a second of it."""
    import importlib.util

    package = importlib.util.find_spec("cel")
    assert package is not None and package.submodule_search_locations
    if "cel.cel" in sys.modules:
        return sys.modules["cel.cel"]
    finder = FileFinder(package.submodule_search_locations[0], (ExtensionFileLoader, EXTENSION_SUFFIXES))
    spec = finder.find_spec("cel")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split("CEL does not coerce")[0].strip()
