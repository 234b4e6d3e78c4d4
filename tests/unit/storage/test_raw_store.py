"""The raw store: write-once, content-addressed, the same bytes for the same rows, nothing left behind half-written."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import raw_store
from resources.storage.raw_store import RawStore, prefix_of

SCHEMA = pa.schema([("n", pa.int64()), ("t", pa.string())])
PREFIX = prefix_of("acme", "shop.orders", "2026-01-02", "token")


def rows(*numbers: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": list(numbers), "t": [str(n) for n in numbers]}, schema=SCHEMA)


def store_rows(store: RawStore, *batches: pa.RecordBatch) -> raw_store.StoredObject:
    with store.writer(SCHEMA) as writer:
        for batch in batches:
            writer.write(batch)
        return writer.finish(PREFIX)


def test_an_object_is_named_by_the_hash_of_its_bytes_below_its_partition(tmp_path: Path) -> None:
    stored = store_rows(RawStore(str(tmp_path)), rows(1, 2), rows(3))
    assert stored.key == f"tenant=acme/dataset=shop.orders/load_date=2026-01-02/run=token/{stored.sha256}.parquet"
    assert hashlib.sha256((tmp_path / stored.key).read_bytes()).hexdigest() == stored.sha256
    assert (stored.rows, stored.size) == (3, (tmp_path / stored.key).stat().st_size)


@given(cuts=st.lists(st.integers(0, 50), max_size=6), group=st.integers(1, 20))
def test_the_bytes_do_not_depend_on_how_rows_were_batched(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], group: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_store, "ROW_GROUP_ROWS", group)
        whole = rows(*range(50))
        bounds = [0, *sorted(cuts), 50]
        pieces = [whole.slice(a, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
        folder = tmp_path_factory.mktemp("store")
        assert (store_rows(RawStore(str(folder / "a")), whole).sha256
                == store_rows(RawStore(str(folder / "b")), *pieces).sha256)


def test_writing_the_same_rows_again_finds_the_object_that_is_there(tmp_path: Path) -> None:
    store = RawStore(str(tmp_path))
    assert store_rows(store, rows(1)) == store_rows(store, rows(1))


def test_other_content_under_an_existing_name_is_refused_and_not_written(tmp_path: Path) -> None:
    store = RawStore(str(tmp_path))
    path = tmp_path / store_rows(store, rows(1)).key
    path.chmod(0o644)
    path.write_bytes(b"someone was here")
    with pytest.raises(BareCountError) as refused:
        store_rows(store, rows(1))
    assert refused.value.code is ErrorCode.STORE_CONFLICT
    assert path.read_bytes() == b"someone was here"


def test_an_unfinished_object_leaves_nothing(tmp_path: Path) -> None:
    store = RawStore(str(tmp_path))
    with store.writer(SCHEMA) as writer:
        writer.write(rows(1))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_sealed_object_that_is_not_wanted_leaves_nothing(tmp_path: Path) -> None:
    store = RawStore(str(tmp_path))
    stored = store_rows(store, rows(1))
    with store.writer(SCHEMA) as writer:
        writer.write(rows(1))
        assert writer.seal() == writer.seal() == stored.sha256
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / stored.key]


def test_what_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    scratch = tmp_path / ".writing"
    scratch.mkdir()
    left = scratch / "999999999-abc.parquet.tmp"
    left.write_bytes(b"half")
    store_rows(RawStore(str(tmp_path)), rows(1))
    assert not left.exists()


def test_objects_are_read_back_as_they_were(tmp_path: Path) -> None:
    store = RawStore(str(tmp_path))
    stored = store_rows(store, rows(1, 2, 3))
    assert pa.Table.from_batches(store.read(stored.key)).to_pydict() == {"n": [1, 2, 3], "t": ["1", "2", "3"]}
    assert store.sha256(stored.key) == stored.sha256
    assert store.sha256("no/such/key") is None


def test_a_truncated_object_is_reported_as_corrupt(tmp_path: Path) -> None:
    store = RawStore(str(tmp_path))
    path = tmp_path / store_rows(store, rows(1)).key
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BareCountError) as broken:
        list(store.read(str(path.relative_to(tmp_path))))
    assert broken.value.code is ErrorCode.STORE_CORRUPT


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> object:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="raw", CreateBucketConfiguration={"LocationConstraint": "eu-west-2"})
        yield client


def test_s3_keeps_the_same_promises(bucket) -> None:
    store = RawStore("s3://raw/prefix")
    stored = store_rows(store, rows(1, 2))
    assert store_rows(store, rows(1, 2)) == stored
    assert store.sha256(stored.key) == stored.sha256
    assert pa.Table.from_batches(store.read(stored.key)).num_rows == 2
    bucket.put_object(Bucket="raw", Key=f"prefix/{stored.key}", Body=b"someone was here")
    with pytest.raises(BareCountError) as refused:
        store_rows(store, rows(1, 2))
    assert refused.value.code is ErrorCode.STORE_CONFLICT


def test_objects_lie_in_the_storage_class_that_is_declared_and_move_without_a_change(bucket, tmp_path: Path) -> None:
    store = RawStore("s3://raw/prefix")
    with store.writer(SCHEMA, "archive") as writer:
        writer.write(rows(1, 2))
        stored = writer.finish(PREFIX)

    def found() -> tuple[str | None, str | None]:
        head = bucket.head_object(Bucket="raw", Key=f"prefix/{stored.key}")
        return head.get("StorageClass"), head["Metadata"].get("sha256")

    assert found() == ("GLACIER_IR", stored.sha256)
    assert store.sha256(stored.key) == stored.sha256, "readable at once, as every class is"
    assert not store.reclassify(stored.key, "archive")
    assert store.reclassify(stored.key, "infrequent", dry_run=True) and found()[0] == "GLACIER_IR"
    assert store.reclassify(stored.key, "infrequent") and found() == ("STANDARD_IA", stored.sha256)
    assert store.reclassify(stored.key, "standard") and not store.reclassify(stored.key, "standard")
    assert store.sha256(stored.key) == stored.sha256
    assert not store.reclassify(stored.key + "x", "archive"), "there is nothing to move"
    folder = RawStore(str(tmp_path))
    assert not folder.reclassify(store_rows(folder, rows(1)).key, "archive"), "a folder has one class"


def test_a_missing_bucket_is_a_clear_error(bucket) -> None:
    with pytest.raises(BareCountError) as unavailable:
        store_rows(RawStore("s3://nowhere"), rows(1))
    assert unavailable.value.code is ErrorCode.STORE_UNAVAILABLE


NUMBERS = st.lists(st.none() | st.integers(-(10**9), 10**9), max_size=60)


@given(numbers=NUMBERS, repeats=st.integers(1, 12), group=st.integers(1, 40))
def test_every_type_comes_back_as_it_was_however_its_values_repeat(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int | None], repeats: int, group: int
) -> None:
    numbers = [number for number in numbers for _ in range(repeats)]
    columns = {
        "i16": pa.array([n and n % 1000 for n in numbers], pa.int16()),
        "i32": pa.array([n and n // 2 for n in numbers], pa.int32()),
        "i64": pa.array(numbers, pa.int64()),
        "short": pa.array([n if n is None else Decimal(n).scaleb(-2) for n in numbers], pa.decimal128(18, 2)),
        "long": pa.array([n if n is None else Decimal(n).scaleb(-2) for n in numbers], pa.decimal128(38, 2)),
        "double": pa.array([n if n is None else n / 7 for n in numbers], pa.float64()),
        "flag": pa.array([n if n is None else n % 2 == 0 for n in numbers], pa.bool_()),
        "day": pa.array([n if n is None else n % 30_000 for n in numbers], pa.int32()).cast(pa.date32()),
        "instant": pa.array(numbers, pa.int64()).cast(pa.timestamp("us")),
        "text": pa.array([n if n is None else str(n) for n in numbers], pa.string()),
        "payload": pa.array([n if n is None else str(n).encode() for n in numbers], pa.large_binary()),
    }
    table = pa.table(columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_store, "ROW_GROUP_ROWS", group)
        store = RawStore(str(tmp_path_factory.mktemp("store")))
        with store.writer(table.schema) as writer:
            for batch in table.to_batches():
                writer.write(batch)
            stored = writer.finish(PREFIX)
        assert pa.Table.from_batches(store.read(stored.key), table.schema).equals(table)
