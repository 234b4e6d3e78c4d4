"""Whose days: what models must know of time zones, and what of it is part of a result's identity.

Days are cut in the tenant's zone, and in those that contracts of the pipeline name. Rules are given to a run only where
the pipeline has instants: others have no use for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resources.data_utilities import time_zones
from resources.runtime.declared import canonical_hash

if TYPE_CHECKING:
    from resources.governance.contracts import Contract
    from resources.governance.declarations import Declarations
    from resources.governance.manifests import Pipeline
    from resources.host.tenants import Tenant


def run_variables(declarations: Declarations, manifest: Pipeline, tenant: Tenant) -> dict[str, Any]:
    """The variables `time_zone` and `time_zones` of a run (dbt_project/macros/run_variables.sql)."""
    names = _zones(declarations, manifest, tenant)
    return {"time_zone": tenant.spec.timezone,
            "time_zones": {name: time_zones.rules_of(name).as_text() for name in names}}


def definition(declarations: Declarations, manifest: Pipeline, tenant: Tenant) -> dict[str, str]:
    """What results depend on: another zone, or other rules of it, and everything is computed again.

    Empty for a pipeline without instants.
    """
    variables = run_variables(declarations, manifest, tenant)
    return {"time_zones": canonical_hash(variables)} if variables["time_zones"] else {}


def _zones(declarations: Declarations, manifest: Pipeline, tenant: Tenant) -> list[str]:
    contracts = list(_contracts(declarations, manifest))
    if not any(column.is_instant for contract in contracts for column in contract.columns):
        return []
    named = {column.time_zone for contract in contracts for column in contract.columns} - {None}
    return sorted({tenant.spec.timezone, *named})


def _contracts(declarations: Declarations, manifest: Pipeline) -> Iterator[Contract]:
    for source in manifest.spec.sources:
        yield declarations.contract(source.dataset, "extraction")
        yield declarations.contract(source.dataset, "raw")
    for model in manifest.spec.transforms.gdp:
        yield declarations.contract(f"{manifest.name}.{model}", "gold")
