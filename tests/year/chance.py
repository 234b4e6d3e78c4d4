"""A year at random, the same for a seed: which step comes next, given what there is."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Iterator

from tests.year import steps
from tests.year.model import Model
from tests.year.steps import Order, Step

SHOPS = ("north", "south", "Łódź", "")
ZONES = ("Europe/London", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati", "Africa/Cairo")
TIMES = ("00:30:00Z", "09:00:00+00:00", "12:15:30.123456+02:00", "23:30:00Z", "22:59:59-05:00", "23:59:59.999999+0100",
         "00:00:00+14:00")
EXTRAS = ("channel", "seller")
DROPPABLE, RENAMEABLE = ("note", "ordered_at"), ("amount", "note", "ordered_at")
KINDS = {"amount": ("numeric(18,2)", "numeric(18,4)", "numeric(20,3)"), "order_id": ("bigint",)}
_STAGES = ("ingestion", "calendar", "normalization", "kpi_build", "publish")
_BAD = ("", "12,5", "free")


class Year:
    """Steps of a year; every `Run` ends a few changes of source or project.

    Attributes:
        day: the day that it is.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.day = dt.date(2026, 3, 3)
        self._numbers = 2
        self._seq = 9
        self._contents: dict[str, list[tuple[Order, ...]]] = {}

    def steps(self, model: Model) -> Iterator[Step]:
        """Endless; look at the model between them, as it lives what was given before."""
        while True:
            if self._random.random() < 0.25:
                yield from self._beside(model)
                continue
            if model.meanings.get(model.design.versions["kpi"], model.design.factor) != model.design.factor:
                yield steps.Run()  # refused: somebody notices, and gives it a version or takes it back
                yield steps.Formula(self._random.choice((4, model.meanings[model.design.versions["kpi"]])),
                                    self._random.random() < 0.5)
            for _ in range(self._random.choice((1, 1, 2, 2, 3))):
                yield self._change(model)
            if any(batch.waits for batch in model.batches.values()) and self._random.random() < 0.4:
                yield steps.Decide(self._random.random() < 0.6)
            if self._random.random() < 0.05:
                yield steps.Restart()
            yield self._run()

    def _change(self, model: Model) -> Step:
        changes: list[tuple[int, Callable[[Model], Step]]] = [
            (8, self._new_day), (4, self._late), (4, self._corrected), (4, self._as_it_was), (2, self._another_file),
            (2, self._moved), (2, self._copied), (1, self._removed), (1, self._emptied), (2, self._withdrawn),
            (4, self._edited),
        ]
        (change,) = self._random.choices([change for _, change in changes], [weight for weight, _ in changes])
        return change(model)

    def _beside(self, model: Model) -> Iterator[Step]:
        """Something happens to the stock, the ledger or the till, and it runs."""
        pipeline = self._random.choice(("stock", "ledger", "till"))
        for _ in range(self._random.choice((1, 1, 2, 3))):
            if pipeline == "stock":
                day = self.day - dt.timedelta(days=self._random.choice((0, 0, 0, 1, 9)))
                yield steps.Count(day.isoformat(), tuple(
                    self._order(str(number), day.isoformat(), good=True)
                    for number in self._random.sample(range(1, 8), self._random.choice((1, 3, 5)))))
            elif pipeline == "till" and self._random.random() < 0.3:
                yield steps.Strike(self._random.choice(sorted(model.beside["till"].rows) or ["1"]))
            else:
                yield self._booked(pipeline)
        yield steps.Run(pipeline=pipeline)

    def _booked(self, table: str) -> Step:
        """A row that is new, or another; the cursor of the ledger grows, ties, comes late, or is not there."""
        order = self._order(str(self._random.randint(1, 12)), self.day.isoformat(), good=True)
        if table == "till":
            return steps.Book(table, order)
        self._seq += self._random.choice((0, 1, 1, 4))
        late = self._random.choice((0, 0, 0, 1, 4))
        return steps.Book(table, order, None if self._random.random() < 0.1 else max(0, self._seq - late))

    # At the source --------------------------------------------------------------------------------------

    def _new_day(self, model: Model) -> Step:
        self.day += dt.timedelta(days=self._random.choice((1, 1, 1, 4, 27)))
        if self.day.year > 2026:
            self.day = dt.date(2026, 3, 3)
        return self._file(f"orders_{self.day}.csv", self._orders(self.day))

    def _late(self, model: Model) -> Step:
        day = self.day - dt.timedelta(days=self._random.randrange(40))
        return self._file(f"orders_{day}{self._suffix()}.csv", self._orders(day))

    def _another_file(self, model: Model) -> Step:
        """Numbered exports of one day, in any order."""
        return self._file(f"orders_{self.day}{self._suffix()}.csv", self._orders(self.day))

    def _corrected(self, model: Model) -> Step:
        name = self._known(model)
        orders = list(self._of(model, name))
        if orders and self._random.random() < 0.5:
            at = self._random.randrange(len(orders))
            orders[at] = self._order(orders[at].order_id, orders[at].ordered_at[:10])
        elif orders and self._random.random() < 0.5:
            orders.pop(self._random.randrange(len(orders)))
        else:
            orders += self._orders(dt.date.fromisoformat(name[7:17]))
        return self._file(name, tuple(orders))

    def _as_it_was(self, model: Model) -> Step:
        """A content of before, of this file or of another of its day."""
        name = self._known(model)
        before = [orders for other, contents in self._contents.items() if other[:17] == name[:17]
                  for orders in contents]
        return self._file(name, self._random.choice(before or [self._of(model, name)]))

    def _emptied(self, model: Model) -> Step:
        return self._file(self._known(model), ())

    def _moved(self, model: Model) -> Step:
        name = self._known(model)
        return steps.Move(name, f"{name[:17]}{self._suffix()}.csv")

    def _copied(self, model: Model) -> Step:
        name = self._known(model)
        return steps.Copy(name, f"{name[:17]}{self._suffix()}.csv")

    def _removed(self, model: Model) -> Step:
        return steps.Remove(self._known(model))

    def _withdrawn(self, model: Model) -> Step:
        if model.withdrawn and self._random.random() < 0.5:
            return steps.Withdraw(self._random.choice(sorted(model.withdrawn)), undo=True)
        return steps.Withdraw(self._random.choice(sorted(model.units) or ["orders_2026-03-02.csv"]))

    def _file(self, name: str, orders: tuple[Order, ...]) -> Step:
        """A file, which now and then has a column that no contract declares, or did not at first."""
        self._contents.setdefault(name, []).append(orders)
        return steps.Deliver(name, orders, self._random.choice(EXTRAS) if self._random.random() < 0.08 else "")

    def _of(self, model: Model, name: str) -> tuple[Order, ...]:
        return model.files[name].orders if name in model.files else ()

    def _known(self, model: Model) -> str:
        return self._random.choice(sorted(model.files)) if model.files else "orders_2026-03-02.csv"

    def _suffix(self) -> str:
        return f"_export_{self._random.choice((1, 2, 9, 10, 11, 100))}"

    def _orders(self, day: dt.date) -> tuple[Order, ...]:
        """A few orders of a day: new ones, and some that were there before."""
        numbers = []
        for _ in range(self._random.choice((1, 2, 3, 5))):
            if self._random.random() < 0.6:
                self._numbers += 1
                numbers.append(self._numbers)
            else:
                numbers.append(self._random.randint(1, self._numbers))
        return tuple(self._order(str(number), day.isoformat()) for number in numbers)

    def _order(self, number: str, day: str, good: bool = False) -> Order:
        time = self._random.choice(TIMES)
        amount = f"{self._random.randint(-500, 99_999) / 100:.2f}"
        if not good and self._random.random() < 0.05:
            amount = self._random.choice(_BAD)
        note = self._random.choice(("", "gift", "x", "née"))
        return Order(number, f"{day}T{time}", self._random.choice(SHOPS), amount, note)

    # In the project and in operation --------------------------------------------------------------------

    def _edited(self, model: Model) -> Step:
        there = {column.source for column in model.design.columns}
        choices: list[Step] = [
            steps.Reorder(),
            steps.Formula(self._random.choice((1, 2, 3))),
            steps.Formula(self._random.choice((1, 2, 3)), is_versioned=False),
            steps.Retype("amount", self._random.choice(KINDS["amount"])),
            *[steps.Demand(self._random.choice(("-1000", "0", "0.01", "20", "500.00")), since)
              for since in ("", "", (self.day - dt.timedelta(days=self._random.randrange(20))).isoformat())],
            steps.Tolerate(*self._random.choice(((0.25, 0.6), (0.01, 0.01), (0.5, 1.0), (1.0, 1.0), (0.1, 0.5)))),
            steps.Zone(self._random.choice(ZONES)),
            steps.Engine(self._random.choice(("postgres", "duckdb"))),
            *(steps.Add(source) for source in DROPPABLE if source not in there),
            *(steps.Drop(source) for source in DROPPABLE if source in there),
            *(steps.Rename(source, f"{source}_{self._random.choice('abc')}")
              for source in RENAMEABLE if source in there),
        ]
        return self._random.choice(choices)

    def _run(self) -> Step:
        hows = {"stages": 24, "dagster": 2, "killed": 2, "outage": 1, "together": 1, "missing": 1}
        how = self._random.choices(list(hows), list(hows.values()))[0]
        if how not in ("killed", "outage"):
            return steps.Run(how)
        return steps.Run(how, self._random.choice(_STAGES), self._random.randrange(60))
