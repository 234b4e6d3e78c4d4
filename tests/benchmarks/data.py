"""What the benchmarks load: TPC-H lineitem as Parquet, and invoice lines as CSV. Generated once, always the same."""

from __future__ import annotations

import csv
import datetime as dt
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

PROJECT = Path(__file__).resolve().parents[2]
OVERLAY = Path(__file__).resolve().parent / "project"
FIRST_DAY = dt.date(2010, 12, 1)
DAYS = 300
LINES_PER_DAY = 1_800  # online retail's average


@dataclass(frozen=True)
class Inputs:
    """Where everything lies.

    Attributes:
        project: the shipped project together with the benchmark's pipeline `tpch`.
        lineitem: folder with `lineitem.parquet`.
        lineitem_rows: its rows.
        one_csv: folder with one CSV file of the first day, as many lines as `many_csv` has.
        many_csv: folder with one CSV file per day.
    """

    project: str
    lineitem: str
    lineitem_rows: int
    one_csv: str
    many_csv: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def prepare(folder: Path, scale: float) -> Inputs:
    """Generate what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    project = folder / "project"
    shutil.rmtree(project, ignore_errors=True)
    for name in ("contracts", "dbt_project"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("target", "logs"))
    shutil.copytree(OVERLAY, project, dirs_exist_ok=True)
    # As a project is committed: with the definitions of its models beside what it declares.
    subprocess.run([Path(sys.executable).with_name("barecount"), "definitions", "lock"], check=True, env={
        **os.environ, "BARECOUNT_PROJECT_DIR": str(project), "BARECOUNT_DATA_DIR": str(folder / "definitions")},
        stdout=subprocess.DEVNULL)
    lineitem = _once(folder / f"tpch-{scale:g}", lambda path: _lineitem(path, scale))
    days = max(1, round(DAYS * min(scale, 1)))
    many = _once(folder / f"csv-{days}", lambda path: _daily_csv(path, days))
    one = _once(folder / f"csv-1-{days}", lambda path: _joined_csv(path, many))
    rows = pq.ParquetFile(lineitem / "lineitem.parquet").metadata.num_rows
    return Inputs(str(project), str(lineitem), rows, str(one), str(many))


def _once(path: Path, make: Any) -> Path:
    """A folder that is either whole or not there."""
    if not path.is_dir():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.mkdir()
        make(unfinished)
        unfinished.rename(path)
    return path


def _lineitem(folder: Path, scale: float) -> None:
    generator = Path(sys.executable).with_name("tpchgen-cli")
    subprocess.run(
        [generator, "parquet", "--scale-factor", f"{scale:g}", "--tables", "lineitem", "--output-dir", folder,
         "--quiet"],
        check=True,
    )


def _daily_csv(folder: Path, days: int) -> None:
    """Invoice lines of a shop: 20 to an invoice, 4,000 products, every fourth without a customer."""
    chance = random.Random(541909)
    products = [
        (f"{chance.randrange(10_000, 99_999)}{chance.choice('ABCDE')}",
         " ".join(chance.choice(_WORDS) for _ in range(4)), f"{chance.randrange(20, 2_000) / 100:.2f}")
        for _ in range(4_000)
    ]
    invoice = 536_365
    for number in range(days):
        day = FIRST_DAY + dt.timedelta(number)
        with (folder / f"{day}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_HEADER)
            for line in range(LINES_PER_DAY):
                if line % 20 == 0:
                    invoice += 1
                    customer = "" if chance.random() < 0.25 else f"{chance.randrange(12_346, 18_288)}.0"
                    booked = f"{day} {8 + line * 10 // LINES_PER_DAY:02d}:{chance.randrange(60):02d}:00"
                    country = "United Kingdom" if chance.random() < 0.9 else chance.choice(_COUNTRIES)
                code, description, price = chance.choice(products)
                writer.writerow(
                    (invoice, code, description, chance.randrange(1, 48), booked, price, customer, country))


def _joined_csv(folder: Path, daily: Path) -> None:
    with (folder / f"{FIRST_DAY}.csv").open("wb") as whole:
        for number, path in enumerate(sorted(daily.iterdir())):
            with path.open("rb") as part:
                if number:
                    part.readline()
                shutil.copyfileobj(part, whole)


_HEADER = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
_COUNTRIES = ("Germany", "France", "EIRE", "Spain", "Netherlands", "Belgium", "Switzerland", "Portugal")
_WORDS = (
    "WHITE HANGING HEART T-LIGHT HOLDER CREAM CUPID COAT HANGER KNITTED UNION FLAG HOT WATER BOTTLE RED WOOLLY SET "
    "NESTING BOXES GLASS STAR FROSTED HAND WARMER JACK POLKA DOT ASSORTED COLOUR BIRD ORNAMENT BOX OF VINTAGE "
    "ALPHABET BLOCKS PINK PARTY SUNGLASSES LUNCH BAG RETROSPOT METAL SIGN"
).split()
