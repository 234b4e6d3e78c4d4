"""The raw contract's rules as pandera checks, evaluated to one reject mask per batch.

pandera's own `validate` either raises or drops the rejects, and a check called on a frame evaluates at once. Here every
check is asked once, ahead of all data, for the polars expression it evaluates; a batch is judged by all expressions in
one pass, and only when a rule was broken are the rows looked for, so that each reject is kept and its first broken rule
is named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pandera.polars as pandera
import polars as pl
import pyarrow as pa
from pandera.api.polars.types import PolarsData

if TYPE_CHECKING:
    from resources.governance.contracts import Column, Contract
    from resources.governance.sources import Operations, Source

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
    """The rules of one raw contract, ready to judge batches.

    Records by which a source says that something is gone, and those of how it was before, need not keep the rules of
    values: they may have none. An operation that the source does not declare breaks a rule.
    """

    def __init__(self, contract: Contract, source: Source | None = None, required: Collection[str] = ()) -> None:
        """`required`: columns that must have a value besides the contract's own."""
        asked = [Rule(column.name, None, f"{column.name}: is required")
                 for column in contract.columns if column.name in required and not column.required]
        self.rules = (*(rule for column in contract.columns for rule in _rules_of(column)), *asked)
        kept = [_kept(rule) for rule in self.rules]
        marking: list[str] = []
        if source is not None and source.marks_deletions:
            marking = [mark.column for mark in (source.deleted, source.operations) if mark is not None]
            stateless = _stateless(source)
            kept = [rule_kept | stateless for rule_kept in kept]
        if source is not None and source.operations is not None:
            operations = _operation_rules(source.operations)
            self.rules += operations
            kept += [_kept(rule) for rule in operations]
        self._columns = list(dict.fromkeys([*(rule.column for rule in self.rules), *marking]))
        self._kept = [rule_kept.alias(str(index)) for index, rule_kept in enumerate(kept)]

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


def _stateless(source: Source) -> pl.Expr:
    """The records that say nothing of how an entity is: those of deletions, and of how it was before."""
    marks = []
    if source.deleted is not None:
        column = pl.col(source.deleted.column)
        texts = source.deleted.texts
        marks.append(column.cast(pl.String).is_in(texts) if texts else column.is_not_null())
    if source.operations is not None:
        marks.append(pl.col(source.operations.column).is_in([*source.operations.delete, *source.operations.before]))
    return pl.any_horizontal(mark.fill_null(False) for mark in marks)


def _operation_rules(operations: Operations) -> tuple[Rule, Rule]:
    allowed = list(operations.allowed)
    wording = f"{operations.column}: an operation of the source, one of {', '.join(allowed)}"
    return (Rule(operations.column, None, wording), Rule(operations.column, pandera.Check.isin(allowed), wording))


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
