"""The sample generator: its files are read again here with nothing but the standard library (and pyarrow for
Parquet), classified record by record, and must come to exactly what `SampleFacts` promises."""

import calendar
import csv
import dataclasses
import datetime as dt
import hashlib
import io
import json
import multiprocessing
from collections import Counter, defaultdict
from decimal import Decimal, InvalidOperation
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from barecount_assets import sample
from barecount_assets.sample import BUSINESS_UNITS, TENANTS, SampleFacts, SourceFacts, write_sample
from resources.runtime.errors import BareCountError, ErrorCode

INVOICES = 4_000
INVOICE_COLUMNS = (
    "InvoiceID;CustomerID;CustomerName;BusinessUnit;InvoiceDate;DueDate;Currency;"
    "NetAmount;TaxAmount;GrossAmount;LastModified"
).split(";")


@pytest.fixture(scope="module", params=TENANTS)
def written(request, tmp_path_factory) -> tuple[Path, SampleFacts]:
    directory = tmp_path_factory.mktemp("sample") / request.param
    return directory, write_sample(directory, request.param, invoices=INVOICES)


def small(directory: Path, **changes) -> SampleFacts:
    return write_sample(directory, **({"tenant": "acme", "invoices": 300, "business_days": 15} | changes))


# --- reading it again -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Read:
    """The records of one source in order of delivery, those of a redelivered file left out."""

    accepted: list[dict]
    unparsable: int = 0
    rule_violations: int = 0
    files: int = 0
    redelivered_files: int = 0

    def facts(self, key: str) -> SourceFacts:
        return SourceFacts(
            files=self.files,
            redelivered_files=self.redelivered_files,
            received=len(self.accepted) + self.unparsable + self.rule_violations,
            unparsable=self.unparsable,
            rule_violations=self.rule_violations,
            duplicate_records=len(self.accepted) - len({record[key] for record in self.accepted}),
        )


def new_files(folder: Path, read: Read):
    """The files of a folder by name, each content once, with the date in their name."""
    seen = set()
    for path in sorted(folder.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in seen:
            read.redelivered_files += 1
            continue
        seen.add(digest)
        read.files += 1
        yield path, dt.date.fromisoformat(path.name.split("_")[1][:10])


def read_invoices(directory: Path) -> Read:
    read = Read([])
    for path, day in new_files(directory / "erp", read):
        # Undefined bytes become U+FFFD, so that one of them does not take the whole file down.
        text = path.read_bytes().decode("cp1252", errors="replace")
        header, *rows = csv.reader(io.StringIO(text), delimiter=";")
        assert header == INVOICE_COLUMNS
        for row in rows:
            record = parsed_invoice(row)
            if record is None:
                read.unparsable += 1
            elif record["GrossAmount"] < 0:
                read.rule_violations += 1
            else:
                read.accepted.append(record | {"file": day})
    return read


def parsed_invoice(row: list[str]) -> dict | None:
    if len(row) != len(INVOICE_COLUMNS) or any("\x00" in field or "\ufffd" in field for field in row):
        return None
    record = dict(zip(INVOICE_COLUMNS, row, strict=True))
    try:
        for name in ("InvoiceDate", "DueDate"):
            record[name] = dt.datetime.strptime(record[name], "%Y-%m-%d").date()
        for name in ("NetAmount", "TaxAmount", "GrossAmount"):
            record[name] = Decimal(record[name])
        record["LastModified"] = dt.datetime.strptime(record["LastModified"], "%Y-%m-%d %H:%M:%S")
    except (ValueError, InvalidOperation):
        return None
    return record


def read_payments(directory: Path) -> Read:
    read = Read([])
    for path, day in new_files(directory / "bank", read):
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line.decode("utf-8"), parse_float=Decimal)
                record["bookedAt"] = dt.datetime.strptime(record["bookedAt"], "%Y-%m-%dT%H:%M:%S")
                if not isinstance(record["amount"], Decimal):
                    raise ValueError
            except ValueError:
                read.unparsable += 1
            else:
                read.accepted.append(record | {"file": day})
    return read


