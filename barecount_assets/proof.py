"""The proof chain of a published number, from the value back to the files it came from.

Everything shown is verified while it is collected: hashes of the snapshot, of the GDPs as of the run and of every raw
object are recomputed and compared with the evidence, and the tenant's whole chain of evidence is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.verification import Normalized, Verified, contract_of_then, evidence, verify_gdps
from resources.governance import definition_register, drift_register
from resources.governance.declarations import KPI_COLUMNS
from resources.governance.definitions import digest_of
from resources.governance.kpis import Kpi
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import published_store
from resources.trust import checkpoints, ledger
from resources.trust.signing import KeyStore


@dataclass(frozen=True)
class Proof:
    """The chain of one value. Evidence is given as entry numbers of the tenant's ledger."""

    tenant_id: str
    kpi: str
    period: str
    unit: str
    formula: str
    kpi_version: str
    values: Sequence[Mapping[str, Any]]
    publication: Mapping[str, Any]
    gates: Sequence[Mapping[str, Any]]
    gdps: Sequence[Mapping[str, Any]]
    batches: Sequence[Mapping[str, Any]]
    contracts: Mapping[str, str]
    code_version: str
    manifest_hash: str
    evidence: Mapping[str, int]
    inclusion: Mapping[str, Any] | None = None
    definitions: Sequence[Mapping[str, Any]] = ()
    """What computed the value, of the KPI first: kind, name, sha256, sql, columns, key; none for older publications."""
    verified: Sequence[Verified] = field(default=())
    findings: Sequence[str] = ()
    held: Sequence[str] = ()  # days that wait for a decision on drift: they are in the number as they were before
    expired: Sequence[Mapping[str, Any]] = ()
    """Raw batches deleted under retention: their checksums are on record, their bytes cannot be compared any more."""

    @property
    def holds(self) -> bool:
        proven = self.inclusion is not None and self.inclusion["holds"]
        return proven and all(item.ok for item in self.verified) and not self.findings

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds,
                "verified": [{**asdict(item), "ok": item.ok} for item in self.verified]}


def explain(
    environment: StageEnvironment, name: str, tenant_id: str | None, period: str, version: int | None = None
) -> Proof:
    """Collect and verify the proof chain of a KPI's published value.

    Args:
        name: `pipeline.kpi` or the KPI's name.
        tenant_id: may be left out when only one tenant has the KPI.
        period: `YYYY-MM` or `YYYY-MM-DD`.
        version: number of a publication; the current one by default.

    Raises:
        BareCountError: declaration.unknown (KPI, tenant), evidence.missing (nothing published, or not for the period).
    """
    kpi = _kpi(environment, name)
    tenant_id = tenant_id or _only_tenant(environment, kpi)
    environment.declarations.tenant(tenant_id)
    with environment.database.connect(autocommit=True) as connection:
        _publication(connection, tenant_id, kpi.name, version)
        chain = ledger.verify(connection, tenant_id)
    findings = [finding.message for finding in chain.findings] or _sign(environment, tenant_id)
    with environment.database.transaction() as connection:
        connection.execute("set transaction isolation level repeatable read")
        publication = _publication(connection, tenant_id, kpi.name, version)
        columns = _columns(connection, environment, kpi, publication)
        values = _values(connection, kpi, tenant_id, publication["version"], columns, period)
        published = evidence(connection, tenant_id, publication["evidence_seq"])
        build = evidence(connection, tenant_id, published["build"]["evidence"])
        normalized = evidence(connection, tenant_id, build["gdp"]["evidence"])
        verified = [
            *_verify_current(connection, kpi, tenant_id, publication, version),
            *_verify_snapshot(connection, kpi, tenant_id, publication, published, columns),
            *verify_gdps(connection, environment.declarations, Normalized(
                kpi.metadata.pipeline, tenant_id, publication["run_id"], normalized)),
        ]
        computed_by, definition_checks = _definitions(connection, kpi, published)
        batches, checks, expired = _batches(connection, environment, tenant_id, normalized["inputs"])
        inclusion = None if findings else _inclusion(connection, tenant_id, publication["evidence_seq"])
        return Proof(
            tenant_id=tenant_id,
            kpi=f"{kpi.metadata.pipeline}.{kpi.name}",
            period=period,
            unit=kpi.spec.unit,
            formula=published.get("formula", kpi.spec.formula),
            kpi_version=publication["kpi_version"],
            values=values,
            publication={
                k: publication[k]
                for k in (
                    "version",
                    "published_at",
                    "content_sha256",
                    "row_count",
                    "run_id",
                    "run_token",
                    "evidence_seq",
                )
            },
            gates=_gates(connection, tenant_id, published),
            gdps=_gdps(kpi, normalized),
            batches=batches,
            contracts=normalized["contracts"],
            code_version=normalized["code_version"],
            manifest_hash=normalized["manifest_hash"],
            evidence={
                "kpi.published": publication["evidence_seq"],
                "kpi_build.finished": published["build"]["evidence"],
                "normalization.finished": build["gdp"]["evidence"],
                "entries_in_chain": inclusion["tree_size"] if inclusion else chain.entries,
            },
            inclusion=inclusion,
            definitions=computed_by,
            verified=[*verified, *definition_checks, *checks],
            findings=findings,
            held=[str(day or "undated") for day in
                  drift_register.held_days(connection, tenant_id, kpi.metadata.pipeline)],
            expired=expired,
        )


