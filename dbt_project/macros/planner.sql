{#-
  What the planner must be told. A model reads rows that were written a moment ago, through conditions whose
  effect no statistics describe; a planner that expects one row joins 50,000 payments to 50,000 invoices by a
  nested loop, and seconds become hours.
-#}

{#-
  Pre-hook of models: while a model's rows are computed, tables are joined by hash or merge. It reads whole
  scopes, so a nested loop could at best save what the scan of raw costs anyway.
-#}
{% macro join_sets() -%}{{ return(adapter.dispatch('join_sets')()) }}{%- endmacro %}
{% macro default__join_sets() -%}{{ return('') }}{%- endmacro %}
{% macro postgres__join_sets() -%}{{ return('set local enable_nestloop = off;') }}{%- endmacro %}

{#- Statement that ends `join_sets`: from here on few rows are looked up in large tables by their indexes. -#}
{% macro join_freely() -%}{{ return(adapter.dispatch('join_freely')()) }}{%- endmacro %}
{% macro default__join_freely() -%}{{ return('') }}{%- endmacro %}
{% macro postgres__join_freely() -%}{{ return('set local enable_nestloop = on;') }}{%- endmacro %}

{#-
  Statements that refresh the statistics of a relation, where an engine needs to be told. A quarter of the usual sample
  tells the planner as much about keys, in a quarter of the time, which on tables of this size is the models' own.
-#}
{% macro refresh_statistics(relation) -%}
    {{ return(adapter.dispatch('refresh_statistics')(relation)) }}
{%- endmacro %}
{% macro default__refresh_statistics(relation) -%}{{ return('') }}{%- endmacro %}
{% macro postgres__refresh_statistics(relation) -%}
    {{ return('set local default_statistics_target = 25; analyze ' ~ relation ~ ';') }}
{%- endmacro %}

{#- Statements for the start of a run: statistics of every source that was written to since it last had any. -#}
{% macro refresh_source_statistics() -%}
    {%- if execute -%}{{ return(adapter.dispatch('refresh_source_statistics')()) }}{%- endif -%}
{%- endmacro %}
{% macro default__refresh_source_statistics() -%}{{ return('') }}{%- endmacro %}
{% macro postgres__refresh_source_statistics() -%}
    {%- set names = [] -%}
    {%- for source in graph.sources.values() -%}
        {%- do names.append('(' ~ text_literal(source.schema) ~ ', ' ~ text_literal(source.identifier) ~ ')') -%}
    {%- endfor -%}
    {%- set written -%}
        select quote_ident(schemaname) || '.' || quote_ident(relname) as relation
        from pg_stat_all_tables
        where
            (schemaname, relname) in ({{ names | join(', ') }})
            and (n_mod_since_analyze > 0 or (last_analyze is null and last_autoanalyze is null))
        order by 1
    {%- endset -%}
    {%- for row in run_query(written) -%}
        {{ refresh_statistics(row['relation']) }}
    {% endfor -%}
{%- endmacro %}
