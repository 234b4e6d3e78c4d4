with facts as (
    select invoice_date, country, customer_id, count(*) as source_rows
    from {{ gdp_head('sales_invoice_line') }} as line
    where line_kind = 'merchandise' and {{ in_any_affected_period('active_customers', 'invoice_date') }}
    group by invoice_date, country, customer_id
)

{{ kpi_series(
    'active_customers',
    facts='facts',
    date_column='invoice_date',
    numerator='count(distinct customer_id)',
    source_rows='sum(source_rows)'
) }}
