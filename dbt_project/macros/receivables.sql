{#-
  CTEs for the month-end view of receivables, ending in `receivable_month`: one row per business unit and
  month, from the unit's first invoice month to the tenant's last month with an invoice or payment.

    month_start, business_unit
    days             of the month
    gross            invoiced in the month
    open, overdue    at the end of the month: owed, and owed past its due date
    rows_to_date     head rows of invoice_settlement and invoice_payment behind open and overdue

  Open at a month end is, per invoice, gross less what was paid by then, never below 0: an overpaid invoice
  does not settle another one. Instead of looking at every invoice at every month end, each invoice and
  payment is a movement of the open amount, and months add up movements, so the work grows with the records
  and not with records times months. A movement is also one of the overdue amount, from the day after the
  due date on.
-#}
{% macro receivable_month() -%}
settlement as (
    select * from {{ gdp_head('invoice_settlement') }} as settlement_head
),

payment as (
    select * from {{ gdp_head('invoice_payment') }} as payment_head
),

paid as (
    select
        settlement.business_unit,
        settlement.due_date,
        settlement.gross_amount,
        payment.amount,
        -- A prepayment moves the open amount when there is one.
        greatest(payment.paid_on, settlement.invoice_date) as moved_on,
        sum(payment.amount) over (
            partition by payment.invoice_id
            order by payment.paid_on, {{ binary_text('payment.payment_id') }}
            rows between unbounded preceding and current row
        ) as paid_so_far
    from payment
    inner join settlement on settlement.invoice_id = payment.invoice_id
),

movement as (
    select business_unit, invoice_date as moved_on, due_date, gross_amount as amount
    from settlement
    union all
    select
        business_unit,
        moved_on,
        due_date,
        greatest(gross_amount - paid_so_far, 0) - greatest(gross_amount - (paid_so_far - amount), 0) as amount
    from paid
),

open_month as (
    select business_unit, {{ month_start('moved_on') }} as month_start, sum(amount) as amount, count(*) as row_count
    from movement
    group by 1, 2
),

overdue_month as (
    select
        business_unit,
        {{ month_start('greatest(moved_on, ' ~ day_after('due_date') ~ ')') }} as month_start,
        sum(amount) as amount
    from movement
    group by 1, 2
),

invoiced_month as (
    select
        business_unit,
        {{ month_start('invoice_date') }} as month_start,
        sum(gross_amount) as gross
    from settlement
    group by 1, 2
),

unit as (
    select
        business_unit,
        min(month_start) as first_month,
        (select max(month_start) from open_month) as last_month
    from invoiced_month
    group by business_unit
),

month as (
    select month_start, max(month_end) as month_end
    from {{ source('gdp', 'calendar') }} as calendar_day
    where tenant_id = {{ run_tenant() }}
    group by month_start
),

receivable_month as (
    select
        month.month_start,
        unit.business_unit,
        extract(day from month.month_end) as days,
        coalesce(invoiced_month.gross, 0) as gross,
        sum(coalesce(open_month.amount, 0)) over unit_to_date as open,
        sum(coalesce(overdue_month.amount, 0)) over unit_to_date as overdue,
        sum(coalesce(open_month.row_count, 0)) over unit_to_date as rows_to_date
    from unit
    inner join month on month.month_start between unit.first_month and unit.last_month
    left join invoiced_month
        on invoiced_month.business_unit = unit.business_unit and invoiced_month.month_start = month.month_start
    left join open_month
        on open_month.business_unit = unit.business_unit and open_month.month_start = month.month_start
    left join overdue_month
        on overdue_month.business_unit = unit.business_unit and overdue_month.month_start = month.month_start
    window unit_to_date as (
        partition by unit.business_unit
        order by month.month_start
        rows between unbounded preceding and current row
    )
)
{%- endmacro %}
