"""Normalization: current raw batches become GDPs.

dbt computes the rows whose keys the new batches touch and versions them under this run's number; the commit at the end
(the batches now included, content hashes, evidence) is what makes the run count. A run that dies before it leaves
nothing visible, and the next one starts from the last commit. A partition that waits for a decision on drift stays as
it was at the last commit (view `platform.counted_batch`); the others go on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from barecount_assets import definition_changes
from barecount_assets.stages import business_days, dbt, deliveries, engines, history, lineage, quarantine_life
from barecount_assets.stages.environment import StageEnvironment
from resources.governance import definition_register, drift_register
from resources.governance.definitions import Definition
from resources.governance.manifests import Pipeline
from resources.governance.openlineage import Dataset
from resources.runners.facade import Progress
from resources.runners.stage import CheckOutcome, Output, Stage, StageReceipt, StageSpec, run_token
from resources.runtime.database import fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import gdp_store, model_tables, raw_tables, retention


def run(spec: StageSpec, environment: StageEnvironment, progress: Progress) -> StageReceipt:
    """Bring the GDPs of one pipeline and tenant up to its current raw batches."""
    manifest = environment.declarations.effective(spec.pipeline, spec.tenant_id)
    with environment.exclusive(spec.tenant_id, spec.pipeline) as connection:
        tenant = environment.declarations.tenant(spec.tenant_id)
        datasets = [source.dataset for source in manifest.spec.sources]
        deliveries.settle(connection, environment, spec.tenant_id, spec.pipeline, manifest.spec.sources)
        batches = fetch_dicts(connection, _CURRENT_BATCHES, (spec.tenant_id, datasets))
        held = drift_register.held_days(connection, spec.tenant_id, spec.pipeline)
        last = history.newest(connection, spec.tenant_id, spec.pipeline, Stage.NORMALIZATION)
        definition = {
            "manifest": manifest.hash,
            "contracts": _contract_hashes(environment, manifest),
            "code": environment.code_version, **business_days.definition(environment.declarations, manifest, tenant),
        }
        inputs = sorted(
            [b["dataset"], b["source_id"], str(b["partition_date"] or ""), b["content_sha256"], place]
            for b, place in zip(batches, _places(batches), strict=True)
        )
        identity = {"stage": Stage.NORMALIZATION, "tenant": spec.tenant_id, "pipeline": spec.pipeline,
                    "inputs": inputs, **definition}
        token = history.token_for(connection, identity, last, spec.tenant_id, spec.pipeline, Stage.NORMALIZATION)
        if last is not None and last.run_token == token:
            return history.unchanged(last)
        if spec.probe:
            return StageReceipt(Stage.NORMALIZATION, spec.tenant_id, spec.pipeline, token, changed=True)
        if not batches and held:
            raise BareCountError(
                ErrorCode.SCHEMA_DRIFT,
                f"everything of {spec.pipeline} that has landed for {spec.tenant_id} waits for decisions on drift",
                hint="`barecount drift list` shows what changed; accept or reject it, then run again",
            )
        if not batches and last is None:  # later on nothing left is a state like another: all of it was withdrawn
            raise BareCountError(
                ErrorCode.SOURCE_NOT_FOUND,
                f"there is nothing to normalize: no raw batch of {spec.pipeline} has landed for {spec.tenant_id}",
                hint="check the window and the sources of the run",
            )
        definitions = [d for d in definition_changes.admit(environment, spec.pipeline, spec.tenant_id, progress)
                       if d.kind == "gdp"]
        lineage.begin(environment, connection, spec, token, _inputs(batches))
        run_id = history.run_number(
            connection, spec.tenant_id, spec.pipeline, Stage.NORMALIZATION, token, manifest.hash,
            environment.code_version,
        )
        for dataset in datasets:
            raw_tables.ensure(connection, dataset, environment.declarations.contract(dataset, "raw").column_types)
        changed = _changed_batches(connection, spec, datasets)
        scope = _scope(connection, spec, last, definition, run_id)
        if scope == "all":
            _require_raw(connection, spec, datasets)
        # What an earlier run refused may be accepted now, as something else has come: all of it is looked at again.
        reopens = scope == "all" or quarantine_life.has_open(connection, spec.tenant_id, spec.pipeline)
        refused_scope = "all" if reopens else "changed"
        variables = {
            "tenant": spec.tenant_id, "run_id": run_id, "scope": scope, "refused_scope": refused_scope,
            "batches": changed if scope == "changed" else [],
            "currency": tenant.spec.currency, "sources": manifest.sources_for_models,
            **business_days.run_variables(environment.declarations, manifest, tenant),
        }
        models = list(manifest.spec.transforms.gdp)
        selected = [*models, *(f"{model}__rejected" for model in models)]
        # The tables of rejected records hold one tenant's at a time: they are read before another tenant builds.
        with environment.building(connection, spec.pipeline):
            for model in models:
                gold = environment.declarations.contract(f"{spec.pipeline}.{model}", "gold")
                model_tables.conform(connection, gdp_store.SCHEMA, model, gold.column_types, gdp_store.VERSION_COLUMNS,
                                     gold.required_columns)
            results = engines.build(environment, manifest.spec.transforms.engine, spec.tenant_id, spec.pipeline,
                                    selected, variables, progress)
            with connection.transaction():
                return _commit(connection, spec, environment, manifest, token, run_id, identity, definition, batches,
                               held, results, scope, reopens, definitions)


def _commit(
    connection: psycopg.Connection, spec: StageSpec, environment: StageEnvironment, manifest: Pipeline, token: str,
    run_id: int, identity: dict[str, Any], definition: dict[str, Any], batches: Sequence[dict[str, Any]],
    held: Sequence[dt.date | None], results: Sequence[dbt.NodeResult], scope: str, reopens: bool,
    definitions: Sequence[Definition],
) -> StageReceipt:
    outputs = []
    for model in manifest.spec.transforms.gdp:
        content, rows = gdp_store.head_hash(connection, model, spec.tenant_id)
        versions = _versions(connection, model, spec.tenant_id, run_id)
        outputs.append(Output(model, content, rows, versions))
    quarantined = _quarantine(connection, spec, manifest, token)
    quarantine_life.carry_over(connection, spec.tenant_id, [batch["batch_id"] for batch in batches])
    if reopens:
        reason = "the rules changed" if scope == "all" else "what it lacked is there"
        quarantine_life.settle_accepted(
            connection, spec.tenant_id, spec.pipeline, manifest.spec.transforms.gdp, token, run_id, reason)
    fetch(connection, _INCLUDE, (spec.tenant_id, spec.pipeline, run_id, [b["batch_id"] for b in batches],
                                 [b["delivery_order"] for b in batches]))
    engine = engines.identity(manifest.spec.transforms.engine, connection)
    receipt = StageReceipt(
        stage=Stage.NORMALIZATION, tenant_id=spec.tenant_id, pipeline=spec.pipeline, run_token=token, changed=True,
        counts={"batches": len(batches), "rows": sum(o.rows for o in outputs), "quarantined": quarantined},
        outputs=tuple(outputs), checks=test_outcomes(results),
        facts={"run_id": run_id, "scope": scope, "engine": engine["name"]},
    )
    gold = {m: environment.declarations.contract(f"{spec.pipeline}.{m}", "gold").version
            for m in manifest.spec.transforms.gdp}
    definition_register.store(connection, definitions)
    history.finish(
        connection, receipt, run_id, identity,
        basis={**definition, "definitions": [vars(d.bound) for d in definitions]},
        evidence={
            "inputs": identity["inputs"],
            "outputs": {o.name: {"content_sha256": o.content_sha256, "rows": o.rows} for o in outputs},
            "definitions": {d.name: d.sha256 for d in definitions},
            "quarantined": quarantined, "contracts": gold, "manifest_hash": manifest.hash,
            "manifest_version": manifest.metadata.version, "code_version": environment.code_version,
            "engine": engine, "held": [str(day or "undated") for day in held],
            "tests": {"passed": sum(r.kind == "test" and r.passed for r in results)},
        },
        artefact=environment.artefact,
    )
    return receipt


def _places(batches: Sequence[dict[str, Any]]) -> list[str]:
    """Each batch's place among the deliveries of its dataset's day, as a key: of the order only that reaches a number.

    When a day arrived says nothing about another day's records; so work on the same deliveries is the same work.
    """
    days: dict[tuple[str, dt.date | None], list[str]] = {}
    for batch in batches:
        days.setdefault((batch["dataset"], batch["partition_date"]), []).append(batch["delivery_order"])
    places = {day: {order: number for number, order in enumerate(sorted(orders), 1)} for day, orders in days.items()}
    return [f"{places[b['dataset'], b['partition_date']][b['delivery_order']]:012d}" for b in batches]


def _inputs(batches: Sequence[dict[str, Any]]) -> list[Dataset]:
    """The raw datasets, each with the rows of its current batches and a digest of their contents."""
    by_dataset: dict[str, list[dict[str, Any]]] = {}
    for batch in batches:
        by_dataset.setdefault(batch["dataset"], []).append(batch)
    return [
        Dataset(f"raw.{dataset}", sum(batch["accepted"] for batch in own),
                run_token(content=sorted(batch["content_sha256"] for batch in own)))
        for dataset, own in sorted(by_dataset.items())
    ]


def test_outcomes(results: Sequence[dbt.NodeResult]) -> tuple[CheckOutcome, ...]:
    """dbt's data tests as checks. A failed one has raised already: these passed or warned."""
    return tuple(
        CheckOutcome(r.name, r.model, r.status != "warn", False, r.message or r.status, {"failures": r.failures})
        for r in results if r.kind == "test"
    )


