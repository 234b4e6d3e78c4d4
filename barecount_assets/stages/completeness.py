"""Completeness: how much of what a source sent counts, and the gate that asks before anything is published.

What is counted is what is open now: records of the batches that count which ingestion or normalization refused, and
about which nobody has decided. A replayed record counts where it was accepted, a discarded one was given up with a
reason. Records that are refused again in a replay are still those of the unit that had them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from barecount_assets.stages.gates import GateResult
from resources.governance.manifests import Completeness, Pipeline
from resources.runtime.database import fetch, fetch_dicts

GATE = "completeness"
_NAMED = 5


@dataclass(frozen=True)
class Share:
    """Refused of received records: of a source, or of one of its units."""

    name: str
    refused: int
    received: int

    def exceeds(self, limit: float) -> bool:
        return self.refused > limit * self.received

    def __str__(self) -> str:
        share = f" ({self.refused / self.received:.2%})" if self.received else ""
        return f"{self.name}: {self.refused:,} of {self.received:,} refused{share}"


@dataclass(frozen=True)
class SourceShares:
    """What is refused of a source now, in all and in each unit that has refused records, the greatest share first."""

    source: str
    dataset: str
    whole: Share
    units: tuple[Share, ...]

    @property
    def accepted(self) -> int:
        return self.whole.received - self.whole.refused

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "dataset": self.dataset, "received": self.whole.received,
                "accepted": self.accepted, "quarantined": self.whole.refused}


def measure(
    connection: psycopg.Connection, manifest: Pipeline, tenant_id: str, sources: Sequence[str] | None = None
) -> list[SourceShares]:
    """Shares of the pipeline's sources (or of some), in declared order."""
    declared = [source for source in manifest.spec.sources if sources is None or source.name in sources]
    key = (tenant_id, [source.dataset for source in declared])
    refused = fetch_dicts(connection, _REFUSED, key)
    received = dict(fetch(connection, _RECEIVED, key))
    shares = []
    for source in declared:
        units = [Share(row["source_id"], int(row["refused"]), row["received"]) for row in refused
                 if row["dataset"] == source.dataset]
        units.sort(key=lambda unit: (-unit.refused / max(unit.received, 1), unit.name))
        whole = Share(source.name, sum(unit.refused for unit in units), int(received.get(source.dataset, 0)))
        shares.append(SourceShares(source.name, source.dataset, whole, tuple(units)))
    return shares


def decide(manifest: Pipeline, shares: SourceShares) -> GateResult:
    """The gate of one source."""
    limits = manifest.spec.slos.completeness
    whole = shares.whole.exceeds(limits.limit)
    units = [unit for unit in shares.units if unit.exceeds(limits.unit_limit)]
    details = {
        "source": shares.source, "dataset": shares.dataset, "received": shares.whole.received,
        "refused": shares.whole.refused, "max_refused": str(limits.limit), "on_breach": limits.on_breach,
        "max_refused_per_unit": str(limits.unit_limit), "units_over": len(units),
        "units": [{"unit": unit.name, "refused": unit.refused, "received": unit.received} for unit in units[:_NAMED]],
    }
    return GateResult(shares.source, GATE, not whole and not units, _summary(limits, shares, whole, units), details)


def _summary(limits: Completeness, shares: SourceShares, whole: bool, units: Sequence[Share]) -> str:
    if not whole and not units:
        return f"{shares.whole}, allowed are {limits.limit:.2%}, and {limits.unit_limit:.2%} of a unit"
    parts = [f"{shares.whole}, allowed are {limits.limit:.2%}"] if whole else []
    if units:
        more = f" and {len(units) - _NAMED} more units" if len(units) > _NAMED else ""
        parts.append(f"{'; '.join(map(str, units[:_NAMED]))}{more}, allowed are {limits.unit_limit:.2%} of a unit")
    return "; ".join(parts)


_REFUSED = """
with recursive refused as (
    select q.batch_id, count(distinct q.row_number) as records
    from platform.quarantine q
    join platform.counted_batch b on b.batch_id = q.batch_id and b.is_current
    where q.tenant_id = $1 and q.dataset = any($2) and q.stage in ('ingestion', 'normalization')
        and q.payload is not null
        and not exists (select from platform.quarantine_outcome o where o.quarantine_id = q.quarantine_id)
    group by q.batch_id
), origin as (
    select r.records, b.batch_id, b.replay_of from refused r join platform.raw_batch b using (batch_id)
    union all
    select o.records, b.batch_id, b.replay_of from origin o join platform.raw_batch b on b.batch_id = o.replay_of
)
select b.dataset, b.source_id, b.received, sum(o.records) as refused
from origin o join platform.raw_batch b using (batch_id)
where o.replay_of is null
group by b.batch_id
"""
_RECEIVED = """
select b.dataset, sum(b.received)
from platform.raw_batch b
join platform.counted_batch c on c.batch_id = b.batch_id and c.is_current
where b.tenant_id = $1 and c.tenant_id = $1 and b.dataset = any($2) and b.replay_of is null
group by b.dataset
"""
