"""The portable macros mean the same on every engine, for values on which engines differ when they are let."""

from __future__ import annotations

import datetime as dt
import json
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import duckdb
import numpy as np
import psycopg
import pytest

from barecount_assets.stages.ingestion import json_texts
from resources.data_utilities.time_zones import rules_of
from resources.runtime.database import Database
from resources.runtime.settings import Settings

PAIRS = (
    ("1", "3"), ("-1", "3"), ("1", "-3"), ("-2", "-3"), ("0", "5"), ("5", "0"), ("0", "0"),
    ("0.000001", "2"), ("-0.000001", "2"), ("0.000001", "2.000001"), ("2.5", "1000000"), ("-2.5", "1000000"),
    ("12345678901234567890.123456", "0.000007"), ("99999999999.999999", "7"), ("1", "99999999999999.999999"),
    # Below a half by less than PostgreSQL's own division sees.
    ("24691357.049999", "20000000000.000001"),
    ("0.499999", "1000000"), ("1.499999", "1000000.000001"),
)
TEXTS = ("", " ", "  a b  ", "\u00a0a\u00a0", "\u2003a", "a\t", "é", "e\u0301", "😀", "Z", "a", "ß", "SS", "~", "1:a")
MOMENTS = (
    "2011-01-04 10:00:00", "2011-12-31 23:59:59.999999", "2012-02-29 00:00:00.000001", "1999-03-28 01:30:00",
    "2026-10-25 01:30:00.5",
)
DOCUMENTS = (
    '{"a":1.10,"b":[1.50,{"c":0.10}],"d":{"c":"x\\"y\\\\"}}', '{"a":12345678901234567.89,"d":{"c":null}}',
    '{"a":1e3,"b":[],"d":"{\\"c\\":5}"}', '{"a":-0.0,"b":[true,false],"d":{"c":"2026-01-05, -7"}}', '[1,2.50]',
    '"é \\u0001 7"',
    '12345678901234567890.5', "true", "null", "no json", "", '{"0":"zero","a b":"s","i.j":9007199254740993}',
)  # fmt: skip
PATHS: tuple[tuple[str | int, ...], ...] = (
    (), ("a",), ("b",), ("b", 0), ("b", 1), ("b", 1, "c"), ("d",), ("d", "c"), (0,), (1,), ("a b",), ("i.j",), ("0",),
    ("none", "c"),
)  # fmt: skip
AMOUNTS = (("1.005", "3"), ("-0.015", "-7"), ("999999999999.999", "2"))
ENGINES = ("postgres", "duckdb")
ZONES = (
    "Europe/London", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Apia", "America/Sao_Paulo",
    "Africa/Cairo", "Africa/Casablanca", "America/Havana", "Australia/Lord_Howe", "Asia/Tehran", "UTC",
)  # fmt: skip
VARIABLES = {"time_zone": "Europe/London", "time_zones": {zone: rules_of(zone).as_text() for zone in ZONES}}
SECOND = dt.timedelta(seconds=1)


def _instants() -> list[str]:
    """Instants next to changes of clocks, and days apart, in ISO 8601."""
    chance = random.Random(8)
    found = [dt.datetime(1900, 1, 1) + dt.timedelta(hours=chance.randrange(250 * 365 * 24)) for _ in range(80)]
    for zone in ZONES:
        starts = rules_of(zone).starts
        for start in chance.sample(starts, min(12, len(starts))):
            change = dt.datetime(1970, 1, 1) + start * SECOND
            found += [change, change - SECOND / 1_000_000, change - dt.timedelta(hours=1)]
    return [f"{moment.isoformat(sep=' ', timespec='microseconds')}+00" for moment in found if moment.year > 1840]


INSTANTS = _instants()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """SQL of the statements below, by engine."""
    from dbt.cli.main import dbtRunner

    from barecount_assets.stages import dbt
    from tests.conftest import PROJECT

    data = tmp_path_factory.mktemp("dialects")
    settings = Settings(PROJECT, data, str(data / "raw"), None)
    found: dict[str, dict[str, str]] = {}
    for engine in ENGINES:
        runner = dbtRunner(manifest=dbt._parsed(settings, engine))
        text = "\n-- next\n".join(STATEMENTS.values())
        outcome = runner.invoke(["compile", *dbt._flags(settings, engine), "--no-introspect", "--no-populate-cache",
                                 "--inline", text, "--vars", json.dumps(VARIABLES)])
        assert outcome.success, outcome.exception
        parts = outcome.result.results[0].node.compiled_code.split("-- next")
        found[engine] = dict(zip(STATEMENTS, parts, strict=True))
    return found


def _values(rows: Any, *types: str) -> str:
    def literal(value: str, kind: str) -> str:
        escaped = value.replace("'", "''")
        return f"cast('{escaped}' as {kind})"

    return " union all ".join(
        "select " + ", ".join(f"{literal(value, kind)} as c{number}" for number, (value, kind)
                              in enumerate(zip(row, types, strict=True)))
        for row in rows)


