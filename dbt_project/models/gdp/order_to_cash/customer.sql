with crm as (
    select
        customer_id,
        'crm' as system,
        nullif({{ trimmed('name') }}, '') as name,
        segment,
        country,
        credit_limit,
        payment_terms_days,
        quality_score,
        updated_at
    from {{ raw_rows('order_to_cash.customers') }} as crm_customer
    where {{ keeps_rules('order_to_cash.customers') }} and {{ in_scope('customer_id') }}
),

-- The ERP states a name on every invoice: the last time it did counts.
erp as (
    select
        customer_id,
        'erp' as system,
        nullif({{ trimmed('customer_name') }}, '') as name,
        cast(null as {{ dbt.type_string() }}) as segment,
        cast(null as {{ dbt.type_string() }}) as country,
        cast(null as numeric(18, 2)) as credit_limit,
        cast(null as integer) as payment_terms_days,
        cast(null as {{ dbt.type_float() }}) as quality_score,
        max(last_modified) as updated_at
    from {{ raw_rows('order_to_cash.invoices') }} as erp_invoice
    where customer_id is not null and {{ in_scope('customer_id') }}
    group by customer_id, nullif({{ trimmed('customer_name') }}, '')
),

statements as (
    select * from crm
    union all
    select * from erp
),

customers as (
    {{ survivors('statements', key='customer_id', aggregates={
        'is_known': "max(case when system = 'crm' then 1 else 0 end) = 1",
    }) }}
)

{{ versioned('customers') }}
