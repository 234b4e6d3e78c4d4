"""A development environment on AWS as deploy/terraform lays it out, in moto, and runs in it."""

from __future__ import annotations

import base64
import json
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import dagster as dg
import psutil
import pytest
from moto.backends import get_backend
from moto.moto_api import state_manager

from barecount_assets.stages import execute
from barecount_assets.stages.environment import StageEnvironment
from resources.host import runner_catalog
from resources.runners.backends.aws import Aws
from resources.runners.facade import RunnerFacade
from resources.runners.stage import Placement, Stage, StageReceipt, StageSpec
from resources.runners.work import Backend, Work
from resources.runtime.database import Database
from resources.runtime.errors import BareCountError
from resources.runtime.settings import Settings
from tests.conftest import PROJECT
from tests.integration.runners.cloud import ACCOUNT, METADATA, REGION, Answer, Call, Cloud, credentials

ENVIRONMENT = runner_catalog.read_environment(PROJECT, "aws-dev")
BUCKET = (ENVIRONMENT.spec.messages or "").removeprefix("s3://").partition("/")[0]
SIZES = runner_catalog.read_sizes(PROJECT)
JOB = "barecount-dev-stage-calendar-private-vpc"
IMAGE = f"sha256:{'0' * 64}"
FUNCTION = """
import json, sys
from barecount_assets.stages.on_lambda import handler

class Context:
    def get_remaining_time_in_millis(self):
        return 900_000

for line in sys.stdin:
    print("ANSWER " + json.dumps(handler(json.loads(line), Context())), flush=True)
"""
NEVER = {"progression": "manual", "times": 10**9}  # states change when machines do, not with every look


@dataclass(frozen=True)
class Outcome:
    """What became of a run: a receipt, an error, or the interrupt that ended it."""

    receipt: StageReceipt | None
    error: BaseException | None


