{{ rejected_records('order_to_cash.customers', key='customer_id') }}
