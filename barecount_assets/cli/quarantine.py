"""`barecount quarantine`: records that were refused, kept whole: look, export, fix, replay, give up."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment, person

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment
    from barecount_assets.stages.ingestion.replay import BatchReplay
    from resources.runners.facade import Progress
    from resources.storage.quarantine_store import Selection

app = typer.Typer(no_args_is_help=True, help="Records that were refused, kept whole.")

Pipeline = Annotated[str | None, typer.Option("--pipeline", help="Only this pipeline's.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Only this dataset's, namespace.name.")]
Run = Annotated[str | None, typer.Option("--run", help="Only what this run refused: its token or number.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only this reason: wrong_type, rule_broken, ...")]
FieldName = Annotated[str | None, typer.Option("--field", help="Only with this field at fault.")]
Ids = Annotated[list[int] | None, typer.Option("--id", help="Only this record; repeatable.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides (default: the user of this session).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would become of the records.")]
_SHOWN = ("tenant_id", "pipeline", "dataset", "stage", "source_id", "partition_date", "row_number", "run_token",
          "quarantined_at", "field", "reason", "message", "state")
_OUTCOME = ("decided_by", "decision_reason", "decided_at", "decision_token", "into_batch", "into_row", "into_run",
            "again_id")


@command(app, "list")
def listed(
    pipeline: Pipeline = None, tenant: Tenant = None, dataset: Dataset = None, run: Run = None, reason: Reason = None,
    field: FieldName = None,
    state: Annotated[str, typer.Option("--state", help="open, replayed, refused_again, discarded, superseded, expired, "
                                                       "or all.")] = "open",
    limit: Annotated[int, typer.Option("--limit", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Refused records: how many of which kind, and the newest of them."""
    from resources.storage import quarantine_store
    from resources.storage.quarantine_store import Selection

    selection = Selection(tenant, pipeline, dataset, run, reason, field, state=None if state == "all" else state)
    with environment().database.connect(autocommit=True) as connection:
        rows = quarantine_store.listed(connection, selection, limit)
        counts = quarantine_store.counts(connection, selection)
    if as_json:
        output.print_json(rows)
        return
    console = output.console()
    console.print(output.table(
        None, ("id", "tenant", "source", "row", "state", "reason", "message"),
        [(r["quarantine_id"], r["tenant_id"], r["source_id"], r["row_number"], r["state"], r["reason"], r["message"])
         for r in rows], right=(0, 3)))
    for r in counts:
        console.print(f"{r['records']:>9,}  {r['tenant_id']} {r['dataset']} {r['stage']}: {r['reason']}, {r['state']}",
                      soft_wrap=True)


@command(app)
def show(number: Annotated[int, typer.Argument(help="Number of the record.")], as_json: Json = False) -> None:
    """One record, whole: as received, why it was refused, what became of it."""
    from rich.markup import escape

    from resources.storage import quarantine_store
    from resources.storage.quarantine_store import Selection

    with environment().database.connect(autocommit=True) as connection:
        rows = quarantine_store.listed(connection, Selection(ids=[number]), 1)
    if not rows:
        raise typer.BadParameter(f"there is no refused record {number}")
    if as_json:
        output.print_json(rows[0])
        return
    console = output.console()
    for name in _SHOWN + tuple(name for name in _OUTCOME if rows[0][name] is not None):
        console.print(f"[dim]{name.replace('_', ' '):<16}[/] {escape(str(rows[0][name]))}", soft_wrap=True)
    console.print("[dim]record[/]")
    console.print(escape(rows[0]["payload"] or "(deleted under retention)"), soft_wrap=True)


@command(app)
def export(
    path: Annotated[Path, typer.Argument(help="File to write: .csv, .jsonl or .parquet.")],
    pipeline: Pipeline = None, tenant: Tenant = None, dataset: Dataset = None, run: Run = None, reason: Reason = None,
    field: FieldName = None, number: Ids = None,
    state: Annotated[str, typer.Option("--state", help="As for list.")] = "open",
    by: By = None, as_json: Json = False,
) -> None:
    """Write refused records to a file, whole, to be looked at or edited for `replay --from`."""
    from barecount_assets import exports
    from resources.storage.quarantine_store import Selection

    selection = Selection(tenant, pipeline, dataset, run, reason, field, state=None if state == "all" else state,
                          ids=number)
    rows = exports.export_records(environment(), selection, path, requested_by=person(by), now=_now())
    output.print_json({"path": str(path), "records": rows}) if as_json else typer.echo(f"{rows:,} records in {path}")


@command(app)
def replay(
    pipeline: Pipeline = None, tenant: Tenant = None, dataset: Dataset = None, run: Run = None, reason: Reason = None,
    field: FieldName = None, number: Ids = None,
    fix: Annotated[list[str] | None, typer.Option("--fix", help="FIELD=VALUE, set in each; repeatable.")] = None,
    edits: Annotated[Path | None, typer.Option("--from", help="An edited export; only its records.")] = None,
    why: Annotated[str | None, typer.Option("--why", help="What was fixed; goes on record.")] = None,
    by: By = None, dry_run: DryRun = False, as_json: Json = False,
) -> None:
    """Send refused records through ingestion again, after a fix of the contract, the code, or the records."""
    from barecount_assets import admission
    from barecount_assets.stages.ingestion import replay as ingestion
    from resources.storage import quarantine_store
    from resources.storage.quarantine_store import Selection

    opened = environment()
    selection = Selection(tenant, pipeline, dataset, run, reason, field, state="open", ids=number)
    request = ingestion.ReplayRequest(selection, person(by), why, _values(fix or []), edits, dry_run)
    if not dry_run:
        with opened.database.connect(autocommit=True) as connection:
            admission.admit_replay_of_records(
                opened, quarantine_store.groups(connection, selection), request, now=_now())
    with progress_shown(quiet=as_json) as progress:
        results = ingestion.replay(opened, request, progress)
        renormalized = [] if dry_run or request.values or edits else _renormalize(opened, selection, progress)
    if as_json:
        output.print_json({"ingestion": [_replayed_json(result) for result in results], "normalization": renormalized})
        return
    _show_replay(results, renormalized, dry_run=dry_run)