@dataclass
class World:
    """The environment, a database for its payloads, and ways to run and to look."""

    cloud: Cloud
    settings: Settings
    database: Database
    pauses: list[float] = field(default_factory=list)

    @property
    def aws(self) -> Aws:
        """Patience without waiting; what has `.invalid` in its name does not resolve."""
        return Aws(REGION, ENVIRONMENT.spec.messages or "", poll_seconds=0.3, pause=self._pause,
                   resolve=_resolve)

    def _pause(self, seconds: float) -> None:
        """Real where it is a look at a real process, recorded where it is patience."""
        if seconds < 1:
            time.sleep(seconds)
        else:
            self.pauses.append(seconds)

    @property
    def defined(self) -> dict[str, str]:
        """What a task definition, a function, a job or an image sets: where everything is."""
        return {"BARECOUNT_PROJECT_DIR": str(PROJECT), "BARECOUNT_DATA_DIR": str(self.settings.data_dir),
                "BARECOUNT_RAW_STORE": self.settings.raw_store, "BARECOUNT_DATABASE_URL": self.database.admin_url,
                "BARECOUNT_IMAGE_DIGEST": IMAGE}

    def work(self, runner_class: str, *, size: str = "medium", network: str = "private_vpc", occasion: str = "run-1",
             tenant: str = "acme") -> Work:
        """The calendar stage of a tenant, planned as the facade plans it."""
        spec = StageSpec(Stage.CALENDAR, tenant, "order_to_cash", Placement(runner_class, size, network))
        variables = {**self.defined, "BARECOUNT_ENVIRONMENT": ENVIRONMENT.name}
        return RunnerFacade(ENVIRONMENT, SIZES, execute, variables).plan(spec, occasion)

    def run(self, backend: Backend, work: Work) -> Outcome:
        """Run work inside of a Dagster step."""
        seen: dict[str, Any] = {}

        @dg.asset(name="calendar")
        def asset(context) -> dg.MaterializeResult:
            try:
                seen["receipt"] = backend.run(work, lambda *_: None, context)
            except BareCountError as error:
                seen["error"] = error
            except BaseException as error:
                seen["error"] = error
                raise
            return dg.MaterializeResult()

        try:
            with dg.DagsterInstance.ephemeral() as instance:
                dg.materialize([asset], instance=instance, raise_on_error=False)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            seen.setdefault("error", error)
        return Outcome(seen.get("receipt"), seen.get("error"))

    def in_process(self, database: Database) -> StageReceipt:
        """The same stage as a call."""
        environment = StageEnvironment.using(self.settings, database)
        return execute(self.work("container").spec, lambda *_: None, environment)

    def left_in_s3(self) -> list[str]:
        return _keys()

    def sent(self) -> str:
        """Everything that was sent to services that run payloads."""
        return json.dumps([call.body for call in self.cloud.calls if call.service != "s3"], default=str)

    def ended(self) -> bool:
        """Whether every machine ends within the grace it is given."""
        return not psutil.wait_procs([psutil.Process(pid) for pid in self.cloud.running()], timeout=15)[1]

    # Machines -------------------------------------------------------------------------------------------

    def fargate(self, then: Callable[[subprocess.Popen], None] | None = None) -> None:
        """Let ECS run what RunTask says; a task that is stopped is terminated."""
        machines: dict[str, subprocess.Popen] = {}
        tasks = get_backend("ecs")[ACCOUNT][REGION].tasks

        def started(call: Call, answered: bytes) -> None:
            arn = json.loads(answered)["tasks"][0]["taskArn"]
            override = call.body["overrides"]["containerOverrides"][0]
            variables = {item["name"]: item["value"] for item in override["environment"]}
            variables["ECS_CONTAINER_METADATA_URI_V4"] = f"{self.cloud.url}{METADATA}{arn}"
            machine = machines[arn] = self.cloud.start(override["command"], {**self.defined, **variables})
            threading.Thread(target=ended, args=(arn, machine), daemon=True).start()
            if then is not None:
                threading.Thread(target=then, args=(machine,), daemon=True).start()

        def ended(arn: str, machine: subprocess.Popen) -> None:
            code = machine.wait()
            task = next(task for group in tasks.values() for task in group.values() if task.task_arn == arn)
            task.containers[0].exitCode = code
            task.last_status = task.desired_status = "STOPPED"
            task.stopped_reason = task.stopped_reason or "Essential container in task exited"

        def stopped(call: Call, answered: bytes) -> None:
            machines[call.body["task"]].send_signal(signal.SIGTERM)

        self.cloud.on("ecs.RunTask", started)
        self.cloud.on("ecs.StopTask", stopped)

    def functions(self) -> None:
        """Let Lambda call the handler in a process that is kept warm; one that ends is a function error."""
        warm: list[subprocess.Popen] = []

        def invoke(call: Call) -> Answer:
            if not warm or warm[-1].poll() is not None:
                warm.append(self.cloud.start(["python", "-c", FUNCTION], self.defined, stdin=subprocess.PIPE))
            warm[-1].stdin.write(json.dumps(call.body["event"]) + "\n")
            warm[-1].stdin.flush()
            log = []
            for line in warm[-1].stdout:
                if line.startswith("ANSWER "):
                    return Answer(200, line.removeprefix("ANSWER "))
                log.append(line)
            return function_error(f"Runtime exited with error: exit status {warm[-1].wait()}", "".join(log))

        self.cloud.instead("lambda.Invoke", invoke)

    def jobs(self, then: Callable[[subprocess.Popen, Any], None] | None = None) -> None:
        """Let Glue run the job's script with a run's arguments; a run that is stopped is killed."""
        job = get_backend("glue")[ACCOUNT][REGION].jobs[JOB]
        machines: dict[str, subprocess.Popen] = {}

        def started(call: Call, answered: bytes) -> None:
            given = {**call.body.get("Arguments", {}), "--JOB_RUN_ID": json.loads(answered)["JobRunId"]}
            words = [word for pair in given.items() for word in pair]
            machine = self.cloud.start(["python", "-m", "barecount_assets.stages", *words], self.defined)
            run = job.job_runs[-1]
            machines[run.job_run_id] = machine
            threading.Thread(target=ended, args=(machine, run), daemon=True).start()
            if then is not None:
                threading.Thread(target=then, args=(machine, run), daemon=True).start()

        def ended(machine: subprocess.Popen, run: Any) -> None:
            code = machine.wait()
            if run.status not in ("TIMEOUT", "STOPPED"):
                run.status = "FAILED" if code else "SUCCEEDED"

        def stopped(call: Call) -> Answer:  # moto has no such operation
            for run in (run for run in job.job_runs if run.job_run_id in call.body["JobRunIds"]):
                run.status = "STOPPED"
                if run.job_run_id in machines:
                    machines[run.job_run_id].kill()
            return Answer(200, json.dumps({"SuccessfulSubmissions": [
                {"JobName": JOB, "JobRunId": run} for run in call.body["JobRunIds"]], "Errors": []}))

        self.cloud.on("glue.StartJobRun", started)
        self.cloud.instead("glue.BatchStopJobRun", stopped)

    def instances(self, ping: Callable[[str], str] = lambda instance: "Online",
                  then: Callable[[subprocess.Popen], None] | None = None) -> None:
        """Let instances run what SSM says; moto knows no agents, so `ping` says how each is."""
        machines: dict[str, subprocess.Popen] = {}

        def information(call: Call) -> Answer:
            (instance,) = call.body["Filters"][0]["Values"]
            return Answer(200, json.dumps({"InstanceInformationList": [
                {"InstanceId": instance, "PingStatus": ping(instance)}]}))

        def sent(call: Call, answered: bytes) -> None:
            (instance,) = call.body["InstanceIds"]
            invocation = self._invocation(instance)
            *exports, _, line = call.body["Parameters"]["commands"]
            variables = dict(export.removeprefix("export ").split("=", 1) for export in exports)
            variables = {name: shlex.split(value)[0] for name, value in variables.items()}
            address = line.removeprefix("exec barecount-stage ")
            machine = machines[instance] = self.cloud.start(
                ["python", "-m", "barecount_assets.stages", address], {**self.defined, **variables})
            invocation["Status"] = "InProgress"
            threading.Thread(target=ended, args=(machine, invocation), daemon=True).start()
            if then is not None:
                threading.Thread(target=then, args=(machine,), daemon=True).start()

        def ended(machine: subprocess.Popen, invocation: dict[str, Any]) -> None:
            output, _ = machine.communicate()
            invocation["StandardOutputContent"] = output
            invocation["Status"] = "Failed" if machine.returncode else "Success"

        def terminated(call: Call, answered: bytes) -> None:
            for name, instance in call.body.items():
                if name.startswith("InstanceId") and instance in machines:
                    machines[instance].kill()

        self.cloud.instead("ssm.DescribeInstanceInformation", information)
        self.cloud.instead("ssm.CancelCommand", lambda call: Answer(200, "{}"))
        self.cloud.on("ssm.SendCommand", sent)
        self.cloud.on("ec2.TerminateInstances", terminated)

    @staticmethod
    def _invocation(instance: str) -> dict[str, Any]:
        """The newest command's part on an instance: moto gives a command without targets to every instance it knows."""
        return get_backend("ssm")[ACCOUNT][REGION]._commands[-1].get_invocation(instance, None)


