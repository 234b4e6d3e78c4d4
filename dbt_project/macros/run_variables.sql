{#-
  The variables of a run, read here and nowhere else. All of them are read while a model executes, so one
  parsed manifest serves every run.

    tenant        slug of the tenant whose rows are read and written
    run_id        bigint, the identity of the run that versions are stamped with
    scope         "all" or "changed"
    batches       ids of raw batches that are new, or ceased to be current, since the last committed run
    kpi_periods   "all" or {kpi: {month: [YYYY-MM, ...], day: [YYYY-MM-DD, ...]}}
    kpi_versions  {kpi: version}
    currency      ISO 4217 code in which the tenant keeps its books
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

{#- SQL expression of the run id, a bigint. -#}
{% macro run_id() -%}
    {{ return('cast(' ~ (required_variable('run_id') | default(0, true) | int) ~ ' as bigint)') }}
{%- endmacro %}

{#- True when the run recomputes everything of the tenant. -#}
{% macro run_covers_all() -%}
    {%- set scope = var('scope', 'all') -%}
    {%- if execute and scope not in ('all', 'changed') -%}
        {{ exceptions.raise_compiler_error("The variable 'scope' is '" ~ scope ~ "'; allowed: all, changed.") }}
    {%- endif -%}
    {{ return(scope == 'all') }}
{%- endmacro %}

{#- Ids of the raw batches to which the run reacts. -#}
{% macro run_batches() -%}
    {{ return(var('batches', []) | map('int') | list) }}
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
