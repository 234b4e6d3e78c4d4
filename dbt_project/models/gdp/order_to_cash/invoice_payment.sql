{%- set invoices_paid = '1 = 1' if run_covers_all() else 'invoice_id in (select invoice_id from payment)' -%}
with payment as (
    select * from {{ current_records('order_to_cash.payments', where=in_scope('payment_id')) }} as current_payment
),

invoice as (
    select invoice_id, currency, business_unit
    from {{ current_records('order_to_cash.invoices', where=invoices_paid) }} as current_invoice
),

payments as (
    select
        payment.invoice_id,
        payment.payment_id,
        {{ joined_column('invoice', 'business_unit') }} as business_unit,
        cast(payment.booked_at as date) as paid_on,
        payment.amount
    from payment
    {{ declared_join('invoice', left='payment') }}
    where {{ join_keeps('invoice', left='payment') }}
)

{{ versioned('payments') }}
