"""Computing a run again from raw, beside what it left, and saying whether it comes out the same.

The run's raw batches are taken as its evidence lists them, and its dbt project, contracts and calendar as they were
recorded with it (or as they are now). Everything is built in the schema `scratch`, which is empty before and after;
content hashes are compared with the evidence, and where they differ, keys are. Nothing that others read is touched.

To publish what comes out with current versions, the lifecycle's own stages run: gates decide, and the publication is
linked to the run that was computed again. That needs the raw batches of then to be those of now.
"""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql

from barecount_assets import admission
from barecount_assets.stages import business_days, calendar, dbt, execute
from barecount_assets.stages.environment import StageEnvironment
from resources.data_utilities.calendar import date_table
from resources.governance import declarations, registry
from resources.governance.approvals import ReplayRequested
from resources.runners.facade import Progress
from resources.runners.stage import Placement, Stage, StageSpec, run_token
from resources.runtime import events
from resources.runtime.database import as_json, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import stage_code_version
from resources.storage import artefacts, content, gdp_store, model_tables
from resources.trust import ledger

SCRATCH = "scratch"
NAMED = 20
Versions = Literal["recorded", "current"]


@dataclass(frozen=True)
class Difference:
    """A key on which then and now disagree: `gone`, `new` or `changed`, and then which columns."""

    key: str
    change: str
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """One output of the run: content hash by its evidence, and as computed now.

    `differences` is the number of differing keys, of which `named` are the first; both are empty where the rows of then
    are not kept any more, which `note` says.
    """

    name: str
    kind: str
    expected: str
    found: str
    rows: int
    differences: int | None = None
    named: Sequence[Difference] = ()
    note: str = ""

    @property
    def identical(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True)
class Recomputation:
    """What came of computing a run again.

    Attributes:
        replay_of: run token of the run.
        versions: whose contracts, models and calendar were used.
        notes: what a reader must know to judge the result.
        published: by KPI, `{"version", "state"}`, when it was published.
    """

    tenant_id: str
    pipeline: str
    replay_of: str
    versions: Versions
    outputs: Sequence[Compared]
    notes: Sequence[str] = ()
    published: Mapping[str, Mapping[str, Any]] | None = None
    evidence_seq: int | None = None

    @property
    def identical(self) -> bool:
        return all(output.identical for output in self.outputs)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "identical": self.identical,
                "outputs": [{**asdict(output), "identical": output.identical} for output in self.outputs]}


@dataclass(frozen=True)
class _Then:
    """The run: its normalization and, where it came to one, its KPI build, as their evidence has them."""

    tenant_id: str
    pipeline: str
    replay_of: str
    normalization: str
    evidence_seq: int
    normalized: Mapping[str, Any]
    run_id: int
    build: str | None
    built: Mapping[str, Any]


def recompute(
    environment: StageEnvironment, token: str, tenant_id: str | None, versions: Versions, decided_by: str,
    progress: Progress, *, publish: bool = False,
) -> Recomputation:
    """Compute a run again and put on record what came out.

    Args:
        token: run token of a normalization, KPI build or publication, or its beginning, or the number of a run.

    Raises:
        BareCountError: declaration.unknown for a run that is not known; usage for one that computes nothing, and to
            publish with other versions than current or other raw batches than those of now; evidence.missing when its
            sources or raw batches are not kept; policy.denied, approval.required; what the stages raise.
    """
    if publish and versions != "current":
        raise BareCountError(ErrorCode.USAGE, "only current versions are published: those of then were, then",
                             hint="say --current --publish, or leave --publish out")
    with environment.database.connect(autocommit=True) as connection:
        then = _find(connection, token, tenant_id)
        if publish:
            _require_raw_of_now(connection, environment, then)
    work = ReplayRequested(then.pipeline, then.tenant_id, then.replay_of, versions, publish)
    admission.admit_replay(environment, work, requested_by=decided_by, now=dt.datetime.now(dt.UTC))
    with environment.exclusive(SCRATCH, "replay") as connection:
        _clear(connection)
        try:
            outputs, notes = _compute(environment, connection, then, versions, progress)
        finally:
            if not connection.closed:
                _clear(connection)
    published = _publish(environment, then, progress) if publish else None
    result = Recomputation(then.tenant_id, then.pipeline, then.replay_of, versions, outputs, notes, published)
    return replace(result, evidence_seq=_record(environment, result, decided_by))


