-- Gross is what was paid, less what was paid too much, plus what is open; an invoice is settled or open.
select invoice_id, gross_amount, paid_amount, open_amount, overpaid_amount, is_settled
from {{ gdp_head('invoice_settlement') }} as settlement
where
    gross_amount <> paid_amount - overpaid_amount + open_amount
    or is_settled <> (open_amount = 0)
    or is_settled <> (settlement_date is not null)
    or (open_amount > 0 and overpaid_amount > 0)
