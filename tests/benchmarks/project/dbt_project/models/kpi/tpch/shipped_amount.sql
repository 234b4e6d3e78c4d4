with facts as (
    select ship_date, amount, line_count
    from {{ gdp_head('shipping_day') }} as shipping_day
    where {{ in_any_affected_period('shipped_amount', 'ship_date') }}
)

{{ kpi_series(
    'shipped_amount',
    facts='facts',
    date_column='ship_date',
    numerator='sum(amount)',
    source_rows='sum(line_count)'
) }}
