"""`barecount lineage`: where columns come from, which runs made them, and the events that tell others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Tenant, command, environment, settings

if TYPE_CHECKING:
    from rich.tree import Tree

    from barecount_assets.stages.environment import StageEnvironment
    from resources.governance.lineage_graph import Direction, Node, Walk
    from resources.governance.lineage_store import Edge

app = typer.Typer(no_args_is_help=True, help="Where columns come from, and the OpenLineage events of runs.")

Asset = Annotated[str, typer.Argument(help="LAYER.NAME or LAYER.NAME.COLUMN, e.g. published.revenue.value.")]
AsOf = Annotated[str | None, typer.Option("--as-of", help="As the graph was after this run: run id or run token.")]
Form = Annotated[Literal["tree", "dot", "json"], typer.Option("--format", help="How to print it.")]
Direct = Annotated[bool, typer.Option("--direct", help="Only what values are computed from, not what decides.")]
Declared = Annotated[bool, typer.Option("--declared", help="What is declared now, whether it has run or not.")]


@command(app)
def upstream(
    asset: Asset, tenant: Tenant = None, as_of: AsOf = None, form: Form = "tree", direct: Direct = False,
    declared: Declared = False, as_json: Json = False,
) -> None:
    """What an asset or column comes from, to the fields of the sources."""
    _show(asset, "upstream", tenant, as_of, "json" if as_json else form, direct=direct, declared=declared)


@command(app)
def downstream(
    asset: Asset, tenant: Tenant = None, as_of: AsOf = None, form: Form = "tree", direct: Direct = False,
    declared: Declared = False, as_json: Json = False,
) -> None:
    """What comes from an asset or column, to what is published."""
    _show(asset, "downstream", tenant, as_of, "json" if as_json else form, direct=direct, declared=declared)


@command(app)
def runs(
    tenant: Tenant = None, pipeline: Annotated[str | None, typer.Option("--pipeline")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 20, as_json: Json = False,
) -> None:
    """Runs, the newest first: their job, state, run id and run token."""
    from resources.runtime.database import fetch_dicts

    with environment().database.connect(autocommit=True) as connection:
        rows = fetch_dicts(connection, _RUNS, (tenant, pipeline, limit))
    if as_json:
        output.print_json(rows)
        return
    output.console().print(output.table(
        None, ("tenant", "job", "attempt", "state", "evidence", "run token", "run id", "started"),
        [(r["tenant_id"], r["job"], r["attempt"], r["state"], r["evidence_seq"] or "-", r["run_token"][:12], r["run"],
          f"{r['started_at']:%Y-%m-%d %H:%M:%S}") for r in rows],
        right=(2, 4)))


@command(app)
def obligations(
    tenant: Tenant = None, pipeline: Annotated[str | None, typer.Option("--pipeline")] = None, as_json: Json = False,
) -> None:
    """How obligations stood when they were last judged: pass, fail, warn or skip, and what was seen."""
    from resources.governance import obligation_store

    with environment().database.connect(autocommit=True) as connection:
        rows = obligation_store.newest(connection, tenant, pipeline)
    if as_json:
        output.print_json(rows)
        return
    output.console().print(output.table(
        None, ("tenant", "pipeline", "obligation", "status", "evidence", "what was seen"),
        [(r["tenant_id"], r["pipeline"], r["obligation"], r["status"], r["evidence_seq"], r["summary"]) for r in rows],
        right=(4,)))


@command(app)
def exports(
    tenant: Tenant = None, limit: Annotated[int, typer.Option("--limit", min=1)] = 20, as_json: Json = False,
) -> None:
    """What left the platform as a file, the newest first: which columns, who took it, which approval let it go."""
    from resources.governance import export_log

    with environment().database.connect(autocommit=True) as connection:
        rows = export_log.listed(connection, tenant, limit)
    if as_json:
        output.print_json(rows)
        return
    output.console().print(output.table(
        None, ("tenant", "asset", "records", "columns", "file", "by", "approval", "evidence", "at (UTC)"),
        [(r["tenant_id"], r["asset"], r["records"], ", ".join(r["columns"]) or "-", r["file_name"], r["exported_by"],
          r["approval_id"] or "-", r["evidence_seq"], f"{r['exported_at']:%Y-%m-%d %H:%M}") for r in rows],
        right=(2, 6, 7)))


@command(app)
def relay(
    to: Annotated[str | None, typer.Option("--to", help="file, file:PATH or a URL, else BARECOUNT_LINEAGE.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many events are to be sent.")] = False,
    as_json: Json = False,
) -> None:
    """Send the OpenLineage events that have not been sent yet."""
    from resources.governance import lineage_relay
    from resources.runtime.database import Database
    from resources.runtime.errors import BareCountError, ErrorCode

    found = settings()
    transport = lineage_relay.transport_of(found, to)
    if transport is None:
        raise BareCountError(
            ErrorCode.USAGE, f"no transport is named: neither --to nor {lineage_relay.VARIABLE} is set",
            hint=f"allowed: {lineage_relay.ALLOWED}; events wait in the outbox until then")
    database = Database.open(found)
    if dry_run:
        with database.connect(autocommit=True) as connection:
            done = lineage_relay.Relayed(0, 0, lineage_relay.pending(connection, transport))
    else:
        done = lineage_relay.relay(database, transport)
    if as_json:
        output.print_json({"transport": transport.name, **vars(done)})
    else:
        typer.echo(f"{done.sent} events sent to {transport.name}, {done.refused} refused, {done.pending} to be sent")
    if done.refused:
        raise typer.Exit(1)


@command(app, "compile")
def compile_(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: Json = False,
) -> None:
    """Write contracts/lineage.json: the column lineage of what is declared, for reviews and a quick check."""
    from barecount_assets import project_lineage
    from resources.governance import column_lineage, declarations, lineage_lock

    found = settings()
    declared = declarations.load(found.project_dir)
    path = found.project_dir / lineage_lock.PLACE
    project = project_lineage.of_project(found, declared)
    before = lineage_lock.read(path, column_lineage.fingerprint(declared))
    changed = lineage_lock.changed_columns(path, project)
    if before != project and not dry_run:
        lineage_lock.write(path, project)
    if as_json:
        output.print_json({"file": lineage_lock.PLACE, "is_current": before == project, "changed": changed,
                           "unresolved": [str(problem) for problem in project.unresolved]})
    else:
        for name in changed:
            typer.echo(f"  {name} comes from elsewhere now")
        state = "is current" if before == project else "would be written" if dry_run else "written"
        typer.echo(f"{lineage_lock.PLACE} {state}: {len(project.assets)} assets, "
                   f"{sum(len(a.columns) for a in project.assets.values())} columns")
        for problem in project.unresolved:
            typer.echo(f"unresolved {problem}")
    if project.unresolved:
        raise typer.Exit(1)


def _show(
    asset: str, direction: Direction, tenant: str | None, as_of: str | None, form: str, *, direct: bool, declared: bool
) -> None:
    from resources.governance import lineage_graph

    edges = _declared_edges() if declared else _recorded_edges(tenant, as_of)
    walk = lineage_graph.walk(edges, lineage_graph.node_of(edges, asset), direction, direct_only=direct)
    if form == "json":
        output.print_json(walk.to_json())
    elif form == "dot":
        typer.echo(walk.to_dot())
    else:
        output.console().print(_tree(walk))


def _declared_edges() -> list[Edge]:
    from barecount_assets import project_lineage
    from resources.governance import declarations, lineage_graph

    found = settings()
    return lineage_graph.edges_of(project_lineage.of_project(found, declarations.load(found.project_dir)))


def _recorded_edges(tenant: str | None, as_of: str | None) -> list[Edge]:
    from resources.governance import lineage_store

    opened = environment()
    tenant = tenant or _only_tenant(opened)
    opened.declarations.tenant(tenant)
    with opened.database.connect(autocommit=True) as connection:
        seq = None if as_of is None else lineage_store.evidence_of_run(connection, tenant, as_of)
        return lineage_store.edges(connection, tenant, seq)


def _only_tenant(opened: StageEnvironment) -> str:
    tenants = list(opened.declarations.tenants)
    if len(tenants) != 1:
        raise typer.BadParameter(f"every tenant has a graph of its own: name one with --tenant ({', '.join(tenants)}), "
                                 "or give --declared")
    return tenants[0]


def _tree(walk: Walk) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    shown: set[Node] = set()

    def add(parent: Tree, node: Node) -> None:
        shown.add(node)
        for following, link in walk.beyond(node):
            how = f"  [dim]{escape(', '.join(link.how)).lower()}[/]" if link.how else ""
            repeated = following in shown and walk.beyond(following)
            branch = parent.add(f"{escape(following.name)}{how}{'  [dim](see above)[/]' if repeated else ''}")
            if not repeated:
                add(branch, following)

    root = Tree(f"[bold]{escape(walk.start.name)}[/]")
    add(root, walk.start)
    return root


_RUNS = """
select tenant_id, run::text as run, job, run_token, attempt, state, code_version, evidence_seq, started_at, ended_at
from platform.lineage_run
where ($1::text is null or tenant_id = $1) and ($2::text is null or starts_with(job, $2 || '.'))
order by started_at desc, job
limit $3::bigint
"""
