"""The shipped sample: what three systems of one tenant would deliver for the pipeline `order_to_cash`.

    <directory>/erp/invoices_2026-01-02.csv        ';', windows-1252, one file per business day
    <directory>/bank/payments_2026-01-02.jsonl     one file per business day with payments
    <directory>/crm/customers_2026-01-02.parquet   all customers on the first day, changes once a week
    <directory>/facts.json                         what was written, and what the KPIs must come to
    <directory>/erp/invoices_<day after the last>_upgraded.csv     only when asked for: the ERP has one more column

It is dirty on purpose, and counted: `SampleFacts` says how many records of which kind there are, and what
revenue, gross, open and overdue amounts follow from them. Those amounts are added up from the invoices and
payments as they are invented, never read back from the files, so that they can judge a pipeline.

The same parameters give the same records on every machine and with every version of the libraries: all
chance comes from the counter-based generator Philox, whose raw output is fixed by its algorithm, one stream
per purpose, turned into values by integer arithmetic only. CSV and JSON files are the same to the byte;
Parquet files hold the same values. Both tenants use the same invoice, customer and payment ids, as systems
that do not know of each other do.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resources.data_utilities import calendar
from resources.data_utilities.fiscal import FiscalSettings
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    import numpy as np

BUSINESS_UNITS = ("NORTH", "SOUTH", "ONLINE")
DEFAULT_SEED = 20260102
DEFAULT_START = dt.date(2026, 1, 2)

# Raise it with every change of what is written: samples of an older version are then written anew.
_VERSION = 1
_MIN_INVOICES = 200
_MIN_INVOICES_A_DAY = 5  # so that no file of the ERP is empty
_MIN_BUSINESS_DAYS = 10
_FACTS_FILE = "facts.json"
_UPGRADED, _UPGRADED_INVOICES = "upgraded", 40
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What one system delivered. Records of a redelivered file are counted once, with the first delivery.

    Attributes:
        files: files with distinct content.
        redelivered_files: further files with the content of one of those.
        received: records, readable or not.
        unparsable: records that cannot be read under the extraction contract.
        rule_violations: readable records that break a rule of the raw contract.
        duplicate_records: accepted records whose business key an earlier record already had.
    """

    files: int
    redelivered_files: int
    received: int
    unparsable: int
    rule_violations: int
    duplicate_records: int

    @property
    def quarantined(self) -> int:
        return self.unparsable + self.rule_violations

    @property
    def accepted(self) -> int:
        return self.received - self.quarantined


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """The truth about one tenant's sample.

    Counts are over accepted records, each payment id counted once. Amounts are in `currency`, by month
    ("2026-03") and business unit, from the surviving version of each invoice: the accepted one with the
    latest LastModified. A month end's amounts see every payment booked until then, in whichever file it
    came; the last month's end may lie after the last file.

    Attributes:
        sources: by `invoices`, `payments`, `customers`.
        late_payments: booked more than 14 days after their invoice was due.
        late_arriving_payments: delivered in a later file than that of the day they were booked.
        partial_payments: smaller than the invoice they pay.
        over_payments: greater than the invoice they pay.
        payments_to_unknown_invoices: whose invoice id no invoice has.
        unknown_customers: customers of an invoice which the CRM does not have.
        conflicting_customer_names: customers of an invoice with another name than the CRM's latest.
        revenue: net amount of the invoices of the month.
        gross_invoiced: gross amount of the invoices of the month.
        open_amount: at the month's end: gross less payments, never below 0 for an invoice.
        overdue_amount: the part of it that was due before the month's last day.
    """

    tenant: str
    seed: int
    invoices: int
    business_days: int
    start: dt.date
    end: dt.date
    currency: str
    sources: Mapping[str, SourceFacts]
    late_payments: int
    late_arriving_payments: int
    partial_payments: int
    over_payments: int
    payments_to_unknown_invoices: int
    unknown_customers: int
    conflicting_customer_names: int
    revenue: Mapping[tuple[str, str], Decimal]
    gross_invoiced: Mapping[tuple[str, str], Decimal]
    open_amount: Mapping[tuple[str, str], Decimal]
    overdue_amount: Mapping[tuple[str, str], Decimal]
    version: int = _VERSION

    def to_json(self) -> str:
        """Readable JSON: amounts as strings, by month and then business unit."""
        document: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "sources":
                value = {name: dataclasses.asdict(source) for name, source in value.items()}
            elif field.name in _AMOUNTS:
                nested: dict[str, dict[str, str]] = defaultdict(dict)
                for (month, unit), amount in value.items():
                    nested[month][unit] = str(amount)
                value = nested
            elif isinstance(value, dt.date):
                value = value.isoformat()
            document[field.name] = value
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SampleFacts:
        """The inverse of `to_json`."""
        document = json.loads(text)
        for name in ("start", "end"):
            document[name] = dt.date.fromisoformat(document[name])
        document["sources"] = {name: SourceFacts(**source) for name, source in document["sources"].items()}
        for name in _AMOUNTS:
            document[name] = {
                (month, unit): Decimal(amount)
                for month, units in document[name].items()
                for unit, amount in units.items()
            }
        return cls(**document)


_AMOUNTS = ("revenue", "gross_invoiced", "open_amount", "overdue_amount")


# --- what differs between the tenants -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Profile:
    country: str
    subdivision: str | None
    currency: str
    tax_percent: int
    reference: str  # the word for invoice in a bank transfer's reference
    slow_payers_percent: int  # of the invoices due since the last full month began, paid weeks later
    families: tuple[str, ...]
    trades: tuple[str, ...]
    towns: tuple[str, ...]
    legal_forms: tuple[tuple[str, str], ...]  # as the CRM writes it, as a sloppy clerk does


