"""Secrets are values only while they are used: kept encrypted, read on record, written nowhere."""

from __future__ import annotations

import base64
import datetime as dt
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.runtime import logs
from resources.runtime.database import Database, fetch, fetch_dicts
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust.secrets import AwsSecrets, LocalSecrets, Reference, Secrets
from tests.integration.action.conftest import Desk
from tests.integration.action.receivers import JiraServer, Received, Reply, serving

CANARY = "c4nary+value/with=signs & spaces"


@pytest.fixture
def local(database: Database, tmp_path: Path) -> Secrets:
    with database.transaction() as connection:
        for tenant in ("acme", "globex"):
            fetch(connection, "select platform.register_tenant($1, $1, 'hash')", (tenant,))
    return Secrets(LocalSecrets.of(tmp_path / "data"), database)


def test_a_secret_is_read_back_and_every_reading_is_on_record(local: Secrets) -> None:
    local.keep("acme", "mail", {"password": CANARY})
    value = local.read("acme", "secret://mail#password", purpose="the test")
    assert value.value == CANARY and CANARY not in repr(value)
    with local.database.connect(autocommit=True) as connection:
        bodies = [row[0] for row in fetch(connection, "select body from platform.evidence order by seq")]
    assert ["secret.kept" in bodies[0], "secret.read" in bodies[1], "the test" in bodies[1]] == [True] * 3
    assert CANARY not in "".join(bodies)


def test_fields_are_kept_beside_each_other_and_the_version_before_stays_readable(local: Secrets) -> None:
    local.keep("acme", "mail", {"password": "first-value"})
    assert local.keep("acme", "mail", {"user": "bot-user"}) == "2"
    assert local.keep("acme", "mail", {"password": "second-value"}) == "3"
    read = [local.provider.get("acme", "mail", version).fields for version in ("2", "3")]
    assert read == [{"password": "first-value", "user": "bot-user"}, {"password": "second-value", "user": "bot-user"}]
    with pytest.raises(BareCountError, match="no version 1"):
        local.provider.get("acme", "mail", "1")


def test_files_tell_nothing_and_cannot_be_swapped_or_changed(local: Secrets) -> None:
    provider = local.provider
    assert isinstance(provider, LocalSecrets)
    local.keep("acme", "mail", {"password": CANARY})
    local.keep("globex", "mail", {"password": "of-globex"})
    files = {tenant: provider.folder / tenant / "mail.json" for tenant in ("acme", "globex")}
    content = files["acme"].read_bytes()
    assert CANARY.encode() not in content and base64.b64encode(CANARY.encode()) not in content
    assert files["acme"].stat().st_mode & 0o077 == 0 and provider.key_file.stat().st_mode & 0o077 == 0
    files["globex"].write_bytes(content)
    with pytest.raises(BareCountError, match="does not open"):
        provider.get("globex", "mail")


def test_a_key_that_others_can_read_or_that_is_gone_is_refused(local: Secrets) -> None:
    provider = local.provider
    assert isinstance(provider, LocalSecrets)
    local.keep("acme", "mail", {"password": CANARY})
    provider.key_file.chmod(0o644)
    with pytest.raises(BareCountError, match="can be read by others"):
        provider.get("acme", "mail")
    provider.key_file.unlink()
    for use in (lambda: provider.get("acme", "mail"), lambda: provider.put("acme", "other", {"value": "x-y-z"})):
        with pytest.raises(BareCountError, match="the key of the secrets is not at"):
            use()


@pytest.mark.parametrize("text", ["hunter2", "secret://", "secret://Name", "secret://a#b#c", "secret://../x"])
def test_what_is_no_reference_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(BareCountError, match="not a reference") as refused:
        Reference.parse(text)
    assert text == "secret://" or text not in str(refused.value)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsSecrets]:
    from moto import mock_aws

    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                        "AWS_DEFAULT_REGION": "eu-west-2"}.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        yield AwsSecrets()


