"""The one error type of the platform and its taxonomy.

Every refusal or failure a person or a machine sees is a `BareCountError`: a code of one closed list, a
message that says what was found and what is allowed, whether a retry can help, and a hint that says what
to do next. The command line, the Dagster UI and the logs print the same envelope.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from typing import Any

from resources.runtime.redaction import redact


class ErrorCode(enum.StrEnum):
    """Closed taxonomy. The prefix names the part at fault: who has to act."""

    DECLARATION_INVALID = "declaration.invalid"
    DECLARATION_UNKNOWN = "declaration.unknown"
    SOURCE_NOT_FOUND = "source.not_found"
    SOURCE_UNREADABLE = "source.unreadable"
    SOURCE_MALFORMED = "source.malformed"
    SOURCE_UNAVAILABLE = "source.unavailable"
    SCHEMA_DRIFT = "contract.schema_drift"
    CONTRACT_BREAKING = "contract.breaking"
    CONTRACT_IMMUTABLE = "contract.immutable"
    DEFINITION_CHANGED = "definition.changed"
    DRIFT_DECIDED = "contract.drift_decided"
    DRIFT_UNACCEPTABLE = "contract.drift_unacceptable"
    STORE_CONFLICT = "store.conflict"
    STORE_CORRUPT = "store.corrupt"
    STORE_EXPIRED = "store.expired"
    STORE_FULL = "store.full"
    STORE_UNAVAILABLE = "store.unavailable"
    DATABASE_UNAVAILABLE = "database.unavailable"
    DATABASE_MIGRATION = "database.migration"
    TRANSFORM_FAILED = "transform.failed"
    GATE_FAILED = "gate.failed"
    EVIDENCE_BROKEN = "evidence.broken"
    EVIDENCE_MISSING = "evidence.missing"
    DELIVERY_CONFLICT = "delivery.conflict"
    DELIVERY_UNVERIFIED = "delivery.unverified"
    EGRESS_DENIED = "egress.denied"
    SECRET_UNKNOWN = "secret.unknown"
    SECRET_UNAVAILABLE = "secret.unavailable"
    TEMPLATE_UNTESTED = "template.untested"
    TEMPLATE_UNPUBLISHED = "template.unpublished"
    TEMPLATE_IMMUTABLE = "template.immutable"
    ACTION_CONFLICT = "action.conflict"
    RELAY_FAILED = "relay.failed"
    OBLIGATION_FAILED = "obligation.failed"
    LINEAGE_UNDELIVERED = "lineage.undelivered"
    RUN_IN_PROGRESS = "run.in_progress"
    RUN_UNKNOWN = "run.unknown"
    RUNNER_UNKNOWN = "runner.unknown"
    RUNNER_NOT_ALLOWED = "runner.not_allowed"
    RUNNER_LOST = "runner.lost"
    RUNNER_TIMEOUT = "runner.timeout"
    RUNNER_NETWORK = "runner.network"
    RUNNER_UNAVAILABLE = "runner.unavailable"
    RUNNER_TOO_LARGE = "runner.too_large"
    POLICY_DENIED = "policy.denied"
    APPROVAL_REQUIRED = "approval.required"
    APPROVAL_REFUSED = "approval.refused"
    ACCESS_DENIED = "access.denied"
    PORT_IN_USE = "network.port_in_use"
    USAGE = "usage"
    INTERNAL = "internal"


class BareCountError(Exception):
    """A failure with everything its reader needs to act.

    Attributes:
        code: member of the taxonomy.
        message: what was found, where, and what is allowed.
        hint: what to do next, or None.
        retryable: True when the same call may succeed later without a change.
        details: JSON-serialisable facts for machines.
        correlation_id: identifies this occurrence across command line, UI and logs.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        details: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> None:
        message = redact(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable
        self.details = dict(details or {})
        self.correlation_id = correlation_id or uuid.uuid4().hex[:16]

    def envelope(self) -> dict[str, Any]:
        """The error as plain data: `{"error": {code, message, correlation_id, retryable, hint, details}}`."""
        return {
            "error": {
                "code": self.code.value,
                "message": self.message,
                "correlation_id": self.correlation_id,
                "retryable": self.retryable,
                "hint": self.hint,
                "details": self.details,
            }
        }

    def __str__(self) -> str:
        hint = f" Hint: {self.hint}" if self.hint else ""
        return f"[{self.code.value}] {self.message}{hint} (correlation id {self.correlation_id})"

    def __reduce__(self):  # keeps the envelope whole when an error crosses a process
        return (_rebuild, (self.code.value, self.message, self.hint, self.retryable, self.details, self.correlation_id))


def unexpected(cause: Exception) -> BareCountError:
    """The envelope of an error that nobody foresaw: type and first line, the rest is in the log."""
    lines = str(cause).strip().splitlines()
    return BareCountError(
        ErrorCode.INTERNAL,
        f"{type(cause).__name__}: {lines[0] if lines else 'no message'}",
        hint="this is a defect of the platform; the log file has its trace under this correlation id",
    )


def _rebuild(code, message, hint, retryable, details, correlation_id) -> BareCountError:
    return BareCountError(
        ErrorCode(code),
        message,
        hint=hint,
        retryable=retryable,
        details=details,
        correlation_id=correlation_id,
    )
