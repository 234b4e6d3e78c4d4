-- Quarantine life, replays, back-fills, retention.

-- Field names as the unit itself had them: a refused record of a CSV file cannot be read again without its header.
-- A batch of replayed records counts as long as the batch that refused them does: when a corrected file takes that
-- one's place, its replayed records are in the new file.
alter table platform.raw_batch add column observed_names jsonb;
alter table platform.raw_batch add column replay_of bigint references platform.raw_batch;
create index raw_batch_replay_of on platform.raw_batch (replay_of) where replay_of is not null;

create function platform.follow_original() returns trigger language plpgsql as $$
begin
    update platform.raw_batch set is_current = new.is_current
    where replay_of = new.batch_id and is_current <> new.is_current;
    return null;
end
$$;
create trigger follow_original after update of is_current on platform.raw_batch
    for each row when (old.is_current is distinct from new.is_current) execute function platform.follow_original();

-- What was decided about refused records: one row per replay of a batch's records, per discard, and per normalization
-- whose rules accept rows that earlier ones refused.
create table platform.quarantine_decision (
    decision_id  bigint generated always as identity primary key,
    tenant_id    text not null references platform.tenant,
    pipeline     text not null,
    dataset      text not null,
    kind         text not null check (kind in ('replayed', 'discarded')),
    subject      text not null,
    run_token    text not null,
    decided_by   text not null,
    reason       text,
    records      bigint not null check (records > 0),
    fix          jsonb,
    evidence_seq bigint not null,
    decided_at   timestamptz not null default now(),
    check (kind <> 'discarded' or reason is not null),
    unique (tenant_id, kind, subject, run_token),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- The end of a refused record: accepted or refused again as row `row_number` of batch `batch_id`, accepted in place by
-- run `run_id` of normalization, or discarded. A record without an outcome is open.
create table platform.quarantine_outcome (
    quarantine_id bigint primary key references platform.quarantine,
    state         text not null check (state in ('replayed', 'refused_again', 'discarded')),
    decision_id   bigint not null references platform.quarantine_decision,
    batch_id      bigint references platform.raw_batch,
    row_number    bigint,
    again_id      bigint references platform.quarantine,
    run_id        bigint references platform.run,
    check ((state = 'refused_again') = (again_id is not null))
);
create index quarantine_outcome_of_batch on platform.quarantine_outcome (batch_id);

-- Retention: partitions whose raw rows, objects and refused records were deleted, and holds that keep others.
create table platform.raw_expiry (
    batch_id     bigint primary key references platform.raw_batch,
    tenant_id    text not null references platform.tenant,
    subject      text not null,
    run_token    text not null,
    forgotten    boolean not null default false,
    evidence_seq bigint not null,
    expired_at   timestamptz not null default now(),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create table platform.legal_hold (
    hold_id      bigint generated always as identity primary key,
    tenant_id    text not null references platform.tenant,
    dataset      text,
    first_day    date,
    last_day     date,
    reason       text not null check (reason <> ''),
    subject      text not null,
    run_token    text not null,
    added_by     text not null,
    added_at     timestamptz not null default now(),
    evidence_seq bigint not null,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create table platform.legal_hold_release (
    hold_id      bigint primary key references platform.legal_hold,
    tenant_id    text not null references platform.tenant,
    reason       text not null check (reason <> ''),
    subject      text not null,
    run_token    text not null,
    released_by  text not null,
    released_at  timestamptz not null default now(),
    evidence_seq bigint not null,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

create view platform.quarantine_record as
select q.*, d.decided_by, d.reason as decision_reason, d.decided_at, d.run_token as decision_token,
    o.batch_id as into_batch, o.row_number as into_row, o.again_id, o.run_id as into_run, b.partition_date,
    coalesce(o.state, case when q.payload is null then 'expired' when b.is_current then 'open' else 'superseded' end)
        as state
from platform.quarantine q
join platform.raw_batch b on b.batch_id = q.batch_id
left join platform.quarantine_outcome o on o.quarantine_id = q.quarantine_id
left join platform.quarantine_decision d on d.decision_id = o.decision_id;

-- What a run was computed with: dbt project and contracts as one archive, stored once however many runs used it.
create table platform.artefact (
    sha256     text primary key check (length(sha256) = 64),
    content    bytea not null,
    files      int not null,
    stored_at  timestamptz not null default now()
);
alter table platform.artefact alter column content set storage external;  -- compressed already
create table platform.run_artefact (
    tenant_id  text not null,
    pipeline   text not null,
    stage      text not null,
    run_token  text not null,
    artefact   text not null references platform.artefact,
    stage_code text not null,
    primary key (tenant_id, pipeline, stage, run_token)
);

-- Runs computed again: what was compared, and what was published of it.
create table platform.replay (
    replay_id    bigint generated always as identity primary key,
    tenant_id    text not null references platform.tenant,
    pipeline     text not null,
    replay_of    text not null,
    run_token    text not null,
    versions     text not null check (versions in ('recorded', 'current')),
    identical    boolean not null,
    outputs      jsonb not null,
    published    jsonb,
    replayed_by  text not null,
    replayed_at  timestamptz not null default now(),
    evidence_seq bigint not null,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- Replays work here, one at a time: nothing in it outlives its replay.
create schema scratch;
grant usage, create on schema scratch to barecount_platform;

-- Back-fills: a range of days, run partition by partition, resumable.
create table platform.backfill (
    backfill_id  bigint generated always as identity primary key,
    tenant_id    text not null references platform.tenant,
    pipeline     text not null,
    first_day    date not null,
    last_day     date not null,
    granularity  text not null,
    run_token    text not null,
    requested_by text not null,
    started_at   timestamptz not null default now(),
    evidence_seq bigint not null,
    unique (tenant_id, run_token),
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create table platform.backfill_partition (
    backfill_id bigint not null references platform.backfill,
    first_day   date not null,
    last_day    date not null,
    tokens      jsonb not null,
    changed     boolean not null,
    dagster_run text,
    finished_at timestamptz not null default now(),
    primary key (backfill_id, first_day)
);
create table platform.backfill_end (
    backfill_id  bigint primary key references platform.backfill,
    tenant_id    text not null references platform.tenant,
    pipeline     text not null,
    run_token    text not null,
    finished_at  timestamptz not null default now(),
    evidence_seq bigint not null,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

do $$
declare
    added text;
begin
    foreach added in array array[
        'quarantine_decision', 'quarantine_outcome', 'legal_hold', 'legal_hold_release', 'artefact', 'run_artefact',
        'replay', 'backfill', 'backfill_partition', 'backfill_end'
    ] loop
        execute format('create trigger append_only before update or delete on platform.%I '
                       'for each row execute function platform.refuse_change()', added);
        execute format('create trigger append_only_truncate before truncate on platform.%I '
                       'for each statement execute function platform.refuse_change()', added);
        execute format('grant select, insert on platform.%I to barecount_platform', added);
    end loop;
end
$$;
grant select, insert, update on platform.raw_expiry to barecount_platform;
grant select on platform.quarantine_record to barecount_platform;
grant usage on all sequences in schema platform to barecount_platform;
