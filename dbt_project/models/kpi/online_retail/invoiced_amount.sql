with facts as (
    select invoice_date, country, sum(amount) as amount, count(*) as source_rows
    from {{ gdp_head('sales_invoice_line') }} as line
    where {{ in_any_affected_period('invoiced_amount', 'invoice_date') }}
    group by invoice_date, country
)

{{ kpi_series(
    'invoiced_amount',
    facts='facts',
    date_column='invoice_date',
    numerator='sum(amount)',
    source_rows='sum(source_rows)'
) }}
