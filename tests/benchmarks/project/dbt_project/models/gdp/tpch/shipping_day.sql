with days as (
    select
        l_shipdate as ship_date,
        sum(l_extendedprice * (1 - l_discount)) as amount,
        count(*) as line_count
    from {{ raw_rows('tpch.lineitem') }} as raw_record
    where {{ in_scope('l_shipdate') }}
    group by l_shipdate
)

{{ versioned('days') }}
