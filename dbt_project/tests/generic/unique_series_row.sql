{#- One row per grain, period and dimension values. -#}
{% test unique_series_row(model, dimensions) %}
{%- set key = (['grain', 'period'] + dimensions) | join(', ') %}
select {{ key }}, count(*) as series_rows
from {{ model }}
group by {{ key }}
having count(*) > 1
{% endtest %}
