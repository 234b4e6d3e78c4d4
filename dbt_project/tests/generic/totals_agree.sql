{#- An additive series has the same numerator, summed per calendar month, at two grains. -#}
{% test totals_agree(model, grain, total_grain) %}
with detail as (
    select substring(period, 1, 7) as month, sum(numerator) as numerator
    from {{ model }}
    where grain = {{ text_literal(grain) }}
    group by 1
),

total as (
    select substring(period, 1, 7) as month, sum(numerator) as numerator
    from {{ model }}
    where grain = {{ text_literal(total_grain) }}
    group by 1
)

select coalesce(detail.month, total.month) as month, detail.numerator as detail, total.numerator as total
from detail
full outer join total on total.month = detail.month
where detail.numerator is null or total.numerator is null or detail.numerator <> total.numerator
{% endtest %}
