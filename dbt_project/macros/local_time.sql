{#-
  Days and hours of instants (`timestamptz`): what the clocks of a zone show then. Without a zone, that of the tenant;
  another one must be declared by a contract of the pipeline (`defaultTimezone`).

  The rules of a zone come with the run (variable `time_zones`), from the database that the platform pins, and not from
  an engine: PostgreSQL, DuckDB and Spark bring tables of different ages, and would cut some days at another instant.
  A model that is compiled to be read, or tested alone, names the zone and leaves its rules to the engine.

  While a model runs, `cast(... as date)` of an instant is cut in the tenant's zone too, as the session is in it, but by
  the engine's own rules: write `local_date`.
-#}

{#- What the clocks of a zone show at an instant: a timestamp without a zone. -#}
{% macro local_timestamp(instant, zone=none) -%}
    {%- if not execute -%}{{ return('cast(' ~ instant ~ ' as timestamp)') }}{%- endif -%}
    {%- set zone = zone or run_time_zone() -%}
    {%- set rules = time_zone_rules(zone) -%}
    {%- if rules is none -%}
        {{ return('(cast(' ~ instant ~ ' as timestamptz) at time zone ' ~ text_literal(zone) ~ ')') }}
    {%- endif -%}
    {{ return(adapter.dispatch('local_timestamp')(instant, rules[1::2], rules[::2])) }}
{%- endmacro %}

{#- The date that the clocks of a zone show at an instant: the business day it belongs to. -#}
{% macro local_date(instant, zone=none) -%}
    {{ return('cast(' ~ local_timestamp(instant, zone) ~ ' as date)') }}
{%- endmacro %}

{#- `starts`: seconds since 1970 at which the offset from UTC changes; `offsets`: seconds, one before each and the last. -#}
{% macro default__local_timestamp(instant, starts, offsets) -%}
    {%- set micros = epoch_micros(instant) -%}
    {{ return(timestamp_of_micros(micros ~ ' + ' ~ offset_at(micros, starts, offsets))) }}
{%- endmacro %}

{#- PostgreSQL looks the offset up in an array by bisection; the texts are constants to it. -#}
{% macro postgres__local_timestamp(instant, starts, offsets) -%}
    {%- set instant = 'cast(' ~ instant ~ ' as timestamptz)' -%}
    {%- set epoch, moments = modules.datetime.datetime(1970, 1, 1), [] -%}
    {%- for start in starts -%}
        {%- do moments.append('"' ~ (epoch + modules.datetime.timedelta(seconds=start)) ~ '+00"') -%}
    {%- endfor -%}
    {%- set changes = "cast('{" ~ moments | join(',') ~ "}' as timestamptz[])" -%}
    {%- set known = "cast('{" ~ offsets | join(',') ~ "}' as integer[])" -%}
    {{ return(
        '((' ~ instant ~ " at time zone 'UTC') + (" ~ known ~ ')[width_bucket(' ~ instant ~ ', ' ~ changes
        ~ ") + 1] * interval '1 second')"
    ) }}
{%- endmacro %}

{#- The offset in microseconds at some microseconds since 1970: a tree of comparisons, nine deep for two centuries. -#}
{% macro offset_at(micros, starts, offsets) -%}
    {%- if not starts -%}{{ return('(' ~ offsets[0] * 1000000 ~ ')') }}{%- endif -%}
    {%- set middle = (starts | length) // 2 -%}
    {{ return(
        '(case when ' ~ micros ~ ' < ' ~ starts[middle] * 1000000 ~ ' then '
        ~ offset_at(micros, starts[:middle], offsets[:middle + 1]) ~ ' else '
        ~ offset_at(micros, starts[middle + 1:], offsets[middle + 1:]) ~ ' end)'
    ) }}
{%- endmacro %}

{#- Microseconds from 1970-01-01 00:00 UTC to an instant, a bigint. -#}
{% macro epoch_micros(instant) -%}{{ return(adapter.dispatch('epoch_micros')(instant)) }}{%- endmacro %}
{% macro default__epoch_micros(instant) -%}
    {{ return('epoch_us(cast(' ~ instant ~ ' as timestamptz))') }}
{%- endmacro %}
{% macro spark__epoch_micros(instant) -%}
    {{ return('unix_micros(cast(' ~ instant ~ ' as timestamp_ltz))') }}
{%- endmacro %}

{#- The timestamp without a zone that lies some microseconds after 1970-01-01 00:00. -#}
{% macro timestamp_of_micros(micros) -%}{{ return(adapter.dispatch('timestamp_of_micros')(micros)) }}{%- endmacro %}
{% macro default__timestamp_of_micros(micros) -%}{{ return('make_timestamp(' ~ micros ~ ')') }}{%- endmacro %}
{% macro spark__timestamp_of_micros(micros) -%}
    {{ return(
        "(timestamp_ntz '1970-01-01 00:00:00' + make_dt_interval(0, 0, 0, cast(cast(" ~ micros
        ~ ' as decimal(18, 0)) * 0.000001 as decimal(18, 6))))'
    ) }}
{%- endmacro %}

{#- What the clocks of UTC show at an instant. -#}
{% macro utc_timestamp(instant) -%}{{ return(adapter.dispatch('utc_timestamp')(instant)) }}{%- endmacro %}
{% macro default__utc_timestamp(instant) -%}{{ return(timestamp_of_micros(epoch_micros(instant))) }}{%- endmacro %}
{% macro postgres__utc_timestamp(instant) -%}{{ return('(' ~ instant ~ " at time zone 'UTC')") }}{%- endmacro %}

{#- Pre-hook of models: statement that puts the transaction's session in the tenant's zone, never in the machine's. -#}
{% macro session_time_zone() -%}{{ return(adapter.dispatch('session_time_zone')()) }}{%- endmacro %}
{% macro default__session_time_zone() -%}{{ return('') }}{%- endmacro %}
{% macro postgres__session_time_zone() -%}
    {{ return('set local timezone = ' ~ text_literal(run_time_zone_or_utc())) }}
{%- endmacro %}
