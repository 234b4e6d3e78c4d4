-- Lineage graph, OpenLineage outbox and obligations.
--
-- Assets and processes as they are now; runs and edges as they were. Edges come from the code alone, so a set of them is
-- written once and runs refer to it by its digest.
create table platform.lineage_asset (
    tenant_id        text not null references platform.tenant,
    asset            text not null,
    layer            text not null,
    contract_version text,
    contract_hash    text,
    owners           text not null,
    tags             jsonb not null,
    primary key (tenant_id, asset)
);
create table platform.lineage_process (
    tenant_id text not null references platform.tenant,
    job       text not null,
    pipeline  text not null,
    stage     text not null,
    source    text,
    owners    text not null,
    primary key (tenant_id, job)
);
create table platform.lineage_edge (
    tenant_id     text not null references platform.tenant,
    edges_sha256  text not null,
    target_asset  text not null,
    target_column text not null,
    source_asset  text not null,
    source_column text not null,
    kind          text not null check (kind in ('DIRECT', 'INDIRECT')),
    subtype       text not null,
    masked        boolean not null,
    primary key (tenant_id, edges_sha256, target_asset, target_column, source_asset, source_column, kind, subtype,
                 masked)
);
-- `run` is the OpenLineage run id: a UUID of tenant, job, run token and attempt. An attempt ends as completed, failed or
-- aborted; the next one with the same token has the next number. A killed one stays open and is gone on with.
create table platform.lineage_run (
    tenant_id    text not null references platform.tenant,
    run          uuid not null,
    job          text not null,
    run_token    text not null,
    attempt      int not null check (attempt > 0),
    state        text not null check (state in ('started', 'completed', 'failed', 'aborted')),
    code_version text not null,
    edges_sha256 text,
    evidence_seq bigint,
    started_at   timestamptz not null default now(),
    ended_at     timestamptz,
    primary key (tenant_id, run),
    unique (tenant_id, job, run_token, attempt),
    check ((state = 'completed') = (evidence_seq is not null)),
    foreign key (tenant_id, job) references platform.lineage_process,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create unique index lineage_run_one_open on platform.lineage_run (tenant_id, job) where state = 'started';
create index lineage_run_newest on platform.lineage_run (tenant_id, job, evidence_seq) where state = 'completed';

-- OpenLineage events, each without its time, which is occurred_at. Written in the transaction that changes the state.
create table platform.lineage_event (
    position    bigint generated always as identity primary key,
    tenant_id   text not null references platform.tenant,
    event_id    uuid not null unique,
    run         uuid not null,
    type        text not null check (type in ('START', 'COMPLETE', 'FAIL', 'ABORT')),
    body        jsonb not null,
    occurred_at timestamptz not null default clock_timestamp(),
    foreign key (tenant_id, run) references platform.lineage_run
);
-- What each transport has sent. A file's `bytes` is its length when everything up to then was on record here.
create table platform.lineage_delivery (
    transport    text not null,
    event_id     uuid not null references platform.lineage_event (event_id),
    refused      text,
    delivered_at timestamptz not null default now(),
    primary key (transport, event_id)
);
create table platform.lineage_transport (
    transport text primary key,
    bytes     bigint not null default 0
);

-- Results of obligations; a new one only when it is another than the one before for the same work.
create table platform.obligation_result (
    tenant_id    text not null references platform.tenant,
    pipeline     text not null,
    obligation   text not null,
    run_token    text not null,
    number       int not null check (number > 0),
    version      text not null,
    hash         text not null,
    status       text not null check (status in ('pass', 'fail', 'warn', 'skip')),
    blocking     boolean not null,
    summary      text not null,
    details      jsonb not null,
    evidence_seq bigint not null,
    evaluated_at timestamptz not null default now(),
    primary key (tenant_id, pipeline, obligation, run_token, number),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

do $$
declare
    name text;
begin
    foreach name in array array['lineage_edge', 'lineage_event', 'obligation_result'] loop
        execute format('create trigger append_only before update or delete on platform.%I '
                       'for each row execute function platform.refuse_change()', name);
        execute format('create trigger append_only_truncate before truncate on platform.%I '
                       'for each statement execute function platform.refuse_change()', name);
    end loop;
end
$$;
grant select, insert on platform.lineage_edge, platform.lineage_event, platform.obligation_result
    to barecount_platform;
grant select, insert, update on platform.lineage_asset, platform.lineage_process, platform.lineage_run,
    platform.lineage_delivery, platform.lineage_transport to barecount_platform;
