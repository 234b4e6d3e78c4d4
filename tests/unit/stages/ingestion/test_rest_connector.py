"""REST connector, the parts that need no server: declaration, units, Link headers, JSON text."""

import datetime as dt
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barecount_assets.stages.ingestion.connectors import rest
from barecount_assets.stages.ingestion.connectors.rest import RestConnector, next_link
from barecount_assets.stages.ingestion.records import Cursor, Window
from resources.governance.sources import RestSource

WINDOW = Window(dt.date(2026, 1, 31), dt.date(2026, 2, 2))
BASE = httpx.URL("https://api.example/v1/orders?page=1")
INCREMENTAL = {
    "url": "https://api.example/v1/orders",
    "params": {"since": "{cursor}", "before": "{until}"},
    "incremental": {"start": "2026-01-01T00:00:00Z", "lag_seconds": 60},
}


def source(**fields):
    declared = {
        "name": "orders",
        "dataset": "shop.orders",
        "connector": "rest",
        "url": "https://api.example/v1/orders",
    }
    return RestSource.model_validate({**declared, **fields})


class TestUnits:
    def test_a_dated_source_has_one_unit_per_date_of_the_window(self):
        connector = RestConnector(source(params={"from": "{date}", "to": "{next_date}"}))
        units = connector.discover(WINDOW, None)
        assert [unit.partition_date for unit in units] == [
            dt.date(2026, 1, 31),
            dt.date(2026, 2, 1),
            dt.date(2026, 2, 2),
        ]
        assert units[0].source_id == "2026-01-31"
        assert units[0].uri == "https://api.example/v1/orders?from=2026-01-31&to=2026-02-01"
        assert units[0].sha256 is None

    def test_an_undated_source_is_one_unit(self):
        (unit,) = RestConnector(source()).discover(WINDOW, None)
        assert (unit.source_id, unit.partition_date, unit.cursor) == ("all", None, None)

    def test_an_incremental_slice_goes_from_the_stored_cursor_to_now_less_the_lag(self):
        connector = RestConnector(
            source(**INCREMENTAL),
            now=lambda: dt.datetime(2026, 3, 5, 12, 1, tzinfo=dt.UTC),
        )
        (first,) = connector.discover(WINDOW, None)
        assert first.source_id == "2026-01-01T00:00:00Z..2026-03-05T12:00:00Z"
        (second,) = connector.discover(WINDOW, Cursor("2026-03-01T00:00:00Z"))
        assert second.cursor == "2026-03-05T12:00:00Z"
        assert dict(httpx.URL(second.uri).params) == {
            "since": "2026-03-01T00:00:00Z",
            "before": "2026-03-05T12:00:00Z",
        }

    def test_an_empty_slice_is_no_unit(self):
        connector = RestConnector(
            source(**INCREMENTAL),
            now=lambda: dt.datetime(2026, 3, 5, 12, 1, tzinfo=dt.UTC),
        )
        assert connector.discover(WINDOW, Cursor("2026-03-05T12:00:00Z")) == []
        assert connector.discover(WINDOW, Cursor("2026-03-05T13:00:00Z")) == []

    def test_parameters_join_the_query_of_the_url_and_are_encoded(self):
        (unit,) = RestConnector(source(url="https://api.example/x?a=1", params={"q": "a&b c"})).discover(
            WINDOW, None
        )
        assert dict(httpx.URL(unit.uri).params) == {"a": "1", "q": "a&b c"}


class TestLinkHeader:
    @pytest.mark.parametrize(
        ("headers", "target"),
        [
            (['<https://api.example/v1/orders?page=2>; rel="next"'], "https://api.example/v1/orders?page=2"),
            (["<?page=2>; rel=next"], "https://api.example/v1/orders?page=2"),
            (["</v2>; REL=NEXT"], "https://api.example/v2"),
            (
                ['<?a=1,2;3>; title="a, <b>; c=\\"d\\""; rel="last next"'],
                "https://api.example/v1/orders?a=1,2;3",
            ),
            (['<?page=1>; rel="prev", <?page=3> ; rel="next"'], "https://api.example/v1/orders?page=3"),
            (['<?page=1>; rel="prev"', '<?page=3>; rel="next"'], "https://api.example/v1/orders?page=3"),
            (['<?page=9>; rel="last"; rel="next"'], None),
            (['<?page=2>; rel="next"; anchor="#chapter"'], None),
            (['<?page=2>; rel="nextish"'], None),
            (["page 2"], None),
            ([], None),
        ],
    )
    def test_the_first_link_with_relation_next_counts(self, headers, target):
        found = next_link(headers, BASE)
        assert (str(found) if found else None) == target


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


class TestJsonText:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(JSON, max_size=5), JSON, st.sampled_from([None, 1, "\t"]))
    def test_the_slices_of_a_text_are_its_records(self, records, other, indent):
        text = json.dumps(
            {"before": other, "data": {"items": records, "n": 1}, "after": other}, indent=indent
        )
        assert [json.loads(text[a:b]) for a, b in rest._record_spans(text, "data.items")] == records
        text = f" {json.dumps(records, indent=indent)}\n"
        assert [json.loads(text[a:b]) for a, b in rest._record_spans(text, "")] == records

    def test_a_number_keeps_every_digit_it_was_sent_with(self):
        text = '{"items": [{"amount": 0.10000000000000000001, "id": 12345678901234567890123}]}'
        ((start, end),) = rest._record_spans(text, "items")
        assert text[start:end] == '{"amount": 0.10000000000000000001, "id": 12345678901234567890123}'

    def test_of_repeated_names_the_last_counts_as_it_does_for_the_cursor(self):
        text = '{"items": [1], "items": [2, 3]}'
        assert [text[a:b] for a, b in rest._record_spans(text, "items")] == ["2", "3"]

    @pytest.mark.parametrize(
        "text", ["", " ", "{", "[1,]", "[1] x", "<html>", '{"items": [1}', "nul", "[" * 100_000]
    )
    def test_a_text_that_is_no_json_is_refused(self, text):
        with pytest.raises((json.JSONDecodeError, RecursionError)):
            rest._record_spans(text, "")

    @pytest.mark.parametrize(
        ("text", "path", "said"),
        [
            ('{"data": {}}', "data.items", "no 'items' among no members"),
            ('{"data": null}', "data.items", "asked of null"),
            ('{"data": {"items": {}}}', "data.items", "found an object"),
            ('{"error": "no"}', "data", "no 'data' among error"),
            ("17", "", "found a number"),
        ],
    )
    def test_a_missing_array_is_refused_with_what_is_there(self, text, path, said):
        with pytest.raises(rest._NotThere, match=said):
            rest._record_spans(text, path)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17),
        (" 17 ", 17),
        ("Thu, 05 Mar 2026 12:00:30 GMT", 30),
        ("Thu, 05 Mar 2026 11:00:00 -0000", 0),
        ("soon", None),
        ("-5", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert rest._retry_after(value, dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC)) == seconds
