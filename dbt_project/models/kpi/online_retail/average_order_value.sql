-- Merchandise is found on sale invoices only, so every invoice counted here is one.
with facts as (
    select invoice_no, invoice_date, country, sum(amount) as amount, count(*) as source_rows
    from {{ gdp_head('sales_invoice_line') }} as line
    where line_kind = 'merchandise' and {{ in_any_affected_period('average_order_value', 'invoice_date') }}
    group by invoice_no, invoice_date, country
)

{{ kpi_series(
    'average_order_value',
    facts='facts',
    date_column='invoice_date',
    numerator='sum(amount)',
    denominator='count(distinct invoice_no)',
    source_rows='sum(source_rows)'
) }}
