"""Where work runs: sizes of runners in the platform catalog, and what an environment makes of a runner class.

A manifest names a class, a size and a network profile. `contracts/platform/runner_sizes.yaml` says what a size is on
each backend; `deploy/environments/<name>.yaml` maps classes to backends and network profiles to networks. A project
without these files has those the software ships. An environment, a class, a size or a profile that is not declared is
an error: nothing falls back to something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from resources.runtime.declared import (
    Declared,
    DeclaredDocument,
    Document,
    Name,
    Text,
    Version,
    listed,
    read_model,
    refusal,
)
from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.yaml_source import Finding, YamlSource, read_yaml

RunnerClassName = Literal["serverless", "container", "managed_etl", "dedicated_compute"]
NetworkProfile = Literal["public_vpc_egress", "private_vpc", "privatelink", "vpn", "on_premise_agent"]
BackendName = Literal["in_process", "subprocess", "lambda", "fargate", "glue", "ec2", "agent"]
SizeName = Literal["small", "medium", "large", "xlarge"]
Classification = Literal["public", "internal", "confidential", "restricted"]
SIZES: tuple[SizeName, ...] = get_args(SizeName)

SIZES_FILE = "contracts/platform/runner_sizes.yaml"
ENVIRONMENTS_FOLDER = "deploy/environments"
_SHIPPED = Path(__file__).resolve().parents[2]


class Size(Declared):
    """What a size is on one backend.

    `vcpu` and `memory_mb` are what the work may use, `concurrency` how much of it runs at once, `timeout_seconds` when
    it is ended. `flavor` is the backend's own name for it: a Glue worker type, an EC2 instance type.
    """

    vcpu: float = Field(gt=0)
    memory_mb: int = Field(ge=128)
    concurrency: int = Field(ge=1)
    timeout_seconds: int = Field(ge=1)
    flavor: Text | None = None
    workers: int | None = Field(default=None, ge=2)


class CatalogMetadata(Declared):
    """Identity of a reference set of the platform catalog."""

    name: Name
    description: Text
    version: Version


class RunnerSizesSpec(Declared):
    """Sizes by backend."""

    backends: dict[BackendName, dict[Name, Size]]

    @field_validator("backends")
    @classmethod
    def _every_size(cls, backends: dict[str, dict[str, Size]]) -> dict[str, dict[str, Size]]:
        for name, sizes in backends.items():
            for size in sizes:
                if size not in SIZES:
                    raise refusal("unknown size", found=size, allowed=listed(SIZES), at=(name, size))
            for size in SIZES:
                if size not in sizes:
                    raise refusal(f"no size {size}", found=listed(sizes), allowed=listed(SIZES), at=(name,))
        return backends


class RunnerSizes(DeclaredDocument):
    """The reference set of runner sizes."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["RunnerSizes"]
    metadata: CatalogMetadata
    spec: RunnerSizesSpec

    def size(self, backend: str, size: str) -> Size:
        """Raises BareCountError runner.unknown for a backend or size the catalog does not have."""
        sizes = self.spec.backends.get(backend)  # type: ignore[call-overload]
        if sizes is None or size not in sizes:
            known = self.spec.backends if sizes is None else sizes
            raise BareCountError(
                ErrorCode.RUNNER_UNKNOWN,
                f"the catalog has no runner size {size!r} of backend {backend!r}, allowed: {listed(known)}",
                hint=f"declare it in {SIZES_FILE}",
            )
        return sizes[size]


class InProcess(Declared):
    """The stage is a call in the process of the run."""

    backend: Literal["in_process"]


class Subprocess(Declared):
    """The stage is a process of its own on the same machine."""

    backend: Literal["subprocess"]


class Lambda(Declared):
    """A Lambda function per size and network profile: AWS binds these to the function, not to the call.

    With `stage_role` also per stage, as a function has one role: `<function>-<stage>-<size>-<profile>`.
    """

    backend: Literal["lambda"]
    function: Text
    qualifier: Text = "$LATEST"
    stage_role: Text | None = None


