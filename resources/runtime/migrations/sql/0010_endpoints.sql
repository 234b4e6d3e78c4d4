-- Endpoints, deliveries, receipts, DLQ.

-- Endpoints as declared, and how they do. `tokens` is the endpoint's rate limit as a token bucket, filled up to
-- `refilled_at`; `paused_until` ends a pause that the receiver asked for (Retry-After) or that the open circuit makes.
create table platform.endpoint (
    tenant_id            text not null references platform.tenant,
    name                 text not null check (name ~ '^[a-z][a-z0-9_]{1,39}$'),
    adapter              text not null,
    spec                 jsonb not null,
    declaration_hash     text not null,
    state                text not null default 'unverified' check (state in ('unverified', 'active', 'disabled')),
    state_reason         text,
    verified_at          timestamptz,
    challenge_sha256     text,
    challenged_at        timestamptz,
    health               text not null default 'healthy' check (health in ('healthy', 'degraded', 'blocked')),
    consecutive_failures int not null default 0,
    openings             int not null default 0,
    paused_until         timestamptz,
    is_fifo              boolean not null,
    rate_per_second      double precision not null check (rate_per_second > 0),
    burst                double precision not null check (burst >= 1),
    tokens               double precision not null,
    refilled_at          timestamptz not null,
    registered_at        timestamptz not null,
    changed_at           timestamptz not null,
    evidence_seq         bigint not null,
    primary key (tenant_id, name),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- Which secrets an endpoint uses: references and versions, never values. After a rotation two are valid for a day.
create table platform.endpoint_secret (
    tenant_id    text not null,
    endpoint     text not null,
    purpose      text not null,
    reference    text not null,
    version      text not null,
    valid_from   timestamptz not null,
    valid_until  timestamptz,
    evidence_seq bigint not null,
    primary key (tenant_id, endpoint, purpose, reference, version),
    foreign key (tenant_id, endpoint) references platform.endpoint,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- How much a tenant may send, over all its endpoints; a tenant without a row is not limited.
create table platform.delivery_limit (
    tenant_id       text primary key references platform.tenant,
    rate_per_second double precision not null check (rate_per_second > 0),
    burst           double precision not null check (burst >= 1),
    tokens          double precision not null,
    refilled_at     timestamptz not null
);

-- Deliveries. `failed` waits for its next attempt. Of a running one `next_attempt_at` is the end of the worker's lease:
-- then another worker takes it. `schedule_base` is the number of attempts made before the last replay. What becomes of
-- a quiet one is no event: it tells of events that deliveries cause, and would cause the next one.
create table platform.delivery (
    delivery_id     bigint generated always as identity primary key,
    tenant_id       text not null references platform.tenant,
    delivery_key    text not null check (length(delivery_key) between 1 and 200),
    endpoint        text not null,
    origin          text,
    is_quiet        boolean not null default false,
    message         jsonb not null,
    message_sha256  text not null,
    state           text not null default 'queued'
                    check (state in ('queued', 'running', 'completed', 'failed', 'dlq')),
    attempts        int not null default 0,
    schedule_base   int not null default 0,
    next_attempt_at timestamptz not null,
    worker          text,
    external_id     text,
    enqueued_at     timestamptz not null,
    finished_at     timestamptz,
    unique (tenant_id, delivery_key),
    unique (tenant_id, delivery_id),
    foreign key (tenant_id, endpoint) references platform.endpoint
);
create index delivery_due on platform.delivery (tenant_id, endpoint, next_attempt_at, delivery_id)
    where state in ('queued', 'running', 'failed');
create index delivery_in_order on platform.delivery (tenant_id, endpoint, delivery_id)
    where state in ('queued', 'running', 'failed');
create index delivery_by_origin on platform.delivery (tenant_id, origin);

-- One receipt per attempt. `lost`: the worker ended, or took longer than its lease, before it recorded the outcome.
create table platform.receipt (
    tenant_id        text not null,
    delivery_id      bigint not null,
    attempt          int not null check (attempt > 0),
    endpoint         text not null,
    delivery_key     text not null,
    worker           text not null,
    attempted_at     timestamptz not null,
    latency_ms       double precision,
    outcome          text not null check (outcome in ('completed', 'failed', 'dlq', 'lost')),
    reason           text not null,
    status           int,
    response_excerpt text,
    signature_key_id text,
    external_id      text,
    next_attempt_at  timestamptz,
    evidence_seq     bigint not null,
    primary key (delivery_id, attempt),
    foreign key (tenant_id, delivery_id) references platform.delivery (tenant_id, delivery_id),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create index receipt_by_endpoint on platform.receipt (tenant_id, endpoint, attempted_at desc);

-- Deliveries that were given up, each time they were, and the replays of them. `position` is the watermark of replays.
create table platform.dead_letter (
    position     bigint generated always as identity primary key,
    tenant_id    text not null,
    delivery_id  bigint not null,
    attempt      int not null,
    reason       text not null,
    died_at      timestamptz not null,
    evidence_seq bigint not null,
    unique (delivery_id, attempt),
    foreign key (tenant_id, delivery_id) references platform.delivery (tenant_id, delivery_id),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create index dead_letter_by_time on platform.dead_letter (tenant_id, died_at);
create table platform.dead_letter_replay (
    position     bigint not null references platform.dead_letter,
    tenant_id    text not null,
    requested_by text not null,
    replayed_at  timestamptz not null,
    evidence_seq bigint not null,
    primary key (position),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

do $$
declare
    name text;
begin
    foreach name in array array['receipt', 'dead_letter', 'dead_letter_replay'] loop
        execute format('create trigger append_only before update or delete on platform.%I '
                       'for each row execute function platform.refuse_change()', name);
        execute format('create trigger append_only_truncate before truncate on platform.%I '
                       'for each statement execute function platform.refuse_change()', name);
    end loop;
end
$$;
grant select, insert, update on platform.endpoint, platform.endpoint_secret, platform.delivery, platform.delivery_limit
    to barecount_platform;
grant delete on platform.delivery_limit to barecount_platform;
grant select, insert on platform.receipt, platform.dead_letter, platform.dead_letter_replay to barecount_platform;
