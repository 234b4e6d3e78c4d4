"""`barecount serve`: one service of the platform as the process of a container. For one machine, see `barecount dev`.

Every service prepares Dagster's instance the same way (`barecount_assets.instance`) and then becomes the Dagster
process that does the work, so that signals reach it. None migrates: `barecount migrate` runs once, before them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from barecount_assets.cli.verbs import command, settings
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(no_args_is_help=True, help="One service of the platform, as a container runs it.")

Host = Annotated[str, typer.Option("--host", help="Address to listen on.")]
Service = Literal["webserver", "daemon", "code-location"]
WEBSERVER_PORT, CODE_LOCATION_PORT = 3000, 4000
WORKSPACE = "deploy/workspace.yaml"
CODE_LOCATION_HOST = "BARECOUNT_CODE_LOCATION_HOST"
_PATIENCE_SECONDS = 10


@command(app)
def webserver(host: Host = "0.0.0.0", port: Annotated[int, typer.Option("--port")] = WEBSERVER_PORT) -> None:
    """Dagster's UI. It asks nobody who they are: let only those reach it who may."""
    _become("dagster_webserver", "--host", host, "--port", str(port), *_workspace())


@command(app)
def daemon() -> None:
    """Schedules, sensors, the run queue and backfills. One of it, no more."""
    _become("dagster._daemon", "run", *_workspace())


@command(app, "code-location")
def code_location(host: Host = "0.0.0.0", port: Annotated[int, typer.Option("--port")] = CODE_LOCATION_PORT) -> None:
    """The definitions, for webserver and daemon; processes of runs are children of it."""
    _become("dagster", "api", "grpc", "--host", host, "--port", str(port), "--location-name", "barecount",
            "--module-name", "barecount_assets.definitions")


@command(app)
def check(service: Annotated[Service, typer.Argument(help="Which service this container is.")]) -> None:
    """Is the service of this container well? Exit code 0 or 1, for health checks."""
    if service == "webserver":
        _require_answer(f"http://127.0.0.1:{WEBSERVER_PORT}/server_info")
    elif service == "daemon":
        _become("dagster._daemon", "liveness-check")
    else:
        _become("dagster", "api", "grpc-health-check", "--port", str(CODE_LOCATION_PORT))


def _become(module: str, *arguments: str) -> NoReturn:
    """Replace this process by a module of Dagster, in the environment that Dagster's instance needs.

    Raises:
        BareCountError: database.unavailable; database.migration before `barecount migrate`.
    """
    from barecount_assets.instance import prepare
    from resources.runtime.database import Database

    found = settings()
    environment = {**os.environ, **prepare(found, Database.open(found))}
    sys.stdout.flush()
    os.chdir(found.project_dir)
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


def _workspace() -> Sequence[str]:
    """How webserver and daemon find the code location.

    Raises:
        BareCountError: declaration.unknown when nobody said where it is.
    """
    if not os.environ.get(CODE_LOCATION_HOST):
        raise BareCountError(ErrorCode.DECLARATION_UNKNOWN, f"{CODE_LOCATION_HOST} is not set",
                             hint="name the host that runs `barecount serve code-location`")
    return "--workspace", str(settings().project_dir / WORKSPACE)


def _require_answer(url: str) -> None:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=_PATIENCE_SECONDS) as answer:
            typer.echo(f"{url} answers {answer.status}")
    except (URLError, OSError) as error:
        typer.echo(f"{url} does not answer: {error}", err=True)
        raise typer.Exit(1) from error
