{{ rejected_records('online_retail.invoices', key='invoice_no') }}
