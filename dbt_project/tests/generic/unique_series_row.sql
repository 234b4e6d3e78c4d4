{#- One row per grain, period and dimension values. -#}
{% test unique_series_row(model, dimensions) %}
select grain, period, {{ dimensions | join(', ') }}, count(*) as series_rows
from {{ model }}
group by grain, period, {{ dimensions | join(', ') }}
having count(*) > 1
{% endtest %}
