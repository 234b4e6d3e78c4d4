"""JSON Lines: strict objects, exact numbers, every line accounted for once."""

import io
import json
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barecount_assets.stages.ingestion.connectors.jsonl import BATCH_RECORDS, JsonlFormat
from barecount_assets.stages.ingestion.records import REJECT_SCHEMA, ExtractorSchema, Field, ObservedSchema
from resources.runtime.errors import BareCountError, ErrorCode

settings.register_profile("unhurried", deadline=None)  # how long an example takes says nothing here
settings.load_profile("unhurried")

SCHEMA = ExtractorSchema(
    (
        Field("payment_id", "paymentId", pa.string(), required=True),
        Field("amount", "amount", pa.decimal128(18, 2)),
        Field("count", "count", pa.int64()),
        Field("ratio", "ratio", pa.float64()),
        Field("final", "final", pa.bool_()),
        Field("booked_at", "bookedAt", pa.timestamp("us")),
    )
)


def read(data, **options):
    """Rows and rejects of the bytes, as lists of dicts, after checking what must hold of every batch."""
    rows, rejects, before = [], [], 0
    for batch in JsonlFormat().read(io.BytesIO(data), SCHEMA, "test.jsonl", **options):
        batch.rows.validate(full=True)
        assert batch.rows.schema == SCHEMA.arrow and batch.rejects.schema == REJECT_SCHEMA
        numbers = batch.rows["_row_number"].to_pylist() + batch.rejects["row_number"].to_pylist()
        assert sorted(numbers) == list(range(before + 1, before + batch.received + 1))
        before += batch.received
        rows += batch.rows.to_pylist()
        rejects += batch.rejects.to_pylist()
    return rows, rejects


def row(**fields):
    """The one row of an object with these fields and an id."""
    rows, rejects = read(json.dumps({"paymentId": "p"} | fields).encode())
    assert rejects == []
    return rows[0]


def fault(line):
    """Field and reason of the one reject of a line."""
    rows, rejects = read(line)
    assert rows == [] and rejects[0]["payload"] == line
    return rejects[0]["field"], rejects[0]["reason"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from([field.source_name for field in SCHEMA.fields] + ["other", "ü"])
DIRTY_LINE = st.one_of(
    st.tuples(st.dictionaries(KEYS, JSON_VALUES, max_size=5), st.booleans()).map(
        lambda drawn: json.dumps(drawn[0], ensure_ascii=drawn[1]).encode()
    ),
    st.sampled_from(
        [
            b'{"paymentId":"p","amount":1.10}', b'{"paymentId":"p"', b"[]", b"1", b"null", b"{}", b"", b" ",
            b'{"paymentId":"\0"}', b'{"paymentId":"\\u0000"}', b'{"paymentId":"\\ud800"}', b'{"a":1}{"b":2}',
        ]
    ),
    st.binary(max_size=8).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b"")),
)  # fmt: skip
DIRTY_FILE = st.lists(DIRTY_LINE, max_size=10)


class TestAccounting:
    @given(DIRTY_FILE)
    def test_every_line_that_is_not_blank_is_a_row_or_a_reject_with_its_bytes(self, lines):
        data = b"\n".join(lines)
        expected = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t")]
        rows, rejects = read(data)
        assert len(rows) + len(rejects) == len(expected)
        assert all(reject["payload"] == expected[reject["row_number"] - 1] for reject in rejects)

    @given(DIRTY_FILE, st.integers(1, 64))
    def test_results_do_not_depend_on_the_block_size(self, lines, block_size):
        data = b"\r\n".join(lines)
        assert repr(read(data, block_size=block_size)) == repr(read(data))

    @given(st.lists(st.dictionaries(st.text(min_size=1, max_size=4), JSON_VALUES, max_size=3), max_size=4))
    def test_undeclared_fields_survive_in_extra(self, records):
        lines = [
            json.dumps({"paymentId": "p"} | {f"x{key}": value for key, value in r.items()}) for r in records
        ]
        rows, rejects = read("\n".join(lines).encode())
        for reject in rejects:
            assert reject["reason"] in (
                "malformed",
                "bad_encoding",
            )  # NaN, Infinity; half of a surrogate pair
        for row in rows:
            expected = json.loads(lines[row["_row_number"] - 1])
            del expected["paymentId"]
            assert (json.loads(row["_extra"]) if row["_extra"] else {}) == expected

    def test_batches_are_bounded(self):
        data = b'{"paymentId":"p"}\n' * (BATCH_RECORDS + 1)
        received = [batch.received for batch in JsonlFormat().read(io.BytesIO(data), SCHEMA, "test")]
        assert received == [BATCH_RECORDS, 1]

    def test_a_field_of_ten_megabytes_is_read_whole(self):
        long = "é" * (5 << 20)
        assert read(b'{"paymentId":"' + long.encode() + b'"}')[0][0]["payment_id"] == long

    @pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf"])
    def test_a_file_without_records_yields_nothing(self, data):
        assert read(data) == ([], [])


