"""What every asset says about itself: owners, kinds, column schema, contract version, tags."""

from __future__ import annotations

from typing import Any

import dagster as dg

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
