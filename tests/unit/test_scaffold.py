"""`barecount new`: how the dates in the names of a sample's files become the manifest's `file_name`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from barecount_assets import scaffold
from resources.runtime.errors import BareCountError, ErrorCode


def source_of(folder: Path, *names: str, file_name: str | None = None, one_file: bool = False) -> dict[str, Any]:
    """The source in the manifest that is written for files of these names, and the partitions' start beside it."""
    for name in names:
        (folder / name).write_text("id,at,amount\n1,2026-05-04,1.50\n")
    path = folder / names[0] if one_file else folder
    contents = scaffold.plan(folder / "project", scaffold.Request(
        "shop", path, "order", "id", "at", "amount", None, "acme", "a@b.example", file_name=file_name))
    spec = yaml.safe_load(contents[Path("contracts/pipelines/shop.yaml")])["spec"]
    (source,) = spec["sources"]
    return source | {"start": str(spec["partitions"]["start"])}


@pytest.mark.parametrize(("names", "file_name", "start"), [
    (["2026-05-04.csv", "2026-05-03.csv"], "{date}*.csv", "2026-05-03"),
    (["sales_20260504.csv", "sales_20260505.csv"], "sales_{date:%Y%m%d}*.csv", "2026-05-04"),
    (["04.05.2026.csv", "31.05.2026.csv"], "{date:%d.%m.%Y}*.csv", "2026-05-04"),
    (["05-04-2026.csv", "05-31-2026.csv"], "{date:%m-%d-%Y}*.csv", "2026-05-04"),
    (["May 2026.csv", "June 2026.csv"], "{date:%B %Y}*.csv", "2026-05-01"),
])
def test_the_format_that_reads_every_name_is_declared(
    tmp_path: Path, names: list[str], file_name: str, start: str
) -> None:
    source = source_of(tmp_path, *names)
    assert (source["file_name"], source["start"]) == (file_name, start)


@pytest.mark.parametrize("names", [["export_9.csv", "export_10.csv"], ["orders.csv"]])
def test_names_without_dates_are_left_alone(tmp_path: Path, names: list[str]) -> None:
    assert not source_of(tmp_path, *names).keys() & {"file_name", "order"}


@pytest.mark.parametrize("names", [["04-05-2026.csv"], ["a_20260504.csv", "b_20260504.csv"]])
def test_names_that_can_be_read_in_two_ways_or_in_none_are_asked_about(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(BareCountError) as asked:
        source_of(tmp_path, *names)
    assert asked.value.code is ErrorCode.USAGE and "--file-name" in (asked.value.hint or "")


@pytest.mark.parametrize(("given", "order"), [("{date:%m-%d-%Y}*.csv", None), ("*.csv", "landing")])
def test_what_the_user_says_of_the_names_is_declared(tmp_path: Path, given: str, order: str | None) -> None:
    source = source_of(tmp_path, "04-05-2026.csv", file_name=given)
    assert (source["file_name"], source.get("order")) == (given, order)


def test_one_file_whose_name_looks_dated_is_ordered_by_landing(tmp_path: Path) -> None:
    source = source_of(tmp_path, "sales_20260504.csv", one_file=True)
    assert (source["order"], "file_name" in source) == ("landing", False)
