"""Text templates that see data and nothing else: Jinja2, narrowed until it can only fill in.

Jinja2's own sandbox keeps templates away from Python's internals; it does not keep them from calling methods, looping
without end or filling the memory (https://jinja.palletsprojects.com/en/stable/sandbox/#security-considerations). Here
a name with a dot is a key of a mapping, never an attribute; nothing is called; filters are a short list, none of which
can multiply text; there is no `set`, `with`, macro, import or block; loops nest three deep and have, together, a budget
of iterations; output is capped; a name that is not there is an error and not an empty text.
"""

from __future__ import annotations

import contextvars
import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

MAX_OUTPUT = 64 * 1024
"""Characters one text may render to."""
MAX_ITERATIONS = 10_000
"""Iterations of all loops of one text together."""
MAX_LOOP_DEPTH = 3
MAX_SOURCE = 32 * 1024

FILTERS = ("abs", "default", "escape", "first", "float", "int", "join", "last", "length", "lower", "number", "percent",
           "round", "sort", "title", "tojson", "trim", "truncate", "upper")
"""Filters a template may use; `number(digits)` and `percent(digits)` write decimal strings for people."""
TESTS = ("defined", "undefined", "none", "number", "string", "mapping", "sequence", "in", "eq", "ne", "lt", "le", "gt",
         "ge", "even", "odd", "divisibleby")

_budget: contextvars.ContextVar[list[int]] = contextvars.ContextVar("iterations_left")
_BOUNDED = "_bounded"


class Refused(ValueError):
    """What a template may not do, or could not do with the data it was given; `line` counts from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


def problem(source: str) -> Refused | None:
    """Why a text cannot be used as a template, without rendering it; None when it can."""
    try:
        _parsed(source)
    except Refused as refused:
        return refused
    return None


def names(source: str) -> set[str]:
    """Top-level names a template reads. Raises Refused for a text that is no template."""
    from jinja2 import meta

    return meta.find_undeclared_variables(_parsed(source))


def render(source: str, data: Mapping[str, Any]) -> str:
    """The text with `data` filled in; the same text and data give the same characters.

    Args:
        data: JSON-like values only: mappings, lists, texts, numbers, booleans, None.

    Raises:
        Refused: for a forbidden construct, a missing name, too many iterations, too long an output.
    """
    from jinja2 import TemplateError

    template = _compiled(source)
    token = _budget.set([MAX_ITERATIONS])
    parts: list[str] = []
    length = 0
    try:
        for part in template.generate(data):
            length += len(part)
            if length > MAX_OUTPUT:
                raise Refused(f"the text is longer than {MAX_OUTPUT} characters")
            parts.append(part)
    except TemplateError as error:
        raise Refused(str(error) or type(error).__name__, getattr(error, "lineno", None) or 1) from error
    except (TypeError, ValueError, ArithmeticError, KeyError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{type(error).__name__}: {error}") from error
    finally:
        _budget.reset(token)
    return "".join(parts)


def render_all(body: Any, data: Mapping[str, Any]) -> Any:
    """A JSON-like structure with every text in it rendered; keys stay as they are."""
    if isinstance(body, str):
        return render(body, data)
    if isinstance(body, Mapping):
        return {key: render_all(value, data) for key, value in body.items()}
    if isinstance(body, list | tuple):
        return [render_all(value, data) for value in body]
    return body


def texts(body: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every text in a JSON-like structure, with the way to it."""
    if isinstance(body, str):
        yield path, body
    elif isinstance(body, Mapping):
        for key, value in body.items():
            yield from texts(value, (*path, key))
    elif isinstance(body, list | tuple):
        for index, value in enumerate(body):
            yield from texts(value, (*path, index))


@lru_cache(maxsize=1_024)
def _compiled(source: str) -> Any:
    return _environment().from_string(_parsed(source))


def _parsed(source: str) -> Any:
    """The syntax tree of a template, checked, with every loop on the budget."""
    from jinja2 import TemplateSyntaxError

    if len(source) > MAX_SOURCE:
        raise Refused(f"the template is {len(source)} characters long, allowed are {MAX_SOURCE}")
    try:
        tree = _environment().parse(source)
        _check(tree, 0)
        return tree
    except TemplateSyntaxError as error:
        raise Refused(error.message or "not a template", error.lineno) from error
    except RecursionError as error:
        raise Refused("the template is nested too deeply") from error


