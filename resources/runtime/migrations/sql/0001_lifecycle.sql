-- Roles. The platform role runs everything but migrations; analysts are roles of their own, one per tenant, in one
-- group. Roles are cluster-wide: another database of the same cluster may have made them already.
do $$
declare
    wanted text;
begin
    foreach wanted in array array['barecount_platform', 'barecount_analyst'] loop
        begin
            execute format('create role %I nologin noinherit', wanted);
        exception when duplicate_object or unique_violation then null;
        end;
    end loop;
    execute format('grant barecount_platform to %I', current_user);
end
$$;

revoke create on schema public from public;
create schema if not exists platform;
create schema if not exists raw;
create schema if not exists gdp;
create schema if not exists kpi;
create schema if not exists published;
create schema if not exists dagster authorization barecount_platform;  -- Dagster's own storage
grant usage on schema platform to barecount_platform;
grant usage, create on schema raw, gdp, kpi, published to barecount_platform;
grant usage on schema published to barecount_analyst;

-- Tenants, as declared. An analyst role exists for each; it can log in and belongs to the analyst group.
create table platform.tenant (
    tenant_id        text primary key check (tenant_id ~ '^[a-z][a-z0-9_]{1,39}$'),
    name             text not null,
    declaration_hash text not null,
    registered_at    timestamptz not null default now()
);

create function platform.register_tenant(p_tenant_id text, p_name text, p_declaration_hash text) returns void
language plpgsql security definer set search_path = platform, pg_temp as $$
begin
    insert into platform.tenant as t (tenant_id, name, declaration_hash)
    values (p_tenant_id, p_name, p_declaration_hash)
    on conflict (tenant_id) do update
        set name = excluded.name, declaration_hash = excluded.declaration_hash
        where t.declaration_hash <> excluded.declaration_hash;
    insert into platform.evidence_head (tenant_id) values (p_tenant_id) on conflict do nothing;
    if not exists (select from pg_roles where rolname = 'analyst_' || p_tenant_id) then
        begin
            execute format('create role %I login in role barecount_analyst', 'analyst_' || p_tenant_id);
        exception when duplicate_object or unique_violation then null;
        end;
    end if;
end
$$;

-- The tenant whose analyst is connected; null, and so nothing, for everyone else. The session's own user counts: it
-- cannot be changed by any statement an analyst may run.
create function published.session_tenant() returns text
language sql stable parallel safe as $$
    select case when session_user like 'analyst\_%' then substr(session_user, length('analyst_') + 1) end
$$;

-- Evidence: append-only, chained per tenant. `body` is the canonical JSON (RFC 8785) of the entry; leaf_hash is the
-- RFC 6962 leaf hash of it; chain_hash = sha256(previous chain_hash || leaf_hash).
create table platform.evidence (
    tenant_id   text not null references platform.tenant,
    seq         bigint not null check (seq > 0),
    kind        text not null,
    subject     text not null,
    run_token   text not null,
    occurred_at timestamptz not null,
    body        text not null,
    leaf_hash   bytea not null,
    chain_hash  bytea not null,
    primary key (tenant_id, seq),
    unique (tenant_id, kind, subject, run_token)
);
create table platform.evidence_head (
    tenant_id  text primary key references platform.tenant,
    seq        bigint not null default 0,
    chain_hash bytea not null default '\x'
);

create function platform.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only: % is refused', tg_table_schema || '.' || tg_table_name, lower(tg_op)
        using errcode = 'insufficient_privilege';
end
$$;
create trigger append_only before update or delete on platform.evidence
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.evidence
    for each statement execute function platform.refuse_change();

create function platform.append_evidence(
    p_tenant_id text, p_kind text, p_subject text, p_run_token text, p_occurred_at timestamptz, p_body text
) returns bigint
language plpgsql security definer set search_path = platform, pg_temp as $$
declare
    head platform.evidence_head;
    leaf bytea := sha256('\x00'::bytea || convert_to(p_body, 'UTF8'));
    link bytea;
