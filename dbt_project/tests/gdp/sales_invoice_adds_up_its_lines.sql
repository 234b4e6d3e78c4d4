-- Line count and amount of every invoice are those of its lines.
with invoice as (
    select invoice_no, line_count, amount from {{ gdp_head('sales_invoice') }} as invoice_head
),

lines as (
    select invoice_no, count(*) as line_count, sum(amount) as amount
    from {{ gdp_head('sales_invoice_line') }} as line_head
    group by invoice_no
)

select coalesce(invoice.invoice_no, lines.invoice_no) as invoice_no
from invoice
full outer join lines on lines.invoice_no = invoice.invoice_no
where
    invoice.invoice_no is null
    or lines.invoice_no is null
    or invoice.line_count <> lines.line_count
    or invoice.amount <> lines.amount
