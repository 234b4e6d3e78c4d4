with facts as (
    select invoice_date, business_unit, net_amount
    from {{ gdp_head('invoice_settlement') }} as settlement
    where {{ in_any_affected_period('revenue', 'invoice_date') }}
)

{{ kpi_series(
    'revenue',
    facts='facts',
    date_column='invoice_date',
    numerator='sum(net_amount)',
    source_rows='count(*)'
) }}
