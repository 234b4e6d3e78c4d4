"""Tenants as declared: who owns data, where it may live, and by which calendar and currency it is counted.

One file per tenant, `contracts/tenants/<id>.yaml`. A tenant may override a pipeline's schedule, retention
and alert routing, field by field, and nothing else: two tenants never compute a number by different rules.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator

from resources.host.runner_catalog import NetworkProfile
from resources.runtime.declared import (
    Cron,
    Declared,
    DeclaredDocument,
    Email,
    Name,
    Text,
    TimeZone,
    refusal,
)
from resources.security.egress import EgressPolicy, Opening

Region = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[a-z]+)+-[1-9]$")]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


class StandardFiscal(Declared):
    """Fiscal years of twelve calendar months, beginning with `start_month` (1 to 12)."""

    pattern: Literal["standard"]
    start_month: int = Field(ge=1, le=12)


class WeeklyFiscal(Declared):
    """Fiscal years of 52 or 53 whole weeks, in quarters of 4-4-5, 4-5-4 or 5-4-4 weeks.

    The year ends on the last `end_weekday` of `end_month`, or on the one nearest to that month's end.
    """

    pattern: Literal["445", "454", "544"]
    end_month: int = Field(ge=1, le=12)
    end_weekday: Weekday
    year_end: Literal["last", "nearest"]


class CalendarRange(Declared):
    """First and last day of the calendar table, both inclusive."""

    start: dt.date = Field(alias="from")
    end: dt.date = Field(alias="to")

    @field_validator("end")
    @classmethod
    def _ends_after_start(cls, end: dt.date, info: ValidationInfo) -> dt.date:
        start = info.data.get("start")
        if start is not None and end < start:
            raise refusal("ends before it begins", allowed=f"{start} or later")
        return end


class Calendar(Declared):
    """Whose holidays and which fiscal years count.

    `country` and `subdivision` are ISO 3166 codes; `check` holds them against the `holidays` package.
    """

    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
    subdivision: Text | None = None
    weekend: tuple[Weekday, ...]
    range: CalendarRange
    fiscal: Annotated[StandardFiscal | WeeklyFiscal, Field(discriminator="pattern")]

    @field_validator("weekend")
    @classmethod
    def _days_once(cls, weekend: tuple[str, ...]) -> tuple[str, ...]:
        for index, day in enumerate(weekend):
            if day in weekend[:index]:
                raise refusal("named twice", found=day, at=(index,))
        if len(weekend) == 7:
            raise refusal("leaves no business day", allowed="at most six days")
        return weekend


class Contact(Declared):
    """Somebody to turn to at the tenant."""

    role: Literal["owner", "operations", "security", "billing"]
    name: Text
    email: Email


class ScheduleOverride(Declared):
    """Parts of a pipeline's schedule to replace."""

    cron: Cron | None = None
    timezone: TimeZone | None = None


RawClass = Literal["standard", "infrequent", "archive"]
"""How often raw objects are expected to be read: what a store charges for keeping and for reading them follows."""


class RetentionOverride(Declared):
    """Parts of a pipeline's retention to replace."""

    raw_class: RawClass | None = None
    raw_days: int | None = Field(default=None, ge=1)


class AlertsOverride(Declared):
    """Alert routing in place of a pipeline's."""

    route: tuple[Email, ...] = Field(min_length=1)


class PipelineOverride(Declared):
    """What a tenant may change of a pipeline. What is left out stays as the manifest says."""

    schedule: ScheduleOverride | None = None
    retention: RetentionOverride | None = None
    alerts: AlertsOverride | None = None


def _egress_target(target: str) -> str:
    if "/" in target and Opening(target).network is None:
        raise refusal("not a network", allowed="CIDR notation without host bits, e.g. 10.20.0.0/16")
    return target


class EgressOpening(Declared):
    """One place that actions of the tenant may be delivered to although it is not public, or not behind TLS.

    `target` is an address, a network in CIDR notation, or a name; without `port` it stands for all of them.
    """

    target: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]+(/[0-9]{1,3})?$"), AfterValidator(_egress_target)]
    port: int | None = Field(default=None, ge=1, le=65535)
    plaintext: bool = False
    reason: Text


class Quotas(Declared):
    """What a tenant may use on one day of its time zone; left out: no limit.

    `rows_per_day` is held against the rows received before a run starts: the run that passes it is finished.
    """

    runs_per_day: int | None = Field(default=None, ge=1)
    rows_per_day: int | None = Field(default=None, ge=1)


class RunnerBounds(Declared):
    """Where work on the tenant's data may run; what is left out is not limited.

    `regions` is held against the region of the environment: a machine of one's own has none.
    """

    network_profiles: tuple[NetworkProfile, ...] | None = Field(default=None, min_length=1)
    regions: tuple[Region, ...] | None = Field(default=None, min_length=1)


class TenantMetadata(Declared):
    """Identity of a tenant. `id` is in every row, run, event and decision."""

    id: Name
    name: Text
    description: Text


class TenantSpec(Declared):
    """What a tenant consists of. `region` is a cloud region, `currency` an ISO 4217 code."""

    status: Literal["draft", "active", "suspended", "offboarded"]
    region: Region
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
    timezone: TimeZone
    calendar: Calendar
    contacts: tuple[Contact, ...]
    overrides: dict[Name, PipelineOverride] = Field(default_factory=dict)
    egress: tuple[EgressOpening, ...] = ()
    quotas: Quotas = Quotas()
    runners: RunnerBounds = RunnerBounds()

    @field_validator("contacts")
    @classmethod
    def _has_owner(cls, contacts: tuple[Contact, ...]) -> tuple[Contact, ...]:
        if not any(contact.role == "owner" for contact in contacts):
            raise refusal("nobody is the owner", allowed="at least one contact with role owner")
        return contacts


class Tenant(DeclaredDocument):
    """A tenant: the owner of data."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["Tenant"]
    metadata: TenantMetadata
    spec: TenantSpec

    @property
    def id(self) -> str:
        return self.metadata.id

    @property
    def egress_policy(self) -> EgressPolicy:
        """What deliveries of the tenant may connect to besides public addresses over TLS."""
        return EgressPolicy(tuple(
            Opening(opening.target, opening.port, opening.plaintext) for opening in self.spec.egress))
