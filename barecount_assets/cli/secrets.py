"""`barecount secrets`: values that declarations only refer to."""

from __future__ import annotations

import datetime as dt
import sys
from getpass import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from barecount_assets.cli import output
from barecount_assets.cli.verbs import Json, command, environment

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment
    from resources.trust.secrets import Secrets

app = typer.Typer(no_args_is_help=True, help="Values that declarations only refer to.")

SecretName = Annotated[str, typer.Argument(help="Name, as in secret://NAME#field.")]
OneTenant = Annotated[str, typer.Option("--tenant", help="Tenant id.")]
Field = Annotated[str, typer.Option("--field", help="Field, as in secret://name#FIELD.")]
Generate = Annotated[str | None, typer.Option(
    "--generate", help="Make a value instead of asking for one: whsec (HMAC), whsk (Ed25519) or random.")]
FIELD = "value"


@command(app, "set")
def set_(
    name: SecretName, tenant: OneTenant, field: Field = FIELD, generate: Generate = None, as_json: Json = False
) -> None:
    """Keep a value, read from standard input or asked for; other fields of the secret stay as they are.

    Endpoints that use the secret go on with the version they know until `rotate`.
    """
    opened = environment()
    version = _secrets(opened, tenant).keep(tenant, name, {field: _value(generate)})
    _said(as_json, f"secret://{name}#{field} of {tenant} is kept, version {version}", name=name, field=field,
          version=version)


@command(app, "list")
def listed(tenant: OneTenant, as_json: Json = False) -> None:
    """Names of a tenant's secrets and their current versions, without values."""
    from resources.trust.secrets import Secrets

    opened = environment()
    provider = Secrets.of(opened.settings.data_dir, opened.database).provider
    rows = [{"name": name, "version": provider.current_version(tenant, name)} for name in provider.names(tenant)]
    if as_json:
        output.print_json(rows)
        return
    output.console().print(output.table(None, ("secret", "version"), [
        (f"secret://{row['name']}", row["version"]) for row in rows]))


@command(app)
def rotate(
    name: SecretName, tenant: OneTenant, field: Field = FIELD, generate: Generate = None, as_json: Json = False
) -> None:
    """Keep a new value, and let every endpoint that refers to it use it; the old one stays valid for 24 hours."""
    from resources.action.delivery import verification

    opened = environment()
    secrets = _secrets(opened, tenant)
    version, used_by = verification.rotate(
        opened.database, secrets, tenant, name, {field: _value(generate)}, now=dt.datetime.now(dt.UTC))
    _said(as_json, f"secret://{name}#{field} of {tenant} has version {version}, used by "
          + (", ".join(used_by) or "no endpoint"), name=name, field=field, version=version, used_by=used_by)


@command(app)
def show(name: SecretName, tenant: OneTenant, field: Field = FIELD, as_json: Json = False) -> None:
    """Print a value, e.g. to hand a signing secret to a receiver. That it was read is on record."""
    from getpass import getuser

    value = _secrets(environment(), tenant).read(tenant, f"secret://{name}#{field}", purpose=f"shown to {getuser()}")
    if as_json:
        output.print_json({"name": name, "field": field, "version": value.version, "value": value.value})
    else:
        typer.echo(value.value)


def _secrets(opened: StageEnvironment, tenant: str) -> Secrets:
    """The secrets, once the tenant is known to the ledger."""
    from resources.trust.secrets import Secrets

    with opened.database.transaction() as connection:
        opened.register_tenant(connection, tenant)
    return Secrets.of(opened.settings.data_dir, opened.database)


def _value(generate: str | None) -> str:
    from secrets import token_urlsafe

    from resources.action.delivery.adapters import webhook

    if generate == "random":
        return token_urlsafe(32)
    if generate is not None:
        if generate not in ("whsec", "whsk"):
            raise typer.BadParameter(f"{generate!r} cannot be made, allowed: whsec, whsk, random")
        return webhook.new_secret(asymmetric=generate == "whsk")
    value = getpass("value: ") if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    if not value:
        raise typer.BadParameter("the value is empty")
    return value


def _said(as_json: bool, text: str, **facts: object) -> None:
    if as_json:
        output.print_json(facts)
    else:
        typer.echo(text)
