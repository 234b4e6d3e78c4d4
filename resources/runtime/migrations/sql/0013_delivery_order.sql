-- The order in which a source delivered: of several records of one key the one that was delivered last counts. Every
-- unit has a key whose binary order is that of deliveries; what came first among equals is told by the number of the
-- landing, which counts the landings of a tenant's dataset.
create table platform.delivery_counter (
    tenant_id text not null references platform.tenant,
    dataset   text not null,
    landings  bigint not null check (landings > 0),
    primary key (tenant_id, dataset)
);

-- `ordered_by` is the declared order that the key was made by, `modified_at` the file's time, `cursor_value` and
-- `cursor_kind` the end of a slice: with them a key can be made again once another order is declared. A unit that was
-- withdrawn says what it said, and counts for nothing.
alter table platform.source_unit
    add column delivery_order text collate "C",
    add column landing        bigint,
    add column ordered_by     text not null default 'landing',
    add column modified_at    timestamptz,
    add column cursor_value   text,
    add column cursor_kind    text,
    add column withdrawn_seq  bigint,
    add foreign key (tenant_id, withdrawn_seq) references platform.evidence;

-- The order of a batch is the greatest of its units'. That of replayed records is the order of the batch that refused
-- them, and after it the number of the replay: they come after its other records, and before those of the next one.
alter table platform.raw_batch add column delivery_order text collate "C";
alter table platform.normalized_batch add column delivery_order text collate "C";

-- What has landed so far is numbered by landing, in natural order of names within one, as far as evidence tells.
create temporary table delivery on commit drop as
with told as (
    select tenant_id, pipeline, dataset, source_id, evidence_seq as seq from platform.raw_batch
    union
    select u.tenant_id, b.pipeline, u.dataset, u.source_id, max(e.seq)
    from platform.source_unit u
    join platform.raw_batch b using (batch_id)
    join platform.evidence e on e.tenant_id = u.tenant_id and e.subject = u.dataset || '/' || u.source_id
        and e.kind in ('batch.landed', 'batch.redelivered', 'batch.reinstated')
    group by 1, 2, 3, 4
)
select t.*, row_number() over (
    partition by t.tenant_id, t.dataset
    order by (
        select count(*) from platform.evidence e
        where e.tenant_id = t.tenant_id and e.kind = 'ingestion.finished' and e.subject = t.pipeline and e.seq < t.seq
    ), (
        select string_agg(
            case when part[1] ~ '^[0-9]' then lpad(part[1], greatest(40, length(part[1])), '0') else part[1] end, ''
            order by place) collate "C"
        from regexp_matches(regexp_replace(t.source_id, '\.[^./]*$', ''), '[0-9]+|[^0-9]+', 'g')
            with ordinality as parts (part, place)
    ), t.seq
) as landing
from told t;

insert into platform.delivery_counter (tenant_id, dataset, landings)
select tenant_id, dataset, max(landing) from delivery group by 1, 2;
update platform.source_unit u set landing = d.landing, delivery_order = lpad(d.landing::text, 12, '0')
from (
    select tenant_id, dataset, source_id, max(landing) as landing
    from (
        select *, max(seq) over (partition by tenant_id, dataset, source_id) as newest from delivery
    ) told
    where seq = newest group by 1, 2, 3
) d
where d.tenant_id = u.tenant_id and d.dataset = u.dataset and d.source_id = u.source_id;
update platform.raw_batch b set delivery_order = lpad(d.landing::text, 12, '0')
from delivery d
where d.tenant_id = b.tenant_id and d.dataset = b.dataset and d.seq = b.evidence_seq;
update platform.raw_batch b set delivery_order = u.delivery_order
from (select batch_id, max(delivery_order) as delivery_order from platform.source_unit group by 1) u
where u.batch_id = b.batch_id and b.replay_of is null;
with recursive replayed as (
    select batch_id, delivery_order from platform.raw_batch where replay_of is null
    union all
    select b.batch_id, r.delivery_order || '/' || b.delivery_order
    from platform.raw_batch b join replayed r on r.batch_id = b.replay_of
)
update platform.raw_batch b set delivery_order = r.delivery_order
from replayed r where r.batch_id = b.batch_id and b.replay_of is not null;
update platform.source_unit u set delivery_order = b.delivery_order
from platform.raw_batch b where b.batch_id = u.batch_id and b.replay_of is not null;
update platform.normalized_batch n set delivery_order = b.delivery_order
from platform.raw_batch b where b.batch_id = n.batch_id;

