-- Data that left the platform as a file: who took it, what it held, and the approval that let it go. One row per dataset
-- of the file; columns and the way to them are in the lineage graph, under the same run token.
create table platform.export (
    tenant_id    text not null references platform.tenant,
    run_token    text not null,
    asset        text not null,
    pipeline     text,
    kind         text not null check (kind in ('quarantine', 'evidence')),
    file_name    text not null,
    file_sha256  text not null check (length(file_sha256) = 64),
    records      bigint not null check (records >= 0),
    columns      text[] not null,
    exported_by  text not null,
    decision_id  bigint not null references platform.policy_decision,
    approval_id  bigint references platform.approval_request,
    exported_at  timestamptz not null,
    evidence_seq bigint not null,
    primary key (tenant_id, run_token, asset),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create trigger append_only before update or delete on platform.export
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.export
    for each statement execute function platform.refuse_change();
grant select, insert on platform.export to barecount_platform;
