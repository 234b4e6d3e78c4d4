"""`barecount raw`: the raw store and the tables loaded from it; retention and legal holds."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from barecount_assets.cli import output
from barecount_assets.cli.quarantine import By
from barecount_assets.cli.verbs import Json, Tenant, command, environment, person

app = typer.Typer(no_args_is_help=True, help="The raw store and the tables loaded from it.")
hold_app = typer.Typer(no_args_is_help=True, help="Legal holds: partitions that are kept whatever retention says.")
app.add_typer(hold_app, name="hold")

Dataset = Annotated[str | None, typer.Option("--dataset", help="Only this dataset, namespace.name.")]
Why = Annotated[str, typer.Option("--reason", help="Why; goes on record.")]


@command(app)
def rebuild(
    dataset: Annotated[str, typer.Argument(help="namespace.name")], tenant: Tenant = None, as_json: Json = False
) -> None:
    """Load a raw table again from the raw store, after checking every object's checksum."""
    from barecount_assets.stages.ingestion import rebuild as stage

    result = stage.rebuild(environment(), dataset, tenant)
    if as_json:
        output.print_json(result)
    else:
        typer.echo(f"{dataset}: {result['rows']} rows of {result['batches']} batches loaded again from the raw store")


@command(app)
def expire(
    tenant: Tenant = None, dataset: Dataset = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is due.")] = False,
    on: Annotated[dt.datetime | None, typer.Option("--on", formats=["%Y-%m-%d"], help="With --dry-run: what is due on "
                                                                                      "this day.")] = None,
    by: By = None, as_json: Json = False,
) -> None:
    """Delete raw partitions whose retention has passed, whole, with evidence that names what went."""
    from barecount_assets import retention

    if on is not None and not dry_run:
        raise typer.BadParameter("--on goes with --dry-run: only what is due today is deleted")
    now = on.replace(tzinfo=dt.UTC) if on else dt.datetime.now(dt.UTC)
    found = retention.expire(environment(), now, person(by), tenant, dataset, dry_run=dry_run)
    if as_json:
        output.print_json([{
            "tenant": item.partition.tenant_id, "dataset": item.partition.dataset, "day": item.partition.day,
            "since": item.partition.since, "kept_days": item.days, "hold": item.partition.hold,
            "batches": [batch.facts() for batch in item.partition.batches], "evidence": item.evidence_seq,
        } for item in found])
        return
    for item in found:
        partition = item.partition
        state = f"kept by hold {partition.hold}" if partition.hold else (
            "would be deleted" if dry_run else f"deleted, evidence {item.evidence_seq}")
        rows = sum(batch.rows for batch in partition.batches)
        typer.echo(f"{partition.tenant_id} {partition.dataset} {partition.day}: {len(partition.batches)} batches, "
                   f"{rows:,} rows, kept {item.days} days from {partition.since}: {state}")
    if not found:
        typer.echo("no raw partition is due")


@command(app)
def tier(
    tenant: Tenant = None, dataset: Dataset = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would move.")] = False, by: By = None,
    as_json: Json = False,
) -> None:
    """Let raw objects lie in the storage class that is declared for them now; their bytes stay as they are."""
    from barecount_assets import retention

    found = retention.tier(environment(), person(by), tenant, dataset, dry_run=dry_run)
    if as_json:
        output.print_json([{"tenant": item.tenant_id, "dataset": item.dataset, "raw_class": item.raw_class,
                            "objects": len(item.keys), "evidence": item.evidence_seq} for item in found])
        return
    for item in found:
        state = "would move" if dry_run else f"moved, evidence {item.evidence_seq}"
        typer.echo(f"{item.tenant_id} {item.dataset}: {len(item.keys)} objects {state} to class {item.raw_class}")
    if not found:
        typer.echo("every object lies in its class")


