"""Reading declared files: YAML with the line and column of every value, and findings instead of tracebacks.

The dialect is YAML's core schema (YAML 1.2): `yes`, `no`, `NO` and `1:30` are text and dates stay text, so
what is read is exactly what JSON can carry and a model decides what the text means. Anchors, aliases and
merge keys (`<<`) work. Refused, each with its place: duplicate keys, keys that are not text, application
tags, numbers that JSON cannot carry exactly, nesting or alias expansion without bound, bytes that are not
UTF-8.

Events of libyaml's parser are composed here, not by PyYAML: its composer recurses in C and a deeply nested
file kills the process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

FieldPath = tuple[str | int, ...]
"""Way to a value: keys and 0-based list indexes."""

MAX_DEPTH = 64
MAX_VALUES = 200_000
MAX_INTEGER = 2**53 - 1  # RFC 8785 (canonical JSON) carries no larger integer exactly

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+\Z", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)
_CORE_TAG = "tag:yaml.org,2002:"
_PLAIN_FIELD = re.compile(r"[\w-]+\Z")


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one declared file.

    Attributes:
        file: path relative to the project, with forward slashes.
        line: 1-based line of the value at fault, or of its nearest parent where it is missing.
        field: path in the document, e.g. `spec.sources[0].name`; empty for the document itself.
        found: what the file says, shortened; empty where the message says it all.
        allowed: what would be accepted; empty where the message says it all.
        message: what is wrong, in words.
    """

    file: str
    line: int
    field: str
    found: str
    allowed: str
    message: str

    def __str__(self) -> str:
        """`file:line: field: message (found ..., allowed ...)`."""
        where = f"{self.file}:{self.line}: " + (f"{self.field}: " if self.field else "")
        parts = [f"{word} {text}" for word, text in (("found", self.found), ("allowed", self.allowed)) if text]
        return where + self.message + (f" ({', '.join(parts)})" if parts else "")


@dataclass(frozen=True)
class Position:
    """Place of a key or value: 1-based line and column."""

    line: int
    column: int


@dataclass(frozen=True)
class YamlSource:
    """A parsed file.

    Attributes:
        file: path relative to the project, as findings name it.
        document: dict, list, str, int, float, bool or None, nested; keys are text. Never to be changed: others hold
            the same one.
        positions: place of every value by its path; for a mapping's value, the place of its key.
    """

    file: str
    document: Any
    positions: dict[FieldPath, Position] = field(repr=False)

    def position(self, path: FieldPath) -> Position:
        """Place of `path`, or of its nearest parent that the file has."""
        for end in range(len(path), -1, -1):
            if (found := self.positions.get(path[:end])) is not None:
                return found
        return Position(1, 1)

    def finding(self, path: FieldPath, message: str, *, found: str = "", allowed: str = "") -> Finding:
        """A finding about the value at `path`."""
        return Finding(self.file, self.position(path).line, field_name(path), found, allowed, message)


def field_name(path: FieldPath) -> str:
    """`("spec", "sources", 0, "name")` as `spec.sources[0].name`."""
    text = ""
    for step in path:
        if isinstance(step, str) and _PLAIN_FIELD.match(step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step, ensure_ascii=False)}]"
    return text


def shown(value: object, limit: int = 80) -> str:
    """A value as findings print it: JSON on one line, shortened to `limit` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_yaml(path: Path, file: str) -> tuple[YamlSource | None, list[Finding]]:
    """Read one YAML file; `file` is the name findings give it.

    Returns the source and what is wrong with it. The source is None when the text is no YAML document at
    all; with lesser faults (a duplicate key: the first one counts) it is returned next to its findings, so
    that a reader sees the rest of the file's errors in the same go.
    """
    try:
        source, findings = _parsed(path.read_bytes(), file)
    except OSError as error:
        return None, [Finding(file, 1, "", "", "", f"the file cannot be read: {error.strerror or error}")]
    return source, list(findings)


@lru_cache(maxsize=512)
def _parsed(content: bytes, file: str) -> tuple[YamlSource | None, tuple[Finding, ...]]:
    """Sources are shared by who reads the same content again: a process looks at what is declared many times."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{error.object[error.start]:02x}"
        return None, (Finding(file, line, "", found, "UTF-8", "the file is not UTF-8 text"),)
    source, findings = parse_yaml(text, file)
    return source, tuple(findings)


def parse_yaml(text: str, file: str) -> tuple[YamlSource | None, list[Finding]]:
    """Like `read_yaml`, of text at hand."""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        return None, [Finding(file, line, "", "a NUL character", "text", "the file is not text")]
    composer = _Composer(text)
    try:
        root = composer.compose()
        if root is None:
            return None, [Finding(file, 1, "", "nothing", "one YAML document", "the file is empty")]
        expansion = _Expansion(file)
        document = expansion.value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        words = ", ".join(part for part in (error.context, error.problem) if part)
        return None, [Finding(file, line, "", "", "", f"not valid YAML: {words}")]
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, error.position) + 1
        return None, [Finding(file, line, "", "", "printable characters", f"not valid YAML: {error.reason}")]
    return YamlSource(file, document, expansion.positions), expansion.findings


@dataclass
class _Node:
    """A composed value. Shared between an anchor and its aliases; never cyclic."""

    kind: str  # mapping, sequence, scalar
    mark: yaml.Mark
    tag: str | None
    plain: bool = False
    text: str = ""
    children: list[Any] = field(default_factory=list)  # of nodes, or of (key, value) nodes


