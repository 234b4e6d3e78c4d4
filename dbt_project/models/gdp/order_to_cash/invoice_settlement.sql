with invoice as (
    select * from {{ current_records('order_to_cash.invoices', where=in_scope('invoice_id')) }} as current_invoice
),

payment as (
    select
        payment.invoice_id,
        payment.paid_on,
        payment.amount,
        invoice.gross_amount,
        sum(payment.amount) over (
            partition by payment.invoice_id
            order by payment.paid_on, {{ binary_text('payment.payment_id') }}
            rows between unbounded preceding and current row
        ) as paid_so_far
    from {{ gdp_head('invoice_payment') }} as payment
    inner join invoice on invoice.invoice_id = payment.invoice_id
),

paid as (
    select
        invoice_id,
        sum(amount) as paid_amount,
        count(*) as payment_count,
        max(paid_on) as last_payment_date,
        min(case when paid_so_far >= gross_amount then paid_on end) as settlement_date,
        -- The last payment of something still owed: what is paid beyond that can no longer be late.
        max(case when paid_so_far - amount < gross_amount then paid_on end) as last_needed_on
    from payment
    group by invoice_id
),

settlements as (
    select
        invoice.invoice_id,
        invoice.customer_id,
        {{ joined_column('customer', 'is_known') }} as customer_known,
        invoice.business_unit,
        invoice.currency,
        invoice.invoice_date,
        invoice.due_date,
        invoice.net_amount,
        invoice.gross_amount,
        coalesce(paid.paid_amount, 0) as paid_amount,
        greatest(invoice.gross_amount - coalesce(paid.paid_amount, 0), 0) as open_amount,
        greatest(coalesce(paid.paid_amount, 0) - invoice.gross_amount, 0) as overpaid_amount,
        coalesce(paid.payment_count, 0) as payment_count,
        paid.last_payment_date,
        paid.settlement_date,
        paid.settlement_date is not null as is_settled,
        coalesce(paid.last_needed_on > invoice.due_date, false) as late_payment
    from invoice
    {{ declared_join('customer', left='invoice', relation=gdp_head('customer')) }}
    left join paid on paid.invoice_id = invoice.invoice_id
    where {{ join_keeps('customer', left='invoice') }}
)

{{ versioned('settlements') }}
