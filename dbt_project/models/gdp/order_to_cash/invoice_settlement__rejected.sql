{%- set candidates = '1 = 1' if run_covers_all() else 'payment_id in (select payment_id from candidate)' -%}
-- Which record of a payment counts is decided among all of them, also those that name an invoice out of scope.
with candidate as (
    select payment_id from {{ raw_rows('order_to_cash.payments') }} as raw_payment
    where {{ in_scope_or_keyless('invoice_id') }}
),

payment as (
    select *
    from {{ current_records('order_to_cash.payments', where=candidates) }} as current_payment
    where {{ in_scope_or_keyless('invoice_id') }}
),

invoice as (
    select invoice_id, currency
    from {{ current_records('order_to_cash.invoices', where=in_scope('invoice_id')) }} as current_invoice
)

{{ rejected_records('order_to_cash.invoices', key='invoice_id') }}
union all
{{ rejected_records('order_to_cash.payments', key='invoice_id') }}
union all
{{ rejected_by_join('order_to_cash.payments', to='invoice', left='payment') }}
