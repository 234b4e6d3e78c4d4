{#- The value is what its numerator and denominator say, and null only where the denominator is 0. -#}
{% test value_is_quotient(model) %}
select grain, period, value, numerator, denominator
from {{ model }}
where
    (denominator = 0 and value is not null)
    or (denominator <> 0 and (value is null or abs(value - numerator / denominator) > 0.000001))
{% endtest %}