STATEMENTS = {
    "ratio": f"select c0, c1, {{{{ ratio('c0', 'c1') }}}} as r from ("
             f"{_values(PAIRS, 'decimal(38, 6)', 'decimal(38, 6)')}) as given",
    "text": "select c0, {{ trimmed('c0') }}, length(c0), {{ sha256_bytes('c0') }}, "
            "row_number() over (order by {{ binary_text('c0') }}), "
            "row_number() over (order by {{ binary_text('c0') }} desc) "
            f"from ({_values([(text,) for text in TEXTS], 'text')}) as given",
    "moments": "select {{ iso_timestamp('c0') }}, {{ iso_date('cast(c0 as date)') }}, {{ month_start('c0') }}, "
               "{{ period_text('month', month_start('c0')) }}, "
               "{{ month_start('greatest(cast(c0 as date), ' ~ day_after('cast(c0 as date)') ~ ')') }} "
               f"from ({_values([(moment,) for moment in MOMENTS], 'timestamp')}) as given",
    "canonical": "select {{ canonical_text({'name': 'c0', 'data_type': 'numeric(18,3)'}) }}, "
                 "{{ canonical_text({'name': 'c1', 'data_type': 'text'}) }}, "
                 "{{ canonical_text({'name': 'c2', 'data_type': 'boolean'}) }}, "
                 "{{ canonical_text({'name': 'c3', 'data_type': 'date'}) }}, "
                 "{{ canonical_text({'name': 'c4', 'data_type': 'timestamp'}) }} from ("
                 + _values([("-0.0005", "x;~", "true", "2024-02-29", "2024-02-29 00:00:00"),
                            ("0.0004", "😀é", "false", "1900-01-01", "1900-01-01 12:34:56.7")],
                           "numeric(18, 3)", "text", "boolean", "date", "timestamp")
                 + " union all select null, null, null, null, null) as given",
    "instants": "select c0, {{ iso_instant('c0') }}, {{ canonical_text({'name': 'c0', 'data_type': 'timestamptz'}) }}, "
                "{{ iso_timestamp(local_timestamp('c0')) }}, {{ local_date('c0') }}"
                + "".join(f", {{{{ iso_timestamp(local_timestamp('c0', '{zone}')) }}}}" for zone in ZONES)
                + f" from ({_values([(instant,) for instant in INSTANTS], 'timestamptz')}) as given",
    "json": "select c0" + "".join(f", {{{{ json_field{('c0', *path)!r} }}}}" for path in PATHS).replace(",) }}", ") }}")
            + f" from ({_values([(text,) for text in DOCUMENTS], 'text')} union all select null) as given",
    "sums": "select cast(sum(c0) as {{ type_measure() }}), "
            "cast(cast(sum(c0) as numeric(18, 2)) as {{ type_measure() }}), "
            "cast(greatest(max(c0) - sum(c0), 0) as numeric(18, 3)), cast(max(c1) * min(c0) as numeric(18, 3)) "
            f"from ({_values(AMOUNTS, 'numeric(18, 3)', 'integer')}) as given",
}


def _plain(value: Any) -> Any:
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)


def _rows(found: list[tuple]) -> list[tuple]:
    return sorted(tuple(_plain(value) for value in row) for row in found)


def on_postgres(database: Database, statement: str, zone: str = "UTC") -> list[tuple]:
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(f"set timezone = '{zone}'")
        return _rows(connection.execute(statement).fetchall())


def on_duckdb(statement: str, zone: str = "UTC") -> list[tuple]:
    connection = duckdb.connect(":memory:")
    connection.execute(f"set TimeZone = '{zone}'")
    return _rows(connection.execute(statement).fetchall())


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_portable_macro_means_the_same(rendered: dict[str, dict[str, str]], database: Database, name: str) -> None:
    assert on_duckdb(rendered["duckdb"][name]) == on_postgres(database, rendered["postgres"][name])


def test_what_clocks_show_is_by_the_pinned_rules_whatever_the_session(
    rendered: dict[str, dict[str, str]], database: Database
) -> None:
    expected = {}
    for text in INSTANTS:
        instant = np.array([np.datetime64(text.removesuffix("+00"), "us").astype(np.int64)])
        shown = [dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=int(rules_of(zone).walls(instant)[0]))
                 for zone in ZONES]
        texts = [moment.isoformat(timespec="microseconds") for moment in shown]
        expected[text.removesuffix("+00").replace(" ", "T") + "Z"] = (texts[0], texts[0][:10], *texts)
    for session in ("UTC", "Asia/Tokyo", "America/Los_Angeles"):
        for found in (on_postgres(database, rendered["postgres"]["instants"], session),
                      on_duckdb(rendered["duckdb"]["instants"], session)):
            assert {row[1]: row[3:] for row in found} == expected


def test_a_part_of_json_is_what_the_source_wrote(
    rendered: dict[str, dict[str, str]], database: Database
) -> None:
    def part(text: str, path: tuple[str | int, ...]) -> str:
        try:
            value = json_texts.value_of(text)
        except ValueError:
            return "None"
        for step in path:
            inside = isinstance(value, dict) and step in value if isinstance(step, str) else (
                isinstance(value, list) and step < len(value))
            if not inside:
                return "None"
            value = value[step]
        return str(value) if type(value) is str else "None" if value is None else json_texts.json_text(value)

    expected = _rows([(text, *(part(text, path) for path in PATHS)) for text in DOCUMENTS])
    assert [row for row in on_postgres(database, rendered["postgres"]["json"]) if row[0] != "None"] == expected


def test_a_ratio_is_the_exact_quotient_rounded_once_half_away_from_zero(
    rendered: dict[str, dict[str, str]], database: Database
) -> None:
    for n, d, r in on_postgres(database, rendered["postgres"]["ratio"]):
        if Fraction(d) == 0:
            assert r == "None"
            continue
        exact = abs(Fraction(n) / Fraction(d)) * 10**6
        rounded = int(exact + Fraction(1, 2)) * (-1 if (Fraction(n) < 0) != (Fraction(d) < 0) else 1)
        assert Fraction(Decimal(r)) * 10**6 == rounded, (n, d, r)
