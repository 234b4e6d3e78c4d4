"""Glue: the stage is a run of the job that has the work's network profile; its size comes with the run.

AWS binds the network to a job, so there is one for each profile. A run cannot carry tags: they are its arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dagster_aws.pipes import PipesGlueClient

from resources.host.runner_catalog import Environment, Glue
from resources.runners import pipes
from resources.runners.backends.aws import (
    Aws,
    Network,
    conversation,
    log_tail,
    network_of,
    network_refused,
    of_stage,
    patient,
    patiently,
    quietly,
    variables,
)
from resources.runners.payload import Execute
from resources.runners.stage import StageReceipt
from resources.runners.work import Progress, Work
from resources.runtime.errors import BareCountError, ErrorCode

# The payload ends itself at its timeout; Glue ends a run that did not five minutes later.
_GRACE_MINUTES = 5
_NO_ROOM = ("ConcurrentRunsExceededException", "ResourceNumberLimitExceededException")
_OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED", "TIMEOUT", "ERROR", "EXPIRED"})


@dataclass
class _JobRun:
    """The run of a job, once it is started."""

    id: str | None = None
    state: str = ""
    words: str = ""
    log_group: str = "/aws-glue/jobs"


@dataclass(frozen=True)
class GlueBackend:
    """Runs the stage as a run of `<job>-<network profile>`."""

    declared: Glue
    aws: Aws
    name: str = "glue"

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt:
        glue, job, run = self.aws.client("glue"), self._job(work), _JobRun()
        self._validate(glue, work, job, network_of(self.aws, work))
        self._end_leftovers(glue, work, job, context)
        with conversation(self.aws, work) as talk:
            client = PipesGlueClient(  # what it does when interrupted hides the interrupt if Glue does not stop the run
                context_injector=talk.injector, message_reader=talk.reader, forward_termination=False,
                client=patient(glue, start_job_run=lambda **call: self._start(glue, work, run, call),
                               get_job_run=lambda **call: self._look(glue, run, call)))
            call = {
                "JobName": job, "WorkerType": work.size.flavor, "NumberOfWorkers": work.size.workers,
                "Timeout": math.ceil(work.size.timeout_seconds / 60) + _GRACE_MINUTES,
                "Arguments": {
                    "--run-spec": talk.run_spec, **{f"--tag-{name}": value for name, value in work.tags.items()},
                    **{f"--{name}": value for name, value in variables(work).items()}},
            }
            progress(f"{work.spec.stage} as a run of {job}", 0, 0)
            try:
                return pipes.receipt_of(
                    lambda: client.run(context=context, start_job_run_params=call), work, where=f"the run of {job}",
                    last_words=lambda: " | ".join(filter(None, (run.words, self._log(run)))), heard=talk.reader.heard)
            except BareCountError as error:
                if run.state == "TIMEOUT" and error.code is ErrorCode.RUNNER_LOST:
                    raise _timeout(work, job) from error
                raise
            finally:
                if run.id is not None and run.state not in _OVER:
                    quietly(context, f"stop run {run.id} of {job}",
                            lambda: glue.batch_stop_job_run(JobName=job, JobRunIds=[run.id]))

    def _job(self, work: Work) -> str:
        name, role = self.declared.job, self.declared.stage_role
        profile = work.identity["network_profile"].replace("_", "-")
        return f"{name if role is None else of_stage(name, work)}-{profile}"

    def _validate(self, glue: Any, work: Work, job: str, network: Network) -> None:
        """Refuse a job whose connections lead to another network than the profile's."""
        try:
            declared = glue.get_job(JobName=job)["Job"]
        except glue.exceptions.EntityNotFoundException as cause:
            raise BareCountError(
                ErrorCode.RUNNER_UNKNOWN, f"there is no Glue job {job}; nothing was started",
                hint="make the job: one for each network profile, named <job>-<profile>; with stage_role one for each "
                "stage too, named <job>-<stage>-<profile>") from cause
        role = self.declared.stage_role
        if role is not None and declared["Role"].rpartition("/")[2] != of_stage(role, work):
            raise BareCountError(
                ErrorCode.RUNNER_UNKNOWN, f"Glue job {job} has the role {declared['Role']}, declared is "
                f"{of_stage(role, work)}; nothing was started", hint="correct the job, or the environment's stage_role")
        names = declared.get("Connections", {}).get("Connections", [])
        found = [glue.get_connection(Name=name, HidePassword=True)["Connection"]["PhysicalConnectionRequirements"]
                 for name in names]
        strange = {item["SubnetId"] for item in found} - set(network.subnets) | {
            group for item in found for group in item["SecurityGroupIdList"]} - set(network.security_groups)
        if strange or not found:
            raise network_refused(work, f"job {job} is in {', '.join(sorted(strange)) or 'no VPC'}")

    def _start(self, glue: Any, work: Work, run: _JobRun, call: dict[str, Any]) -> dict[str, Any]:
        answer = patiently(self.aws, work, lambda: glue.start_job_run(**call), _NO_ROOM)
        run.id = answer["JobRunId"]
        return answer

    def _look(self, glue: Any, run: _JobRun, call: dict[str, Any]) -> dict[str, Any]:
        answer = glue.get_job_run(**call)
        found = answer["JobRun"]
        run.state, run.words = found["JobRunState"], found.get("ErrorMessage", "")
        run.log_group = found.get("LogGroupName", run.log_group)
        return answer

    def _log(self, run: _JobRun) -> str:
        return log_tail(self.aws, f"{run.log_group}/output", run.id) if run.id is not None else ""

    def _end_leftovers(self, glue: Any, work: Work, job: str, context: Any) -> None:
        """A run whose process was killed and is tried again left one of the same token: nobody hears it any more."""
        pages = glue.get_paginator("get_job_runs").paginate(JobName=job, PaginationConfig={"MaxItems": 200})
        token = work.tags["run_token"]
        found = [run["Id"] for page in pages for run in page["JobRuns"]
                 if run["JobRunState"] not in _OVER and run.get("Arguments", {}).get("--tag-run_token") == token]
        if found:
            quietly(context, f"stop {', '.join(found)}", lambda: glue.batch_stop_job_run(JobName=job, JobRunIds=found))


def _timeout(work: Work, job: str) -> BareCountError:
    return BareCountError(
        ErrorCode.RUNNER_TIMEOUT,
        f"Glue ended the run of {job} {_GRACE_MINUTES} minutes after its {work.size.timeout_seconds} s",
        hint="nothing half-done is visible; give the pipeline a larger size, or run a shorter range",
    )


def build(declared: Glue, environment: Environment, execute: Execute) -> GlueBackend:
    return GlueBackend(declared, Aws.of(environment))
