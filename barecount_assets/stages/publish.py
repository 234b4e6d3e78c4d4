"""Publish: write, audit, publish.

Every KPI of the pipeline gets a new immutable snapshot, made current with its evidence in one transaction, and only
when every gate of the build passed. A KPI whose content did not change keeps its version.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import psycopg

from barecount_assets import admission
from barecount_assets.stages import completeness, history, kpi_events, lineage, obligations, verification
from barecount_assets.stages import gates as gates_of_sources
from barecount_assets.stages.environment import StageEnvironment
from barecount_assets.stages.gates import GateResult
from resources.governance import definition_register
from resources.governance.contracts import Contract
from resources.governance.definition_register import Binding
from resources.governance.definitions import BoundVersion
from resources.governance.kpis import Kpi
from resources.governance.manifests import Pipeline
from resources.runners.facade import Progress
from resources.runners.stage import Output, Stage, StageReceipt, StageSpec, run_token
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import kpi_store, published_store
from resources.trust import ledger


def run(spec: StageSpec, environment: StageEnvironment, progress: Progress) -> StageReceipt:
    """Publish the newest KPI build of one pipeline and tenant.

    Raises:
        BareCountError: gate.failed naming every failed gate; obligation.failed naming every violated obligation that
            blocks; evidence.missing when there is no build of the newest GDPs; policy.denied, approval.required.
    """
    manifest = environment.declarations.effective(spec.pipeline, spec.tenant_id)
    with environment.exclusive(spec.tenant_id, spec.pipeline) as connection:
        build = _publishable_build(connection, spec)
        _require_same_declarations(environment, manifest, build)
        last = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.PUBLISH)
        complete = [completeness.decide(manifest, shares)
                    for shares in completeness.measure(connection, manifest, spec.tenant_id)]
        identity = {"stage": Stage.PUBLISH, "tenant": spec.tenant_id, "pipeline": spec.pipeline,
                    "build": build.run_token, "code": environment.code_version,
                    "obligations": obligations.identities(environment.declarations, spec)}
        token = history.token_for(connection, identity, last, spec.tenant_id, spec.pipeline, Stage.PUBLISH)
        if any(not gate.passed for gate in complete) and _is_held(connection, spec, manifest, token, complete):
            return StageReceipt(Stage.PUBLISH, spec.tenant_id, spec.pipeline, token, changed=True)
        if last is not None and last.run_token == token:
            return history.unchanged(last)
        if spec.probe:
            return StageReceipt(Stage.PUBLISH, spec.tenant_id, spec.pipeline, token, changed=True)
        lineage.begin(environment, connection, spec, token,
                      lineage.inputs_of("kpi", build.receipt.outputs, build.receipt.checks))
        obligations.enforce(connection, environment.settings, environment.declarations, spec, token,
                            dt.datetime.now(dt.UTC))
        gates = _gates(connection, spec, build.run_token)
        admission.admit_publication(environment, connection, manifest, spec.tenant_id, token, len(gates))
        outputs = []
        with connection.transaction():
            gdp = _require_provable(connection, environment, spec, last)
            bound = [BoundVersion(**item) for stage in (gdp, build) for item in stage.basis.get("definitions", ())]
            definition_register.bind(connection, Binding(spec.tenant_id, spec.pipeline, "registered", token), bound)
            for number, name in enumerate(manifest.spec.kpis):
                progress(f"publish {name}", number, len(manifest.spec.kpis))
                kpi = environment.declarations.kpi(name)
                contract = environment.declarations.contract(f"{spec.pipeline}.{name}", "activation")
                outputs.append(_publish(connection, environment, spec, token, build, kpi, contract, gates, bound))
            for gate in complete:
                gates_of_sources.record(connection, spec, token, gate)
            published = [output for output in outputs if output.facts["state"] == "published"]
            receipt = StageReceipt(
                stage=Stage.PUBLISH, tenant_id=spec.tenant_id, pipeline=spec.pipeline, run_token=token, changed=True,
                counts={"published": len(published), "unchanged": len(outputs) - len(published)},
                outputs=tuple(outputs), facts={"run_id": build.run_id},
            )
            assert build.run_id is not None
            history.finish(
                connection, receipt, build.run_id, identity, basis={"build_token": build.run_token},
                evidence={
                    "build": {"run_token": build.run_token, "evidence": build.evidence_seq},
                    "outputs": {o.name: {"content_sha256": o.content_sha256, "version": o.facts["version"]}
                                for o in outputs},
                    "completeness": {gate.kpi: gate.details for gate in complete},
                    "consumers": list(manifest.spec.publication.consumers),
                    "code_version": environment.code_version,
                },
            )
        progress("publish", len(manifest.spec.kpis), len(manifest.spec.kpis))
        return receipt


def _require_provable(
    connection: psycopg.Connection, environment: StageEnvironment, spec: StageSpec, last: history.FinishedStage | None
) -> history.FinishedStage:
    """The newest GDPs, after the comparison that `explain` makes. Raises BareCountError evidence.broken."""
    gdp = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.NORMALIZATION)
    assert gdp is not None and gdp.run_id is not None
    normalized = verification.Normalized(
        spec.pipeline, spec.tenant_id, gdp.run_id, verification.evidence(connection, spec.tenant_id, gdp.evidence_seq))
    published_run = int(last.receipt.facts["run_id"]) if last is not None else 0
    verification.require_provable(connection, environment.declarations, normalized, published_run)
    return gdp


def _publishable_build(connection: psycopg.Connection, spec: StageSpec) -> history.FinishedStage:
    """The newest build, if it is of the newest GDPs and all of its gates passed."""
    gdp = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.NORMALIZATION)
    build = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.KPI_BUILD)
    if gdp is None or build is None or build.basis.get("gdp_token") != gdp.run_token:
        raise BareCountError(
            ErrorCode.EVIDENCE_MISSING,
            f"the newest GDPs of {spec.pipeline} for tenant {spec.tenant_id} have no finished KPI build",
            hint="materialize its KPIs first",
        )
    failed = [gate for gate in _gates(connection, spec, build.run_token) if not gate["passed"]]
    if failed:
        named = " | ".join(f"{gate['kpi']} {gate['gate']}: {gate['summary']}" for gate in failed)
        raise BareCountError(
            ErrorCode.GATE_FAILED,
            f"{spec.pipeline} of tenant {spec.tenant_id} is not published: {named}",
            hint="the previous publication stays in place; correct the data or the declaration and run again",
            details={"gates": [{"kpi": g["kpi"], "gate": g["gate"], **g["details"]} for g in failed]},
        )
    return build


def _require_same_declarations(
    environment: StageEnvironment, manifest: Pipeline, build: history.FinishedStage
) -> None:
    """A build is published under the declarations it was made by. Raises BareCountError evidence.missing."""
    declared = environment.declarations
    kpis = {name: declared.kpi(name).hash for name in manifest.spec.kpis}
    contracts = [declared.contract(f"{manifest.name}.{name}", "activation").hash for name in manifest.spec.kpis]
    if (build.basis.get("kpis"), build.basis.get("contracts")) != (kpis, contracts):
        raise BareCountError(
            ErrorCode.EVIDENCE_MISSING,
            f"KPIs of {manifest.name} or their contracts are declared otherwise than when they were built",
            hint="materialize its KPIs first")


def _is_held(
    connection: psycopg.Connection, spec: StageSpec, manifest: Pipeline, token: str, complete: Sequence[GateResult]
) -> bool:
    """Whether a probe has to let the run go on, which puts the failure on record.

    Raises:
        BareCountError: gate.failed naming every source of which too much is refused, unless they only warn.
    """
    failed = [gate for gate in complete if not gate.passed]
    if manifest.spec.slos.completeness.on_breach == "warn":
        return False
    # What is refused can change and come back: the same failure again is on record once.
    attempt = run_token(held=token, gates=[gate.summary for gate in failed])
    on_record = fetch(connection, _HELD, (spec.tenant_id, spec.pipeline, attempt))
    if not on_record and spec.probe:
        return True
    if not on_record:
        with connection.transaction():
            for gate in failed:
                gates_of_sources.record(connection, spec, attempt, gate)
    raise BareCountError(
        ErrorCode.GATE_FAILED,
        f"{spec.pipeline} of tenant {spec.tenant_id} is not published: "
        + " | ".join(f"{gate.kpi} {gate.gate}: {gate.summary}" for gate in failed),
        hint="the previous publication stays in place. `barecount quarantine list` shows the records: correct and "
        "`barecount replay` them, or `barecount quarantine discard` them with a reason, then run again; what a source "
        "may have refused is declared in slos.completeness of the manifest",
        details={"gates": [{"source": gate.kpi, "gate": gate.gate, **gate.details} for gate in failed]},
    )


def _gates(connection: psycopg.Connection, spec: StageSpec, token: str) -> list[dict[str, Any]]:
    return fetch_dicts(
        connection,
        "select kpi, gate, passed, summary, details, evidence_seq from platform.gate_result "
        "where tenant_id = $1 and pipeline = $2 and run_token = $3 order by evidence_seq",
        (spec.tenant_id, spec.pipeline, token),
    )


def _publish(
    connection: psycopg.Connection, environment: StageEnvironment, spec: StageSpec, token: str,
    build: history.FinishedStage, kpi: Kpi, contract: Contract, gates: Sequence[dict[str, Any]],
    bound: Sequence[BoundVersion],
) -> Output:
    columns = contract.column_names
    published_store.ensure(connection, kpi.name, contract.column_types)
    content, rows = kpi_store.series_hash(
        connection, kpi.name, spec.tenant_id, columns, with_values=kpi.withholds)
    built = next(output for output in build.receipt.outputs if output.name == kpi.name)
    if content != built.content_sha256:
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN,
            f"the KPI store holds other rows of {kpi.name} than the build left: content hash {content}, "
            f"evidence entry {build.evidence_seq} says {built.content_sha256}",
            hint="someone changed the table; materialize the KPI again and find out who",
        )
    current = _current(connection, spec.tenant_id, kpi.name)
    definition = (content, kpi.metadata.version, contract.hash)
    if current is not None and definition == (
        current["content_sha256"],
        current["kpi_version"],
        current["contract_hash"],
    ):
        return Output(kpi.name, content, rows, {"state": "unchanged", "version": current["version"]})
    version = (current["version"] if current else 0) + 1
    published_store.write_snapshot(connection, kpi.name, version, spec.tenant_id, columns, kpi_store.table(kpi.name),
                                   with_values=kpi.withholds)
    written, written_rows = published_store.snapshot_hash(connection, kpi.name, spec.tenant_id, version, columns)
    if (written, written_rows) != (content, rows):
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN, f"the snapshot of {kpi.name} differs from the audited series",
            hint="nothing was published; run again",
        )
    seq = ledger.append(
        connection,
        ledger.Entry(
            spec.tenant_id, "kpi.published", kpi.name, token,
            {
                "version": version, "previous_version": current["version"] if current else None,
                "content_sha256": content, "rows": rows, "kpi_version": kpi.metadata.version, "kpi_hash": kpi.hash,
                "formula": kpi.spec.formula, "definitions": {
                    d.name: d.sha256 for d in bound if d.kind == "gdp" or d.name == kpi.name},
                "contract_version": contract.version, "contract_hash": contract.hash,
                "build": {"run_token": build.run_token, "evidence": build.evidence_seq},
                "gates": {gate["gate"]: gate["evidence_seq"] for gate in gates if gate["kpi"] == kpi.name},
            },
        ),
    )
    fetch(connection, _PUBLICATION, (spec.tenant_id, kpi.name, version, spec.pipeline, token, build.run_id, content,
                                     rows, kpi.metadata.version, contract.version, contract.hash, seq))
    published_store.make_current(connection, kpi.name, spec.tenant_id, version)
    published_store.ensure(connection, kpi.name, contract.column_types)  # columns that only the version before had
    kpi_events.append(connection, kpi, kpi_events.Publication(
        spec.tenant_id, spec.pipeline, version, _comparable(connection, environment, kpi, contract, current), token,
        seq))
    return Output(kpi.name, content, rows, {"state": "published", "version": version})


def _comparable(
    connection: psycopg.Connection, environment: StageEnvironment, kpi: Kpi, contract: Contract,
    current: dict[str, Any] | None,
) -> int | None:
    """The version whose values the new ones can be compared with, one by one: the last, if it has the same columns."""
    if current is None:
        return None
    before = verification.contract_of_then(
        connection, environment.declarations, f"{kpi.metadata.pipeline}.{kpi.name}", "activation",
        current["contract_version"])
    return current["version"] if before is not None and before.column_names == contract.column_names else None


def _current(connection: psycopg.Connection, tenant_id: str, name: str) -> dict[str, Any] | None:
    rows = fetch_dicts(
        connection,
        "select p.* from platform.publication p join published.current_version c using (tenant_id, name, version) "
        "where p.tenant_id = $1 and p.name = $2",
        (tenant_id, name),
    )
    return rows[0] if rows else None


_HELD = "select 1 from platform.gate_result where tenant_id = $1 and pipeline = $2 and run_token = $3 limit 1"
_PUBLICATION = """
insert into platform.publication (
    tenant_id, name, version, pipeline, run_token, run_id, content_sha256, row_count, kpi_version, contract_version,
    contract_hash, evidence_seq)
values ($1, $2, $3::int, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
