"""Text to typed columns, and bytes to records: the rules that every text format shares."""

import calendar
import datetime as dt
import io
import json
import math
import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barecount_assets.stages.ingestion import parsing
from barecount_assets.stages.ingestion.parsing import (
    Fault,
    assemble,
    json_objects,
    json_strings,
    parse_text,
    split_records,
    strptime_pattern,
    text_column,
)
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field
from resources.runtime.errors import BareCountError, ErrorCode

settings.register_profile("unhurried", deadline=None)  # how long an example takes says nothing here
settings.load_profile("unhurried")


def parsed(type_, *texts, format=None):
    return parse_text(Field("value", "value", type_, format=format), pa.array(texts, pa.string())).to_pylist()


def strings_like(pattern):
    return st.one_of(st.from_regex(pattern, fullmatch=True), st.text(max_size=8))


class TestIntegers:
    @given(strings_like(r"[+-]?0{0,30}[0-9]{1,21}"), st.sampled_from([pa.int16(), pa.int32(), pa.int64()]))
    def test_a_sign_and_digits_in_range_are_accepted_and_nothing_else(self, text, type_):
        bound = 1 << (type_.bit_width - 1)
        fits = re.fullmatch(r"[+-]?[0-9]+", text) and -bound <= int(text) < bound
        assert parsed(type_, text) == [int(text) if fits else None]

    @given(st.lists(strings_like(r"[+-]?[0-9]{1,20}"), min_size=1, max_size=8))
    def test_a_value_is_decided_whatever_its_neighbours_are(self, texts):
        together = parsed(pa.int64(), *texts)
        assert together == [parsed(pa.int64(), text)[0] for text in texts]

    def test_hexadecimal_spaces_and_separators_are_refused(self):
        assert parsed(pa.int64(), "0x1F", " 1", "1 ", "1,000", "1_000", "", "-", "１") == [None] * 8


class TestDecimals:
    @given(
        strings_like(r"[+-]?[0-9]{0,12}\.?[0-9]{0,4}(e5)?"),
        st.sampled_from([(10, 2), (4, 4), (5, 0), (38, 3)]),
    )
    def test_digits_beyond_scale_or_precision_are_refused_and_never_rounded(self, text, shape):
        precision, scale = shape
        form = re.fullmatch(r"[+-]?([0-9]*)(?:\.([0-9]*))?", text)
        fits = bool(form and (form[1] or form[2]))
        fits = fits and len((form[1] or "").lstrip("0")) <= precision - scale and len(form[2] or "") <= scale
        if fits and precision == scale and not form[1]:
            fits = True
        assert parsed(pa.decimal128(*shape), text) == [Decimal(text) if fits else None]

    def test_exponents_and_thousands_separators_are_refused(self):
        assert parsed(pa.decimal128(18, 2), "1e3", "1,000.00", "1.000,00", "1 000", "$1", "NaN") == [None] * 6


class TestDoubles:
    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_what_python_writes_is_read_back_to_the_bit(self, number):
        assert parsed(pa.float64(), repr(number)) == [number]

    def test_not_a_number_infinity_and_overflow_are_refused(self):
        assert parsed(pa.float64(), "nan", "inf", "-Infinity", "1e999", "1e-999") == [
            None,
            None,
            None,
            None,
            0.0,
        ]

    def test_a_decimal_comma_is_refused(self):
        assert parsed(pa.float64(), "1,5", "0x10", "1.", ".5", "+1e+2") == [None, None, 1.0, 0.5, 100.0]


class TestBooleans:
    def test_true_false_one_and_zero_are_accepted_in_any_case(self):
        assert parsed(pa.bool_(), "true", "TRUE", "1", "False", "0", None) == [
            True,
            True,
            True,
            False,
            False,
            None,
        ]

    def test_other_words_are_refused(self):
        assert parsed(pa.bool_(), "yes", "t", "", "2", " true") == [None] * 5


