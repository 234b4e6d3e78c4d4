with facts as (
    select invoice_date, country, sum(amount) as amount, count(*) as source_rows
    from {{ gdp_head('sales_invoice_line') }} as line
    where
        (line_kind = 'merchandise' or (line_kind = 'cancellation' and not is_fee))
        and {{ in_any_affected_period('net_sales', 'invoice_date') }}
    group by invoice_date, country
)

{{ kpi_series(
    'net_sales',
    facts='facts',
    date_column='invoice_date',
    numerator='sum(amount)',
    source_rows='sum(source_rows)'
) }}
