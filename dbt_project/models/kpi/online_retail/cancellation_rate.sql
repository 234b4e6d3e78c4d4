with facts as (
    select invoice_date, country, invoice_kind
    from {{ gdp_head('sales_invoice') }} as invoice
    where
        invoice_kind in ('sale', 'cancellation')
        and {{ in_any_affected_period('cancellation_rate', 'invoice_date') }}
)

{{ kpi_series(
    'cancellation_rate',
    facts='facts',
    date_column='invoice_date',
    numerator="sum(case when invoice_kind = 'cancellation' then 1 else 0 end)",
    denominator='count(*)',
    source_rows='count(*)'
) }}
