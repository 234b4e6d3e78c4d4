"""What conditions read of an event: numbers, dates and texts, each worked out when it is first asked for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from resources.action.model import SeriesFacts, Signal

HISTORY_NAMES = frozenset((
    "prior", "change", "change_ratio", "mean", "deviation", "observations", "expected", "score", "days_since_prior",
    "prior_scaled",
))  # fmt: skip
"""Names that need more of a series than the event tells."""

_SCALE = 1_000_000
_NUMBERS = ("value", "previous", "prior", "change", "restatement", "change_ratio", "mean", "deviation", "expected",
            "score")


class Values(Mapping[str, Any]):
    """Values by the names that conditions read, of one event with its history."""

    def __init__(self, signal: Signal, facts: SeriesFacts) -> None:
        self.signal, self.facts = signal, facts
        self._known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        try:
            return self._known[name]
        except KeyError:
            value = self._known[name] = _READERS[name](self)
            return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value; the default for a name that no event has."""
        known = self._known
        return known[name] if name in known else self[name] if name in _READERS else default

    def __iter__(self) -> Iterator[str]:
        return iter(_READERS)

    def __len__(self) -> int:
        return len(_READERS)

    def of(self, parameters: Mapping[str, Any]) -> Values:
        """The same for a rule with these parameters; what was worked out stays."""
        self._known["parameters"] = parameters
        return self


def facts_of(signal: Signal, facts: SeriesFacts) -> dict[str, str | int | None]:
    """The numbers as decimal strings, for templates and the record: what was observed, what was expected."""
    numbers = {name: _number(name, signal, facts) for name in _NUMBERS}
    return {**{name: None if number is None else f"{number:f}" for name, number in numbers.items()},
            "observations": facts.observations}


def decimal(text: Any) -> Decimal | None:
    """A decimal string of an event's data; None for what is none."""
    if text is None:
        return None
    try:
        number = Decimal(str(text))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _number(name: str, signal: Signal, facts: SeriesFacts) -> Decimal | None:
    if name in ("value", "previous"):
        return decimal(signal.data.get(name))
    if name == "restatement":
        return _difference(decimal(signal.data.get("value")), decimal(signal.data.get("previous")))
    if name in ("change", "change_ratio"):
        change = _difference(decimal(signal.data.get("value")), facts.prior)
        return change if name == "change" or change is None else change / abs(facts.prior) if facts.prior else None
    return getattr(facts, name)


def _difference(value: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if value is None or other is None else value - other


def _double(name: str) -> Callable[[Values], float | None]:
    def read(values: Values) -> float | None:
        number = _number(name, values.signal, values.facts)
        return None if number is None else float(number)
    return read


def _scaled(name: str) -> Callable[[Values], int | None]:
    def read(values: Values) -> int | None:
        number = _number(name, values.signal, values.facts)
        return None if number is None else int(number * _SCALE)
    return read


def _days_since_prior(values: Values) -> int | None:
    start, prior = _period_start(values), values.facts.prior_start
    return (start - prior).days if start and prior else None


def _age_days(values: Values) -> int | None:
    start = _period_start(values)
    return (values.signal.occurred_at.date() - start).days if start else None


def _period_start(values: Values) -> dt.date | None:
    try:
        return dt.date.fromisoformat(str(values.signal.data.get("period_start")))
    except ValueError:
        return None


def _event(values: Values) -> dict[str, Any]:
    signal = values.signal
    return {"type": signal.type, "subject": signal.subject, "id": signal.event_id,
            "pipeline": signal.data.get("pipeline"), "time": signal.occurred_at}


def _text(name: str) -> Callable[[Values], Any]:
    return lambda values: values.signal.data.get(name)


_READERS: dict[str, Callable[[Values], Any]] = {
    **{name: _double(name) for name in _NUMBERS},
    **{f"{name}_scaled": _scaled(name) for name in ("value", "previous", "prior")},
    "observations": lambda values: values.facts.observations,
    "days_since_prior": _days_since_prior,
    "age_days": _age_days,
    "dimensions": lambda values: dict(values.signal.dimensions),
    "parameters": lambda values: {},
    "tenant": lambda values: values.signal.tenant_id,
    **{name: _text(name) for name in ("kpi", "grain", "period", "unit", "threshold_state")},
    "period_complete": lambda values: values.signal.data.get("period_complete") is True,
    "data": lambda values: values.signal.data,
    "event": _event,
}
