"""What can happen to the shop in its year, one step each: plain data that prints as the code that makes it again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal
from typing import Any

from tests.year.design import COLUMNS, Column, Design, Rule


@dataclass(frozen=True)
class Order:
    """A record as the source writes it, every value a text; empty is null."""

    order_id: str
    ordered_at: str
    shop: str
    amount: str
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One thing that happens."""


# At the source ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deliver(Step):
    """A file appears, or has other content: late, corrected, as it once was, empty. Its name says its day.

    With `extra` it has a column of this name that no contract declared at first.
    """

    name: str
    orders: tuple[Order, ...]
    extra: str = ""


@dataclass(frozen=True)
class Move(Step):
    """A file has another name, with the same content."""

    name: str
    to: str


@dataclass(frozen=True)
class Copy(Step):
    """A file is there a second time, under another name."""

    name: str
    to: str


@dataclass(frozen=True)
class Remove(Step):
    """A file is gone from the folder. What it brought stays: absence of a file says nothing."""

    name: str


@dataclass(frozen=True)
class Count(Step):
    """A file of the stock appears or has other content: all there is on its day."""

    day: str
    orders: tuple[Order, ...]


@dataclass(frozen=True)
class Book(Step):
    """A row of the ledger or the till, tables of a database, is new or is another; `seq` is null where it is None."""

    table: str
    order: Order
    seq: int | None = None


@dataclass(frozen=True)
class Strike(Step):
    """A row of the till is deleted."""

    order_id: str


# In the project -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rename(Step):
    """The GDP's column with the values of `source` has another name."""

    source: str
    to: str

    def applied(self, design: Design) -> Design:
        return _columns(design, (replace(c, name=self.to) if c.source == self.source else c for c in design.columns))


@dataclass(frozen=True)
class Retype(Step):
    """The GDP's column with the values of `source` has another type, in which its values are the same."""

    source: str
    kind: str

    def applied(self, design: Design) -> Design:
        return _columns(design, (replace(c, kind=self.kind) if c.source == self.source else c for c in design.columns))


@dataclass(frozen=True)
class Drop(Step):
    """The GDP no longer has the values of `source`."""

    source: str

    def applied(self, design: Design) -> Design:
        return _columns(design, (column for column in design.columns if column.source != self.source))


@dataclass(frozen=True)
class Add(Step):
    """The GDP has the values of `source` again, in the end."""

    source: str

    def applied(self, design: Design) -> Design:
        first = next(column for column in COLUMNS if column.source == self.source)
        others = [column for column in design.columns if column.source != self.source]
        return _columns(design, (*others, first))


@dataclass(frozen=True)
class Reorder(Step):
    """The GDP's columns stand in another order: the first of them last."""

    def applied(self, design: Design) -> Design:
        return _columns(design, (*design.columns[1:], design.columns[0]))


@dataclass(frozen=True)
class Formula(Step):
    """The KPI means something else, under a new version of its own, or under the one it has."""

    factor: int
    is_versioned: bool = True

    def applied(self, design: Design) -> Design:
        if self.factor == design.factor:
            return design
        changed = replace(design, factor=self.factor)
        return changed.with_next("kpi") if self.is_versioned else changed


@dataclass(frozen=True)
class Engine(Step):
    """Another engine computes."""

    engine: str

    def applied(self, design: Design) -> Design:
        return design.with_next("manifest", engine=self.engine) if self.engine != design.engine else design


@dataclass(frozen=True)
class Demand(Step):
    """A rule of the raw contract asks for a smallest amount, of records since a day or of all, under a new version."""

    minimum: str
    since: str = ""

    def applied(self, design: Design) -> Design:
        rule = Rule(Decimal(self.minimum), self.since)
        return design.with_next("raw", rules=(*design.rules, rule)) if rule != design.rules[-1] else design


@dataclass(frozen=True)
class Tolerate(Step):
    """Other shares of refused records are allowed, of all files and of one."""

    whole: float
    unit: float

    def applied(self, design: Design) -> Design:
        wanted = (self.whole, self.unit)
        return design.with_next("manifest", tolerated=wanted) if wanted != design.tolerated else design


@dataclass(frozen=True)
class Zone(Step):
    """The tenant's days are cut in another time zone."""

    zone: str

    def applied(self, design: Design) -> Design:
        return replace(design, zone=self.zone)


Edit = Rename | Retype | Drop | Add | Reorder | Formula | Engine | Demand | Tolerate | Zone


# In operation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run(Step):
    """A pipeline runs for the tenant: the shop, or the stock, the ledger, the till beside it.

    `how` is one of
    - stages: one after the other, in this process;
    - dagster: as the command does, in this process;
    - killed: a `barecount run` that is killed at step `at` of `stage`; then stages;
    - outage: a `barecount run` while the database server restarts at step `at` of `stage`; then stages;
    - together: two `barecount run` at once; then stages;
    - missing: stages, while the folder of the source is not there.
    """

    how: str = "stages"
    stage: str = "normalization"
    at: int = 0
    pipeline: str = "shop"


@dataclass(frozen=True)
class Decide(Step):
    """A steward decides about every drift that waits."""

    accept: bool


@dataclass(frozen=True)
class Withdraw(Step):
    """What a file brought shall count no more, or with `undo` again."""

    name: str
    undo: bool = False


@dataclass(frozen=True)
class Restart(Step):
    """The database server restarts between two runs."""


KINDS = (Deliver, Move, Copy, Remove, Count, Book, Strike, Rename, Retype, Drop, Add, Reorder, Formula, Engine, Demand,
         Tolerate, Zone, Run, Decide, Withdraw, Restart)



def to_json(steps: Iterable[Step]) -> str:
    """A sequence, one step per line."""
    lines = [json.dumps({"step": type(step).__name__, **asdict(step)}) for step in steps]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def from_json(text: str) -> list[Step]:
    """The sequence that `to_json` wrote."""
    return [_read(document) for document in json.loads(text)]


def _read(document: dict[str, Any]) -> Step:
    (kind,) = [kind for kind in KINDS if kind.__name__ == document["step"]]
    values = {one.name: document[one.name] for one in fields(kind)}
    if "orders" in values:
        values["orders"] = tuple(Order(**order) for order in values["orders"])
    if "order" in values:
        values["order"] = Order(**values["order"])
    return kind(**values)


def _columns(design: Design, columns: Iterable[Column]) -> Design:
    """The design with other columns, under a new version of the GDP's contract if they are others."""
    wanted = tuple(columns)
    return design.with_next("gold", columns=wanted) if wanted != design.columns else design
