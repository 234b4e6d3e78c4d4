"""The job that does what waited for an approval and is no run of a pipeline.

A back-fill, a run computed again, or refused records sent through ingestion again.

It gives the command again that was refused, in a process of its own, in the name of who gave it first. The command asks
the policies as it did then, and finds the approval; what is done already it does not do again.

https://docs.dagster.io/guides/build/jobs/op-jobs
"""

# No postponed annotations: Dagster looks at those of ops.
import datetime as dt
import json
import subprocess
import sys

import dagster as dg

from barecount_assets import keys
from resources.governance import approvals
from resources.governance.approvals import Approval, RecordsRequested, ReplayRequested
from resources.runtime.database import Database
from resources.runtime.settings import Settings

NAME = "approved_work"


def command_of(approval: Approval) -> list[str]:
    """The words that ask for the work again, after `barecount`."""
    work = approval.run_request
    assert work is not None
    if isinstance(work, ReplayRequested):
        return ["replay", work.replay_of, "--tenant", work.tenant_id, "--by", approval.requested_by, "--json",
                *(["--current"] if work.versions == "current" else []), *(["--publish"] if work.publishes else [])]
    if isinstance(work, RecordsRequested):
        return ["quarantine", "replay", "--pipeline", work.pipeline, "--tenant", work.tenant_id,
                "--by", approval.requested_by, "--json",
                *(word for name, value in sorted(work.narrowed.items()) for word in (f"--{name}", value)),
                *(word for number in work.ids for word in ("--id", str(number))),
                *(word for name, value in sorted(work.values.items()) for word in ("--fix", f"{name}={value}")),
                *(("--from", work.edits) if work.edits else ()), *(("--why", work.why) if work.why else ())]
    return ["run", work.pipeline, "--tenant", work.tenant_id, "--from", str(work.start), "--to", str(work.end),
            "--backfill", "--partition", work.granularity, "--as", approval.requested_by, "--json",
            *(word for name, path in sorted(work.source_paths.items()) for word in ("--source", f"{name}={path}"))]


@dg.op(description="Gives the command again that waited for the approval.",
       retry_policy=dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL))
def give_the_command_again(context: dg.OpExecutionContext) -> None:
    number = int(context.run.tags[keys.APPROVAL_TAG])
    with Database.open(Settings.from_environment()).connect(autocommit=True) as connection:
        approval = approvals.get(connection, number, dt.datetime.now(dt.UTC))
    words = command_of(approval)
    context.log.info(f"approval {number}: barecount {' '.join(words)}")
    done = subprocess.run([sys.executable, "-m", "barecount_assets.cli.main", *words], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise dg.Failure(
            description=f"barecount {words[0]} ended with exit code {done.returncode}: "
                        f"{(done.stderr or done.stdout)[-2000:]}",
            metadata={"output": dg.MetadataValue.text(done.stdout)}, allow_retries='"retryable": true' in done.stdout)
    context.add_output_metadata({"output": dg.MetadataValue.json(json.loads(done.stdout))})


@dg.job(name=NAME, executor_def=dg.in_process_executor,
        description="Back-fills and replays, of runs or of records, that waited for an approval, once it is granted.")
def approved_work() -> None:
    give_the_command_again()
