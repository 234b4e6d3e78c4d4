-- The customer and the country stand on every line of an invoice; its first line speaks for all.
with invoices as (
    select
        invoice_no,
        case
            when invoice_no like 'A%' then 'adjustment'
            when invoice_no like 'C%' then 'cancellation'
            else 'sale'
        end as invoice_kind,
        cast(min(invoiced_at) as date) as invoice_date,
        min(invoiced_at) as invoiced_at,
        max(case when line_position = 1 then customer_id end) as customer_id,
        max(case when line_position = 1 then country end) as country,
        count(*) as line_count,
        sum(amount) as amount,
        sum(case when line_kind = 'merchandise' then amount else 0 end) as merchandise_amount,
        sum(case when line_kind = 'cancellation' then amount else 0 end) as cancelled_amount
    from {{ gdp_head('sales_invoice_line') }} as line
    where {{ in_scope('invoice_no') }}
    group by invoice_no
)

{{ versioned('invoices') }}
