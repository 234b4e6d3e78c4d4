"""What the shop of the simulation declares, as plain data: what its GDP has, what its KPI means, which rules hold.

No import of the platform: the model that says what is right reads this, and so does the world that declares it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal


@dataclass(frozen=True)
class Column:
    """A column of the GDP: its name there, the column of the source whose values it has, and its PostgreSQL type."""

    name: str
    source: str
    kind: str


COLUMNS = (
    Column("order_id", "order_id", "bigint"),
    Column("ordered_at", "ordered_at", "timestamptz"),
    Column("shop", "shop", "text"),
    Column("amount", "amount", "numeric(18,2)"),
    Column("note", "note", "text"),
)
NOTHING_CHANGED: Mapping[str, int] = {"raw": 0, "gold": 0, "kpi": 0, "manifest": 0}


@dataclass(frozen=True)
class Rule:
    """The smallest amount that is accepted, of records of this day (ISO) or later; of all where there is no day."""

    minimum: Decimal
    since: str = ""


@dataclass(frozen=True)
class Design:
    """The declarations that the simulation changes.

    Attributes:
        columns: of the GDP, in order.
        factor: what the KPI multiplies the sum of amounts by.
        rules: what the versions of the raw contract said of amounts; of a day, the last one that is for it.
        declared: columns of the source that the contracts declare besides the first ones.
        tolerated: shares of refused records above which nothing is published, of all files and of one.
        zone: time zone in which the tenant's days are cut.
        engine: which engine computes.
        versions: how often the contract of a layer, the KPI or the manifest has got a new version.
    """

    columns: tuple[Column, ...] = COLUMNS
    factor: int = 1
    rules: tuple[Rule, ...] = (Rule(Decimal("-1000000")),)
    declared: tuple[str, ...] = ()
    tolerated: tuple[float, float] = (0.25, 0.6)
    zone: str = "Europe/London"
    engine: str = "postgres"
    versions: Mapping[str, int] = field(default_factory=lambda: NOTHING_CHANGED)

    def column_of(self, source: str) -> Column:
        """The column with the values of a source's column."""
        (column,) = [column for column in self.columns if column.source == source]
        return column

    def with_next(self, layer: str, **changes: object) -> Design:
        """A design with changes and the version they need."""
        return replace(self, versions={**self.versions, layer: self.versions[layer] + 1}, **changes)