def last_run_as_of_now(
    environment: StageEnvironment, pipeline: str, tenant_id: str, progress: Progress
) -> Sequence[Compared]:
    """The run that was published last, computed again with what is declared now; nothing where none was.

    Nobody is asked and nothing is put on record: it is a question before a run, not a replay.

    Raises:
        BareCountError: evidence.missing when its raw batches are not kept; transform.failed.
    """
    with environment.database.connect(autocommit=True) as connection:
        rows = fetch(connection, _LAST_PUBLISHED, (tenant_id, pipeline))
        if not rows:
            return ()
        then = _find(connection, rows[0][0], tenant_id)
    with environment.exclusive(SCRATCH, "replay") as connection:
        _clear(connection)
        try:
            return _compute(environment, connection, then, "current", progress)[0]
        finally:
            if not connection.closed:
                _clear(connection)


def _find(connection: psycopg.Connection, token: str, tenant_id: str | None) -> _Then:
    rows = fetch_dicts(connection, _FIND, (token, tenant_id))
    if not rows:
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"no finished run has the token or number {token}",
                             hint="`barecount evidence search normalization` lists run tokens")
    if len({(row["tenant_id"], row["run_token"]) for row in rows}) > 1:
        raise BareCountError(ErrorCode.USAGE, f"{token} is the beginning of {len(rows)} run tokens",
                             hint="give more of it, or --tenant")
    row = rows[0]
    if row["stage"] not in (Stage.NORMALIZATION, Stage.KPI_BUILD, Stage.PUBLISH):
        raise BareCountError(
            ErrorCode.USAGE, f"{token} is a run of {row['stage']}, which computes no number; allowed: normalization, "
            "kpi_build, publish", hint="`barecount raw rebuild` makes raw tables again; a run makes the calendar")
    owner = (row["tenant_id"], row["pipeline"])
    build = row
    if row["stage"] == Stage.PUBLISH:
        build = _stage_run(connection, owner, Stage.KPI_BUILD, row["receipt"]["basis"]["build_token"])
    if row["stage"] == Stage.NORMALIZATION:
        found = fetch(connection, _BUILD_OF, (*owner, row["run_token"]))
        build = _stage_run(connection, owner, Stage.KPI_BUILD, found[0][0]) if found else None
        normalization = row
    else:
        normalization = _stage_run(connection, owner, Stage.NORMALIZATION, build["receipt"]["basis"]["gdp_token"])
    return _Then(
        *owner, row["run_token"], normalization["run_token"], normalization["evidence_seq"],
        _payload(connection, owner[0], normalization), normalization["run_id"], build and build["run_token"],
        _payload(connection, owner[0], build) if build else {},
    )


def _stage_run(connection: psycopg.Connection, owner: tuple[str, str], stage: Stage, token: str) -> dict[str, Any]:
    return fetch_dicts(connection, _STAGE_RUN, (*owner, stage.value, token))[0]


