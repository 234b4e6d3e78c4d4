"""The files connector: which files are a source's units, on disk and on S3, and what goes wrong with them."""

import datetime as dt
import hashlib
import os
import random

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from barecount_assets.stages.ingestion.connectors.csv import CsvFormat
from barecount_assets.stages.ingestion.connectors.files import FilesConnector, file_format, partition_date_of
from barecount_assets.stages.ingestion.connectors.jsonl import JsonlFormat
from barecount_assets.stages.ingestion.connectors.parquet import ParquetFormat
from barecount_assets.stages.ingestion.records import ExtractorSchema, Field, Window
from resources.runtime.errors import BareCountError, ErrorCode

SCHEMA = ExtractorSchema((Field("a", "a", pa.int64()),))
JANUARY = Window(dt.date(2026, 1, 1), dt.date(2026, 1, 31))
CSV = CsvFormat()


@pytest.fixture
def folder(tmp_path):
    files = {
        "2026-01-02.csv": "a\n2\n",
        "2026-01-01_b.csv": "a\n1\n",
        "2026-01-01_a.csv": "a\n0\n",
        "2026-02-01.csv": "a\n3\n",
        "notes.csv": "a\n9\n",
        "2026-01-03.txt": "a\n9\n",
        ".2026-01-04.csv": "a\n9\n",
        "older/2026-01-05.csv": "a\n5\n",
    }
    for name, content in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "in"


def ids(path, file_name=None, window=JANUARY):
    return [unit.source_id for unit in FilesConnector(str(path), file_name, CSV).discover(window)]


def values(connector, schema=SCHEMA):
    units = connector.discover(JANUARY)
    return [
        value
        for unit in units
        for batch in connector.read(unit, schema)
        for value in batch.rows["a"].to_pylist()
    ]


def refused(action, code):
    with pytest.raises(BareCountError) as error:
        action()
    assert error.value.code is code
    return error.value


class TestDiscovery:
    def test_dated_files_in_the_window_are_units_sorted_by_day_and_name(self, folder):
        units = FilesConnector(str(folder), "{date}*.csv", CSV).discover(JANUARY)
        assert [(unit.partition_date, unit.source_id) for unit in units] == [
            (dt.date(2026, 1, 1), "2026-01-01_a.csv"),
            (dt.date(2026, 1, 1), "2026-01-01_b.csv"),
            (dt.date(2026, 1, 2), "2026-01-02.csv"),
        ]

    def test_units_carry_size_and_digest_of_their_bytes(self, folder):
        (unit,) = FilesConnector(str(folder), "{date}.csv", CSV).discover(JANUARY)
        content = (folder / unit.source_id).read_bytes()
        assert (unit.sha256, unit.size) == (hashlib.sha256(content).hexdigest(), len(content))

    def test_the_order_of_listing_makes_no_difference(self, folder, monkeypatch):
        connector = FilesConnector(str(folder), "{date}*.csv", CSV)
        expected = connector.discover(JANUARY)
        matches = list(connector._matches())
        random.Random(0).shuffle(matches)
        monkeypatch.setattr(FilesConnector, "_matches", lambda self: iter(matches))
        assert connector.discover(JANUARY) == expected

    def test_undated_sources_ignore_the_window(self, folder):
        assert ids(folder, "*.csv")[-1] == "notes.csv" and len(ids(folder, "*.csv")) == 5
        assert ids(folder / "2026-02-01.csv") == ["2026-02-01.csv"]

    def test_a_dated_file_given_by_itself_keeps_its_date(self, folder):
        assert ids(folder / "2026-01-02.csv", "{date}*.csv") == ["2026-01-02.csv"]
        assert ids(folder / "2026-02-01.csv", "{date}*.csv") == []

    def test_hidden_files_and_folders_below_are_not_units_unless_asked_for(self, folder):
        assert ".2026-01-04.csv" not in ids(folder) and "older/2026-01-05.csv" not in ids(folder)
        assert ids(folder, ".{date}.csv") == [".2026-01-04.csv"]
        assert ids(folder, "*/{date}.csv") == ["older/2026-01-05.csv"]
        assert ids(folder, "**/{date}.csv") == ["2026-01-02.csv", "older/2026-01-05.csv"]

    def test_a_glob_names_files_or_folders(self, folder):
        assert ids(folder / "2026-01-0[12]*.csv") == [
            "2026-01-01_a.csv",
            "2026-01-01_b.csv",
            "2026-01-02.csv",
        ]
        assert ids(folder / "2026-0?-0[!2]*", "{date}.*") == ["2026-01-03.txt"]
        assert ids(folder / "old*", "{date}.csv") == ["older/2026-01-05.csv"]
        assert ids(folder.parent / "i*" / "**", "{date}.csv") == [
            "in/2026-01-02.csv",
            "in/older/2026-01-05.csv",
        ]

    def test_a_path_may_go_up_and_be_relative(self, folder, monkeypatch):
        monkeypatch.chdir(folder / "older")
        assert ids("../notes.csv") == ["notes.csv"]
        assert ids("..", "notes.csv") == ["notes.csv"]

    def test_a_name_with_brackets_is_taken_as_it_is_when_it_exists(self, folder):
        (folder / "export [1].csv").write_text("a\n1\n")
        assert ids(folder / "export [1].csv") == ["export [1].csv"]

    def test_a_source_without_files_yet_has_no_units(self, tmp_path):
        assert ids(tmp_path, "{date}.csv") == []

    def test_a_date_in_the_glob_twice_is_the_same_day(self, folder):
        (folder / "2026-01-07").mkdir()
        (folder / "2026-01-07" / "2026-01-07.csv").write_text("a\n7\n")
        (folder / "2026-01-07" / "2026-01-08.csv").write_text("a\n8\n")
        assert ids(folder, "{date}/{date}.csv") == ["2026-01-07/2026-01-07.csv"]

    def test_the_date_of_a_name_is_found_without_a_folder(self):
        assert partition_date_of("invoices_2026-01-02.csv", "invoices_{date}*.csv") == dt.date(2026, 1, 2)
        assert partition_date_of("payments_2026-01-02.csv", "invoices_{date}*.csv") is None
        assert partition_date_of("invoices.csv", "*.csv") is None