class _Composer:
    """Events into nodes."""

    def __init__(self, text: str) -> None:
        self._loader = yaml.CSafeLoader(text)
        self._anchors: dict[str, _Node] = {}

    def compose(self) -> _Node | None:
        """The one document's root, or None for a file without content. Raises yaml.YAMLError."""
        try:
            next_event = self._loader.get_event
            next_event()  # stream start
            event = next_event()
            if isinstance(event, yaml.StreamEndEvent):
                return None
            root = self._node(next_event(), 0)
            next_event()  # document end
            event = next_event()
            if not isinstance(event, yaml.StreamEndEvent):
                raise _refusal("a second document begins here; a file holds one", event.start_mark)
            nothing = root.kind == "scalar" and root.plain and root.text == ""
            return None if nothing else root
        finally:
            self._loader.dispose()

    def _node(self, event: yaml.Event, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _refusal(f"alias *{event.anchor} has no anchor before it", event.start_mark)
            return self._anchors[event.anchor]
        if isinstance(event, yaml.ScalarEvent):
            node = _Node("scalar", event.start_mark, event.tag, plain=event.implicit[0], text=event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = _Node("sequence", event.start_mark, event.tag)
            while not isinstance(child := self._loader.get_event(), yaml.SequenceEndEvent):
                node.children.append(self._node(child, depth + 1))
        else:
            node = _Node("mapping", event.start_mark, event.tag)
            while not isinstance(child := self._loader.get_event(), yaml.MappingEndEvent):
                key = self._node(child, depth + 1)
                node.children.append((key, self._node(self._loader.get_event(), depth + 1)))
        if event.anchor:
            self._anchors[event.anchor] = node  # only now: a value cannot contain itself
        return node


class _Expansion:
    """Nodes into plain values, with the position of each."""

    def __init__(self, file: str) -> None:
        self.positions: dict[FieldPath, Position] = {}
        self.findings: list[Finding] = []
        self._file = file
        self._values = 0

    def value(self, node: _Node, path: FieldPath) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _refusal(f"more than {MAX_VALUES} values once aliases are expanded", node.mark)
        if len(path) > MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", node.mark)
        self.positions.setdefault(path, Position(node.mark.line + 1, node.mark.column + 1))
        self._check_tag(node, path)
        if node.kind == "scalar":
            return self._scalar(node, path)
        if node.kind == "sequence":
            return [self.value(child, (*path, index)) for index, child in enumerate(node.children)]
        return self._mapping(node, path)

    def _mapping(self, node: _Node, path: FieldPath) -> dict[str, Any]:
        entries: dict[str, tuple[_Node, _Node]] = {}
        merged: dict[str, tuple[_Node, _Node]] = {}
        for key, value in node.children:
            if key.kind == "scalar" and key.plain and key.text == "<<":
                for name, entry in self._merge(value, path):
                    merged.setdefault(name, entry)
                continue
            name = self._scalar(key, path) if key.kind == "scalar" else None
            if not isinstance(name, str):
                found = shown(name) if key.kind == "scalar" else f"a {key.kind}"
                self._report(key, path, "a key must be text", found, "text; quote it")
            elif name in entries:
                first = entries[name][0].mark.line + 1
                message = f"duplicate key; the first one is on line {first}"
                self._report(key, (*path, name), message, "", "")
            else:
                entries[name] = (key, value)
        for name, entry in merged.items():
            entries.setdefault(name, entry)
        result: dict[str, Any] = {}
        for name, (key, value) in entries.items():
            place = (*path, name)
            self.positions[place] = Position(key.mark.line + 1, key.mark.column + 1)
            result[name] = self.value(value, place)
        return result

    def _merge(self, node: _Node, path: FieldPath) -> Iterator[tuple[str, tuple[_Node, _Node]]]:
        """Entries that `<<: node` brings in: of one mapping, or of a list of them, the earlier winning."""
        for mapping in node.children if node.kind == "sequence" else [node]:
            if mapping.kind != "mapping":
                self._report(mapping, path, "a merge key (<<) takes mappings", f"a {mapping.kind}", "a mapping")
                continue
            for key, value in mapping.children:
                if key.text == "<<" and key.plain:
                    yield from self._merge(value, path)
                elif key.kind == "scalar":
                    yield key.text, (key, value)

    def _check_tag(self, node: _Node, path: FieldPath) -> None:
        own = {"scalar": "str", "sequence": "seq", "mapping": "map"}[node.kind]
        if node.tag not in (None, "!", _CORE_TAG + own):
            self._report(node, path, "tags are not supported", shown(node.tag), "a plain value")

    def _scalar(self, node: _Node, path: FieldPath) -> str | int | float | bool | None:
        text = node.text
        if not node.plain:
            return text
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _INTEGER.match(text):
            if len(text) <= 20 and abs(number := int(text)) <= MAX_INTEGER:
                return number
        elif _FLOAT.match(text):
            if math.isfinite(fraction := float(text)):
                return fraction
        else:
            return text
        allowed = "a smaller number, or text; quote it"
        self._report(node, path, "a number JSON cannot carry exactly", shown(text), allowed)
        return text

    def _report(self, node: _Node, path: FieldPath, message: str, found: str, allowed: str) -> None:
        line = node.mark.line + 1
        self.findings.append(Finding(self._file, line, field_name(path), found, allowed, message))


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
