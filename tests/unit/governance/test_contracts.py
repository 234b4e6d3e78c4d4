"""Contracts: what of an ODCS document the platform acts on, and what it refuses."""

from __future__ import annotations

import datetime as dt
import hashlib
from decimal import Decimal

import pytest
import rfc8785

from resources.governance.contracts import Contract, Rule, physical_type, read_contract, strptime_of
from resources.governance.modes import Mode
from resources.runtime.yaml_source import Finding, parse_yaml

CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: sales.orders.raw
name: Orders
version: 1.2.3
status: active
description: {purpose: What customers ordered.}
schema:
  - name: orders
    properties:
      - name: order_no
        physicalName: OrderNo
        logicalType: string
        physicalType: text
        required: true
        primaryKey: true
        classification: internal
        description: Number of the order.
        logicalTypeOptions: {minLength: 1, maxLength: 20, pattern: "^[A-Z][0-9]+$"}
      - name: ordered_at
        logicalType: timestamp
        physicalType: timestamp
        classification: internal
        description: When it was placed.
        logicalTypeOptions: {format: "yyyy-MM-dd'T'HH:mm:ss", minimum: "2020-01-01T00:00:00"}
      - name: amount
        logicalType: number
        physicalType: NUMERIC(18, 2)
        classification: confidential
        description: What it is worth.
        logicalTypeOptions: {minimum: 0.01, exclusiveMaximum: 1000000}
        quality:
          - {metric: nullValues, mustBe: 0}
          - {metric: invalidValues, mustBeLessThan: 5, unit: percent, arguments: {validValues: [1, 2.5]}}
      - name: region
        logicalType: string
        physicalType: text
        classification: internal
        description: Where it was placed.
        quality:
          - {type: text, description: Regions are those of the sales organisation.}
          - {metric: invalidValues, mustBe: 0, arguments: {validValues: [NORTH, SOUTH]}}
    quality:
      - {metric: duplicateValues, mustBe: 0, arguments: {properties: [order_no, region]}, description: One each.}
      - {metric: rowCount, mustBeBetween: [1, 100]}
team:
  members:
    - {username: ann@example.com, role: owner}
    - {username: bob@example.com, role: steward}
slaProperties:
  - {property: retention, value: 2, unit: y}
customProperties:
  - {property: dataset, value: sales.orders}
  - {property: layer, value: raw}