def _payload(connection: psycopg.Connection, tenant_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    body = fetch(connection, "select body from platform.evidence where tenant_id = $1 and seq = $2",
                 (tenant_id, row["evidence_seq"]))
    if not body:
        raise BareCountError(ErrorCode.EVIDENCE_BROKEN, f"evidence entry {row['evidence_seq']} is gone",
                             hint="run `barecount evidence verify`")
    return json.loads(body[0][0])["payload"]


# Computing -----------------------------------------------------------------------------------------------


def _compute(
    environment: StageEnvironment, connection: psycopg.Connection, then: _Then, versions: Versions, progress: Progress
) -> tuple[list[Compared], list[str]]:
    notes: list[str] = []
    _batches_of_then(connection, then)
    with ExitStack() as stack:
        kept = None if versions == "current" else _kept(connection, then, Stage.NORMALIZATION, then.normalization)
        used = stack.enter_context(_sources(environment, connection, kept, notes))
        tenant = used.declarations.tenant(then.tenant_id)
        manifest = used.declarations.effective(then.pipeline, then.tenant_id)
        variables = {"tenant": then.tenant_id, "run_id": then.run_id, "scope": "all", "batches": [],
                     "currency": tenant.spec.currency, "sources": manifest.sources_for_models,
                     **business_days.run_variables(used.declarations, manifest, tenant)}
        models = list(manifest.spec.transforms.gdp)
        dbt.build(used, models, variables, progress, SCRATCH)
        outputs = [_compare_gdp(connection, used, then, model) for model in models
                   if model in then.normalized["outputs"]]
        if then.build is None:
            return outputs, [*notes, "no KPI build of this run is on record: GDPs alone are compared"]
        if kept is not None and (kept_then := _kept(connection, then, Stage.KPI_BUILD, then.build)) != kept:
            used = stack.enter_context(_sources(environment, connection, kept_then, notes))
        outputs.extend(_calendar(connection, used, then))
        names = list(used.declarations.effective(then.pipeline, then.tenant_id).spec.kpis)
        versions_of = {name: used.declarations.kpi(name).metadata.version for name in names}
        dbt.build(used, names, {**variables, "kpi_periods": "all", "kpi_versions": versions_of}, progress, SCRATCH)
        outputs.extend(_compare_kpi(connection, used, then, name) for name in names if name in then.built["outputs"])
    return outputs, list(dict.fromkeys(notes))


def _kept(connection: psycopg.Connection, then: _Then, stage: Stage, token: str) -> tuple[str, str]:
    """The sources that a stage of the run used, and the version of the stages' code."""
    kept = artefacts.of_run(connection, then.tenant_id, then.pipeline, stage.value, token)
    if kept is None:
        raise BareCountError(
            ErrorCode.EVIDENCE_MISSING,
            f"the sources of {stage} {token[:16]} were not kept, as it ran before they were",
            hint="replay with --current")
    return kept


@contextmanager
def _sources(
    environment: StageEnvironment, connection: psycopg.Connection, kept: tuple[str, str] | None, notes: list[str]
) -> Iterator[StageEnvironment]:
    """An environment with the project as it was kept, or that of now, and a data folder of its own."""
    with tempfile.TemporaryDirectory(prefix="barecount-replay-") as folder:
        project, declared = environment.settings.project_dir, environment.declarations
        if kept is not None:
            project = Path(folder) / "project"
            artefacts.unpack(connection, kept[0], project)
            declared = _with_contracts_of_then(connection, declarations.load(project), project)
            if kept[1] != stage_code_version():
                notes.append("models, contracts and calendar are those of then; the stages' own code is that of now")
        settings = replace(environment.settings, project_dir=project, data_dir=Path(folder) / "data")
        yield StageEnvironment(settings, environment.database, declared)


def _with_contracts_of_then(
    connection: psycopg.Connection, declared: declarations.Declarations, project: Path
) -> declarations.Declarations:
    """The declarations with the registered versions that counted then, where those were not the files'."""
    contracts = dict(declared.contracts)
    for dataset, layer, number, digest in json.loads((project / artefacts.CONTRACTS).read_text(encoding="utf-8")):
        if contracts[dataset, layer].hash != digest:
            contracts[dataset, layer] = registry.version(connection, dataset, layer, number).contract
    return replace(declared, contracts=contracts)


def _batches_of_then(connection: psycopg.Connection, then: _Then) -> None:
    """The register of batches as the run saw it, under both names that models have read it by."""
    inputs = as_json(then.normalized["inputs"])
    fetch(connection, _BATCHES, (then.tenant_id, inputs, then.evidence_seq))
    fetch(connection, "update scratch.raw_batch set is_current = true")
    fetch(connection, _ORDER_OF_THEN, (inputs,))
    fetch(connection, "create table scratch.counted_batch as select * from scratch.raw_batch")
    found = fetch(connection, "select count(*) from scratch.raw_batch")[0][0]
    if found != len(then.normalized["inputs"]):
        raise BareCountError(
            ErrorCode.EVIDENCE_MISSING, f"{len(then.normalized['inputs']) - found} of "
            f"{len(then.normalized['inputs'])} raw batches of the run are not registered any more",
            hint="run `barecount evidence verify`")
    expired = fetch(connection, "select count(*), max(e.expired_at)::date::text from platform.raw_expiry e "
                                "join scratch.raw_batch b on b.batch_id = e.batch_id")[0]
    if expired[0]:
        raise BareCountError(
            ErrorCode.EVIDENCE_MISSING, f"{expired[0]} raw batches of the run were deleted under retention, the last "
            f"on {expired[1]}: it cannot be computed again", hint="its evidence and its publications stay")


def _calendar(connection: psycopg.Connection, used: StageEnvironment, then: _Then) -> list[Compared]:
    """The date table, for KPIs to read; compared where the build had one."""
    fetch(connection, "create table scratch.calendar (like gdp.calendar including all)")
    covers = then.built.get("calendar_covers")
    settings = calendar.settings_with(
        used.declarations.calendar(then.tenant_id), None if covers is None else calendar.days_of(covers))
    table = date_table(then.tenant_id, settings)
    found, rows = calendar.fill(connection, sql.Identifier(SCRATCH, "calendar"), then.tenant_id, table)
    expected = then.built.get("calendar")
    note = "" if expected == found else "declared otherwise, or by another version of the library of holidays"
    return [Compared("calendar", "calendar", expected, found, rows, note=note)] if expected else []


# Comparing -----------------------------------------------------------------------------------------------


def _compare_gdp(
    connection: psycopg.Connection, used: StageEnvironment, then: _Then, model: str
) -> Compared:
    expected = then.normalized["outputs"][model]["content_sha256"]
    here = sql.Identifier(SCRATCH, model)
    found, rows = content.hash_of(
        connection, here, sql.SQL("tenant_id = $1 and valid_to_run is null"), (then.tenant_id,), None)
    compared = Compared(model, "gdp", expected, found, rows)
    if compared.identical:
        return compared
    if gdp_store.as_of_hash(connection, model, then.tenant_id, then.run_id)[0] != expected:
        return replace(compared, note="the GDP store does not hold the rows of then any more")
    contract = used.declarations.contract(f"{then.pipeline}.{model}", "gold")
    if _same_rows(connection, then, model, found, contract.column_types):
        return replace(compared, found=expected, note="the same rows, of which some carry hashes of an earlier format")
    held = model_tables.places(connection, gdp_store.SCHEMA, model, contract.column_types)
    if not contract.primary_key or not set(contract.primary_key) <= set(held):
        return replace(compared, note="its contract names no key, by which rows could be compared" if held and not
                       contract.primary_key else "the GDP had another key then")
    before = sql.SQL(
        "(select tenant_id, {} from {} where tenant_id = $1 and valid_from_run <= $2::bigint "
        "and (valid_to_run is null or valid_to_run > $2::bigint))"
    ).format(sql.SQL(", ").join(
        sql.SQL("{} as {}").format(sql.Identifier(place), sql.Identifier(name)) for name, place in held.items()),
        sql.Identifier(gdp_store.SCHEMA, model))
    after = sql.SQL("(select * from {} where tenant_id = $1 and valid_to_run is null)").format(here)
    return _named(connection, compared, before, after, contract.primary_key, list(held), (then.tenant_id, then.run_id))


def _same_rows(
    connection: psycopg.Connection, then: _Then, model: str, found: str, columns: Sequence[tuple[str, str]]
) -> bool:
    """Whether the rows of then, as they are kept, are those computed now when their hashes are taken alike."""
    of_run = (connection, model, then.tenant_id, then.run_id, columns)
    return (gdp_store.recomputed_hash(*of_run)[0] == then.normalized["outputs"][model]["content_sha256"]
            and gdp_store.rehashed(*of_run)[0] == found)


def _compare_kpi(connection: psycopg.Connection, used: StageEnvironment, then: _Then, name: str) -> Compared:
    expected = then.built["outputs"][name]["content_sha256"]
    columns = used.declarations.contract(f"{then.pipeline}.{name}", "activation").column_names
    here = sql.Identifier(SCRATCH, name)
    found, rows = content.hash_of(connection, here, sql.SQL("tenant_id = $1"), (then.tenant_id,), columns)
    compared = Compared(name, "kpi", expected, found, rows)
    if compared.identical:
        return compared
    kept = fetch(connection, _KEPT, (then.tenant_id, name, expected))
    if not kept:
        return replace(compared, note="the series of then was not published, and is not kept")
    before = sql.SQL("(select * from {} where tenant_id = $1 and version = $2::bigint)").format(
        sql.Identifier("published", f"snapshot__{name}"))
    after = sql.SQL("(select * from {} where tenant_id = $1)").format(here)
    key = ("grain", "period", *used.declarations.kpi(name).dimensions)
    there = {column for (column,) in fetch(connection, _COLUMNS, (f"published.snapshot__{name}",))}
    return _named(connection, compared, before, after, key, [c for c in columns if c in there],
                  (then.tenant_id, kept[0][0]))


def _named(
    connection: psycopg.Connection, compared: Compared, before: sql.Composable, after: sql.Composable,
    key: Sequence[str], columns: Sequence[str], parameters: tuple[Any, ...],
) -> Compared:
    """Count the keys that differ and name the first of them. Values are compared as text, as row hashes are."""
    def row(alias: str, names: Sequence[str]) -> sql.Composable:
        return sql.SQL("jsonb_build_array({})").format(
            sql.SQL(", ").join(sql.SQL("{}.{}::text").format(sql.Identifier(alias), sql.Identifier(n)) for n in names))

    values = [column for column in columns if column not in key]
    statement = sql.SQL(_DIFFERING).format(
        before=before, after=after, key_then=row("t", key), key_now=row("n", key), then=row("t", values),
        now=row("n", values), limit=sql.Literal(NAMED))
    rows = fetch(connection, statement.as_string(connection), parameters)
    named = [_difference(key, values, *found[1:]) for found in rows]
    return replace(compared, differences=rows[0][0] if rows else 0, named=tuple(named))


def _difference(
    key: Sequence[str], values: Sequence[str], which: list[Any], then: list[Any] | None, now: list[Any] | None
) -> Difference:
    text = ", ".join(f"{name} {value}" for name, value in zip(key, which, strict=True) if value is not None)
    if then is None or now is None:
        return Difference(text, "new" if then is None else "gone")
    return Difference(text, "changed", {
        name: (a or "", b or "") for name, a, b in zip(values, then, now, strict=True) if a != b})


# Publishing and recording ----------------------------------------------------------------------------------


def _require_raw_of_now(connection: psycopg.Connection, environment: StageEnvironment, then: _Then) -> None:
    manifest = environment.declarations.effective(then.pipeline, then.tenant_id)
    now = fetch(connection, _CURRENT, (then.tenant_id, [source.dataset for source in manifest.spec.sources]))
    inputs = then.normalized["inputs"]
    known = max((len(batch) for batch in inputs), default=0)  # evidence from before deliveries had an order lacks it
    if sorted(list(batch[:known]) for batch in now) != sorted(inputs):
        raise BareCountError(
            ErrorCode.USAGE, "the raw batches of then are not those of now: publishing them would turn numbers back",
            hint=f"`barecount run {then.pipeline} --tenant {then.tenant_id}` publishes from the raw batches of now")


def _publish(
    environment: StageEnvironment, then: _Then, progress: Progress
) -> dict[str, dict[str, Any]]:
    """The lifecycle's stages after ingestion, with everything as declared now."""
    manifest = environment.declarations.effective(then.pipeline, then.tenant_id)
    runner = manifest.spec.runner
    placement = Placement(runner.runner_class, runner.size, runner.network_profile)
    stages = [Stage.NORMALIZATION, Stage.KPI_BUILD, Stage.PUBLISH]
    if manifest.spec.transforms.calendar:
        stages.insert(0, Stage.CALENDAR)
    with environment.run_lock(then.tenant_id, then.pipeline):
        for stage in stages:
            receipt = execute(StageSpec(stage, then.tenant_id, then.pipeline, placement), progress, environment)
    return {o.name: {"version": o.facts["version"],
                     "state": o.facts["state"] if receipt.changed else "unchanged"} for o in receipt.outputs}


def _record(environment: StageEnvironment, result: Recomputation, decided_by: str) -> int:
    with environment.database.transaction() as connection:
        head = ledger.newest(connection, result.tenant_id)
        token = run_token(replay=result.replay_of, versions=result.versions, after=head)
        payload = {
            "replay_of": result.replay_of, "versions": result.versions, "identical": result.identical,
            "by": decided_by, "published": result.published, "code_version": environment.code_version,
            "outputs": {o.name: {"expected": o.expected, "found": o.found, "differences": o.differences}
                        for o in result.outputs},
        }
        seq = ledger.append(
            connection, ledger.Entry(result.tenant_id, "run.replayed", result.pipeline, token, payload))
        fetch(connection, _RECORD, (
            result.tenant_id, result.pipeline, result.replay_of, token, result.versions, result.identical,
            as_json([asdict(output) for output in result.outputs]),
            None if result.published is None else as_json(result.published), decided_by, seq))
        events.append(connection, events.Event(
            result.tenant_id, "run.replayed", result.pipeline, token, payload, result.pipeline, seq, token))
    return seq


def _clear(connection: psycopg.Connection) -> None:
    for (name,) in fetch(connection, "select tablename::text from pg_tables where schemaname = 'scratch'"):
        fetch(connection, sql.SQL("drop table {} cascade").format(sql.Identifier(SCRATCH, name)).as_string(connection))


_FIND = """
select tenant_id, pipeline, stage, run_token, run_id, receipt, evidence_seq
from platform.stage_run
where ($2::text is null or tenant_id = $2) and (
    starts_with(run_token, $1)
    or (stage = 'normalization' and $1 ~ '^[0-9]{1,11}$' and run_id::text = $1))
order by length(run_token), evidence_seq
limit 5
"""
_LAST_PUBLISHED = """
select run_token from platform.stage_run
where tenant_id = $1 and pipeline = $2 and stage = 'publish'
order by evidence_seq desc limit 1
"""
_STAGE_RUN = """
select run_token, run_id, receipt, evidence_seq from platform.stage_run
where tenant_id = $1 and pipeline = $2 and stage = $3 and run_token = $4
"""
_BUILD_OF = """
select run_token from platform.stage_run
where tenant_id = $1 and pipeline = $2 and stage = 'kpi_build' and receipt -> 'basis' ->> 'gdp_token' = $3
order by evidence_seq desc limit 1
"""
_BATCHES = """
create table scratch.raw_batch as
select distinct on (i) b.* from platform.raw_batch b
join jsonb_array_elements($2::text::jsonb) i on b.dataset = i ->> 0
    and coalesce(b.partition_date::text, '') = i ->> 2 and b.content_sha256 = i ->> 3
where b.tenant_id = $1 and b.evidence_seq < $3::bigint
order by i, b.evidence_seq desc
"""
_ORDER_OF_THEN = """
update scratch.raw_batch b set delivery_order = i ->> 4
from jsonb_array_elements($1::text::jsonb) i
where b.dataset = i ->> 0 and coalesce(b.partition_date::text, '') = i ->> 2 and b.content_sha256 = i ->> 3
    and i ->> 4 is not null
"""
_CURRENT = """
select dataset, source_id, coalesce(partition_date::text, ''), content_sha256, lpad((row_number() over (
    partition by dataset, partition_date order by delivery_order collate "C"))::text, 12, '0')
from platform.counted_batch
where tenant_id = $1 and dataset = any($2) and is_current
"""
_KEPT = """
select version from platform.publication where tenant_id = $1 and name = $2 and content_sha256 = $3
order by version limit 1
"""
_COLUMNS = """
select attname::text from pg_attribute where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
"""
_DIFFERING = """
with t as {before}, n as {after},
paired as (
    select coalesce({key_then}, {key_now}) as key, case when t.tenant_id is not null then {then} end as was,
        case when n.tenant_id is not null then {now} end as becomes
    from t full join n on {key_then} = {key_now}
)
select count(*) over (), key, was, becomes from paired where was is distinct from becomes order by key limit {limit}
"""
_RECORD = """
insert into platform.replay (
    tenant_id, pipeline, replay_of, run_token, versions, identical, outputs, published, replayed_by, evidence_seq)
values ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8::text::jsonb, $9, $10)
"""
