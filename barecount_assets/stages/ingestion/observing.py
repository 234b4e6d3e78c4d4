"""What the refused rows of a unit show of its schema: gathered as they stream, never in a second pass."""

from __future__ import annotations

from collections import Counter, defaultdict

from barecount_assets.stages.ingestion.records import ParsedBatch
from barecount_assets.stages.ingestion.rules import Verdict
from resources.governance.drift import SeenInRows

_MOST_VALUES = 100
"""Distinct new values of one column that are told; more of them are no enumeration."""


class RowObserver:
    """Counts over refused rows only: a unit without any costs nothing."""

    def __init__(self) -> None:
        self._records = 0
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._values: dict[str, set[str]] = defaultdict(set)

    def batch(self, batch: ParsedBatch) -> None:
        """One batch, and every field at fault in it: the first fault of a record hides none of its others."""
        self._records += batch.received
        for field, reason, count in batch.refused:
            self._counts[reason][field] += count

    def judged(self, verdict: Verdict) -> None:
        """Rows that broke a rule of the raw contract."""
        self._counts["missing_field"].update(verdict.missing)
        for column, values in verdict.new_values.items():
            if len(self._values[column]) < _MOST_VALUES:
                self._values[column].update(values)

    def seen(self) -> SeenInRows:
        return SeenInRows(
            self._records, dict(self._counts["wrong_type"]), dict(self._counts["missing_field"]),
            {column: tuple(sorted(values)[:_MOST_VALUES]) for column, values in sorted(self._values.items())},
        )