"""


def read(text: str) -> tuple[Contract | None, list[Finding]]:
    source, findings = parse_yaml(text, "raw.yaml")
    assert source is not None and findings == []
    return read_contract(source, "sales.orders", "raw")


@pytest.fixture
def contract() -> Contract:
    contract, findings = read(CONTRACT)
    assert findings == [] and contract is not None
    return contract


def test_a_contract_knows_its_identity_and_its_people(contract: Contract):
    assert (contract.dataset, contract.layer, contract.version) == ("sales.orders", "raw", "1.2.3")
    assert (contract.title, contract.status) == ("Orders", "active")
    assert (contract.owner, contract.steward) == ("ann@example.com", "bob@example.com")
    assert contract.description == "What customers ordered."
    assert contract.retention_days == 730
    assert contract.column_names == ("order_no", "ordered_at", "amount", "region")
    assert contract.primary_key == ("order_no",)


def test_the_hash_is_sha_256_of_the_canonical_json_of_the_document(contract: Contract):
    source, _ = parse_yaml(CONTRACT, "raw.yaml")
    assert source is not None
    assert contract.hash == hashlib.sha256(rfc8785.dumps(source.document)).hexdigest()


def test_a_column_keeps_its_name_at_the_source_and_its_normalised_type(contract: Contract):
    order_no, ordered_at, amount, _ = contract.columns
    assert (order_no.source_name, ordered_at.source_name) == ("OrderNo", "ordered_at")
    assert (amount.physical_type, amount.logical_type) == ("numeric(18,2)", "number")
    assert amount.classification == "confidential"


def test_bounds_have_the_type_of_their_column(contract: Contract):
    _, ordered_at, amount, _ = contract.columns
    assert amount.options == {"minimum": Decimal("0.01"), "exclusiveMaximum": Decimal(1000000)}
    assert ordered_at.options["minimum"] == dt.datetime(2020, 1, 1)
    assert ordered_at.strptime_format == "%Y-%m-%dT%H:%M:%S"


def test_rules_that_no_row_may_break_become_part_of_the_column(contract: Contract):
    order_no, _, amount, region = contract.columns
    assert order_no.required and amount.required and not region.required
    assert region.valid_values == ("NORTH", "SOUTH")
    assert amount.valid_values is None


def test_rules_about_the_whole_dataset_stay_rules(contract: Contract):
    threshold, duplicates, rows = contract.rules
    assert threshold == Rule("invalidValues", ("amount",), "mustBeLessThan", (5,), "percent", (1, 2.5))
    assert duplicates == Rule("duplicateValues", ("order_no", "region"), "mustBe", (0,), description="One each.")
    assert (rows.metric, rows.operator, rows.bounds) == ("rowCount", "mustBeBetween", (1, 100))


def test_mode_and_deprecation_window_are_declared_or_the_layers_own(contract: Contract):
    assert (contract.mode, contract.deprecation_days) == (Mode.BACKWARD, 90)
    mode = "layer, value: raw}\n  - {property: compatibility, value: %s}"
    declared, findings = read(
        CONTRACT.replace("layer, value: raw}", mode % "full_transitive")
        .replace("unit: y}", "unit: y}\n  - {property: deprecationWindow, value: 30, unit: d}"))
    assert findings == [] and declared is not None
    assert (declared.mode, declared.deprecation_days) == (Mode.FULL_TRANSITIVE, 30)
    _, (finding,) = read(CONTRACT.replace("layer, value: raw}", mode % "upward"))
    assert (finding.field, finding.found) == ("customProperties[2].value", '"upward"')
    assert "backward, forward, full" in finding.allowed


def test_a_default_belongs_to_the_extraction_contract_and_has_the_type_of_its_column():
    def defaulting(layer: str, value: str) -> tuple[Contract | None, list[Finding]]:
        name = "        physicalName: OrderNo\n"
        default = f"        customProperties: [{{property: default, value: {value}}}]\n"
        text = CONTRACT.replace(name, name + default)
        source, findings = parse_yaml(text.replace("layer, value: raw", f"layer, value: {layer}"), "contract.yaml")
        assert source is not None and findings == []
        return read_contract(source, "sales.orders", layer)

    contract, _ = defaulting("extraction", "A0")
    assert contract is not None and contract.columns[0].default == "A0"
    _, (finding,) = defaulting("raw", "A0")
    assert "not executed in a raw contract" in finding.message
    _, (finding,) = defaulting("extraction", "7")
    assert (finding.message, finding.allowed) == ("not a value of the column's type", "text")


@pytest.mark.parametrize(
    ("operator", "bounds", "holding", "breaking"),
    [
        ("mustBe", (3,), 3, 4),
        ("mustNotBe", (3,), 4, 3),
        ("mustBeGreaterThan", (3,), 4, 3),
        ("mustBeGreaterOrEqualTo", (3,), 3, 2),
        ("mustBeLessThan", (3,), 2, 3),
        ("mustBeLessOrEqualTo", (3,), 3, 4),
        ("mustBeBetween", (1, 3), 3, 4),
        ("mustNotBeBetween", (1, 3), 4, 3),
    ],
)
def test_a_rule_judges_a_count(operator: str, bounds: tuple[float, ...], holding: float, breaking: float):
    rule = Rule("rowCount", (), operator, bounds)
    assert rule.holds(holding) and not rule.holds(breaking)


ALL = "team:\n"  # a line that stands alone, to put things before


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ("apiVersion: v3.1.0", "apiVersion: v3.0.2", "apiVersion", "unsupported version"),
        ("kind: DataContract\n", "", "kind", "required"),
        ("1.2.3", "1.2", "version", "wrong type"),
        ("1.2.3", "latest", "version", "not a semantic version"),
        ("status: active", "status: live", "status", "unknown status"),
        ("name: Orders\n", "", "name", "required"),
        ("name: Orders\n", "nam: Orders\n", "nam", "did you mean 'name'?"),
        ("{purpose: What customers ordered.}", "{usage: x}", "description.purpose", "required"),
        ("physicalName: OrderNo", "pysicalName: OrderNo", "schema[0].properties[0].pysicalName", "did you mean"),
        ("name: order_no\n", "name: OrderNo\n", "schema[0].properties[0].name", "not a column name"),
        ("name: region\n", "name: amount\n", "schema[0].properties[3].name", "second column"),
        ("required: true", "required: 'yes'", "schema[0].properties[0].required", "wrong type"),
        ("NUMERIC(18, 2)", "money", "schema[0].properties[2].physicalType", "unsupported type"),
        ("NUMERIC(18, 2)", "numeric", "schema[0].properties[2].physicalType", "unsupported type"),
        ("NUMERIC(18, 2)", "numeric(39,2)", "schema[0].properties[2].physicalType", "unsupported type"),
        ("NUMERIC(18, 2)", "bigint", "schema[0].properties[2].logicalType", "does not go with bigint"),
        ("classification: confidential", "classification: secret", "schema[0].properties[2].classification", "unknown"),
        ("description: What it is worth.", "description: ' '", "schema[0].properties[2].description", "says nothing"),
        ("minimum: 0.01", "minimum: 20, maximum: 5", "schema[0].properties[2].logicalTypeOptions.maximum", "below"),
        ("minimum: 0.01", "multipleOf: 5", "schema[0].properties[2].logicalTypeOptions.multipleOf", "not executed"),
        ("minimum: 0.01", "minimum: low", "schema[0].properties[2].logicalTypeOptions.minimum", "wrong type"),
        ("2020-01-01T", "2020-02-30T", "schema[0].properties[1].logicalTypeOptions.minimum", "not a value"),
        ("yyyy-MM-dd'T'", "dd MMM yy'T'", "schema[0].properties[1].logicalTypeOptions.format", "'MMM' in the format"),
        ("'T'HH:mm:ss", "", "schema[0].properties[1].logicalTypeOptions.format", "what a timestamp is"),
        ("^[A-Z][0-9]+$", "^[A-Z", "schema[0].properties[0].logicalTypeOptions.pattern", "not a regular expression"),
        ("^[A-Z][0-9]+$", "(?=A)", "schema[0].properties[0].logicalTypeOptions.pattern", "needs backtracking"),
        ("metric: nullValues", "metric: nulValues", "schema[0].properties[2].quality[0].metric", "not one of"),
        ("metric: nullValues", "metric: missingValues", "schema[0].properties[2].quality[0].metric", "not executed"),
        ("metric: nullValues", "metric: rowCount", "schema[0].properties[2].quality[0].metric", "a rule of the table"),
        ("nullValues, mustBe: 0", "nullValues", "schema[0].properties[2].quality[0]", "exactly one"),
        ("nullValues, mustBe: 0", "nullValues, mustBe: x", "schema[0].properties[2].quality[0].mustBe", "not a number"),
        ("metric: nullValues,", "type: sql, query: x,", "schema[0].properties[2].quality[0].type", "not executed"),
        ("unit: percent", "unit: percents", "schema[0].properties[2].quality[1].unit", "unknown unit"),
        ("[1, 2.5]", "[1, two]", "schema[0].properties[2].quality[1].arguments.validValues[1]", "not a value"),
        ("validValues: [NORTH", "values: [NORTH", "schema[0].properties[3].quality[1].arguments.values", "not an arg"),
        ("[order_no, region]", "[order_no, regoin]", "schema[0].quality[0].arguments.properties[1]", "'region'?"),
        ("role: owner", "role: boss", "team", "one owner"),
        ("username: ann@example.com, role: owner", "role: owner", "team.members[0].username", "required"),
        ("unit: y", "unit: fortnights", "slaProperties[0].unit", "unknown unit"),
        ("value: sales.orders", "value: sales.order", "customProperties[0].value", "not that of the file's folder"),
        ("  - {property: layer, value: raw}\n", "", "customProperties", "no custom property layer"),
        (ALL, "servers: []\nprices: {}\n" + ALL, "prices", "unknown key"),
    ],
)  # fmt: skip
def test_what_the_platform_cannot_accept_is_refused_at_its_field(old: str, new: str, field: str, words: str):
    assert CONTRACT.count(old) == 1
    contract, findings = read(CONTRACT.replace(old, new))
    assert contract is None
    found = [finding for finding in findings if finding.field == field]
    assert len(found) == 1, findings
    assert words in str(found[0])


def test_one_wrong_value_does_not_make_the_known_keys_beside_it_unknown():
    _, findings = read(CONTRACT.replace("required: true", "required: 'yes'"))
    assert [finding.field for finding in findings] == ["schema[0].properties[0].required"]


def test_a_table_without_columns_and_two_tables_are_refused():
    start, end = CONTRACT.index("schema:"), CONTRACT.index("team:")
    for schema, words in (("schema: [{name: a}]\n", "no columns"), ("schema: [{name: a}, {name: b}]\n", "one table")):
        _, findings = read(CONTRACT[:start] + schema + CONTRACT[end:])
        assert len(findings) == 1 and words in findings[0].message


@pytest.mark.parametrize(
    ("declared", "normalised"),
    [("TEXT", "text"), ("double  precision", "double precision"), ("Numeric( 10 , 0 )", "numeric(10,0)")],
)
def test_types_are_normalised(declared: str, normalised: str):
    assert physical_type(declared) == normalised


@pytest.mark.parametrize("declared", ["varchar(20)", "numeric", "numeric(2,3)", "numeric(0,0)", "interval", ""])
def test_other_types_are_refused_with_the_allowed_ones(declared: str):
    with pytest.raises(ValueError, match=r"text, bigint, integer, smallint, numeric\(p,s\)"):
        physical_type(declared)


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("yyyy-MM-dd", "2024-02-29"),
        ("yyyy-MM-dd HH:mm:ss", "2024-02-29 23:59:58"),
        ("dd.MM.uuuu 'um' HH 'Uhr'", "29.02.2024 um 23 Uhr"),
        ("yyyyMMdd'T'HHmmss.SSS", "20240229T235958.123"),
        ("yyyyDDD", "2024060"),
        ("yyyy''MM%dd", "2024'02%29"),
    ],
)
def test_jdk_patterns_read_what_they_stand_for(pattern: str, written: str):
    parsed = dt.datetime.strptime(written, strptime_of(pattern))
    assert parsed.date() == dt.date(2024, 2, 29)


@pytest.mark.parametrize("pattern", ["yy-MM-dd", "yyyy-M-d", "d MMM yyyy", "EEE", "HH:mm z", "hh:mm a", "yyyy 'open"])
def test_jdk_patterns_that_readers_take_differently_are_refused(pattern: str):
    with pytest.raises(ValueError):
        strptime_of(pattern)
