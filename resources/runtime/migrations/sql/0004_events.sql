-- Events: CloudEvents 1.0 envelopes, written in the transaction that changed the state (transactional outbox).
--
-- `position` is taken while the tenant's evidence head is locked, which is held until commit: within a tenant it grows
-- in the order of commits. `xid` is the writing transaction, or that of the tenant's event before when that one is
-- younger: it grows with the position. Readers take only events whose xid is older than the oldest transaction still
-- running: a late commit is never skipped, nor read after what came later (see resources/runtime/events.py).
create table platform.event (
    position    bigint generated always as identity primary key,
    xid         xid8 not null,
    tenant_id   text not null references platform.tenant,
    event_id    text not null unique,
    type        text not null,
    subject     text not null,
    occurred_at timestamptz not null,
    envelope    jsonb not null
);
create index event_by_transaction on platform.event (xid, position);
create index event_by_tenant on platform.event (tenant_id, position);
create index event_by_subject on platform.event (tenant_id, subject, position);
create index event_by_time on platform.event (occurred_at);
create trigger append_only before update or delete on platform.event
    for each row execute function platform.refuse_change();
create trigger append_only_truncate before truncate on platform.event
    for each statement execute function platform.refuse_change();

-- `p_envelopes` is a JSON array of envelopes of one tenant. Wakes whoever listens on channel barecount_events.
create function platform.append_events(p_tenant_id text, p_envelopes jsonb) returns void
language plpgsql security definer set search_path = platform, pg_temp as $$
declare
    v_xid xid8;
begin
    perform from platform.evidence_head where tenant_id = p_tenant_id for update;
    if not found then
        raise exception 'tenant % is not registered', p_tenant_id using errcode = 'foreign_key_violation';
    end if;
    v_xid := greatest(pg_current_xact_id(), (
        select xid from platform.event where tenant_id = p_tenant_id order by position desc limit 1));
    insert into platform.event (xid, tenant_id, event_id, type, subject, occurred_at, envelope)
    select v_xid, p_tenant_id, e ->> 'id', e ->> 'type', e ->> 'subject', (e ->> 'time')::timestamptz, e
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
