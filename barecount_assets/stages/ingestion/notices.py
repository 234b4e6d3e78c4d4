"""What a look at a folder shows and no number says: files nobody reads, and units that count and are not there.

None of it changes what counts: whether an absence means something only the source's owner knows. It is said in the
receipt of every run, and by `barecount run`, until it is settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from barecount_assets.stages.ingestion import sources
from barecount_assets.stages.ingestion.connectors.files import FilesConnector, is_named
from barecount_assets.stages.ingestion.records import Unit, Window
from resources.governance.sources import FileSource
from resources.runners.stage import StageSpec
from resources.runtime.database import fetch

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment
    from resources.governance.manifests import Pipeline

_SHOWN = 5


def of_folder(
    connection: psycopg.Connection, environment: StageEnvironment, manifest: Pipeline, source: FileSource,
    spec: StageSpec, connector: FilesConnector, units: Sequence[Unit], window: Window, withdrawn: Sequence[str],
) -> dict[str, Any]:
    """Facts for the receipt of a files source's ingestion: the names, and `notices`, a sentence for each kind."""
    seen = [unit.source_id for unit in units]
    gone = [name for (name,) in fetch(
        connection, _NOT_SEEN, (spec.tenant_id, source.dataset, window.start, window.end, seen))]
    left_out, early = connector.left_out(manifest.spec.partitions.start, manifest.spec.partitions.end) \
        if source.dated else ([], [])
    for other in manifest.spec.sources:
        if isinstance(other, FileSource) and other.name != source.name and other.file_name:
            path = sources.path_if_known(manifest, other, spec, environment.settings)
            if path == connector.path:
                left_out = [name for name in left_out if not is_named(name, other.file_name)]
    where = f"source {source.name}"
    notices = [text for names, text in (
        (gone, f"{where}: {_listed(gone)} count, and are not at {connector.path} any more. They go on counting; if "
               f"they should not: barecount raw withdraw {spec.pipeline} {source.name} UNIT --tenant {spec.tenant_id} "
               "--reason WHY"),
        (left_out, f"{where}: {_listed(left_out)} in {connector.path} are not read: file_name is {source.file_name}"),
        (early, f"{where}: {_listed(early)} are of days outside the pipeline's partitions, and are not read"),
        (withdrawn, f"{where}: {_listed(withdrawn)} were withdrawn, and are not read"),
    ) if names]
    return {"not_there": gone, "left_out": left_out, "outside_partitions": early, "withdrawn": list(withdrawn),
            "notices": notices}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {'file' if len(names) == 1 else 'files'} ({', '.join(names[:_SHOWN])}{more})"


_NOT_SEEN = """
select u.source_id
from platform.source_unit u
join platform.raw_batch r using (batch_id)
join platform.counted_batch b using (batch_id)
where u.tenant_id = $1 and u.dataset = $2 and u.withdrawn_seq is null and b.is_current and r.replay_of is null
    and (b.partition_date is null or b.partition_date between $3 and $4) and u.source_id <> all($5::text[])
order by u.delivery_order
"""
