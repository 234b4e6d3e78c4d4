with {{ receivable_month() }}

{{ kpi_series(
    'dso',
    facts='receivable_month',
    date_column='month_start',
    numerator='sum(open * days)',
    denominator='sum(gross)',
    source_rows='sum(rows_to_date)'
) }}
