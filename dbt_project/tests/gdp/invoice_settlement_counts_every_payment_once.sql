-- Every accepted payment belongs to a settled-or-open invoice, and its amount is counted there once.
with settlement as (
    select invoice_id, paid_amount, payment_count from {{ gdp_head('invoice_settlement') }} as settlement_head
),

payment as (
    select invoice_id, sum(amount) as paid_amount, count(*) as payment_count
    from {{ gdp_head('invoice_payment') }} as payment_head
    group by invoice_id
)

select coalesce(settlement.invoice_id, payment.invoice_id) as invoice_id
from settlement
full outer join payment on payment.invoice_id = settlement.invoice_id
where
    settlement.invoice_id is null
    or settlement.paid_amount <> coalesce(payment.paid_amount, 0)
    or settlement.payment_count <> coalesce(payment.payment_count, 0)
