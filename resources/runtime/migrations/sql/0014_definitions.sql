-- Definitions of GDPs and KPIs: what a model computes, by the SHA-256 (hex) of its compiled SQL, columns and key.
create table platform.definition (
    sha256   text primary key check (sha256 ~ '^[0-9a-f]{64}$'),
    document jsonb not null
);

-- Which definitions a version had for a tenant: one was published under it, or computes the same as one that was.
-- `source_sha256` is of the model's own file, `stage_code` the version of the software that compiled it.
create table platform.definition_version (
    tenant_id     text not null references platform.tenant,
    pipeline      text not null,
    kind          text not null check (kind in ('gdp', 'kpi')),
    name          text not null,
    version       text not null,
    sha256        text not null references platform.definition,
    cause         text not null check (cause in ('registered', 'accepted', 'followed', 'upgraded')),
    source_sha256 text not null,
    stage_code    text not null,
    reason        text not null,
    decided_by    text not null,
    decision_id   bigint references platform.policy_decision,
    run_token     text not null,
    registered_at timestamptz not null default clock_timestamp(),
    evidence_seq  bigint not null,
    primary key (tenant_id, pipeline, kind, name, version, sha256),
    foreign key (tenant_id, evidence_seq) references platform.evidence,
    check ((cause = 'accepted') = (decision_id is not null))
);

do $$
declare
    name text;
begin
    foreach name in array array['definition', 'definition_version'] loop
        execute format('create trigger append_only before update or delete on platform.%I '
                       'for each row execute function platform.refuse_change()', name);
        execute format('create trigger append_only_truncate before truncate on platform.%I '
                       'for each statement execute function platform.refuse_change()', name);
        execute format('grant select, insert on platform.%I to barecount_platform', name);
    end loop;
end $$;
