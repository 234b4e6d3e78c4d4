-- Drift: what a source has beyond or besides its contracts, who decided what about it, and which batches wait for that.

-- One row for what has to be decided, however many batches show it: the fingerprint is that of the blocking changes and
-- of the contracts they were found against.
create table platform.drift (
    drift_id           bigint generated always as identity primary key,
    tenant_id          text not null references platform.tenant,
    pipeline           text not null,
    dataset            text not null,
    fingerprint        text not null,
    observed           jsonb not null,
    changes            jsonb not null,
    extraction_version text not null,
    raw_version        text not null,
    status             text not null default 'open' check (status in ('open', 'accepted', 'rejected', 'held', 'settled')),
    detected_at        timestamptz not null default now(),
    evidence_seq       bigint not null,
    unique (tenant_id, dataset, fingerprint),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- One decision per drift, for good. A drift that went away by itself (`settled`) has none.
create table platform.drift_decision (
    drift_id           bigint primary key references platform.drift,
    tenant_id          text not null references platform.tenant,
    verdict            text not null check (verdict in ('accepted', 'rejected', 'held')),
    decided_by         text not null check (decided_by <> ''),
    reason             text not null check (reason <> ''),
    policy             jsonb not null,
    extraction_version text,
    raw_version        text,
    decided_at         timestamptz not null,
    evidence_seq       bigint not null,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- Batches that show a drift. `waiting` holds the batch's partition; every other outcome lets it go on:
--   relanded     read again under the contracts now in force, as the batch that supersedes it
--   conforming   its drifted part is in quarantine, the rest counts
--   kept_out     it does not count; what its source said before still does
-- A batch whose source has delivered another content since holds nothing, and waits on: the content may come back.
create table platform.drift_batch (
    batch_id     bigint primary key references platform.raw_batch,
    drift_id     bigint not null references platform.drift,
    tenant_id    text not null references platform.tenant,
    outcome      text not null default 'waiting'
        check (outcome in ('waiting', 'relanded', 'conforming', 'kept_out')),
    settled_at   timestamptz,
    evidence_seq bigint,
    check ((outcome = 'waiting') = (evidence_seq is null)),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create index drift_batch_of_drift on platform.drift_batch (drift_id);
create index drift_batch_waiting on platform.drift_batch (tenant_id) where outcome = 'waiting';
create index drift_batch_kept_out on platform.drift_batch (tenant_id) where outcome = 'kept_out';

-- Content that lands once lands again only as the successor of a batch, under other contracts.
alter table platform.raw_batch add column supersedes bigint references platform.raw_batch;
alter table platform.raw_batch drop constraint raw_batch_tenant_id_dataset_partition_date_content_sha256_key;
alter table platform.raw_batch
    add unique nulls not distinct (tenant_id, dataset, partition_date, content_sha256, supersedes);

-- Days of a tenant's pipeline that wait for a decision.
create view platform.held_partition as
select distinct b.tenant_id, b.pipeline, b.partition_date
from platform.drift_batch w
join platform.raw_batch b using (batch_id)
where w.outcome = 'waiting' and b.is_current;

-- Batches that count downstream (`is_current`): what every unit says now, except that a held partition stays as it was
-- when it was last normalized, and that a batch kept out leaves its unit as that was.
create view platform.counted_batch as
select b.batch_id, b.tenant_id, b.pipeline, b.dataset, b.source_id, b.partition_date, b.content_sha256, b.accepted,
    case
        when exists (
            select from platform.held_partition h
            where h.tenant_id = b.tenant_id and h.pipeline = b.pipeline
                and h.partition_date is not distinct from b.partition_date)
        then exists (
            select from platform.normalized_batch n
            where n.tenant_id = b.tenant_id and n.pipeline = b.pipeline and n.batch_id = b.batch_id)
        when b.is_current
        then not exists (
            select from platform.drift_batch k
            where k.tenant_id = b.tenant_id and k.outcome = 'kept_out' and k.batch_id = b.batch_id)
        else exists (
            select from platform.drift_batch k
            join platform.raw_batch unit using (batch_id)
            join platform.normalized_batch n
                on n.tenant_id = b.tenant_id and n.pipeline = b.pipeline and n.batch_id = b.batch_id
            where k.tenant_id = b.tenant_id and k.outcome = 'kept_out' and unit.is_current
                and unit.dataset = b.dataset and unit.source_id = b.source_id)
    end as is_current
from platform.raw_batch b;

create trigger append_only before update or delete on platform.drift_decision
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.drift_decision
    for each statement execute function platform.refuse_change();

grant select, insert, update on platform.drift, platform.drift_batch to barecount_platform;
grant select, insert on platform.drift_decision to barecount_platform;
grant select on platform.held_partition, platform.counted_batch to barecount_platform;
grant usage on all sequences in schema platform to barecount_platform;