alter table platform.source_unit alter column delivery_order set not null, alter column landing set not null;
alter table platform.raw_batch alter column delivery_order set not null;
alter table platform.normalized_batch alter column delivery_order set not null;

-- A batch counts while a unit says it that was not withdrawn. One that was given up (`barecount raw forget`) comes back
-- only when a unit comes to say it.
create or replace function platform.mark_current() returns trigger language plpgsql as $$
declare
    comes boolean := tg_op = 'INSERT' or new.batch_id <> old.batch_id
        or (old.withdrawn_seq is not null and new.withdrawn_seq is null);
begin
    update platform.raw_batch b
    set is_current = said.is_current, delivery_order = said.delivery_order
    from (
        select t.batch_id, coalesce(max(u.delivery_order), t.delivery_order) as delivery_order,
            count(u.source_id) > 0 and (t.is_current or (comes and t.batch_id = new.batch_id)) as is_current
        from platform.raw_batch t
        left join platform.source_unit u on u.batch_id = t.batch_id and u.withdrawn_seq is null
        where t.batch_id in (new.batch_id, old.batch_id)
        group by t.batch_id
    ) said
    where b.batch_id = said.batch_id
        and (b.is_current, b.delivery_order) is distinct from (said.is_current, said.delivery_order);
    return null;
end
$$;

create or replace function platform.follow_original() returns trigger language plpgsql as $$
begin
    if new.is_current <> old.is_current then
        update platform.raw_batch set is_current = new.is_current
        where replay_of = new.batch_id and is_current <> new.is_current;
    end if;
    if new.delivery_order <> old.delivery_order then
        update platform.source_unit u set delivery_order = new.delivery_order || right(u.delivery_order, 13)
        from platform.raw_batch r where r.replay_of = new.batch_id and u.batch_id = r.batch_id;
    end if;
    return null;
end
$$;
drop trigger follow_original on platform.raw_batch;
create trigger follow_original after update of is_current, delivery_order on platform.raw_batch
    for each row
    when (old.is_current is distinct from new.is_current or old.delivery_order is distinct from new.delivery_order)
    execute function platform.follow_original();

-- What does not count as it is now (a held partition, a unit whose newest batch is kept out) counts as it was.
create or replace view platform.counted_batch as
select b.batch_id, b.tenant_id, b.pipeline, b.dataset, b.source_id, b.partition_date, b.content_sha256, b.accepted,
    case
        when exists (
            select from platform.held_partition h
            where h.tenant_id = b.tenant_id and h.pipeline = b.pipeline
                and h.partition_date is not distinct from b.partition_date)
        then exists (
            select from platform.normalized_batch n
            where n.tenant_id = b.tenant_id and n.pipeline = b.pipeline and n.batch_id = b.batch_id)
        when b.is_current
        then not exists (
            select from platform.drift_batch k
            where k.tenant_id = b.tenant_id and k.outcome = 'kept_out' and k.batch_id = b.batch_id)
        else exists (
            select from platform.drift_batch k
            join platform.raw_batch unit using (batch_id)
            join platform.normalized_batch n
                on n.tenant_id = b.tenant_id and n.pipeline = b.pipeline and n.batch_id = b.batch_id
            where k.tenant_id = b.tenant_id and k.outcome = 'kept_out' and unit.is_current
                and unit.dataset = b.dataset and unit.source_id = b.source_id)
    end as is_current,
    case
        when b.is_current and not exists (
            select from platform.held_partition h
            where h.tenant_id = b.tenant_id and h.pipeline = b.pipeline
                and h.partition_date is not distinct from b.partition_date)
        then b.delivery_order
        else coalesce((
            select n.delivery_order from platform.normalized_batch n
            where n.tenant_id = b.tenant_id and n.pipeline = b.pipeline and n.batch_id = b.batch_id), b.delivery_order)
    end as delivery_order
from platform.raw_batch b;

grant select, insert, update on platform.delivery_counter to barecount_platform;
