"""`barecount check` knows before any run where columns would flow: it compiles what changed, without a database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("contracts", "dbt_project"):
        shutil.copytree(PROJECT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("target", "logs"))
    return tmp_path / "project"


def check(project: Path) -> tuple[int, dict]:
    environment = {**os.environ, "BARECOUNT_PROJECT_DIR": str(project),
                   "BARECOUNT_DATA_DIR": str(project.parent / "data"),
                   "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-m", "barecount_assets.cli.main", "check", "--json"], env=environment,
                          capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_model_that_would_publish_a_confidential_column_is_refused(project: Path) -> None:
    model = project / "dbt_project" / "models" / "kpi" / "order_to_cash" / "revenue.sql"
    text = model.read_text()
    leaking = text.replace(
        "select invoice_date, business_unit, net_amount",
        "select invoice_date, net_amount, (select max(c.name) from {{ ref('customer') }} as c "
        "where c.customer_id = settlement.customer_id) as business_unit")
    assert leaking != text
    model.write_text(leaking)
    code, said = check(project)
    assert code == 1 and not said["valid"]
    # The model's definition has changed under its version, too: that is a finding of its own.
    (finding,) = [item for item in said["findings"] if item["field"] == "business_unit"]
    assert finding["file"] == "dbt_project/models/kpi/order_to_cash/revenue.sql"
    assert finding["found"] == ("gdp.customer.name -> kpi.revenue.business_unit -> "
                                "published.revenue.business_unit")
    assert "confidential_stays_inside" in finding["message"]
