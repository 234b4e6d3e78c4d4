"""`barecount evidence`: verify, prove, export, and what signs and anchors the ledger."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, Who, command, day, person
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    import psycopg

    from resources.runtime.database import Database
    from resources.trust.checkpoints import Witness
    from resources.trust.signing import KeyStore
    from resources.trust.verify import Checkpoint, Key

ANCHOR_VARIABLE = "BARECOUNT_EVIDENCE_ANCHOR"

Tenant = Annotated[str | None, typer.Option("--tenant", help="Tenant id (may be left out when there is only one).")]
EachTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant (default: all).")]
Out = Annotated[Path | None, typer.Option("--out", help="Write it into this file.")]
AnchorAt = Annotated[
    str | None, typer.Option("--anchor", envvar=ANCHOR_VARIABLE, help="Folder or s3://bucket/prefix of the anchor.")]
Files = Annotated[list[Path] | None, typer.Option("--checkpoint", help="A checkpoint that was kept, in a file.")]


app = typer.Typer(no_args_is_help=True, help="The ledger of what happened.")


@command(app)
def verify(
    tenant: EachTenant = None,
    checkpoint: Files = None,
    anchor: AnchorAt = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="A public key to trust, its text or a file.")] = None,
    as_json: Json = False,
) -> None:
    """Recompute every chain and tree; names what was edited, deleted, inserted, moved, cut off or rewritten."""
    from resources.trust import anchors, checkpoints, ledger

    database, store = _open()
    pinned = [_key(text) for text in key or ()]
    outside = [anchors.read_file(path) for path in checkpoint or ()]
    outside += list(anchors.open_anchor(anchor).read(tenant)) if anchor else []
    with database.connect(autocommit=True) as connection:
        names = [tenant] if tenant else sorted({*ledger.tenants_with_evidence(connection), *_tenants_of(outside)})
        results = [
            checkpoints.verify(connection, name, [*outside, *_remembered(store, name)], pinned)
            for name in names
        ]
    if as_json:
        output.print_json([{**asdict(result), "intact": result.intact} for result in results])
    else:
        for result in results:
            typer.echo(f"{result.tenant_id}: {result.entries} entries, "
                       + (f"intact, head {result.head[:16]}, root {result.root[:16]}, {result.checkpoints} checkpoints "
                          "hold" if result.intact else f"{len(result.findings)} findings"))
            for finding in result.findings:
                typer.echo(f"  {finding.problem}: {finding.message}")
    if not all(result.intact for result in results):
        raise typer.Exit(1)


@command(app)
def show(
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant id.")],
    kind: Annotated[str | None, typer.Option("--kind", help="Only entries of this kind, e.g. kpi.published.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Newest entries to show.")] = 20,
    as_json: Json = False,
) -> None:
    """The newest entries of a tenant's ledger."""
    _search(tenant=tenant, kind=kind, limit=limit, as_json=as_json)


