"""Logs: what libraries print goes there, line by line, and standard error is left to the command."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.runtime import logs


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    logger, root = logging.getLogger(logs.LOGGER_NAME), logging.getLogger()
    before = logger.handlers[:], root.handlers[:], logger.propagate, logger.level
    logger.handlers.clear()
    logs.configure(tmp_path)
    yield tmp_path / "logs" / "barecount.jsonl"
    logger.handlers[:], root.handlers[:], logger.propagate = before[:3]
    logger.setLevel(before[3])


def test_what_is_printed_on_standard_error_inside_the_block_is_logged(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logs.stderr_in_log("library"), logs.bound(tenant="acme"):
        sys.stderr.write("lost the connection\n\n")
        sys.stderr.write("\n")
    sys.stderr.write("said by the command\n")
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["logger"], line["tenant"], line["message"]) == ("barecount.library", "acme", "lost the connection")
    assert capsys.readouterr().err == "said by the command\n"


def test_a_log_that_cannot_be_written_does_not_swallow_what_is_said_about_it(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.mkdir()
    with logs.stderr_in_log("library"):
        sys.stderr.write("lost the connection\n")
    assert "IsADirectoryError" in capsys.readouterr().err
