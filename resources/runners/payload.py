"""The payload's side of a runner: a run specification in, progress, logs and a receipt out, over Dagster Pipes.

Every backend starts the same entry point, `python -m barecount_assets.stages RUN_SPEC`; RUN_SPEC is a run specification
as JSON, a file that holds it, or an `s3://` address. Messages go where the Pipes bootstrap parameters say: a file or
S3. Without them the receipt, or the error's envelope, is printed as JSON, and the exit code is 0 or 1.

A stage that fails reports its error and ends with exit code 0: only a payload that could not speak exits otherwise. It
ends itself when its time is over, when it is interrupted and does not stop within seconds, and when the process that
started it is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from resources.runners import identity
from resources.runners.stage import StageReceipt, StageSpec
from resources.runners.work import Progress, RunSpec
from resources.runtime import logs
from resources.runtime.errors import BareCountError, ErrorCode, unexpected

PARENT_VARIABLE = "BARECOUNT_PARENT"
"""Says which process starts a payload on its own machine: it may be gone before the payload could see it."""
RECEIPT, ERROR = "receipt", "error"
OUTCOME_KEY = "outcome.json"
"""Object beside the messages in S3 that says once more how it ended: messages can be lost, see `_report`."""
_GRACE_SECONDS = 10.0
_LOG_EVERY_SECONDS = 2.0
_INTERRUPTED = 130

Execute = Callable[[StageSpec, Progress], StageReceipt]


def main(arguments: Sequence[str], execute: Execute) -> int:
    """The entry point; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m barecount_assets.stages RUN_SPEC (JSON, a file, or s3://bucket/key)", file=sys.stderr)
        return 2
    try:
        run_spec = read_run_spec(arguments[0])
    except (ValueError, KeyError, TypeError, OSError) as error:
        print(f"RUN_SPEC is not a run specification: {error}", file=sys.stderr)
        return 2
    if run_spec.output_path is not None:
        _redirect_output(run_spec.output_path)
    _stop_when_interrupted()
    if "DAGSTER_PIPES_CONTEXT" not in os.environ:
        return _speak_on_stdout(run_spec, execute)
    threading.Thread(target=_end_with, args=(_parent(),), daemon=True).start()
    serve(run_spec, execute, os.environ)
    return 0


def unnamed(arguments: Sequence[str]) -> list[str]:
    """Arguments of the entry point from those a Glue job gives, which all have names.

    `--run-spec` is RUN_SPEC; the parameters of Dagster Pipes and what begins with BARECOUNT_ become environment
    variables, the run's id among them; others are Glue's own. Arguments without `--run-spec` are returned as they are.
    """
    if "--run-spec" not in arguments:
        return list(arguments)
    named = dict(zip(arguments, arguments[1:], strict=False))
    if run := named.get("--JOB_RUN_ID"):
        os.environ["BARECOUNT_INSTANCE_ID"] = run
    for name, value in named.items():
        variable = name.removeprefix("--").replace("-", "_").upper()
        if name.startswith("--") and variable.startswith(("DAGSTER_PIPES_", "BARECOUNT_")):
            os.environ[variable] = value
    return [named["--run-spec"]]


def serve(run_spec: RunSpec, execute: Execute, bootstrap: Mapping[str, str]) -> None:
    """Do the work and speak over Pipes; `bootstrap` holds the parameters Dagster gave."""
    import dagster_pipes

    with ExitStack() as stack:
        # Not `open_dagster_pipes`: it answers with the first context of the process for ever, and a Lambda function
        # that is kept warm does a stage after another.
        pipes = stack.enter_context(
            dagster_pipes.PipesContext(dagster_pipes.PipesMappingParamsLoader(bootstrap), *_channels(bootstrap)))
        deadline = threading.Timer(run_spec.timeout_seconds, _out_of_time, (run_spec, pipes, bootstrap))
        deadline.daemon = True
        deadline.start()
        stack.callback(deadline.cancel)
        last = 0.0

        def progress(message: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _LOG_EVERY_SECONDS:
                last = time.monotonic()
                pipes.log.info(f"{message} ({done} of {total})")

        _report(pipes, bootstrap, _outcome(run_spec, execute, progress))


def read_run_spec(argument: str) -> RunSpec:
    """A run specification from JSON text, a file or S3.

    Raises ValueError, KeyError, TypeError or OSError for anything else.
    """
    if argument.startswith("s3://"):
        import boto3

        bucket, _, key = argument.removeprefix("s3://").partition("/")
        text = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    elif argument.lstrip().startswith("{"):
        text = argument
    else:
        text = Path(argument).read_text(encoding="utf-8")
    return RunSpec.from_json(json.loads(text))


def _outcome(run_spec: RunSpec, execute: Execute, progress: Progress) -> dict[str, Any]:
    who = {**run_spec.identity, **identity.software(), **identity.machine()}
    try:
        with identity.running_as(who):
            receipt = execute(run_spec.spec, progress)
    except BareCountError as error:
        return {ERROR: error.envelope()["error"], "runner": who}
    except Exception as cause:
        error = unexpected(cause)
        logs.get_logger("runners").exception(
            "stage failed", extra={"fields": {"correlation_id": error.correlation_id}})
        return {ERROR: error.envelope()["error"], "runner": who}
    return {RECEIPT: receipt.to_json(), "runner": who}


def _speak_on_stdout(run_spec: RunSpec, execute: Execute) -> int:
    outcome = _outcome(run_spec, execute, lambda *_: None)
    print(json.dumps(outcome, default=str))
    return 1 if ERROR in outcome else 0


def _channels(bootstrap: Mapping[str, str]) -> tuple[Any, Any]:
    """What reads the context and what writes messages, by what the bootstrap parameters name: S3, else a file."""
    import dagster_pipes

    reader, writer = dagster_pipes.PipesDefaultContextLoader(), dagster_pipes.PipesDefaultMessageWriter()
    context = dagster_pipes.decode_param(bootstrap["DAGSTER_PIPES_CONTEXT"])
    messages = dagster_pipes.decode_param(bootstrap["DAGSTER_PIPES_MESSAGES"])
    if "bucket" in context or "bucket" in messages:
        import boto3

        client = boto3.client("s3")
        if "bucket" in context:
            reader = dagster_pipes.PipesS3ContextLoader(client)
        if "bucket" in messages:
            writer = dagster_pipes.PipesS3MessageWriter(client, interval=_LOG_EVERY_SECONDS)
    return reader, writer


def _report(pipes: Any, bootstrap: Mapping[str, str], outcome: Mapping[str, Any]) -> None:
    """Say how it ended, where messages go to S3 by two ways.

    Pipes writes messages there from a thread of its own, which ends with the first one that S3 does not take, and takes
    all later ones along: the outcome is put beside them, so that work that is done does not end without a word.
    """
    import dagster_pipes

    pipes.report_custom_message(outcome)
    messages = dagster_pipes.decode_param(bootstrap["DAGSTER_PIPES_MESSAGES"])
    if "bucket" not in messages:
        return
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        boto3.client("s3").put_object(
            Bucket=messages["bucket"], Key=f"{messages['key_prefix']}/{OUTCOME_KEY}",
            Body=json.dumps(outcome, default=str).encode())
    except (ClientError, BotoCoreError) as cause:
        pipes.log.warning(f"the outcome could not be put beside the messages: {cause}")


def _out_of_time(run_spec: RunSpec, pipes: Any, bootstrap: Mapping[str, str]) -> None:
    error = BareCountError(
        ErrorCode.RUNNER_TIMEOUT,
        f"{run_spec.spec.stage} of {run_spec.spec.pipeline} for {run_spec.spec.tenant_id} took longer than its "
        f"{run_spec.timeout_seconds} s",
        hint="nothing half-done is visible; give the pipeline a larger size, or run a shorter range",
        retryable=False,
    )
    _report(pipes, bootstrap, {ERROR: error.envelope()["error"], "runner": dict(run_spec.identity)})
    pipes.close()
    os._exit(0)


def _redirect_output(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _stop_when_interrupted() -> None:
    """An interrupt stops Python code at once; a call into a driver may not return: after a grace the process ends."""

    def interrupted(*_: Any) -> None:
        timer = threading.Timer(_GRACE_SECONDS, os._exit, (_INTERRUPTED,))
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)


def _parent() -> int:
    return int(os.environ.get(PARENT_VARIABLE) or os.getppid())


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: nobody would hear what it says."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(_INTERRUPTED)
