-- A cursor is stored typed, with what its last reading knew, and with the evidence of its last move. A row of an earlier
-- release has a value as text and no state: it goes on from there.
alter table platform.source_cursor alter column cursor drop not null;
alter table platform.source_cursor add column state jsonb, add column evidence_seq bigint;

-- What the records of incremental sources looked like when they were read last, 24 bytes each: a record that is read
-- again unchanged does not land again. `low` to `high` is where the cursor values lie; `only_value` is the one value of all.
create table platform.cursor_mark (
    mark_id       bigint generated always as identity primary key,
    tenant_id     text not null references platform.tenant,
    pipeline      text not null,
    source        text not null,
    reading       bigint not null,
    measure       text not null check (measure in ('number', 'text', 'read', 'none')),
    low           text collate "C",
    high          text collate "C",
    unplaced      boolean not null,
    only_value    bigint,
    digests       bytea not null,
    cursor_values bytea not null,
    check (length(digests) = 2 * length(cursor_values))
);
alter table platform.cursor_mark alter column digests set storage external;
alter table platform.cursor_mark alter column cursor_values set storage external;
create index cursor_mark_of_source on platform.cursor_mark (tenant_id, pipeline, source, high);
grant select, insert, update, delete on platform.cursor_mark to barecount_platform;