class TestValues:
    def test_numbers_are_kept_as_they_are_written(self):
        data = b'{"paymentId":"p","amount":12345678901234.10,"x":1.10,"y":1E5,"z":12345678901234567890123}'
        (found,) = read(data)[0]
        assert found["amount"] == Decimal("12345678901234.10")
        assert found["_extra"] == '{"x":1.10,"y":1E5,"z":12345678901234567890123}'

    def test_extra_has_sorted_keys_at_every_depth(self):
        (found,) = read(b'{"paymentId":"p","b":{"y":[1,null,true],"x":"\\u00e9\\n"},"a":0}')[0]
        assert found["_extra"] == '{"a":0,"b":{"x":"é\\n","y":[1,null,true]}}'

    def test_without_undeclared_fields_extra_is_null(self):
        assert row()["_extra"] is None

    def test_absent_fields_and_nulls_are_null(self):
        assert row(amount=None)["amount"] is None and row()["amount"] is None
        assert fault(b'{"amount":1}') == ("payment_id", "missing_field")
        assert fault(b'{"paymentId":null}') == ("payment_id", "missing_field")

    def test_empty_text_is_text(self):
        assert row(paymentId="")["payment_id"] == ""

    def test_a_byte_order_mark_is_dropped(self):
        assert read(b'\xef\xbb\xbf{"paymentId":"p"}')[0][0]["payment_id"] == "p"

    def test_the_keys_of_the_first_block_are_what_is_observed(self):
        observed = JsonlFormat().observe(io.BytesIO(b'{"b":1}\nbroken\n{"a":1,"b":2}'), "test")
        assert observed == ObservedSchema(("b", "a"), ("JSON number", "JSON number"), ordered=False, sampled=2)


class TestFaults:
    @pytest.mark.parametrize(
        ("value", "field"),
        [
            (b'"paymentId":1', "payment_id"),
            (b'"paymentId":{}', "payment_id"),
            (b'"paymentId":"p","amount":"1.10"', "amount"),
            (b'"paymentId":"p","amount":1.101', "amount"),
            (b'"paymentId":"p","amount":1e2', "amount"),
            (b'"paymentId":"p","amount":[1]', "amount"),
            (b'"paymentId":"p","count":1.0', "count"),
            (b'"paymentId":"p","count":true', "count"),
            (b'"paymentId":"p","final":1', "final"),
            (b'"paymentId":"p","final":"true"', "final"),
            (b'"paymentId":"p","ratio":"0.5"', "ratio"),
            (b'"paymentId":"p","bookedAt":1767225600', "booked_at"),
            (b'"paymentId":"p","bookedAt":""', "booked_at"),
        ],
    )
    def test_a_value_of_another_kind_is_a_wrong_type(self, value, field):
        assert fault(b"{" + value + b"}") == (field, "wrong_type")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"paymentId":"p","paymentId":"q"}', "malformed"),
            (b'{"paymentId":"p","x":{"a":1,"a":1}}', "malformed"),
            (b'{"paymentId":"p","x":NaN}', "malformed"),
            (b'{"paymentId":"p","x":-Infinity}', "malformed"),
            (b'{"paymentId":"p",}', "malformed"),
            (b'{"paymentId":"p"} {"paymentId":"q"}', "malformed"),
            (b"{'paymentId':'p'}", "malformed"),
            (b'{"paymentId":"a\tb"}', "malformed"),
            (b"[" * 100_000, "malformed"),
            (b"[1]", "not_an_object"),
            (b"null", "not_an_object"),
            (b'{"paymentId":"\xff"}', "bad_encoding"),
            (b'{"paymentId":"\\ud83d"}', "bad_encoding"),
            (b'{"paymentId":"p","x":"\\uDE00"}', "bad_encoding"),
            (b'{"paymentId":"\0"}', "nul_byte"),
        ],
    )
    def test_a_line_that_is_no_strict_object_is_rejected_whole(self, line, reason):
        assert fault(line) == (None, reason)

    def test_nesting_is_allowed_up_to_a_limit_of_its_own(self):
        deep = b'{"paymentId":"p","x":' + b"[" * 99 + b"]" * 99 + b"}"
        assert read(deep)[0][0]["_extra"] == '{"x":' + "[" * 99 + "]" * 99 + "}"
        assert fault(deep.replace(b"[]", b"[[]]")) == (None, "malformed")
        assert read(b'{"paymentId":"p","x":[' + b"[]," * 200 + b"[]]}")[1] == []

    def test_an_escaped_nul_is_a_fault_of_its_field(self):
        assert fault(b'{"paymentId":"a\\u0000"}') == ("payment_id", "nul_byte")

    def test_an_escaped_surrogate_pair_is_one_character(self):
        assert read(b'{"paymentId":"\\ud83d\\ude00"}')[0][0]["payment_id"] == "😀"

    def test_the_message_says_what_was_found(self):
        (reject,) = read(b'{"paymentId":{"a":1},"amount":"1","count":1.5}')[1]
        assert reject["message"] == (
            'payment_id: found an object, allowed text; amount: found "1", allowed numeric(18,2); '
            "count: found 1.5, allowed bigint"
        )

    def test_a_line_above_the_limit_is_refused(self, monkeypatch):
        monkeypatch.setattr("barecount_assets.stages.ingestion.parsing.MAX_RECORD_BYTES", 1000)
        with pytest.raises(BareCountError) as refused:
            read(b'{"paymentId":"' + b"x" * 1000 + b'"}')
        assert refused.value.code is ErrorCode.SOURCE_MALFORMED
