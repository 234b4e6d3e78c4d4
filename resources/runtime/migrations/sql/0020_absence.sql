-- Absence: deliveries that are complete replace the ones before them.

-- Batches that a newer complete delivery of their dataset has replaced, as the manifest declares deliveries. The stages
-- keep it, under the lock of tenant and pipeline (`stages/deliveries.py`).
create table platform.replaced_batch (
    batch_id  bigint primary key references platform.raw_batch,
    tenant_id text not null references platform.tenant,
    dataset   text not null
);
create index replaced_batch_of_dataset on platform.replaced_batch (tenant_id, dataset);

-- Units of a source that is read whole which its newest reading did not find.
create table platform.absent_unit (
    tenant_id text not null references platform.tenant,
    dataset   text not null,
    source_id text not null,
    primary key (tenant_id, dataset, source_id)
);

-- Batches that stand (`is_current`): what every unit says, but for what drift holds or keeps out. Of those the ones that
-- no newer complete delivery has replaced count downstream.
alter view platform.counted_batch rename to standing_batch;
create view platform.counted_batch as
select batch_id, tenant_id, pipeline, dataset, source_id, partition_date, content_sha256, accepted,
    is_current and not exists (select from platform.replaced_batch r where r.batch_id = s.batch_id) as is_current,
    delivery_order
from platform.standing_batch s;

-- A batch may wait for more than one decision, one after the other: about its schema, and about how much it lacks.
alter table platform.drift_batch drop constraint drift_batch_pkey, add primary key (batch_id, drift_id);

grant select, insert, update, delete on platform.replaced_batch, platform.absent_unit to barecount_platform;
grant select on platform.counted_batch to barecount_platform;
