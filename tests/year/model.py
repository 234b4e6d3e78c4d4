"""What should be: a plain model of the shop, of dictionaries and sums. No SQL, and nothing of the platform.

The newest delivery of an order counts. A delivery is newer by the day in its name, then by when it landed, then by the
natural order of names within one landing, then by the row. An order that a rule or a type refuses counts for nothing
and is in quarantine. A day with a file that has an undeclared column stays as it was until a steward decides. What is
published is what the last run found; nothing else moves it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

from tests.year import steps
from tests.year.design import Design, Rule
from tests.year.steps import Order

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")

Row = tuple[tuple[str, str, Any], ...]
"""The business columns of a row: (name, type, value) of each, in order."""

Series = dict[tuple[str, str, str | None], Decimal]
"""Values by grain, period and shop."""


@dataclass(frozen=True)
class Content:
    """What is in a file: its orders, and the name of its undeclared column, if it has one."""

    orders: tuple[Order, ...]
    extra: str = ""


@dataclass
class Batch:
    """What is known of a content of a day.

    Attributes:
        waits: whether it has an undeclared column that nobody decided about.
        version: of the raw contract, when it landed: the same column under the same version is the same question.
        rules: those that it was judged by.
    """

    waits: bool
    version: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Unit:
    """What a file brought when it was last read, and how new that is."""

    content: Content
    day: str
    landing: int

    @property
    def newness(self) -> tuple[str, int]:
        return self.day, self.landing


@dataclass
class Version:
    """A row of the GDP, with the steps that opened and closed it; `closed` is None while it holds."""

    row: Row
    opened: int
    closed: int | None = None


@dataclass
class Numbers:
    """What a pipeline should show: every version of every row, and the series of its last publication."""

    history: dict[int, list[Version]] = field(default_factory=lambda: defaultdict(list))
    published: Series = field(default_factory=dict)

    def keep(self, head: Mapping[int, Row], step: int) -> None:
        """Let these rows hold from a step on, and no others."""
        for key in {*head, *self.history}:
            versions = self.history[key]
            current = versions[-1] if versions and versions[-1].closed is None else None
            if current is not None and current.row != head.get(key):
                current.closed = step
            if key in head and (current is None or current.row != head[key]):
                versions.append(Version(head[key], step))

    def open_rows(self) -> list[Row]:
        """The rows that hold now."""
        return [versions[-1].row for versions in self.history.values() if versions and versions[-1].closed is None]

    def series(self, shop: str = "shop", amount: str = "amount", factor: int = 1) -> Series:
        """Sums of amounts by day and shop, and by month."""
        sums: Series = defaultdict(Decimal)
        for row in self.open_rows():
            values = {name: value for name, _, value in row}
            day, worth = values["business_date"], values[amount] * factor
            sums["day_shop", day, values[shop]] += worth
            sums["month", day[:7], None] += worth
        return dict(sums)


@dataclass
class Beside:
    """A pipeline beside the shop, of records that are what they are: no rules, no edits.

    Attributes:
        rows: what is at the source, by day of the file (stock) or by key (the tables).
        cursors: of the ledger's rows, by key; null is None.
    """

    numbers: Numbers = field(default_factory=Numbers)
    rows: dict[str, tuple[Order, ...]] = field(default_factory=dict)
    cursors: dict[str, int | None] = field(default_factory=dict)

    def run(self, pipeline: str, design: Design, step: int) -> str | None:
        if pipeline == "stock":  # the newest day is all there is
            orders = self.rows[max(self.rows)] if self.rows else ()
        else:
            orders = tuple(order for (order,) in self.rows.values())
        plain = replace(Design(), zone=design.zone)
        head = {int(order.order_id): row_of(order, plain) for order in orders}
        if pipeline == "ledger":
            head = {key: (*row, ("seq", "bigint", self.cursors[str(key)])) for key, row in head.items()}
        self.numbers.keep(head, step)
        if not self.numbers.open_rows():
            return "gate.failed"
        self.numbers.published = self.numbers.series()
        return None


@dataclass
class Model:
    """The state of the shop, and what should be seen of it."""

    design: Design = field(default_factory=Design)
    files: dict[str, Content] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    counting: dict[str, Unit] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    batches: dict[tuple[str, Content], Batch] = field(default_factory=dict)
    rejected: set[tuple[str, int]] = field(default_factory=set)
    numbers: Numbers = field(default_factory=Numbers)
    meanings: dict[int, int] = field(default_factory=dict)
    beside: dict[str, Beside] = field(
        default_factory=lambda: {pipeline: Beside() for pipeline in ("stock", "ledger", "till")})
    landed: int = 0
    step: int = 0

    def apply(self, step: steps.Step) -> str | None:
        """Live a step; returns the code of the error with which the platform refuses it, None when it does not."""
        self.step += 1
        match step:
            case steps.Deliver(name, orders, extra):
                self.files[name] = Content(orders, extra)
            case steps.Move(name, to):
                if name in self.files and to not in self.files:
                    self.files[to] = self.files.pop(name)
            case steps.Copy(name, to):
                if name in self.files and to not in self.files:
                    self.files[to] = self.files[name]
            case steps.Remove(name):
                self.files.pop(name, None)
            case steps.Count(day, orders):
                self.beside["stock"].rows[day] = orders
            case steps.Book(table, order, seq):
                self.beside[table].rows[order.order_id] = (order,)
                self.beside[table].cursors[order.order_id] = seq
            case steps.Strike(order_id):
                self.beside["till"].rows.pop(order_id, None)
            case steps.Run(pipeline=pipeline) if pipeline != "shop":
                return self.beside[pipeline].run(pipeline, self.design, self.step)
            case steps.Run("missing"):
                return "source.not_found"
            case steps.Run():
                return self._run()
            case steps.Decide(accept):
                self._decide(accept)
            case steps.Withdraw(name, undo):
                return self._withdraw(name, undo)
            case steps.Restart():
                pass
            case _:
                self.design = step.applied(self.design)  # type: ignore[attr-defined]
        return None

    def _run(self) -> str | None:
        version = self.design.versions["kpi"]
        if self.meanings.get(version, self.design.factor) != self.design.factor:
            return "definition.changed"  # a version that was published means what it meant
        for name in sorted(self.files, key=natural):
            if name not in self.units or self.units[name].content != self.files[name]:
                self.landed += 1
                self.units[name] = Unit(self.files[name], day_in(name), self.landed)
                self.withdrawn.discard(name)
        for unit in self.said().values():
            self._judge(unit)
        held = {unit.day for unit in self.said().values() if self.batch_of(unit).waits}
        self.counting = {name: unit for name, unit in self.counting.items() if unit.day in held} | {
            name: unit for name, unit in self.said().items() if unit.day not in held}
        self.numbers.keep(self.head(), self.step)
        if not self.numbers.open_rows() or self._too_much_is_refused():
            return "gate.failed"  # nor is a KPI without a single value published
        self.meanings[version] = self.design.factor
        shop, amount = self.design.column_of("shop").name, self.design.column_of("amount").name
        self.numbers.published = self.numbers.series(shop, amount, self.design.factor)
        return "contract.schema_drift" if held else None

    def said(self) -> dict[str, Unit]:
        """The units that count, or would if nothing waited."""
        return {name: unit for name, unit in self.units.items() if name not in self.withdrawn}

    def _withdraw(self, name: str, undo: bool) -> str | None:
        if name not in self.units:
            return "declaration.unknown"
        if (name in self.withdrawn) is not undo:
            return "usage"
        self.withdrawn ^= {name}
        return None

    def _too_much_is_refused(self) -> bool:
        """Whether more is refused than is tolerated, of all that counts or of one content."""
        contents = {(unit.day, unit.content): unit for unit in self.counting.values()}
        counts = [self._counted(unit) for unit in contents.values()]
        received, refused = (sum(count[at] for count in counts) for at in (0, 2))
        whole, part = self.design.tolerated
        return refused > whole * received or any(refused > part * received for received, _, refused in counts)

    def _judge(self, unit: Unit) -> None:
        """Ask about an undeclared column, unless that was decided; let the rules of today split what does not wait."""
        extra = unit.content.extra
        batch = self.batches.setdefault(
            (unit.day, unit.content), Batch(extra != "", self.design.versions["raw"], self.design.rules))
        if extra in self.design.declared or (extra, batch.version) in self.rejected:
            batch.waits = False
        if not batch.waits:
            batch.rules = self.design.rules

    def _decide(self, accept: bool) -> None:
        waiting = {name: self.batch_of(unit) for name, unit in self.said().items() if self.batch_of(unit).waits}
        questions = {(self.units[name].content.extra, batch.version) for name, batch in waiting.items()}
        if accept:
            for extra in sorted({extra for extra, _ in questions} - set(self.design.declared)):
                self.design = accepted_into(self.design, extra)
        else:
            self.rejected |= {question for question in questions if question[0] not in self.design.declared}

    def batch_of(self, unit: Unit) -> Batch:
        return self.batches[unit.day, unit.content]

    def head(self) -> dict[int, Row]:
        """The row of every order that counts."""
        rows: dict[int, Row] = {}
        for unit in sorted(self.counting.values(), key=lambda unit: unit.newness):
            for order in unit.content.orders:
                if accepted(order, unit.day, self.batch_of(unit).rules):
                    rows[int(order.order_id)] = row_of(order, self.design)
        return rows

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Records received, accepted and refused, by file that was read."""
        return {name: self._counted(unit) for name, unit in self.said().items()}

    def _counted(self, unit: Unit) -> tuple[int, int, int]:
        rules, orders = self.batch_of(unit).rules, unit.content.orders
        taken = sum(accepted(order, unit.day, rules) for order in orders)
        return len(orders), taken, len(orders) - taken


def accepted(order: Order, day: str, rules: Sequence[Rule]) -> bool:
    """Whether every value is of its type, and the last of the rules that are for the day is kept."""
    rule = next(rule for rule in reversed(rules) if rule.since <= day)
    try:
        return bool(order.order_id) and Decimal(order.amount) >= rule.minimum
    except InvalidOperation:
        return False


def accepted_into(design: Design, extra: str) -> Design:
    """What is declared once a steward has accepted a column: the next version has it; the files get the one after."""
    return design.with_next("raw", declared=(*design.declared, extra)).with_next("raw")


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
