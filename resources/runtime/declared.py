"""From a parsed file to a model, with findings in place of a validation traceback.

`Declared` is the base of every model of a declared document (tenant, pipeline, KPI), the annotated types are
the fields they share, and `read_model` checks a parsed file against a model. Models are strict: text is not
read as a number nor a number as text, because a declaration that needs guessing is a wrong one.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import rfc8785
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from resources.runtime.yaml_source import FieldPath, Finding, YamlSource, shown


class Declared(BaseModel):
    """Base of declared models: unknown keys are refused, values are not converted, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DeclaredDocument(Declared):
    """Base of the model of a whole file."""

    _hash: str = PrivateAttr(default="")

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the file's document; comments and layout do not count.

        Of a model that was not read from a file: of the model's own JSON.
        """
        return self._hash or canonical_hash(self.model_dump(mode="json", by_alias=True))

    def with_hash(self, digest: str) -> Self:
        """The same document, known by the digest of the file it was read from."""
        copy = self.model_copy()
        copy._hash = digest
        return copy


Document = TypeVar("Document", bound=DeclaredDocument)


def canonical_hash(document: Any) -> str:
    """SHA-256 (hex) of a document's canonical JSON (RFC 8785)."""
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


def refusal(message: str, *, found: str = "", allowed: str = "", at: FieldPath = ()) -> PydanticCustomError:
    """Error for a validator to raise; `at` leads from the validated value to the part of it at fault."""
    context = {"message": message, "found": found, "allowed": allowed, "at": at}
    return PydanticCustomError("refused", "{message}", context)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `name`, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names as findings list them."""
    return ", ".join(names) or "none"


# --- the fields that declared documents share -----------------------------------------------------------


def _time_zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        allowed = "a name of the IANA time zone database, e.g. Europe/London"
        raise refusal("unknown time zone", allowed=allowed) from error
    return name


def _cron(expression: str) -> str:
    problem = cron_problem(expression)
    if problem:
        raise refusal(f"not a cron schedule: {problem}", allowed=CRON_ALLOWED)
    return expression


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,39}$")]
"""Name of a tenant, pipeline, source, dbt model or KPI."""

SECRET_REFERENCE = r"secret://[a-z][a-z0-9_-]{0,62}(#[a-z][a-z0-9_]{0,62})?"
"""Pattern of a reference to a field of a secret, see `resources/trust/secrets.py`."""

DatasetId = Annotated[
    # 62 characters: the raw table is `<namespace>__<name>` and PostgreSQL cuts names after 63
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,39}\.[a-z][a-z0-9_]{1,39}$", max_length=62)
]
"""`<namespace>.<name>`."""

ColumnName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
Text = Annotated[str, StringConstraints(pattern=r"\S")]
Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s.]+(\.[^@\s.]+)+$")]
Version = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}$")]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Cron = Annotated[str, AfterValidator(_cron)]
Number = Annotated[Decimal, WithJsonSchema({"type": "number"})]
"""A number of which every declared digit counts."""


class Person(Declared):
    """Who answers for something."""

    name: Text
    email: Email
    role: Literal["owner", "steward"]


CRON_ALLOWED = "minute hour day-of-month month day-of-week, e.g. 0 6 * * *"
_MACROS = frozenset(("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"))
_MONTHS = {name: i for i, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_WEEKDAYS = {name: i for i, name in enumerate("sun mon tue wed thu fri sat".split())}
_CRON_FIELDS: tuple[tuple[str, int, int, Mapping[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _WEEKDAYS),
)
_CRON_TERM = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>[0-9]{1,4}))?\Z", re.ASCII)
_LONGEST_MONTH = {month: 31 for month in range(1, 13)} | {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


class OwnedMetadata(Declared):
    """Identity and owners of a declared thing: one of the persons, at least, is its owner."""

    name: Name
    title: Text
    description: Text
    version: Version
    owners: tuple[Person, ...]

    @field_validator("owners")
    @classmethod
    def _has_owner(cls, owners: tuple[Person, ...]) -> tuple[Person, ...]:
        if not any(person.role == "owner" for person in owners):
            raise refusal("nobody is the owner", allowed="at least one person with role owner")
        return owners


def cron_problem(expression: str) -> str | None:
    """What is wrong with a cron expression, or None.

    Accepts POSIX cron's five fields with steps and names, and the `@daily` family: a subset of what the
    scheduler accepts, without its randomised and last-day extensions.
    """
    if expression in _MACROS:
        return None
    fields = expression.split(" ")
    if len(fields) != 5 or not all(fields):
        return f"{len(expression.split())} fields separated by single spaces, 5 are needed"
    values: list[set[int]] = []
    for text, (name, low, high, names) in zip(fields, _CRON_FIELDS, strict=True):
        chosen: set[int] = set()
        for term in text.split(","):
            numbers = _cron_numbers(term, low, high, names)
            if not numbers:
                return f"{name} '{text}'; it takes {low} to {high}, *, lists, ranges a-b and steps /n"
            chosen |= numbers
        values.append(chosen)
    _, _, days, months, _ = values
    if fields[4] == "*" and min(days) > max(_LONGEST_MONTH[month] for month in months):
        return "no month chosen has such a day, it would never run"
    return None


def _cron_numbers(term: str, low: int, high: int, names: Mapping[str, int]) -> set[int]:
    """Numbers that one term of a list stands for; empty when it is not valid."""
    match = _CRON_TERM.match(term)
    if match is None:
        return set()
    first, last, step = match.group("first", "last", "step")
    if first is not None and step is not None and last is None:
        return set()  # "5/10" means different things to different crons
    numbers = [_cron_number(text, names) for text in (first, last) if text is not None]
    if any(number is None or not low <= number <= high for number in numbers):
        return set()
    start, end = (numbers[0], numbers[-1]) if numbers else (low, high)
    return set(range(start, end + 1, int(step or 1))) if step is None or int(step) else set()


def _cron_number(text: str, names: Mapping[str, int]) -> int | None:
    return names.get(text.lower(), int(text) if text.isdecimal() and len(text) <= 2 else None)


# --- reading a document into a model --------------------------------------------------------------------


def read_model(model: type[Document], source: YamlSource) -> tuple[Document | None, list[Finding]]:
    """Check a parsed file against a model: the model, or every error found with its place."""
    try:
        canonical = rfc8785.dumps(source.document)
    except rfc8785.CanonicalizationError as error:
        return None, [source.finding((), f"the document has no canonical JSON: {error}")]
    try:
        document = model.model_validate_json(canonical)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        return None, [_finding(model, source, details) for details in errors if not _is_echo(details)]
    return document.with_hash(hashlib.sha256(canonical).hexdigest()), []


def _is_echo(error: ErrorDetails) -> bool:
    """Whether pydantic calls a list too short only because it left out the items that are wrong themselves."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


