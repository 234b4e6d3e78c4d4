"""Walks over the lineage graph of one tenant: what a column or asset comes from, and what comes from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from resources.governance.column_lineage import CONSTANT, DIRECT, ROWS, VARIABLE, ProjectLineage
from resources.governance.lineage_store import Edge
from resources.runtime.declared import did_you_mean
from resources.runtime.errors import BareCountError, ErrorCode

Direction = Literal["upstream", "downstream"]


@dataclass(frozen=True, order=True)
class Node:
    """An asset, or one column of it."""

    asset: str
    column: str | None = None

    @property
    def name(self) -> str:
        return self.asset if self.column is None else f"{self.asset}.{self.column}"


@dataclass(frozen=True, order=True)
class Link:
    """`target` comes from `source`; `how` names the ways: AGGREGATION, WINDOW (of OpenLineage), `masked`."""

    source: Node
    target: Node
    how: tuple[str, ...] = ()


@dataclass(frozen=True)
class Walk:
    """Everything reached from a node, in one direction.

    Attributes:
        links: by the node they are followed from, in order of name.
    """

    start: Node
    direction: Direction
    links: Mapping[Node, Sequence[Link]]

    @property
    def nodes(self) -> list[Node]:
        """All nodes, the start first."""
        found = {node for links in self.links.values() for link in links for node in (link.source, link.target)}
        return [self.start, *sorted(found - {self.start}, key=lambda node: node.name)]

    def beyond(self, node: Node) -> list[tuple[Node, Link]]:
        """The next nodes, with the links that lead to them."""
        return [(link.source if self.direction == "upstream" else link.target, link)
                for link in self.links.get(node, ())]

    def to_json(self) -> dict[str, Any]:
        """Nodes and edges; an edge leads from where data comes from to where it goes."""
        links = sorted({link for found in self.links.values() for link in found}, key=_by_name)
        return {
            "start": self.start.name, "direction": self.direction,
            "nodes": [{"name": node.name, "asset": node.asset, "column": node.column} for node in self.nodes],
            "edges": [{"from": link.source.name, "to": link.target.name, "how": list(link.how)} for link in links],
        }

    def to_dot(self) -> str:
        """The walk in Graphviz's language."""
        lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
        lines += [f"  {_quoted(node.name)};" for node in self.nodes]
        for link in sorted({link for found in self.links.values() for link in found}, key=_by_name):
            label = f" [label={_quoted(', '.join(link.how))}]" if link.how else ""
            lines.append(f"  {_quoted(link.source.name)} -> {_quoted(link.target.name)}{label};")
        return "\n".join([*lines, "}"])


def edges_of(project: ProjectLineage) -> list[Edge]:
    """The edges of what is declared, whether it has run or not."""
    return [Edge(asset, column, dependency) for asset, lineage in sorted(project.assets.items())
            for column, found in sorted(lineage.columns.items()) for dependency in found]


def node_of(edges: Iterable[Edge], text: str) -> Node:
    """The asset or column of that name.

    Raises:
        BareCountError: declaration.unknown, with the nearest name.
    """
    columns: dict[str, set[str]] = {}
    for edge in edges:
        columns.setdefault(edge.asset, set()).add(edge.column)
        if edge.on.asset not in (CONSTANT, VARIABLE):
            columns.setdefault(edge.on.asset, set()).add(edge.on.column)
    if text in columns:
        return Node(text)
    for asset in sorted(columns, key=len, reverse=True):
        column = text.removeprefix(f"{asset}.")
        if column != text and column in columns[asset]:
            return Node(asset, column)
    names = [*columns, *(f"{asset}.{column}" for asset, found in columns.items() for column in found if column != ROWS)]
    raise BareCountError(
        ErrorCode.DECLARATION_UNKNOWN, f"no asset or column {text!r} is in the graph{did_you_mean(text, names)}",
        hint="name LAYER.NAME or LAYER.NAME.COLUMN; assets are " + ", ".join(sorted(columns)) if columns else
        "nothing has run for this tenant yet; --declared shows what is declared",
    )


def walk(edges: Iterable[Edge], start: Node, direction: Direction, *, direct_only: bool = False) -> Walk:
    """Follow every edge from a node to the ends, each node once.

    Assets are walked as assets, columns as columns. `direct_only` leaves out what only decides about a value.
    """
    follow: dict[Node, dict[tuple[Node, Node], set[str]]] = {}
    for edge in edges:
        if direct_only and edge.on.kind != DIRECT:
            continue
        link = _link(edge, of_columns=start.column is not None)
        if link is None:
            continue
        target, source, how = link
        follow.setdefault(target if direction == "upstream" else source, {}).setdefault((source, target), set()).update(
            how)
    links: dict[Node, Sequence[Link]] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node in links:
            continue
        links[node] = sorted(
            (Link(source, target, tuple(sorted(how))) for (source, target), how in follow.get(node, {}).items()),
            key=_by_name)
        waiting += [link.source if direction == "upstream" else link.target for link in links[node]]
    return Walk(start, direction, {node: found for node, found in links.items() if found})


def _link(edge: Edge, *, of_columns: bool) -> tuple[Node, Node, set[str]] | None:
    if of_columns:
        how = {edge.on.subtype} - {"IDENTITY"} | ({"masked"} if edge.on.masked else set())
        return Node(edge.asset, edge.column), Node(edge.on.asset, edge.on.column), how
    if edge.on.asset in (CONSTANT, VARIABLE, edge.asset):
        return None
    return Node(edge.asset), Node(edge.on.asset), set()


def _by_name(link: Link) -> tuple[str, str]:
    return link.source.name, link.target.name


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