def _sign(environment: StageEnvironment, tenant_id: str) -> list[str]:
    """Sign the ledger, found intact, so that the proof can end in a signed root; the reason where that is refused."""
    keys = KeyStore.of(environment.settings.data_dir, environment.database)
    try:
        checkpoints.create(environment.database, keys, tenant_id)
    except BareCountError as error:
        if error.code is not ErrorCode.EVIDENCE_BROKEN:
            raise
        return [error.message]
    return []


def _inclusion(connection: psycopg.Connection, tenant_id: str, seq: int) -> dict[str, Any]:
    """Proof that the publication's entry is in the signed tree."""
    proved = checkpoints.prove(connection, tenant_id, seq)
    return {
        "entry": seq, "tree_size": proved.checkpoint.size, "root": proved.checkpoint.root.hex(),
        "hashes": [item.hex() for item in proved.hashes], "key": proved.key.text, "holds": proved.holds,
    }


def _kpi(environment: StageEnvironment, name: str) -> Kpi:
    pipeline, _, short = name.rpartition(".")
    kpi = environment.declarations.kpi(short)
    if pipeline and kpi.metadata.pipeline != pipeline:
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"KPI {short} belongs to pipeline {kpi.metadata.pipeline}, not {pipeline}",
            hint=f"ask for {kpi.metadata.pipeline}.{short}",
        )
    return kpi


def _only_tenant(environment: StageEnvironment, kpi: Kpi) -> str:
    tenants = environment.declarations.pipeline(kpi.metadata.pipeline).spec.tenants
    if len(tenants) > 1:
        raise BareCountError(
            ErrorCode.USAGE, f"{kpi.name} is published for several tenants: {', '.join(tenants)}",
            hint="name one with --tenant",
        )
    return tenants[0]


def _publication(
    connection: psycopg.Connection, tenant_id: str, name: str, version: int | None
) -> dict[str, Any]:
    rows = fetch_dicts(connection, _PUBLICATION if version is None else _PUBLICATION_OF_VERSION,
                       (tenant_id, name, *(() if version is None else (version,))))
    if not rows:
        which = "" if version is None else f" as version {version}"
        raise BareCountError(ErrorCode.EVIDENCE_MISSING,
                             f"{name} has not been published for tenant {tenant_id}{which}",
                             hint="run its pipeline; `barecount status` shows what is published")
    return rows[0]


def _columns(
    connection: psycopg.Connection, environment: StageEnvironment, kpi: Kpi, publication: Mapping[str, Any]
) -> Sequence[str]:
    """Columns of a publication: those of the contract it was made under, which may have others by now."""
    dataset = f"{kpi.metadata.pipeline}.{kpi.name}"
    contract = contract_of_then(
        connection, environment.declarations, dataset, "activation", publication["contract_version"])
    return (contract or environment.declarations.contract(dataset, "activation")).column_names


def _values(
    connection: psycopg.Connection, kpi: Kpi, tenant_id: str, version: int, columns: Sequence[str], period: str
) -> list[dict[str, Any]]:
    statement = sql.SQL(
        "select {} from {} where tenant_id = $1 and version = $2::int and period = $3 order by {}"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.Identifier(published_store.SCHEMA, f"snapshot__{kpi.name}"),
        sql.SQL(", ").join(map(sql.Identifier, ("grain", *(c for c in columns if c not in KPI_COLUMNS)))),
    )
    rows = fetch_dicts(connection, statement.as_string(connection), (tenant_id, version, period))
    if not rows:
        known = sql.SQL("select min(period), max(period) from {} where tenant_id = $1 and version = $2::int and "
                        "length(period) = $3::int").format(
            sql.Identifier(published_store.SCHEMA, f"snapshot__{kpi.name}"))
        first, last = fetch(connection, known.as_string(connection), (tenant_id, version, len(period)))[0]
        span = f"published periods run from {first} to {last}" if first else "periods look like 2026-03 or 2026-03-05"
        raise BareCountError(
            ErrorCode.EVIDENCE_MISSING,
            f"{kpi.name} has no published value for {period} and tenant {tenant_id}: {span}",
            hint="choose another period",
        )
    return rows