_WORDS = {  # pydantic's error type -> what is allowed
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text; quote it",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "bool_type": "true or false",
    "date_type": "a date, YYYY-MM-DD",
    "date_parsing": "a date, YYYY-MM-DD",
    "date_from_datetime_parsing": "a date, YYYY-MM-DD",
    "date_from_datetime_inexact": "a date, YYYY-MM-DD",
}
_LIMITS = {  # pydantic's error type -> the limit's name in its context, and in words
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "too_short": ("min_length", "a list not shorter than"),
    "string_too_long": ("max_length", "characters, at most"),
}


def _finding(model: type[BaseModel], source: YamlSource, error: ErrorDetails) -> Finding:
    """One validation error in the words of a finding."""
    kind, context = error["type"], error.get("ctx", {})
    path = _path_in(source.document, error["loc"], last_is_absent=kind == "missing")
    if kind == "missing":
        return source.finding(path, "required, but missing")
    if kind == "extra_forbidden":
        known = sorted(_known_keys(model, error["loc"]))
        message = "unknown key" + did_you_mean(str(path[-1]), known)
        return source.finding(path, message, allowed=listed(known))
    if kind == "refused":
        path += tuple(context["at"])
        found = context["found"] or shown(_value_at(source.document, path))
        return source.finding(path, context["message"], found=found, allowed=context["allowed"])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        path += (context["discriminator"].strip("'"),)
        if kind == "union_tag_not_found":
            return source.finding(path, "required, but missing")
        found = shown(_value_at(source.document, path))
        return source.finding(path, "not one of the choices", found=found, allowed=context["expected_tags"])
    allowed, message = _WORDS.get(kind, ""), "has the wrong type"
    if kind == "literal_error":
        allowed, message = context["expected"], "not one of the choices"
    elif kind == "string_pattern_mismatch":
        allowed, message = f"text matching {context['pattern']}", "has the wrong form"
    elif kind in _LIMITS:
        name, words = _LIMITS[kind]
        allowed, message = f"{words} {context[name]}", "out of bounds"
    elif not allowed:
        message = error["msg"][:1].lower() + error["msg"][1:]
    return source.finding(path, message, found=shown(_value_at(source.document, path)), allowed=allowed)


def _value_at(document: Any, path: FieldPath) -> Any:
    """The value as the file has it: the model is given canonical JSON, where 1.0 is 1."""
    for step in path:
        if isinstance(document, dict) and step not in document:
            return None
        document = document[step]
    return document


def _path_in(document: Any, location: tuple[int | str, ...], *, last_is_absent: bool) -> FieldPath:
    """Pydantic's location without the steps that are no part of the file (names of union members)."""
    path: FieldPath = ()
    value = document
    for index, step in enumerate(location):
        if isinstance(value, dict) and step in value or isinstance(value, list) and isinstance(step, int):
            path, value = (*path, step), value[step]
        elif last_is_absent and index == len(location) - 1:
            path = (*path, step)
    return path


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Keys that the model takes where `location` (which ends with an unknown key) points."""
    candidates = {model}
    for step in location[:-1]:
        below = {
            nested
            for candidate in candidates
            for name, info in candidate.model_fields.items()
            if (info.alias or name) == step
            for nested in _models_in(info.annotation)
        }
        tagged = {
            candidate
            for candidate in candidates
            if any(step in get_args(info.annotation) for info in candidate.model_fields.values())
        }
        candidates = below or tagged or candidates  # a list index leads to the same candidates
    return {info.alias or name for candidate in candidates for name, info in candidate.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
