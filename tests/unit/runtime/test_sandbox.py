"""Templates fill in data, and can do nothing else."""

from __future__ import annotations

import pytest

from resources.runtime import sandbox

DATA = {"data": {"value": "1234.5678", "ratio": "0.256", "rows": [1, 2, 3], "none": None}, "text": "x", "n": 3}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ data.rows[0] }} of {{ data['rows']|length }}", "1 of 3"),
        ("{{ data.value|number(2) }} {{ data.ratio|percent }} {{ data.none|number }}", "1,234.57 25.6% -"),
        ("{% for row in data.rows %}{{ row }},{% endfor %}", "1,2,3,"),
        ("{% if data.gone is defined %}yes{% else %}{{ data.gone|default('no') }}{% endif %}", "no"),
        ("{{ data.rows|tojson }} {{ n * 2 }}", "[1, 2, 3] 6"),
        ("{{ data.items is defined }}", "False"),
    ],
)
def test_data_is_filled_in(source: str, expected: str) -> None:
    assert sandbox.render(source, DATA) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ data.__class__ }}", "underscore"), ("{{ data['__class__'] }}", "undefined|no item|has no"),
        ("{{ text.upper() }}", "a call"), ("{{ range(9) }}", "a call"), ("{{ text|attr('upper') }}", "no filter"),
        ("{{ data|map('upper') }}", "no filter"), ("{% set a = 1 %}", "set is not"),
        ("{% macro m() %}{% endmacro %}", "macro"),
        ("{% include 'x' %}", "include"), ("{% with a = 1 %}{% endwith %}", "with"),
        ("{{ 2 ** 9999 }}", r"\*\* is not"),
        ("{{ text * 99 }}", "takes numbers"), ("{{ '%99d' % 1 }}", "takes numbers"), ("{{ gone }}", "undefined"),
        ("{{ data.gone }}", "has no|undefined"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ text|number }}", "not a number"),
        ("{% for a in text %}{% for b in text %}{% for c in text %}{% for d in text %}{% endfor %}{% endfor %}"
         "{% endfor %}{% endfor %}", "nest deeper"), ("{{", "unexpected"), ("{{ 'x'.join }}", "has no"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(source: str, reason: str) -> None:
    with pytest.raises(sandbox.Refused, match=reason):
        sandbox.render(source, DATA)


def test_loops_share_a_budget_and_output_is_capped() -> None:
    long = {"rows": list(range(200)), "text": "x" * 40_000}
    with pytest.raises(sandbox.Refused, match="more than 10000 iterations"):
        sandbox.render("{% for a in rows %}{% for b in rows %}{% endfor %}{% endfor %}", long)
    with pytest.raises(sandbox.Refused, match="longer than"):
        sandbox.render("{{ text }}{{ text }}", long)
    assert sandbox.render("{% for a in rows %}.{% endfor %}", long) == "." * 200, "the budget is one text's own"


def test_a_structure_is_rendered_text_by_text() -> None:
    body = {"title": "{{ text }}", "labels": ["{{ n }}", 7], "nested": {"deep": "{{ data.ratio }}"}}
    assert sandbox.render_all(body, DATA) == {"title": "x", "labels": ["3", 7], "nested": {"deep": "0.256"}}
    assert sandbox.names("{{ event.id }} {% for x in data.rows %}{{ x }}{% endfor %}") == {"event", "data"}
