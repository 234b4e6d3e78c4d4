"""Rules of a raw contract about all rows together: counts that must keep within bounds.

Rules that single rows can break put those rows into quarantine (`rules`). A duplicate or a missing row is nobody's own
fault: such a rule is judged over the batches of a run, and its failure stops what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from resources.governance.contracts import Contract, Rule
from resources.runners.stage import CheckOutcome
from resources.runtime.database import fetch
from resources.storage import raw_tables

NAME = "contract_rules"


def check(connection: psycopg.Connection, contract: Contract, batch_ids: Sequence[int]) -> CheckOutcome:
    """Judge every dataset rule of the contract over the rows of some batches."""
    unique = (Rule("duplicateValues", (c.name,), "mustBe", (0,)) for c in contract.columns if c.unique)
    rules = [*contract.rules, *unique]
    broken = []
    for rule in rules:
        measured = _measure(connection, contract.dataset, rule, batch_ids)
        if not rule.holds(measured):
            broken.append(f"{_wording(rule)}, found {measured:g}")
    summary = "; ".join(broken) if broken else f"{len(rules)} rules about all rows together hold"
    return CheckOutcome(NAME, contract.dataset, not broken, True, summary, {"rules": len(rules), "broken": broken})


def _measure(connection: psycopg.Connection, dataset: str, rule: Rule, batch_ids: Sequence[int]) -> float:
    """What the rule counts, in its unit: rows, or percent of all rows."""
    statement = sql.SQL("select {counted}, count(*) from {table} where _batch_id = any($1)").format(
        counted=_counted(rule), table=sql.Identifier(raw_tables.SCHEMA, raw_tables.table_name(dataset))
    )
    counted, total = fetch(connection, statement.as_string(connection), (list(batch_ids),))[0]
    return 100 * counted / total if rule.unit == "percent" and total else float(counted)


def _counted(rule: Rule) -> sql.Composable:
    columns = [sql.Identifier(name) for name in rule.columns]
    if rule.metric == "rowCount":
        return sql.SQL("count(*)")
    if rule.metric == "duplicateValues":
        if len(columns) == 1:  # a missing value is nobody's duplicate
            return sql.SQL("count({0}) - count(distinct {0})").format(columns[0])
        return sql.SQL("count(*) - count(distinct ({}))").format(sql.SQL(", ").join(columns))
    if rule.metric == "nullValues":
        return sql.SQL("count(*) filter (where {} is null)").format(columns[0])
    tests = []
    if rule.valid_values is not None:
        values = sql.SQL(", ").join(map(sql.Literal, rule.valid_values))
        tests.append(sql.SQL("{} not in ({})").format(columns[0], values))
    if rule.pattern is not None:
        tests.append(sql.SQL("{} !~ {}").format(columns[0], sql.Literal(f"^(?:{rule.pattern})$")))
    return sql.SQL("count(*) filter (where {})").format(sql.SQL(" or ").join(tests))


def _wording(rule: Rule) -> str:
    of = f" of {', '.join(rule.columns)}" if rule.columns else ""
    bounds = " and ".join(f"{bound:g}" for bound in rule.bounds)
    return f"{rule.description or rule.metric}{of} {rule.operator} {bounds} {rule.unit}"
