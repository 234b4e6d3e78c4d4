"""A field of a refused record is set, and every other byte of it stays as it was."""

from __future__ import annotations

import pyarrow as pa
import pytest

from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.payloads import CsvPayloads, JsonPayloads
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field
from resources.runtime.errors import BareCountError

SCHEMA = ExtractorSchema((
    Field("id", "ID", pa.string(), True), Field("note", "Note", pa.string()), Field("amount", "Amount", pa.int64()),
    Field("paid", "Paid", pa.bool_())))
CSV = CsvPayloads(CsvFormat(delimiter=";", encoding="windows-1252"), ("Note", "ID", "Amount", "Paid"), SCHEMA)
JSON = JsonPayloads(SCHEMA)


@pytest.mark.parametrize(
    ("record", "values", "expected"),
    [
        ("a;X;1;true", {"Amount": "2"}, "a;X;2;true"),
        ('"a;b";X;;', {"Amount": "2"}, '"a;b";X;2;'),
        ('"a ""b""; c";"";1;', {"Paid": "false", "ID": "Y"}, '"a ""b""; c";Y;1;false'),
        (";;;", {"Note": "x;y"}, '"x;y";;;'),
        (';"";1;true', {"Note": 'say "hi"'}, '"say ""hi""";"";1;true'),
        ("Caf\u00e9;X;1;true", {"Amount": ""}, "Caf\u00e9;X;;true"),
        ('"two\nlines";X;1;true', {"ID": "Y"}, '"two\nlines";Y;1;true'),
    ],
)
def test_a_field_of_a_line_is_set(record: str, values: dict[str, str], expected: str) -> None:
    assert CSV.corrected(record.encode("windows-1252"), values) == expected.encode("windows-1252")


@pytest.mark.parametrize("record", [b"a;X;1", b"a;X;1;true;9", b'"a;X;1;true', b'a"b;X;1;true', b"a;\x81;1;true"])
def test_a_line_whose_fields_cannot_be_told_apart_is_left_to_people(record: bytes) -> None:
    with pytest.raises(BareCountError, match="cannot be set"):
        CSV.corrected(record, {"Amount": "2"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"Amount": "2"}, '{"Amount":2,"ID":"X","Price":1.10}'),
        ({"Amount": ""}, '{"Amount":null,"ID":"X","Price":1.10}'),
        ({"Amount": "two"}, '{"Amount":"two","ID":"X","Price":1.10}'),
        ({"Paid": "true"}, '{"Amount":"1","ID":"X","Paid":true,"Price":1.10}'),
        ({"ID": "007"}, '{"Amount":"1","ID":"007","Price":1.10}'),
    ],
)
def test_a_field_of_an_object_is_set_as_its_type_is_written(values: dict[str, str], expected: str) -> None:
    assert JSON.corrected(b'{"ID": "X", "Amount": "1", "Price": 1.10}', values) == expected.encode()


def test_payloads_are_read_as_the_source_is() -> None:
    batch = CSV.parse([b"a;X;1;true", b"a;Y;one;true", b"a;Z", b'"b;c";V;4;'], before=10)
    assert batch.rows.select(["id", "note", "_row_number"]).to_pylist() == [
        {"id": "X", "note": "a", "_row_number": 11}, {"id": "V", "note": "b;c", "_row_number": 14}]
    assert [(r["row_number"], r["reason"], r["payload"]) for r in batch.rejects.to_pylist()] == [
        (12, "wrong_type", b"a;Y;one;true"), (13, "too_few_fields", b"a;Z")]


def test_a_row_of_raw_is_read_by_its_columns_with_what_its_source_had_beside_them() -> None:
    row = b'{"id": "X", "note": null, "amount": 1, "paid": null, "_extra": "{\\"colour\\":\\"red\\"}"}'
    batch = JsonPayloads(SCHEMA, by_column=True).parse([row], before=0)
    assert batch.rows.to_pylist() == [
        {"id": "X", "note": None, "amount": 1, "paid": None, "_row_number": 1, "_extra": '{"colour":"red"}'}]
    assert batch.payload_of(pa.array([0], pa.int64())).to_pylist() == [row]


@pytest.mark.parametrize("payload", [b"", b"a;b\nc;d", b"a;b\n", b"  "])
def test_bytes_that_are_not_one_record_are_refused(payload: bytes) -> None:
    with pytest.raises(BareCountError, match="allowed is one record"):
        CSV.require_one(payload)
