{#-
  KPI series: one row per tenant, grain, period and dimension values. The grains are declared:

    grains:
      - {name: day_country, period: day, dimensions: [country]}
      - {name: month, period: month, dimensions: []}

  Periods are text: YYYY-MM-DD for a day, YYYY-MM for a month, so that no day is ever taken for a month.
-#}

{#- Affected periods of a KPI at `grain_period` (day | month): 'all' or a list of period texts. -#}
{% macro affected_periods(kpi, grain_period) -%}
    {%- set periods = run_kpi_periods() -%}
    {{ return('all' if periods == 'all' else periods.get(kpi, {}).get(grain_period, []) | list) }}
{%- endmacro %}

{#- First day of the period of a date expression. -#}
{% macro period_start(grain_period, date_expression) -%}
    {{ return(date_expression if grain_period == 'day' else month_start(date_expression)) }}
{%- endmacro %}

{#- Text of the period that begins at a date. -#}
{% macro period_text(grain_period, start_expression) -%}
    {%- set text = iso_date(start_expression) -%}
    {{ return(text if grain_period == 'day' else 'substring(' ~ text ~ ', 1, 7)') }}
{%- endmacro %}

{#- Predicate: the date's period at `grain_period` is affected. -#}
{% macro in_affected_periods(kpi, grain_period, date_expression) -%}
    {%- set periods = affected_periods(kpi, grain_period) -%}
    {%- if periods == 'all' -%}{{ return('1 = 1') }}{%- endif -%}
    {%- set starts = [] -%}
    {%- for period in periods -%}
        {%- do starts.append(date_literal(period if grain_period == 'day' else period ~ '-01')) -%}
    {%- endfor -%}
    {{ return(in_literals(period_start(grain_period, date_expression), starts)) }}
{%- endmacro %}

{#- Predicate: the date belongs to an affected period of any grain; narrows what a KPI reads. -#}
{% macro in_any_affected_period(kpi, date_expression) -%}
    {{ return(
        '(' ~ in_affected_periods(kpi, 'day', date_expression)
        ~ ' or ' ~ in_affected_periods(kpi, 'month', date_expression) ~ ')'
    ) }}
{%- endmacro %}

{#-
  Select of the rows of a KPI at all declared grains, affected periods only, with the tenant's fiscal period.

  `facts` is a relation with `date_column` and the dimension columns. `numerator`, `denominator` and
  `source_rows` are aggregates over it; without a denominator the value is the numerator itself.
-#}
{% macro kpi_series(kpi, facts, date_column, numerator, source_rows, denominator=none) -%}
{%- set grains = declared('grains') if execute else [{'name': '', 'period': 'day', 'dimensions': []}] -%}
{%- set dimensions = (grains | map(attribute='dimensions') | sum(start=[]) | unique | list) -%}
select
    cast({{ run_tenant() }} as {{ dbt.type_string() }}) as tenant_id,
    measured.grain,
    measured.period,
    measured.period_start,
    calendar.fiscal_year,
    calendar.fiscal_period,
    {%- for dimension in dimensions %}
    measured.{{ dimension }},
    {%- endfor %}
    {{ ratio('measured.numerator', 'measured.denominator') if denominator else 'measured.numerator' }} as value,
    measured.numerator,
    measured.denominator,
    measured.source_rows,
    cast({{ kpi_version(kpi) }} as {{ dbt.type_string() }}) as kpi_version
from (
    {%- for grain in grains %}
    {%- set start = period_start(grain['period'], date_column) %}
    {% if not loop.first %}union all{% endif %}
    select
        cast({{ text_literal(grain['name']) }} as {{ dbt.type_string() }}) as grain,
        {{ period_text(grain['period'], start) }} as period,
        {{ start }} as period_start,
        {%- for dimension in dimensions %}
        {{ dimension if dimension in grain['dimensions'] else 'cast(null as ' ~ dbt.type_string() ~ ')' }} as {{ dimension }},
        {%- endfor %}
        cast({{ numerator }} as {{ type_measure() }}) as numerator,
        cast({{ denominator or 1 }} as {{ type_measure() }}) as denominator,
        cast({{ source_rows }} as bigint) as source_rows
    from {{ facts }}
    where {{ in_affected_periods(kpi, grain['period'], date_column) }}
    group by {{ ([start] + (grain['dimensions'] | list)) | join(', ') }}
    {%- endfor %}
) as measured
left join {{ source('gdp', 'calendar') }} as calendar
    on calendar.tenant_id = {{ run_tenant() }} and calendar.date = measured.period_start
{%- endmacro %}

{#-
  Incremental strategy `replace_periods`: the tenant's rows of the affected periods are deleted and the
  computed ones inserted, in dbt's one transaction; all of the tenant's rows when all periods are affected.
-#}
{% macro get_incremental_replace_periods_sql(arg_dict) -%}
    {{ return(adapter.dispatch('replace_periods_sql')(
        arg_dict['target_relation'], arg_dict['temp_relation'], arg_dict['dest_columns']
    )) }}
{%- endmacro %}

{% macro default__replace_periods_sql(target, computed, columns) -%}
{%- set kpi = declared_model()['name'] -%}
{%- set names = columns | map(attribute='quoted') | join(', ') -%}
delete from {{ target }}
where
    tenant_id = {{ run_tenant() }}
    {%- if affected_periods(kpi, 'day') != 'all' %}
    {%- set periods = [] %}
    {%- for period in affected_periods(kpi, 'day') + affected_periods(kpi, 'month') %}
    {%- do periods.append(text_literal(period)) %}
    {%- endfor %}
    and {{ in_literals('period', periods) }}
    {%- endif %};

insert into {{ target }} ({{ names }})
select {{ names }} from {{ computed }};
{%- endmacro %}

{#- Post-hook of KPI models: the path by which series are read. -#}
{% macro finish_series() -%}
    {%- if execute -%}{{ return(adapter.dispatch('finish_series')(this)) }}{%- endif -%}
{%- endmacro %}

{% macro default__finish_series(relation) -%}{{ return('') }}{%- endmacro %}

{% macro postgres__finish_series(relation) -%}
create index if not exists {{ relation.identifier }}__period on {{ relation }} (tenant_id, grain, period);
{%- endmacro %}