def _contract_hashes(environment: StageEnvironment, manifest: Pipeline) -> list[str]:
    raw = [environment.declarations.contract(source.dataset, "raw").hash for source in manifest.spec.sources]
    gold = [environment.declarations.contract(f"{manifest.name}.{model}", "gold").hash
            for model in manifest.spec.transforms.gdp]
    return [*raw, *gold]


def _changed_batches(connection: psycopg.Connection, spec: StageSpec, datasets: Sequence[str]) -> list[int]:
    """Batches that are current and not included as they are, or included and no longer current."""
    rows = fetch(connection, _CHANGED_BATCHES, (spec.tenant_id, spec.pipeline, list(datasets)))
    return [batch_id for (batch_id,) in rows]


def _scope(
    connection: psycopg.Connection, spec: StageSpec, last: history.FinishedStage | None,
    definition: dict[str, Any], run_id: int,
) -> str:
    """`changed` when only data changed since the last commit, else `all`.

    An attempt that never committed may have versioned rows of batches that are no longer current: then the changed
    batches do not lead to every row at fault, and all keys are computed.
    """
    if last is None or any(last.basis.get(name) != value for name, value in definition.items()):
        return "all"
    abandoned = fetch(
        connection,
        "select 1 from platform.run where tenant_id=$1 and pipeline=$2 and stage=$3 and run_id > $4 and run_id <> $5 "
        "limit 1",
        (spec.tenant_id, spec.pipeline, Stage.NORMALIZATION.value, last.run_id, run_id),
    )
    return "all" if abandoned else "changed"