_PROFILES = {
    "acme": _Profile(
        country="GB",
        subdivision="ENG",
        currency="GBP",
        tax_percent=20,
        reference="Invoice",
        slow_payers_percent=0,
        families=(
            "Ashworth", "Barlow", "Café Royale", "Dunmore", "Ellison", "Fairfax", "Greaves", "Hartley",
            "Ibbotson", "Jessop", "Kershaw", "Lockwood", "Merrick", "Naylor", "O'Neill", "Pemberton",
            "Quayle", "Ramsden", "Sutcliffe", "Thornton", "Underhill", "Vickers", "Whitaker", "Yardley",
            "Brontë", "Crosby & Nash", "Holt; Sons", 'The "Old" Mill', "St. John's", "Kingfisher",
        ),
        trades=(
            "Engineering", "Fasteners", "Hydraulics", "Castings", "Tooling", "Bearings", "Pumps", "Textiles",
            "Packaging", "Logistics", "Coatings", "Electrical", "Foods", "Timber", "Glass", "Marine",
        ),
        towns=("Leeds", "York", "Derby", "Bristol", "Exeter", "Preston", "Luton", "Bath"),
        legal_forms=(("Ltd", "Limited"), ("plc", "PLC."), ("LLP", "L.L.P.")),
    ),
    "globex": _Profile(
        country="DE",
        subdivision=None,
        currency="EUR",
        tax_percent=19,
        reference="Rechnung",
        slow_payers_percent=60,
        families=(
            "Ahrens", "Böhm", "Carstens", "Dörr", "Engel", "Fröhlich", "Größler", "Hübner", "Imhof", "Jäger",
            "Köhler", "Lütke", "Müller", "Nordwind", "Österle", "Preuß", "Quandt", "Rößler", "Schäfer",
            "Thiele", "Übelacker", "Vogt", "Weiß", "Zöllner", "Sonne & Mond", "Kruse; Söhne",
            'Gasthof "Zur Post"', "Holst", "Ritter", "Falk",
        ),
        trades=(
            "Maschinenbau", "Getriebe", "Hydraulik", "Gießerei", "Werkzeuge", "Kältetechnik", "Pumpen",
            "Textil", "Verpackung", "Logistik", "Lacke", "Elektro", "Lebensmittel", "Holz", "Glas", "Stahl",
        ),
        towns=("Köln", "Bremen", "Fürth", "Hamburg", "Jena", "Kiel", "Ulm", "Gera"),
        legal_forms=(("GmbH", "Gesellschaft mbH"), ("AG", "Aktiengesellschaft"), ("KG", "Komm.-Ges.")),
    ),
}  # fmt: skip

TENANTS = tuple(_PROFILES)

# --- what does not --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Segment:
    name: str
    share: int  # of the customers, per 100
    online: int  # of their invoices, per 100
    terms_days: int
    credit_limit: int  # whole currency units
    net_quantiles: tuple[int, ...]  # nine amounts in cents: minimum, seven octiles and maximum


_SEGMENTS = (
    _Segment(
        "enterprise", 10, 5, 30, 250_000,
        (45_000, 98_000, 160_000, 240_000, 340_000, 480_000, 700_000, 1_200_000, 3_800_000),
    ),
    _Segment(
        "midmarket", 27, 12, 30, 60_000,
        (12_000, 28_000, 47_000, 70_000, 98_000, 140_000, 205_000, 330_000, 980_000),
    ),
    _Segment(
        "smb", 45, 25, 14, 15_000,
        (2_500, 7_000, 12_500, 19_000, 27_000, 38_000, 55_000, 88_000, 260_000),
    ),
    _Segment(
        "direct", 18, 75, 7, 2_000,
        (900, 2_100, 3_600, 5_500, 8_000, 11_500, 17_000, 28_000, 90_000),
    ),
)  # fmt: skip

_MONTH_WEIGHT = (88, 94, 112, 99, 103, 107, 93, 82, 106, 109, 118, 96)  # per 100
_WEEKDAY_WEIGHT = (112, 106, 102, 98, 82, 40, 30)
_MONTH_END_WEIGHT = 135  # the last three business days of a month
# Days from due date to booking of an ordinary payment, equally likely.
_ORDINARY_DELAY = (
    *(-6, -5, -4, -3, -3, -2, -2, -1, -1, -1),
    *(0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 8, 10, 12),
)
_EXPORT_COUNTRIES = ("FR", "NL", "IE", "US")
_LATE_AFTER_DAYS = 14
_NEGATIVE_INVOICES = 5
_BROKEN_OF_EACH_KIND = 3
_FOLDERS = {"invoices": "erp", "payments": "bank", "customers": "crm"}


class _Chance:
    """Independent streams of random 64-bit integers, one per purpose.

    A purpose added later does not disturb the numbers of the others.
    """

    def __init__(self, *key: object) -> None:
        self._key = "/".join(map(str, key))

    def bits(self, purpose: str, n: int) -> np.ndarray:
        """`n` uniform 64-bit integers, shape (n,), uint64; the same for the same key and purpose."""
        from numpy.random import Philox

        digest = hashlib.sha256(f"{self._key}/{purpose}".encode()).digest()
        return Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)

    def below(self, bound: int, purpose: str, n: int) -> list[int]:
        """`n` integers from 0 to `bound` - 1, uniform to within bound / 2**32."""
        return ((self.bits(purpose, n) >> 32) * bound >> 32).tolist()


