"""Tenants: what a declaration may say, field by field."""

from __future__ import annotations

import datetime as dt

import pytest

from resources.host.tenants import Tenant, WeeklyFiscal
from resources.runtime.declared import read_model
from resources.runtime.yaml_source import Finding, parse_yaml

TENANT = """\
apiVersion: barecount/v1
kind: Tenant
metadata: {id: acme, name: Acme, description: Sells things.}
spec:
  status: active
  region: eu-west-2
  currency: GBP
  timezone: Europe/London
  calendar:
    country: GB
    subdivision: ENG
    weekend: [saturday, sunday]
    range: {from: 2020-01-01, to: 2030-12-31}
    fiscal: {pattern: "445", end_month: 1, end_weekday: saturday, year_end: last}
  contacts:
    - {role: owner, name: Ann, email: ann@acme.example}
  overrides:
    sales: {schedule: {cron: "0 6 * * *"}, retention: {raw_days: 400}, alerts: {route: [ann@acme.example]}}
"""


def read(text: str) -> tuple[Tenant | None, list[Finding]]:
    source, findings = parse_yaml(text, "acme.yaml")
    assert source is not None and findings == []
    return read_model(Tenant, source)


def test_a_tenant_is_read_with_dates_as_dates():
    tenant, findings = read(TENANT)
    assert findings == [] and tenant is not None
    assert tenant.id == "acme"
    assert tenant.spec.calendar.range.start == dt.date(2020, 1, 1)
    assert tenant.spec.calendar.fiscal == WeeklyFiscal(
        pattern="445", end_month=1, end_weekday="saturday", year_end="last"
    )
    override = tenant.spec.overrides["sales"]
    assert override.retention is not None and override.retention.raw_days == 400


def test_the_hash_is_of_the_content_and_not_of_its_layout():
    tenant, _ = read(TENANT)
    reformatted, _ = read(TENANT.replace("status: active", "status:    'active'  # as of today"))
    changed, _ = read(TENANT.replace("status: active", "status: suspended"))
    assert tenant and reformatted and changed
    assert tenant.hash == reformatted.hash != changed.hash
    assert len(tenant.hash) == 64


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ("active", "retired", "spec.status", "not one of the choices"),
        ("GBP", "gbp", "spec.currency", "wrong form"),
        ("eu-west-2", "europe", "spec.region", "wrong form"),
        ("Europe/London", "Europe/Lundon", "spec.timezone", "unknown time zone"),
        ("Europe/London", "../etc/passwd", "spec.timezone", "unknown time zone"),
        ("country: GB", "country: NO?", "spec.calendar.country", "wrong form"),
        ("[saturday, sunday]", "[saturday, saturday]", "spec.calendar.weekend[1]", "named twice"),
        (
            "[saturday, sunday]", "[monday, tuesday, wednesday, thursday, friday, saturday, sunday]",
            "spec.calendar.weekend", "no business day",
        ),
        ("to: 2030-12-31", "to: 2019-12-31", "spec.calendar.range.to", "ends before it begins"),
        ("to: 2030-12-31", "to: 2030-02-30", "spec.calendar.range.to", "wrong type"),
        ('"445"', "445", "spec.calendar.fiscal.pattern", "not one of the choices"),
        ('"445"', "standard", "spec.calendar.fiscal.start_month", "required"),
        ("end_month: 1", "end_month: 13", "spec.calendar.fiscal.end_month", "out of bounds"),
        ("role: owner", "role: billing", "spec.contacts", "nobody is the owner"),
        ("ann@acme.example}", "ann at acme}", "spec.contacts[0].email", "wrong form"),
        ("raw_days: 400", "raw_days: 0", "spec.overrides.sales.retention.raw_days", "out of bounds"),
        ("retention: {raw_days: 400}", "kpis: [x]", "spec.overrides.sales.kpis", "unknown key"),
        ("route: [ann@acme.example]", "route: []", "spec.overrides.sales.alerts.route", "out of bounds"),
    ],
)  # fmt: skip
def test_what_a_tenant_may_not_say_is_refused_at_its_field(old: str, new: str, field: str, words: str):
    assert TENANT.count(old) == 1
    tenant, findings = read(TENANT.replace(old, new))
    assert tenant is None
    line = TENANT.count("\n", 0, TENANT.index(old)) + 1
    found = [finding for finding in findings if finding.field == field]
    assert len(found) == 1, findings
    assert words in found[0].message
    assert found[0].line in (line, line - 1)  # a fault of the whole list is that of its key
