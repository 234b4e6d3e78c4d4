{#-
  Versioned GDP tables. A table holds every version of every row: business columns, `tenant_id`, `row_hash`
  (SHA-256 of the business columns: names, types and values), `row_version` (1, 2, ... per key), `valid_from_run` and
  `valid_to_run` (null: the head, what holds now). As of a run means: opened by it or before, not closed by it or before.

  Before a run the platform gives a table the columns that its model declares now (resources/storage/model_tables.py);
  other columns that it once had keep the values of older versions, under other names.
-#}

{#- Derived table: the tenant's head rows of a GDP model. -#}
{% macro gdp_head(gdp_model) -%}
(
    select * from {{ ref(gdp_model) }}
    where tenant_id = {{ run_tenant() }} and valid_to_run is null
)
{%- endmacro %}

{#- A declared type as contracts write it: one spelling for each. -#}
{% macro contract_type(type) -%}
    {%- set text = type | lower | trim -%}
    {%- if text.startswith('decimal') or text.startswith('numeric') -%}
        {{ return(text | replace('decimal', 'numeric') | replace(' ', '')) }}
    {%- endif -%}
    {%- set synonyms = {
        'int': 'integer', 'int4': 'integer', 'int8': 'bigint', 'int2': 'smallint', 'bool': 'boolean', 'varchar': 'text',
        'character varying': 'text', 'string': 'text', 'float8': 'double precision',
        'timestamp without time zone': 'timestamp', 'timestamp with time zone': 'timestamptz'
    } -%}
    {{ return(synonyms.get(text, text)) }}
{%- endmacro %}

{#- The business columns of the model being run, as a list of {name, data_type, ...}. -#}
{% macro business_columns() -%}
    {{ return(declared_columns() | rejectattr('name', 'in', version_columns()) | list) }}
{%- endmacro %}

{#-
  Which columns a row hash is of, 32 characters: equal values of other columns are another row. It only has to tell the
  shapes apart that one model ever had, so MD5, which dbt offers, is enough.
-#}
{% macro columns_label() -%}
    {%- set listed = [] -%}
    {%- for column in business_columns() -%}
        {%- do listed.append(column['name'] ~ ' ' ~ contract_type(column['data_type']) ~ ';') -%}
    {%- endfor -%}
    {{ return(local_md5(listed | join)) }}
{%- endmacro %}

{#-
  Text of a column such that different values, null included, never give the same concatenation: free text is
  prefixed with its length, everything else has a fixed alphabet and ends in a semicolon.
-#}
{% macro canonical_text(column, alias=none) -%}
    {%- set name = (alias ~ '.' if alias else '') ~ column['name'] -%}
    {%- set type = column['data_type'] | lower | trim -%}
    {%- set text = dbt.type_string() -%}
    {%- if type in ('text', 'varchar', 'string') -%}
        {{ return("coalesce(cast(length(" ~ name ~ ") as " ~ text ~ ") || ':' || " ~ name ~ ", '~')") }}
    {%- elif type == 'date' -%}
        {%- set rendered = iso_date(name) -%}
    {%- elif contract_type(type) == 'timestamptz' -%}
        {%- set rendered = iso_instant(name) -%}
    {%- elif type.startswith('timestamp') -%}
        {%- set rendered = iso_timestamp(name) -%}
    {%- elif type == 'boolean' -%}
        {%- set rendered = 'case ' ~ name ~ " when true then 'true' when false then 'false' end" -%}
    {%- elif type in ('smallint', 'integer', 'bigint') or type.startswith('numeric(') or type.startswith('decimal(') -%}
        {%- set rendered = 'cast(cast(' ~ name ~ ' as ' ~ column_type(type) ~ ') as ' ~ text ~ ')' -%}
    {%- else -%}
        {{ exceptions.raise_compiler_error(
            "Column '" ~ name ~ "' of '" ~ declared_model()['name'] ~ "' has the type '" ~ type ~ "', which has no "
            ~ "canonical text; allowed: text, boolean, integers, numeric with precision and scale, date, timestamp, "
            ~ "timestamptz."
        ) }}
    {%- endif -%}
    {{ return("coalesce(" ~ rendered ~ ", '') || ';'") }}
{%- endmacro %}

{#- SHA-256 over the business columns in their declared order: which they are, and their values. -#}
{% macro row_hash() -%}
    {%- set parts = ["'" ~ columns_label() ~ "'"] -%}
    {%- for column in business_columns() -%}
        {%- do parts.append(canonical_text(column)) -%}
    {%- endfor -%}
    {{ return(sha256_bytes(parts | join(' || '))) }}
{%- endmacro %}

{#-
  Predicate: the version `version` has the row that `computed` has, key apart. Versions written before hashes covered
  the columns carry a hash of the values alone; they count as equal when they also have these values in these columns,
  so that new software gives no row a new version for its own sake.
-#}
{% macro same_content(version, computed) -%}
    {%- set values, hashed = [], [] -%}
    {%- for column in business_columns() -%}
        {%- do hashed.append(canonical_text(column, computed)) -%}
        {%- do values.append(version ~ '.' ~ column['name'] ~ ' is not distinct from ' ~ computed ~ '.' ~ column['name']) -%}
    {%- endfor -%}
    {{ return(
        '(' ~ version ~ '.row_hash = ' ~ computed ~ '.row_hash or (' ~ version ~ '.row_hash = '
        ~ sha256_bytes(hashed | join(' || ')) ~ ' and ' ~ values | join(' and ') ~ '))'
    ) }}
{%- endmacro %}

{#-
  Select of a model's rows in declared order, stamped as first versions opened by this run. Hashes are of the declared
  types: what a raw column is of may change with an accepted drift.
-#}
{% macro versioned(rows) -%}
select
    {%- for column in (business_columns() if execute else []) %}
    typed_row.{{ column['name'] }},
    {%- endfor %}
    cast({{ run_tenant() }} as {{ dbt.type_string() }}) as tenant_id,
    {{ row_hash() if execute else 'null' }} as row_hash,
    1 as row_version,
    {{ run_id() }} as valid_from_run,
    cast(null as bigint) as valid_to_run
from (
    select
    {%- for column in (business_columns() if execute else [{'name': '1', 'data_type': 'integer'}]) %}
        cast({{ column['name'] }} as {{ column_type(column['data_type']) }})
        {%- if execute %} as {{ column['name'] }}{{ ',' if not loop.last }}{% endif %}
    {%- endfor %}
    from {{ rows }}
) as typed_row
{%- endmacro %}

{#- Predicate: two aliases agree on the tenant and the columns. -#}
{% macro same_key(left, right, columns) -%}
    {%- set pairs = [] -%}
    {%- for column in ['tenant_id'] + columns -%}
        {%- do pairs.append(left ~ '.' ~ column ~ ' = ' ~ right ~ '.' ~ column) -%}
    {%- endfor -%}
    {{ return(pairs | join(' and ')) }}
{%- endmacro %}

{#-
  Incremental strategy `history`: makes the computed rows the tenant's head within the run's scope, in dbt's
  one transaction.

  It compares with the state before this run, not with what an earlier attempt of the same run left behind:
  rows this run opened and no longer wants are deleted, rows it closed and wants back are reopened. So the
  result is that of one clean run, whether an attempt crashed, or its code or its scope changed in between;
  and an attempt with nothing to change writes nothing.
-#}
{% macro get_incremental_history_sql(arg_dict) -%}
    {{ return(adapter.dispatch('history_sql')(
        arg_dict['target_relation'], arg_dict['temp_relation'], as_list(arg_dict['unique_key']), arg_dict['dest_columns']
    )) }}
{%- endmacro %}

{% macro default__history_sql(target, computed, key, columns) -%}
{%- set tenant = run_tenant() -%}
{%- set run = run_id() -%}
{%- set same_row = same_key('computed', 'version', key) ~ ' and ' ~ same_content('version', 'computed') -%}
{%- set inside_scope = in_scope('version.' ~ (declared('scope')['key'])) -%}
{{ join_freely() }}
{{ refresh_statistics(computed) }}
{{ forget_other_key(target, key) }}

-- An earlier attempt of this run opened it: undo, unless it is still wanted and no reopened row takes its place.
delete from {{ target }} as version
where
    version.tenant_id = {{ tenant }}
    and version.valid_from_run = {{ run }}
    and (
        not exists (select 1 from {{ computed }} as computed where {{ same_row }})
        or exists (
            select 1 from {{ target }} as earlier
            where
                {{ same_key('earlier', 'version', key + ['row_hash']) }}
                and earlier.valid_from_run <> {{ run }}
                and (earlier.valid_to_run is null or earlier.valid_to_run = {{ run }})
        )
    );

-- An earlier attempt of this run closed it, and it holds after all.
update {{ target }} as version
set valid_to_run = null
where
    version.tenant_id = {{ tenant }}
    and version.valid_to_run = {{ run }}
    and (
        not ({{ inside_scope }})
        or exists (select 1 from {{ computed }} as computed where {{ same_row }})
    );

-- Changed or vanished.
update {{ target }} as version
set valid_to_run = {{ run }}
where
    version.tenant_id = {{ tenant }}
    and version.valid_to_run is null
    and version.valid_from_run <> {{ run }}
    and {{ inside_scope }}
    and not exists (select 1 from {{ computed }} as computed where {{ same_row }});

-- New or changed.
insert into {{ target }} ({{ columns | map(attribute='quoted') | join(', ') }})
select
    {%- for column in columns %}
    {%- if column.name == 'row_version' %}
    1 + coalesce(
        (
            -- Without a head every version of the key is closed; saying so lets the index be used.
            select max(version.row_version) from {{ target }} as version
            where {{ same_key('version', 'computed', key) }} and version.valid_to_run is not null
        ),
        0
    )
    {%- else %}
    computed.{{ column.quoted }}
    {%- endif %}{{ ',' if not loop.last }}
    {%- endfor %}
from {{ computed }} as computed
where not exists (
    select 1 from {{ target }} as version
    where {{ same_key('version', 'computed', key) }} and version.valid_to_run is null
);
{%- endmacro %}

{#-
  Statement that drops the indexes of a key that the model had before: `finish_history` makes them of the key it has. Rows
  of other tenants, who have not run since, may share a value of the new key: the new index is of rows from this run on.
-#}
{% macro forget_other_key(relation, key) -%}
    {{ return(adapter.dispatch('forget_other_key')(relation, key)) }}
{%- endmacro %}
{% macro default__forget_other_key(relation, key) -%}{{ return('') }}{%- endmacro %}
{% macro postgres__forget_other_key(relation, key) -%}
do $$
begin
    if (
        select array_agg(attname::text order by attnum) from pg_attribute
        where attrelid = to_regclass('{{ relation.schema }}.{{ relation.identifier }}__head')
    ) <> array['tenant_id', '{{ key | join("', '") }}'] then
        drop index {{ relation.schema }}.{{ relation.identifier }}__head;
        drop index if exists {{ relation.schema }}.{{ relation.identifier }}__closed_key;
        create unique index {{ relation.identifier }}__head
            on {{ relation }} (tenant_id, {{ key | join(', ') }})
            where valid_to_run is null and valid_from_run >= {{ run_id() }};
    end if;
end $$;
{%- endmacro %}

{#-
  Post-hook of versioned models: at most one head per key, the paths by which the strategy and as-of reads
  find rows, made once, on the first build, and statistics of what was just written: the models downstream
  are planned with them a moment later.
-#}
{% macro finish_history() -%}
    {%- if execute and model['config']['materialized'] == 'incremental' -%}
        {{ return(adapter.dispatch('finish_history')(this, as_list(model['config']['unique_key']))) }}
    {%- endif -%}
{%- endmacro %}

{% macro default__finish_history(relation, key) -%}{{ return('') }}{%- endmacro %}

{% macro postgres__finish_history(relation, key) -%}
create unique index if not exists {{ relation.identifier }}__head
    on {{ relation }} (tenant_id, {{ key | join(', ') }}) where valid_to_run is null;
create index if not exists {{ relation.identifier }}__closed_key
    on {{ relation }} (tenant_id, {{ key | join(', ') }}) where valid_to_run is not null;
create index if not exists {{ relation.identifier }}__opened on {{ relation }} (tenant_id, valid_from_run);
create index if not exists {{ relation.identifier }}__closed
    on {{ relation }} (tenant_id, valid_to_run) where valid_to_run is not null;
{{ refresh_statistics(relation) }}
{%- endmacro %}