class TestIsoDates:
    @given(st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32))
    def test_days_of_the_calendar_are_accepted_and_no_others(self, year, month, day):
        valid = 1 <= year and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]
        expected = dt.date(year, month, day) if valid else None
        assert parsed(pa.date32(), f"{year:04}-{month:02}-{day:02}") == [expected]

    @given(st.datetimes(), st.sampled_from(["T", " "]))
    def test_timestamps_are_exact_to_the_microsecond(self, moment, separator):
        assert parsed(pa.timestamp("us"), moment.isoformat(separator)) == [moment]

    def test_missing_parts_zones_and_leap_seconds_are_refused(self):
        texts = ("2026-01-02", "2026-01-02T03", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05+01:00")
        texts += (
            "2026-01-02T24:00:00",
            "2026-01-02T23:59:60",
            "2026-01-02T03:04:05.1234567",
            "2026-1-2 03:04",
        )
        assert parsed(pa.timestamp("us"), *texts) == [None] * len(texts)

    def test_a_time_is_refused_where_a_date_is_declared(self):
        assert parsed(pa.date32(), "2026-01-02 00:00:00", "2026-01-02") == [None, dt.date(2026, 1, 2)]


class TestFormats:
    @given(
        st.datetimes(min_value=dt.datetime(1000, 1, 1)),
        st.sampled_from(
            [
                "%d/%m/%Y %H:%M:%S",
                "%Y%m%d%H%M%S",
                "%d %b %Y %I:%M:%S %p",
                "%B %d, %Y %T",
                "%FT%T",
                "%m.%d.%Y %H:%M:%S",
            ]
        ),
    )
    def test_what_strftime_writes_is_read_back(self, moment, format):
        moment = moment.replace(microsecond=0)
        assert parsed(pa.timestamp("us"), moment.strftime(format), format=format) == [moment]

    @given(strings_like(r"[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}"))
    def test_agrees_with_strptime_on_dates(self, text):
        try:
            expected = (
                dt.datetime.strptime(text, "%d/%m/%Y").date()
                if text.isascii() and text == text.strip()
                else None
            )
        except ValueError:
            expected = None
        assert parsed(pa.date32(), text, format="%d/%m/%Y") == [expected]

    def test_single_digits_are_accepted_only_where_something_follows(self):
        assert parsed(pa.date32(), "1/5/2026", format="%m/%d/%Y") == [dt.date(2026, 1, 5)]
        assert parsed(pa.date32(), "2026111", "20260111", format="%Y%m%d") == [None, dt.date(2026, 1, 11)]

    def test_a_zone_in_the_format_makes_utc(self):
        texts = ("2026-01-02T00:30:00+05:30", "2026-01-02T00:30:00-0100", "2026-01-02T00:30:00Z")
        moments = [
            dt.datetime(2026, 1, 1, 19),
            dt.datetime(2026, 1, 2, 1, 30),
            dt.datetime(2026, 1, 2, 0, 30),
        ]
        assert parsed(pa.timestamp("us"), *texts, format="%Y-%m-%dT%H:%M:%S%z") == moments

    def test_a_date_whose_format_has_a_time_accepts_midnight_only(self):
        texts = ("2026-01-02 00:00:00", "2026-01-02 00:00:01")
        assert parsed(pa.date32(), *texts, format="%Y-%m-%d %H:%M:%S") == [dt.date(2026, 1, 2), None]

    def test_two_digit_years_follow_posix(self):
        assert parsed(pa.date32(), "010169", "010168", format="%d%m%y") == [
            dt.date(1969, 1, 1),
            dt.date(2068, 1, 1),
        ]

    def test_fractions_count_from_the_left(self):
        moment = dt.datetime(2026, 1, 2, 3, 4, 5, 120000)
        assert parsed(pa.timestamp("us"), "2026-01-02 03:04:05.12", format="%Y-%m-%d %H:%M:%S.%f") == [moment]

    @pytest.mark.parametrize(
        "format", ["%Y-%m", "%Y-%m-%d %H:%H", "%Y-%m-%d %Q", "%d.%m", "%Y-%m-%d %I:%M", "%"]
    )
    def test_a_format_that_does_not_determine_a_date_is_refused(self, format):
        with pytest.raises(BareCountError) as refused:
            strptime_pattern(format)
        assert refused.value.code is ErrorCode.DECLARATION_INVALID


class TestColumns:
    def test_an_empty_text_is_a_value_of_text_fields_only(self):
        empty = pa.array(["", None], pa.string())
        assert text_column(Field("a", "a", pa.string()), empty, 2).values.to_pylist() == ["", None]
        number = text_column(Field("a", "a", pa.int64()), empty, 2)
        assert number.values.null_count == 2 and number.wrong is None

    def test_messages_say_what_was_found_and_what_is_allowed(self):
        schema = ExtractorSchema(
            (Field("quantity", "Quantity", pa.int64()), Field("day", "Day", pa.date32()))
        )
        columns = [text_column(field, pa.array(["abc" * 40]), 1) for field in schema.fields]
        faults = parsing.check(schema, columns, np.array([0]))
        assert faults[0].messages == [f'quantity: found "{("abc" * 40)[:80]}…", allowed bigint']
        assert faults[1].messages[0].endswith("allowed date as YYYY-MM-DD")

    def test_a_record_that_gets_lost_is_an_error_and_not_a_smaller_batch(self):
        schema = ExtractorSchema((Field("a", "a", pa.string()),))
        columns = [text_column(schema.fields[0], pa.array(["x"]), 1)]
        with pytest.raises(BareCountError) as refused:
            assemble(
                schema,
                columns,
                None,
                parsed=np.array([0]),
                received=2,
                before=0,
                faults=[],
                payload=lambda rows: [],
            )
        assert refused.value.code is ErrorCode.INTERNAL

    @pytest.mark.parametrize("text", [pa.array(["", "7", "x"]), None], ids=["null", "absent"])
    def test_a_default_stands_for_what_the_source_does_not_give_and_for_nothing_else(self, text):
        schema = ExtractorSchema((Field("a", "a", pa.int64(), required=True, default=5),))
        columns = [text_column(schema.fields[0], text, 3)]
        faults = parsing.check(schema, columns, np.arange(3))
        batch = assemble(schema, columns, None, parsed=np.arange(3), received=3, before=0, faults=faults,
                         payload=lambda rows: [b"x"])
        assert batch.rows["a"].to_pylist() == ([5, 5, 5] if text is None else [5, 7])
        assert batch.rejects["reason"].to_pylist() == ([] if text is None else ["wrong_type"])

    def test_the_first_fault_decides_the_reason_and_the_message_names_all(self):
        schema = ExtractorSchema((Field("a", "a", pa.string()),))
        columns = [text_column(schema.fields[0], pa.array(["x", "y"]), 2)]
        faults = [
            Fault(np.array([1]), "a", "wrong_type", ["one"]),
            Fault(np.array([1]), "b", "missing_field", ["two"]),
        ]
        batch = assemble(
            schema,
            columns,
            None,
            parsed=np.arange(2),
            received=2,
            before=10,
            faults=faults,
            payload=lambda rows: [b"y"],
        )
        assert batch.rows["_row_number"].to_pylist() == [11]
        assert batch.rejects.to_pylist() == [
            {"row_number": 12, "field": "a", "reason": "wrong_type", "message": "one; two", "payload": b"y"}
        ]


class TestJsonTexts:
    @given(st.lists(st.none() | st.text(), max_size=6))
    def test_strings_are_written_as_the_json_module_writes_them(self, values):
        expected = [json.dumps(value, ensure_ascii=False) for value in values]
        assert json_strings(pa.array(values, pa.string())).to_pylist() == expected

    @given(st.dictionaries(st.text(), st.none() | st.text(), min_size=1, max_size=4))
    def test_objects_have_sorted_keys(self, record):
        columns = {name: json_strings(pa.array([value], pa.string())) for name, value in record.items()}
        expected = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        assert json_objects(columns).to_pylist() == [expected]


class TestRecords:
    @given(
        st.binary(max_size=60).map(lambda data: data.replace(b"a", b"\n").replace(b"b", b"\r\n")),
        st.integers(1, 20),
    )
    def test_records_are_the_non_blank_lines_whatever_the_block_size(self, data, block_size):
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        expected = [line.removesuffix(b"\r") for line in lines]
        blocks = split_records(io.BytesIO(data), "test", block_size=block_size)
        assert [record for block in blocks for record in block.take(np.arange(len(block)))] == [
            line for line in expected if line
        ]

    @given(
        st.binary(max_size=40).map(lambda data: data.replace(b"a", b"\n").replace(b"b", b'"')),
        st.integers(1, 20),
    )
    def test_quoted_line_ends_belong_to_the_record_whatever_the_block_size(self, data, block_size):
        expected = [
            block[i] for block in split_records(io.BytesIO(data), "test", quote=34) for i in range(len(block))
        ]
        blocks = split_records(io.BytesIO(data), "test", quote=34, block_size=block_size)
        assert [block[i] for block in blocks for i in range(len(block))] == expected

    @given(st.lists(st.binary(max_size=6) | st.text(max_size=4).map(str.encode), min_size=1, max_size=8))
    def test_invalid_utf8_is_found_per_record(self, lines):
        lines = [line.replace(b"\n", b"").replace(b"\r", b"") or b"x" for line in lines]
        (records,) = split_records(io.BytesIO(b"\n".join(lines)), "test", drop_mark=False)

        def valid(line):
            try:
                return bool(line.decode()) or True
            except UnicodeDecodeError:
                return False

        assert records.invalid_utf8().tolist() == [not valid(line) for line in lines]

    def test_blocks_hold_at_most_the_rows_asked_for(self):
        blocks = list(split_records(io.BytesIO(b"x\n" * 10), "test", rows=4))
        assert [len(block) for block in blocks] == [4, 4, 2]

    @pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
    def test_a_record_above_the_limit_is_refused_and_one_at_the_limit_is_not(self, monkeypatch, ending):
        monkeypatch.setattr(parsing, "MAX_RECORD_BYTES", 1 << 20)
        limit = b"x" * parsing.MAX_RECORD_BYTES
        for block_size in (1 << 18, 1 << 22):
            (records,) = split_records(io.BytesIO(limit + ending), "test", block_size=block_size)
            assert records[0] == limit
            with pytest.raises(BareCountError) as refused:
                list(split_records(io.BytesIO(limit + b"x" + ending), "test", block_size=block_size))
            assert refused.value.code is ErrorCode.SOURCE_MALFORMED


def test_zero_is_finite_and_signed():
    assert [math.copysign(1, number) for number in parsed(pa.float64(), "-0.0", "0")] == [-1.0, 1.0]
