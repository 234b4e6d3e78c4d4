"""CSV: every record accounted for once, decided by itself, and read as RFC 4180 and the contract say."""

import csv
import io
import json
import os
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.records import REJECT_SCHEMA, ExtractorSchema, Field, ObservedSchema
from resources.runtime.errors import BareCountError, ErrorCode

settings.register_profile("unhurried", deadline=None)  # how long an example takes says nothing here
settings.load_profile("unhurried")

SCHEMA = ExtractorSchema(
    (
        Field("name", "Name", pa.string(), required=True),
        Field("quantity", "Quantity", pa.int64()),
        Field("price", "Price", pa.decimal128(10, 2)),
    )
)
HEADER = b"Name,Quantity,Price\n"
TEXTS = ExtractorSchema(
    (Field("a", "a", pa.string()), Field("b", "b", pa.string()), Field("c", "c", pa.string()))
)


def read(data, schema=SCHEMA, format=None, **options):
    """Rows and rejects of the bytes, as lists of dicts, after checking what must hold of every batch."""
    format = format or CsvFormat()
    rows, rejects, before = [], [], 0
    for batch in format.read(io.BytesIO(data), schema, "test.csv", **options):
        batch.rows.validate(full=True)
        assert batch.rows.schema == schema.arrow and batch.rejects.schema == REJECT_SCHEMA
        numbers = batch.rows["_row_number"].to_pylist()
        refused = batch.rejects["row_number"].to_pylist()
        assert sorted(numbers + refused) == list(range(before + 1, before + batch.received + 1))
        assert numbers == sorted(numbers) and refused == sorted(refused)
        before += batch.received
        rows += batch.rows.to_pylist()
        rejects += batch.rejects.to_pylist()
    return rows, rejects


def reasons(data, schema=SCHEMA, format=None):
    return [reject["reason"] for reject in read(data, schema, format)[1]]


def refusal(data, schema=SCHEMA, format=None):
    with pytest.raises(BareCountError) as refused:
        read(data, schema, format)
    assert refused.value.code is ErrorCode.SOURCE_MALFORMED
    return refused.value


FRAGMENTS = [
    b"a",
    b"1",
    b"2.50",
    b"-3",
    b",",
    b",,",
    b'"',
    b'""',
    b'"x, y"',
    b"\0",
    b"\xff",
    b"\xc3\xa9",
    b"\r",
    b" ",
    b"'",
]
DIRTY_LINE = st.one_of(
    st.sampled_from(
        [b"apple,1,2.50", b'"pear, ripe",2,', b"fig,x,1.00", b",1,1.00", b"kiwi,1", b"plum,1,2,3", b""]
    ),
    st.lists(st.sampled_from(FRAGMENTS), max_size=8).map(b"".join),
)
RFC_4180 = re.compile(r'(?:"(?:[^"]|"")*"|[^",]*)(?:,(?:"(?:[^"]|"")*"|[^",]*))*', re.DOTALL)
DIRTY_FILE = st.lists(st.tuples(DIRTY_LINE, st.sampled_from([b"\n", b"\r\n"])), max_size=12)


def joined(lines):
    return HEADER + b"".join(line + ending for line, ending in lines)


def records(lines):
    """The lines without their ends: a carriage return right before a line feed belongs to the end."""
    stripped = [line if ending == b"\r\n" else line.removesuffix(b"\r") for line, ending in lines]
    return [line for line in stripped if line]


class TestAccounting:
    @given(DIRTY_FILE)
    def test_every_line_that_is_not_blank_is_a_row_or_a_reject_with_its_bytes(self, lines):
        rows, rejects = read(joined(lines))
        expected = records(lines)
        assert len(rows) + len(rejects) == len(expected)
        assert all(reject["payload"] == expected[reject["row_number"] - 1] for reject in rejects)

    @given(DIRTY_FILE, st.integers(1, 64), st.booleans())
    def test_results_do_not_depend_on_the_block_size(self, lines, block_size, multiline):
        format = CsvFormat(multiline=multiline)
        assert read(joined(lines), format=format, block_size=block_size) == read(joined(lines), format=format)

    @given(DIRTY_FILE)
    def test_a_record_is_decided_whatever_its_neighbours_are(self, lines):
        rows, rejects = read(joined(lines))
        together = {row["_row_number"]: row for row in rows}
        together |= {reject["row_number"]: reject for reject in rejects}
        for number, record in enumerate(records(lines), start=1):
            alone_rows, alone_rejects = read(HEADER + record + b"\r\n")
            (alone,) = alone_rows + alone_rejects
            number_key = "_row_number" if alone_rows else "row_number"
            assert alone | {number_key: number} == together[number]

    @given(DIRTY_FILE)
    def test_quotes_are_judged_as_rfc_4180_says_and_rows_hold_what_the_csv_module_reads(self, lines):
        rows, rejects = read(joined(lines))
        refused = {reject["row_number"]: reject["reason"] for reject in rejects}
        accepted = {row["_row_number"]: row for row in rows}
        for number, record in enumerate(records(lines), start=1):
            if refused.get(number) in ("nul_byte", "bad_encoding"):
                continue
            assert (refused.get(number) == "broken_quote") == (not RFC_4180.fullmatch(record.decode()))
            if refused.get(number) in ("broken_quote", "malformed"):
                continue
            (fields,) = csv.reader(io.StringIO(record.decode(), newline=""), strict=True)
            assert (refused.get(number) == "too_many_fields") == (len(fields) > 3)
            assert (refused.get(number) == "too_few_fields") == (len(fields) < 3)
            if row := accepted.get(number):
                assert [row["name"], str(row["quantity"] or ""), row["price"]] == [
                    fields[0],
                    fields[1],
                    Decimal(fields[2]) if fields[2] else None,
                ]


