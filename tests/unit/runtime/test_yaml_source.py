"""YAML with places: every fault is a finding, whatever the bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resources.runtime.yaml_source import MAX_DEPTH, Finding, Position, field_name, parse_yaml, read_yaml


def only_finding(text: str) -> Finding:
    source, findings = parse_yaml(text, "f.yaml")
    assert source is None and len(findings) == 1
    return findings[0]


def test_every_value_keeps_the_line_and_column_of_its_key_or_item():
    source, findings = parse_yaml("a: 1\nb:\n  - x\n  - {c: true}\n", "f.yaml")
    assert findings == [] and source is not None
    assert source.document == {"a": 1, "b": ["x", {"c": True}]}
    assert source.position(("a",)) == Position(1, 1)
    assert source.position(("b", 0)) == Position(3, 5)
    assert source.position(("b", 1, "c")) == Position(4, 6)


def test_a_missing_value_has_the_place_of_its_nearest_parent():
    source, _ = parse_yaml("a:\n  b: 1\n", "f.yaml")
    assert source is not None
    assert source.finding(("a", "c", 2), "missing").line == 1
    assert source.finding(("a", "c", 2), "missing").field == "a.c[2]"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"), ("yes", "yes"), ("1:30", "1:30"), ("2024-01-31", "2024-01-31"), ("1.0.0", "1.0.0"),
        ("007", 7), ("-1.5e3", -1500.0), ("~", None), ("true", True), ("'5'", "5"), ("!!str 5", "5"), ("0x10", "0x10"),
    ],
)  # fmt: skip
def test_scalars_are_what_json_would_carry_and_nothing_is_guessed(text: str, value: object):
    source, findings = parse_yaml(f"a: {text}", "f.yaml")
    assert findings == [] and source is not None
    assert source.document == {"a": value} and type(source.document["a"]) is type(value)


def test_anchors_aliases_and_merge_keys_work():
    source, findings = parse_yaml("a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd: {<<: [{p: 9}, *x]}\n", "f.yaml")
    assert findings == [] and source is not None
    assert source.document["b"] == {"p": 1, "q": 2}
    assert source.document["c"] == {"p": 1, "q": 3}
    assert source.document["d"] == {"p": 9, "q": 2}


def test_a_duplicate_key_is_named_with_both_lines_and_the_rest_is_still_read():
    source, findings = parse_yaml("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml")
    assert source is not None and source.document == {"a": 1, "b": {"c": 1}}
    assert findings == [Finding("f.yaml", 4, "b.c", "", "", "duplicate key; the first one is on line 3")]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        ("# only a comment\n", 1, "empty"),
        ("a: 1\nb:\n\t- x\n", 3, "cannot start any token"),
        ("a: [1, 2\nb: 3\n", 2, "expected ',' or ']'"),
        ("a: 1\n--- \nb: 2\n", 2, "second document"),
        ("a: *nowhere\n", 1, "no anchor"),
        ("a: &x [*x]\n", 1, "no anchor"),
        ("a: 1\nb: \0\n", 2, "not text"),
        ("a: 1\nb: \x07\n", 2, "control characters are not allowed"),
    ],
)
def test_what_is_no_document_is_one_finding_with_its_line(text: str, line: int, words: str):
    finding = only_finding(text)
    assert finding.line == line
    assert words in finding.message


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("a: 9007199254740993\n", "a", "JSON cannot carry exactly"),
        ("a: 1e999\n", "a", "JSON cannot carry exactly"),
        ("a: !!python/object:os.system x\n", "a", "tags are not supported"),
        ("a: !env X\n", "a", "tags are not supported"),
        ("1: x\n", "", "key must be text"),
        ("a: {[1]: x}\n", "a", "key must be text"),
        ("a: {<<: 5}\n", "a", "takes mappings"),
    ],
)
def test_what_json_has_no_word_for_is_refused_at_its_place(text: str, field: str, words: str):
    source, findings = parse_yaml(text, "f.yaml")
    assert source is not None
    assert [finding.field for finding in findings] == [field]
    assert words in findings[0].message


def test_nesting_without_bound_is_refused_and_kills_nothing():
    assert "deeper" in only_finding("[" * 100_000).message
    assert "deeper" in only_finding("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2)).message


def test_aliases_that_expand_without_bound_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "values once aliases are expanded" in only_finding("\n".join(lines)).message


def test_bytes_that_are_not_utf_8_are_a_finding_with_the_line(tmp_path: Path):
    file = tmp_path / "f.yaml"
    file.write_bytes(b"a: 1\nb: caf\xe9\n")
    source, findings = read_yaml(file, "f.yaml")
    assert source is None
    assert findings == [Finding("f.yaml", 2, "", "byte 0xe9", "UTF-8", "the file is not UTF-8 text")]


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path):
    source, findings = read_yaml(tmp_path, "f.yaml")
    assert source is None and "cannot be read" in findings[0].message


def test_a_byte_order_mark_is_no_part_of_the_document(tmp_path: Path):
    file = tmp_path / "f.yaml"
    file.write_bytes("\ufeffa: 1\n".encode())
    source, findings = read_yaml(file, "f.yaml")
    assert findings == [] and source is not None and source.document == {"a": 1}


def test_a_finding_reads_file_line_field_message_found_and_allowed():
    finding = Finding("f.yaml", 3, "a.b[0]", '"x"', "y", "not one of the choices")
    assert str(finding) == 'f.yaml:3: a.b[0]: not one of the choices (found "x", allowed y)'
    assert str(Finding("f.yaml", 1, "", "", "", "the file is empty")) == "f.yaml:1: the file is empty"


def test_a_key_that_is_no_word_is_quoted_in_the_field():
    assert field_name(("a", "b c", 0, "d.e")) == 'a["b c"][0]["d.e"]'


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz_", min_size=1), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(document=_JSON)
@settings(deadline=None)
def test_json_is_read_as_json(document: object):
    source, findings = parse_yaml(json.dumps(document, ensure_ascii=False), "f.yaml")
    assert findings == [] and source is not None
    assert source.document == document


@given(data=st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"? !<tag:yaml.org,2002:str> [\n")
@example(b'"\\uD800"')
@settings(max_examples=100)
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    source, findings = read_yaml(file, "any.yaml")
    assert source is not None or findings
