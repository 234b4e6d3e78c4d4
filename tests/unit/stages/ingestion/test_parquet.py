"""Parquet: types cast only where nothing is lost, damaged files refused, every row accounted for once."""

import datetime as dt
import io
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barecount_assets.stages.ingestion.connectors.parquet import ParquetFormat, cast_exact, json_values
from barecount_assets.stages.ingestion.records import REJECT_SCHEMA, ExtractorSchema, Field
from resources.runtime.errors import BareCountError, ErrorCode

settings.register_profile("unhurried", deadline=None)  # how long an example takes says nothing here
settings.load_profile("unhurried")


def written(table, **options):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def read(data, schema, **options):
    rows, rejects, before = [], [], 0
    for batch in ParquetFormat().read(pa.BufferReader(data), schema, "test.parquet", **options):
        batch.rows.validate(full=True)
        assert batch.rows.schema == schema.arrow and batch.rejects.schema == REJECT_SCHEMA
        numbers = batch.rows["_row_number"].to_pylist() + batch.rejects["row_number"].to_pylist()
        assert sorted(numbers) == list(range(before + 1, before + batch.received + 1))
        before += batch.received
        rows += batch.rows.to_pylist()
        rejects += batch.rejects.to_pylist()
    return rows, rejects


def one(type_, name="value", **options):
    return ExtractorSchema((Field(name, name, type_, **options),))


def cast(values, given, wanted):
    return cast_exact(pa.array(values, given), wanted).to_pylist()


def refused(data, schema):
    with pytest.raises(BareCountError) as error:
        read(data, schema)
    assert error.value.code is ErrorCode.SOURCE_MALFORMED
    return error.value.message


INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
DECIMALS = st.decimals(min_value=-(10**12), max_value=10**12, places=4)


class TestCasts:
    @given(st.lists(INTEGERS, max_size=5))
    def test_integers_are_narrowed_where_they_fit(self, values):
        expected = [value if -(1 << 31) <= value < 1 << 31 else None for value in values]
        assert cast(values, pa.int64(), pa.int32()) == expected

    @given(st.lists(INTEGERS, max_size=5))
    def test_integers_become_decimals_where_they_fit(self, values):
        expected = [Decimal(value) if abs(value) < 10**8 else None for value in values]
        assert cast(values, pa.int64(), pa.decimal128(10, 2)) == expected

    @given(st.lists(DECIMALS, max_size=5))
    def test_decimals_lose_no_digit(self, values):
        expected = [v if v == v.quantize(Decimal("0.01")) and abs(v) < 10**8 else None for v in values]
        assert cast(values, pa.decimal128(18, 4), pa.decimal128(10, 2)) == expected
        whole = [int(v) if v == v.to_integral_value() else None for v in values]
        assert cast(values, pa.decimal128(18, 4), pa.int64()) == whole

    def test_the_bounds_of_38_digits_and_64_bits_are_exact(self):
        nines = Decimal("9" * 38)
        assert cast([nines, 1], pa.decimal128(38, 0), pa.decimal128(37, 0)) == [None, 1]
        assert cast([nines, Decimal(1)], pa.decimal128(38, 0), pa.decimal128(38, 1)) == [None, 1]
        bound = Decimal(1 << 63)
        assert cast([-bound, bound, bound - 1], pa.decimal128(38, 0), pa.int64()) == [
            -(1 << 63),
            None,
            (1 << 63) - 1,
        ]
        assert cast([(1 << 64) - 1, 1], pa.uint64(), pa.int64()) == [None, 1]
        assert cast([(1 << 64) - 1], pa.uint64(), pa.decimal128(20, 0)) == [Decimal((1 << 64) - 1)]

    @given(st.lists(st.floats(), max_size=5))
    def test_floats_become_integers_only_when_they_are_whole(self, values):
        expected = [int(v) if v.is_integer() and -(2.0**63) <= v < 2.0**63 else None for v in values]
        assert cast(values, pa.float64(), pa.int64()) == expected

    def test_floats_never_become_decimals_nor_texts_numbers_nor_numbers_text(self):
        assert cast([1.0], pa.float64(), pa.decimal128(10, 2)) == [None]
        assert cast(["1"], pa.string(), pa.int64()) == [None]
        assert cast([1], pa.int64(), pa.string()) == [None]
        assert cast([1], pa.int64(), pa.bool_()) == [None]
        assert cast([{"a": 1}], pa.struct([("a", pa.int64())]), pa.string()) == [None]

    def test_double_precision_takes_the_nearest_double(self):
        assert cast([Decimal("0.10"), None], pa.decimal128(5, 2), pa.float64()) == [0.1, None]
        assert cast([(1 << 53) + 1], pa.int64(), pa.float64()) == [float(1 << 53)]
        assert cast([0.5], pa.float32(), pa.float64()) == [0.5]

    @given(
        st.lists(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)), max_size=4),
        st.integers(0, 999),
    )
    def test_timestamps_finer_than_microseconds_are_refused(self, moments, nanoseconds):
        micros = pa.array(moments, pa.timestamp("us")).cast(pa.int64())
        nanos = pc.add(pc.multiply(micros, 1000), nanoseconds).cast(pa.timestamp("ns"))
        expected = moments if nanoseconds == 0 else [None] * len(moments)
        assert cast_exact(nanos, pa.timestamp("us")).to_pylist() == expected

    @given(st.lists(st.datetimes(), max_size=4))
    def test_timestamps_become_dates_at_midnight_only(self, moments):
        moments += [moment.replace(hour=0, minute=0, second=0, microsecond=0) for moment in moments]
        expected = [moment.date() if moment.time() == dt.time() else None for moment in moments]
        assert cast(moments, pa.timestamp("us"), pa.date32()) == expected

    def test_dates_become_timestamps(self):
        midnight = dt.datetime(2026, 1, 2)
        assert cast([midnight.date(), None], pa.date32(), pa.timestamp("us")) == [midnight, None]
        assert cast([midnight.date()], pa.date64(), pa.date32()) == [midnight.date()]

    def test_bytes_become_text_where_they_are_utf8(self):
        assert cast(["é".encode(), b"\xff", None], pa.binary(), pa.string()) == ["é", None, None]