def read_customers(directory: Path) -> Read:
    read = Read([])
    for path, day in new_files(directory / "crm", read):
        read.accepted += [record | {"file": day} for record in pq.read_table(path).to_pylist()]
    return read


def surviving(records: list[dict], key: str, latest: str) -> dict[str, dict]:
    return {record[key]: record for record in sorted(records, key=lambda record: record[latest])}


# --- what it promises -----------------------------------------------------------------------------------


def test_every_source_has_the_counted_files_and_records(written):
    directory, facts = written
    assert read_invoices(directory).facts("InvoiceID") == facts.sources["invoices"]
    assert read_payments(directory).facts("paymentId") == facts.sources["payments"]
    assert read_customers(directory).facts("customer_id") == facts.sources["customers"]


def test_what_is_wrong_with_payments_and_customers_is_counted(written):
    directory, facts = written
    invoices = surviving(read_invoices(directory).accepted, "InvoiceID", "LastModified")
    customers = surviving(read_customers(directory).accepted, "customer_id", "updated_at")
    first_delivery = {p["paymentId"]: p for p in reversed(read_payments(directory).accepted)}
    found = Counter()
    for payment in first_delivery.values():
        invoice = invoices.get(payment["invoiceId"])
        found["late_arriving_payments"] += payment["bookedAt"].date() < payment["file"]
        if invoice is None:
            found["payments_to_unknown_invoices"] += 1
            continue
        found["late_payments"] += (payment["bookedAt"].date() - invoice["DueDate"]).days > 14
        found["partial_payments"] += payment["amount"] < invoice["GrossAmount"]
        found["over_payments"] += payment["amount"] > invoice["GrossAmount"]
    names = {(invoice["CustomerID"], invoice["CustomerName"]) for invoice in invoices.values()}
    found["unknown_customers"] = sum(customer not in customers for customer, _ in names)
    found["conflicting_customer_names"] = sum(
        customer in customers and customers[customer]["name"] != name for customer, name in names
    )
    assert found == {name: getattr(facts, name) for name in found}
    assert all(count > 0 for count in found.values())


def test_the_amounts_of_the_facts_follow_from_the_files(written):
    directory, facts = written
    invoices = surviving(read_invoices(directory).accepted, "InvoiceID", "LastModified")
    assert len(invoices) == facts.invoices
    paid = defaultdict(dict)
    for payment in read_payments(directory).accepted:
        paid[payment["invoiceId"]][payment["paymentId"]] = payment
    months = sorted({f"{invoice['InvoiceDate']:%Y-%m}" for invoice in invoices.values()})
    sums = {
        name: dict.fromkeys(((month, unit) for month in months for unit in BUSINESS_UNITS), Decimal("0.00"))
        for name in ("revenue", "gross_invoiced", "open_amount", "overdue_amount")
    }
    for number, invoice in invoices.items():
        unit, gross = invoice["BusinessUnit"], invoice["GrossAmount"]
        invoiced = f"{invoice['InvoiceDate']:%Y-%m}"
        sums["revenue"][invoiced, unit] += invoice["NetAmount"]
        sums["gross_invoiced"][invoiced, unit] += gross
        for month in months[months.index(invoiced) :]:
            year, number_of_month = map(int, month.split("-"))
            end = dt.date(year, number_of_month, calendar.monthrange(year, number_of_month)[1])
            received = sum(p["amount"] for p in paid[number].values() if p["bookedAt"].date() <= end)
            still_open = max(Decimal(0), gross - received)
            sums["open_amount"][month, unit] += still_open
            sums["overdue_amount"][month, unit] += still_open if invoice["DueDate"] < end else 0
    assert sums == {name: getattr(facts, name) for name in sums}