@command(app)
def discard(
    why: Annotated[str, typer.Option("--why", help="Why they are given up; goes on record.")],
    pipeline: Pipeline = None, tenant: Tenant = None, dataset: Dataset = None, run: Run = None, reason: Reason = None,
    field: FieldName = None, number: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="Every open record, when nothing narrows it.")] = False,
    by: By = None, dry_run: DryRun = False, as_json: Json = False,
) -> None:
    """Give refused records up. They stay on record, whole, and are not replayed any more."""
    from barecount_assets.stages import quarantine_life
    from resources.storage.quarantine_store import Selection

    if not everything and not any((pipeline, tenant, dataset, run, reason, field, number)):
        raise typer.BadParameter("say which records, or --all")
    selection = Selection(tenant, pipeline, dataset, run, reason, field, state="open", ids=number)
    groups = quarantine_life.discard(environment(), selection, person(by), why, dry_run=dry_run)
    if as_json:
        output.print_json([{"tenant": g.tenant_id, "dataset": g.dataset, "source_id": g.source_id, "stage": g.stage,
                            "records": g.records} for g in groups])
        return
    for group in groups:
        typer.echo(f"{group.tenant_id} {group.dataset} {group.source_id}: {group.records:,} records "
                   f"{'would be ' if dry_run else ''}discarded")
    if not groups:
        typer.echo("no open record matches")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@contextmanager
def progress_shown(*, quiet: bool) -> Iterator[Progress]:
    """Live progress on a terminal, nothing elsewhere."""
    from barecount_assets.cli.runs import StageDisplay

    with StageDisplay(quiet=quiet) as display:
        yield display.progress


def _values(pairs: list[str]) -> Mapping[str, str]:
    values = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{pair!r} is not FIELD=VALUE")
        values[name] = value
    return values


def _renormalize(opened: StageEnvironment, selection: Selection, progress: Progress) -> list[dict[str, Any]]:
    """Judge what normalization refused by the rules of now: its rules are the models', which it runs again."""
    from dataclasses import replace as changed

    from barecount_assets.stages import execute
    from resources.runners.stage import Placement, Stage, StageSpec
    from resources.storage import quarantine_store

    selection = changed(selection, stage=Stage.NORMALIZATION.value)

    def count() -> dict[tuple[str, str], int]:
        with opened.database.connect(autocommit=True) as connection:
            found: dict[tuple[str, str], int] = {}
            for group in quarantine_store.groups(connection, selection):
                key = (group.tenant_id, group.pipeline)
                found[key] = found.get(key, 0) + group.records
            return found

    before = count()
    for tenant_id, pipeline in before:
        runner = opened.declarations.effective(pipeline, tenant_id).spec.runner
        execute(StageSpec(Stage.NORMALIZATION, tenant_id, pipeline,
                          Placement(runner.runner_class, runner.size, runner.network_profile)), progress, opened)
    after = count() if before else {}
    return [{"tenant": tenant_id, "pipeline": pipeline, "selected": records,
             "still_refused": after.get((tenant_id, pipeline), 0),
             "settled": records - after.get((tenant_id, pipeline), 0)}
            for (tenant_id, pipeline), records in before.items()]


def _replayed_json(result: BatchReplay) -> dict[str, Any]:
    return {
        "tenant": result.group.tenant_id, "pipeline": result.group.pipeline, "dataset": result.group.dataset,
        "source_id": result.group.source_id, "replayed": result.replayed, "refused_again": result.refused_again,
        "unchanged": result.unchanged, "into": result.into, "run_token": result.run_token,
        "reasons": [{"reason": r, "message": m, "records": n} for r, m, n in result.reasons],
        "rules": None if result.rules is None else {"hold": result.rules.passed, "summary": result.rules.summary},
    }


def _show_replay(results: list[BatchReplay], renormalized: list[dict[str, Any]], *, dry_run: bool) -> None:
    from rich.markup import escape

    console = output.console()
    would = "would be " if dry_run else ""
    for result in results:
        into = f" into {result.into}, run token {result.run_token[:16]}" if result.run_token else ""
        console.print(
            f"{result.group.tenant_id} {result.group.dataset} {result.group.source_id}: {result.replayed:,} {would}"
            f"replayed, {result.refused_again:,} {would}refused again, {result.unchanged:,} as before, left open{into}",
            soft_wrap=True, markup=False)
        for reason, message, records in result.reasons:
            console.print(f"  [dim]{records:,} x[/] {reason}: {escape(message)}", soft_wrap=True)
        if result.rules is not None and not result.rules.passed:
            console.print(f"  [yellow]rules about all rows together[/] {escape(result.rules.summary)}", soft_wrap=True)
    for row in renormalized:
        console.print(f"{row['tenant']} {row['pipeline']} normalization: {row['settled']:,} settled by the rules of "
                      f"now, {row['still_refused']:,} still refused", soft_wrap=True)
    if not results and not renormalized:
        console.print("no open record matches")
    for pipeline, tenant_id in dict.fromkeys((r.group.pipeline, r.group.tenant_id) for r in results if r.into):
        console.print(f"bring the numbers up to date: barecount run {pipeline} --tenant {tenant_id}", style="dim")