class Fargate(Declared):
    """A task of an ECS task definition, on Fargate.

    `stage_role` begins the names of roles of single stages (`<stage_role>-kpi-build`); without it a task has the role
    of its definition.
    """

    backend: Literal["fargate"]
    cluster: Text
    task_definition: Text
    container: Text
    stage_role: Text | None = None


class Glue(Declared):
    """A Glue job per network profile, whose script is the platform's entry point.

    With `stage_role` also per stage, as a job has one role: `<job>-<stage>-<profile>`.
    """

    backend: Literal["glue"]
    job: Text
    stage_role: Text | None = None


class Ec2(Declared):
    """An instance of a launch template, started for the work and terminated after it.

    `stage_role` begins the names of instance profiles of single stages; without it an instance has the template's.
    """

    backend: Literal["ec2"]
    launch_template: Text
    stage_role: Text | None = None


class Agent(Declared):
    """A queue that an agent inside somebody else's network polls."""

    backend: Literal["agent"]
    queue: Text


AnyBackend = Annotated[
    InProcess | Subprocess | Lambda | Fargate | Glue | Ec2 | Agent, Field(discriminator="backend")]


class Network(Declared):
    """What a network profile is in an environment.

    `public`: whether the runner reaches the internet. `endpoints` are names of private endpoints that must resolve
    before a run starts. `classification` is the strictest that data on it may have; left out: internal on a public
    network, restricted on others. With `queue`, work on it is not started from here, whatever its class: an agent
    inside of it polls the queue.
    """

    public: bool
    classification: Classification | None = None
    subnets: tuple[Text, ...] = ()
    security_groups: tuple[Text, ...] = ()
    endpoints: tuple[Text, ...] = ()
    queue: Text | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """Classifications that data on it may have, the strictest last."""
        levels = get_args(Classification)
        return levels[:levels.index(self.classification or ("internal" if self.public else "restricted")) + 1]


