"""What all verbs of the `barecount` command share: options, errors as envelopes, the opened environment."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barecount_assets.cli import output
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode, unexpected
from resources.runtime.settings import Settings

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Tenant id.")]
Who = Annotated[
    str | None,
    typer.Option("--who", "--as", envvar="BARECOUNT_USER", help="Who asks or decides (default: the user logged in)."),
]


def command(group: typer.Typer, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a verb whose errors become an envelope and exit code 1, the trace of unforeseen ones in the log."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except BareCountError as error:
                output.print_error(error, as_json=bool(kwargs.get("as_json")))
                raise typer.Exit(2 if error.code is ErrorCode.USAGE else 1) from error
            except BrokenPipeError:
                sys.stderr.close()  # the reader of our output left; there is nobody to tell
            except (typer.Exit, typer.Abort, typer.TyperException):
                raise
            except Exception as cause:
                unforeseen = unexpected(cause)
                logs.get_logger("cli").error("command failed", exc_info=cause, extra={
                    "fields": {"correlation_id": unforeseen.correlation_id}})
                output.print_error(unforeseen, as_json=bool(kwargs.get("as_json")))
                raise typer.Exit(1) from cause

        return group.command(name)(guarded)

    return register


def person(who: str | None) -> str:
    """Who decides: as given (option `Who`), else the user logged in to the machine."""
    from resources.governance.policies import current_user

    return who or current_user()


def day(value: str | None) -> dt.date | None:
    """The day an option gives."""
    if value is None:
        return None
    try:
        return dt.date.fromisoformat(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a date, allowed: YYYY-MM-DD") from None


def settings() -> Settings:
    """The project's settings, with logs going to its data folder."""
    found = Settings.from_environment()
    logs.configure(found.data_dir)
    return found


def environment() -> StageEnvironment:
    """Everything a verb may need, opened.

    Raises:
        BareCountError: declaration.invalid, database.unavailable, database.migration.
    """
    from barecount_assets.stages.environment import StageEnvironment

    return StageEnvironment.open(settings())
