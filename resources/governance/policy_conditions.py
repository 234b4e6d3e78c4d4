r"""Conditions in CEL (https://github.com/google/cel-spec), with their types checked before they are ever evaluated.

Unlike a condition over events (`resources/runtime/conditions.py`), where something absent just does not match, one
that cannot be evaluated must never pass for "no". The evaluator parses and runs expressions but knows no types:
`runner_size > 3` would fail at the first decision. `check` reads an expression against a table of variables and says
what is wrong and at which column. It accepts the part of CEL that its table below gives a type to, and nothing else: a
condition that passes has been understood whole.

Types: bool, int (64 bit), double, string, and lists of these. There are no decimals: money is given as an integer of
the smallest unit.

| of | accepted |
| --- | --- |
| logic | `&&`, `\|\|`, `!`, `a ? b : c` |
| comparison | `==`, `!=`, `<`, `<=`, `>`, `>=` between equal types; `in` a list |
| arithmetic | `+`, `-`, `*`, `/` between equal numbers, `%` of integers; `+` of strings and of lists |
| functions | `size`, `int`, `double`, `string` |
| of strings | `contains`, `startsWith`, `endsWith`, `matches`, `size` |
| of lists | `all`, `exists`, `exists_one`, `filter`, `map`, `size`, `[index]` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resources.runtime.conditions import evaluator
from resources.runtime.declared import did_you_mean, listed

MAX_LENGTH = 2_000
MAX_DEPTH = 24

BOOL, INT, DOUBLE, STRING = "bool", "int", "double", "string"
_ANY_LIST = "list(?)"  # the empty list, before it meets another

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<double>[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)
    |(?P<int>0x[0-9a-fA-F]+|[0-9]+)
    |(?P<string>[rR]?(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||[<>=!]=|[-+*/%<>!?:.,()\[\]])
    )""",
    re.VERBOSE | re.ASCII,
)
_RESERVED = frozenset(
    "as break const continue else for function if import in let loop package namespace return var void while".split()
)
_FUNCTIONS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "int": ((INT, DOUBLE), INT),  # of text they would depend on what the text says
    "double": ((INT, DOUBLE), DOUBLE),
    "string": ((INT, DOUBLE, STRING, BOOL), STRING),
}
_STRING_METHODS = ("contains", "startsWith", "endsWith", "matches")
_MACROS = ("all", "exists", "exists_one", "filter", "map")
_NEUTRAL: Mapping[str, Any] = {BOOL: False, INT: 0, DOUBLE: 0.0, STRING: ""}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a condition, what was found there, and what is allowed."""

    message: str
    found: str = ""
    allowed: str = ""


class ConditionError(Exception):
    """A condition that could not be evaluated, with the reason."""


def check(expression: str, variables: Mapping[str, str]) -> Problem | None:
    """What is wrong with a condition over `variables` (type by name), or None.

    The condition must be a bool.
    """
    if len(expression) > MAX_LENGTH:
        return Problem("longer than a condition may be", f"{len(expression)} characters", f"at most {MAX_LENGTH}")
    try:
        kind = _Checker(expression, variables).expression_to_the_end()
    except _Wrong as wrong:
        return wrong.problem
    if kind != BOOL:
        return Problem("is no condition", kind, BOOL)
    try:
        compile_condition(expression).holds(context({name: _neutral(kind) for name, kind in variables.items()}))
    except ConditionError as error:
        # Neutral values divide by zero or lie outside a list; anything else would happen with real ones too.
        if not isinstance(error.__cause__, ZeroDivisionError | IndexError):
            return Problem(f"cannot be evaluated: {error}")
    return None


@dataclass(frozen=True)
class Condition:
    """A compiled condition."""

    program: Any

    def holds(self, values: Any) -> bool:
        """Whether it holds of a `context`. Raises ConditionError when it cannot be evaluated to true or false."""
        try:
            result = self.program.execute(values)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the evaluator is no Exception, and must not pass for "no"
            raise ConditionError(_first_line(error)) from error
        if result is True or result is False:
            return result
        raise ConditionError(f"gave {type(result).__name__} instead of true or false")

    @property
    def names(self) -> tuple[str, ...]:
        """Names the condition mentions: variables, and those its macros bind."""
        return tuple(self.program.variables())


def compile_condition(expression: str) -> Condition:
    """Raises ConditionError for text that is no CEL."""
    try:
        return Condition(evaluator().compile(expression))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ConditionError(f"cannot be parsed: {_first_line(error)}") from error


def context(values: Mapping[str, Any]) -> Any:
    """Values by name, converted once for any number of conditions.

    Raises ConditionError for a value that CEL cannot carry, such as an integer of more than 64 bits.
    """
    if too_large := [name for name, value in values.items() if type(value) is int and not -(2**63) <= value < 2**63]:
        raise ConditionError(f"the values cannot be given to a condition: {', '.join(too_large)} exceeds 64 bits")
    try:
        return evaluator().Context(variables=dict(values))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ConditionError(f"the values cannot be given to a condition: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _neutral(kind: str) -> Any:
    return [] if kind.startswith("list(") else _NEUTRAL[kind]


# --- types -----------------------------------------------------------------------------------------------


class _Wrong(Exception):
    def __init__(self, message: str, found: str = "", allowed: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(message, found, allowed)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int


def _tokens(expression: str) -> list[_Token]:
    tokens, position, depth = [], 0, 0
    end = len(expression.rstrip())
    while position < end:
        match = _TOKEN.match(expression, position)
        if match is None:
            column = position + len(expression[position:]) - len(expression[position:].lstrip()) + 1
            raise _Wrong(f"not understood at column {column}", repr(expression[column - 1 : column + 11]))
        kind = match.lastgroup or ""
        text = match.group(kind)
        depth += (text in ("(", "[")) - (text in (")", "]"))
        if depth > MAX_DEPTH:
            raise _Wrong("nested too deeply", f"{depth} levels", f"at most {MAX_DEPTH}")
        tokens.append(_Token(kind, text, match.start(kind) + 1))
        position = match.end()
    return [*tokens, _Token("end", "the end", end + 1)]


class _Checker:
    """Recursive descent over CEL's grammar that yields the type of each part."""

    def __init__(self, expression: str, variables: Mapping[str, str]) -> None:
        self._tokens = _tokens(expression)
        self._at = 0
        self._names = dict(variables)

    def expression_to_the_end(self) -> str:
        kind = self._expression()
        self._expect("the end")
        return kind

    def _expression(self) -> str:
        kind = self._logical("||")
        if not self._accept("?"):
            return kind
        self._require("the condition of ? :", kind, BOOL)
        yes = self._logical("||")
        self._expect(":")
        no = self._expression()
        return self._same("the two sides of :", yes, no)

    def _logical(self, sign: str) -> str:
        kind = self._logical("&&") if sign == "||" else self._relation()
        while self._accept(sign):
            other = self._logical("&&") if sign == "||" else self._relation()
            self._require(sign, kind, BOOL)
            self._require(sign, other, BOOL)
        return kind

    def _relation(self) -> str:
        kind = self._sum()
        while (sign := self._peek.text) in ("==", "!=", "<", "<=", ">", ">=", "in"):
            self._at += 1
            other = self._sum()
            if sign == "in":
                self._require_list("in", other)
                self._same("in", kind, _element(other) or kind)
            else:
                common = self._same(sign, kind, other)
                if sign not in ("==", "!="):
                    self._require(sign, common, INT, DOUBLE, STRING)
            kind = BOOL
        return kind

    def _sum(self) -> str:
        kind = self._product()
        while (sign := self._peek.text) in ("+", "-") and self._peek.kind == "sign":
            self._at += 1
            kind = self._same(sign, kind, self._product())
            if sign == "-" or not kind.startswith("list("):
                self._require(sign, kind, *((INT, DOUBLE, STRING) if sign == "+" else (INT, DOUBLE)))
        return kind

    def _product(self) -> str:
        kind = self._prefixed()
        while (sign := self._peek.text) in ("*", "/", "%") and self._peek.kind == "sign":
            self._at += 1
            kind = self._same(sign, kind, self._prefixed())
            self._require(sign, kind, *((INT,) if sign == "%" else (INT, DOUBLE)))
        return kind

    def _prefixed(self) -> str:
        signs = []
        while self._peek.kind == "sign" and self._peek.text in ("!", "-"):
            signs.append(self._next().text)
        if len(signs) > MAX_DEPTH or len(set(signs)) > 1:
            raise _Wrong(f"signs that mean nothing together before column {self._peek.column}", "".join(signs[:10]))
        kind = self._member()
        if signs:
            self._require(signs[0], kind, *((BOOL,) if signs[0] == "!" else (INT, DOUBLE)))
        return kind

    def _member(self) -> str:
        kind = self._primary()
        while True:
            if self._accept("."):
                kind = self._method(kind)
            elif self._accept("["):
                self._require_list("[ ]", kind)
                self._require("the index", self._expression(), INT)
                self._expect("]")
                kind = _element(kind) or STRING
            else:
                return kind

    def _primary(self) -> str:
        token = self._next()
        match token.kind:
            case "int":
                if int(token.text, 0 if token.text[:2] == "0x" else 10) > 2**63 - 1:
                    raise _Wrong(f"an integer of more than 64 bits at column {token.column}", token.text[:24])
                return INT
            case "double":
                return DOUBLE
            case "string":
                return STRING
            case "name":
                return self._named(token)
        if token.text == "(":
            kind = self._expression()
            self._expect(")")
            return kind
        if token.text == "[":
            return self._list()
        raise _Wrong(f"a value is missing at column {token.column}", token.text, "a variable, a literal, ( or [")

    def _named(self, token: _Token) -> str:
        name = token.text
        if name in ("true", "false"):
            return BOOL
        if self._peek.text == "(" and self._peek.kind == "sign":
            return self._function(name)
        if name in self._names:
            return self._names[name]
        what = "not a name CEL allows" if name in _RESERVED or name == "null" else "unknown variable"
        raise _Wrong(what + did_you_mean(name, self._names), name, listed(sorted(self._names)))

    def _function(self, name: str) -> str:
        self._expect("(")
        if name != "size" and name not in _FUNCTIONS:
            known = ("size", *_FUNCTIONS)
            raise _Wrong("unknown function" + did_you_mean(name, known), f"{name}(", listed(known))
        argument = self._expression()
        self._expect(")")
        if name == "size":
            return self._size(argument)
        allowed, result = _FUNCTIONS[name]
        self._require(name, argument, *allowed)
        return result

    def _method(self, kind: str) -> str:
        token = self._next()
        name = token.text
        if token.kind != "name" or self._peek.text != "(":
            raise _Wrong(f"a value of type {kind} has no fields, at column {token.column}", f".{name}",
                         "a variable's name, or a call")
        if name in _MACROS and kind.startswith("list("):
            return self._macro(name, _element(kind) or STRING)
        known = {STRING: (*_STRING_METHODS, "size")}.get(kind, (*_MACROS, "size") if kind.startswith("list(") else ())
        if name not in known:
            raise _Wrong(f"a value of type {kind} has no such function" + did_you_mean(name, known), f".{name}(",
                         listed(known))
        self._expect("(")
        if name == "size":
            self._expect(")")
            return self._size(kind)
        argument = self._expression()
        self._expect(")")
        self._require(name, argument, STRING)
        return BOOL

    def _macro(self, name: str, element: str) -> str:
        self._expect("(")
        bound = self._next()
        if bound.kind != "name" or bound.text in _RESERVED or bound.text in self._names:
            raise _Wrong(f"{name} needs a name of its own at column {bound.column}", bound.text,
                         "a name that is no variable")
        self._expect(",")
        self._names[bound.text] = element
        body = self._expression()
        del self._names[bound.text]
        self._expect(")")
        if name == "map":
            return f"list({body})"
        self._require(name, body, BOOL)
        return f"list({element})" if name == "filter" else BOOL

    def _list(self) -> str:
        if self._accept("]"):
            return _ANY_LIST
        kind = self._expression()
        while self._accept(","):
            kind = self._same("the items of a list", kind, self._expression())
        self._expect("]")
        return f"list({kind})"

    def _size(self, kind: str) -> str:
        if not kind.startswith("list("):
            self._require("size", kind, STRING)
        return INT

    # Tokens and types

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._peek
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _accept(self, sign: str) -> bool:
        if self._peek.text == sign and self._peek.kind in ("sign", "end"):
            self._next()
            return True
        return False

    def _expect(self, sign: str) -> None:
        token = self._peek
        if not self._accept(sign):
            raise _Wrong(f"not understood at column {token.column}", token.text, sign)

    def _require(self, what: str, kind: str, *allowed: str) -> None:
        if kind not in allowed:
            raise _Wrong(f"wrong type for {what}", kind, " or ".join(allowed))

    def _require_list(self, what: str, kind: str) -> None:
        if not kind.startswith("list("):
            raise _Wrong(f"wrong type for {what}", kind, "a list")

    def _same(self, what: str, one: str, other: str) -> str:
        if one == other or (other == _ANY_LIST and one.startswith("list(")):
            return one
        if one == _ANY_LIST and other.startswith("list("):
            return other
        raise _Wrong(f"different types for {what}", f"{one} and {other}", "equal types")


def _element(kind: str) -> str | None:
    """Type of a list's elements; None for the empty list."""
    return None if kind == _ANY_LIST else kind.removeprefix("list(").removesuffix(")")
