"""What the backends on AWS share: clients, networks looked up by name, patience, and the place where a run talks.

A run and its payload talk through S3: a prefix of its own below the environment's `messages` holds the run
specification, the Dagster Pipes context and the messages, and is emptied when the work is over. Networks are looked up
before anything is started: a name that is not there, or is there twice, ends the run before it costs anything.
"""

from __future__ import annotations

import json
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from dagster_aws.pipes import PipesS3ContextInjector, PipesS3MessageReader

from resources.host.runner_catalog import Environment
from resources.runners.payload import OUTCOME_KEY
from resources.runners.work import Work
from resources.runtime.declared import listed
from resources.runtime.errors import BareCountError, ErrorCode

# Botocore itself tries throttled and broken calls again: exponential back-off with jitter, 20 s at the most.
_CALL = {"mode": "standard", "total_max_attempts": 6}
_CAPACITY_ATTEMPTS = 5
_CAPACITY_FIRST_SECONDS, _CAPACITY_LONGEST_SECONDS = 5.0, 60.0
# Faster than the payload writes (every two to three seconds), or its last word would wait behind the others.
_READ_EVERY_SECONDS = 1
_LAST_LINES = 8
STOP = "stop"
"""Object in a conversation that, once there, tells a payload nothing else can reach to stop."""
_THROTTLED = frozenset({"Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"})
# Where project, stores and database are, a payload on AWS is told by the definition it runs from, and secrets reach it
# from Secrets Manager: what a call carries can be read by everybody who may describe it.
_SENT = ("BARECOUNT_ENVIRONMENT",)

T = TypeVar("T")


@dataclass(frozen=True)
class Aws:
    """An environment on AWS.

    Attributes:
        region: of everything in it.
        messages: `s3://bucket/prefix` below which a run and its payload talk.
        poll_seconds: how often to ask how work is doing.
        pause: waits for so many seconds.
        resolve: looks a host name up; raises OSError when it has no address.
    """

    region: str
    messages: str
    poll_seconds: float = 6.0
    pause: Callable[[float], None] = time.sleep
    resolve: Callable[[str], Any] = field(default=lambda name: socket.getaddrinfo(name, 443))

    @classmethod
    def of(cls, environment: Environment) -> Aws:
        """Raises BareCountError declaration.invalid for an environment without region or messages."""
        if environment.spec.region is None or environment.spec.messages is None:
            raise BareCountError(
                ErrorCode.DECLARATION_INVALID,
                f"environment {environment.name} has a backend on AWS but not both of: region, messages",
                hint=f"declare them in deploy/environments/{environment.name}.yaml",
            )
        return cls(environment.spec.region, environment.spec.messages)

    def client(self, service: str, **settings: Any) -> Any:
        """A client that is patient with throttling; `settings` are those of botocore's Config."""
        return boto3.client(
            service, region_name=self.region, config=Config(**{"retries": _CALL, **settings}))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Network:
    """A network profile as AWS knows it: identifiers instead of names, all in one VPC."""

    subnets: tuple[str, ...]
    security_groups: tuple[str, ...]


def network_of(aws: Aws, work: Work) -> Network:
    """Look up the subnets, security groups and endpoints of the work's network profile. Starts nothing.

    Raises:
        BareCountError: runner.network with everything that is missing, ambiguous or does not resolve.
    """
    ec2, declared, wrong = aws.client("ec2"), work.network, []
    subnets = _by_name(ec2.get_paginator("describe_subnets"), "Subnets", declared.subnets)
    groups = _by_name(ec2.get_paginator("describe_security_groups"), "SecurityGroups", declared.security_groups)
    for what, found in (("subnet", subnets), ("security group", groups)):
        if not found:
            wrong.append(f"the profile declares no {what}")
        wrong += [f"{len(items)} {what}s named {name}" if items else f"no {what} named {name}"
                  for name, items in found.items() if len(items) != 1]
    vpcs = {item["VpcId"] for found in (subnets, groups) for items in found.values() for item in items}
    if len(vpcs) > 1:
        wrong.append(f"subnets and security groups are of more than one VPC: {listed(vpcs)}")
    wrong += [f"endpoint {name} does not resolve" for name in declared.endpoints if not _resolves(aws, name)]
    if wrong:
        raise network_refused(work, "; ".join(wrong))
    return Network(
        tuple(subnets[name][0]["SubnetId"] for name in declared.subnets),
        tuple(groups[name][0]["GroupId"] for name in declared.security_groups),
    )


