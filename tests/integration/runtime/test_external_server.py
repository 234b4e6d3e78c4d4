"""A PostgreSQL server of one's own: reached over TCP with a password, migrated on request, used by every verb."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import Result

from barecount_assets.sample import write_sample
from resources.runtime.embedded import Cluster
from tests import conftest
from tests.lifecycle.conftest import unchanged_environment

PASSWORD = "s3cret/with:signs@"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def external_url() -> Iterator[str]:
    """A second server, started by hand with stock settings and password authentication on a TCP port."""
    with tempfile.TemporaryDirectory(prefix="bc-ext-") as folder:
        Path(folder).chmod(0o777)
        data, password_file = Path(folder) / "data", Path(folder) / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        cluster = Cluster(data)
        data.mkdir(mode=0o700)
        if (account := cluster.account) is not None:  # as root, which PostgreSQL refuses to run as
            os.chown(data, account.uid, account.gid)
        cluster.run("initdb", "-U", "admin", "--auth=scram-sha-256", "--encoding=UTF8", f"--pwfile={password_file}",
                    "-D", str(data))
        cluster.run("pg_ctl", "-w", "-D", str(data), "-l", str(data / "log"),
                    "-o", f"-p {port} -h 127.0.0.1 -k {data}", "start")
        yield f"postgresql://admin:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        cluster.run("pg_ctl", "-w", "-D", str(data), "-m", "fast", "stop")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("external")


@pytest.fixture
def barecount(external_url: str, data_dir: Path) -> Iterator[Run]:
    """The command, in this process, on that server."""

    def run(*arguments: str) -> Result:
        result = conftest.barecount(*arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    with unchanged_environment():
        os.environ.update({"BARECOUNT_DATABASE_URL": external_url, "BARECOUNT_DATA_DIR": str(data_dir)})
        yield run


def test_it_is_migrated_on_request_and_then_runs_a_pipeline(barecount: Run, data_dir: Path) -> None:
    refused = barecount("status", "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"]["code"] == "database.migration"

    assert barecount("migrate").exit_code == 0
    assert barecount("migrate").exit_code == 0

    facts = write_sample(data_dir / "sample" / "acme", "acme", invoices=200, business_days=10)
    ran = barecount(
        "run", "order_to_cash", "--tenant", "acme", "--from", str(facts.start), "--to", str(facts.end), "--json"
    )
    assert ran.exit_code == 0, ran.output
    stages = json.loads(ran.stdout)[0]["stages"]
    assert stages[-1]["counts"]["published"] == 3

    asked = barecount(
        "sql", "--tenant", "acme", "select sum(value) as revenue from revenue where grain = 'month_total'", "--json"
    )
    assert asked.exit_code == 0, asked.stderr
    assert Decimal(json.loads(asked.stdout)[0]["revenue"]) == sum(facts.revenue.values())

    explained = barecount("explain", "order_to_cash.revenue", "--tenant", "acme", "--period", "2026-01", "--json")
    assert explained.exit_code == 0, explained.stdout
    assert json.loads(explained.stdout)["holds"] is True
    assert PASSWORD not in "".join(path.read_text() for path in data_dir.rglob("*.yaml")), "no password on disk"


def test_an_unreachable_server_is_one_clear_error(tmp_path: Path) -> None:
    environment = {**os.environ, "BARECOUNT_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
                   "BARECOUNT_DATA_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-m", "barecount_assets.cli.main", "status", "--json"], env=environment,
                            capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["retryable"]) == ("database.unavailable", True)
    assert "Traceback" not in result.stderr
