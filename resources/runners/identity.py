"""Who does the work: what evidence says about the runner of a stage.

Set around a stage by whatever starts it, read where evidence is written. Nothing in it changes from one attempt to the
next on the same runner, except on machines that are themselves new each time: their instance is part of the truth.
"""

from __future__ import annotations

import contextvars
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata

from resources.runtime.settings import SOFTWARE_VERSION

_DRIVERS = ("adbc-driver-postgresql", "dagster", "dbt-core", "dbt-postgres", "psycopg", "pyarrow")
_current: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("barecount_runner", default={})  # noqa: B039


@contextmanager
def running_as(identity: Mapping[str, str]) -> Iterator[None]:
    """Evidence written inside the block names this runner."""
    token = _current.set(dict(identity))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> dict[str, str]:
    """The runner at work, empty outside of a runner."""
    return dict(_current.get())


@cache
def software() -> Mapping[str, str]:
    """Versions of the platform, Python and the drivers that touch data."""
    return {
        "software": SOFTWARE_VERSION,
        "python": platform.python_version(),
        "drivers": ", ".join(f"{name} {metadata.version(name)}" for name in _DRIVERS),
    }
