"""What engines read of the raw store: objects that earlier contract versions wrote, in the columns and types of now."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from barecount_assets.stages.engines.inputs import as_of_now, raw_schema
from resources.governance.declarations import load
from tests.conftest import PROJECT


def test_an_object_of_an_earlier_contract_is_read_in_the_columns_and_types_of_now(tmp_path: Path) -> None:
    contract = load(PROJECT).contract("order_to_cash.invoices", "raw")
    wanted = raw_schema(contract)
    earlier = pa.schema([
        pa.field(field.name, pa.string() if field.name == "net_amount" else field.type)
        for field in wanted if field.name != "customer_name"])
    rows = {field.name: [None, None] for field in earlier}
    rows |= {"invoice_id": ["I1", "I2"], "net_amount": ["12.30", "-0.05"], "_row_number": [1, 2]}
    pq.write_table(pa.table(rows, schema=earlier), tmp_path / "object.parquet")

    found = pq.read_table(as_of_now(tmp_path / "object.parquet", contract, tmp_path / "copy.parquet"))

    assert found.schema.equals(wanted)
    assert found.column("net_amount").to_pylist() == [Decimal("12.30"), Decimal("-0.05")]
    assert found.column("invoice_id").to_pylist() == ["I1", "I2"]
    assert found.column("customer_name").null_count == 2


def test_an_object_of_the_contract_of_now_is_read_where_it_lies(tmp_path: Path) -> None:
    contract = load(PROJECT).contract("order_to_cash.payments", "raw")
    pq.write_table(raw_schema(contract).empty_table(), tmp_path / "object.parquet")
    assert as_of_now(tmp_path / "object.parquet", contract, tmp_path / "copy.parquet") == tmp_path / "object.parquet"
