{#-
  What a model declares in YAML under `config.meta`, which drives the macros of this project:

    scope          which keys a change upstream affects          -> scope.sql
    records        identity, late data and rules of raw records  -> records.sql
    joins          what a missing or null key means              -> joins.sql
    survivorship   which source's attribute wins                 -> survivorship.sql
    grains         period and dimensions of a KPI series         -> series.sql
-#}

{#-
  The model being run, as declared. Unit tests run a model's SQL without its declaration and give it back by
  overriding this macro with the YAML node itself (an anchor), so nothing is declared twice.
-#}
{% macro declared_model() -%}
    {{ return(model) }}
{%- endmacro %}

{#- The declaration `kind` of the model being run; an undeclared kind is refused. Only at execution. -#}
{% macro declared(kind) -%}
    {%- set this_model = declared_model() -%}
    {%- set meta = this_model['config']['meta'] -%}
    {%- if kind not in meta -%}
        {{ exceptions.raise_compiler_error(
            "Model '" ~ this_model['name'] ~ "' declares no meta." ~ kind ~ "; it declares: "
            ~ (meta | sort | join(', ') or 'nothing') ~ "."
        ) }}
    {%- endif -%}
    {{ return(meta[kind]) }}
{%- endmacro %}

{#- Declared columns as a list of {name, data_type, ...}: a parsed node keeps a mapping, YAML a list. -#}
{% macro declared_columns() -%}
    {%- set columns = declared_model()['columns'] -%}
    {{ return((columns.values() if columns is mapping else columns) | list) }}
{%- endmacro %}

{#- Columns every versioned row carries beside its business columns. -#}
{% macro version_columns() -%}
    {{ return(['tenant_id', 'row_hash', 'row_version', 'valid_from_run', 'valid_to_run']) }}
{%- endmacro %}

{#- A declared name or list of names, as a list. -#}
{% macro as_list(value) -%}
    {{ return([value] if value is string else (value | list)) }}
{%- endmacro %}