def test_aws_secrets_manager_keeps_versions_and_tenants_apart(aws: AwsSecrets) -> None:
    first = aws.put("acme", "mail", {"password": "first-value"})
    second = aws.put("acme", "mail", {"password": "second-value"})
    aws.put("globex", "mail", {"password": "of-globex"})
    aws.put("globex", "only", {"password": "of-globex"})
    assert aws.current_version("acme", "mail") == second != first
    assert aws.get("acme", "mail").fields == {"password": "second-value"}
    assert aws.get("acme", "mail", first).fields == {"password": "first-value"}
    assert (aws.names("acme"), aws.names("globex")) == (["mail"], ["mail", "only"])
    with pytest.raises(BareCountError, match="not in AWS Secrets Manager"):
        aws.get("acme", "only")


def test_no_value_is_written_anywhere_by_a_run_full_of_failures(desk: Desk, tmp_path: Path) -> None:
    """Greps every table, log and file that deliveries leave for every form of every secret."""
    token, password, signing, url = (
        "canary-jira-token", CANARY, "whsec_" + base64.b64encode(b"canary" * 6).decode(), "canary-hook-path")
    data = tmp_path / "data"
    logs.configure(data)

    def echo(request: Received) -> Reply:  # a receiver that repeats everything it was sent, as some error pages do
        return Reply(500, repr(request.headers).encode() + request.body + request.path.encode())

    desk.secrets.keep("acme", "all", {"token": token, "password": password, "signing": signing})
    with serving(echo) as server:
        desk.secrets.keep("acme", "all", {"url": f"{server.url}/{url}", "apprise": f"json://x:{token}@127.0.0.1:"
                                          f"{server.port}/{url}"})
        targets = {
            "hook": {"adapter": "webhook", "url": server.url, "signing": "secret://all#signing",
                     "authorization": "secret://all#token"},
            "jira": {"adapter": "jira", "url": server.url, "project": "FIN", "user": JiraServer.user,
                     "token": "secret://all#token"},
            "snow": {"adapter": "servicenow", "url": server.url, "username": "bot",
                     "password": "secret://all#password"},
            "slack": {"adapter": "slack", "webhook_url": "secret://all#url"},
            "tail": {"adapter": "apprise", "url": "secret://all#apprise"},
            "mail": {"adapter": "email", "host": "127.0.0.1", "port": server.port, "security": "starttls",
                     "username": "bot", "password": "secret://all#password", "sender": "a@acme.example",
                     "recipients": ["b@acme.example"]},
        }
        for name, target in targets.items():
            desk.endpoint(target, name=name)
            desk.queue(name, endpoint=name)
        logs.get_logger("test").warning("a library says %s", token)
        try:
            raise ValueError(password)
        except ValueError as error:
            logs.get_logger("test").error("it broke", exc_info=error)
        assert desk.work().failed == len(targets)
    logging.getLogger(logs.LOGGER_NAME).handlers[-1].flush()
    assert len(desk.receipts()) == len(targets)
    assert "[redacted]" in str(desk.receipts("hook")[0].response_excerpt)

    basic = base64.b64encode(f"{JiraServer.user}:{token}".encode()).decode()
    forms = [token, password, signing, url, basic, base64.b64encode(f"bot:{password}".encode()).decode()]
    written = "\n".join([_tables(desk.database), *(
        path.read_text("utf-8", "replace") for path in data.rglob("*") if path.is_file())])
    assert "it broke" in written and "HTTP 500" in written
    assert [form for form in forms if form in written] == []
    assert [one for one in (str(BareCountError(ErrorCode.USAGE, f"found {token}")),) if token in one] == []


def _tables(database: Database) -> str:
    """Everything in schema platform, as text."""
    with database.connect(autocommit=True) as connection:
        names = [row[0] for row in fetch(
            connection, "select quote_ident(tablename) from pg_tables where schemaname = 'platform'")]
        rows = [row for name in names for row in fetch_dicts(connection, f"select * from platform.{name}")]
    return repr([{key: value.isoformat() if isinstance(value, dt.datetime) else value for key, value in row.items()}
                 for row in rows])
