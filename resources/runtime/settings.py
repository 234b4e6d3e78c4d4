"""Where things are: the project, its data folder and its database, resolved once from the environment.

`BARECOUNT_PROJECT_DIR` names the folder with `contracts/` and `dbt_project/` (default: the nearest parent of
the working directory that has both, else the folder this code was installed from);
`BARECOUNT_DATA_DIR` names the data folder (default: `.barecount` in the project);
`BARECOUNT_RAW_STORE` names the raw store, a folder or an `s3://bucket/prefix` (default: `raw` in the data folder);
`BARECOUNT_DATABASE_URL` points everything to a PostgreSQL server of one's own; so that no password lies in a process's
environment, `BARECOUNT_DATABASE_URL_FILE` names a file, or `BARECOUNT_DATABASE_SECRET` a secret of AWS Secrets Manager
(name or ARN), that holds the URL;
`BARECOUNT_ENVIRONMENT` names the environment that runners work in (default: `local`).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from resources.runtime.errors import BareCountError, ErrorCode

SOFTWARE_VERSION = "0.1.0"
_CODE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """The resolved places of one project.

    Attributes:
        project_dir: folder that holds `contracts/` and `dbt_project/`.
        data_dir: folder for embedded PostgreSQL, logs and samples.
        raw_store: folder path or `s3://` URL of the raw store.
        database_url: libpq URL of an external server, or None for the embedded one.
        environment: name of a file of `deploy/environments`.
    """

    project_dir: Path
    data_dir: Path
    raw_store: str
    database_url: str | None
    environment: str = "local"

    @classmethod
    def from_environment(cls) -> Settings:
        """Resolve from the environment.

        Raises:
            BareCountError: declaration.unknown when no project folder can be found; secret.unavailable when the
                database's URL cannot be read from where the environment says it is.
        """
        project = _project_dir()
        data = Path(os.environ.get("BARECOUNT_DATA_DIR") or project / ".barecount").resolve()
        return cls(
            project_dir=project,
            data_dir=data,
            raw_store=os.environ.get("BARECOUNT_RAW_STORE") or str(data / "raw"),
            database_url=_database_url(),
            environment=os.environ.get("BARECOUNT_ENVIRONMENT") or "local",
        )


def _is_project(path: Path) -> bool:
    return (path / "contracts").is_dir() and (path / "dbt_project").is_dir()


def _project_dir() -> Path:
    declared = os.environ.get("BARECOUNT_PROJECT_DIR")
    if declared:
        path = Path(declared).resolve()
        if _is_project(path):
            return path
        raise BareCountError(
            ErrorCode.DECLARATION_UNKNOWN,
            f"BARECOUNT_PROJECT_DIR is {path}, which has no contracts/ and dbt_project/ folders",
            hint="point it to the folder that holds both",
        )
    cwd = Path.cwd()
    for path in (cwd, *cwd.parents, _CODE_ROOT):
        if _is_project(path):
            return path
    raise BareCountError(
        ErrorCode.DECLARATION_UNKNOWN,
        f"no project found: neither {cwd} nor a parent of it has contracts/ and dbt_project/ folders",
        hint="run from inside the project or set BARECOUNT_PROJECT_DIR",
    )


def _database_url() -> str | None:
    """The URL itself, or what the file or the secret holds that stands for it."""
    if url := os.environ.get("BARECOUNT_DATABASE_URL"):
        return url
    if file := os.environ.get("BARECOUNT_DATABASE_URL_FILE"):
        try:
            return _not_empty(Path(file).read_text(encoding="utf-8"), file)
        except OSError as error:
            raise _no_url(
                f"{file}, which BARECOUNT_DATABASE_URL_FILE names, cannot be read: {error.strerror}") from error
    if secret := os.environ.get("BARECOUNT_DATABASE_SECRET"):
        return _not_empty(_secret_text(secret), secret)
    return None


@lru_cache(maxsize=4)
def _secret_text(secret_id: str) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return boto3.client("secretsmanager").get_secret_value(SecretId=secret_id).get("SecretString", "")
    except ClientError as error:
        code = error.response["Error"]["Code"]
        raise _no_url(f"{secret_id}, which BARECOUNT_DATABASE_SECRET names: Secrets Manager answers {code}") from error
    except BotoCoreError as error:
        raise _no_url(f"{secret_id}, which BARECOUNT_DATABASE_SECRET names: Secrets Manager cannot be reached "
                      f"({type(error).__name__})") from error


def _not_empty(text: str, place: str) -> str:
    if not text.strip():
        raise _no_url(f"{place} is empty, and should be the database's URL")
    return text.strip()


def _no_url(message: str) -> BareCountError:
    return BareCountError(ErrorCode.SECRET_UNAVAILABLE, message, retryable=True,
                          hint="see its name and who may read it; without such a variable the embedded server is used")


@lru_cache(maxsize=4)
def code_version(project_dir: Path) -> str:
    """SHA-256 (hex) over everything that can change a result: stage code, resources and the dbt project.

    Paths and contents count, modification times do not, so that two checkouts of one commit agree.
    """
    dbt_project = (project_dir, project_dir / "dbt_project", (".sql", ".yml", ".yaml", ".csv"))
    return _digest([*_STAGE_CODE, dbt_project])


@lru_cache(maxsize=1)
def stage_code_version() -> str:
    """SHA-256 (hex) over the part of `code_version` that no project has: stage code and resources."""
    return _digest(_STAGE_CODE)


_STAGE_CODE = [(_CODE_ROOT, _CODE_ROOT / "barecount_assets" / "stages", (".py", ".sql")),
               (_CODE_ROOT, _CODE_ROOT / "resources", (".py", ".sql"))]


def _digest(trees: list[tuple[Path, Path, tuple[str, ...]]]) -> str:
    digest = hashlib.sha256(SOFTWARE_VERSION.encode())
    for root, tree, suffixes in trees:
        for path in sorted(p for p in tree.rglob("*") if p.suffix in suffixes and _is_source(p.relative_to(tree))):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_source(relative: Path) -> bool:
    """Whether a path of a tree is nothing that dbt or Python made: a pipeline may have one of dbt's names."""
    return relative.parts[0] not in {"target", "logs", "dbt_packages"} and "__pycache__" not in relative.parts