class TestRefusals:
    def test_a_missing_folder_file_or_base_of_a_glob_is_not_found(self, tmp_path):
        for path in ("nowhere", "nowhere/x.csv", "nowhere/*.csv"):
            error = refused(lambda path=path: ids(tmp_path / path, "{date}.csv"), ErrorCode.SOURCE_NOT_FOUND)
            assert "nowhere" in error.message and error.hint

    def test_a_file_whose_name_is_not_the_declared_one_is_not_found(self, folder):
        error = refused(lambda: ids(folder / "notes.csv", "{date}*.csv"), ErrorCode.SOURCE_NOT_FOUND)
        assert "{date}*.csv" in error.message

    def test_a_day_that_no_calendar_has_is_refused_and_not_skipped(self, folder):
        (folder / "2026-02-30.csv").write_text("a\n")
        error = refused(lambda: ids(folder, "{date}.csv"), ErrorCode.SOURCE_MALFORMED)
        assert "2026-02-30" in error.message

    @pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
    def test_what_the_account_may_not_read_is_unreadable(self, folder):
        connector = FilesConnector(str(folder / "notes.csv"), None, CSV)
        (unit,) = connector.discover(JANUARY)
        (folder / "notes.csv").chmod(0)
        root = os.geteuid() == 0
        if root:  # root reads everything: be nobody for a moment
            for parent in folder.parents[:-2]:
                parent.chmod(0o755)
            os.seteuid(65534)
        try:
            refused(lambda: connector.discover(JANUARY), ErrorCode.SOURCE_UNREADABLE)
            refused(lambda: list(connector.read(unit, SCHEMA)), ErrorCode.SOURCE_UNREADABLE)
            refused(lambda: connector.observed_schema(unit), ErrorCode.SOURCE_UNREADABLE)
        finally:
            if root:
                os.seteuid(0)

    def test_a_file_that_is_gone_or_changed_since_discovery_is_refused(self, folder):
        connector = FilesConnector(str(folder / "notes.csv"), None, CSV)
        (unit,) = connector.discover(JANUARY)
        (folder / "notes.csv").write_text("a\n9\n10\n")
        assert refused(lambda: list(connector.read(unit, SCHEMA)), ErrorCode.SOURCE_UNAVAILABLE).retryable
        (folder / "notes.csv").unlink()
        refused(lambda: list(connector.read(unit, SCHEMA)), ErrorCode.SOURCE_NOT_FOUND)

    def test_a_file_that_changes_while_it_is_read_is_refused(self, folder):
        connector = FilesConnector(str(folder / "notes.csv"), None, CSV)
        batches = connector.read(connector.discover(JANUARY)[0], SCHEMA)
        next(batches)
        with (folder / "notes.csv").open("a") as file:
            file.write("10\n")
        refused(lambda: list(batches), ErrorCode.SOURCE_UNAVAILABLE)

    def test_errors_name_the_file(self, folder):
        (folder / "bad.parquet").write_bytes(b"PAR1 truncated")
        connector = FilesConnector(str(folder / "bad.parquet"), None, ParquetFormat())
        (unit,) = connector.discover(JANUARY)
        for action in (lambda: list(connector.read(unit, SCHEMA)), lambda: connector.observed_schema(unit)):
            assert "bad.parquet" in refused(action, ErrorCode.SOURCE_MALFORMED).message