def network_refused(work: Work, what: str) -> BareCountError:
    """The error for a network that is not what the profile declares."""
    profile, environment = work.identity["network_profile"], work.identity["environment"]
    return BareCountError(
        ErrorCode.RUNNER_NETWORK,
        f"network profile {profile} of environment {environment} cannot be used: {what}; nothing was started",
        hint=f"correct deploy/environments/{environment}.yaml, or make what it names",
    )


def _by_name(paginator: Any, kind: str, names: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    if names:
        for page in paginator.paginate(Filters=[{"Name": "tag:Name", "Values": list(names)}]):
            for item in page[kind]:
                found[next(tag["Value"] for tag in item["Tags"] if tag["Key"] == "Name")].append(item)
    return found


def _resolves(aws: Aws, name: str) -> bool:
    try:
        aws.resolve(name)
    except OSError:
        return False
    return True


class NoCapacity(Exception):
    """AWS has no room for the work now."""


def patiently(aws: Aws, work: Work, start: Callable[[], T], codes: Iterable[str]) -> T:
    """Start something, again and again while AWS has no room for it.

    Args:
        start: starts it; raises NoCapacity, or ClientError with one of `codes`, when there is no room.

    Raises:
        BareCountError: runner.unavailable (retryable) when there was no room, or too many calls, to the end.
    """
    codes, reason = frozenset(codes), ""
    for attempt in range(_CAPACITY_ATTEMPTS):
        if attempt:
            longest = min(_CAPACITY_FIRST_SECONDS * 2 ** (attempt - 1), _CAPACITY_LONGEST_SECONDS)
            aws.pause(random.uniform(longest / 2, longest))
        try:
            return start()
        except NoCapacity as cause:
            reason = str(cause)
        except ClientError as cause:
            code = cause.response["Error"]["Code"]
            if code not in codes and code not in _THROTTLED:
                raise
            reason = f"{code}: {cause.response['Error'].get('Message', '')}"
            if code not in codes:  # throttled, and the client has been patient already
                break
    raise BareCountError(
        ErrorCode.RUNNER_UNAVAILABLE,
        f"{work.identity['backend']} had no room for {work.spec.stage} of {work.spec.pipeline} for "
        f"{work.spec.tenant_id}: {reason}; nothing was started",
        hint="the step tries again; a smaller size, or other subnets, may have room",
        retryable=True,
    )


def patient(client: Any, **replaced: Callable[..., Any]) -> Any:
    """A client with some of its methods replaced: what a Pipes client drives."""
    return type("PatientClient", (), {"__getattr__": lambda _, name: replaced.get(name) or getattr(client, name)})()


class Messages(PipesS3MessageReader):
    """Reads messages below a prefix of the run's own, also those that came late or after one that was lost."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        super().__init__(interval=_READ_EVERY_SECONDS, bucket=bucket, client=client)
        self._prefix = f"{prefix}/messages"

    @contextmanager
    def get_params(self) -> Iterator[dict[str, Any]]:
        yield {"bucket": self.bucket, "key_prefix": self._prefix}

    def heard(self) -> list[Any]:
        """Every custom message that reached S3, in the order of writing, and last the outcome put beside them."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self._prefix}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        outcome = f"{self._prefix}/{OUTCOME_KEY}"
        chunks = sorted(set(keys) - {outcome}, key=lambda key: int(key.rsplit("/", 1)[1].removesuffix(".json")))
        messages = [json.loads(line) for key in chunks for line in self._text(key).splitlines() if line]
        heard = [message["params"]["payload"] for message in messages if message["method"] == "report_custom_message"]
        return heard + ([json.loads(self._text(outcome))] if outcome in keys else [])

    def _text(self, key: str) -> str:
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read().decode()


@dataclass(frozen=True)
class Conversation:
    """Where a run and one payload talk."""

    client: Any
    bucket: str
    prefix: str
    reader: Messages
    kept: set[str] = field(default_factory=set)

    @property
    def run_spec(self) -> str:
        """Address of the run specification."""
        return f"s3://{self.bucket}/{self.prefix}/run_spec.json"

    @property
    def stop(self) -> str:
        """Address of the stop sign, see `STOP`."""
        return f"s3://{self.bucket}/{self.prefix}/{STOP}"

    @property
    def injector(self) -> PipesS3ContextInjector:
        return PipesS3ContextInjector(bucket=self.bucket, client=self.client, key_prefix=f"{self.prefix}/")

    def put(self, address: str, text: str) -> None:
        self.client.put_object(Bucket=self.bucket, Key=address.removeprefix(f"s3://{self.bucket}/"), Body=text.encode())

    def get(self, name: str) -> str:
        """The text of an object of this conversation."""
        return self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")["Body"].read().decode()

    def marks(self) -> dict[str, str]:
        """Objects right in this conversation, not below it: name and ETag."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.prefix}/", Delimiter="/")
        return {item["Key"].rpartition("/")[2]: item["ETag"] for item in found.get("Contents", ())}

    def keep(self, address: str, text: str) -> None:
        """Put something that stays when the conversation is over, until the bucket's rules remove it."""
        self.put(address, text)
        self.kept.add(address.removeprefix(f"s3://{self.bucket}/"))


@contextmanager
def conversation(aws: Aws, work: Work) -> Iterator[Conversation]:
    """Open a place to talk with the run specification in it, and empty it at the end."""
    client = aws.client("s3")
    bucket, _, below = aws.messages.removeprefix("s3://").partition("/")
    prefix = "/".join(filter(None, (below.strip("/"), work.tags["run_token"][:16], uuid.uuid4().hex)))
    talk = Conversation(client, bucket, prefix, Messages(client, bucket, prefix))
    talk.put(talk.run_spec, work.run_spec.text())
    try:
        yield talk
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            if keys := [{"Key": item["Key"]} for item in page.get("Contents", ()) if item["Key"] not in talk.kept]:
                client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})