class TestReasons:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"a\0b,1,1", "nul_byte"),
            (b"\xff,1,1", "bad_encoding"),
            (b"\xed\xa0\x80,1,1", "bad_encoding"),
            (b'a"b,1,1', "broken_quote"),
            (b'"a"b,1,1', "broken_quote"),
            (b'"a,1,1', "broken_quote"),
            (b'a,1,1"', "broken_quote"),
            (b' "a",1,1', "broken_quote"),
            (b'"a" ,1,1', "broken_quote"),
            (b"a\rb,1,1", "malformed"),
            (b"a,1", "too_few_fields"),
            (b"a,1,1,", "too_many_fields"),
            (b'"a,b",1', "too_few_fields"),
            (b"a,x,1", "wrong_type"),
            (b"a,1.0,1", "wrong_type"),
            (b"a,1,1.001", "wrong_type"),
            (b"a, 1,1", "wrong_type"),
            (b"a,9223372036854775808,1", "wrong_type"),
            (b",1,1", "missing_field"),
        ],
    )
    def test_each_fault_has_its_reason_and_costs_one_record(self, line, reason):
        rows, rejects = read(HEADER + b"before,1,1\n" + line + b"\nafter,2,2\n")
        assert [row["name"] for row in rows] == ["before", "after"]
        assert [(reject["reason"], reject["payload"]) for reject in rejects] == [(reason, line)]

    def test_the_first_fault_decides_and_the_message_tells_all(self):
        (reject,) = read(HEADER + b"a,x,y\n")[1]
        assert (reject["field"], reject["reason"]) == ("quantity", "wrong_type")
        assert reject["message"] == (
            'quantity: found "x", allowed bigint; price: found "y", allowed numeric(10,2)'
        )

    def test_messages_stay_short(self):
        wide = ExtractorSchema(tuple(Field(f"f{i}", f"F{i}", pa.int64()) for i in range(100)))
        data = ",".join(f"F{i}" for i in range(100)) + "\n" + ",".join(["x" * 1000] * 100)
        (reject,) = read(data.encode(), wide)[1]
        assert len(reject["message"]) == 500

    def test_a_carriage_return_within_quotes_is_text(self):
        assert read(HEADER + b'"a\rb",1,1\n')[0][0]["name"] == "a\rb"


