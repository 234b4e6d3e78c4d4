"""What an agent takes for work, and what it leaves alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resources.runners.agent import Word

MESSAGES = "s3://runs/messages"
SENT = {
    "run_spec": f"{MESSAGES}/ab12/cd34/run_spec.json", "environment": {"BARECOUNT_ENVIRONMENT": "aws-dev"},
    "bootstrap": {"DAGSTER_PIPES_CONTEXT": "x", "DAGSTER_PIPES_MESSAGES": "y"}, "tags": {}, "timeout_seconds": 60,
}


def read(**changes: Any) -> Word:
    return Word.read(json.dumps({**SENT, **changes}), MESSAGES)


def test_a_word_gives_the_payload_the_parameters_of_its_run_and_no_other_variable() -> None:
    word = read(environment={"BARECOUNT_ENVIRONMENT": "aws-dev", "LD_PRELOAD": "x", "BARECOUNT_DATABASE_URL": "x"})
    assert set(word.variables) == {"BARECOUNT_ENVIRONMENT", "DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES"}


@pytest.mark.parametrize("changes", [
    {"run_spec": "s3://others/messages/ab12/cd34/run_spec.json"}, {"run_spec": f"{MESSAGES}-of-others/run_spec.json"},
    {"run_spec": "/etc/passwd"}, {"run_spec": f"{MESSAGES}/ab12/other.json"}, {"environment": None},
    {"timeout_seconds": "soon"}, {"bootstrap": None},
])
def test_what_no_run_of_the_environment_sent_is_no_work(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        read(**changes)


@pytest.mark.parametrize("text", ["", "run this", "[]", "{}"])
def test_a_text_that_is_no_word_is_no_work(text: str) -> None:
    with pytest.raises(ValueError):
        Word.read(text, MESSAGES)