@command(app)
def search(
    text: Annotated[str | None, typer.Argument(help="Text that the entry contains.")] = None,
    tenant: EachTenant = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Kind or section: kpi.published, or kpi.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="Text that the subject contains.")] = None,
    run_token: Annotated[str | None, typer.Option("--run-token", help="Only of this piece of work.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="First day (UTC), YYYY-MM-DD.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Last day, included.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Newest entries to show.")] = 50,
    as_json: Json = False,
) -> None:
    """Find entries, newest first."""
    _search(text=text, tenant=tenant, kind=kind, subject=subject, run_token=run_token, start=day(from_), end=day(to),
            limit=limit, as_json=as_json)


@command(app)
def checkpoint(tenant: EachTenant = None, anchor: AnchorAt = None, out: Out = None, as_json: Json = False) -> None:
    """Sign the ledger as it is now, and put the checkpoint at the anchor."""
    from resources.trust import anchors, checkpoints

    database, store = _open()
    names = [tenant] if tenant else _tenants(database)
    if out is not None and len(names) != 1:
        raise BareCountError(ErrorCode.USAGE, "a file holds the checkpoint of one tenant",
                             hint=f"name one with --tenant: {', '.join(names)}")
    place = anchors.open_anchor(anchor) if anchor else None
    documents = []
    for name in names:
        signed = checkpoints.create(database, store, name)
        placed = anchors.anchor(database, name, place) if place else []
        documents.append({
            "tenant": name, "size": signed.checkpoint.size, "root_hash": signed.checkpoint.root.hex(),
            "key": signed.key.text, "created": signed.created, "checkpoint": signed.checkpoint.raw.decode(),
            "anchored": [asdict(item) for item in placed]})
        if out is not None:
            _write(out, signed.checkpoint.raw)
        if not as_json:
            typer.echo(f"{name}: {signed.checkpoint.size} entries "
                       f"{'signed' if signed.created else 'were signed before'} by key {signed.key.id}, "
                       f"root {signed.checkpoint.root.hex()[:16]}"
                       + (f", {len(placed)} checkpoints put at {place.location}" if place and placed else ""))
    if as_json:
        output.print_json(documents)


@command(app)
def prove(
    entry: Annotated[int, typer.Argument(min=1, help="Number of the entry.")],
    tenant: Tenant = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write it as a .tlog-proof, which verify.py reads.")] = None,
    as_json: Json = False,
) -> None:
    """The inclusion proof of an entry in the newest checkpoint, verified while it is shown."""
    from resources.trust import checkpoints

    database, _ = _open()
    with database.connect(autocommit=True) as connection:
        proof = checkpoints.prove(connection, tenant or _only_tenant(database), entry)
    if out is not None:
        _write(out.with_suffix(".tlog-proof"), proof.text())
    if as_json:
        output.print_json(proof.to_json())
    else:
        document = json.loads(proof.body)
        typer.echo(f"entry       {proof.seq} of {proof.tenant_id}: {document['kind']} {document['subject']}")
        typer.echo(f"leaf        {proof.to_json()['leaf_hash']}")
        for position, item in enumerate(proof.hashes):
            typer.echo(f"{'proof       ' if position == 0 else '            '}{item.hex()}")
        typer.echo(f"root        {proof.checkpoint.root.hex()}  of {proof.checkpoint.size} entries")
        typer.echo(f"signed by   {proof.key.text}")
        typer.echo("holds: recomputed from the entry to the signed root" if proof.holds else
                   "DOES NOT HOLD: the entry is not the one that was signed")
    if not proof.holds:
        raise typer.Exit(1)


@command(app)
def consistency(
    first: Annotated[str, typer.Argument(metavar="A", help="Number of entries of a checkpoint, or its file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same of another one.")],
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """The proof that of two checkpoints the later one only added to the earlier one."""
    from resources.trust import checkpoints

    database, _ = _open()
    name = tenant or _only_tenant(database)
    with database.connect(autocommit=True) as connection:
        found = [_checkpoint(connection, name, text) for text in (first, second)]
        proof = checkpoints.consistency(connection, name, *found)
    if as_json:
        output.print_json(proof.to_json())
    else:
        for position, item in enumerate(proof.hashes):
            typer.echo(f"{'proof  ' if position == 0 else '       '}{item.hex()}")
        typer.echo(f"holds: the {proof.second.size} entries begin with the {proof.first.size} that were signed before"
                   if proof.holds else
                   f"DOES NOT HOLD: the checkpoints of {proof.first.size} and {proof.second.size} entries are not of "
                   "one history (a fork, or a ledger that was rewritten)")
    if not proof.holds:
        raise typer.Exit(1)


@command(app)
def export(
    tenant: Tenant = None,
    from_: Annotated[str | None, typer.Option("--from", help="First day (UTC), YYYY-MM-DD.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Last day, included.")] = None,
    sections: Annotated[
        str | None, typer.Option("--sections", help="First words of kinds, with commas: batch,gate,kpi.")] = None,
    checkpoint: Files = None,
    out: Out = None,
    who: Who = None,
    as_json: Json = False,
) -> None:
    """Write evidence into one file that an outsider verifies with the verify.py inside it."""
    from barecount_assets import exports
    from barecount_assets.stages.environment import StageEnvironment
    from resources.trust import bundle

    database, store = _open()
    name = tenant or _only_tenant(database)
    chosen = tuple(sorted({part.strip() for part in (sections or "").split(",") if part.strip()}))
    selection = bundle.Selection(day(from_), day(to), chosen)
    with database.connect(autocommit=True) as connection:
        kept = [_checkpoint(connection, name, str(path)) for path in checkpoint or ()]
    environment = StageEnvironment.using(Settings.from_environment(), database)
    decision = exports.admit_evidence(environment, name, requested_by=person(who), now=dt.datetime.now(dt.UTC))
    path = out or Path(f"evidence-{name}" + "".join(f"-{part}" for part in (from_, to) if part) + ".zip")
    written = bundle.export(database, store, name, path, selection, kept)
    exports.record_evidence(environment, decision, path, written.sha256, written.entries, dt.datetime.now(dt.UTC))
    if as_json:
        output.print_json({
            "path": str(written.path), "tenant": name, "entries": written.entries, "bytes": written.size,
            "sha256": written.sha256, "size": written.checkpoint.size, "root_hash": written.checkpoint.root.hex(),
            "key": written.key})
        return
    typer.echo(f"{written.path}: {written.entries} entries of {name}, proven against the checkpoint of "
               f"{written.checkpoint.size}, {written.size:,} bytes, sha256 {written.sha256}")
    typer.echo(f"signed by {written.key}: give it to the reader by another way")
    typer.echo("verify it: unpack, then python verify.py --key KEY")


@command(app)
def anchor(
    tenant: EachTenant = None,
    location: Annotated[
        str | None, typer.Option("--anchor", envvar=ANCHOR_VARIABLE, help="Folder or s3://bucket/prefix.")] = None,
    retain_days: Annotated[
        int, typer.Option("--retain-days", min=1, help="Lock for so long, in a bucket with object lock that has no "
                          "rule of its own.")] = 2_555,
    as_json: Json = False,
) -> None:
    """Put every checkpoint that is not there yet into a place outside the database, one file each, written once."""
    from resources.trust import anchors

    if location is None:
        raise BareCountError(ErrorCode.USAGE, "there is no anchor to put checkpoints at",
                             hint=f"name a folder or s3://bucket/prefix with --anchor or {ANCHOR_VARIABLE}")
    database, _ = _open()
    place = anchors.open_anchor(location, retain_days)
    placed = {name: anchors.anchor(database, name, place) for name in ([tenant] if tenant else _tenants(database))}
    if as_json:
        output.print_json({"location": place.location,
                           "placed": {name: [asdict(item) for item in items] for name, items in placed.items()}})
        return
    for name, items in placed.items():
        locked = [item.locked_until for item in items if item.locked_until]
        typer.echo(f"{name}: {len(items)} checkpoints put at {place.location}"
                   + (f", locked until {max(locked):%Y-%m-%d}" if locked else "") if items else
                   f"{name}: every checkpoint lies at {place.location}")


@command(app)
def keys(tenant: EachTenant = None, as_json: Json = False) -> None:
    """Public keys, oldest first: what a reader of bundles needs to know, by a way of its own."""
    from resources.trust import checkpoints

    database, store = _open()
    with database.connect(autocommit=True) as connection:
        known = [
            {"tenant": name, "key": item.key.text, "announced": item.seq, "replaces": item.replaces,
             "signs_now": item == found[-1], "private_key_here": store.holds(item.key)}
            for name in ([tenant] if tenant else _tenants(database))
            for found in [checkpoints.announcements(connection, name)] for item in found
        ]
    if as_json:
        output.print_json(known)
        return
    for item in known:
        typer.echo(item["key"] + ("" if item["signs_now"] else f"  (replaced; announced by entry {item['announced']})"))


@command(app)
def rotate(
    tenant: Tenant = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="The old private key is gone: begin anew, without its word.")] = False,
    as_json: Json = False,
) -> None:
    """Replace a tenant's signing key; the old one vouches for the new one. What was signed stays verifiable."""
    from resources.trust import checkpoints

    database, store = _open()
    signed = checkpoints.rotate(database, store, tenant or _only_tenant(database), lost=lost)
    if as_json:
        output.print_json({"key": signed.key.text, "announced": signed.checkpoint.size,
                           "checkpoint": signed.checkpoint.raw.decode()})
    else:
        typer.echo(f"{signed.key.text} signs from entry {signed.checkpoint.size} on")


