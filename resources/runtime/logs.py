"""Structured logs: one JSON object per line in `<data_dir>/logs/barecount.jsonl`, readable text for people.

Every line carries the bound context (tenant, pipeline, stage, run_token, correlation_id). Values never appear in
logs: messages name fields, files and counts; values of secrets are blanked out wherever they turn up.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from resources.runtime.redaction import redact

_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("barecount_log_context", default={})  # noqa: B039
LOGGER_NAME = "barecount"


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Attach fields to every line logged inside the block, in this context only."""
    token = _context.set({**_context.get(), **{k: v for k, v in fields.items() if v is not None}})
    try:
        yield
    finally:
        _context.reset(token)


def context() -> dict[str, Any]:
    """The fields bound now."""
    return dict(_context.get())


def get_logger(name: str) -> logging.Logger:
    """Logger of one module, below the platform's root logger."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (UTC), level, logger, message, bound context, error envelope."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_context.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            envelope = getattr(error, "envelope", None)
            if envelope:
                line["error"] = envelope()["error"]
            else:
                line["error"] = {"message": str(error), "type": type(error).__name__}
                line["trace"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, ensure_ascii=False, default=str))


def configure(data_dir: Path) -> None:
    """Send the platform's logs, and warnings of libraries, to the rotating file of the data folder. Idempotent."""
    logger = logging.getLogger(LOGGER_NAME)
    path = data_dir / "logs" / "barecount.jsonl"
    if any(getattr(handler, "baseFilename", None) == str(path) for handler in logger.handlers):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=20_000_000, backupCount=3, encoding="utf-8", delay=True)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Without a handler at the root, a library's warning would be printed between the lines of a command.
    libraries = logging.getLogger()
    if not libraries.handlers:
        libraries.addHandler(handler)
