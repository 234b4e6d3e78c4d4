-- A clerk's note on a write-off ("damaged", "?") describes an event, never the product.
with statements as (
    select
        stock_code,
        line_kind,
        case when line_kind <> 'write_off' then description end as description,
        max(invoiced_at) as last_stated_at,
        min(case when line_kind in ('merchandise', 'fee') then invoice_date end) as first_sold_on,
        max(case when line_kind in ('merchandise', 'fee') then invoice_date end) as last_sold_on
    from {{ gdp_head('sales_invoice_line') }} as line
    where stock_code is not null and {{ in_scope('stock_code') }}
    group by 1, 2, 3
),

surviving as (
    {{ survivors('statements', key='stock_code', aggregates={
        'first_sold_on': 'min(first_sold_on)',
        'last_sold_on': 'max(last_sold_on)',
    }) }}
),

products as (
    select surviving.*, {{ is_fee('stock_code') }} as is_fee
    from surviving
)

{{ versioned('products') }}
