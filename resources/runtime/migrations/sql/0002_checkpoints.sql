-- Complete tiles of each tenant's Merkle tree (C2SP tlog-tiles): 256 hashes of tile level `level`, and the root of the
-- subtree they make. Derived from platform.evidence, so that a proof reads a handful of rows; incomplete tiles are
-- computed when needed.
create table platform.evidence_tile (
    tenant_id text not null references platform.tenant,
    level     int not null check (level >= 0),
    tile      bigint not null check (tile >= 0),
    hashes    bytea not null check (octet_length(hashes) = 8192),
    root      bytea not null check (octet_length(root) = 32),
    primary key (tenant_id, level, tile)
);
alter table platform.evidence_tile alter column hashes set storage external;  -- hashes do not compress

-- Public keys that sign checkpoints. Each is announced by an entry of the ledger and replaces the one before; a key
-- signs from the entry that announces it up to and including the one that announces its successor.
create table platform.signing_key (
    tenant_id     text not null references platform.tenant,
    key_id        text not null check (key_id ~ '^[0-9a-f]{8}$'),
    public_key    text not null,
    announced_seq bigint not null,
    replaces      text,
    primary key (tenant_id, key_id),
    unique nulls not distinct (tenant_id, replaces),
    foreign key (tenant_id, replaces) references platform.signing_key,
    foreign key (tenant_id, announced_seq) references platform.evidence
);

-- Checkpoints: signed notes over the first `size` entries of a tenant.
create table platform.checkpoint (
    tenant_id  text not null references platform.tenant,
    size       bigint not null check (size > 0),
    key_id     text not null,
    root_hash  bytea not null check (octet_length(root_hash) = 32),
    note       text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, size, key_id),
    foreign key (tenant_id, key_id) references platform.signing_key,
    foreign key (tenant_id, size) references platform.evidence
);
create table platform.checkpoint_anchor (
    tenant_id    text not null,
    size         bigint not null,
    key_id       text not null,
    location     text not null,
    locked_until timestamptz,
    anchored_at  timestamptz not null default now(),
    primary key (tenant_id, size, key_id, location),
    foreign key (tenant_id, size, key_id) references platform.checkpoint
);

do $$
declare
    name text;
begin
    foreach name in array array['evidence_tile', 'signing_key', 'checkpoint', 'checkpoint_anchor'] loop
        execute format('create trigger append_only before update or delete on platform.%I '
                       'for each row execute function platform.refuse_change()', name);
        execute format('create trigger append_only_truncate before truncate on platform.%I '
                       'for each statement execute function platform.refuse_change()', name);
    end loop;
end
$$;
grant select, insert on platform.evidence_tile, platform.signing_key, platform.checkpoint, platform.checkpoint_anchor
    to barecount_platform;

-- Many entries of one tenant in one statement: `p_bodies` is a JSON array of bodies, each the canonical JSON text of an
-- entry, from which the other columns are taken. Returns the number of the first; the others follow without a gap.
create function platform.append_evidence_batch(p_tenant_id text, p_bodies jsonb) returns bigint
language plpgsql security definer set search_path = platform, pg_temp as $$
declare
    head  platform.evidence_head;
    body  text;
    entry jsonb;
    leaf  bytea;
    first bigint;
begin
    select * into head from platform.evidence_head where tenant_id = p_tenant_id for update;
    if not found then
        raise exception 'tenant % is not registered', p_tenant_id using errcode = 'foreign_key_violation';
    end if;
    first := head.seq + 1;
    for body in select * from jsonb_array_elements_text(p_bodies) loop
        entry := body::jsonb;
        if entry ->> 'tenant' is distinct from p_tenant_id then
            raise exception 'an entry of another tenant than %', p_tenant_id using errcode = 'check_violation';
        end if;
        leaf := sha256('\x00'::bytea || convert_to(body, 'UTF8'));
        head.seq := head.seq + 1;
        head.chain_hash := sha256(head.chain_hash || leaf);
        insert into platform.evidence
        values (p_tenant_id, head.seq, entry ->> 'kind', entry ->> 'subject', entry ->> 'run_token',
                (entry ->> 'at')::timestamptz, body, leaf, head.chain_hash);
    end loop;
    update platform.evidence_head set seq = head.seq, chain_hash = head.chain_hash where tenant_id = p_tenant_id;
    return first;
end
$$;
revoke execute on function platform.append_evidence_batch from public;
grant execute on function platform.append_evidence_batch to barecount_platform;