class TestValues:
    def test_an_empty_field_is_null_and_an_empty_quoted_text_is_empty(self):
        rows, rejects = read(
            b'a,b,c\n"",,""\n', ExtractorSchema((*TEXTS.fields[:2], Field("c", "c", pa.int64())))
        )
        assert rejects == []
        assert [rows[0][name] for name in "abc"] == ["", None, None]

    def test_words_that_look_like_null_are_text(self):
        rows, _ = read(b'a,b,c\nNULL,NA,"nan"\n', TEXTS)
        assert [rows[0][name] for name in "abc"] == ["NULL", "NA", "nan"]

    def test_nothing_is_trimmed(self):
        assert read(b"a,b,c\n a,b\t, \n", TEXTS)[0][0] | {"_row_number": 0} == {
            "a": " a",
            "b": "b\t",
            "c": " ",
            "_row_number": 0,
            "_extra": None,
        }

    @given(
        st.lists(
            st.tuples(*[st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))] * 3)
        ),
        st.sampled_from([",", ";", "\t", "|"]),
        # csv.QUOTE_MINIMAL quotes a lone carriage return, as RFC 4180 asks, only where lines end in CRLF
        st.sampled_from([(csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_MINIMAL, "\r\n")]),
        st.integers(1, 50),
    )
    def test_agrees_with_the_csv_module_on_valid_files(
        self, table, delimiter, quoting_and_ending, block_size
    ):
        quoting, ending = quoting_and_ending
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=quoting)
        writer.writerows([("a", "b", "c"), *table])
        format = CsvFormat(delimiter=delimiter, multiline=True)
        rows, rejects = read(text.getvalue().encode(), TEXTS, format, block_size=block_size)
        assert rejects == []
        assert [tuple(row[name] or "" for name in "abc") for row in rows] == table

    def test_a_field_of_ten_megabytes_is_read_whole(self):
        long = "é,\n" * (10 << 18)
        rows, rejects = read(f'a,b,c\n1,"{long}",2\n3,4,5\n'.encode(), TEXTS, CsvFormat(multiline=True))
        assert rejects == [] and rows[0]["b"] == long and rows[1]["c"] == "5"

    def test_a_bad_record_of_ten_megabytes_is_kept_whole(self):
        line = b"x" * (10 << 20)
        (reject,) = read(HEADER + line + b"\nfig,1,1\n")[1]
        assert reject["payload"] == line and reject["reason"] == "too_few_fields"

    def test_many_short_lines_come_in_bounded_batches(self):
        schema = ExtractorSchema((Field("a", "a", pa.int64()),))
        batches = list(CsvFormat().read(io.BytesIO(b"a\n" + b"1\n" * 300_000), schema, "test"))
        assert sum(batch.received for batch in batches) == 300_000
        assert max(batch.received for batch in batches) <= 128 * 1024


class TestEncodings:
    def test_windows_1252_is_decoded_and_its_undefined_bytes_are_refused(self):
        format = CsvFormat(delimiter=";", encoding="windows-1252")
        rows, rejects = read("a;b;c\nMüller;€;“x”\n".encode("cp1252") + b"\x81;1;2\nx;y;z\n", TEXTS, format)
        assert [[row[name] for name in "abc"] for row in rows] == [["Müller", "€", "“x”"], ["x", "y", "z"]]
        assert [(reject["reason"], reject["payload"]) for reject in rejects] == [
            ("bad_encoding", b"\x81;1;2")
        ]

    @pytest.mark.parametrize("encoding", ["iso-8859-1", "iso-8859-15"])
    def test_the_iso_encodings_define_every_byte(self, encoding):
        text = bytes(range(0x80, 0x100)).decode(encoding)
        assert (
            read(f"a,b,c\n{text},1,2\n".encode(encoding), TEXTS, CsvFormat(encoding=encoding))[0][0]["a"]
            == text
        )

    def test_a_byte_order_mark_is_no_part_of_the_header(self):
        rows, _ = read(b"\xef\xbb\xbf" + HEADER + b"fig,1,1\n")
        assert rows[0]["name"] == "fig"

    def test_a_byte_order_mark_against_the_declared_encoding_is_refused(self):
        assert (
            "windows-1252"
            in refusal(b"\xef\xbb\xbf" + HEADER, format=CsvFormat(encoding="windows-1252")).message
        )

    def test_utf_16_is_refused_at_the_header(self):
        refusal("Name,Quantity,Price\na,1,1\n".encode("utf-16"))

    @pytest.mark.parametrize(
        "options",
        [
            {"encoding": "utf-16"},
            {"encoding": "cp037"},
            {"delimiter": ";;"},
            {"delimiter": "é"},
            {"quote": "\n"},
            {"delimiter": "'", "quote": "'"},
            {"delimiter": ""},
        ],
    )
    def test_other_dialects_are_refused(self, options):
        with pytest.raises(BareCountError) as refused:
            CsvFormat(**options)
        assert refused.value.code is ErrorCode.DECLARATION_INVALID


