{#- At most one row per key; with the default `where` that is one head row per key of the tenant. -#}
{% test unique_head(model, columns) %}
select {{ columns | join(', ') }}, count(*) as head_rows
from {{ model }}
group by {{ columns | join(', ') }}
having count(*) > 1
{% endtest %}