def _check(node: Any, depth: int) -> None:
    """Refuse what is not allowed, and put every loop on the budget."""
    from jinja2 import nodes

    kind = type(node).__name__
    if kind not in _ALLOWED_NODES:
        raise Refused(f"{_WORDS.get(kind, kind.lower())} is not allowed in a template", getattr(node, "lineno", 1) or 1)
    if isinstance(node, nodes.Filter) and node.name not in FILTERS:
        raise Refused(f"no filter {node.name!r}; allowed are {', '.join(FILTERS)}", node.lineno)
    if isinstance(node, nodes.Test) and node.name not in TESTS:
        raise Refused(f"no test {node.name!r}; allowed are {', '.join(TESTS)}", node.lineno)
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        raise Refused(f"the name {node.attr!r} begins with an underscore", node.lineno)
    if isinstance(node, nodes.For):
        if depth == MAX_LOOP_DEPTH:
            raise Refused(f"loops nest deeper than {MAX_LOOP_DEPTH}", node.lineno)
        if node.recursive:
            raise Refused("a recursive loop is not allowed in a template", node.lineno)
        depth += 1
    for child in list(node.iter_child_nodes()):
        _check(child, depth)
    if isinstance(node, nodes.For):
        node.iter = nodes.Filter(node.iter, _BOUNDED, [], [], None, None, lineno=node.lineno)


_ALLOWED_NODES = frozenset((
    "Template", "Output", "TemplateData", "Name", "Const", "List", "Tuple", "Dict", "Pair", "Getattr", "Getitem",
    "Filter", "Keyword", "Test", "Compare", "Operand", "And", "Or", "Not", "Neg", "Pos", "Add", "Sub", "Mul", "Div",
    "FloorDiv", "Mod", "Concat", "CondExpr", "If", "For", "Slice",
))  # fmt: skip
_WORDS = {"Call": "a call", "Assign": "set", "AssignBlock": "set", "Pow": "**", "CallBlock": "a call block"}


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class DataOnly(ImmutableSandboxedEnvironment):
        """Dots and brackets look up keys; numbers alone are multiplied or divided."""

        intercepted_binops = frozenset(("*", "%", "/", "//", "+", "-"))

        def getattr(self, obj: Any, attribute: str) -> Any:
            return self.getitem(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            try:
                if isinstance(obj, Mapping) and isinstance(argument, str | int):
                    return obj[argument]
                if isinstance(obj, list | tuple | str) and isinstance(argument, int | slice):
                    return obj[argument]
            except (KeyError, IndexError):
                pass
            return self.undefined(obj=obj, name=argument)

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            raise SecurityError("a call is not allowed in a template")

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for operand in (left, right):
                if isinstance(operand, bool) or not isinstance(operand, int | float | Decimal):
                    raise SecurityError(f"{operator} takes numbers, found {type(operand).__name__}")
            return super().call_binop(context, operator, left, right)

    environment = DataOnly(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, cache_size=0)
    own = {"number": _number, "percent": _percent, "tojson": _json, _BOUNDED: _bounded}
    environment.filters = {name: environment.filters[name] for name in FILTERS if name in environment.filters} | own
    environment.tests = {name: environment.tests[name] for name in TESTS if name in environment.tests}
    environment.globals.clear()
    return environment


def _bounded(items: Iterable[Any]) -> list[Any]:
    """The items of a loop, taken from the budget of the text that is being rendered."""
    left = _budget.get()
    taken = list(items)
    left[0] -= len(taken)
    if left[0] < 0:
        raise Refused(f"the loops of the text take more than {MAX_ITERATIONS} iterations")
    return taken


def _decimal(value: Any) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise Refused(f"{value!r} is not a number") from None
    if not number.is_finite() or abs(number.adjusted()) > 60:
        raise Refused(f"{value!r} is not a number that can be written out")
    return number


def _rounded(number: Decimal, digits: int) -> str:
    if not 0 <= digits <= 20:
        raise Refused(f"{digits} digits after the point, allowed are 0 to 20")
    return f"{number.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN):,f}"


def _number(value: Any, digits: int = 2) -> str:
    """A number for people: thousands separated, rounded half to even, exactly."""
    return "-" if value is None else _rounded(_decimal(value), digits)


def _percent(value: Any, digits: int = 1) -> str:
    """A ratio as a percentage."""
    return "-" if value is None else f"{_rounded(_decimal(value) * 100, digits)}%"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
