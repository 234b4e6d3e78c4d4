"""`barecount agent`: does the work of a network profile from inside that network. It opens no port."""

from __future__ import annotations

import platform
import signal
from typing import Annotated

import typer

from barecount_assets.cli.verbs import settings
from resources.runtime.errors import BareCountError, ErrorCode


def agent(
    environment: Annotated[str, typer.Option("--environment", help="Name of a file of deploy/environments.")],
    network_profile: Annotated[str, typer.Option("--network-profile", help="Whose queue to poll.")] = (
        "on_premise_agent"),
    name: Annotated[str, typer.Option("--name", help="Name in evidence (default: the host's).")] = "",
    once: Annotated[bool, typer.Option("--once", help="Wait for one piece of work, do it, and end.")] = False,
) -> None:
    """Poll for stages to run inside this network, over outbound connections only, until interrupted.

    Project, stores, database and secrets are those of this process's environment. Run as many as are needed at once.
    """
    from resources.host import runner_catalog
    from resources.runners.agent import Agent
    from resources.runners.backends.aws import Aws

    declared = runner_catalog.read_environment(settings().project_dir, environment)
    queue = declared.network_of(network_profile).queue
    if queue is None:
        raise BareCountError(
            ErrorCode.RUNNER_UNKNOWN, f"network profile {network_profile} of environment {environment} has no queue",
            hint=f"name one in deploy/environments/{environment}.yaml, spec.networks.{network_profile}.queue")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    worker = Agent(Aws.of(declared), queue, name or platform.node())
    typer.echo(f"agent {worker.name} polls {queue} of {environment}; an interrupt ends it and what it does")
    try:
        while not worker.poll() if once else worker.serve():
            pass
    except KeyboardInterrupt:
        typer.echo(f"agent {worker.name} ended")
