with invoices as (
    select * from {{ gdp_head('sales_invoice') }} as invoice
    where customer_id is not null and {{ in_scope('customer_id') }}
),

customers as (
    {{ survivors('invoices', key='customer_id', aggregates={
        'first_invoice_date': 'min(invoice_date)',
        'last_invoice_date': 'max(invoice_date)',
        'invoice_count': 'count(*)',
    }) }}
)

{{ versioned('customers') }}