# --- records --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Customer:
    """Changes as the weeks go by; `crm_name` ends as the CRM's latest."""

    id: str
    crm_name: str
    erp_name: str
    segment: _Segment
    country: str
    home_unit: str
    terms_days: int
    credit_limit: int
    quality_percent: int
    in_crm: bool
    since: int  # number of the business day it begins to order on: that of the CRM file that brings it


class _Invoice(NamedTuple):
    """The surviving version of an invoice; amounts in cents."""

    id: str
    customer: _Customer
    unit: str
    day: int  # number of the business day
    second: int  # of that day
    date: dt.date
    due: dt.date
    net: int
    gross: int


class _Payment(NamedTuple):
    """A payment the bank delivers; amount in cents."""

    invoice_id: str
    amount: int
    booked: dt.date
    second: int  # of the day
    payer: str
    file_day: int  # number of the business day whose file has it


class _Scene(NamedTuple):
    """What every step of the generation needs."""

    profile: _Profile
    chance: _Chance
    settings: calendar.CalendarSettings
    days: list[dt.date]

    def first_slow_due_date(self) -> dt.date:
        """First day of the last calendar month the sample holds to its end, or else of the sample."""
        end = self.days[-1]
        month_start = end.replace(day=1)
        if calendar.add_business_days(self.settings, end, 1).month == end.month:
            month_start = (month_start - _DAY).replace(day=1)
        return max(month_start, self.days[0])

    def day_on_or_after(self, date: dt.date) -> int:
        """Number of the first business day not before `date`; `len(days)` when it is past the last."""
        return bisect_left(self.days, date)


# The lines of one system's files before they are written: for each business day, with the time of day (in
# seconds) by which a file is sorted.
_Lines = list[list[tuple[int, bytes]]]


# --- writing --------------------------------------------------------------------------------------------


def write_sample(
    directory: Path,
    tenant: str,
    *,
    seed: int = DEFAULT_SEED,
    invoices: int = 50_000,
    business_days: int = 90,
    start: dt.date = DEFAULT_START,
) -> SampleFacts:
    """Writes one tenant's sample into `directory`, and returns the facts about it.

    The directory appears whole or not at all. A complete sample of the same parameters is left as it is;
    one of other parameters, or with files missing, is replaced. Two callers at once do the work once.

    Args:
        directory: of the tenant; gets the folders erp, bank and crm.
        tenant: one of `TENANTS`.
        seed: of all chance.
        invoices: invoices that survive, at least 200 and 5 a day; records are a few more.
        business_days: number of days with files, at least 10.
        start: a date; files begin with the first business day from it on.

    Raises:
        BareCountError: `usage` for parameters that are not allowed; `store.conflict` when `directory` holds
            something else than a sample.
    """
    _check_parameters(tenant, invoices, business_days)
    wanted = {
        "tenant": tenant,
        "seed": seed,
        "invoices": invoices,
        "business_days": business_days,
        "start": start,
        "version": _VERSION,
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.with_name(f".{directory.name}.new")
    replaced = directory.with_name(f".{directory.name}.old")
    with _alone(directory.with_name(f".{directory.name}.lock")):
        present = _facts_of(directory)
        if present is not None and all(getattr(present, name) == value for name, value in wanted.items()):
            return present
        for leftover in (building, replaced):  # of a process that was killed
            if leftover.exists():
                shutil.rmtree(leftover)
        facts = _generate(building, tenant, seed, invoices, business_days, start)
        (building / _FACTS_FILE).write_text(facts.to_json(), encoding="utf-8")
        if directory.exists():
            directory.rename(replaced)
        building.rename(directory)
        if replaced.exists():
            shutil.rmtree(replaced)
    return facts


def folder_of(data_dir: Path, tenant: str) -> Path:
    """Where a tenant's sample lies in the data folder of a project."""
    return data_dir / "sample" / tenant


def write_ahead(data_dir: Path, tenant: str, *, niceness: int = 0) -> None:
    """Let another process write a tenant's sample that is not there; who needs it calls `write_sample` all the same.

    Args:
        data_dir: of the project, see `folder_of`.
        tenant: one of `TENANTS`.
        niceness: of the process, from 0 to 19, as of the command `nice`.
    """
    directory = folder_of(data_dir, tenant)
    if not directory.exists():
        writing = multiprocessing.get_context("spawn").Process(
            target=write_sample, args=(directory, tenant), daemon=True)
        writing.start()
        if niceness > os.getpriority(os.PRIO_PROCESS, 0):  # only root may lower it
            os.setpriority(os.PRIO_PROCESS, writing.pid, niceness)


def write_upgraded_day(directory: Path, facts: SampleFacts) -> dt.date:
    """Writes the day after a sample's last, on which the upgraded ERP has a further column, and returns that day.

    Its invoices are those of the last day's customers under numbers of their own; `DiscountPct`, which no contract
    declares, says by how much the net amount was reduced. `facts` do not speak of this day.

    Args:
        directory: of the tenant, as `write_sample` left it.
    """
    profile = _PROFILES[facts.tenant]
    settings = calendar.CalendarSettings(
        country=profile.country, subdivision=profile.subdivision, weekend=("saturday", "sunday"), start=facts.start,
        end=facts.start, fiscal=FiscalSettings("standard", start_month=1),
    )
    day = calendar.add_business_days(settings, facts.end, 1)
    target = directory / "erp" / f"invoices_{day}_{_UPGRADED}.csv"
    if target.exists():
        return day
    with (directory / "erp" / f"invoices_{facts.end}.csv").open(encoding="windows-1252", newline="") as file:
        header, *records = csv.reader(file, delimiter=";")
    sound = [dict(zip(header, record, strict=True)) for record in records if len(record) == len(header)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*header, "DiscountPct"], delimiter=";", lineterminator="\n")
    writer.writeheader()
    for number, record in enumerate(sound[:_UPGRADED_INVOICES], start=1):
        writer.writerow({
            **record, "InvoiceID": f"INV9{number:06d}", "InvoiceDate": str(day), "DueDate": str(day + 30 * _DAY),
            "LastModified": f"{day} {_clock(8 * 3600 + 60 * number)}", "DiscountPct": f"{number % 4 * 5}.0",
        })
    unfinished = target.with_suffix(".tmp")
    unfinished.write_bytes(text.getvalue().encode("windows-1252"))
    unfinished.rename(target)
    return day


