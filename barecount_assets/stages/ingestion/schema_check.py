"""The raw asset's check `schema_matches_contract`: what differs, what waits for it, and what was decided."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.governance import drift_register
from resources.governance.contracts import Contract
from resources.governance.drift import Change, summary
from resources.runners.stage import CheckOutcome, StageSpec
from resources.runtime.database import fetch_dicts

NAME = "schema_matches_contract"
_SAMPLES = 5


@dataclass(frozen=True)
class _Shown:
    """A batch of the run whose unit differs from the contract in a way that blocks."""

    drift_id: int
    outcome: str
    text: str


def check(
    connection: psycopg.Connection, spec: StageSpec, extraction: Contract, batches: Collection[Mapping[str, Any]]
) -> tuple[CheckOutcome, set[int]]:
    """The check over the batches of a run, and the numbers of those that wait.

    It blocks when everything the run brought waits; when other days are there too, they go on, and it warns. It also
    speaks of batches of the run's days that an earlier run brought and that still wait: a file that has been taken away
    meanwhile, or the slice before, holds its day as much.
    """
    shown = _blocking(connection, [*_waiting_before(connection, spec, extraction), *batches])
    waiting = {number for number, item in shown.items() if item.outcome == "waiting"}
    noted = sorted({text for batch in batches if (text := _noted(batch))})
    if not waiting:
        decided = "; ".join(f"{item.text} ({item.outcome.replace('_', ' ')} by decision)" for item in shown.values())
        said = f"every unit has the fields of extraction contract {extraction.version}"
        parts = [decided or said, *(f"noted: {text}" for text in noted[:_SAMPLES])]
        return CheckOutcome(NAME, extraction.dataset, True, True, ". ".join(parts), {"noted": noted}), waiting
    held = set(drift_register.held_days(connection, spec.tenant_id, spec.pipeline))
    everything = bool(batches) and all(
        batch["partition_date"] is None and None in held or _day(batch) in map(str, held) for batch in batches)
    drifts = sorted({shown[number].drift_id for number in waiting})
    first = "; ".join(sorted(shown[number].text for number in waiting)[:_SAMPLES])
    verb = "waits" if everything else "waits, other days go on"
    commands = ", ".join(f"`barecount drift show {number}`" for number in drifts)
    return CheckOutcome(
        NAME, extraction.dataset, False, everything,
        f"{first}. This differs from extraction contract {extraction.version}; the data has landed, what follows "
        f"{verb} for a decision: {commands}",
        {"drifts": drifts, "waiting": len(waiting), "partitions": sorted(str(day or "undated") for day in held),
         "noted": noted},
    ), waiting


def _waiting_before(
    connection: psycopg.Connection, spec: StageSpec, extraction: Contract
) -> list[dict[str, Any]]:
    """The batches of the dataset that count and wait, of the run's days or of none, whoever brought them."""
    first, last = spec.window or (None, None)
    return fetch_dicts(connection, _WAITING, (spec.tenant_id, spec.pipeline, extraction.dataset, first, last))


def _blocking(connection: psycopg.Connection, batches: Collection[Mapping[str, Any]]) -> dict[int, _Shown]:
    known = {batch["batch_id"]: batch for batch in batches}
    rows = fetch_dicts(
        connection, "select w.batch_id, w.drift_id, w.outcome, d.changes as drift from platform.drift_batch w "
        "join platform.drift d on d.drift_id = w.drift_id where w.batch_id = any($1) "
        "order by w.batch_id, w.outcome = 'waiting', w.drift_id", (list(known),))
    found = {}
    for row in rows:
        batch = known[row["batch_id"]]
        text = f"{batch['source_id']}: {summary(_changes(row))}"
        found[row["batch_id"]] = _Shown(row["drift_id"], row["outcome"], text)
    return found


def _noted(batch: Mapping[str, Any]) -> str:
    return "; ".join(str(change) for change in _changes(batch) if not change.blocking)


def _changes(batch: Mapping[str, Any]) -> list[Change]:
    stored = batch["drift"]
    listed = json.loads(stored) if isinstance(stored, str) else stored
    # Before classes of drift were told apart, a mapping of names was stored.
    return [Change.from_json(change) for change in listed] if isinstance(listed, list) else []


def _day(batch: Mapping[str, Any]) -> str:
    return str(batch["partition_date"])


_WAITING = """
select b.batch_id, b.source_id, b.partition_date
from platform.drift_batch w
join platform.raw_batch b using (batch_id)
where w.tenant_id = $1 and w.outcome = 'waiting' and b.pipeline = $2 and b.dataset = $3 and b.is_current
    and (b.partition_date is null or b.partition_date between $4::text::date and $5::text::date)
order by b.batch_id
"""
