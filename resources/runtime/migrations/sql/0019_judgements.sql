-- Batches judged again under a later version of their raw contract that stay as they are: nothing of them moves between
-- accepted and quarantined, or their rows expired and cannot be read any more. `judgement` is the digest of what decides
-- acceptance. A batch of which something moves lands again, as the batch that supersedes it.
create table platform.batch_judgement (
    batch_id         bigint not null references platform.raw_batch,
    judgement        text not null check (judgement ~ '^[0-9a-f]{64}$'),
    tenant_id        text not null references platform.tenant,
    outcome          text not null check (outcome in ('unchanged', 'expired')),
    contract_version text not null,
    evidence_seq     bigint not null,
    judged_at        timestamptz not null default now(),
    primary key (batch_id, judgement),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create trigger append_only before update or delete on platform.batch_judgement
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.batch_judgement
    for each statement execute function platform.refuse_change();
grant select, insert on platform.batch_judgement to barecount_platform;