class EnvironmentMetadata(Declared):
    """Identity of an environment."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,39}$")]
    description: Text


class EnvironmentSpec(Declared):
    """Backends by runner class, networks by profile.

    On AWS, `messages` is the bucket and prefix over which a run and its runner talk, `region` where everything is.
    """

    region: Text | None = None
    messages: Annotated[str, Field(pattern=r"^s3://[a-z0-9.-]+(/.*)?$")] | None = None
    classes: dict[RunnerClassName, AnyBackend]
    networks: dict[NetworkProfile, Network]
    tags: dict[Text, Text] = Field(default_factory=dict)


class Environment(DeclaredDocument):
    """One deployment of the platform."""

    api_version: Literal["barecount/v1"] = Field(alias="apiVersion")
    kind: Literal["Environment"]
    metadata: EnvironmentMetadata
    spec: EnvironmentSpec

    @property
    def name(self) -> str:
        return self.metadata.name

    def backend_of(self, runner_class: str) -> AnyBackend:
        """Raises BareCountError runner.unknown for a class the environment does not map."""
        return _known("runner class", runner_class, self.spec.classes, self.name)  # type: ignore[arg-type]

    def backend_on(self, runner_class: str, profile: str) -> AnyBackend:
        """The backend of a class on a network profile: the agent's where one polls for it, else the class's own.

        Raises BareCountError runner.unknown for a class or profile the environment does not have.
        """
        declared, network = self.backend_of(runner_class), self.network_of(profile)
        return declared if network.queue is None else Agent(backend="agent", queue=network.queue)

    def network_of(self, profile: str) -> Network:
        """Raises BareCountError runner.unknown for a profile the environment does not declare."""
        return _known("network profile", profile, self.spec.networks, self.name)  # type: ignore[arg-type]


def _known(what: str, name: str, declared: Mapping[str, Declared], environment: str) -> Declared:
    if name not in declared:
        raise BareCountError(
            ErrorCode.RUNNER_UNKNOWN,
            f"environment {environment} declares no {what} {name!r}, allowed: {listed(declared)}",
            hint=f"change the manifest's runner, or declare it in {ENVIRONMENTS_FOLDER}/{environment}.yaml",
        )
    return declared[name]


def read_sizes(project_dir: Path) -> RunnerSizes:
    """The declared sizes.

    Raises:
        BareCountError: declaration.invalid with every finding.
    """
    model, findings = _read(_place(project_dir, SIZES_FILE), SIZES_FILE, RunnerSizes)
    return _valid(model, findings)


def environment_names(project_dir: Path) -> list[str]:
    """Names of the declared environments."""
    return sorted(path.stem for path in _place(project_dir, ENVIRONMENTS_FOLDER).glob("*.yaml"))


def read_environment(project_dir: Path, name: str) -> Environment:
    """A declared environment.

    Raises:
        BareCountError: runner.unknown for a name that no file declares; declaration.invalid with every finding.
    """
    if name not in environment_names(project_dir):
        raise BareCountError(
            ErrorCode.RUNNER_UNKNOWN,
            f"unknown environment {name!r}, allowed: {listed(environment_names(project_dir))}",
            hint=f"set BARECOUNT_ENVIRONMENT to one of them, or declare {ENVIRONMENTS_FOLDER}/{name}.yaml",
        )
    shown = f"{ENVIRONMENTS_FOLDER}/{name}.yaml"
    model, findings = _read(_place(project_dir, ENVIRONMENTS_FOLDER) / f"{name}.yaml", shown, Environment)
    return _valid(model, findings)


def findings(project_dir: Path) -> list[Finding]:
    """Everything wrong with the declared sizes and environments."""
    sizes, found = _read(_place(project_dir, SIZES_FILE), SIZES_FILE, RunnerSizes)
    for name in environment_names(project_dir):
        shown = f"{ENVIRONMENTS_FOLDER}/{name}.yaml"
        source, broken = read_yaml(_place(project_dir, ENVIRONMENTS_FOLDER) / f"{name}.yaml", shown)
        found += broken
        if source is None:
            continue
        environment, broken = read_model(Environment, source)
        found += broken
        if environment is None:
            continue
        if environment.name != name:
            found.append(source.finding(("metadata", "name"), "not the name of the file", found=environment.name,
                                        allowed=name))
        for runner_class, declared in environment.spec.classes.items():
            if sizes is not None and declared.backend not in sizes.spec.backends:
                found.append(source.finding(
                    ("spec", "classes", runner_class, "backend"), f"{SIZES_FILE} has no sizes of the backend",
                    found=declared.backend, allowed=listed(sizes.spec.backends)))
            on_aws = declared.backend not in ("in_process", "subprocess")
            for needed in ("region", "messages"):
                if on_aws and getattr(environment.spec, needed) is None:
                    found.append(source.finding(("spec",), f"{declared.backend} needs {needed}", allowed=needed))
        found += _of_networks(source, environment)
    return found


def _of_networks(source: YamlSource, environment: Environment) -> list[Finding]:
    """A profile with an agent has no subnets here, and needs where to talk; on_premise_agent is one with an agent."""
    found = []
    for profile, network in environment.spec.networks.items():
        at = ("spec", "networks", profile)
        if profile == "on_premise_agent" and network.queue is None:
            found.append(source.finding(at, "names no queue for its agent", allowed="queue: <name of an SQS queue>"))
        if network.queue is None:
            continue
        if network.subnets or network.security_groups or network.endpoints:
            found.append(source.finding(at, "an agent's network is not made of subnets, groups and endpoints"))
        for needed in ("region", "messages"):
            if getattr(environment.spec, needed) is None:
                found.append(source.finding(("spec",), f"an agent needs {needed}", allowed=needed))
    return found


def _place(project_dir: Path, relative: str) -> Path:
    """The project's own file or folder, else the shipped one."""
    own = project_dir / relative
    return own if own.exists() else _SHIPPED / relative


def _read(path: Path, shown: str, model: type[Document]) -> tuple[Document | None, list[Finding]]:
    source, findings = read_yaml(path, shown)
    return (None, findings) if source is None else read_model(model, source)


def _valid(model: Document | None, findings: Iterable[Finding]) -> Document:
    if model is None:
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID, "\n".join(map(str, findings)),
            hint="correct the files named; `barecount check` shows this list again",
        )
    return model