begin
    select * into head from platform.evidence_head where tenant_id = p_tenant_id for update;
    if not found then
        raise exception 'tenant % is not registered', p_tenant_id using errcode = 'foreign_key_violation';
    end if;
    link := sha256(head.chain_hash || leaf);
    insert into platform.evidence
    values (p_tenant_id, head.seq + 1, p_kind, p_subject, p_run_token, p_occurred_at, p_body, leaf, link);
    update platform.evidence_head set seq = head.seq + 1, chain_hash = link where tenant_id = p_tenant_id;
    return head.seq + 1;
end
$$;

-- Runs and what their stages left.
create table platform.run (
    run_id         bigint generated always as identity primary key,
    tenant_id      text not null references platform.tenant,
    pipeline       text not null,
    stage          text not null,
    run_token      text not null,
    manifest_hash  text not null,
    code_version   text not null,
    started_at     timestamptz not null default now(),
    unique (tenant_id, pipeline, run_token)
);
create table platform.stage_run (
    tenant_id    text not null references platform.tenant,
    pipeline     text not null,
    stage        text not null,
    run_token    text not null,
    run_id       bigint references platform.run,
    receipt      jsonb not null,
    evidence_seq bigint not null,
    finished_at  timestamptz not null default now(),
    primary key (tenant_id, pipeline, stage, run_token),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create index stage_run_latest on platform.stage_run (tenant_id, pipeline, stage, finished_at desc);

-- Raw batches: one per unit of a source that landed.
create table platform.raw_batch (
    batch_id            bigint generated always as identity primary key,
    tenant_id           text not null references platform.tenant,
    pipeline            text not null,
    dataset             text not null,
    source_id           text not null,
    partition_date      date,
    load_date           date not null,
    is_current          boolean not null,
    content_sha256      text not null,
    received            bigint not null,
    accepted            bigint not null,
    quarantined         bigint not null,
    object_key          text not null,
    object_sha256       text not null,
    object_bytes        bigint not null,
    quarantine_key      text,
    quarantine_sha256   text,
    schema_hash         text not null,
    extraction_version  text not null,
    contract_version    text not null,
    contract_hash       text not null,
    software_version    text not null,
    drift               jsonb,
    run_token           text not null,
    landed_at           timestamptz not null default now(),
    evidence_seq        bigint not null,
    check (received = accepted + quarantined),
    unique nulls not distinct (tenant_id, dataset, partition_date, content_sha256),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create unique index raw_batch_one_current on platform.raw_batch (tenant_id, dataset, source_id) where is_current;

-- Batches that the head of a pipeline's GDPs was made from.
create table platform.normalized_batch (
    tenant_id text not null,
    pipeline  text not null,
    batch_id  bigint not null references platform.raw_batch,
    run_id    bigint not null references platform.run,
    primary key (tenant_id, pipeline, batch_id)
);

-- Days that have been ingested, with or without a file: reconciliation speaks only of these.
create table platform.ingested_day (
    tenant_id text not null references platform.tenant,
    pipeline  text not null,
    source    text not null,
    day       date not null,
    primary key (tenant_id, pipeline, source, day)
);
create table platform.source_cursor (
    tenant_id  text not null references platform.tenant,
    pipeline   text not null,
    source     text not null,
    cursor     text not null,
    updated_at timestamptz not null default now(),
    primary key (tenant_id, pipeline, source)
);
create table platform.source_path (
    tenant_id text not null references platform.tenant,
    pipeline  text not null,
    source    text not null,
    path      text not null,
    primary key (tenant_id, pipeline, source)
);

create table platform.quarantine (
    quarantine_id  bigint generated always as identity primary key,
    tenant_id      text not null references platform.tenant,
    pipeline       text not null,
    dataset        text not null,
    stage          text not null,
    batch_id       bigint not null references platform.raw_batch,
    source_id      text not null,
    row_number     bigint not null,
    field          text,
    reason         text not null,
    message        text not null,
    payload        bytea,
    run_token      text not null,
    quarantined_at timestamptz not null default now()
);
create index quarantine_by_batch on platform.quarantine (tenant_id, dataset, batch_id);

-- Gates and reconciliation.
create table platform.gate_result (
    tenant_id    text not null references platform.tenant,
    pipeline     text not null,
    kpi          text not null,
    gate         text not null,
    run_token    text not null,
    passed       boolean not null,
    summary      text not null,
    details      jsonb not null,
    evidence_seq bigint not null,
    decided_at   timestamptz not null default now(),
    primary key (tenant_id, pipeline, run_token, kpi, gate),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create table platform.reconciliation_difference (
    tenant_id  text not null references platform.tenant,
    pipeline   text not null,
    kpi        text not null,
    run_token  text not null,
    key        text not null,
    ours       numeric,
    theirs     numeric,
    difference numeric,
    primary key (tenant_id, pipeline, kpi, run_token, key)
);

-- Publications: immutable versions and the pointer that makes one current.
create table platform.publication (
    tenant_id        text not null references platform.tenant,
    name             text not null,
    version          int not null check (version > 0),
    pipeline         text not null,
    run_token        text not null,
    run_id           bigint not null references platform.run,
    content_sha256   text not null,
    row_count        bigint not null,
    kpi_version      text not null,
    contract_version text not null,
    contract_hash    text not null,
    published_at     timestamptz not null default now(),
    evidence_seq     bigint not null,
    primary key (tenant_id, name, version),
    unique (tenant_id, name, run_token),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create trigger append_only before update or delete on platform.publication
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.publication
    for each statement execute function platform.refuse_change();

create table published.current_version (
    tenant_id text not null,
    name      text not null,
    version   int not null,
    primary key (tenant_id, name),
    foreign key (tenant_id, name, version) references platform.publication
);
alter table published.current_version enable row level security;
alter table published.current_version force row level security;
create policy platform_all on published.current_version to barecount_platform using (true) with check (true);
create policy own_tenant on published.current_version for select to barecount_analyst
    using (tenant_id = published.session_tenant());
grant select on published.current_version to barecount_analyst;

-- GDP calendar, one row per tenant and day.
create table gdp.calendar (
    tenant_id             text not null,
    date                  date not null,
    date_key              int not null,
    year                  int not null,
    quarter               int not null,
    month                 int not null,
    month_name            text not null,
    day                   int not null,
    day_of_week           int not null,
    day_name              text not null,
    iso_year              int not null,
    iso_week              int not null,
    day_of_year           int not null,
    is_weekend            boolean not null,
    is_holiday            boolean not null,
    holiday_name          text,
    is_business_day       boolean not null,
    business_day_index    int not null,
    business_day_of_month int not null,
    month_start           date not null,
    month_end             date not null,
    fiscal_year           int not null,
    fiscal_quarter        int not null,
    fiscal_period         int not null,
    fiscal_week           int not null,
    fiscal_period_start   date not null,
    fiscal_period_end     date not null,
    primary key (tenant_id, date)
);

-- The platform role works on all of it, but evidence and publications are only ever added to.
grant select, insert, update, delete on all tables in schema platform, gdp to barecount_platform;
grant select, insert, update, delete on published.current_version to barecount_platform;
grant usage on all sequences in schema platform to barecount_platform;
revoke insert, update, delete on platform.evidence, platform.evidence_head from barecount_platform;
revoke update, delete on platform.publication from barecount_platform;
revoke insert, update, delete on platform.tenant from barecount_platform;
revoke execute on function platform.append_evidence, platform.register_tenant from public;
grant execute on function platform.append_evidence, platform.register_tenant to barecount_platform;
