"""Values that were kept as JSON, read again as their source's own: what a record was refused or accepted for once, it
is refused or accepted for now, whichever way it comes.

A record that could not be typed is kept as its source wrote it, or as a JSON object where its source has no text; an
undeclared value is kept in `_extra`. How such a value meets a contract's type depends on where it comes from: in CSV
all is text, in JSON a string is no number, Parquet has stated types, and a database's values count by how they are
written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from barecount_assets.stages.ingestion.connectors import jsonl
from barecount_assets.stages.ingestion.json_texts import json_text
from barecount_assets.stages.ingestion.parsing import Column, text_column
from barecount_assets.stages.ingestion.records import Field
from resources.governance.sources import FileSource

if TYPE_CHECKING:
    from resources.governance.sources import AnySource


class Rereading(Protocol):
    """How values of one unit are read again."""

    def column(self, field: Field, values: list[Any]) -> Column:
        """A field of records; `values` are JSON values as `json_texts` parses them, None for none."""
        ...

    def texts(self, name: str, values: list[Any]) -> pa.StringArray:
        """A field of records as JSON texts, as the source's reader writes undeclared ones."""
        ...


class AsText:
    """Of CSV: all is text."""

    def column(self, field: Field, values: list[Any]) -> Column:
        texts = [value if value is None or type(value) is str else json_text(value) for value in values]
        return text_column(field, pa.array(texts, pa.string()), len(values))

    def texts(self, name: str, values: list[Any]) -> pa.StringArray:
        return pa.array(map(json_text, values), pa.string())


class AsJson:
    """Of JSON Lines and REST: the kind of a value counts."""

    def column(self, field: Field, values: list[Any]) -> Column:
        return jsonl.typed_column(field, values)

    def texts(self, name: str, values: list[Any]) -> pa.StringArray:
        return pa.array(map(json_text, values), pa.string())


@dataclass(frozen=True)
class AsStated:
    """Of sources that state types: by `types`, the names and types that the unit said it has.

    Attributes:
        reader: the connector's module, which has `column_again` and `json_again`.
    """

    types: Mapping[str, str]
    reader: Any

    def column(self, field: Field, values: list[Any]) -> Column:
        stated = self.types.get(field.source_name)
        return jsonl.typed_column(field, values) if stated is None else self.reader.column_again(field, values, stated)

    def texts(self, name: str, values: list[Any]) -> pa.StringArray:
        stated = self.types.get(name)
        return AsJson().texts(name, values) if stated is None else self.reader.json_again(values, stated)


def rereading(source: AnySource, names: Sequence[str], types: Sequence[str] | None) -> Rereading:
    """How a source's values are read again.

    Args:
        names, types: what the unit said it has (`ObservedSchema`).
    """
    if isinstance(source, FileSource):
        if source.format.type == "csv":
            return AsText()
        if source.format.type == "parquet" and types is not None:
            from barecount_assets.stages.ingestion.connectors import parquet

            return AsStated(dict(zip(names, types, strict=True)), parquet)
        return AsJson()
    if source.connector == "rest":
        return AsJson()
    from barecount_assets.stages.ingestion.connectors import sql

    return AsStated(dict(zip(names, types or [""] * len(names), strict=True)), sql)