class TestHeader:
    def test_columns_are_matched_by_name_in_any_order(self):
        rows, _ = read(b'Price,"Name",Quantity\n1.50,fig,2\n')
        assert (rows[0]["name"], rows[0]["quantity"], rows[0]["price"]) == ("fig", 2, Decimal("1.50"))

    def test_undeclared_columns_go_to_extra_as_json(self):
        rows, _ = read(b'Name,z,Quantity,Price,\xc3\xa4\nfig,"say ""hi""\\",1,1,\n')
        assert rows[0]["_extra"] == '{"z":"say \\"hi\\"\\\\","ä":null}'
        assert json.loads(rows[0]["_extra"]) == {"z": 'say "hi"\\', "ä": None}

    def test_a_column_the_file_lacks_is_null_and_rejects_every_row_when_required(self):
        rows, _ = read(b"Name\nfig\n")
        assert rows[0]["quantity"] is None and rows[0]["_extra"] is None
        assert reasons(b"Price,Quantity\n1,1\n2,2\n") == ["missing_field", "missing_field"]

    def test_a_name_given_twice_is_refused(self):
        assert '"Name"' in refusal(b"Name,Name,Price\n").message

    def test_a_wrong_delimiter_is_refused_with_what_was_found_and_expected(self):
        error = refusal(b"Name;Quantity;Price\na;1;1\n")
        assert '"Name;Quantity;Price"' in error.message and '"Quantity"' in error.message

    @pytest.mark.parametrize("header", [b'Na"me,Price\n', b"Na\0me\n", b"\xff\n", b"Name\rfig\rplum"])
    def test_a_header_that_cannot_be_read_is_refused(self, header):
        assert "header" in refusal(header).message

    @pytest.mark.parametrize(
        "data", [b"", b"\n\r\n", b"\xef\xbb\xbf", HEADER, HEADER.strip(), b"\n" + HEADER + b"\n\n"]
    )
    def test_a_file_without_records_yields_nothing(self, data):
        assert list(CsvFormat().read(io.BytesIO(data), SCHEMA, "test")) == []

    def test_without_a_header_columns_are_the_contracts_in_its_order(self):
        rows, rejects = read(b"fig,1,2\nfig,1\n", format=CsvFormat(header=False))
        assert rows[0]["quantity"] == 1 and [reject["reason"] for reject in rejects] == ["too_few_fields"]

    def test_the_header_is_what_is_observed(self):
        assert CsvFormat().observe(io.BytesIO(b"b,a\n1,2"), "test") == ObservedSchema(("b", "a"))
        assert CsvFormat().observe(io.BytesIO(b""), "test") == ObservedSchema(())
        assert CsvFormat(header=False).observe(io.BytesIO(b"1,2"), "test") == ObservedSchema(())

    def test_without_quoting_a_quote_is_a_character(self):
        rows, _ = read(b'a,b,c\n"x,y",z\n', TEXTS, CsvFormat(quote=None))
        assert [rows[0][name] for name in "abc"] == ['"x', 'y"', "z"]


class TestMultiline:
    def test_quoted_line_ends_are_text_when_declared_and_broken_quotes_when_not(self):
        data = HEADER + b'"a\r\nb",1,1\nc,2,2\n'
        rows, rejects = read(data, format=CsvFormat(multiline=True))
        assert [row["name"] for row in rows] == ["a\r\nb", "c"] and rejects == []
        assert reasons(data) == ["broken_quote", "broken_quote"]

    def test_an_unclosed_quote_takes_the_rest_of_the_file_as_one_reject(self):
        rows, rejects = read(HEADER + b'a,1,1\n"b,1,1\nc,1,1\n', format=CsvFormat(multiline=True))
        assert [row["name"] for row in rows] == ["a"]
        assert [(reject["reason"], reject["payload"]) for reject in rejects] == [
            ("broken_quote", b'"b,1,1\nc,1,1\n')
        ]


RETAIL = ExtractorSchema(
    (
        Field("invoice_no", "InvoiceNo", pa.string(), required=True),
        Field("stock_code", "StockCode", pa.string(), required=True),
        Field("description", "Description", pa.string()),
        Field("quantity", "Quantity", pa.int64(), required=True),
        Field("invoice_date", "InvoiceDate", pa.timestamp("us"), required=True),
        Field("unit_price", "UnitPrice", pa.decimal128(18, 3), required=True),
        Field("customer_id", "CustomerID", pa.decimal128(10, 1)),
        Field("country", "Country", pa.string(), required=True),
    )
)


def test_the_real_online_retail_files_are_read_without_a_reject():
    shared = Path(os.environ.get("BARECOUNT_SHARED_DATA", Path(__file__).parents[5] / "shared" / "data"))
    files = sorted(shared.glob("online-retail/by-day/*.csv"))
    if not files:
        pytest.skip(
            f"no online-retail data under {shared}; set BARECOUNT_SHARED_DATA to the folder that has it"
        )
    lines, rejected, no_customer, amount = 0, 0, 0, Decimal(0)
    for path in files:
        with path.open("rb") as file:
            for batch in CsvFormat().read(file, RETAIL, path.name):
                lines += batch.received
                rejected += batch.rejects.num_rows
                no_customer += batch.rows["customer_id"].null_count
                quantity = batch.rows["quantity"].cast(pa.decimal128(19, 0))
                amount += pc.sum(pc.multiply(quantity, batch.rows["unit_price"])).as_py()
    assert (lines, rejected, no_customer, amount) == (541_909, 0, 135_080, Decimal("9747747.934"))
