"""Cursors of incremental sources, shown and moved by people, with evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from barecount_assets.stages.ingestion import cursors
from barecount_assets.stages.ingestion.cursors import CursorKey
from barecount_assets.stages.ingestion.records import Cursor
from resources.runtime.database import fetch
from resources.runtime.declared import did_you_mean
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment


@dataclass(frozen=True)
class Standing:
    """Where a cursor stands; `cursor` is None before the first reading."""

    cursor: Cursor | None
    evidence_seq: int | None

    def to_json(self) -> Mapping[str, Any]:
        cursor = self.cursor and cursors.to_json(self.cursor)
        return {"cursor": cursor, "evidence": self.evidence_seq}


def show(environment: StageEnvironment, pipeline: str, source: str, tenant_id: str) -> Standing:
    """Where a source's cursor stands.

    Raises:
        BareCountError: declaration.unknown for a pipeline, source or tenant that is not declared; usage for a source
            without a cursor.
    """
    key = _key(environment, pipeline, source, tenant_id)
    with environment.database.connect(autocommit=True) as connection:
        rows = fetch(connection, _EVIDENCE, key.parameters)
        return Standing(cursors.load(connection, key), rows[0][0] if rows else None)


def move(
    environment: StageEnvironment, pipeline: str, source: str, tenant_id: str, value: str | None, by: str, reason: str,
    *, forget: bool = False,
) -> Standing:
    """Let the next run read on from a value, or (None) from the beginning.

    `forget`: what landed before lands again; right where GDPs tell their records by a key, twice the number elsewhere.

    Raises:
        BareCountError: as `show`; usage without a reason, or for a value that is not of the cursor's type.
    """
    if not reason.strip():
        raise BareCountError(ErrorCode.USAGE, "this goes on record, and has no reason", hint="say --reason WHY")
    key = _key(environment, pipeline, source, tenant_id)
    with environment.exclusive(tenant_id, pipeline) as connection, connection.transaction():
        before = cursors.load(connection, key)
        if before is None:
            raise BareCountError(
                ErrorCode.USAGE, f"source {source} of {pipeline} was never read for {tenant_id}: it has no cursor yet",
                hint=f"`barecount run {pipeline} --tenant {tenant_id}` reads it from the beginning",
            )
        after = replace(before, value=value)
        if before.kind is None:  # what an earlier release read is known by the value alone, and stays read
            after = replace(after, memory={"floor": before.value})
        try:
            cursors.to_json(after)
        except ValueError:
            raise BareCountError(
                ErrorCode.USAGE, f"{value!r} is no value of a cursor of type {before.kind}",
                hint=f"its last value is {before.value}",
            ) from None
        if forget:
            fetch(connection, _FORGET, key.parameters)
            after = replace(after, memory={})
        seq = cursors.record_move(
            connection, key, before, after, {"by": by, "reason": reason, "forgotten": forget})
        cursors.store(connection, key, after, seq)
    return Standing(after, seq)


def _key(environment: StageEnvironment, pipeline: str, source: str, tenant_id: str) -> CursorKey:
    manifest = environment.declarations.effective(pipeline, tenant_id)
    names = [declared.name for declared in manifest.spec.sources]
    if source not in names:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"pipeline {pipeline} has no source {source!r}{did_you_mean(source, names)}; it has {', '.join(names)}",
            hint="name one of them",
        )
    declared = manifest.source(source)
    if getattr(declared, "cursor_column", None) is None and getattr(declared, "incremental", None) is None:
        raise BareCountError(
            ErrorCode.USAGE, f"source {source} of {pipeline} has no cursor: it is read whole",
            hint="declare cursor_column (sql) or incremental (rest) to read on from where the last reading ended",
        )
    return CursorKey(tenant_id, pipeline, source)


_EVIDENCE = "select evidence_seq from platform.source_cursor where tenant_id = $1 and pipeline = $2 and source = $3"
_FORGET = "delete from platform.cursor_mark where tenant_id = $1 and pipeline = $2 and source = $3"
