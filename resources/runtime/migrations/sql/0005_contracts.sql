-- Contract registry: datasets, immutable contract versions, the pointer that makes one of them current, subscriptions.
-- Contracts are shared by the tenants of the pipelines that use a dataset; each of these tenants has the evidence.
create table platform.dataset (
    dataset       text primary key,
    namespace     text generated always as (split_part(dataset, '.', 1)) stored,
    name          text generated always as (split_part(dataset, '.', 2)) stored,
    owner         text not null,
    steward       text,
    status        text not null check (status in ('active', 'deprecated', 'retired')),
    registered_at timestamptz not null,
    updated_at    timestamptz not null,
    check (dataset ~ '^[a-z][a-z0-9_]{1,39}\.[a-z][a-z0-9_]{1,39}$')
);

-- `document` is the contract as declared; `document_hash` the SHA-256 (hex) of its canonical JSON (RFC 8785).
-- `compatibility` is how it relates to `previous`: full, backward, forward, none; null for the first.
create table platform.contract_version (
    dataset       text not null references platform.dataset,
    layer         text not null check (layer in ('extraction', 'raw', 'gold', 'activation')),
    version       text not null check (version ~ '^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}$'),
    document      jsonb not null,
    document_hash text not null check (document_hash ~ '^[0-9a-f]{64}$'),
    previous      text,
    compatibility text check (compatibility in ('full', 'backward', 'forward', 'none')),
    registered_at timestamptz not null,
    registered_by text not null,
    cause         text not null,
    reason        text not null,
    primary key (dataset, layer, version),
    unique nulls not distinct (dataset, layer, previous),
    foreign key (dataset, layer, previous) references platform.contract_version,
    check ((previous is null) = (compatibility is null))
);

-- Exactly one version is current: the key allows no second one, and a version without a current one cannot commit.
create table platform.contract_current (
    dataset text not null,
    layer   text not null,
    version text not null,
    since   timestamptz not null,
    primary key (dataset, layer),
    foreign key (dataset, layer, version) references platform.contract_version
);
alter table platform.contract_version add constraint contract_version_has_current
    foreign key (dataset, layer) references platform.contract_current deferrable initially deferred;

-- Where each tenant's ledger has a version. A tenant that comes later gets the current ones when it first runs.
create table platform.contract_evidence (
    tenant_id    text not null references platform.tenant,
    dataset      text not null,
    layer        text not null,
    version      text not null,
    evidence_seq bigint not null,
    primary key (tenant_id, dataset, layer, version),
    foreign key (dataset, layer, version) references platform.contract_version,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);

-- What a consumer of a tenant's data needs of a contract. A change is a new row; the newest counts, and one that is
-- not `active` ends the subscription.
create table platform.contract_subscription (
    subscription_id bigint generated always as identity primary key,
    tenant_id       text not null references platform.tenant,
    dataset         text not null references platform.dataset,
    layer           text not null check (layer in ('extraction', 'raw', 'gold', 'activation')),
    consumer        text not null check (consumer ~ '\S'),
    compatibility   text not null check (compatibility in (
        'none', 'backward', 'forward', 'full', 'backward_transitive', 'forward_transitive', 'full_transitive')),
    min_version     text not null check (min_version ~ '^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}$'),
    active          boolean not null,
    recorded_at     timestamptz not null,
    recorded_by     text not null,
    run_token       text not null,
    evidence_seq    bigint not null,
    foreign key (tenant_id, evidence_seq) references platform.evidence
);
create index contract_subscription_newest
    on platform.contract_subscription (tenant_id, dataset, layer, consumer, subscription_id desc);

do $$
declare
    name text;
begin
    foreach name in array array['contract_version', 'contract_evidence', 'contract_subscription'] loop
        execute format('create trigger append_only before update or delete on platform.%I '
                       'for each row execute function platform.refuse_change()', name);
        execute format('create trigger append_only_truncate before truncate on platform.%I '
                       'for each statement execute function platform.refuse_change()', name);
    end loop;
end
$$;
grant select, insert on platform.contract_version, platform.contract_evidence, platform.contract_subscription
    to barecount_platform;
grant select, insert on platform.dataset, platform.contract_current to barecount_platform;
grant update (owner, steward, status, updated_at) on platform.dataset to barecount_platform;
grant update (version, since) on platform.contract_current to barecount_platform;
grant usage on sequence platform.contract_subscription_subscription_id_seq to barecount_platform;
