"""The raw contract's rules as pandera checks, evaluated to one reject mask per batch.

pandera's own `validate` either raises or drops the rejects, and a check called on a frame evaluates at once. Here every
check is asked once, ahead of all data, for the polars expression it evaluates; a batch is judged by all expressions in
one pass, and only when a rule was broken are the rows looked for, so that each reject is kept and its first broken rule
is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pandera.polars as pandera
import polars as pl
import pyarrow as pa
from pandera.api.polars.types import PolarsData

if TYPE_CHECKING:
    from resources.governance.contracts import Column, Contract

RULE_BROKEN = "rule_broken"


@dataclass(frozen=True)
class Rule:
    """One check on one column, and its wording for people; `of_values`: it is that of the column's valid values."""

    column: str
    check: pandera.Check | None
    wording: str
    of_values: bool = False


@dataclass(frozen=True)
class Verdict:
    """Rows that broke a rule: their positions in the batch, and the column and message of each one's first breach.

    Attributes:
        missing: by column, rows without its required value.
        new_values: by column, the values that were none of the valid ones, each once, as text.
    """

    positions: pl.Series
    fields: pl.Series
    messages: pl.Series
    missing: Mapping[str, int]
    new_values: Mapping[str, tuple[str, ...]]


class ContractRules:
    """The rules of one raw contract, ready to judge batches."""

    def __init__(self, contract: Contract) -> None:
        self.rules = tuple(rule for column in contract.columns for rule in _rules_of(column))
        self._columns = list(dict.fromkeys(rule.column for rule in self.rules))
        self._kept = [_kept(rule).alias(str(index)) for index, rule in enumerate(self.rules)]

    def judge(self, rows: pa.RecordBatch) -> Verdict | None:
        """Judge a batch; None when every row keeps every rule."""
        if not self.rules or rows.num_rows == 0:
            return None
        frame = pl.from_arrow(pa.Table.from_batches([rows.select(self._columns)]))
        assert isinstance(frame, pl.DataFrame)
        everywhere = frame.select(kept.all() for kept in self._kept).row(0)
        broken = [index for index, kept in enumerate(everywhere) if not kept]
        if not broken:
            return None
        first = pl.coalesce(pl.when(~self._kept[index]).then(pl.lit(index, pl.Int32)) for index in broken)
        rejects = frame.select(first.alias("rule")).with_row_index("position").filter(pl.col("rule").is_not_null())
        columns = pl.Series([rule.column for rule in self.rules])
        wordings = pl.Series([rule.wording for rule in self.rules])
        counts = dict(rejects["rule"].value_counts().iter_rows())
        return Verdict(
            rejects["position"], columns.gather(rejects["rule"]), wordings.gather(rejects["rule"]),
            missing={self.rules[i].column: n for i, n in counts.items() if self.rules[i].check is None},
            new_values={self.rules[i].column: self._refused(frame, i) for i in broken if self.rules[i].of_values},
        )

    def _refused(self, frame: pl.DataFrame, index: int) -> tuple[str, ...]:
        """Values that break a rule, each once, as text, sorted."""
        values = frame.filter(~self._kept[index]).get_column(self.rules[index].column)
        return tuple(values.unique().cast(pl.String).sort())


def _kept(rule: Rule) -> pl.Expr:
    """The expression of a rule: true where it is kept, null (which counts as kept) where there is no value."""
    if rule.check is None:
        return pl.col(rule.column).is_not_null()
    backend = rule.check.get_backend(pl.LazyFrame())(rule.check)
    return backend.check_fn(PolarsData(_AnyFrame(), rule.column))


class _AnyFrame:
    """Stands where a check expects its frame, and hands back the expression that the check selects from it."""

    def select(self, expression: pl.Expr) -> pl.Expr:
        return expression


def _rules_of(column: Column) -> list[Rule]:
    def rule(check: pandera.Check | None, wording: str) -> Rule:
        return Rule(column.name, check, f"{column.name}: {wording}")

    rules = [rule(None, "is required")] if column.required else []
    options: dict[str, Any] = dict(column.options)
    if options.get("minimum") is not None:
        rules.append(rule(pandera.Check.ge(_literal(options["minimum"])), f"at least {options['minimum']}"))
    if options.get("maximum") is not None:
        rules.append(rule(pandera.Check.le(_literal(options["maximum"])), f"at most {options['maximum']}"))
    if options.get("exclusiveMinimum") is not None:
        bound = options["exclusiveMinimum"]
        rules.append(rule(pandera.Check.gt(_literal(bound)), f"above {bound}"))
    if options.get("exclusiveMaximum") is not None:
        bound = options["exclusiveMaximum"]
        rules.append(rule(pandera.Check.lt(_literal(bound)), f"below {bound}"))
    if options.get("minLength") is not None or options.get("maxLength") is not None:
        shortest, longest = options.get("minLength"), options.get("maxLength")
        rules.append(
            rule(pandera.Check.str_length(shortest, longest), f"length from {shortest or 0} to {longest or 'any'}")
        )
    if options.get("pattern"):
        anchored = f"^(?:{options['pattern']})$"
        rules.append(rule(pandera.Check.str_matches(anchored), f"must match {options['pattern']}"))
    if column.valid_values:
        allowed = list(column.valid_values)
        wording = f"{column.name}: one of {', '.join(map(str, allowed))}"
        rules.append(Rule(column.name, pandera.Check.isin(allowed), wording, of_values=True))
    return rules


def _literal(bound: Any) -> Any:
    """A bound in the column's own type: polars takes a bare Decimal for a float."""
    return pl.lit(bound) if isinstance(bound, Decimal) else bound
