-- Events: CloudEvents 1.0 envelopes, written in the transaction that changed the state (transactional outbox).
--
-- `position` is taken while the tenant's evidence head is locked, which is held until commit: within a tenant it grows
-- in the order of commits. `xid` is the writing transaction: readers take only events of transactions older than the
-- oldest one still running, so that a late commit is never skipped (see resources/runtime/events.py).
create table platform.event (
    position    bigint generated always as identity primary key,
    xid         xid8 not null default pg_current_xact_id(),
    tenant_id   text not null references platform.tenant,
    event_id    text not null unique,
    type        text not null,
    subject     text not null,
    occurred_at timestamptz not null,
    envelope    jsonb not null
);
create index event_by_transaction on platform.event (xid, position);
create index event_by_subject on platform.event (tenant_id, subject, position);
create index event_by_time on platform.event (occurred_at);
create trigger append_only before update or delete on platform.event
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.event
    for each statement execute function platform.refuse_change();

-- `p_envelopes` is a JSON array of envelopes of one tenant. Wakes whoever listens on channel barecount_events.
create function platform.append_events(p_tenant_id text, p_envelopes jsonb) returns void
language plpgsql security definer set search_path = platform, pg_temp as $$
begin
    perform from platform.evidence_head where tenant_id = p_tenant_id for update;
    if not found then
        raise exception 'tenant % is not registered', p_tenant_id using errcode = 'foreign_key_violation';
    end if;
    insert into platform.event (tenant_id, event_id, type, subject, occurred_at, envelope)
    select p_tenant_id, e ->> 'id', e ->> 'type', e ->> 'subject', (e ->> 'time')::timestamptz, e
    from jsonb_array_elements(p_envelopes) with ordinality as listed (e, number)
    order by number;
    perform pg_notify('barecount_events', p_tenant_id);
end
$$;
revoke execute on function platform.append_events from public;
grant execute on function platform.append_events to barecount_platform;
grant select on platform.event to barecount_platform;

-- How far each named reader has come.
create table platform.event_reader (
    reader     text primary key,
    from_xid   xid8 not null,
    upto_xid   xid8 not null,
    position   bigint not null,
    updated_at timestamptz not null default now()
);
grant select, insert, update, delete on platform.event_reader to barecount_platform;
