{#- Functions whose spelling differs between engines. The `default__` forms are ANSI or widely shared. -#}

{#- Type of KPI values: one scale on every engine, so that equal values are equal byte for byte. -#}
{% macro type_measure() -%}{{ return('decimal(38, 6)') }}{%- endmacro %}

{#- Text compared and sorted by code point, whatever the database's collation. -#}
{% macro binary_text(expression) -%}{{ return(adapter.dispatch('binary_text')(expression)) }}{%- endmacro %}
{% macro default__binary_text(expression) -%}{{ return(expression) }}{%- endmacro %}
{% macro postgres__binary_text(expression) -%}{{ return(expression ~ ' collate "C"') }}{%- endmacro %}

{#- SHA-256 of a text's UTF-8 bytes, as 32 bytes. -#}
{% macro sha256_bytes(expression) -%}{{ return(adapter.dispatch('sha256_bytes')(expression)) }}{%- endmacro %}
{% macro default__sha256_bytes(expression) -%}{{ return('unhex(sha2(' ~ expression ~ ', 256))') }}{%- endmacro %}
{% macro duckdb__sha256_bytes(expression) -%}{{ return('unhex(sha256(' ~ expression ~ '))') }}{%- endmacro %}
{% macro postgres__sha256_bytes(expression) -%}
    {{ return("sha256(convert_to(" ~ expression ~ ", 'UTF8'))") }}
{%- endmacro %}

{#- Date as YYYY-MM-DD. -#}
{% macro iso_date(expression) -%}{{ return(adapter.dispatch('iso_date')(expression)) }}{%- endmacro %}
{% macro default__iso_date(expression) -%}
    {{ return('cast(cast(' ~ expression ~ ' as date) as ' ~ dbt.type_string() ~ ')') }}
{%- endmacro %}
{% macro postgres__iso_date(expression) -%}
    {{ return("to_char(" ~ expression ~ ", 'YYYY-MM-DD')") }}
{%- endmacro %}

{#- Timestamp without time zone as YYYY-MM-DDTHH:MM:SS.ffffff. -#}
{% macro iso_timestamp(expression) -%}{{ return(adapter.dispatch('iso_timestamp')(expression)) }}{%- endmacro %}
{% macro default__iso_timestamp(expression) -%}
    {{ return("date_format(" ~ expression ~ ", 'yyyy-MM-dd\\'T\\'HH:mm:ss.SSSSSS')") }}
{%- endmacro %}
{% macro duckdb__iso_timestamp(expression) -%}
    {{ return("strftime(" ~ expression ~ ", '%Y-%m-%dT%H:%M:%S.%f')") }}
{%- endmacro %}
{% macro postgres__iso_timestamp(expression) -%}
    {{ return("to_char(" ~ expression ~ ", 'YYYY-MM-DD\"T\"HH24:MI:SS.US')") }}
{%- endmacro %}

{#- First day of the month of a date. -#}
{% macro month_start(expression) -%}
    {{ return('cast(' ~ dbt.date_trunc('month', expression) ~ ' as date)') }}
{%- endmacro %}

{#- Quotient of two measures, rounded to 6 decimals, null when the denominator is 0. Ratios are rounded only here. -#}
{% macro ratio(numerator, denominator) -%}
    {{ return(
        'cast(round(' ~ numerator ~ ' / nullif(' ~ denominator ~ ', 0), 6) as ' ~ type_measure() ~ ')'
    ) }}
{%- endmacro %}

{#- Select of the first of `rows`, a select, per key in the given order. May add the column `rank_in_key`. -#}
{% macro first_per_key(rows, key, order) -%}
    {{ return(adapter.dispatch('first_per_key')(rows, key | join(', '), order | join(', '))) }}
{%- endmacro %}
{% macro default__first_per_key(rows, key, order) -%}
    select * from (
        select keyed.*, row_number() over (partition by {{ key }} order by {{ order }}) as rank_in_key
        from ({{ rows }}) as keyed
    ) as ranked
    where rank_in_key = 1
{%- endmacro %}
{#- PostgreSQL expects one row in 200 behind `rank_in_key = 1` and then joins by nested loops. -#}
{% macro postgres__first_per_key(rows, key, order) -%}
    select distinct on ({{ key }}) * from ({{ rows }}) as keyed order by {{ key }}, {{ order }}
{%- endmacro %}
