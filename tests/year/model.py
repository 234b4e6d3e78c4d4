"""What should be: a plain model of the shop, of dictionaries and sums. No SQL, and nothing of the platform.

The newest delivery of an order counts. A delivery is newer by the day in its name, then by when it landed, then by the
natural order of names within one landing, then by the row. An order that a rule or a type refuses counts for nothing
and is in quarantine. What is published is what the last run found; nothing else moves it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

from tests.year import steps
from tests.year.design import Design
from tests.year.steps import Order

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")

Row = tuple[tuple[str, str, Any], ...]
"""The business columns of a row: (name, type, value) of each, in order."""

Series = dict[tuple[str, str, str | None], Decimal]
"""Values by grain, period and shop."""


@dataclass(frozen=True)
class Unit:
    """What a file brought when it was last read: its orders, and how new they are."""

    orders: tuple[Order, ...]
    newness: tuple[str, int]


@dataclass
class Version:
    """A row of the GDP, with the steps that opened and closed it; `closed` is None while it holds."""

    row: Row
    opened: int
    closed: int | None = None


@dataclass
class Model:
    """The state of the shop, and what should be seen of it."""

    design: Design = field(default_factory=Design)
    files: dict[str, tuple[Order, ...]] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    history: dict[int, list[Version]] = field(default_factory=lambda: defaultdict(list))
    published: Series = field(default_factory=dict)
    landed: int = 0
    step: int = 0

    def apply(self, step: steps.Step) -> str | None:
        """Live a step; returns the code of the error with which the platform refuses it, None when it does not."""
        self.step += 1
        match step:
            case steps.Deliver(name, orders):
                self.files[name] = orders
            case steps.Move(name, to):
                if name in self.files and to not in self.files:
                    self.files[to] = self.files.pop(name)
            case steps.Copy(name, to):
                if name in self.files and to not in self.files:
                    self.files[to] = self.files[name]
            case steps.Remove(name):
                self.files.pop(name, None)
            case steps.Run("missing"):
                return "source.not_found"
            case steps.Run():
                return self._run()
            case steps.Restart():
                pass
            case _:
                self.design = step.applied(self.design)  # type: ignore[attr-defined]
        return None

    def _run(self) -> str | None:
        for name in sorted(self.files, key=natural):
            unit = self.units.get(name)
            if unit is None or unit.orders != self.files[name]:
                self.landed += 1
                self.units[name] = Unit(self.files[name], (day_in(name), self.landed))
        self._keep(self.head())
        if not self.open_rows():
            return "gate.failed"  # a KPI without a single value is not published
        self.published = self.series()
        return None

    def head(self) -> dict[int, Row]:
        """The row of every order that counts."""
        rows: dict[int, Row] = {}
        for unit in sorted(self.units.values(), key=lambda unit: unit.newness):
            for order in unit.orders:
                if accepted(order, self.design):
                    rows[int(order.order_id)] = row_of(order, self.design)
        return rows

    def _keep(self, head: Mapping[int, Row]) -> None:
        for key in {*head, *self.history}:
            versions = self.history[key]
            current = versions[-1] if versions and versions[-1].closed is None else None
            if current is not None and current.row != head.get(key):
                current.closed = self.step
            if key in head and (current is None or current.row != head[key]):
                versions.append(Version(head[key], self.step))

    def open_rows(self) -> list[Row]:
        """The rows that hold now, as the last run left them."""
        return [versions[-1].row for versions in self.history.values() if versions and versions[-1].closed is None]

    def series(self) -> Series:
        """Sums of amounts by day and shop, and by month."""
        shop, amount = self.design.column_of("shop").name, self.design.column_of("amount").name
        sums: Series = defaultdict(Decimal)
        for row in self.open_rows():
            values = {name: value for name, _, value in row}
            day, worth = values["business_date"], values[amount] * self.design.factor
            sums["day_shop", day, values[shop]] += worth
            sums["month", day[:7], None] += worth
        return dict(sums)

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Records received, accepted and refused, by file that was read."""
        return {name: counted(unit.orders, self.design) for name, unit in self.units.items()}


def counted(orders: tuple[Order, ...], design: Design) -> tuple[int, int, int]:
    """How many of these orders are received, accepted, refused."""
    taken = sum(accepted(order, design) for order in orders)
    return len(orders), taken, len(orders) - taken


def accepted(order: Order, design: Design) -> bool:
    """Whether every value is of its type, and the rule is kept."""
    try:
        return bool(order.order_id) and Decimal(order.amount) >= design.minimum
    except InvalidOperation:
        return False


def row_of(order: Order, design: Design) -> Row:
    """The row of the GDP that an order becomes."""
    instant = dt.datetime.fromisoformat(order.ordered_at)
    values = {
        "order_id": int(order.order_id), "ordered_at": instant, "shop": order.shop or None,
        "amount": Decimal(order.amount), "note": order.note or None,
    }
    day = instant.astimezone(ZoneInfo(design.zone)).date().isoformat()
    return (*((column.name, column.kind, values[column.source]) for column in design.columns),
            ("business_date", "date", day))


def day_in(name: str) -> str:
    """The day that a file's name says."""
    match = _DAY.search(name)
    assert match is not None, name
    return match[0]


def natural(name: str) -> list[tuple[int, int | str]]:
    """Key of the order in which a person would read names: numbers by their size."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]