@command(app)
def forget(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant id.")], reason: Why, by: By = None,
    as_json: Json = False,
) -> None:
    """Let expired batches count no longer: the next run computes GDPs from what is left, and numbers shrink."""
    from barecount_assets import retention

    count = retention.forget(environment(), pipeline, tenant, person(by), reason)
    output.print_json({"batches": count}) if as_json else typer.echo(f"{count} expired batches count no longer")


@command(app)
def withdraw(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    source: Annotated[str, typer.Argument(help="Name of the source in its manifest.")],
    unit: Annotated[str, typer.Argument(help="File, as the source's folder has it, or slice.")],
    reason: Why, tenant: Tenant = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let a withdrawn unit count again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would leave.")] = False, by: By = None,
    as_json: Json = False,
) -> None:
    """Let what a file or slice says count no more: the next run takes it out of every number."""
    from barecount_assets import withdrawal
    from barecount_assets.cli.runs import tenants_of

    opened = environment()
    tenants = tenants_of(opened, pipeline, tenant)
    if len(tenants) > 1:
        raise typer.BadParameter(f"{pipeline} serves {', '.join(tenants)}: say --tenant")
    done = withdrawal.withdraw(opened, pipeline, source, unit, tenants[0], person(by), reason, undo=undo,
                               dry_run=dry_run)
    if as_json:
        output.print_json({
            "tenant": done.tenant_id, "dataset": done.dataset, "unit": done.unit, "undo": undo, "dry_run": dry_run,
            "content_sha256": done.content_sha256, "rows": done.rows, "same_content": list(done.same_content),
            "evidence": done.evidence_seq})
        return
    word = ("restored" if undo else "withdrawn") if not dry_run else f"would be {'restored' if undo else 'withdrawn'}"
    recorded = f", evidence {done.evidence_seq}" if done.evidence_seq else ""
    typer.echo(f"{done.tenant_id} {done.dataset} {done.unit}: {word}{recorded}")
    if done.same_content:
        typer.echo(f"no number changes by it: {', '.join(done.same_content)} says the same and counts")
    else:
        direction = "come back into" if undo else "leave"
        typer.echo(f"{done.rows:,} rows {direction} GDPs and KPIs with the next run: barecount run {pipeline} "
                   f"--tenant {done.tenant_id}")


@command(hold_app)
def add(
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant id.")], reason: Why, dataset: Dataset = None,
    from_: Annotated[dt.datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")] = None,
    to: Annotated[dt.datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day, included.")] = None,
    by: By = None, as_json: Json = False,
) -> None:
    """Keep a tenant's raw partitions, or some of them, until the hold is released."""
    from barecount_assets import retention

    number = retention.add_hold(environment(), tenant, dataset, from_ and from_.date(), to and to.date(), reason,
                                person(by))
    output.print_json({"hold": number}) if as_json else typer.echo(f"hold {number} is in force")


@command(hold_app)
def release(
    number: Annotated[int, typer.Argument(help="Number of the hold.")], reason: Why, by: By = None,
) -> None:
    """End a hold; retention counts again."""
    from barecount_assets import retention

    retention.release_hold(environment(), number, reason, person(by))
    typer.echo(f"hold {number} is released")


@command(hold_app, "list")
def listed(
    tenant: Tenant = None,
    everything: Annotated[bool, typer.Option("--all", help="Released ones too.")] = False, as_json: Json = False,
) -> None:
    """Holds: what they cover, who put them there and why."""
    from resources.storage import retention

    with environment().database.connect(autocommit=True) as connection:
        found = retention.holds(connection, tenant, released=everything)
    if as_json:
        output.print_json([hold.__dict__ for hold in found])
        return
    output.console().print(output.table(
        None, ("hold", "tenant", "dataset", "days", "since", "by", "reason", "released"),
        [(hold.hold_id, hold.tenant_id, hold.dataset or "all", f"{hold.first_day or ''} to {hold.last_day or ''}",
          f"{hold.added_at:%Y-%m-%d}", hold.added_by, hold.reason,
          f"{hold.released_at:%Y-%m-%d} {hold.release_reason}" if hold.released_at else "-") for hold in found],
        right=(0,)))