class TestReading:
    def test_every_format_is_read_and_observed(self, tmp_path):
        (tmp_path / "x.csv").write_text("a;b\n1;2\n")
        (tmp_path / "x.jsonl").write_text('{"a":1,"b":2}\n')
        pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "x.parquet")
        formats = {
            "csv": file_format({"type": "csv", "delimiter": ";"}),
            "jsonl": file_format({"type": "jsonl"}),
            "parquet": file_format({"type": "parquet"}),
        }
        assert formats["jsonl"] == JsonlFormat()
        for extension, format in formats.items():
            connector = FilesConnector(str(tmp_path / f"x.{extension}"), None, format)
            (unit,) = connector.discover(JANUARY)
            assert values(connector) == [1]
            assert connector.observed_schema(unit).names == ("a", "b")

    @pytest.mark.parametrize(
        "options", [{}, {"type": "xml"}, {"type": "csv", "seperator": ";"}, {"type": "jsonl", "x": 1}]
    )
    def test_an_unknown_format_or_option_is_refused_with_what_is_allowed(self, options):
        assert "allowed" in refused(lambda: file_format(options), ErrorCode.DECLARATION_INVALID).message


@pytest.fixture(scope="module")
def bucket():
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="landing")
        for name in ("2026-01-02.csv", "2026-01-01.csv", "2026-02-01.csv", "deep/2026-01-03.csv"):
            client.put_object(Bucket="landing", Key=f"erp/{name}", Body=f"a\n{int(name[-6:-4])}\n".encode())
        client.put_object(Bucket="landing", Key="totals.csv", Body=b"a\n7\n")
        yield client
    server.stop()


class TestS3:
    def test_a_folder_is_listed_hashed_and_read(self, bucket):
        connector = FilesConnector("s3://landing/erp", "{date}*.csv", CSV)
        units = connector.discover(JANUARY)
        assert [unit.source_id for unit in units] == ["2026-01-01.csv", "2026-01-02.csv"]
        assert units[0].uri == "s3://landing/erp/2026-01-01.csv"
        assert units[0].sha256 == hashlib.sha256(b"a\n1\n").hexdigest()
        assert values(connector) == [1, 2]

    def test_a_glob_a_file_and_a_path_that_goes_up_are_found(self, bucket):
        assert values(FilesConnector("s3://landing/erp/*/2026*.csv", None, CSV)) == [3]
        assert values(FilesConnector("s3://landing/totals.csv", None, CSV)) == [7]
        assert values(FilesConnector("s3://landing/erp/../totals.csv", None, CSV)) == [7]

    @pytest.mark.parametrize("path", ["s3://landing/none", "s3://nobucket/erp", "s3://landing/none/*.csv"])
    def test_a_missing_bucket_or_key_is_not_found(self, bucket, path):
        connector = FilesConnector(path, "{date}*.csv", CSV)
        assert (
            path.rstrip("/*.csv")
            in refused(lambda: connector.discover(JANUARY), ErrorCode.SOURCE_NOT_FOUND).message
        )

    def test_an_object_replaced_since_discovery_is_refused(self, bucket):
        bucket.put_object(Bucket="landing", Key="changing/x.csv", Body=b"a\n1\n")
        connector = FilesConnector("s3://landing/changing", "*.csv", CSV)
        (unit,) = connector.discover(JANUARY)
        bucket.put_object(Bucket="landing", Key="changing/x.csv", Body=b"a\n1\n2\n")
        refused(lambda: list(connector.read(unit, SCHEMA)), ErrorCode.SOURCE_UNAVAILABLE)

    def test_a_server_that_does_not_answer_makes_the_source_unavailable(self, bucket, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        error = refused(
            lambda: FilesConnector("s3://landing/erp", "{date}.csv", CSV).discover(JANUARY),
            ErrorCode.SOURCE_UNAVAILABLE,
        )
        assert error.retryable