# --- shared --------------------------------------------------------------------------------------------------------


def _open() -> tuple[Database, KeyStore]:
    from resources.runtime.database import Database
    from resources.trust.signing import KeyStore

    settings = Settings.from_environment()
    logs.configure(settings.data_dir)
    database = Database.open(settings)
    return database, KeyStore.of(settings.data_dir, database)


def _tenants(database: Database) -> list[str]:
    from resources.runtime.database import fetch

    with database.connect(autocommit=True) as connection:
        return [name for (name,) in fetch(
            connection, "select tenant_id from platform.evidence_head where seq > 0 order by 1")]


def _only_tenant(database: Database) -> str:
    names = _tenants(database)
    if len(names) == 1:
        return names[0]
    raise BareCountError(ErrorCode.USAGE, f"there are {len(names)} tenants with evidence: {', '.join(names) or 'none'}",
                         hint="name one with --tenant")


def _tenants_of(witnesses: Sequence[Witness]) -> Iterator[str]:
    """Tenants that checkpoints speak of: one that vanished from the database is missed, not overlooked."""
    from resources.trust.verify import Checkpoint, Malformed

    for witness in witnesses:
        try:
            prefix, _, name = Checkpoint.parse(witness.raw).origin.partition("/")
        except Malformed:
            continue  # verification reports it for every tenant
        if prefix == "barecount" and name:
            yield name


