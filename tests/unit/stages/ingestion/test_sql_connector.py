"""SQL connector, the parts that need no database: DSN and driver values."""

import datetime as dt
import uuid
from decimal import Decimal

import pyarrow as pa
import pytest

from barecount_assets.stages.ingestion.connectors import sql
from barecount_assets.stages.ingestion.connectors.references import Lookup, References
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field
from resources.runtime.errors import BareCountError, ErrorCode


class TestDsn:
    def test_a_value_within_a_dsn_is_encoded_and_a_whole_dsn_is_taken_as_it_is(self):
        environment = {"PW": "p@ss/w:rd", "DSN": "postgresql+psycopg://u:p%40ss@db:5433/erp"}
        url = sql._url("postgresql://u:${env:PW}@db/erp", References(Lookup(environment)))
        assert (url.password, url.host, url.database) == ("p@ss/w:rd", "db", "erp")
        url = sql._url("${env:DSN}", References(Lookup(environment)))
        assert (url.drivername, url.password, url.port) == ("postgresql", "p@ss", 5433)
        assert sql._describe(url) == "postgresql://db:5433/erp"

    @pytest.mark.parametrize(
        "dsn", ["hunter2", "postgresql://u:hunter2@db:port/erp", "host=db password=hunter2"]
    )
    def test_what_is_no_url_is_refused_without_being_shown(self, dsn):
        with pytest.raises(BareCountError) as refused:
            sql._url(dsn, References(Lookup({})))
        assert refused.value.code is ErrorCode.DECLARATION_INVALID
        assert "hunter2" not in str(refused.value)

    def test_a_secret_is_looked_up_by_its_reference_and_encoded_like_a_variable(self):
        references = References(Lookup({}, {"secret://erp#password": "p@ss/w:rd"}.__getitem__))
        assert sql._url("postgresql://u:${secret://erp#password}@db/erp", references).password == "p@ss/w:rd"
        assert references.redact("p@ss/w:rd") == "***"

    def test_where_nothing_keeps_secrets_a_reference_is_refused(self):
        with pytest.raises(BareCountError) as refused:
            sql._url("${secret://erp#dsn}", References(Lookup({})))
        assert refused.value.code is ErrorCode.SECRET_UNKNOWN

    def test_every_form_of_a_password_is_redacted(self):
        references = References(Lookup({"PW": "p@ss/w:rd"}))
        sql._url("mysql://u:${env:PW}@db/erp", references)
        assert references.redact("p@ss/w:rd p%40ss%2Fw%3Ard") == "*** ***"


def field(type_, format=None):
    return Field("f", "F", type_, format=format)


DAY, MIDNIGHT = dt.date(2026, 1, 2), dt.datetime(2026, 1, 2)
PLUS_TWO = dt.timezone(dt.timedelta(hours=2))


class TestDriverValues:
    @pytest.mark.parametrize(
        ("value", "type_", "result"),
        [
            (7, pa.int64(), 7),
            (Decimal("7.00"), pa.int64(), 7),
            (7.0, pa.int32(), 7),
            (1.1, pa.decimal128(10, 2), Decimal("1.10")),
            (Decimal("1E+2"), pa.decimal128(10, 2), Decimal("100.00")),
            (Decimal("12.3000"), pa.decimal128(10, 2), Decimal("12.30")),
            ("12.30", pa.decimal128(10, 2), Decimal("12.30")),
            (1e-300, pa.float64(), 1e-300),
            (True, pa.bool_(), True),
            (0, pa.bool_(), False),
            (DAY, pa.date32(), DAY),
            (MIDNIGHT, pa.date32(), DAY),
            (DAY, pa.timestamp("us"), MIDNIGHT),
            (dt.datetime(2026, 1, 2, 2, tzinfo=PLUS_TWO), pa.timestamp("us"), MIDNIGHT),
            (7, pa.string(), "7"),
            (Decimal("7.10"), pa.string(), "7.10"),
            (b"\x00\xff", pa.string(), "\\x00ff"),
            (uuid.UUID(int=1), pa.string(), "00000000-0000-0000-0000-000000000001"),
            ({"a": [1, "é"]}, pa.string(), '{"a": [1, "é"]}'),
            (dt.time(3, 4), pa.string(), "03:04:00"),
            ("", pa.string(), ""),
            (None, pa.int64(), None),
        ],
    )
    def test_a_value_fits_when_its_text_does(self, value, type_, result):
        column = sql._driver_column(field(type_), (value,), 1)
        assert (column.values.to_pylist(), column.wrong) == ([result], None)
        assert column.values.type == type_

    @pytest.mark.parametrize(
        ("value", "type_", "found"),
        [
            (2**63, pa.int64(), '"9223372036854775808"'),
            (1.5, pa.int64(), '"1.5"'),
            (Decimal("1.005"), pa.decimal128(10, 2), '"1.005"'),
            (Decimal("NaN"), pa.decimal128(10, 2), '"NaN"'),
            (float("inf"), pa.float64(), '"inf"'),
            (dt.datetime(2026, 1, 2, 3), pa.date32(), '"2026-01-02 03:00:00"'),
            (2, pa.bool_(), '"2"'),
            (b"1", pa.int64(), '"\\\\x31"'),
        ],
    )
    def test_a_value_that_does_not_fit_is_wrong_and_shown(self, value, type_, found):
        column = sql._driver_column(field(type_), (value,), 1)
        assert column.values.to_pylist() == [None]
        assert column.wrong.tolist() == [True]
        assert column.found(0) == found

    def test_a_value_is_judged_by_itself_whatever_its_neighbours(self):
        column = sql._driver_column(field(pa.decimal128(10, 2)), (1, 2.5, "x", None, Decimal("3")), 5)
        assert column.values.to_pylist() == [Decimal("1.00"), Decimal("2.50"), None, None, Decimal("3.00")]
        assert column.wrong.tolist() == [False, False, True, False, False]

    def test_a_format_is_for_texts_and_not_for_typed_instants(self):
        column = sql._driver_column(
            field(pa.date32(), "%d/%m/%Y"), ("02/01/2026", DAY, "2026-01-02", None), 4
        )
        assert column.values.to_pylist() == [DAY, DAY, None, None]
        assert column.wrong.tolist() == [False, False, True, False]

    def test_undeclared_columns_are_kept_with_their_digits(self):
        found = {
            "F": (1,),
            "price": (Decimal("1.10"),),
            "at": (MIDNIGHT,),
            "bad": (float("nan"),),
            "none": (None,),
        }
        rows = sql._python_rows(found, 1, ExtractorSchema((field(pa.int64()),)))
        kept = '{"at":"2026-01-02 00:00:00","bad":"nan","none":null,"price":1.10}'
        assert rows.extra.to_pylist() == [kept]
        assert (
            rows.payload(0).decode()
            == '{"F":1,"price":1.10,"at":"2026-01-02 00:00:00","bad":"nan","none":null}'
        )


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        ("1.10", "1.1"),
        ("-100.000", "-100"),
        ("100", "100"),
        ("0.0", "0"),
        ("1.5e10", "1.5e10"),
        ("NaN", "NaN"),
        (None, None),
    ],
)
def test_zeros_that_end_a_fraction_say_nothing(text, trimmed):
    assert sql._trimmed(pa.array([text], pa.string())).to_pylist() == [trimmed]
