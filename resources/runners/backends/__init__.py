"""Backends by name, imported when an environment uses them: most bring a cloud's library."""

from __future__ import annotations

from importlib import import_module

from resources.host.runner_catalog import AnyBackend, Environment
from resources.runners.payload import Execute
from resources.runners.work import Backend

_MODULES = {
    "in_process": "resources.runners.backends.in_process",
    "subprocess": "resources.runners.backends.subprocess",
    "lambda": "resources.runners.backends.lambda_",
    "ec2": "resources.runners.backends.ec2",
    "glue": "resources.runners.backends.glue",
    "fargate": "resources.runners.backends.fargate",
    "agent": "resources.runners.backends.agent",
}


def build(declared: AnyBackend, environment: Environment, execute: Execute) -> Backend:
    """The backend an environment declares; `execute` is the payload's entry point, for work in this process."""
    return import_module(_MODULES[declared.backend]).build(declared, environment, execute)
