"""When something may be sent: mute windows and business hours, in the tenant's time zone and calendar."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from resources.data_utilities.calendar import CalendarSettings, is_business_day
from resources.data_utilities.fiscal import WEEKDAYS
from resources.governance.actions import BusinessHours, Window, minutes

_SEARCH_DAYS = 60  # longest run of days without business hours that is looked across


@dataclass(frozen=True)
class TenantClock:
    """A tenant's time zone and calendar."""

    zone: ZoneInfo
    calendar: CalendarSettings


@dataclass(frozen=True)
class Closed:
    """Nothing may be sent now: why, whether it is deferred, and until when (None: not within two months)."""

    reason: str
    then: str
    until: dt.datetime | None


def closed(
    windows: Sequence[Window], hours: BusinessHours | None, clock: TenantClock, now: dt.datetime
) -> Closed | None:
    """Whether something must wait at `now`, or is dropped; None when it may be sent."""
    reason = _closed_at(windows, hours, clock, now)
    if reason is None:
        return None
    return Closed(reason[0], reason[1], _opens(windows, hours, clock, now) if reason[1] == "defer" else None)


def _closed_at(
    windows: Sequence[Window], hours: BusinessHours | None, clock: TenantClock, at: dt.datetime
) -> tuple[str, str] | None:
    local = at.astimezone(clock.zone)
    for window in windows:
        if _inside(window, local):
            return f"mute window {window.start} to {window.end}", window.then
    if hours is not None and not _in_business(hours, clock, local):
        return f"outside business hours {hours.start} to {hours.end}", hours.then
    return None


def _inside(window: Window, local: dt.datetime) -> bool:
    """Whether a local time is in a window, which belongs to the day it begins on."""
    minute = local.hour * 60 + local.minute
    start, end = minutes(window.start), minutes(window.end)
    if start < end:
        return start <= minute < end and _on(window, local.date())
    return (minute >= start and _on(window, local.date())) or (
        minute < end and _on(window, local.date() - dt.timedelta(days=1)))


def _on(window: Window, day: dt.date) -> bool:
    return not window.days or WEEKDAYS[day.weekday()] in window.days


def _in_business(hours: BusinessHours, clock: TenantClock, local: dt.datetime) -> bool:
    minute = local.hour * 60 + local.minute
    return minutes(hours.start) <= minute < minutes(hours.end) and is_business_day(clock.calendar, local.date())


def _opens(
    windows: Sequence[Window], hours: BusinessHours | None, clock: TenantClock, now: dt.datetime
) -> dt.datetime | None:
    """The first time after `now` at which something may be sent: one of the declared times of some day."""
    clocks = {minutes(window.end) for window in windows} | {0} | ({minutes(hours.start)} if hours else set())
    today = now.astimezone(clock.zone).date()
    for offset in range(_SEARCH_DAYS):
        midnight = dt.datetime.combine(today + dt.timedelta(days=offset), dt.time(), clock.zone)
        for minute in sorted(clocks):
            # wall-clock arithmetic, then to UTC: a day of 23 or 25 hours opens at the declared time all the same
            at = (midnight + dt.timedelta(minutes=minute)).astimezone(dt.UTC)
            if at > now and _closed_at(windows, hours, clock, at) is None:
                return at
    return None