def _check_parameters(tenant: str, invoices: int, n_days: int) -> None:
    if tenant not in _PROFILES:
        raise BareCountError(
            ErrorCode.USAGE, f"there is no sample for tenant {tenant!r}, only for {', '.join(TENANTS)}"
        )
    for name, value, least in (
        ("business_days", n_days, _MIN_BUSINESS_DAYS),
        ("invoices", invoices, max(_MIN_INVOICES, n_days * _MIN_INVOICES_A_DAY)),
    ):
        if value < least:
            raise BareCountError(ErrorCode.USAGE, f"{name} is {value}; a sample needs at least {least}")


@contextmanager
def _alone(lock_file: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases also when the process is killed."""
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _facts_of(directory: Path) -> SampleFacts | None:
    """The facts of the sample in `directory`; None when there is none, or one that has to be written anew.

    Raises:
        BareCountError: `store.conflict` when something else is there, which must not be replaced.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    facts_file = directory / _FACTS_FILE
    if not facts_file.is_file():
        raise BareCountError(
            ErrorCode.STORE_CONFLICT,
            f"{directory} holds no sample (there is no {_FACTS_FILE}), so it is not overwritten",
            hint="name another folder, or remove this one",
        )
    text = facts_file.read_text(encoding="utf-8")
    if json.loads(text)["version"] != _VERSION:
        return None
    facts = SampleFacts.from_json(text)
    for name, folder in _FOLDERS.items():
        source = facts.sources[name]
        present = [file for file in (directory / folder).glob(f"{name}_*") if not file.stem.endswith(_UPGRADED)]
        if len(present) != source.files + source.redelivered_files:
            return None
    return facts


def _generate(
    directory: Path, tenant: str, seed: int, n_invoices: int, n_days: int, start: dt.date
) -> SampleFacts:
    profile = _PROFILES[tenant]
    settings = calendar.CalendarSettings(
        country=profile.country,
        subdivision=profile.subdivision,
        weekend=("saturday", "sunday"),
        start=start,  # range and fiscal year are not used: only the business days are
        end=start,
        fiscal=FiscalSettings("standard", start_month=1),
    )
    days = calendar.business_days(settings, start, n_days)
    scene = _Scene(profile, _Chance(seed, tenant), settings, days)
    customers = _customers(scene, n_invoices)
    erp: _Lines = [[] for _ in scene.days]
    bank: _Lines = [[] for _ in scene.days]

    invoices = _invoices(scene, customers, n_invoices)
    again = _deliver_invoices(scene, erp, invoices)
    _deliver_bad_invoices(scene, erp, invoices)
    payments = _payments(scene, invoices)
    unknown = _payments_to_unknown_invoices(scene, invoices, len(payments))
    twice = _deliver_payments(scene, bank, [*payments, *unknown])
    _deliver_bad_payments(scene, bank, invoices)

    for folder in _FOLDERS.values():
        (directory / folder).mkdir(parents=True)
    _write_lines(scene, erp, directory / "erp/invoices_{}.csv", _INVOICE_HEADER)
    _write_lines(scene, bank, directory / "bank/payments_{}.jsonl", b"")
    delivered = directory / f"erp/invoices_{scene.days[n_days // 4]}.csv"
    shutil.copyfile(delivered, delivered.with_stem(f"{delivered.stem}_redelivered"))
    crm_files, crm_records = _write_customers(scene, customers, directory / "crm")

    sources = {
        "invoices": SourceFacts(
            files=n_days,
            redelivered_files=1,
            received=sum(map(len, erp)),
            unparsable=_BROKEN_OF_EACH_KIND * len(_BREAK_INVOICE),
            rule_violations=_NEGATIVE_INVOICES,
            duplicate_records=again,
        ),
        "payments": SourceFacts(
            files=sum(map(bool, bank)),
            redelivered_files=0,
            received=sum(map(len, bank)),
            unparsable=_BROKEN_OF_EACH_KIND * len(_BREAK_PAYMENT),
            rule_violations=0,
            duplicate_records=twice,
        ),
        "customers": SourceFacts(
            files=crm_files,
            redelivered_files=0,
            received=crm_records,
            unparsable=0,
            rule_violations=0,
            duplicate_records=crm_records - sum(customer.in_crm for customer in customers),
        ),
    }
    by_id = {invoice.id: invoice for invoice in invoices}
    invoiced = {invoice.customer.id: invoice.customer for invoice in invoices}.values()
    return SampleFacts(
        tenant=tenant,
        seed=seed,
        invoices=n_invoices,
        business_days=n_days,
        start=start,
        end=scene.days[-1],
        currency=profile.currency,
        sources=sources,
        late_payments=sum((p.booked - by_id[p.invoice_id].due).days > _LATE_AFTER_DAYS for p in payments),
        late_arriving_payments=sum(p.booked < scene.days[p.file_day] for p in payments),
        partial_payments=sum(p.amount < by_id[p.invoice_id].gross for p in payments),
        over_payments=sum(p.amount > by_id[p.invoice_id].gross for p in payments),
        payments_to_unknown_invoices=len(unknown),
        unknown_customers=sum(not customer.in_crm for customer in invoiced),
        conflicting_customer_names=sum(c.in_crm and c.erp_name != c.crm_name for c in invoiced),
        **_amounts(scene, invoices, payments),
    )


def _write_lines(scene: _Scene, files: _Lines, template: Path, header: bytes) -> None:
    for day, lines in zip(scene.days, files, strict=True):
        if not lines:
            continue
        lines.sort(key=itemgetter(0))  # stable: lines of the same second stay as they were added
        path = template.with_name(template.name.format(day))
        path.write_bytes(header + b"".join(line for _, line in lines))


# --- customers ------------------------------------------------------------------------------------------


def _customers(scene: _Scene, n_invoices: int) -> list[_Customer]:
    """All customers, in the order in which they begin to order."""
    n = max(60, n_invoices // 40)
    weeks = _weekly_days(scene.days)
    n_newcomers = min(n // 3, n * 8 // 100 + len(weeks))
    n_first_day = n - n_newcomers
    by_share = [segment for segment in _SEGMENTS for _ in range(segment.share)]
    below, profile = scene.chance.below, scene.profile
    strangers = {n_first_day // 3 + i for i in below(n_first_day // 2, "stranger", max(3, n * 6 // 1000))}
    customers = []
    for i, (segment, sloppy, abroad, terms, unit, limit, quality) in enumerate(
        zip(
            below(100, "segment", n),
            below(1000, "sloppy", n),
            below(100, "abroad", n),
            below(10, "terms", n),
            below(100, "home", n),
            below(100, "limit", n),
            below(60, "quality", n),
            strict=True,
        )
    ):
        name, form, sloppy_form = _company(profile, i)
        segment = by_share[segment]
        newcomer = i - n_first_day
        customers.append(
            _Customer(
                id=f"C{i + 1:05d}",
                crm_name=f"{name} {form}",
                erp_name=_sloppy_name(name, form, sloppy_form, sloppy),
                segment=segment,
                country=profile.country if abroad >= 12 else _EXPORT_COUNTRIES[abroad % 4],
                home_unit="NORTH" if unit < 57 else "SOUTH",
                terms_days=segment.terms_days + (15 if terms == 0 else 0),
                credit_limit=segment.credit_limit * (50 + limit) // 100,
                quality_percent=40 + quality,
                in_crm=i not in strangers,
                since=0 if newcomer < 0 else weeks[newcomer * len(weeks) // n_newcomers],
            )
        )
    return customers


def _company(profile: _Profile, i: int) -> tuple[str, str, str]:
    """The i-th company: name without legal form, legal form, the form as a clerk writes it."""
    families, trades, towns = profile.families, profile.trades, profile.towns
    kinds = len(families) * len(trades)
    turn, kind = divmod(i, kinds)
    kind = kind * 7919 % kinds  # 7919 is prime: every kind once a turn, neighbours unlike
    name = f"{families[kind % len(families)]} {trades[kind // len(families)]}"
    if turn:
        name += f" {towns[(turn - 1) % len(towns)]}" + (f" {turn}" if turn > len(towns) else "")
    return name, *profile.legal_forms[i % len(profile.legal_forms)]


def _sloppy_name(name: str, form: str, sloppy_form: str, chance: int) -> str:
    """The name as the ERP has it: three in a hundred differ from the CRM's."""
    if chance < 14:
        return f"{name} {sloppy_form}"
    if chance < 24:
        return f"{name} {form}".upper()
    if chance < 30:
        return name
    return f"{name} {form}"


def _weekly_days(days: Sequence[dt.date]) -> list[int]:
    """Numbers of the days on which the CRM delivers changes: the first business day of each later week."""
    weeks = [day.isocalendar()[:2] for day in days]
    return [n for n in range(1, len(days)) if weeks[n] != weeks[n - 1]]


def _write_customers(scene: _Scene, customers: list[_Customer], folder: Path) -> tuple[int, int]:
    """Writes all customers of the first day, then those new or changed in a week; returns files, records.

    Every change is one of credit limit and quality; one in six is of the name as well, which the ERP never
    learns of.
    """
    known = [customer for customer in customers if customer.in_crm]
    day_seconds = scene.chance.below(6 * 3600, "crm second", len(known))
    ages = scene.chance.below(400, "crm age", len(known))
    rows = [
        (customer, _moment(scene.days[0] - (age + 1) * _DAY, 9 * 3600 + second))
        for customer, age, second in zip(known, ages, day_seconds, strict=True)
        if customer.since == 0
    ]
    _write_crm_file(folder, scene.days[0], rows)
    n_files, n_records = 1, len(rows)
    for day in _weekly_days(scene.days):
        old = [customer for customer in known if customer.since < day]
        picks = dict.fromkeys(scene.chance.below(len(old), f"crm change {day}", max(1, len(old) // 100)))
        changed = [old[pick] for pick in picks]
        for customer, kind in zip(
            changed, scene.chance.below(6, f"crm kind {day}", len(changed)), strict=True
        ):
            customer.credit_limit = customer.credit_limit * 11 // 10
            customer.quality_percent = min(100, customer.quality_percent + 1)
            if kind == 0 and "Holding" not in customer.crm_name:
                name, form = customer.crm_name.rsplit(" ", 1)
                customer.crm_name = f"{name} Holding {form}"
        fresh = [customer for customer in known if customer.since == day]
        rows = [
            (customer, _moment(scene.days[day], 5 * 3600 + 7 * n))
            for n, customer in enumerate([*changed, *fresh])
        ]
        _write_crm_file(folder, scene.days[day], rows)
        n_files, n_records = n_files + 1, n_records + len(rows)
    return n_files, n_records


def _write_crm_file(folder: Path, day: dt.date, rows: list[tuple[_Customer, dt.datetime]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [
        ("customer_id", pa.string(), [c.id for c, _ in rows]),
        ("name", pa.string(), [c.crm_name for c, _ in rows]),
        ("segment", pa.string(), [c.segment.name for c, _ in rows]),
        ("country", pa.string(), [c.country for c, _ in rows]),
        ("credit_limit", pa.decimal128(18, 2), [Decimal(c.credit_limit) for c, _ in rows]),
        ("payment_terms_days", pa.int32(), [c.terms_days for c, _ in rows]),
        ("quality_score", pa.float64(), [c.quality_percent / 100 for c, _ in rows]),
        ("updated_at", pa.timestamp("us"), [updated_at for _, updated_at in rows]),
    ]
    table = pa.table({name: pa.array(values, kind) for name, kind, values in columns})
    pq.write_table(table, folder / f"customers_{day}.parquet", compression="zstd")


# --- invoices -------------------------------------------------------------------------------------------


def _invoices(scene: _Scene, customers: list[_Customer], n_invoices: int) -> list[_Invoice]:
    """The surviving invoices, in the order of their numbers."""
    per_day = _invoices_per_day(scene, n_invoices)
    ordering = [bisect_right(customers, day, key=attrgetter("since")) for day in range(len(scene.days))]
    # A product of two uniform numbers: few customers order often, many rarely.
    skewed = (scene.chance.bits("customer a", n_invoices) >> 32) * (
        scene.chance.bits("customer b", n_invoices) >> 32
    ) >> 32
    below, tax_percent = scene.chance.below, scene.profile.tax_percent
    day_of_each = [day for day, count in enumerate(per_day) for _ in range(count)]
    invoices = []
    for n, ((day, second), skew, channel, octile, within) in enumerate(
        zip(
            sorted(zip(day_of_each, below(11 * 3600, "invoice second", n_invoices), strict=True)),
            skewed.tolist(),
            below(100, "channel", n_invoices),
            below(8, "octile", n_invoices),
            below(1 << 20, "within octile", n_invoices),
            strict=True,
        ),
        start=1,
    ):
        customer = customers[skew * ordering[day] >> 32]
        segment = customer.segment
        # Online gains a few points on the branches while the sample lasts.
        online = channel < segment.online + 6 * day // len(scene.days)
        low, high = segment.net_quantiles[octile : octile + 2]
        net = low + ((high - low) * within >> 20)
        if online:
            net = net * 60 // 100
        date = scene.days[day]
        invoices.append(
            _Invoice(
                id=f"INV{n:07d}",
                customer=customer,
                unit="ONLINE" if online else customer.home_unit,
                day=day,
                second=7 * 3600 + second,
                date=date,
                due=date + customer.terms_days * _DAY,
                net=net,
                gross=net + _tax(net, tax_percent),
            )
        )
    return invoices


def _invoices_per_day(scene: _Scene, n_invoices: int) -> list[int]:
    """Invoices of each business day, `n_invoices` in all: by season, weekday, month end, and some noise."""
    days = scene.days
    further = calendar.business_days(scene.settings, days[-1] + _DAY, 3)
    in_three_days = [*days, *further][3:]
    noises = scene.chance.below(17, "day", len(days))
    weights = [
        _MONTH_WEIGHT[day.month - 1]
        * _WEEKDAY_WEIGHT[day.weekday()]
        * (_MONTH_END_WEIGHT if later.month != day.month else 100)
        * (92 + noise)
        for day, later, noise in zip(days, in_three_days, noises, strict=True)
    ]
    upto = [n_invoices * weight // sum(weights) for weight in accumulate(weights, initial=0)]
    return [end - begin for begin, end in pairwise(upto)]


def _tax(net: int, percent: int) -> int:
    return (net * percent + 50) // 100


_INVOICE_HEADER = (
    b"InvoiceID;CustomerID;CustomerName;BusinessUnit;InvoiceDate;DueDate;Currency;"
    b"NetAmount;TaxAmount;GrossAmount;LastModified\n"
)


def _invoice_fields(scene: _Scene, invoice: _Invoice, net: int, day: int, second: int) -> list[str]:
    """The record of an invoice of `net` cents, last modified at `second` of business day `day`."""
    tax = _tax(net, scene.profile.tax_percent)
    return [
        invoice.id,
        invoice.customer.id,
        invoice.customer.erp_name,
        invoice.unit,
        str(invoice.date),
        str(invoice.due),
        scene.profile.currency,
        _money(net),
        _money(tax),
        _money(net + tax),
        f"{scene.days[day]} {_clock(second)}",
    ]


def _csv_line(fields: Sequence[str]) -> bytes:
    line = ";".join(fields)
    if '"' in line or line.count(";") >= len(fields):
        line = ";".join(
            '"' + field.replace('"', '""') + '"' if set(field) & set(';"') else field for field in fields
        )
    return f"{line}\n".encode("cp1252")


def _deliver_invoices(scene: _Scene, erp: _Lines, invoices: list[_Invoice]) -> int:
    """Adds every invoice, and some again: returns how many records more than invoices.

    Six in a thousand are corrected within four business days: the same id, another amount, a later
    LastModified. Of those, one in four comes a third time, as it was before the correction: who takes the
    last delivery for the latest version is wrong.
    """
    n, below = len(invoices), scene.chance.below
    again = 0
    for invoice, corrected, delay, factor, resent in zip(
        invoices,
        below(1000, "corrected", n),
        below(4, "correction delay", n),
        below(6, "correction factor", n),
        below(4, "resent", n),
        strict=True,
    ):
        correction_day = invoice.day + 1 + delay
        is_corrected = corrected < 6 and correction_day < len(scene.days)
        net = invoice.net * (80, 90, 95, 105, 110, 125)[factor] // 100 if is_corrected else invoice.net
        line = _csv_line(_invoice_fields(scene, invoice, net, invoice.day, invoice.second))
        erp[invoice.day].append((invoice.second, line))
        if not is_corrected:
            continue
        later = 7 * 3600 + invoice.second // 2
        correction = _csv_line(_invoice_fields(scene, invoice, invoice.net, correction_day, later))
        erp[correction_day].append((later, correction))
        again += 1
        resent_day = correction_day + 2
        if resent == 0 and resent_day < len(scene.days):
            erp[resent_day].append((invoice.second, line))
            again += 1
    return again


# Each gets the fields of a readable record and returns a line that cannot be read under the contract.
_BREAK_INVOICE: tuple[Callable[[list[str]], bytes], ...] = (
    lambda fields: _csv_line([*fields[:7], "N/A", *fields[8:]]),
    lambda fields: _csv_line([*fields[:7], "1.234,56", *fields[8:]]),
    lambda fields: _csv_line([*fields[:4], fields[4][:4] + "-02-30", *fields[5:]]),
    lambda fields: _csv_line(fields[:6]),
    lambda fields: ";".join([*fields[:2], "Smith; Jones", *fields[3:]]).encode("cp1252") + b"\n",
    lambda fields: _csv_line([*fields[:7], "12\x0034.00", *fields[8:]]),
    # 0x81 is no character of windows-1252.
    lambda fields: _csv_line([*fields[:2], "M~ller", *fields[3:7], "~", *fields[8:]]).replace(b"~", b"\x81"),
    # A quote that is never closed reaches to the end of the file: `_deliver_bad_invoices` puts it there.
    lambda fields: ";".join([*fields[:2], f'"{fields[2]}', *fields[3:]]).encode("cp1252") + b"\n",
)
_END_OF_DAY = 24 * 3600


def _deliver_bad_invoices(scene: _Scene, erp: _Lines, invoices: list[_Invoice]) -> None:
    """Adds the records that are to be quarantined. They have invoice ids of their own, which nobody pays."""
    n_kinds = len(_BREAK_INVOICE)
    n_broken = n_kinds * _BROKEN_OF_EACH_KIND
    n = n_broken + _NEGATIVE_INVOICES
    picks = scene.chance.below(len(invoices), "bad invoice", n)
    plain = [invoice for invoice in invoices if not set(invoice.customer.erp_name) & set(';"')]
    for i, pick in enumerate(picks):
        invoice = plain[pick % len(plain)]._replace(
            id=f"INV{len(invoices) + i + 1:07d}", second=12 * 3600 + i
        )
        if i >= n_broken:
            fields = _invoice_fields(scene, invoice, -invoice.net, invoice.day, invoice.second)
            erp[invoice.day].append((invoice.second, _csv_line(fields)))
            continue
        nth, kind = divmod(i, n_kinds)
        place = invoice.second
        if kind == n_kinds - 1:
            day = (2 * nth + 1) * len(scene.days) // (2 * _BROKEN_OF_EACH_KIND)  # never twice the same
            date = scene.days[day]
            invoice = invoice._replace(day=day, date=date, due=date + invoice.customer.terms_days * _DAY)
            place = _END_OF_DAY
        fields = _invoice_fields(scene, invoice, invoice.net, invoice.day, invoice.second)
        erp[invoice.day].append((place, _BREAK_INVOICE[kind](fields)))


# --- payments -------------------------------------------------------------------------------------------


def _payments(scene: _Scene, invoices: list[_Invoice]) -> list[_Payment]:
    """The payments of the invoices that reach the bank's files, in no particular order."""
    n, below = len(invoices), scene.chance.below
    slow_from = scene.first_slow_due_date()
    payments = []
    for invoice, habit, delay, slow, lateness, share, second, detour in zip(
        invoices,
        below(1000, "habit", n),
        below(len(_ORDINARY_DELAY), "delay", n),
        below(100, "slow", n),
        below(36, "lateness", n),
        below(30, "share", n),
        below(5 * 3600, "payment second", n),
        below(1000, "detour", n),
        strict=True,
    ):
        if habit < 10:
            continue  # never pays
        days_late = _ORDINARY_DELAY[delay]
        if habit < 60:
            days_late = 15 + lateness
        elif slow < scene.profile.slow_payers_percent and invoice.due >= slow_from:
            days_late += 18 + lateness
        gross, pay_from = invoice.gross, invoice.due + days_late * _DAY
        if 60 <= habit < 100:
            first = gross * (30 + share) // 100
            instalments = [(0, first), (14 + lateness // 3, (gross - first) // 2)]
            if share % 4:  # else the rest never comes
                instalments.append((28 + lateness // 2, gross - first - (gross - first) // 2))
        elif 100 <= habit < 106:
            instalments = [(0, gross + gross * (1 + share) // 100 + 100)]
        else:
            instalments = [(0, gross)]
            if invoice.unit == "ONLINE" and share < 10:  # by card, at once
                pay_from = invoice.date
        for wait, amount in instalments:
            # A bank books on business days only.
            booked_day = scene.day_on_or_after(pay_from + wait * _DAY)
            file_day = booked_day + (2 + detour if detour < 4 else 0)
            if file_day < len(scene.days):
                payments.append(
                    _Payment(
                        invoice.id,
                        amount,
                        scene.days[booked_day],
                        18 * 3600 + second,  # in the evening, after the day's invoices
                        invoice.customer.erp_name,
                        file_day,
                    )
                )
    return payments


def _payments_to_unknown_invoices(scene: _Scene, invoices: list[_Invoice], n_payments: int) -> list[_Payment]:
    """Payments of one in a thousand more, with mistyped invoice ids."""
    n = max(3, n_payments // 1000)
    picks = scene.chance.below(len(invoices), "mistyped", n)
    return [
        _Payment(
            f"INV{9_000_000 + pick:07d}",
            invoices[pick].gross,
            invoices[pick].date,
            10 * 3600 + pick % 3600,
            invoices[pick].customer.erp_name,
            invoices[pick].day,
        )
        for pick in picks
    ]


def _deliver_payments(scene: _Scene, bank: _Lines, payments: list[_Payment]) -> int:
    """Adds every payment, three in a thousand twice, in one file or in two; returns how many twice."""
    in_order = sorted(payments, key=attrgetter("booked", "second", "invoice_id", "amount"))
    twice = 0
    for n, (payment, repeated) in enumerate(
        zip(in_order, scene.chance.below(1000, "repeated", len(in_order)), strict=True), start=1
    ):
        line = _json_line(scene, f"P{n:07d}", payment)
        bank[payment.file_day].append((payment.second, line))
        if repeated < 3:
            other_day = min(payment.file_day + repeated % 2, len(scene.days) - 1)
            bank[other_day].append((payment.second, line))
            twice += 1
    return twice


def _json_line(scene: _Scene, payment_id: str, payment: _Payment) -> bytes:
    return (
        f'{{"paymentId": "{payment_id}", "invoiceId": "{payment.invoice_id}",'
        f' "amount": {_money(payment.amount)}, "currency": "{scene.profile.currency}",'
        f' "bookedAt": "{payment.booked}T{_clock(payment.second)}", "payer": {_json_text(payment.payer)},'
        f' "reference": "{scene.profile.reference} {payment.invoice_id}"}}\n'
    ).encode()


# Each gets a readable line and returns one that cannot be read under the contract.
_BREAK_PAYMENT: tuple[Callable[[bytes], bytes], ...] = (
    lambda line: line[: len(line) // 2] + b"\n",
    lambda line: re.sub(rb'"amount": [0-9.]+', b'"amount": "N/A"', line),
    lambda line: re.sub(rb'"bookedAt": "(\d+)-\d\d-\d\dT', rb'"bookedAt": "\1-02-30T', line),
    lambda line: line.replace(b'"payer": "', b'"payer": "\x00'),
    lambda line: line.replace(b'"payer": "', b'"payer": "\xff\xfe'),
    lambda line: b"-- connection lost, export resumed --\n",
)


def _deliver_bad_payments(scene: _Scene, bank: _Lines, invoices: list[_Invoice]) -> None:
    """Adds the lines that are to be quarantined. Their payment ids are their own."""
    n = len(_BREAK_PAYMENT) * _BROKEN_OF_EACH_KIND
    for i, pick in enumerate(scene.chance.below(len(invoices), "bad payment", n)):
        invoice, second = invoices[pick], 13 * 3600 + i
        payment = _Payment(
            invoice.id, invoice.gross, invoice.date, second, invoice.customer.erp_name, invoice.day
        )
        line = _BREAK_PAYMENT[i % len(_BREAK_PAYMENT)](_json_line(scene, f"P{9_000_001 + i}", payment))
        bank[invoice.day].append((second, line))


# --- what the KPIs must come to -------------------------------------------------------------------------


def _amounts(
    scene: _Scene, invoices: list[_Invoice], payments: list[_Payment]
) -> dict[str, dict[tuple[str, str], Decimal]]:
    """Revenue, gross, open and overdue amounts by month and business unit, as `SampleFacts` defines them."""
    paid: dict[str, list[_Payment]] = defaultdict(list)
    for payment in payments:
        paid[payment.invoice_id].append(payment)
    months = sorted({(day.year, day.month) for day in scene.days})
    month_ends = [dt.date(year + month // 12, month % 12 + 1, 1) - _DAY for year, month in months]
    month_names = [f"{end:%Y-%m}" for end in month_ends]
    month_of_day = [bisect_left(month_ends, day) for day in scene.days]
    cells = [(month, unit) for month in month_names for unit in BUSINESS_UNITS]
    cents = {name: dict.fromkeys(cells, 0) for name in _AMOUNTS}
    for invoice in invoices:
        first = month_of_day[invoice.day]
        cents["revenue"][month_names[first], invoice.unit] += invoice.net
        cents["gross_invoiced"][month_names[first], invoice.unit] += invoice.gross
        for month in range(first, len(months)):
            end = month_ends[month]
            received = sum([payment.amount for payment in paid[invoice.id] if payment.booked <= end])
            if received >= invoice.gross:
                break  # paid for good
            cents["open_amount"][month_names[month], invoice.unit] += invoice.gross - received
            if invoice.due < end:
                cents["overdue_amount"][month_names[month], invoice.unit] += invoice.gross - received
    return {
        name: {cell: Decimal(amount).scaleb(-2) for cell, amount in by_cell.items()}
        for name, by_cell in cents.items()
    }


# --- formats --------------------------------------------------------------------------------------------


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}" if cents >= 0 else "-" + _money(-cents)


_json_text = json.JSONEncoder(ensure_ascii=False).encode


def _clock(second: int) -> str:
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


def _moment(day: dt.date, second: int) -> dt.datetime:
    return dt.datetime.combine(day, dt.time()) + dt.timedelta(seconds=second)