def _remembered(store: KeyStore, tenant: str) -> list[Witness]:
    """What keys of this machine remember to have signed, also keys that the database no longer knows."""
    from resources.trust import checkpoints

    return [checkpoints.Witness(str(path), path.read_bytes()) for path in store.memories(checkpoints.origin(tenant))]


def _checkpoint(connection: psycopg.Connection, tenant: str, text: str) -> Checkpoint:
    """A recorded checkpoint by its size, or one in a file, which must be signed by a key of the ledger."""
    from resources.trust import anchors, checkpoints
    from resources.trust.verify import Checkpoint

    if text.isdecimal():
        return checkpoints.of_size(connection, tenant, int(text))
    found = Checkpoint.parse(anchors.read_file(Path(text)).raw)
    if found.origin != checkpoints.origin(tenant):
        raise BareCountError(ErrorCode.USAGE, f"{text} is a checkpoint of {found.origin}, not of tenant {tenant}",
                             hint="name its tenant with --tenant")
    if not any(item.key.signed(found.note) for item in checkpoints.announcements(connection, tenant)):
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN, f"{text} is not signed by any key of the ledger of tenant {tenant}",
            hint="it was changed, or the ledger's keys were: `barecount evidence keys` lists them")
    return found


def _key(text: str) -> Key:
    from resources.trust.verify import Key, Malformed

    try:
        return Key.parse(Path(text).read_text(encoding="utf-8") if Path(text).is_file() else text)
    except (Malformed, OSError, UnicodeDecodeError) as error:
        raise BareCountError(ErrorCode.USAGE, f"--key: {error}",
                             hint="give a key as `barecount evidence keys` prints it, or a file of one") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BareCountError(ErrorCode.STORE_UNAVAILABLE, f"{path} cannot be written: {error.strerror}",
                             hint="choose another place with --out") from error


_SEARCH = """
select tenant_id, seq, kind, subject, occurred_at, body, encode(chain_hash, 'hex')
from platform.evidence
where ($1::text is null or tenant_id = $1)
  and ($2::text is null or kind = $2 or split_part(kind, '.', 1) = $2)
  and ($3::text is null or strpos(subject, $3) > 0)
  and ($4::text is null or run_token = $4)
  and ($5::text is null or strpos(body, $5) > 0)
  and ($6::date is null or occurred_at >= $6::date::timestamp at time zone 'UTC')
  and ($7::date is null or occurred_at < ($7::date + 1)::timestamp at time zone 'UTC')
order by occurred_at desc, tenant_id, seq desc
limit $8::bigint
"""


def _search(
    *, tenant: str | None, kind: str | None, limit: int, as_json: bool, text: str | None = None,
    subject: str | None = None, run_token: str | None = None, start: dt.date | None = None, end: dt.date | None = None,
) -> None:
    from resources.runtime.database import fetch

    database, _ = _open()
    with database.connect(autocommit=True) as connection:
        rows = fetch(connection, _SEARCH, (tenant, kind, subject, run_token, text, start, end, limit))
    if as_json:
        output.print_json([{"seq": seq, **json.loads(body), "chain_hash": link}
                           for _, seq, _, _, _, body, link in rows])
        return
    output.console().print(output.table(
        None, ("tenant", "entry", "at (UTC)", "kind", "subject", "chain hash"),
        [(name, seq, f"{at:%Y-%m-%d %H:%M:%S}", entry_kind, found, link[:12])
         for name, seq, entry_kind, found, at, _, link in rows], right=(1,)))
