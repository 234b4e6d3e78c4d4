"""The starter's side of Dagster Pipes: the outcome of a payload as a receipt or as the error it reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.runners.payload import ERROR, RECEIPT
from resources.runners.stage import StageReceipt
from resources.runners.work import Work
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from dagster import PipesClientCompletedInvocation

_TAIL_BYTES = 4_096


def receipt_of(
    invoke: Callable[[], PipesClientCompletedInvocation], work: Work, *, where: str, last_words: Callable[[], str],
    heard: Callable[[], Sequence[Any]] = tuple,
) -> StageReceipt:
    """Start a payload and return the receipt it reports.

    Args:
        invoke: starts the payload and waits for its end.
        where: what to call the thing that ran it, in an error.
        last_words: what it printed last, asked only when it said nothing else.
        heard: every message that came by another way, asked when none came by the client: it drops all of them when the
            service says that the work failed, and those after one that was lost.

    Raises:
        BareCountError: the one the payload reported; runner.lost (retryable) when it ended without a word.
    """
    from dagster import DagsterExecutionInterruptedError

    failure: Exception | None = None
    messages: Sequence[Any] = ()
    try:
        messages = invoke().get_custom_messages()
    except (BareCountError, DagsterExecutionInterruptedError):
        raise
    except Exception as cause:
        failure = cause
    outcome = _outcome(messages) or _outcome(heard())
    if outcome is None:
        what = str(failure).strip().splitlines()[0] if failure is not None else "it ended without a receipt"
        raise lost(work, where, what, last_words()) from failure
    if ERROR in outcome:
        raise reported(outcome[ERROR])
    return replace(StageReceipt.from_json(outcome[RECEIPT]), runner=dict(outcome["runner"]))


def _outcome(messages: Sequence[Any]) -> Mapping[str, Any] | None:
    spoken = (message for message in reversed(messages) if isinstance(message, Mapping))
    return next((message for message in spoken if RECEIPT in message or ERROR in message), None)


def reported(envelope: Mapping[str, Any]) -> BareCountError:
    """The error a payload reported, as it was raised there."""
    return BareCountError(
        ErrorCode(envelope["code"]), envelope["message"], hint=envelope["hint"], retryable=envelope["retryable"],
        details=envelope["details"], correlation_id=envelope["correlation_id"],
    )


def lost(work: Work, where: str, what: str, last_words: str) -> BareCountError:
    """The error for a payload that ended without a word, with all that is known."""
    spec = work.spec
    return BareCountError(
        ErrorCode.RUNNER_LOST,
        f"{where} of {spec.stage} of {spec.pipeline} for {spec.tenant_id} ended without a word: {what}"
        + (f"; it printed last: {last_words}" if last_words else "; it printed nothing"),
        hint="nothing half-done is visible, and starting it again goes on from there; where memory ran out, a larger "
        "size helps",
        retryable=True,
        details={"runner": dict(work.identity), "tags": dict(work.tags)},
    )


def tail(path: Path) -> str:
    """The last lines of a file, in one; empty when there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-8:])
