with {{ receivable_month() }}

{{ kpi_series(
    'overdue_ratio',
    facts='receivable_month',
    date_column='month_start',
    numerator='sum(overdue)',
    denominator='sum(open)',
    source_rows='sum(rows_to_date)'
) }}
