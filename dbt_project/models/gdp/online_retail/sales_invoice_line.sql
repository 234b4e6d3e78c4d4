with records as (
    select * from {{ raw_rows('online_retail.invoices') }} as raw_record
    where {{ keeps_rules('online_retail.invoices') }} and {{ in_scope('invoice_no') }}
),

lines as (
    select
        invoice_no,
        row_number() over (
            partition by {{ binary_text('invoice_no') }}
            order by partition_date nulls last, {{ binary_text('source_id') }}, _row_number
        ) as line_position,
        stock_code,
        nullif({{ trimmed('description') }}, '') as description,
        {{ is_fee('stock_code') }} as is_fee,
        quantity,
        unit_price,
        quantity * unit_price as amount,
        invoice_date as invoiced_at,
        cast(invoice_date as date) as invoice_date,
        {{ unfloated('customer_id') }} as customer_id,
        country
    from records
),

classified as (
    select
        lines.*,
        case
            when invoice_no like 'A%' then 'adjustment'
            when invoice_no like 'C%' then 'cancellation'
            when is_fee then 'fee'
            when unit_price = 0 then 'write_off'
            else 'merchandise'
        end as line_kind
    from lines
)

{{ versioned('classified') }}
