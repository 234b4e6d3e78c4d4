-- What a unit says of its fields' types: a refused row of a source that states them is read again by them.
alter table platform.raw_batch add column observed_types jsonb;
comment on column platform.raw_batch.observed_types is
    'types of observed_names in the source''s own words; null where it states none, and for what landed before';
