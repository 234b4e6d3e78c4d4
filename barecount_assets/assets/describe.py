"""What every asset says about itself: owners, kinds, column schema, contract version, tags."""

from __future__ import annotations

from typing import Any

import dagster as dg

from barecount_assets import keys
from resources.governance.column_lineage import CALENDAR, DIRECT, ROWS, ProjectLineage
from resources.governance.contracts import Contract
from resources.governance.manifests import Pipeline
from resources.runners.stage import Placement


def column_schema(contract: Contract) -> dg.TableSchema:
    """The contract's columns as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                column.physical_type,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=not column.required, unique=column.unique),
                tags={"classification": column.classification} if column.classification else {},
            )
            for column in contract.columns
        ]
    )


def contract_metadata(contract: Contract) -> dict[str, Any]:
    """Definition metadata of an asset under contract."""
    return {
        "dagster/column_schema": column_schema(contract),
        "contract": f"{contract.dataset} {contract.layer}",
        "contract_version": contract.version,
        "contract_hash": contract.hash,
    }


def column_lineage(lineage: ProjectLineage | None, manifest: Pipeline, asset: str) -> dict[str, Any]:
    """What the columns of `<layer>.<name>` are computed from, as Dagster shows it; nothing when it is not known."""
    known = lineage.assets.get(asset) if lineage is not None else None
    if known is None:
        return {}
    sources = {source.dataset: source.name for source in manifest.spec.sources}

    def key_of(name: str) -> dg.AssetKey | None:
        layer, _, rest = name.partition(".")
        if name == CALENDAR:
            return keys.calendar(manifest.name)
        if layer == keys.RAW and rest in sources:
            return keys.raw(manifest.name, sources[rest])
        make = {keys.GDP: keys.gdp, keys.KPI: keys.kpi}.get(layer)
        return make(manifest.name, rest) if make else None

    columns = {
        column: [dg.TableColumnDep(asset_key=key, column_name=name) for source, name in sorted(
            {(d.asset, d.column) for d in found if d.kind == DIRECT and d.column != ROWS}) if (key := key_of(source))]
        for column, found in known.columns.items() if column != ROWS
    }
    return {"dagster/column_lineage": dg.TableColumnLineage({name: deps for name, deps in columns.items() if deps})}


def owners(manifest: Pipeline) -> list[str]:
    return [person.email for person in manifest.metadata.owners]


def tags(manifest: Pipeline) -> dict[str, str]:
    return {"pipeline": manifest.name, **{k: v for k, v in manifest.metadata.tags.items() if _is_tag(v)}}


def placement(manifest: Pipeline) -> Placement:
    runner = manifest.spec.runner
    return Placement(runner.runner_class, runner.size, runner.network_profile)


def _is_tag(value: str) -> bool:
    """Dagster allows few characters in tag values; other declared tags stay in the manifest."""
    return len(value) <= 63 and all(c.isalnum() or c in "-_." for c in value)
