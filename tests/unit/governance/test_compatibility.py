"""Compatibility: what each rule says, that they agree with Avro where Avro has an opinion, and how versions relate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.governance.compatibility import compare, judge, next_version, widens
from resources.governance.contracts import CLASSIFICATIONS, Column, Contract, Rule
from resources.governance.modes import LAYERS, Layer, Mode
from tests.conftest import PROJECT

TYPES = ("smallint", "integer", "bigint", "double precision", "numeric(10,2)", "numeric(12,2)", "numeric(12,4)",
         "numeric(21,2)", "text", "date", "timestamp", "boolean")  # fmt: skip


def column(name: str = "a", kind: str = "text", **changes: Any) -> Column:
    plain = Column(name, name, kind, "", False, False, False, "internal", "")
    return replace(plain, **changes)


def contract(*columns: Column, layer: Layer = "extraction", version: str = "1.0.0", **changes: Any) -> Contract:
    return Contract("sales.orders", layer, version, "", "Orders", "", "active", "ann@example.com", None, columns,
                    **changes)


def level(old: Column, new: Column, layer: Layer = "extraction") -> str:
    return compare(contract(old, layer=layer), contract(new, layer=layer)).level.value


# What each rule says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("integer", "bigint", "backward"), ("bigint", "integer", "forward"), ("smallint", "double precision", "backward"),
    ("integer", "double precision", "backward"), ("bigint", "double precision", "none"),
    ("numeric(10,2)", "numeric(12,2)", "backward"), ("numeric(10,2)", "numeric(12,4)", "backward"),
    ("numeric(10,2)", "numeric(10,4)", "none"), ("numeric(12,4)", "numeric(12,2)", "none"),
    ("bigint", "numeric(21,2)", "backward"), ("bigint", "numeric(20,2)", "none"),
    ("integer", "numeric(12,2)", "backward"), ("integer", "numeric(10,2)", "none"),
    ("date", "timestamp", "backward"), ("timestamp", "date", "forward"), ("text", "integer", "none"),
    ("integer", "text", "none"), ("boolean", "integer", "none"), ("double precision", "numeric(38,10)", "none"),
])  # fmt: skip
def test_a_type_may_only_widen(old: str, new: str, expected: str) -> None:
    assert level(column(kind=old), column(kind=new)) == expected


def test_widening_is_an_order() -> None:
    assert all(widens(kind, kind) for kind in TYPES)
    for a, b in itertools.permutations(TYPES, 2):
        assert not (widens(a, b) and widens(b, a)), (a, b)
    for a, b, c in itertools.permutations(TYPES, 3):
        if widens(a, b) and widens(b, c):
            assert widens(a, c), (a, b, c)


FIELD = [
    ("an optional field is added", column("b"), "full", "forward"),
    ("a required field is added", column("b", required=True), "forward", "forward"),
    ("a required field with a default is added", column("b", required=True, default="x"), "full", "forward"),
]


@pytest.mark.parametrize(("field", "read_as_files", "read_in_sql"), [case[1:] for case in FIELD],
                         ids=[case[0] for case in FIELD])
def test_fields_are_added_and_removed(field: Column, read_as_files: str, read_in_sql: str) -> None:
    swapped = {"full": "full", "forward": "backward"}
    for layer in LAYERS:
        expected = read_in_sql if layer in ("gold", "activation") else read_as_files
        with_it, without = contract(column(), field, layer=layer), contract(column(), layer=layer)
        assert compare(without, with_it).level == expected
        assert compare(with_it, without).level == swapped[expected]


@pytest.mark.parametrize(("old", "new", "expected"), [
    pytest.param({}, {"required": True}, "forward", id="an optional field becomes required"),
    pytest.param({}, {"required": True, "default": "x"}, "full", id="it becomes required with a default"),
    pytest.param({"default": "x"}, {"default": "y"}, "full", id="another default"),
    pytest.param({}, {"unique": True}, "forward", id="a field becomes unique"),
    pytest.param({"valid_values": ("a", "b")}, {"valid_values": ("a", "b", "c")}, "backward", id="an enum grows"),
    pytest.param({"valid_values": ("a", "b")}, {"valid_values": ("b", "c")}, "none", id="an enum changes"),
    pytest.param({"valid_values": ("a", "b")}, {"valid_values": ("b", "a")}, "full", id="an enum in another order"),
    pytest.param({"valid_values": ("a", "b")}, {}, "backward", id="an enum becomes free"),
    pytest.param({"classification": "internal"}, {"classification": "confidential"}, "backward", id="stricter class"),
    pytest.param({"options": {"maxLength": 5}}, {"options": {"maxLength": 9}}, "backward", id="longer"),
    pytest.param({"options": {"minLength": 5}}, {"options": {"minLength": 9}}, "forward", id="no longer so short"),
    pytest.param({"options": {"pattern": "a"}}, {"options": {"pattern": "a|b"}}, "none", id="another pattern"),
    pytest.param({"options": {"pattern": "a"}}, {}, "backward", id="no pattern"),
    pytest.param({"source_name": "A"}, {"source_name": "B"}, "none", id="called otherwise at the source"),
    pytest.param({"options": {"format": "yyyyMMdd"}}, {"options": {"format": "yyyy-MM-dd"}}, "none", id="format"),
    pytest.param({"primary_key": True}, {}, "none", id="no longer the key"),
    pytest.param({"unit": "EUR"}, {"unit": "USD"}, "none", id="another unit"),
    pytest.param({}, {"unit": "EUR"}, "forward", id="a unit is declared"),
    pytest.param({"description": "x"}, {"description": "y"}, "full", id="other words"),
])  # fmt: skip
def test_what_a_field_declares_may_only_loosen_for_who_reads_it(old: Any, new: Any, expected: str) -> None:
    swapped = {"forward": "backward", "backward": "forward"}
    assert level(column(**old), column(**new)) == expected
    assert level(column(**new), column(**old)) == swapped.get(expected, expected)


@pytest.mark.parametrize(("old", "new", "expected"), [
    ({"minimum": 1}, {"minimum": 0}, "backward"), ({"minimum": 0}, {}, "backward"),
    ({"minimum": 0}, {"exclusiveMinimum": 0}, "forward"), ({"exclusiveMinimum": 0}, {"minimum": 1}, "forward"),
    ({"maximum": 9}, {"maximum": 10}, "backward"), ({"maximum": 9}, {"exclusiveMaximum": 9}, "forward"),
    ({"minimum": 0, "exclusiveMinimum": 5}, {"minimum": 3}, "backward"),
    ({"minimum": 0, "maximum": 9}, {"minimum": 1, "maximum": 10}, "none"),
])  # fmt: skip
def test_bounds_may_only_loosen_for_who_reads_them(old: dict[str, int], new: dict[str, int], expected: str) -> None:
    assert level(column(kind="integer", options=old), column(kind="integer", options=new)) == expected


def test_names_and_formats_of_the_source_matter_only_where_it_is_read() -> None:
    for layer in ("raw", "gold", "activation"):
        assert level(column(source_name="A"), column(source_name="B"), layer) == "full"


def test_a_renamed_field_is_named_and_breaks_both() -> None:
    (change,) = compare(contract(column("a", source_name="A")), contract(column("b", source_name="A"))).changes
    assert (change.kind, change.field, change.breaks) == ("field.renamed", "a", "producers and consumers")


def test_fields_in_another_order_break_nobody() -> None:
    (change,) = compare(contract(column("a"), column("b")), contract(column("b"), column("a"))).changes
    assert change.kind == "order" and not change.breaks


@pytest.mark.parametrize(("old", "new", "expected"), [
    ([], [Rule("rowCount", (), "mustBeGreaterThan", (0,))], "forward"),
    ([Rule("rowCount", (), "mustBeGreaterThan", (10,))], [Rule("rowCount", (), "mustBeGreaterThan", (0,))], "backward"),
    ([Rule("rowCount", (), "mustBeBetween", (1, 5))], [Rule("rowCount", (), "mustBeLessThan", (9,))], "backward"),
    ([Rule("rowCount", (), "mustBe", (5,))], [Rule("rowCount", (), "mustBeLessThan", (5,))], "none"),
    ([Rule("duplicateValues", ("a",), "mustBe", (0,))], [Rule("duplicateValues", ("a", "b"), "mustBe", (0,))], "none"),
    ([Rule("rowCount", (), "mustNotBe", (5,))], [Rule("rowCount", (), "mustNotBe", (5,), description="x")], "full"),
])  # fmt: skip
def test_rules_of_the_dataset_may_only_loosen_for_who_reads_it(old: Any, new: Any, expected: str) -> None:
    columns = (column("a"), column("b"))
    assert compare(contract(*columns, rules=tuple(old)), contract(*columns, rules=tuple(new))).level == expected


# Versions and modes ---------------------------------------------------------------------------------------


def test_a_transitive_mode_speaks_of_all_versions() -> None:
    first = contract(column("a", required=True), column("b", required=True))
    second = contract(column("a", required=True), column("b"), version="1.1.0")
    third = contract(column("a", required=True), version="1.2.0")  # b was optional last: nobody of 1.1.0 misses it
    assert judge(third, [first, second], Mode.FORWARD).compatible
    verdict = judge(third, [first, second], Mode.FORWARD_TRANSITIVE)
    assert not verdict.compatible and [(at, change.field) for at, change in verdict.breaking] == [("1.0.0", "b")]
    assert judge(third, [], Mode.FULL_TRANSITIVE).compatible


@pytest.mark.parametrize(("mode", "levels"), [
    (Mode.NONE, {"full", "backward", "forward", "none"}), (Mode.BACKWARD, {"full", "backward"}),
    (Mode.FORWARD, {"full", "forward"}), (Mode.FULL, {"full"}),
])  # fmt: skip
def test_a_mode_takes_the_levels_that_imply_it(mode: Mode, levels: set[str]) -> None:
    pairs = {
        "full": (column(), column()), "backward": (column(kind="integer"), column(kind="bigint")),
        "forward": (column(kind="bigint"), column(kind="integer")), "none": (column(), column(kind="date")),
    }  # fmt: skip
    assert {name for name, (a, b) in pairs.items() if compare(contract(a), contract(b)).satisfies(mode)} == levels


def test_the_next_version_says_how_much_changed() -> None:
    plain = contract(column())
    changes = {
        "1.0.1": contract(replace(column(), description="better")), "1.1.0": contract(column(), column("b")),
        "2.0.0": contract(column(), column("b", required=True)),
    }  # fmt: skip
    for expected, changed in changes.items():
        assert next_version("1.0.0", compare(plain, changed), Mode.BACKWARD) == expected


# Properties -----------------------------------------------------------------------------------------------

_columns = st.builds(
    lambda name, source, kind, required, unique, key, classification, values, bounds: column(
        name, kind, source_name=source, required=required, unique=unique, primary_key=key,
        classification=classification, valid_values=values, options=bounds),
    st.sampled_from("abcd"), st.sampled_from("ABCD"), st.sampled_from(TYPES), st.booleans(), st.booleans(),
    st.booleans(), st.sampled_from(CLASSIFICATIONS), st.none() | st.lists(st.integers(0, 3), min_size=1).map(tuple),
    st.dictionaries(st.sampled_from(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
                    st.integers(0, 3)),
)  # fmt: skip
_rules = st.builds(
    lambda operator, bounds: Rule("rowCount", (), operator, tuple(sorted(bounds))),
    st.sampled_from(("mustBe", "mustNotBe", "mustBeLessThan", "mustBeGreaterThan", "mustBeBetween")),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)  # fmt: skip
_contracts = st.builds(
    lambda columns, layer, rules: contract(*columns, layer=layer, rules=tuple(rules)),
    st.lists(_columns, min_size=1, unique_by=lambda c: c.name), st.just("extraction"), st.lists(_rules, max_size=2),
)  # fmt: skip


@given(_contracts)
@settings(deadline=None)
def test_a_contract_is_fully_compatible_with_itself(one: Contract) -> None:
    assert compare(one, one).changes == () and compare(one, one).level == "full"


@given(_contracts, _contracts, st.sampled_from(LAYERS))
@settings(deadline=None)
def test_swapping_the_sides_swaps_backward_and_forward(one: Contract, other: Contract, layer: Layer) -> None:
    one, other = replace(one, layer=layer), replace(other, layer=layer)
    there, back = compare(one, other), compare(other, one)
    assert (there.backward, there.forward) == (back.forward, back.backward)
    assert there.satisfies(Mode.FULL) == (there.satisfies(Mode.BACKWARD) and there.satisfies(Mode.FORWARD))
    assert (there.level == Mode.FULL) == (there.backward and there.forward)


# Avro -----------------------------------------------------------------------------------------------------

_AVRO = {
    "smallint": "int", "integer": "int", "bigint": "long", "double precision": "double", "text": "string",
    "boolean": "boolean", "date": {"type": "int", "logicalType": "date"},
    "timestamp": {"type": "long", "logicalType": "timestamp-micros"},
}  # fmt: skip


def to_avro(one: Contract) -> avro.schema.Schema:
    """The contract as an Avro schema: an optional field is a union with null and defaults to it."""
    fields = []
    for each in one.columns:
        kind: Any = _AVRO.get(each.physical_type)
        if each.valid_values is not None:
            kind = {"type": "enum", "name": f"{each.name}_values", "symbols": list(each.valid_values)}
        elif kind is None:
            precision, scale = each.physical_type.removeprefix("numeric(").removesuffix(")").split(",")
            kind = {"type": "bytes", "logicalType": "decimal", "precision": int(precision), "scale": int(scale)}
        if not each.required:
            fields.append({"name": each.name, "type": ["null", kind], "default": None})
        elif each.default is not None:
            fields.append({"name": each.name, "type": kind, "default": each.default})
        else:
            fields.append({"name": each.name, "type": kind})
    return avro.schema.parse(json.dumps({"type": "record", "name": "orders", "fields": fields}))


def avro_reads(reader: Contract, writer: Contract) -> bool:
    result = ReaderWriterCompatibilityChecker().get_compatibility(to_avro(reader), to_avro(writer))
    return result.compatibility is SchemaCompatibilityType.compatible


NARROWER = "Avro has one int for smallint and integer"
DIGITS = "Avro reads long as double and loses digits above 2^53"
EXACT = "Avro reads no int as a decimal; ours are exact when the digits fit"
PRECISION = "Avro ignores precision and scale of decimals"
BYTES = "Avro takes a decimal's bytes for text"
DAYS = "Avro takes days and microseconds for the numbers that carry them"
FREE_TEXT = "Avro reads no enum as string; ours is a rule about text"
FILLED = "Avro applies a default to absent fields only, ours to nulls too"
RENAMED = "Avro sees a removed and an added field, and reads null without a word"
IN_SQL = "Avro reads an absent optional field as null; in SQL its name is an error"
_INTEGERS, _NUMERICS = ("smallint", "integer", "bigint"), tuple(kind for kind in TYPES if kind.startswith("numeric"))


def type_differences() -> Iterator[tuple[tuple[str, str], str]]:
    """((writer's type, reader's type), reason) wherever we decide otherwise than Avro."""
    yield ("integer", "smallint"), NARROWER
    yield ("bigint", "double precision"), DIGITS
    for writer in ("smallint", "integer", "bigint"):
        for reader in _NUMERICS:
            if widens(writer, reader):
                yield (writer, reader), EXACT
    for writer, reader in itertools.permutations(_NUMERICS, 2):
        if not widens(writer, reader):
            yield (writer, reader), PRECISION
    for kind in _NUMERICS:
        yield (kind, "text"), BYTES
        yield ("text", kind), BYTES
    for kind in ("smallint", "integer", "bigint", "double precision"):
        yield ("date", kind), DAYS
    for kind in ("bigint", "double precision"):
        yield ("timestamp", kind), DAYS
    for kind in ("smallint", "integer"):
        yield (kind, "date"), DAYS
    for kind in _INTEGERS:
        yield (kind, "timestamp"), DAYS


TYPE_DIFFERENCES = dict(type_differences())
_ENUM = {"kind": "text", "valid_values": ("north", "south")}
CORPUS: list[tuple[str, Contract, Contract, str | None]] = [
    # (what, writer, reader, why we decide otherwise than Avro; None where we agree)
    *((f"{writer} read as {reader}", contract(column(kind=writer)), contract(column(kind=reader)),
       TYPE_DIFFERENCES.get((writer, reader))) for writer, reader in itertools.product(TYPES, TYPES)),
    *((f"{kind} {'required' if a else 'optional'} read as {'required' if b else 'optional'}",
       contract(column(kind=kind, required=a)), contract(column(kind=kind, required=b)), None)
      for kind in TYPES for a in (True, False) for b in (True, False)),
    ("an absent optional field", contract(column()), contract(column(), column("b")), None),
    ("an absent required field", contract(column()), contract(column(), column("b", required=True)), None),
    ("an absent field with a default", contract(column()), contract(column(), column("b", required=True, default="x")),
     None),
    ("an additional optional field", contract(column(), column("b")), contract(column()), None),
    ("an additional required field", contract(column(), column("b", required=True)), contract(column()), None),
    ("nulls read as required with a default", contract(column()), contract(column(required=True, default="x")), FILLED),
    ("fields in another order", contract(column("a"), column("b")), contract(column("b"), column("a")), None),
    ("the same enum", contract(column(**_ENUM)), contract(column(**_ENUM)), None),
    ("an enum with fewer values", contract(column(valid_values=("north",))), contract(column(**_ENUM)), None),
    ("an enum with more values", contract(column(**_ENUM)), contract(column(valid_values=("north",))), None),
    ("text read as an enum", contract(column()), contract(column(**_ENUM)), None),
    ("an enum read as text", contract(column(**_ENUM)), contract(column()), FREE_TEXT),
    ("a renamed field", contract(column("a", source_name="A")), contract(column("b", source_name="A")), RENAMED),
    ("a renamed required field", contract(column("a", source_name="A", required=True)),
     contract(column("b", source_name="A", required=True)), None),
    ("an absent optional column of a table", contract(column(), layer="gold"),
     contract(column(), column("b"), layer="gold"), IN_SQL),
]  # fmt: skip


@pytest.mark.parametrize(("writer", "reader", "reason"), [case[1:] for case in CORPUS],
                         ids=[case[0] for case in CORPUS])
def test_ours_agree_with_avro_except_on_purpose(writer: Contract, reader: Contract, reason: str | None) -> None:
    ours, theirs = compare(writer, reader).backward, avro_reads(reader, writer)
    assert compare(reader, writer).forward == ours
    assert (ours != theirs) == (reason is not None), f"ours {ours}, Avro's {theirs}"


def test_every_difference_from_avro_is_on_the_page() -> None:
    page = " ".join((PROJECT / "docs" / "contracts.md").read_text(encoding="utf-8").split())
    reasons = {reason for *_, reason in CORPUS if reason}
    assert len(reasons) == 10
    assert [reason for reason in sorted(reasons) if reason not in page] == []
