"""The embedded server starts on anybody's machine, for its owner alone, whatever a first start was interrupted by."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from resources.runtime import embedded
from resources.runtime.embedded import Cluster, shared_buffers, work_mem
from resources.runtime.errors import BareCountError

PROJECT = Path(__file__).resolve().parents[3]
NOBODY = 65534
GB = 2**30
START = "import pathlib, sys; from resources.runtime import embedded; embedded.start(pathlib.Path(sys.argv[1]))"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account may pass through; no server is left in what lies in it."""
    with tempfile.TemporaryDirectory(prefix="bc-embedded-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for state in Path(name).rglob("postmaster.pid"):
            embedded.stop(state.parents[1])


def works(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return connection.execute("select current_database()").fetchone() == (embedded.DATABASE,)


@pytest.mark.parametrize("name", [
    "with space", "it's", 'double "quoted"', "dollar $HOME & ; | `id`", "100% per%20cent", "ünïcödé 数据", "a, b",
    "?x=1#y", "/".join(["x" * 100, "y" * 100]),
], ids=["space", "quote", "double_quote", "shell", "per_cent", "letters", "comma", "url", "long"])
def test_it_starts_in_a_folder_of_any_name(folder: Path, name: str) -> None:
    url = embedded.start(folder / name)
    assert works(url)
    assert embedded.start(folder / name) == url
    assert embedded.stop(folder / name)
    assert not embedded.stop(folder / name)


def test_its_settings_do_not_depend_on_language_zone_or_home(folder: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "de_DE@euro", "TZ": "Asia/Tokyo", "PGPORT": "1"}
    subprocess.run([sys.executable, "-c", START, str(folder)], env=environment, cwd=PROJECT, check=True)
    with psycopg.connect(embedded.start(folder)) as connection:
        shown = [connection.execute(f"show {name}").fetchone() for name in
                 ("timezone", "lc_messages", "server_encoding", "listen_addresses", "port")]
        assert shown == [("UTC",), ("C",), ("UTF8",), ("",), ("5432",)]


def test_first_commands_at_once_make_one_server(folder: Path) -> None:
    starting = [subprocess.Popen([sys.executable, "-c", START, str(folder)], cwd=PROJECT) for _ in range(4)]
    assert [process.wait() for process in starting] == [0] * 4
    assert works(embedded.start(folder))


@pytest.mark.crash
@pytest.mark.parametrize("milliseconds", range(20, 620, 60))
def test_a_first_start_that_is_killed_is_begun_again(folder: Path, milliseconds: int) -> None:
    child = multiprocessing.get_context("fork").Process(target=embedded.start, args=(folder,))
    child.start()
    child.join(milliseconds / 1000)
    if child.is_alive():
        child.kill()
    child.join()
    assert works(embedded.start(folder))
    assert not list(folder.glob("postgres.new-*"))


def test_a_cluster_left_without_its_database_gets_it(folder: Path) -> None:
    url = embedded.start(folder)
    with psycopg.connect(url.replace(f"/{embedded.DATABASE}?", "/postgres?"), autocommit=True) as connection:
        connection.execute(f"drop database {embedded.DATABASE}")
    assert works(embedded.start(folder))


def test_a_killed_server_starts_again(folder: Path) -> None:
    embedded.start(folder)
    number = Cluster.of(folder).process_id()
    assert number is not None
    os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(process.info["cwd"] == str(folder / "postgres") for process in psutil.process_iter(["cwd"])):
        assert time.monotonic() < deadline, "its processes go on"
    assert works(embedded.start(folder))


def test_a_number_that_another_program_has_now_is_no_server(folder: Path) -> None:
    embedded.start(folder)
    state = folder / "postgres" / "postmaster.pid"
    lines = state.read_text().splitlines()
    embedded.stop(folder)
    state.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    assert not embedded.stop(folder)
    assert works(embedded.start(folder))


@as_root
def test_another_account_of_the_machine_cannot_connect(folder: Path) -> None:
    url = embedded.start(folder)
    psql = [Cluster.program("psql"), "-Atc", "select current_user", url]
    refused = subprocess.run(psql, capture_output=True, text=True, user=NOBODY, group=NOBODY, extra_groups=[])
    assert "Permission denied" in refused.stderr
    cluster = folder / "postgres"
    cluster.chmod(0o755)
    (cluster / ".s.PGSQL.5432").chmod(0o777)
    refused = subprocess.run(psql, capture_output=True, text=True, user=NOBODY, group=NOBODY, extra_groups=[])
    assert "Peer authentication failed" in refused.stderr
    assert (refused.returncode, refused.stdout) == (2, "")


@as_root
def test_the_folder_of_a_far_socket_is_closed(folder: Path) -> None:
    embedded.start(folder / ("x" * 120))
    far = Cluster.of(folder / ("x" * 120)).socket_folder()
    assert far is not None
    assert far.stat().st_mode & 0o077 == 0
    assert not far.is_relative_to(folder)


def _start_as(uid: int, place: Path) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    assert works(embedded.start(place))


@as_root
def test_an_ordinary_user_and_root_can_use_one_folder(folder: Path) -> None:
    place = folder / "theirs"
    place.mkdir(mode=0o700)
    os.chown(place, NOBODY, NOBODY)
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(target=_start_as, args=(NOBODY, place))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert works(embedded.start(place))
        assert (place / "postgres").stat().st_uid == NOBODY
        assert embedded.stop(place)


def _refused_as(uid: int, place: Path) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    with pytest.raises(BareCountError) as refused:
        embedded.start(place)
    assert "cannot be written" in str(refused.value) and "BARECOUNT_DATA_DIR" in str(refused.value)


@as_root
def test_somebody_elses_folder_is_refused_with_the_reason(folder: Path) -> None:
    embedded.start(folder)
    child = multiprocessing.get_context("fork").Process(target=_refused_as, args=(NOBODY, folder))
    child.start()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize(("memory", "expected"), [(64 * GB, (512, 128)), (2 * GB, (256, 64)), (GB // 4, (32, 8))])
def test_a_small_machine_gets_a_small_server(memory: int, expected: tuple[int, int]) -> None:
    assert (shared_buffers(memory) >> 20, work_mem(memory) >> 20) == expected