def test_an_invoice_adds_up_and_comes_in_the_tenants_currency(written):
    directory, facts = written
    for invoice in read_invoices(directory).accepted:
        assert invoice["NetAmount"] + invoice["TaxAmount"] == invoice["GrossAmount"] > 0
        assert invoice["Currency"] == facts.currency
        assert invoice["InvoiceDate"] < invoice["DueDate"]
        assert invoice["BusinessUnit"] in BUSINESS_UNITS
    assert {payment["currency"] for payment in read_payments(directory).accepted} == {facts.currency}


def test_a_correction_comes_in_a_later_file_and_sometimes_the_old_version_after_it(written):
    directory, _ = written
    versions = defaultdict(list)
    for invoice in read_invoices(directory).accepted:
        versions[invoice["InvoiceID"]].append(invoice)
    several = [records for records in versions.values() if len(records) > 1]
    for first, correction, *resent in several:
        assert first["file"] < correction["file"]
        assert first["LastModified"] < correction["LastModified"]
        assert first["GrossAmount"] != correction["GrossAmount"]
        for again in resent:
            assert again["file"] > correction["file"]
            assert again | {"file": first["file"]} == first
    assert {len(records) for records in several} == {2, 3}


def test_the_redelivered_file_has_the_bytes_and_the_date_of_the_first(written):
    directory, _ = written
    first = directory / "erp/invoices_2026-02-03.csv"
    assert first.read_bytes() == (directory / "erp/invoices_2026-02-03_redelivered.csv").read_bytes()


def test_files_are_there_for_90_business_days_of_the_country(written):
    directory, facts = written
    days = {path.stem.split("_")[1] for path in (directory / "erp").iterdir()}
    assert len(days) == facts.business_days == 90
    assert min(days) == "2026-01-02" and max(days) == str(facts.end)
    holidays = {"acme": ("2026-05-04", "2026-05-01"), "globex": ("2026-05-01", "2026-05-04")}
    closed, open_ = holidays[facts.tenant]
    assert closed not in days and open_ in days


def test_the_crm_delivers_all_known_customers_first_and_changes_weekly(written):
    directory, _ = written
    files = Counter(record["file"] for record in read_customers(directory).accepted)
    first, *weekly = sorted(files)
    assert all(files[first] > 5 * files[day] > 0 for day in weekly)
    assert all(day.weekday() == 0 or day in (dt.date(2026, 4, 7), dt.date(2026, 5, 5)) for day in weekly)
    schema = pq.read_schema(directory / f"crm/customers_{first}.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "customer_id": "string",
        "name": "string",
        "segment": "string",
        "country": "string",
        "credit_limit": "decimal128(18, 2)",
        "payment_terms_days": "int32",
        "quality_score": "double",
        "updated_at": "timestamp[us]",
    }


def test_a_customer_orders_only_once_the_crm_knows_it_or_never_will(written):
    directory, _ = written
    known_from = {c["customer_id"]: c["file"] for c in reversed(read_customers(directory).accepted)}
    for invoice in read_invoices(directory).accepted:
        assert invoice["InvoiceDate"] >= known_from.get(invoice["CustomerID"], invoice["InvoiceDate"])


def test_days_sales_outstanding_rises_in_the_last_full_month_for_globex_only(written):
    _, facts = written

    def dso(month: str, days: int) -> Decimal:
        still_open = sum(facts.open_amount[month, unit] for unit in BUSINESS_UNITS)
        return still_open / sum(facts.gross_invoiced[month, unit] for unit in BUSINESS_UNITS) * days

    rise = dso("2026-04", 30) - dso("2026-03", 31)
    assert rise > 10 if facts.tenant == "globex" else abs(rise) < 8


# --- how it is written ----------------------------------------------------------------------------------


