"""What counts as drift, what of it blocks, and what an accepted drift makes of a contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from resources.governance import declarations
from resources.governance.contract_evolution import column_name, evolved
from resources.governance.contracts import Contract, read_contract
from resources.governance.drift import (
    Change,
    DriftClass,
    ObservedSchema,
    SeenInRows,
    classify,
    fingerprint,
    kind_of,
    physical_type_of,
    still_blocking,
)
from resources.runtime.yaml_source import YamlSource

PROJECT = Path(__file__).resolve().parents[3]
NAMES = ("InvoiceID", "CustomerID", "CustomerName", "BusinessUnit", "InvoiceDate", "DueDate", "Currency", "NetAmount",
         "TaxAmount", "GrossAmount", "LastModified")


@pytest.fixture(scope="module")
def contracts() -> tuple[Contract, Contract]:
    declared = declarations.load(PROJECT)
    return declared.contract("order_to_cash.invoices", "extraction"), declared.contract("order_to_cash.invoices", "raw")


Both = tuple[Contract, Contract]


def found(contracts: Both, observed: ObservedSchema, **seen: object) -> list[tuple[str, str, bool]]:
    changes = classify(observed, SeenInRows(**{"records": 20, **seen}), *contracts)
    return [(change.kind.value, change.field, change.blocking) for change in changes]


def without(name: str, *more: str) -> tuple[str, ...]:
    return tuple(other for other in NAMES if other != name) + more


def test_a_source_that_keeps_its_contract_has_no_drift(contracts: Both) -> None:
    assert found(contracts, ObservedSchema(NAMES)) == []
    assert found(contracts, ObservedSchema(())) == [], "an empty file says nothing"


def test_an_added_field_blocks(contracts: Both) -> None:
    assert found(contracts, ObservedSchema((*NAMES, "Tip"))) == [("field_added", "Tip", True)]


def test_a_missing_field_blocks_when_a_contract_requires_it(contracts: Both) -> None:
    assert found(contracts, ObservedSchema(without("CustomerID"))) == [("field_missing", "CustomerID", True)]
    assert found(contracts, ObservedSchema(without("CustomerName"))) == [("field_missing", "CustomerName", False)]
    few = ObservedSchema(without("CustomerID"), ordered=False, sampled=9)
    assert found(contracts, few) == [("field_missing", "CustomerID", False)], "nine may be nine bad records"


def test_a_renamed_field_is_one_missing_and_one_added(contracts: Both) -> None:
    observed = ObservedSchema(without("CustomerID", "CustomerNo"))
    assert found(contracts, observed) == [("field_added", "CustomerNo", True), ("field_missing", "CustomerID", True)]


def test_an_order_of_names_is_noted_and_one_of_json_members_is_none(contracts: Both) -> None:
    turned = tuple(reversed(NAMES))
    assert found(contracts, ObservedSchema(turned)) == [("order_changed", ", ".join(turned), False)]
    assert found(contracts, ObservedSchema(turned, ordered=False)) == []


@pytest.mark.parametrize(
    ("stated", "refused", "expected"),
    [
        ("string", 3, [True]),  # of another kind, and values were refused
        ("string", 0, [False]),  # of another kind, and every value fits
        ("int64", 0, []),  # integers fit an amount
        ("JSON number", 2, []),  # two bad values are two bad records
        ("JSON number|JSON string", 2, []),
        ("JSON object", 20, [True]),
        (None, 20, [True]),  # untyped, and every value was refused
        (None, 19, []),
    ],
)
def test_a_changed_type_blocks_when_it_costs_rows(
    contracts: Both, stated: str | None, refused: int, expected: list[bool]
) -> None:
    types = None if stated is None else tuple(
        stated if name == "NetAmount" else {"InvoiceDate": "date", "DueDate": "date", "LastModified": "timestamp"}.get(
            name, "decimal128(18, 2)" if name.endswith("Amount") else "string") for name in NAMES)
    changes = found(contracts, ObservedSchema(NAMES, types), wrong_type={"net_amount": refused} if refused else {})
    assert changes == [("type_changed", "NetAmount", blocks) for blocks in expected]


def test_nine_unreadable_values_are_bad_records_and_ten_a_changed_type(contracts: Both) -> None:
    for records, expected in ((9, []), (10, [("type_changed", "DueDate", True)])):
        assert found(contracts, ObservedSchema(NAMES), records=records, wrong_type={"due_date": records}) == expected


def test_a_value_outside_the_list_blocks_and_is_named(contracts: Both) -> None:
    seen = SeenInRows(5, new_values={"business_unit": ("EAST", "WEST")})
    (change,) = classify(ObservedSchema(NAMES), seen, *contracts)
    assert (change.kind, change.blocking, change.values) == (DriftClass.ENUM_GROWN, True, ("EAST", "WEST"))
    assert str(change) == "BusinessUnit has new values EAST, WEST (allowed: NORTH, SOUTH, ONLINE)"


def test_a_null_blocks_when_the_source_means_it(contracts: Both) -> None:
    says = tuple(name == "Currency" or None for name in NAMES)
    missing = {"currency": 1}
    assert found(contracts, ObservedSchema(NAMES, nullable=says)) == [("nullability", "Currency", False)]
    blocks = [("nullability", "Currency", True)]
    assert found(contracts, ObservedSchema(NAMES, nullable=says), missing=missing) == blocks
    assert found(contracts, ObservedSchema(NAMES), missing=missing) == [], "one null is one bad record"
    assert found(contracts, ObservedSchema(NAMES), missing={"currency": 20}) == blocks


def test_a_hint_blocks_when_both_sides_say_different_things(contracts: Both) -> None:
    def hinted(name: str, *pairs: tuple[str, str]) -> ObservedSchema:
        return ObservedSchema(NAMES, hints=tuple(pairs if name == other else () for other in NAMES))

    assert found(contracts, hinted("NetAmount", ("unit", "EUR"))) == [("semantic_hint", "NetAmount", False)]
    assert found(contracts, hinted("DueDate", ("format", "yyyy-MM-dd"))) == []
    assert found(contracts, hinted("DueDate", ("format", "dd/MM/yyyy"))) == [("semantic_hint", "DueDate", True)]


def test_the_same_drift_has_the_same_fingerprint_whatever_is_noted_beside_it() -> None:
    added = Change(DriftClass.FIELD_ADDED, "Tip", True)
    noted = Change(DriftClass.ORDER_CHANGED, "a, b", False)
    mark = fingerprint("a.b", ("1", "2"), [added])
    assert mark == fingerprint("a.b", ("1", "2"), [added, noted])
    others = [("a.c", ("1", "2"), [added]), ("a.b", ("1", "3"), [added]), ("a.b", ("1", "2"), [noted])]
    assert mark not in [fingerprint(*other) for other in others]


def test_observed_schemas_and_changes_survive_json() -> None:
    import json

    observed = ObservedSchema(("a", "b"), ("int64", "string"), (None, False), ((("unit", "EUR"),), ()), False, 7)
    assert ObservedSchema.from_json(json.loads(json.dumps(observed.to_json()))) == observed
    change = Change(DriftClass.ENUM_GROWN, "a", True, "x", "y", ("1", "2"))
    assert Change.from_json(json.loads(json.dumps(change.to_json()))) == change


@pytest.mark.parametrize(
    ("name", "kind", "contract"),
    [
        ("int64", "integer", "bigint"), ("int4", "integer", "bigint"), ("BIGINT", "integer", "bigint"),
        ("decimal128(18, 2)", "decimal", "numeric(18,2)"), ("NUMERIC(10, 4)", "decimal", "numeric(10,4)"),
        ("double", "float", "double precision"), ("float8", "float", "double precision"),
        ("bool", "boolean", "boolean"),
        ("timestamp[us]", "timestamp", "timestamp"), ("date32[day]", "date", "date"), ("large_string", "text", "text"),
        ("VARCHAR(20)", "text", "text"), ("JSON string", "string", None), ("JSON number", "number", "numeric(38,9)"),
        ("list<item: int64>", "nested", "json"), ("jsonb", "nested", "json"), ("_text", "nested", "json"),
        ("JSON object", "nested", "json"), ("null", "null", None), ("daterange", "other", None),
        ("inet", "other", None), ("bytea", "other", None), ("interval", "other", None),
    ],
)
def test_types_are_known_in_the_words_of_every_source(name: str, kind: str, contract: str | None) -> None:
    assert (kind_of(name), physical_type_of(name)) == (kind, contract)


# Contracts that follow ------------------------------------------------------------------------------------------

ACCEPTED = {
    "added": Change(DriftClass.FIELD_ADDED, "DiscountPct", True),
    "missing": Change(DriftClass.FIELD_MISSING, "CustomerID", True),
    "null": Change(DriftClass.NULLABILITY, "Currency", True),
    "type": Change(DriftClass.TYPE_CHANGED, "GrossAmount", True, "numeric(18,2)", "string"),
    "values": Change(DriftClass.ENUM_GROWN, "BusinessUnit", True, values=("WEST",)),
    "format": Change(DriftClass.SEMANTIC_HINT, "DueDate", True, "yyyy-MM-dd", "dd/MM/yyyy", hint="format"),
}
TYPES = {"DiscountPct": "numeric(18,2)", "GrossAmount": "text"}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_was_accepted_is_no_drift_under_the_contracts_it_makes(
    contracts: Both, name: str
) -> None:
    change = ACCEPTED[name]
    made = []
    for contract in contracts:
        document = evolved(contract.document, contract.layer, [change], TYPES, "drift 1")
        after, findings = read_contract(YamlSource("test", document, {}), contract.dataset, contract.layer)
        assert after is not None, findings
        made.append(after)
    assert still_blocking(change, *contracts) and not still_blocking(change, *made)
    assert {c.name for c in contracts[0].columns} <= {c.name for c in made[0].columns}, "nothing is taken away"
    assert [(c.name, c.physical_type) for c in made[0].columns] == [(c.name, c.physical_type) for c in made[1].columns]


def test_an_added_field_is_optional_and_confidential_until_it_is_reviewed(contracts: Both) -> None:
    document = evolved(contracts[1].document, "raw", [ACCEPTED["added"]], TYPES, "drift 7")
    added = document["schema"][0]["properties"][-1]
    assert (added["name"], added["physicalName"], added["classification"]) == (
        "discount_pct", "DiscountPct", "confidential")
    assert "required" not in added and "drift 7" in added["description"]
    assert document["schema"][0]["properties"][:-1] == contracts[1].document["schema"][0]["properties"]


@pytest.mark.parametrize(("source", "column"), [
    ("DiscountPct", "discount_pct"), ("Größe (cm)", "gr_e_cm"), ("2nd", "c_2nd"), ("already_snake", "already_snake")])
def test_names_of_the_source_become_column_names(source: str, column: str) -> None:
    assert column_name(source) == column
