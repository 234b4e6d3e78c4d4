"""The action job: KPI events become jobs, deliveries and receipts.

Four ops, one after the other: evaluate, enqueue, deliver, record. Each brings the database to where it should be and
does nothing when it is there already, so that a rerun, a second daemon, or the worker of `barecount actions work`
beside it do nothing twice. The job's metadata shows the jobs since the events it was started for, with their receipts,
whoever did the work; it fails when one of them failed or was given up.

https://docs.dagster.io/guides/build/jobs/op-jobs
"""

# No postponed annotations: Dagster looks at those of ops.
import datetime as dt
from typing import Any

import dagster as dg

from barecount_assets.action_work import ActionWork
from barecount_assets.stages.environment import StageEnvironment
from resources.action.model import JobState

NAME = "action_job"
SINCE_TAG = "barecount/events_since"
_SHOWN = 50


class Actions:
    """The `actions` resource: what the ops work with; nothing is opened before the first op runs."""

    def __init__(self, work: ActionWork | None = None) -> None:
        self._work = work

    def work(self) -> ActionWork:
        self._work = self._work or ActionWork.of(StageEnvironment.open())
        return self._work


@dg.op(required_resource_keys={"actions"}, out=dg.Out(dg.Nothing),
       description="Decides about every event that waits, and about what is due.")
def evaluate(context: dg.OpExecutionContext) -> None:
    done = context.resources.actions.work().evaluate()
    context.add_output_metadata({"events": done.events, "jobs": sum(done.jobs.values()), **{
        f"jobs/{state}": count for state, count in done.jobs.items()}})


@dg.op(required_resource_keys={"actions"}, ins={"evaluated": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing),
       description="Queues deliveries of jobs.")
def enqueue(context: dg.OpExecutionContext) -> None:
    context.add_output_metadata({"jobs": context.resources.actions.work().enqueue()})


@dg.op(required_resource_keys={"actions"}, ins={"enqueued": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing),
       description="Sends what is due.")
def deliver(context: dg.OpExecutionContext) -> None:
    report = context.resources.actions.work().deliver()
    context.add_output_metadata({"attempts": report.attempts, "delivered": report.completed,
                                 "to be tried again": report.failed, "given up": report.dlq})


@dg.op(required_resource_keys={"actions"}, ins={"delivered": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing),
       description="Follows up, and shows receipts.")
def record(context: dg.OpExecutionContext) -> None:
    work = context.resources.actions.work()
    settled = work.settle()
    since = context.run.tags.get(SINCE_TAG)
    start = dt.datetime.fromisoformat(since) if since else work.now() - dt.timedelta(minutes=5)
    jobs = work.jobs_since(start)
    context.add_output_metadata({
        "jobs": len(jobs), "settled": settled, "decided": _table(jobs), "receipts": _receipts(work, jobs)})
    bad = [job for job in jobs if job.state in (JobState.FAILED, JobState.DLQ)]
    if bad:
        raise dg.Failure(
            description="; ".join(f"job {job.job_id} of {job.tenant_id} ({job.rule}) is {job.state}: {job.reason}"
                                  for job in bad[:5]),
            metadata={"jobs": dg.MetadataValue.json([job.job_id for job in bad])}, allow_retries=False)


def _table(jobs: list[Any]) -> dg.MetadataValue:
    rows = "\n".join(f"| {job.job_id} | {job.tenant_id} | {job.rule} | {job.kind} | {job.subject} | {job.period} | "
                     f"{job.state} | {job.reason} |" for job in jobs[:_SHOWN])
    return dg.MetadataValue.md("| job | tenant | rule | kind | subject | period | state | reason |\n"
                               "| --- | --- | --- | --- | --- | --- | --- | --- |\n" + rows)


def _receipts(work: ActionWork, jobs: list[Any]) -> dg.MetadataValue:
    from resources.action.delivery import queue

    lines = ["| job | endpoint | attempt | at | outcome | status | reason |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    with work.environment.database.connect(autocommit=True) as connection:
        for job in jobs[:_SHOWN]:
            found = queue.receipts(connection, tenant_id=job.tenant_id, origin=f"action_job:{job.job_id}")
            lines += [f"| {job.job_id} | {r.endpoint} | {r.attempt} | {r.attempted_at:%Y-%m-%d %H:%M:%S} | {r.outcome} "
                      f"| {r.status or '-'} | {r.reason} |" for r in found]
    return dg.MetadataValue.md("\n".join(lines))


@dg.job(name=NAME, executor_def=dg.in_process_executor,
        description="KPI events become actions: evaluate, enqueue, deliver, record.")
def action_job() -> None:
    record(deliver(enqueue(evaluate())))
