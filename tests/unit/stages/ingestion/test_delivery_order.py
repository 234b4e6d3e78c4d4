"""Keys of deliveries: their binary order is the order of what they stand for, also when keys follow one another."""

import datetime as dt
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barecount_assets.stages.ingestion.delivery_order import (
    cursor_key,
    instant_key,
    landing_key,
    natural_key,
    number_key,
    replay_key,
    text_key,
)

NUMBERS = st.integers() | st.decimals(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
LANDINGS = st.integers(1, 10**12 - 1)
KINDS = [
    (number_key, NUMBERS, lambda value: value),
    (number_key, st.integers(-20, 20), lambda value: value),
    (instant_key, st.dates(), lambda value: value),
    (instant_key, st.datetimes(), lambda value: value),
    (instant_key, st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=st.timezones()),
     lambda value: value.astimezone(dt.UTC)),
    (text_key, TEXTS, lambda value: value),
    (landing_key, LANDINGS, lambda value: value),
]


def binary(key: str) -> bytes:
    """What collation "C" compares."""
    return key.encode()


@pytest.mark.parametrize(("key", "values", "typed"), KINDS)
@given(data=st.data())
def test_the_binary_order_of_keys_is_the_order_of_values(key: Any, values: Any, typed: Any, data: Any) -> None:
    one, other = data.draw(values), data.draw(values)
    first, second = binary(key(one)), binary(key(other))
    assert (first < second, first == second) == (typed(one) < typed(other), typed(one) == typed(other))


@pytest.mark.parametrize(("key", "values", "typed"), KINDS)
@given(data=st.data())
def test_keys_put_one_after_the_other_compare_as_tuples_do(key: Any, values: Any, typed: Any, data: Any) -> None:
    pairs = data.draw(st.tuples(st.tuples(values, LANDINGS), st.tuples(values, LANDINGS)))
    (one, first), (other, second) = ((binary(key(value) + landing_key(number)), (typed(value), number))
                                     for value, number in pairs)
    assert (one < other) == (first < second)


NAMES = st.lists(st.sampled_from(["a", "B", "-", "0", "1", "07", "9", "10", "99999999", "123456789", "é", " ", "/"]))


def people_order(name: str) -> list[tuple[bool, Any]]:
    """A plain model of natural order: characters one by one, runs of digits as numbers, which stand where 1 to 9 do."""
    parts = re.findall(r"[0-9]+|[^0-9]", name)
    return [("1", int(part)) if part[0].isdigit() else (part, 0) for part in parts]  # type: ignore[misc]


@given(NAMES.map("".join), NAMES.map("".join))
def test_natural_order_compares_runs_of_digits_as_numbers(one: str, other: str) -> None:
    first, second = people_order(one), people_order(other)
    assert (binary(natural_key(one)) < binary(natural_key(other))) == (first < second)


def test_natural_order_of_names_as_people_write_them() -> None:
    names = ["export.csv", "export (1).csv", "export (2).csv", "export (10).csv", "export-9.csv", "export-10.csv",
             "export-10b.csv", "export_007.csv", "export_8.csv", "export_20260504.csv", "export_20260504_2.csv"]
    assert sorted(names, key=natural_key) == names


@given(LANDINGS, LANDINGS, LANDINGS, LANDINGS)
def test_replayed_records_come_after_their_delivery_and_before_the_next(one: int, other: int, a: int, b: int) -> None:
    first = binary(replay_key(landing_key(one), a))
    assert binary(landing_key(one)) < first
    assert (first < binary(landing_key(other))) == (one < other)
    assert (first < binary(replay_key(landing_key(other), b))) == ((one, a) < (other, b))


@pytest.mark.parametrize(("kind", "oldest_first"), [
    ("int8", ["-12", "-2", "9", "10", "100"]), ("numeric", ["-1.50", "-1.5e-7", "0", "0.10", "9.9", "1e1"]),
    ("datetime", ["2026-05-04 09:00:00", "2026-05-04 09:00:00.000001", "2026-05-04T10:00:00"]),
    ("timestamptz", ["2026-05-04 09:00:00+02", "2026-05-04 08:00:00+00", "2026-05-04 09:00:00-01:00"]),
    ("date", ["2026-05-04", "2026-10-01"]), ("text", ["10", "9", "a", "é"]), ("uuid", ["0a", "1"]),
])
def test_cursors_are_ordered_in_their_type(kind: str, oldest_first: list[str]) -> None:
    keys = [binary(cursor_key(value, kind)) for value in oldest_first]
    assert sorted(keys) == keys and len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")])
def test_what_is_no_number_has_no_key(value: Decimal) -> None:
    with pytest.raises(ValueError, match="no number that has an order"):
        number_key(value)