def _require_raw(connection: psycopg.Connection, spec: StageSpec, datasets: Sequence[str]) -> None:
    """Everything can be computed again only while all of raw is there: what expired must not vanish from numbers."""
    expired, newest = retention.expired_that_count(connection, spec.tenant_id, datasets)
    if expired:
        raise BareCountError(
            ErrorCode.STORE_EXPIRED,
            f"the GDPs of {spec.pipeline} for tenant {spec.tenant_id} are to be computed again whole, as code, "
            f"contracts or manifest changed, but {expired} raw batches up to {newest} were deleted under retention: "
            "their rows would vanish from every number",
            hint=f"go back to the definitions of the last run, or give those days up: barecount raw forget "
            f"{spec.pipeline} --tenant {spec.tenant_id} --reason WHY",
        )


def _versions(connection: psycopg.Connection, model: str, tenant_id: str, run_id: int) -> dict[str, int]:
    statement = sql.SQL(
        "select count(*) filter (where valid_from_run = $2::bigint), count(*) filter (where valid_to_run = $2::bigint) "
        "from {} where tenant_id = $1 and (valid_from_run = $2::bigint or valid_to_run = $2::bigint)"
    ).format(sql.Identifier(gdp_store.SCHEMA, model))
    new, closed = fetch(connection, statement.as_string(connection), (tenant_id, run_id))[0]
    return {"versions_added": new, "versions_closed": closed}


