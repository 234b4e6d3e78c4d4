"""Who does the work: what evidence says about the runner of a stage.

Set around a stage by whatever starts it, read where evidence is written. Nothing in it changes from one attempt to the
next on the same runner, except on machines that are themselves new each time: their instance is part of the truth.
"""

from __future__ import annotations

import contextvars
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from urllib.request import urlopen

from resources.runtime.settings import SOFTWARE_VERSION, stage_code_version

_DRIVERS = ("adbc-driver-postgresql", "dagster", "dbt-core", "dbt-postgres", "pgpq", "psycopg", "pyarrow")
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
    """Versions of the platform, Python and the drivers that touch data; the hash of the stages' code."""
    return {
        "software": SOFTWARE_VERSION,
        "code": stage_code_version(),
        "python": platform.python_version(),
        "drivers": ", ".join(f"{name} {metadata.version(name)}" for name in _DRIVERS),
    }


_METADATA_SECONDS = 2


@cache
def machine() -> Mapping[str, str]:
    """What only the machine knows: region, instance and image, by the variables of AWS and of the deployment.

    `instance` is a task's ARN on Fargate, the log stream of a function, the id of an EC2 instance or of a Glue run, the
    name of an agent; elsewhere the host's name.
    """
    known = {
        "region": os.environ.get("AWS_REGION"),
        "instance": (os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME") or os.environ.get("BARECOUNT_INSTANCE_ID")
                     or _task() or platform.node()),
        "image": os.environ.get("BARECOUNT_IMAGE_DIGEST"),
    }
    return {name: value for name, value in known.items() if value}


def _task() -> str | None:
    """The ARN of the ECS task this is, from the task metadata endpoint, version 4."""
    if (address := os.environ.get("ECS_CONTAINER_METADATA_URI_V4")) is None:
        return None
    try:
        with urlopen(f"{address}/task", timeout=_METADATA_SECONDS) as answer:
            return str(json.load(answer)["TaskARN"])
    except (OSError, ValueError, KeyError):
        return None
