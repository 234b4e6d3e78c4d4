{#- Every value of the column that is not null names a head row of another GDP model of the tenant. -#}
{% test relationship_on_head(model, column_name, to, field) %}
with child as (
    select {{ column_name }} as reference, count(*) as orphaned_rows
    from {{ model }}
    where {{ column_name }} is not null
    group by {{ column_name }}
)

select child.reference, child.orphaned_rows
from child
left join {{ to }} as parent
    on parent.{{ field }} = child.reference and parent.tenant_id = {{ run_tenant() }} and parent.valid_to_run is null
where parent.{{ field }} is null
{% endtest %}