def _quarantine(connection: psycopg.Connection, spec: StageSpec, manifest: Pipeline, token: str) -> int:
    """Copy what the models refused into quarantine, whole, with lineage to raw; returns how many are new."""
    total = 0
    for model in manifest.spec.transforms.gdp:
        relation = f"{gdp_store.SCHEMA}.{model}__rejected"
        if fetch(connection, "select to_regclass($1)", (relation,)) == [(None,)]:
            continue
        rejected = sql.Identifier(gdp_store.SCHEMA, f"{model}__rejected")
        listed = sql.SQL("select distinct dataset from {} where tenant_id = $1").format(rejected)
        for (dataset,) in fetch(connection, listed.as_string(connection), (spec.tenant_id,)):
            statement = sql.SQL(_QUARANTINE).format(
                rejected=rejected, raw=sql.Identifier(raw_tables.SCHEMA, raw_tables.table_name(dataset))
            )
            rows = fetch(
                connection, statement.as_string(connection), (spec.tenant_id, spec.pipeline, dataset, model, token)
            )
            total += rows[0][0]
    return total


_QUARANTINE = """
with added as (
    insert into platform.quarantine (
        tenant_id, pipeline, dataset, stage, batch_id, source_id, row_number, field, reason, message, payload,
        run_token)
    select r.tenant_id, $2, r.dataset, 'normalization', r.batch_id, b.source_id, r.row_number, $4, r.rule, r.message,
        convert_to((to_jsonb(raw) - '_tenant_id' - '_batch_id' - '_row_number')::text, 'UTF8'), $5
    from {rejected} r
    join platform.raw_batch b on b.batch_id = r.batch_id
    join {raw} raw on raw._batch_id = r.batch_id and raw._row_number = r.row_number
    where r.tenant_id = $1 and r.dataset = $3 and not exists (
        select from platform.quarantine q
        where q.tenant_id = r.tenant_id and q.pipeline = $2 and q.stage = 'normalization' and q.batch_id = r.batch_id
        and q.row_number = r.row_number and q.reason = r.rule and q.field = $4
        and not exists (
            select from platform.quarantine_outcome o
            where o.quarantine_id = q.quarantine_id and o.run_id is not null))
    order by r.batch_id, r.row_number, r.rule
    returning 1
)
select count(*) from added
"""
_CURRENT_BATCHES = """
select batch_id, dataset, source_id, partition_date, content_sha256, accepted, delivery_order
from platform.counted_batch
where tenant_id = $1 and dataset = any($2) and is_current
order by dataset, partition_date, source_id
"""
_CHANGED_BATCHES = """
select b.batch_id
from platform.counted_batch b
full join (select * from platform.normalized_batch where tenant_id = $1 and pipeline = $2) n using (batch_id)
where (b.tenant_id = $1 and b.dataset = any($3) and b.is_current
        and n.delivery_order is distinct from b.delivery_order)
   or (n.batch_id is not null and not b.is_current)
order by b.batch_id
"""
_INCLUDE = """
with gone as (
    delete from platform.normalized_batch where tenant_id = $1 and pipeline = $2 and batch_id <> all($4)
)
insert into platform.normalized_batch as n (tenant_id, pipeline, batch_id, run_id, delivery_order)
select $1, $2, batch_id, $3::bigint, delivery_order
from unnest($4::bigint[], $5::text[]) as batch (batch_id, delivery_order)
on conflict (tenant_id, pipeline, batch_id) do update set delivery_order = excluded.delivery_order
    where n.delivery_order <> excluded.delivery_order
"""