def _newest_version(connection: psycopg.Connection, tenant_id: str, name: str) -> str:
    """Version of the newest publication on record: a pointer that was turned back shows."""
    rows = fetch(
        connection,
        "select max(seq) from platform.evidence where tenant_id = $1 and kind = 'kpi.published' and subject = $2",
        (tenant_id, name),
    )
    return "none" if rows[0][0] is None else str(evidence(connection, tenant_id, rows[0][0])["version"])


def _verify_current(
    connection: psycopg.Connection, kpi: Kpi, tenant_id: str, publication: Mapping[str, Any], version: int | None
) -> list[Verified]:
    if version is not None:
        return []
    newest = _newest_version(connection, tenant_id, kpi.name)
    return [Verified(f"current version of {kpi.name}", newest, str(publication["version"]))]


def _definitions(
    connection: psycopg.Connection, kpi: Kpi, published: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[Verified]]:
    """What computed the value, from the register, and whether it still is what its digest says."""
    digests = published.get("definitions", {})
    shown, checks = [], []
    for name in sorted(digests, key=lambda name: (name != kpi.name, name)):
        document = definition_register.document(connection, digests[name])
        checks.append(Verified(f"definition of {name}", digests[name],
                               "not kept" if document is None else digest_of(document)))
        shown.append({"name": name, "sha256": digests[name], **(document or {})})
    return shown, checks


def _verify_snapshot(
    connection: psycopg.Connection, kpi: Kpi, tenant_id: str, publication: Mapping[str, Any],
    published: Mapping[str, Any], columns: Sequence[str],
) -> list[Verified]:
    content, rows = published_store.snapshot_hash(connection, kpi.name, tenant_id, publication["version"], columns)
    return [
        Verified(
            f"published rows of {kpi.name} version {publication['version']}", published["content_sha256"], content
        ),
        Verified(f"number of published rows of {kpi.name}", str(published["rows"]), str(rows)),
    ]


def _gdps(kpi: Kpi, normalized: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The GDPs that the KPI depends on; all of the run's where it depends on one that the run did not have."""
    wanted = [dependency.gdp for dependency in kpi.spec.depends_on]
    names = wanted if set(wanted) <= set(normalized["outputs"]) else list(normalized["outputs"])
    return [{"name": name, **normalized["outputs"][name], "contract_version": normalized["contracts"].get(name)}
            for name in names]


def _gates(connection: psycopg.Connection, tenant_id: str, published: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"gate": gate, "evidence": seq, "summary": evidence(connection, tenant_id, seq)["summary"]}
        for gate, seq in published["gates"].items()
    ]


def _batches(
    connection: psycopg.Connection, environment: StageEnvironment, tenant_id: str, inputs: Sequence[Sequence[str]]
) -> tuple[list[dict[str, Any]], list[Verified], list[dict[str, Any]]]:
    """The raw batches of the run, each object's bytes hashed again, and those of which retention left only evidence."""
    rows = fetch_dicts(
        connection,
        "select dataset, source_id, partition_date, content_sha256, object_key, object_sha256, received, accepted, "
        "quarantined, contract_version, b.evidence_seq, e.expired_at, e.evidence_seq as expired_in_entry "
        "from platform.raw_batch b left join platform.raw_expiry e using (batch_id) where b.tenant_id = $1 "
        "order by b.batch_id",
        (tenant_id,),
    )
    known = {(r["dataset"], str(r["partition_date"] or ""), r["content_sha256"]): r for r in rows}
    batches, checks, expired = [], [], []
    for dataset, source_id, day, content, *_ in inputs:
        batch = known.get((dataset, day, content))
        if batch is None:
            checks.append(Verified(f"raw batch {dataset}/{source_id}", content, "not registered"))
            continue
        batches.append(batch)
        recorded = evidence(connection, tenant_id, batch["evidence_seq"])["object_sha256"]
        if batch["expired_at"] is not None:
            named = evidence(connection, tenant_id, batch["expired_in_entry"])["batches"]
            listed = next((b["object_sha256"] for b in named if b["object_key"] == batch["object_key"]), "not named")
            checks.append(Verified(f"expired raw object of {dataset}/{source_id}, as named then", recorded, listed))
            expired.append(batch)
            continue
        found = environment.raw_store.sha256(batch["object_key"]) or "missing"
        checks.append(Verified(f"raw object of {dataset}/{source_id}", recorded, found))
    return batches, checks, expired


_PUBLICATION = """
select p.* from platform.publication p join published.current_version c using (tenant_id, name, version)
where p.tenant_id = $1 and p.name = $2
"""
_PUBLICATION_OF_VERSION = "select * from platform.publication where tenant_id = $1 and name = $2 and version = $3::int"
