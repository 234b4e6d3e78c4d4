{#- Functions whose spelling differs between engines. The `default__` forms are ANSI or widely shared. -#}

{#- Type of KPI values: one scale on every engine, so that equal values are equal byte for byte. -#}
{% macro type_measure() -%}{{ return('decimal(38, 6)') }}{%- endmacro %}

{#- Name of a column's declared type. -#}
{% macro column_type(type) -%}{{ return(adapter.dispatch('column_type')(type)) }}{%- endmacro %}
{% macro default__column_type(type) -%}{{ return(type) }}{%- endmacro %}
{% macro spark__column_type(type) -%}
    {{ return({
        'text': 'string', 'bytea': 'binary', 'double precision': 'double', 'timestamptz': 'timestamp_ltz',
        'timestamp with time zone': 'timestamp_ltz'
    }.get(type, type)) }}
{%- endmacro %}

{#- Text without blanks at its ends; other white space stays. DuckDB's one-argument `trim` takes every Unicode blank. -#}
{% macro trimmed(expression) -%}{{ return("trim(both ' ' from " ~ expression ~ ')') }}{%- endmacro %}

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

{#- Instant as YYYY-MM-DDTHH:MM:SS.ffffffZ, whatever zone the session is in. -#}
{% macro iso_instant(expression) -%}
    {{ return(iso_timestamp(utc_timestamp(expression)) ~ " || 'Z'") }}
{%- endmacro %}

{#- First day of the month of a date. -#}
{% macro month_start(expression) -%}
    {{ return('cast(' ~ dbt.date_trunc('month', expression) ~ ' as date)') }}
{%- endmacro %}

{#- The day after a date. dbt's own `dateadd` on Spark needs timestamps with a time zone. -#}
{% macro day_after(expression) -%}{{ return(adapter.dispatch('day_after')(expression)) }}{%- endmacro %}
{% macro default__day_after(expression) -%}{{ return(dbt.dateadd('day', 1, expression)) }}{%- endmacro %}
{% macro spark__day_after(expression) -%}{{ return('date_add(' ~ expression ~ ', 1)') }}{%- endmacro %}

{#-
  Quotient of two measures, null when the denominator is 0, rounded half away from zero to 6 decimals. Ratios are
  rounded only here, and once: engines' own division rounds before (PostgreSQL at some 16 digits) or is binary (DuckDB).
  So it divides whole numbers: twice the millionfold numerator, plus the denominator, by twice the denominator.
-#}
{% macro ratio(numerator, denominator) -%}
    {{ return(adapter.dispatch('ratio')(numerator, denominator)) }}
{%- endmacro %}
{% macro default__ratio(numerator, denominator) -%}
    {{ return(
        'cast(sign(' ~ numerator ~ ') * sign(' ~ denominator ~ ') * div(2000000 * abs(' ~ numerator ~ ') + abs('
        ~ denominator ~ '), nullif(2 * abs(' ~ denominator ~ '), 0)) * 0.000001 as ' ~ type_measure() ~ ')'
    ) }}
{%- endmacro %}
{#- Spark divides decimals by cutting off after 39 digits, then rounds half away from zero: once. -#}
{% macro spark__ratio(numerator, denominator) -%}
    {{ return('cast(' ~ numerator ~ ' / nullif(' ~ denominator ~ ', 0) as ' ~ type_measure() ~ ')') }}
{%- endmacro %}
{% macro duckdb__ratio(numerator, denominator) -%}
    {%- set above = 'cast(abs(' ~ numerator ~ ') * 1000000 as hugeint)' -%}
    {%- set below = 'cast(abs(' ~ denominator ~ ') * 1000000 as hugeint)' -%}
    {{ return(
        'cast(cast(cast(sign(' ~ numerator ~ ') * sign(' ~ denominator ~ ') as hugeint) * ((2000000 * ' ~ above ~ ' + '
        ~ below ~ ') // nullif(2 * ' ~ below ~ ', 0)) as decimal(38, 0)) * cast(0.000001 as decimal(6, 6)) as '
        ~ type_measure() ~ ')'
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
