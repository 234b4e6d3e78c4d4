{#-
  The variables of a run, read here and nowhere else. All of them are read while a model executes, so one
  parsed manifest serves every run.

    tenant        slug of the tenant whose rows are read and written
    run_id        bigint, the identity of the run that versions are stamped with
    scope         "all" or "changed"
    refused_scope "all" or "changed", of models that list refused records: "all" while records of earlier runs are open
    batches       ids of raw batches that are new, or ceased to be current, since the last committed run
    kpi_periods   "all" or {kpi: {month: [YYYY-MM, ...], day: [YYYY-MM-DD, ...]}}
    kpi_versions  {kpi: version}
    currency      ISO 4217 code in which the tenant keeps its books
    time_zone     zone of the IANA time zone database in which the tenant's days begin
    time_zones    {zone: rules}, each "OFFSET START OFFSET START OFFSET ..." in seconds: the tenant's zone and those that
                  contracts name, where the pipeline has instants
    sources       {dataset: {...}}: what the manifest says of sources that models must know -> records.sql
-#}

{#- A variable that has no default: its absence is refused at execution and harmless while parsing. -#}
{% macro required_variable(name) -%}
    {%- set value = var(name, none) -%}
    {%- if execute and value is none -%}
        {{ exceptions.raise_compiler_error(
            "The variable '" ~ name ~ "' is not set. Give it with --vars, e.g. "
            ~ "'{tenant: acme, run_id: 1, scope: all, currency: GBP}'."
        ) }}
    {%- endif -%}
    {{ return(value) }}
{%- endmacro %}

{#- SQL literal of the tenant. -#}
{% macro run_tenant() -%}
    {{ return(text_literal(required_variable('tenant'))) }}
{%- endmacro %}

{#- SQL literal of the tenant's currency. -#}
{% macro run_currency() -%}
    {{ return(text_literal(required_variable('currency'))) }}
{%- endmacro %}

{#- Name of the tenant's time zone. -#}
{% macro run_time_zone() -%}
    {{ return(required_variable('time_zone')) }}
{%- endmacro %}

{#- The same where a run may do without: when no instant is read. -#}
{% macro run_time_zone_or_utc() -%}
    {{ return(var('time_zone', 'UTC')) }}
{%- endmacro %}

{#- Rules of a time zone as numbers: offset, start, offset, start, offset, ...; none where the run gives no rules. -#}
{% macro time_zone_rules(zone) -%}
    {%- set known = var('time_zones', none) -%}
    {%- if known is none -%}{{ return(none) }}{%- endif -%}
    {%- if zone not in known -%}
        {{ exceptions.raise_compiler_error(
            "'" ~ zone ~ "' is no time zone of this run; allowed: " ~ (known | sort | join(', ') or 'none')
            ~ ". The tenant's zone and each defaultTimezone of a contract are, once a contract has a timestamptz column."
        ) }}
    {%- endif -%}
    {{ return(known[zone].split(' ') | map('int') | list) }}
{%- endmacro %}

{#- SQL expression of the run id, a bigint. -#}
{% macro run_id() -%}
    {{ return('cast(' ~ (required_variable('run_id') | default(0, true) | int) ~ ' as bigint)') }}
{%- endmacro %}

{#- True when the run recomputes everything of the tenant. -#}
{% macro run_covers_all() -%}
    {%- set scope = var('scope', 'all') -%}
    {%- if execute and declared_model()['name'].endswith('__rejected') -%}
        {%- set scope = var('refused_scope', scope) -%}
    {%- endif -%}
    {%- if execute and scope not in ('all', 'changed') -%}
        {{ exceptions.raise_compiler_error("The variable 'scope' is '" ~ scope ~ "'; allowed: all, changed.") }}
    {%- endif -%}
    {{ return(scope == 'all') }}
{%- endmacro %}

{#- Ids of the raw batches to which the run reacts. -#}
{% macro run_batches() -%}
    {{ return(var('batches', []) | map('int') | list) }}
{%- endmacro %}

{#- What the manifest says of the source of a dataset, as a mapping; empty when there is nothing to know. -#}
{% macro run_source(dataset) -%}
    {{ return(var('sources', {}).get(dataset, {})) }}
{%- endmacro %}

{#- 'all', or the periods to recompute as {kpi: {month: [...], day: [...]}}. -#}
{% macro run_kpi_periods() -%}
    {{ return(var('kpi_periods', 'all')) }}
{%- endmacro %}

{#- SQL literal of the declared version of a KPI. -#}
{% macro kpi_version(kpi) -%}
    {%- set versions = var('kpi_versions', {}) -%}
    {%- if execute and kpi not in versions -%}
        {{ exceptions.raise_compiler_error(
            "The variable 'kpi_versions' names no version of '" ~ kpi ~ "'; it names: "
            ~ (versions | sort | join(', ') or 'none') ~ "."
        ) }}
    {%- endif -%}
    {{ return(text_literal(versions.get(kpi, ''))) }}
{%- endmacro %}
