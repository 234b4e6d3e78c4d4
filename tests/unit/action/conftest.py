"""Rules and events to decide about, made from a few words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from resources.action.engine import Rulebook
from resources.action.hours import TenantClock
from resources.action.model import SeriesFacts, Signal
from resources.data_utilities.calendar import CalendarSettings
from resources.data_utilities.fiscal import FiscalSettings
from resources.governance.actions import ActionRule

NOW = dt.datetime(2026, 4, 1, 12, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)

CLOCKS = {
    tenant: TenantClock(ZoneInfo("Europe/London"), CalendarSettings(
        "GB", "ENG", ("saturday", "sunday"), dt.date(2020, 1, 1), dt.date(2030, 12, 31),
        FiscalSettings(pattern="standard", start_month=4)))
    for tenant in ("acme", "globex")
}


def make_rule(name: str = "too_high", **spec: Any) -> ActionRule:
    """A rule on dso above 60 of two tenants, with what a test wants otherwise."""
    document = {
        "apiVersion": "barecount/v1", "kind": "ActionRule",
        "metadata": {"name": name, "title": "Too high", "description": "x", "version": "1.0.0",
                     "owners": [{"name": "Ann", "email": "ann@example.com", "role": "owner"}]},
        "spec": {
            "tenants": ["acme", "globex"], "subject": {"kpi": "dso"}, "condition": "value > 60.0",
            "template": "kpi_alert", "parameters": {"limit": 60, "advice": "Act."}, "route": ["ops"], **spec},
    }
    import json

    return ActionRule.model_validate_json(json.dumps(document))


class Events:
    """Numbered events of KPI dso."""

    def __init__(self) -> None:
        self.position = 0

    def __call__(
        self, value: float | str | None, period: str = "2026-03", *, tenant: str = "acme", at: dt.datetime = NOW,
        unit: str | None = "north", facts: SeriesFacts | None = None, rule: str = "too_high", **data: Any,
    ) -> Signal:
        self.position += 1
        document = {
            "kpi": "dso", "pipeline": "order_to_cash", "grain": "month", "period": period, "unit": "days",
            "period_start": f"{period}-01", "dimensions": {"business_unit": unit} if unit else {},
            "value": None if value is None else str(value), "previous": None, "threshold_state": "ok",
            "publication_version": 1, **data,
        }
        envelope = {"id": f"e{self.position}", "type": "barecount.kpi.changed", "subject": "dso", "tenant": tenant,
                    "time": at.isoformat(), "evidence": self.position, "data": document}
        return Signal(self.position, f"e{self.position}", tenant, "barecount.kpi.changed", "dso", at, envelope,
                      {rule: facts} if facts else {})


@pytest.fixture
def event() -> Events:
    return Events()


@pytest.fixture
def book() -> Callable[..., Rulebook]:
    def make(*rules: ActionRule) -> Rulebook:
        return Rulebook(rules or [make_rule()], CLOCKS)

    return make
