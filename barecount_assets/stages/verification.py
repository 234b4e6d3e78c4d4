"""What is compared before a number is published and whenever it is explained: the GDPs behind it with their evidence.

`explain` looks at every row. A publication looks at every row of GDPs of moderate size; of larger ones at the rows that
are new since the last publication, and of very many of these at a share, chosen by their hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from resources.governance import registry
from resources.governance.contracts import Contract
from resources.governance.declarations import Declarations
from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.storage import gdp_store

WHOLE = 100_000
"""Rows up to which a publication hashes all of a GDP's values again; of more new rows, about as many."""


@dataclass(frozen=True)
class Verified:
    """One comparison: what it is about, what the evidence says, what was found now."""

    name: str
    expected: str
    found: str

    @property
    def ok(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True)
class Normalized:
    """A normalization as its evidence has it.

    Attributes:
        run_id: number of the run.
        payload: of the evidence entry `normalization.finished`.
    """

    pipeline: str
    tenant_id: str
    run_id: int
    payload: Mapping[str, Any]


def evidence(connection: psycopg.Connection, tenant_id: str, seq: int) -> dict[str, Any]:
    """The payload of an entry of a tenant's ledger.

    Raises:
        BareCountError: evidence.broken when the entry is gone or is none.
    """
    rows = fetch(connection, "select body from platform.evidence where tenant_id = $1 and seq = $2", (tenant_id, seq))
    if not rows:
        raise BareCountError(ErrorCode.EVIDENCE_BROKEN, f"evidence entry {seq} of tenant {tenant_id} is gone",
                             hint="run `barecount evidence verify`")
    try:
        return json.loads(rows[0][0])["payload"]
    except (ValueError, KeyError, TypeError) as error:
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN, f"evidence entry {seq} of tenant {tenant_id} is not a ledger entry",
            hint="run `barecount evidence verify`") from error


def contract_of_then(
    connection: psycopg.Connection, declarations: Declarations, dataset: str, layer: str, version: str | None
) -> Contract | None:
    """The version of a contract that counted then; None when it is neither declared nor registered."""
    declared = declarations.contracts.get((dataset, layer))  # type: ignore[call-overload]
    if declared is not None and declared.version == version:
        return declared
    versions = {item.version: item for item in registry.history(connection, dataset, layer)}
    return versions[version].contract if version in versions else None


def verify_gdps(
    connection: psycopg.Connection, declarations: Declarations, normalized: Normalized,
    *, published_run: int | None = None,
) -> list[Verified]:
    """The GDPs as of a run: by the hashes their rows carry, and by hashes computed again from the rows' values.

    Args:
        published_run: number of the run that was published last (0: none was) where it is enough to look at what is
            new since; None: look at everything.
    """
    compared = []
    for model, output in normalized.payload["outputs"].items():
        name = f"GDP {model} as of run {normalized.run_id}"
        contract = contract_of_then(connection, declarations, f"{normalized.pipeline}.{model}", "gold",
                                    normalized.payload["contracts"].get(model))
        columns = contract.column_types if contract is not None else None
        where = (connection, model, normalized.tenant_id, normalized.run_id)
        if published_run is not None and output["rows"] > WHOLE:
            if columns is not None:
                fresh = gdp_store.opened(*where, published_run)
                share = min(1 + fresh // WHOLE, 256)
                wrong = gdp_store.disagreeing(*where, columns, since_run=published_run, every=share)
                compared.append(Verified(f"{name}, new rows whose values are not those hashed", "0", str(wrong)))
            continue
        carried, _ = gdp_store.as_of_hash(*where)
        compared.append(Verified(f"{name}, its rows' hashes", output["content_sha256"], carried))
        if columns is not None:
            computed, _ = gdp_store.recomputed_hash(*where, columns)
            compared.append(Verified(f"{name}, its rows' values", output["content_sha256"], computed))
    return compared


def require_provable(
    connection: psycopg.Connection, declarations: Declarations, normalized: Normalized, published_run: int
) -> None:
    """Refuse to publish what could not be explained.

    Raises:
        BareCountError: evidence.broken naming every comparison that fails.
    """
    failed = [item for item in verify_gdps(connection, declarations, normalized, published_run=published_run)
              if not item.ok]
    if failed:
        named = "; ".join(f"{item.name}: evidence says {item.expected[:16]}, found {item.found[:16]}"
                          for item in failed)
        raise BareCountError(
            ErrorCode.EVIDENCE_BROKEN,
            f"{normalized.pipeline} of tenant {normalized.tenant_id} is not published, as `explain` could not prove "
            f"it: {named}",
            hint="somebody changed rows of the GDP store, or a column does not hold what its model computed; the "
            "previous publication stays in place",
            details={"failed": [{"name": i.name, "expected": i.expected, "found": i.found} for i in failed]},
        )