def variables(work: Work) -> dict[str, str]:
    """The environment variables that a call to AWS may carry."""
    return {name: work.variables[name] for name in _SENT if name in work.variables}


def tags(work: Work, key: str = "Key", value: str = "Value") -> list[dict[str, str]]:
    """The work's tags as AWS wants them."""
    return [{key: name, value: content} for name, content in sorted(work.tags.items())]


def of_stage(name: str, work: Work) -> str:
    """The name of what is there for each stage of its own: a role, a function, a job."""
    return f"{name}-{work.spec.stage.value.replace('_', '-')}"


def log_tail(aws: Aws, group: str, stream: str) -> str:
    """The last lines of a log stream in one, or why there are none."""
    try:
        answer = aws.client("logs").get_log_events(logGroupName=group, logStreamName=stream, limit=_LAST_LINES)
    except ClientError as cause:
        return f"log stream {stream} of {group}: {cause.response['Error']['Code']}"
    return " | ".join(event["message"].strip() for event in answer["events"])


def quietly(context: Any, what: str, call: Callable[[], Any]) -> None:
    """Clean up: what cannot be done is said in the run's log and does not hide why the work ended."""
    try:
        call()
    except (ClientError, BotoCoreError) as cause:
        context.log.warning(f"could not {what}: {cause}")