def content_hash(directory: Path) -> str:
    """Of all CSV and JSON bytes, and of the values in the Parquet files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(directory)).encode())
        is_parquet = path.suffix == ".parquet"
        digest.update(repr(pq.read_table(path).to_pylist()).encode() if is_parquet else path.read_bytes())
    return digest.hexdigest()


def test_the_same_parameters_give_the_same_content_everywhere(tmp_path: Path):
    # Computed once and for all: it may change only together with the generator's version.
    expected = {
        "acme": "98a485d25b2c0fad23ad02fc3aea1bae533c937ff686e0a80cc750f19bc2cb9b",
        "globex": "a40fa7ff755c528bf8ec18afc34e8549bbe21d02352f02af350ddddd658ff0e8",
    }
    assert sample._VERSION == 1
    for tenant in TENANTS:
        small(tmp_path / tenant, tenant=tenant)
    assert {tenant: content_hash(tmp_path / tenant) for tenant in TENANTS} == expected


def test_another_seed_gives_other_records(tmp_path: Path):
    one, other = small(tmp_path / "one"), small(tmp_path / "other", seed=1)
    assert one.revenue != other.revenue
    assert one.sources["invoices"].unparsable == other.sources["invoices"].unparsable


def test_facts_survive_their_file(tmp_path: Path):
    facts = small(tmp_path / "acme")
    assert SampleFacts.from_json((tmp_path / "acme/facts.json").read_text(encoding="utf-8")) == facts


def test_a_complete_sample_is_left_as_it_is(tmp_path: Path):
    facts = small(tmp_path / "acme")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "acme").rglob("*")}
    assert small(tmp_path / "acme") == facts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "acme").rglob("*")} == before


def test_other_parameters_replace_the_sample(tmp_path: Path):
    small(tmp_path / "acme")
    facts = small(tmp_path / "acme", business_days=12)
    assert len(list((tmp_path / "acme/erp").iterdir())) == 12 + facts.sources["invoices"].redelivered_files
    assert facts.sources["invoices"].files == facts.business_days == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == [".acme.lock", "acme"]


def test_a_sample_with_a_file_missing_is_made_whole(tmp_path: Path):
    small(tmp_path / "acme")
    whole = content_hash(tmp_path / "acme")
    (tmp_path / "acme/erp/invoices_2026-01-08.csv").unlink()
    small(tmp_path / "acme")
    assert content_hash(tmp_path / "acme") == whole


def test_a_crash_leaves_the_earlier_sample_and_the_next_call_succeeds(tmp_path: Path, monkeypatch):
    facts = small(tmp_path / "acme")
    with monkeypatch.context() as patched:
        patched.setattr(sample, "_write_customers", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            small(tmp_path / "acme", seed=1)
    assert small(tmp_path / "acme") == facts
    assert small(tmp_path / "acme", seed=1) != facts
    assert not (tmp_path / ".acme.new").exists()


def test_two_processes_at_once_write_one_sample(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        one, other = pool.map(small, [tmp_path / "acme"] * 2)
    assert one == other == small(tmp_path / "acme")


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(BareCountError) as refused:
        small(tmp_path)
    assert refused.value.code is ErrorCode.STORE_CONFLICT
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "acme").mkdir()
    assert small(tmp_path / "acme").sources["invoices"].files == 15


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tenant": "initech"}, "no sample for tenant 'initech', only for acme, globex"),
        ({"invoices": 10}, "invoices is 10; a sample needs at least 200"),
        ({"business_days": 3}, "business_days is 3; a sample needs at least 10"),
        ({"business_days": 90}, "invoices is 300; a sample needs at least 450"),
    ],
)
def test_parameters_it_cannot_serve_are_refused(tmp_path: Path, changes: dict, says: str):
    with pytest.raises(BareCountError) as refused:
        small(tmp_path / "acme", **changes)
    assert refused.value.code is ErrorCode.USAGE
    assert says in refused.value.message
    assert not list(tmp_path.iterdir())
