"""The database's URL comes from where the environment says, and an error never shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from resources.runtime.errors import BareCountError, ErrorCode
from resources.runtime.settings import Settings

URL = "postgresql://barecount:hidden@db/barecount"


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BARECOUNT_DATABASE_URL", "BARECOUNT_DATABASE_URL_FILE", "BARECOUNT_DATABASE_SECRET"):
        monkeypatch.delenv(name, raising=False)


def test_a_file_holds_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    monkeypatch.setenv("BARECOUNT_DATABASE_URL_FILE", str(tmp_path / "url"))
    assert Settings.from_environment().database_url == URL


def test_the_variable_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARECOUNT_DATABASE_URL_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("BARECOUNT_DATABASE_URL", URL)
    assert Settings.from_environment().database_url == URL


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_without_the_url_nothing_falls_back_to_the_embedded_server(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    if content is not None:
        (tmp_path / "url").write_text(content)
    monkeypatch.setenv("BARECOUNT_DATABASE_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(BareCountError) as raised:
        Settings.from_environment()
    assert raised.value.code is ErrorCode.SECRET_UNAVAILABLE


def test_a_secret_of_aws_holds_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with mock_aws():
        boto3.client("secretsmanager").create_secret(Name="barecount-dev/database-url", SecretString=URL)
        monkeypatch.setenv("BARECOUNT_DATABASE_SECRET", "barecount-dev/database-url")
        assert Settings.from_environment().database_url == URL
        monkeypatch.setenv("BARECOUNT_DATABASE_SECRET", "barecount-dev/other")
        with pytest.raises(BareCountError, match="ResourceNotFoundException"):
            Settings.from_environment()
