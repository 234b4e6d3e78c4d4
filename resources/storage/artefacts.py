"""What runs were computed with: the dbt project and everything declared, kept so that a run can be computed again.

An artefact is a tar archive of the sources below `contracts/` and `dbt_project/`, in order of path and without times
or owners, and of `contracts.json`, which says which version of each contract counted: a contract can be newer in the
registry than in its file. The same sources give the same bytes. Its name is their SHA-256, and it is stored once,
however many runs used it. Format: POSIX ustar, kept zlib-compressed.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode

CONTRACTS = "contracts.json"
_TREES = {"contracts": (".yaml", ".yml", ".json"), "dbt_project": (".sql", ".yml", ".yaml", ".csv")}
_NO_SOURCES = {("dbt_project", "target"), ("dbt_project", "logs"), ("dbt_project", "dbt_packages"),
               ("contracts", "schemas")}


@dataclass(frozen=True)
class Artefact:
    """The sources of one project: SHA-256 (hex) of the archive, the archive, number of files."""

    sha256: str
    archive: bytes
    files: int


def pack(project_dir: Path, contracts: Sequence[tuple[str, str, str, str]]) -> Artefact:
    """The project's sources as they are now.

    Args:
        contracts: (dataset, layer, version, hash) of every contract that counts.
    """
    buffer, files = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, CONTRACTS, json.dumps(sorted(contracts)).encode())
        for tree, endings in _TREES.items():
            for path in sorted((project_dir / tree).rglob("*")):
                relative = path.relative_to(project_dir)
                if path.suffix in endings and path.is_file() and relative.parts[:2] not in _NO_SOURCES:
                    _add(archive, relative.as_posix(), path.read_bytes())
                    files += 1
    return Artefact(hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue(), files)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def record(
    connection: Any, artefact: Artefact, stage_code: str, tenant_id: str, pipeline: str, stage: str, run_token: str
) -> None:
    """Keep an artefact, if it is new, and that a run used it, in the run's transaction.

    Args:
        stage_code: version of the stages' own code, which is not part of the artefact.
    """
    fetch(connection, _STORE, (artefact.sha256, zlib.compress(artefact.archive), artefact.files))
    fetch(connection, _USE, (tenant_id, pipeline, stage, run_token, artefact.sha256, stage_code))


def of_run(
    connection: Any, tenant_id: str, pipeline: str, stage: str, run_token: str
) -> tuple[str, str] | None:
    """(SHA-256, version of the stages' code) of what a run used; None when nothing was recorded."""
    rows = fetch(connection, _OF_RUN, (tenant_id, pipeline, stage, run_token))
    return (rows[0][0], rows[0][1]) if rows else None


def unpack(connection: Any, sha256: str, folder: Path) -> None:
    """Write an artefact's files below a folder.

    Raises:
        BareCountError: evidence.missing when it is not kept; store.corrupt when it is not what its name says.
    """
    rows = fetch(connection, "select content from platform.artefact where sha256 = $1", (sha256,))
    if not rows:
        raise BareCountError(ErrorCode.EVIDENCE_MISSING, f"the sources {sha256} are not kept in this database",
                             hint="restore the database from a backup, or replay with --current")
    try:
        archive = zlib.decompress(bytes(rows[0][0]))
    except zlib.error:
        archive = b""
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256:
        raise BareCountError(ErrorCode.STORE_CORRUPT, f"the sources kept as {sha256} have SHA-256 {found}",
                             hint="somebody changed platform.artefact; restore it from a backup")
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:  # plain files, as `pack` writes them: `extractall` with a filter came with Python 3.11.4
            target, content = (folder / member.name).resolve(), opened.extractfile(member)
            if content is None or not target.is_relative_to(folder.resolve()):
                raise BareCountError(
                    ErrorCode.STORE_CORRUPT, f"the sources {sha256} hold {member.name}, which is no file",
                    hint="somebody changed platform.artefact; restore it from a backup")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


_STORE = """
insert into platform.artefact (sha256, content, files) values ($1, $2, $3::int) on conflict (sha256) do nothing
"""
_USE = """
insert into platform.run_artefact (tenant_id, pipeline, stage, run_token, artefact, stage_code)
values ($1, $2, $3, $4, $5, $6) on conflict do nothing
"""
_OF_RUN = """
select artefact, stage_code from platform.run_artefact
where tenant_id = $1 and pipeline = $2 and stage = $3 and run_token = $4
"""