class TestReading:
    def test_types_that_only_say_how_values_are_stored_make_no_difference(self):
        texts = ["a", None, "b"]
        for array in (
            pa.array(texts, pa.large_string()),
            pa.array(texts, pa.string_view()),
            pa.array(texts).dictionary_encode(),
        ):
            rows, rejects = read(written(pa.table({"value": array})), one(pa.string()))
            assert [row["value"] for row in rows] == texts and rejects == []

    def test_a_zone_becomes_utc(self):
        moments = pa.array([dt.datetime(2026, 7, 1, 12)], pa.timestamp("us")).cast(
            pa.timestamp("us", "Europe/London")
        )
        rows, _ = read(written(pa.table({"value": moments})), one(pa.timestamp("us")))
        assert rows[0]["value"] == dt.datetime(2026, 7, 1, 12)

    def test_a_value_that_does_not_fit_rejects_its_row_with_the_row_as_json(self):
        table = pa.table(
            {
                "value": pa.array([1, 1 << 40, 3]),
                "price": pa.array([Decimal("1.50")] * 3),
                "note": ["x", 'q"', None],
                "day": pa.array([dt.date(2026, 1, 2)] * 3),
            }
        )
        rows, (reject,) = read(written(table), one(pa.int32()))
        assert [row["value"] for row in rows] == [1, 3]
        assert (reject["row_number"], reject["field"], reject["reason"]) == (2, "value", "wrong_type")
        assert reject["message"] == 'value: found int64 "1099511627776", allowed integer'
        assert json.loads(reject["payload"]) == {
            "value": 1 << 40, "price": 1.5, "note": 'q"', "day": "2026-01-02"
        }  # fmt: skip

    def test_text_with_a_nul_character_is_rejected_and_its_neighbours_are_not(self):
        rows, (reject,) = read(written(pa.table({"value": ["a", "b\0", None, "c"]})), one(pa.string()))
        assert [row["value"] for row in rows] == ["a", None, "c"]
        assert reject["reason"] == "nul_byte" and json.loads(reject["payload"]) == {"value": "b\0"}

    def test_a_null_where_a_value_is_required_is_a_missing_field(self):
        _, (reject,) = read(written(pa.table({"value": pa.array([1, None])})), one(pa.int64(), required=True))
        assert (reject["row_number"], reject["reason"]) == (2, "missing_field")

    def test_undeclared_columns_go_to_extra_as_json(self):
        table = pa.table(
            {
                "value": [1, 2],
                "z": [1.5, float("nan")],
                "a": pa.array([[1, 2], None]),
                "b": [b"\xff", None],
                "t": pa.array([dt.datetime(2026, 1, 2, 3), None], pa.timestamp("us", "UTC")),
                "f": [True, None],
            }
        )
        rows, _ = read(written(table), one(pa.int64()))
        assert [json.loads(row["_extra"]) for row in rows] == [
            {"z": 1.5, "a": [1, 2], "b": "/w==", "t": "2026-01-02 03:00:00.000000Z", "f": True},
            {"z": "nan", "a": None, "b": None, "t": None, "f": None},
        ]

    @given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=5))
    def test_floats_are_exact_in_json(self, numbers):
        assert [
            json.loads(text) for text in json_values(pa.array(numbers, pa.float64())).to_pylist()
        ] == numbers

    @given(st.lists(st.none() | st.integers(-(1 << 40), 1 << 40), max_size=30), st.integers(1, 40))
    def test_results_do_not_depend_on_the_batch_size(self, values, batch_rows):
        data = written(pa.table({"value": pa.array(values, pa.int64()), "x": values}), row_group_size=7)
        schema = one(pa.int32(), required=True)
        assert read(data, schema, batch_rows=batch_rows) == read(data, schema)

    def test_wide_rows_come_in_smaller_batches(self):
        texts = [f"{index}" * (1 << 20) for index in range(9)] * 8
        data = written(pa.table({"value": texts}), use_dictionary=False)
        batches = list(ParquetFormat().read(pa.BufferReader(data), one(pa.string()), "test"))
        assert sum(batch.received for batch in batches) == len(texts)
        assert max(batch.rows.nbytes for batch in batches) <= 40 << 20

    def test_a_file_without_rows_yields_nothing(self):
        assert read(written(pa.table({"other": pa.array([], pa.int64())})), one(pa.int64())) == ([], [])

    def test_names_and_types_are_observed(self):
        observed = ParquetFormat().observe(pa.BufferReader(written(pa.table({"b": [1], "a": ["x"]}))), "test")
        assert (observed.names, observed.types) == (("b", "a"), ("int64", "string"))
        assert observed.nullable == (None, None), "writers say unasked that a field may be null"

    def test_what_fields_mean_and_that_they_are_never_null_is_observed(self):
        fields = [pa.field("amount", pa.int64(), nullable=False, metadata={"unit": "EUR"}), pa.field("b", pa.string())]
        table = pa.table({"amount": [1], "b": ["x"]}, schema=pa.schema(fields))
        observed = ParquetFormat().observe(pa.BufferReader(written(table)), "test")
        assert observed.nullable == (False, None)
        assert observed.hints == ((("unit", "EUR"),), ())


class TestRefusals:
    @pytest.mark.parametrize("data", [b"", b"a,b\n1,2\n", b"PAR1" * 10])
    def test_what_is_no_parquet_is_refused(self, data):
        assert "test.parquet" in refused(data, one(pa.int64()))

    @given(st.floats(0, 0.999))
    def test_a_truncated_file_is_refused_wherever_it_ends(self, share):
        whole = written(pa.table({"value": list(range(1000))}))
        refused(whole[: int(len(whole) * share)], one(pa.int64()))

    def test_damaged_pages_are_refused_where_they_carry_a_checksum(self):
        data = bytearray(
            written(
                pa.table({"value": list(range(1000))}),
                compression="none", use_dictionary=False, write_page_checksum=True,
            )
        )  # fmt: skip
        data[2000] ^= 1
        refused(bytes(data), one(pa.int64()))

    def test_a_name_given_twice_is_refused(self):
        table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["value", "value"])
        assert '"value"' in refused(written(table), one(pa.int64()))

    def test_a_file_of_another_dataset_is_refused(self):
        assert '"other"' in refused(written(pa.table({"other": [1]})), one(pa.int64()))
