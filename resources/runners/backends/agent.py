"""An agent inside somebody else's network: the stage is a word in a queue that the agent polls.

Nothing connects to the agent. It asks SQS for work and S3 for everything else (`resources.runners.agent`); this side
puts the word into the queue and watches a few objects beside the messages of the run:

    claim     who took the work; made only where there is none, so that a word that came twice is done once
    alive     put again and again while the work goes on
    ended     how the process of the payload ended: exit code, last lines
    stop      put by this side: the work is not wanted any more
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from resources.host.runner_catalog import Agent, Environment
from resources.runners import pipes
from resources.runners.backends.aws import Aws, Conversation, conversation, variables
from resources.runners.payload import Execute
from resources.runners.stage import StageReceipt
from resources.runners.work import Progress, Work
from resources.runtime.errors import BareCountError, ErrorCode

CLAIM, ALIVE, ENDED = "claim", "alive", "ended"
_CLAIMED_SECONDS = 600
_SILENT_SECONDS = 90
# The payload ends itself at its timeout, and the agent one that did not; then this side gives up.
GRACE_SECONDS = 300


class AgentLost(Exception):
    """The agent that took the work is not heard of any more."""


@dataclass
class _Job:
    """What is known of a piece of work that an agent does."""

    agent: str = ""
    ended: Mapping[str, Any] | None = None
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        if self.ended is None:
            return ""
        return f"exit code {self.ended['exit_code']}" + (
            f" | {self.ended['last_words']}" if self.ended["last_words"] else "")


@dataclass(frozen=True)
class AgentBackend:
    """Runs the stage where an agent polls the queue."""

    declared: Agent
    aws: Aws
    name: str = "agent"

    def run(self, work: Work, progress: Progress, context: Any) -> StageReceipt:
        address, job = self._queue(work), _Job()
        with conversation(self.aws, work) as talk:
            progress(f"{work.spec.stage} for an agent that polls {self.declared.queue}", 0, 0)
            try:
                return pipes.receipt_of(
                    lambda: self._invoke(work, talk, job, address, context), work,
                    where="the process at the agent",
                    last_words=lambda: job.words, heard=talk.reader.heard)
            finally:
                if job.ended is None:  # whoever has the work, or gets it yet, learns that nobody waits for it
                    talk.keep(talk.stop, "its run is over")

    def _queue(self, work: Work) -> str:
        sqs = self.aws.client("sqs")
        try:
            return sqs.get_queue_url(QueueName=self.declared.queue)["QueueUrl"]
        except sqs.exceptions.QueueDoesNotExist as cause:
            raise BareCountError(
                ErrorCode.RUNNER_UNKNOWN,
                f"there is no queue {self.declared.queue} for network profile {work.identity['network_profile']}; "
                "nothing was started",
                hint="make the queue (deploy/terraform), and start `barecount agent` where the work is to be done",
            ) from cause

    def _invoke(self, work: Work, talk: Conversation, job: _Job, address: str, context: Any) -> Any:
        with dg.open_pipes_session(context, talk.injector, talk.reader) as session:
            word = {"run_spec": talk.run_spec, "environment": variables(work), "tags": dict(work.tags),
                    "bootstrap": dict(session.get_bootstrap_env_vars()), "timeout_seconds": work.size.timeout_seconds}
            self.aws.client("sqs").send_message(QueueUrl=address, MessageBody=json.dumps(word, sort_keys=True))
            self._wait(work, talk, job)
        return dg.PipesClientCompletedInvocation(session, metadata={"agent": job.agent})

    def _wait(self, work: Work, talk: Conversation, job: _Job) -> None:
        """Until the process has ended: for an agent to take the work, and then for its next sign of life."""
        silent = waited = 0.0
        while ENDED not in job.marks:
            self.aws.pause(self.aws.poll_seconds)
            waited += self.aws.poll_seconds
            marks = talk.marks()
            silent = 0.0 if marks != job.marks else silent + self.aws.poll_seconds
            job.marks = marks
            if not job.agent and CLAIM in marks:
                job.agent, waited = json.loads(talk.get(CLAIM))["agent"], 0.0
            if not job.agent and waited >= _CLAIMED_SECONDS:
                raise self._nobody(work)
            if job.agent and silent >= _SILENT_SECONDS:
                raise AgentLost(f"agent {job.agent} took the work and was silent for {_SILENT_SECONDS} s")
            if job.agent and waited >= work.size.timeout_seconds + GRACE_SECONDS:
                raise self._timeout(work, job)
        job.ended = json.loads(talk.get(ENDED))
        job.agent = job.agent or job.ended["agent"]

    def _nobody(self, work: Work) -> BareCountError:
        return BareCountError(
            ErrorCode.RUNNER_UNAVAILABLE,
            f"no agent took {work.spec.stage} of {work.spec.pipeline} for {work.spec.tenant_id} from "
            f"{self.declared.queue} within {_CLAIMED_SECONDS} s; it will not be done",
            hint="see whether `barecount agent` runs there and reaches SQS; the step tries again", retryable=True)

    def _timeout(self, work: Work, job: _Job) -> BareCountError:
        return BareCountError(
            ErrorCode.RUNNER_TIMEOUT,
            f"agent {job.agent} did not end {work.spec.stage} of {work.spec.pipeline} for {work.spec.tenant_id} within "
            f"{work.size.timeout_seconds} s and {GRACE_SECONDS} s more",
            hint="nothing half-done is visible; give the pipeline a larger size, or run a shorter range")


def build(declared: Agent, environment: Environment, execute: Execute) -> AgentBackend:
    return AgentBackend(declared, Aws.of(environment))
