-- What every unit of a source says now. Units of one day with the same content share a batch, and the batch counts
-- (is_current) while a unit says it: of two copies of a file one can be corrected, and the other still counts.
create table platform.source_unit (
    tenant_id text not null references platform.tenant,
    dataset   text not null,
    source_id text not null,
    batch_id  bigint not null references platform.raw_batch,
    primary key (tenant_id, dataset, source_id)
);
create index source_unit_of_batch on platform.source_unit (batch_id);
insert into platform.source_unit (tenant_id, dataset, source_id, batch_id)
select tenant_id, dataset, source_id, batch_id from platform.raw_batch where is_current;
drop index platform.raw_batch_one_current;

create function platform.mark_current() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        update platform.raw_batch set is_current = false
        where batch_id = old.batch_id and not exists (select from platform.source_unit where batch_id = old.batch_id);
    end if;
    update platform.raw_batch set is_current = true where batch_id = new.batch_id and not is_current;
    return null;
end
$$;
create trigger mark_current after insert or update on platform.source_unit
    for each row execute function platform.mark_current();

grant select, insert, update, delete on platform.source_unit to barecount_platform;
