-- Action templates, rules' jobs, silences.

-- Template versions that were submitted for a tenant: content, address and signature never change, `state` does.
create table platform.action_template (
    tenant_id      text not null references platform.tenant,
    name           text not null,
    digest         text not null check (digest ~ '^[0-9a-f]{64}$'),
    version        text not null,
    document       jsonb not null,
    samples_sha256 text not null,
    state          text not null check (state in ('in review', 'published', 'deprecated')),
    submitted_by   text not null,
    submitted_at   timestamptz not null,
    published_at   timestamptz,
    note           text,
    evidence_seq   bigint not null,
    primary key (tenant_id, name, digest),
    unique (tenant_id, name, version),
    foreign key (tenant_id, evidence_seq) references platform.evidence,
    check ((state = 'in review') = (note is null))
);
create unique index action_template_one_published on platform.action_template (tenant_id, name)
    where state = 'published';

-- Dry runs that passed: exactly this content, with exactly these sample events.
create table platform.action_dry_run (
    tenant_id      text not null references platform.tenant,
    name           text not null,
    digest         text not null,
    samples_sha256 text not null,
    samples        int not null,
    passed_at      timestamptz not null,
    evidence_seq   bigint not null,
    primary key (tenant_id, name, digest, samples_sha256),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- What a rule knows of a series, and of a group of them (see resources/action/model.py).
create table platform.action_incident (
    tenant_id  text not null references platform.tenant,
    rule       text not null,
    series     text not null,
    phase      text not null check (phase in ('idle', 'pending', 'firing')),
    position   bigint not null,
    streak     int not null,
    episode    int not null,
    due_at     timestamptz,
    occurrence jsonb,
    told       boolean not null,
    primary key (tenant_id, rule, series)
);
create index action_incident_firing on platform.action_incident (rule) where phase = 'firing';
create index action_incident_due on platform.action_incident (due_at) where due_at is not null;
create table platform.action_group (
    tenant_id text not null references platform.tenant,
    rule      text not null,
    name      text not null,
    labels    jsonb not null,
    waiting   jsonb not null,
    sent      jsonb not null,
    flush_at  timestamptz,
    sent_at   timestamptz,
    window_no int not null,
    episode   int not null,
    told      boolean not null,
    primary key (tenant_id, rule, name)
);
create index action_group_due on platform.action_group (flush_at) where flush_at is not null;

-- Jobs. One per rule version, subject, period and window: whoever decides the same again finds it here.
create table platform.action_job (
    job_id        bigint generated always as identity primary key,
    tenant_id     text not null references platform.tenant,
    job_key       text not null,
    rule          text not null,
    rule_version  text not null,
    kind          text not null check (kind in ('alert', 'recovery', 'escalation')),
    subject       text not null,
    dimensions    jsonb not null,
    period        text not null,
    window_name   text not null,
    severity      text not null,
    template      text not null,
    digest        text,
    route         text[] not null,
    correlation   text not null,
    draft         jsonb not null,
    message       jsonb,
    state         text not null check (state in (
        'pending approval', 'queued', 'running', 'completed', 'failed', 'dlq', 'suppressed')),
    reason        text not null,
    attempt       int not null default 0,
    changes       int not null default 0,
    not_before    timestamptz,
    expires_at    timestamptz,
    escalate_at   timestamptz,
    acked_by      text,
    acked_at      timestamptz,
    approved_by   text,
    decided_at    timestamptz not null,
    changed_at    timestamptz not null,
    evidence_seq  bigint not null,
    unique (tenant_id, job_key),
    unique (tenant_id, rule, rule_version, kind, subject, dimensions, period, window_name),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create index action_job_open on platform.action_job (state, not_before)
    where state in ('pending approval', 'queued', 'running', 'dlq');
create index action_job_to_escalate on platform.action_job (escalate_at)
    where escalate_at is not null and acked_at is null;
create index action_job_of_tenant on platform.action_job (tenant_id, job_id desc);

create table platform.action_silence (
    silence_id   bigint generated always as identity primary key,
    tenant_id    text not null references platform.tenant,
    rule         text,
    labels       jsonb not null,
    starts_at    timestamptz not null,
    ends_at      timestamptz not null check (ends_at > starts_at),
    reason       text not null,
    created_by   text not null,
    evidence_seq bigint not null,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create index action_silence_active on platform.action_silence (tenant_id, ends_at);

create trigger append_only before update or delete on platform.action_dry_run
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.action_dry_run
    for each statement execute function platform.refuse_change();

grant select, insert, update on platform.action_template, platform.action_incident, platform.action_group,
    platform.action_job, platform.action_silence to barecount_platform;
grant select, insert on platform.action_dry_run to barecount_platform;
grant usage on sequence platform.action_job_job_id_seq, platform.action_silence_silence_id_seq to barecount_platform;
