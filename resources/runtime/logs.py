"""Structured logs: one JSON object per line in `<data_dir>/logs/barecount.jsonl`, readable text for people.

Every line carries the bound context (tenant, pipeline, stage, run_token, correlation_id). Values never appear in
logs: messages name fields, files and counts; values of secrets are blanked out wherever they turn up.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

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


@contextmanager
def stderr_in_log(name: str) -> Iterator[None]:
    """Log what libraries print on standard error inside the block: people read the platform's own lines there alone."""
    with redirect_stderr(_Logged(get_logger(name), sys.stderr)):
        yield


class _Logged(io.TextIOBase):
    """Stands where a text stream was, and logs what is written to it, one record per write."""

    def __init__(self, logger: logging.Logger, stream: TextIO) -> None:
        self._logger, self._stream = logger, stream
        self._in_use = threading.local()

    def write(self, text: str) -> int:
        if getattr(self._in_use, "writing", False):  # logging itself has something to say
            return self._stream.write(text)
        self._in_use.writing = True
        try:
            if text.strip():
                self._logger.warning("%s", text.strip())
        finally:
            self._in_use.writing = False
        return len(text)

    def fileno(self) -> int:
        return self._stream.fileno()