def function_error(message: str, log: str = "") -> Answer:
    """What Lambda answers when a function failed: with the last four kilobytes of its log."""
    tail = base64.b64encode(log.encode()[-4096:]).decode()
    return Answer(200, json.dumps({"errorMessage": message}),
                  {"X-Amz-Function-Error": "Unhandled", "X-Amz-Log-Result": tail})


def _keys() -> list[str]:
    return [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def _resolve(name: str) -> None:
    if ".invalid" in name:
        raise OSError("no such name")


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud() as started:
        with pytest.MonkeyPatch.context() as patched:  # no longer: other tests of this process are not on AWS
            for name, value in credentials(started.url).items():
                patched.setenv(name, value)
            _lay_out()
        yield started


@pytest.fixture
def locked(world: World) -> Iterator[None]:
    """Somebody else works on the tenant's calendar: a payload waits for its lock."""
    with StageEnvironment.using(world.settings, world.database).exclusive("acme", "calendar"):
        yield


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipes waits ten seconds for a last word, and five between two looks at Glue; here less is enough."""
    monkeypatch.setattr("dagster_aws.pipes.clients.glue.time", SimpleNamespace(sleep=lambda _: time.sleep(0.3)))
    monkeypatch.setattr("dagster._core.pipes.utils.WAIT_FOR_LOGS_AFTER_EXECUTION_INTERVAL", 1)


@pytest.fixture
def world(cloud: Cloud, tmp_path: Path, new_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch) -> World:
    for name, value in credentials(cloud.url).items():
        monkeypatch.setenv(name, value)
    cloud.forget()
    for key in _keys():
        boto3.client("s3").delete_object(Bucket=BUCKET, Key=key)
    settings = Settings(PROJECT, tmp_path / "data", str(tmp_path / "data" / "raw"), None)
    return World(cloud, replace(settings, environment=ENVIRONMENT.name), new_database())


def _lay_out() -> None:
    """What deploy/terraform makes, as far as a run needs it."""
    for model in ("ecs::task", "glue::job_run"):
        state_manager.set_transition(model, NEVER)
    boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    ec2 = boto3.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    networks = ENVIRONMENT.spec.networks.values()
    for number, name in enumerate(sorted({name for network in networks for name in network.subnets})):
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", TagSpecifications=_named("subnet", name))
    for name in sorted({name for network in networks for name in network.security_groups}):
        ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc,
                                  TagSpecifications=_named("security-group", name))
    ec2.create_launch_template(
        LaunchTemplateName="barecount-dev-stage",
        LaunchTemplateData={"ImageId": ec2.describe_images()["Images"][0]["ImageId"],
                            "IamInstanceProfile": {"Name": "barecount-dev-stage"}})
    glue = boto3.client("glue")
    glue.create_connection(ConnectionInput={
        "Name": "private", "ConnectionType": "NETWORK", "ConnectionProperties": {},
        "PhysicalConnectionRequirements": {
            "SubnetId": subnets("barecount-dev-private-a")[0], "SecurityGroupIdList": [
                group["GroupId"] for group in ec2.describe_security_groups(Filters=[
                    {"Name": "tag:Name", "Values": ["barecount-dev-private"]}])["SecurityGroups"]]}})
    glue.create_job(Name=JOB, Role="barecount-dev-glue-calendar", Connections={"Connections": ["private"]},
                    Command={"Name": "glueetl"}, ExecutionProperty={"MaxConcurrentRuns": 20})
    ecs, fargate = boto3.client("ecs"), ENVIRONMENT.backend_of("container")
    ecs.create_cluster(clusterName=fargate.cluster)
    ecs.register_task_definition(
        family=fargate.task_definition, networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="1024",
        memory="4096", taskRoleArn=f"arn:aws:iam::{ACCOUNT}:role/{fargate.task_definition}",
        containerDefinitions=[{
            "name": fargate.container, "image": "barecount", "essential": True, "cpu": 1024, "memory": 4096,
            "logConfiguration": {"logDriver": "awslogs", "options": {
                "awslogs-group": "/barecount/stages", "awslogs-stream-prefix": "stage"}}}])
    boto3.client("logs").create_log_group(logGroupName="/barecount/stages")
    iam = boto3.client("iam")
    iam.create_instance_profile(InstanceProfileName="barecount-dev-ec2-calendar")
    role = iam.create_role(RoleName="barecount-dev-lambda-calendar", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    size = SIZES.size("lambda", "small")
    boto3.client("lambda").create_function(
        FunctionName="barecount-dev-stage-calendar-small-private-vpc", Role=role, PackageType="Image",
        Code={"ImageUri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/barecount@{IMAGE}"},
        MemorySize=size.memory_mb, Timeout=size.timeout_seconds, VpcConfig={
            "SubnetIds": subnets(*ENVIRONMENT.network_of("private_vpc").subnets),
            "SecurityGroupIds": [group["GroupId"] for group in ec2.describe_security_groups(Filters=[
                {"Name": "tag:Name", "Values": ["barecount-dev-private"]}])["SecurityGroups"]]})


def _named(kind: str, name: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": [{"Key": "Name", "Value": name}]}]


def subnets(*names: str) -> list[str]:
    """Identifiers of subnets."""
    found = boto3.client("ec2").describe_subnets(Filters=[{"Name": "tag:Name", "Values": list(names)}])["Subnets"]
    return sorted(subnet["SubnetId"] for subnet in found)
