"""`barecount explain`: a proof, readable."""

from __future__ import annotations

from collections import Counter

from barecount_assets.cli import output
from barecount_assets.proof import Proof
from resources.governance.declarations import KPI_COLUMNS

_LISTED_BATCHES = 8


def show(proof: Proof, *, as_json: bool) -> None:
    """Print the proof chain, from the value back to the files."""
    if as_json:
        output.print_json(proof.to_json())
        return
    console = output.console()
    console.print(f"[bold]{proof.kpi}[/] {proof.period}, tenant {proof.tenant_id}, KPI version {proof.kpi_version}")
    console.print(f"  formula: {proof.formula}  (unit: {proof.unit})")
    dimensions = [name for name in proof.values[0] if name not in KPI_COLUMNS]
    console.print(output.table(
        None, ("grain", *dimensions, "value", "numerator", "denominator", "GDP rows"),
        [(v["grain"], *(v[d] or "all" for d in dimensions), _number(v["value"]), _number(v["numerator"]),
          _number(v["denominator"]), v["source_rows"]) for v in proof.values],
        right=range(1 + len(dimensions), 5 + len(dimensions))))
    publication = proof.publication
    console.print(
        f"published  version {publication['version']} at {publication['published_at']:%Y-%m-%d %H:%M:%S} UTC, "
        f"{publication['row_count']} rows, sha256 {publication['content_sha256'][:16]}…, "
        f"evidence {publication['evidence_seq']}"
    )
    for definition in proof.definitions[:1]:
        console.print(f"computed   by definition sha256 {definition['sha256'][:16]}… of version {proof.kpi_version}; "
                      f"`barecount definitions show {definition['sha256'][:16]}` shows those of its GDPs, too")
        for line in filter(str.strip, definition.get("sql", "").splitlines()):
            console.print(f"             {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
    for gate in proof.gates:
        console.print(f"gate       {gate['gate']}: {gate['summary']}, evidence {gate['evidence']}", soft_wrap=True)
    for gdp in proof.gdps:
        console.print(f"GDP        {gdp['name']}: {gdp['rows']:,} rows as of run {publication['run_id']}, contract "
                      f"{gdp['contract_version']}, sha256 {gdp['content_sha256'][:16]}…")
    datasets = Counter(batch["dataset"] for batch in proof.batches)
    for dataset, count in sorted(datasets.items()):
        own = [batch for batch in proof.batches if batch["dataset"] == dataset]
        console.print(
            f"raw        {dataset}: {count} batches, {sum(b['received'] for b in own):,} records received, "
            f"{sum(b['accepted'] for b in own):,} accepted, {sum(b['quarantined'] for b in own):,} quarantined"
        )
        for batch in own[:_LISTED_BATCHES]:
            console.print(f"             {batch['source_id']}  sha256 {batch['content_sha256'][:16]}…  contract "
                          f"{batch['contract_version']}  evidence {batch['evidence_seq']}", style="dim")
        if count > _LISTED_BATCHES:
            console.print(f"             and {count - _LISTED_BATCHES} more (--json lists all)", style="dim")
    if proof.held:
        console.print(f"held       {', '.join(proof.held)}: waits for a decision on drift, `barecount drift list`")
    if proof.expired:
        newest = max(batch["expired_at"] for batch in proof.expired)
        console.print(
            f"[yellow]expired[/]    {len(proof.expired)} of {len(proof.batches)} raw batches were deleted under "
            f"retention, the last on {newest:%Y-%m-%d}: evidence names their checksums, their bytes cannot be compared "
            "any more", soft_wrap=True)
    console.print(f"code       {proof.code_version[:16]}…, manifest {proof.manifest_hash[:16]}…")
    if proof.inclusion is not None:
        console.print(
            f"included   entry {proof.inclusion['entry']} of {proof.inclusion['tree_size']} under root "
            f"{proof.inclusion['root'][:16]}… by {len(proof.inclusion['hashes'])} hashes, signed by "
            f"{proof.inclusion['key']}",
            soft_wrap=True,
        )
    failed = [item for item in proof.verified if not item.ok]
    if proof.holds:
        console.print(f"[green]verified[/]   {len(proof.verified)} checksums recomputed and "
                      f"{proof.evidence['entries_in_chain']} entries of evidence followed: everything matches")
        return
    console.print(f"[red]NOT PROVEN[/] {len(failed)} of {len(proof.verified)} checksums do not match")
    for item in failed:
        console.print(f"  {item.name}: evidence says {item.expected[:16]}…, found {item.found[:16]}", soft_wrap=True)
    for finding in proof.findings:
        console.print(f"  evidence: {finding}", soft_wrap=True)


def _number(value: object) -> str:
    return "" if value is None else f"{value:,}"
