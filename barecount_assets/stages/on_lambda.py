"""The payload as a Lambda function: `barecount_assets.stages.on_lambda.handler`.

An event holds a run specification, the parameters of Dagster Pipes, and the address of a stop sign: AWS has no way to
end a call, so a cancelled run leaves an object in S3 and the function ends itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from barecount_assets.stages import execute
from resources.runners import payload
from resources.runners.work import RunSpec
from resources.runtime import logs
from resources.runtime.settings import Settings

_LOOK_EVERY_SECONDS = 5.0
# What it takes to say over S3 that the time is over, before AWS ends the function without a word.
_LAST_WORD_SECONDS = 15
_STOPPED = 130


def handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Do the stage of an event; `context` is the one AWS gives to functions."""
    logs.configure(Settings.from_environment().data_dir)
    run_spec = RunSpec.from_json(event["run_spec"])
    left = context.get_remaining_time_in_millis() // 1000 - _LAST_WORD_SECONDS
    over = threading.Event()
    threading.Thread(target=_stop_when_told, args=(event["stop"], over), daemon=True).start()
    try:
        payload.serve(
            replace(run_spec, timeout_seconds=max(1, min(run_spec.timeout_seconds, left))), execute, event)
    finally:
        over.set()
    return {"run_token": event["tags"]["run_token"]}


def _stop_when_told(address: str, over: threading.Event) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = address.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    while not over.wait(_LOOK_EVERY_SECONDS):
        try:
            client.head_object(Bucket=bucket, Key=key)
        except (ClientError, BotoCoreError):
            continue
        os._exit(_STOPPED)
